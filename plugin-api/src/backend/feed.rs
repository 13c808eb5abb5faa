//! The reports of a backend to the host.

#![allow(unsafe_code)]

use abi_stable::std_types::{RNone, ROption, RSlice, RSome, RStr};

use super::write::Change;
use crate::abi::{RawChange, RawCommitOutcome, RawFeed, RawLoaded};

/// The host's store, to which a backend reports: an argument of [`Backend::open`](crate::Backend::open). It can be copied, and
/// used on any thread. After [`Backend::close`](crate::Backend::close) its functions do nothing.
///
/// [`load`](Self::load), [`loaded`](Self::loaded) and [`apply`](Self::apply) take effect before they return, and call hooks of
/// plugins. Call them from one thread at a time, in order. They and [`outcome`](Self::outcome) wait while a reload starts plugins,
/// up to 10 s, so use a thread that nothing else needs, such as the renewal of a lease. Since 1.6.
#[derive(Copy, Clone)]
pub struct Feed(RawFeed);

// SAFETY: `RawFeed::cx` is valid until the process ends (abi/backend.rs), and the functions of `FeedApi` are callable from
// any thread.
unsafe impl Send for Feed {}
// SAFETY: as above.
unsafe impl Sync for Feed {}

impl Feed {
    #[doc(hidden)]
    pub fn from_raw(raw: RawFeed) -> Self {
        Self(raw)
    }

    /// Passes a page of the state: records of any number of keys, in any order. Pages are passed when the backend has opened,
    /// and again whenever it cannot report single changes, such as after a long interruption. Until
    /// [`loaded`](Self::loaded), the host serves what it had. An empty page discards those passed before it: the load begins
    /// again.
    pub fn load(&self, page: &[Loaded<'_>]) {
        // SAFETY: `Loaded` is transparent; `cx` belongs to this `api`: both came in one `RawFeed`.
        unsafe {
            let page = std::slice::from_raw_parts(page.as_ptr().cast::<RawLoaded<'_>>(), page.len());
            self.0.api.load()(self.0.cx, RSlice::from_slice(page));
        }
    }

    /// Ends the pages: they were the state at this revision. Keys that they did not contain do not exist any more.
    pub fn loaded(&self, revision: u64) {
        // SAFETY: as in `load`.
        unsafe { self.0.api.loaded()(self.0.cx, revision) }
    }

    /// Passes the changes of one revision, all in one call. Call it for every revision after the [loaded](Self::loaded) one
    /// in which a key was changed, or that the host learns otherwise, in ascending order; then there may be no changes.
    /// `own`: this host has made them.
    pub fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]) {
        // SAFETY: `Change` is transparent; otherwise as in `load`.
        unsafe {
            let changes = std::slice::from_raw_parts(changes.as_ptr().cast::<RawChange<'_>>(), changes.len());
            self.0.api.apply()(self.0.cx, revision, own, RSlice::from_slice(changes));
        }
    }

    /// Reports the outcome of a write, once. It may come before or after [`apply`](Self::apply) of its revision. The host
    /// ignores a second report.
    pub fn outcome(&self, id: u64, outcome: CommitOutcome) {
        let (kind, status, revision, message) = match &outcome {
            CommitOutcome::Committed { revision } => (RawCommitOutcome::COMMITTED, 0, *revision, ""),
            CommitOutcome::Conflict { revision } => (RawCommitOutcome::CONFLICT, 0, *revision, ""),
            CommitOutcome::Refused { status, message } => (RawCommitOutcome::REFUSED, *status, 0, message.as_str()),
            CommitOutcome::Dropped { message } => (RawCommitOutcome::DROPPED, 0, 0, message.as_str()),
            CommitOutcome::Unknown { message } => (RawCommitOutcome::UNKNOWN, 0, 0, message.as_str()),
        };
        let raw = RawCommitOutcome { kind, status: status.into(), revision, message: message.into(), reserved: [0; 2] };
        // SAFETY: as in `load`.
        unsafe { self.0.api.outcome()(self.0.cx, id, &raw) }
    }

    /// Answers [`Backend::confirm`](crate::Backend::confirm), once: the last committed revision, or why it is unknown. The host
    /// may call `confirm` again before this returns, so hold no lock that it takes.
    pub fn confirmed(&self, id: u64, revision: Result<u64, &str>) {
        // SAFETY: as in `load`.
        unsafe { self.0.api.confirmed()(self.0.cx, id, revision.unwrap_or(0), error_of(revision)) }
    }

    /// Reports that the engine can be reached, or why not. Call it at each change, and with `Ok` at each sign of life of the
    /// engine, at least once a second: reads that may be a little old are served only while the last sign is young. After an error, the host rejects writes until the next `Ok`.
    pub fn connected(&self, state: Result<(), &str>) {
        // SAFETY: as in `load`.
        unsafe { self.0.api.connected()(self.0.cx, error_of(state)) }
    }
}

fn error_of<T>(result: Result<T, &str>) -> ROption<RStr<'_>> {
    match result {
        Ok(_) => RNone,
        Err(error) => RSome(error.into()),
    }
}

