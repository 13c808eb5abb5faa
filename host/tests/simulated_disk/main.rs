//! The host on the simulated disk of the store's tests: refused writes, and what the server reports when it cannot write.

mod actors;
mod chains;
// The fixtures have functions that only the store's tests call.
#[allow(dead_code)]
#[path = "../../store/tests/simulated_disk/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../../store/tests/simulated_disk/disk.rs"]
mod disk;
#[allow(dead_code)]
#[path = "../../store/tests/simulated_disk/inode.rs"]
mod inode;
mod model;
mod pipelining;
mod power_cuts;
#[allow(dead_code)]
#[path = "../../store/tests/simulated_disk/random.rs"]
mod random;
mod readiness;
mod refusals;
mod script;
