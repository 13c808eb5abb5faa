//! The part of the ABI between the host and a plugin that is the engine behind its store (since 1.6). The two tables,
//! [`BackendModule`] and [`FeedApi`], may grow at the end; all other types are frozen.

use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString};

use super::{RawFailure, RawInstance};

/// A write. The backend applies all of it in one step, or nothing.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawWrite<'a> {
    /// The host's number of the write; [`FeedApi::outcome`](FeedApi) names it.
    pub id: u64,
    /// The required revisions, each key once.
    pub conditions: RSlice<'a, RawCondition<'a>>,
    /// The changes, each key at most once.
    pub changes: RSlice<'a, RawChange<'a>>,
    /// Zero.
    pub reserved: [u64; 3],
}

/// The revision that a key must have for a write to take effect.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawCondition<'a> {
    /// The key.
    pub key: RStr<'a>,
    /// The revision; 0: the key must be absent.
    pub revision: u64,
    /// Zero.
    pub reserved: u64,
}

/// The change of one key.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawChange<'a> {
    /// The key.
    pub key: RStr<'a>,
    /// The record to store; empty with [`RawChange::DELETE`].
    pub record: RSlice<'a, u8>,
    /// Bits: [`RawChange::DELETE`], [`RawChange::EXPIRED`].
    pub flags: u64,
    /// Zero.
    pub reserved: u64,
}

impl RawChange<'_> {
    /// Bit of [`flags`](Self::flags): the key is removed.
    pub const DELETE: u64 = 1;
    /// Bit of [`flags`](Self::flags): it is removed because its entry has expired.
    pub const EXPIRED: u64 = 2;
}

/// A record that the engine holds.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawLoaded<'a> {
    /// The key.
    pub key: RStr<'a>,
    /// The record.
    pub record: RSlice<'a, u8>,
    /// The revision of the record.
    pub revision: u64,
    /// Zero.
    pub reserved: u64,
}

/// The outcome of a write.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawCommitOutcome<'a> {
    /// [`RawCommitOutcome::COMMITTED`], [`RawCommitOutcome::CONFLICT`], [`RawCommitOutcome::REFUSED`],
    /// [`RawCommitOutcome::DROPPED`] or [`RawCommitOutcome::UNKNOWN`]. The host treats any other number as unknown.
    pub kind: u32,
    /// The HTTP status of a refusal.
    pub status: u32,
    /// The revision of the write, or the one up to which the host must know the changes before it decides again.
    pub revision: u64,
    /// Why it was refused or dropped, or is unknown, as one line.
    pub message: RStr<'a>,
    /// Zero.
    pub reserved: [u64; 2],
}

impl RawCommitOutcome<'_> {
    /// [`kind`](Self::kind): the write has taken effect.
    pub const COMMITTED: u32 = 0;
    /// [`kind`](Self::kind): a condition is not fulfilled; the write has no effect.
    pub const CONFLICT: u32 = 1;
    /// [`kind`](Self::kind): the engine refused the write; it has no effect.
    pub const REFUSED: u32 = 2;
    /// [`kind`](Self::kind): the write has no effect, and may be sent again.
    pub const DROPPED: u32 = 3;
    /// [`kind`](Self::kind): whether the write has taken effect cannot be found out any more.
    pub const UNKNOWN: u32 = 4;
}

/// A host that uses the same engine.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawMember<'a> {
    /// Its id.
    pub id: RStr<'a>,
    /// Its announcement of itself, as JSON.
    pub about: RStr<'a>,
    /// Zero.
    pub reserved: u64,
}

/// The state of a backend.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawStatus<'a> {
    /// The name of the engine.
    pub engine: RStr<'a>,
    /// Its version.
    pub engine_version: RStr<'a>,
    /// Why it accepts no writes, such as a full database; empty if it accepts them.
    pub full: RStr<'a>,
    /// The beginning of the names of entries in the engine, before the key; empty if they have none.
    pub entry_prefix: RStr<'a>,
    /// The id of this host among the members.
    pub id: RStr<'a>,
    /// All hosts, this one included.
    pub members: RSlice<'a, RawMember<'a>>,
    /// The size of the database in bytes; 0 if it is unknown.
    pub size: u64,
    /// The limit of that size in bytes; 0 if there is none or it is unknown.
    pub quota: u64,
    /// Bits: [`RawStatus::CONNECTED`], [`RawStatus::LEADS`].
    pub flags: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

