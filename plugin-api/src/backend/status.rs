//! The status of a backend.

/// The result of [`Backend::status`](crate::Backend::status). Fill in what you know:
///
/// ```
/// # use vkog_plugin_api::backend::Status;
/// let mut status = Status::default();
/// status.connected = true;
/// status.engine = "etcd".to_owned();
/// ```
///
/// Since 1.6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Whether it is connected to the engine.
    pub connected: bool,
    /// Whether this host leads. At most one host should.
    pub leads: bool,
    /// The name of the engine.
    pub engine: String,
    /// The version of the engine; empty if it is unknown.
    pub engine_version: String,
    /// Why the engine accepts no writes of this host until an operator does something, with the way out, as one lower-case clause: its
    /// database is full, or the user may not write. Empty if it accepts them. `/readyz` of this host is 503 with it. Set it no later than
    /// the outcome of a write that is refused for this reason, and clear it when writes would succeed again, without waiting for one.
    pub full: String,
    /// The beginning of the names of entries in the engine, before the key, such as `vkog/k/`. Messages to operators have them. Empty
    /// if entries have none.
    pub entry_prefix: String,
    /// The id of this host among the [`members`](Self::members).
    pub id: String,
    /// The size of the engine's database in bytes; 0 if it is unknown.
    pub size: u64,
    /// The limit of that size in bytes; 0 if there is none or it is unknown.
    pub quota: u64,
    /// All hosts that use the store, this one included.
    pub members: Vec<Member>,
}

/// A host that uses the store. Since 1.6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its id: unique among all hosts, and another one after each start.
    pub id: String,
    /// Its announcement of itself: the `about` of [`Backend::open`](crate::Backend::open), a JSON object.
    pub about: String,
}

impl Member {
    /// Creates a member.
    pub fn new(id: impl Into<String>, about: impl Into<String>) -> Self {
        Self { id: id.into(), about: about.into() }
    }
}
