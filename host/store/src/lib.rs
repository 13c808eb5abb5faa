//! The store of VKOG: a map in memory and the files that make it durable. It knows neither HTTP nor plugins.
//!
//! [`Store`] is the interface. [`LocalStore`] implements it with a write-ahead log (FILE.log) and snapshots (FILE),
//! [`MemoryStore`] without files, and [`SharedStore`] with a [`Backend`] that several hosts share.

mod backend;
mod change_feed;
mod checkpoint;
mod commit;
mod damage;
mod disk;
mod entry;
mod error;
mod event;
#[cfg(unix)]
mod flock;
mod import;
mod inspect;
mod invalid;
mod key_ranges;
mod local;
mod lock;
mod map;
mod memory;
mod options;
mod outcomes;
mod paths;
mod random;
mod range;
mod recover;
mod repair;
mod restore;
mod schedule;
mod shared;
mod shared_store;
mod snapshot;
mod space;
mod store;
mod timeline;
mod update;
mod view;
mod wal;
mod writer;

pub use backend::{
    Backend, BackendChange, BackendMember, BackendStatus, BackendWrite, CommitOutcome, Condition, Feed, Loaded,
};
pub use change_feed::{Unwatchable, Watch};
pub use commit::{Fsync, ReadTicket};
pub use damage::{Damage, Defect, Mismatch};
pub use disk::{Disk, File, LocalDisk};
pub use entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry, owned_content_type};
pub use error::StoreError;
pub use event::Event;
pub use import::{Added, Import};
pub use inspect::{Contents, LogContents, exists};
pub use invalid::{InvalidEntry, KEY_MAX, LeftOut, check_entry};
pub use local::LocalStore;
pub use lock::Lock;
pub use memory::MemoryStore;
pub use options::Options;
pub use paths::has_file;
pub use recover::{LoadPhase, LoadProgress, LostLog};
pub use repair::{Lost, Moved, Origin, Repair, Repaired, Salvaged, is_repairable, repair};
pub use restore::{Restore, Restored};
pub use shared_store::{SharedOptions, SharedStore};
pub use snapshot::Progress;
pub use store::{Reads, RolledBack, Store};
pub use update::{Change, Changes, Decide, Decision, Update};
pub use view::{Unviewable, View};
pub use wal::VALUE_MAX;