impl RawStatus<'_> {
    /// Bit of [`flags`](Self::flags): the backend is connected to the engine.
    pub const CONNECTED: u64 = 1;
    /// Bit of [`flags`](Self::flags): this host leads.
    pub const LEADS: u64 = 2;
}

/// A function of the host that a backend calls once with its status. Its first argument is the state that was passed to
/// [`BackendModule::status`](BackendModule).
#[repr(transparent)]
#[derive(StableAbi, Copy, Clone)]
pub struct StatusFn {
    /// The function; it never unwinds.
    pub status: for<'a> unsafe extern "C" fn(*mut (), &'a RawStatus<'a>),
}

/// The functions of the host's store that its backend calls. New functions are added at the end. The first argument is
/// [`RawFeed::cx`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = FeedApiRef)))]
pub struct FeedApi {
    /// Passes a page of the state.
    pub load: for<'a> unsafe extern "C" fn(*const (), RSlice<'a, RawLoaded<'a>>),
    /// Ends the pages; the second argument is the revision of the state.
    pub loaded: unsafe extern "C" fn(*const (), u64),
    /// Passes all changes of one revision: the revision, whether this host made them, the changes.
    pub apply: for<'a> unsafe extern "C" fn(*const (), u64, bool, RSlice<'a, RawChange<'a>>),
    /// Reports the outcome of the write with this id.
    pub outcome: for<'a> unsafe extern "C" fn(*const (), u64, &'a RawCommitOutcome<'a>),
    /// Answers the question with this id: the revision, or an error and no meaning of the revision.
    pub confirmed: for<'a> unsafe extern "C" fn(*const (), u64, u64, ROption<RStr<'a>>),
    /// Reports that the engine can be reached, or why not.
    #[sabi(last_prefix_field)]
    pub connected: for<'a> unsafe extern "C" fn(*const (), ROption<RStr<'a>>),
}

/// The host's store as its backend holds it.
#[repr(C)]
#[derive(StableAbi, Copy, Clone)]
pub struct RawFeed {
    /// The functions.
    pub api: FeedApiRef,
    /// Identifies the store. Valid until the process ends.
    pub cx: *const (),
}

/// The functions of a backend. New functions are added at the end. The first argument is the plugin's [`RawInstance`]. A
/// function returns the message of its panic, if it panicked. All may be called from several threads at once.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BackendModuleRef)))]
pub struct BackendModule {
    /// The scheme of the URLs that the backend opens.
    pub scheme: RStr<'static>,
    /// Connects and begins to load: the URL, what the other hosts learn of this one as JSON, the feed. Called once.
    pub open: for<'a> unsafe extern "C" fn(RawInstance, RStr<'a>, RStr<'a>, RawFeed) -> RResult<(), RawFailure>,
    /// Queues a write. After a panic, the write must not take effect.
    pub commit: for<'a> unsafe extern "C" fn(RawInstance, &'a RawWrite<'a>) -> ROption<RString>,
    /// Queues the question for the last committed revision.
    pub confirm: unsafe extern "C" fn(RawInstance, u64) -> ROption<RString>,
    /// Calls the function with the status, before it returns.
    pub status: unsafe extern "C" fn(RawInstance, *mut (), StatusFn) -> ROption<RString>,
    /// Replaces what the other hosts learn of this one.
    pub announce: for<'a> unsafe extern "C" fn(RawInstance, RStr<'a>) -> ROption<RString>,
    /// Disconnects. Called once, after [`BackendModule::open`](BackendModule) has succeeded.
    #[sabi(last_prefix_field)]
    pub close: unsafe extern "C" fn(RawInstance) -> ROption<RString>,
}
