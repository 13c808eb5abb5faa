//! The store on a simulated disk: power cuts at every step, truncated files and flipped bits, failing syncs, a full
//! disk. The head of each module states the property and how it is provoked.

mod client;
mod crashes;
mod damage;
mod disk;
mod double_faults;
mod failures;
mod full_disk;
mod history;
mod inode;
mod interval;
mod keys;
mod random;
mod restarts;
mod rollbacks;
mod watch;
