//! The store on a simulated disk: power cuts at every step, files cut off and bits flipped, syncs that fail, a disk that is
//! full. Each module's head says what has to hold and how it is provoked.

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