/// A record that the engine holds: part of a page of [`Feed::load`]. Since 1.6.
#[derive(Copy, Clone)]
#[repr(transparent)]
pub struct Loaded<'a>(RawLoaded<'a>);

impl<'a> Loaded<'a> {
    /// Creates one: the revision is that of the last change of the key.
    pub fn new(key: &'a str, record: &'a [u8], revision: u64) -> Self {
        Self(RawLoaded { key: key.into(), record: record.into(), revision, reserved: 0 })
    }

    /// Returns the records that crossed the boundary.
    #[doc(hidden)]
    pub fn from_raw<'b>(raw: &'b [RawLoaded<'a>]) -> &'b [Self] {
        // SAFETY: it is transparent.
        unsafe { std::slice::from_raw_parts(raw.as_ptr().cast(), raw.len()) }
    }

    /// Returns the key.
    pub fn key(&self) -> &'a str {
        self.0.key.as_str()
    }

    /// Returns the record.
    pub fn record(&self) -> &'a [u8] {
        self.0.record.as_slice()
    }

    /// Returns the revision.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }
}

/// The outcome of a write. A backend that does not know whether a write took effect has to find out first. Since 1.6.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitOutcome {
    /// It has taken effect, and no failure that the engine tolerates takes it back.
    Committed {
        /// The revision of its changes. Greater than any before of the same keys; writes that were joined may share it.
        revision: u64,
    },
    /// A condition was not fulfilled, so it has no effect. The host decides again when it has applied all changes up to a
    /// revision.
    Conflict {
        /// That revision: at least that of the change that was in the way.
        revision: u64,
    },
    /// The engine refused it, so it has no effect, and would refuse it again.
    Refused {
        /// The HTTP status for the client, such as 413 for a write that is too large, or 507 for a full database.
        status: u16,
        /// The message for the client: one line.
        message: String,
    },
    /// It certainly has no effect, and may be sent again: it never left this machine, or the engine lost it. The client
    /// gets 503.
    Dropped {
        /// Why: one line.
        message: String,
    },
    /// Whether it has taken effect cannot be found out any more, because others have replaced everything that it may have
    /// changed, and the engine has forgotten those changes. Pass the changes that it may have made to the feed before.
    Unknown {
        /// Why: one line.
        message: String,
    },
}

impl CommitOutcome {
    /// Returns the outcome that crossed the boundary.
    #[doc(hidden)]
    pub fn from_raw(raw: &RawCommitOutcome<'_>) -> Self {
        let (revision, message) = (raw.revision, raw.message.to_string());
        match raw.kind {
            RawCommitOutcome::COMMITTED => Self::Committed { revision },
            RawCommitOutcome::CONFLICT => Self::Conflict { revision },
            RawCommitOutcome::REFUSED => Self::Refused { status: u16::try_from(raw.status).unwrap_or(500), message },
            RawCommitOutcome::DROPPED => Self::Dropped { message },
            _ => Self::Unknown { message },
        }
    }
}
