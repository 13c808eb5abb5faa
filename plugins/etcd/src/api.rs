//! A mirror of the interface of vkog-plugin-api 1.6 until it is there.

#[derive(Copy, Clone, Debug)]
pub struct Write<'a> {
    id: u64,
    conditions: &'a [Condition<'a>],
    changes: &'a [Change<'a>],
}
impl<'a> Write<'a> {
    pub fn new(id: u64, conditions: &'a [Condition<'a>], changes: &'a [Change<'a>]) -> Self {
        Self { id, conditions, changes }
    }
    pub fn id(&self) -> u64 {
        self.id
    }
    pub fn conditions(&self) -> &'a [Condition<'a>] {
        self.conditions
    }
    pub fn changes(&self) -> &'a [Change<'a>] {
        self.changes
    }
}
#[derive(Copy, Clone, Debug)]
pub struct Condition<'a> {
    key: &'a str,
    revision: u64,
}
impl<'a> Condition<'a> {
    pub fn new(key: &'a str, revision: u64) -> Self {
        Self { key, revision }
    }
    pub fn key(&self) -> &'a str {
        self.key
    }
    pub fn revision(&self) -> u64 {
        self.revision
    }
}
#[derive(Copy, Clone, Debug)]
pub struct Change<'a> {
    key: &'a str,
    record: Option<&'a [u8]>,
    expired: bool,
}
impl<'a> Change<'a> {
    pub fn put(key: &'a str, record: &'a [u8]) -> Self {
        Self { key, record: Some(record), expired: false }
    }
    pub fn delete(key: &'a str, expired: bool) -> Self {
        Self { key, record: None, expired }
    }
    pub fn key(&self) -> &'a str {
        self.key
    }
    pub fn record(&self) -> Option<&'a [u8]> {
        self.record
    }
    pub fn expired(&self) -> bool {
        self.expired
    }
}
#[derive(Copy, Clone, Debug)]
pub struct Loaded<'a> {
    key: &'a str,
    record: &'a [u8],
    revision: u64,
}
impl<'a> Loaded<'a> {
    pub fn new(key: &'a str, record: &'a [u8], revision: u64) -> Self {
        Self { key, record, revision }
    }
    pub fn key(&self) -> &'a str {
        self.key
    }
    pub fn record(&self) -> &'a [u8] {
        self.record
    }
    pub fn revision(&self) -> u64 {
        self.revision
    }
}
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    Committed { revision: u64 },
    Conflict { revision: u64 },
    Refused { status: u16, message: String },
    Dropped { message: String },
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub connected: bool,
    pub leads: bool,
    pub engine: String,
    pub engine_version: String,
    pub id: String,
    pub size: u64,
    pub quota: u64,
    pub members: Vec<Member>,
}
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub id: String,
    pub about: String,
}
impl Member {
    pub fn new(id: impl Into<String>, about: impl Into<String>) -> Self {
        Self { id: id.into(), about: about.into() }
    }
}
