//! A write: conditions and changes.

#![allow(unsafe_code)]

use crate::abi::{RawChange, RawCondition, RawWrite};

/// A write, with its conditions and changes: the argument of [`Backend::commit`](crate::Backend::commit). The backend applies all
/// changes in one step if all conditions are fulfilled, otherwise none. Since 1.6.
#[derive(Copy, Clone)]
#[repr(transparent)]
pub struct Write<'a>(RawWrite<'a>);

impl<'a> Write<'a> {
    /// Creates a write, as the host does. For tests of a backend.
    pub fn new(id: u64, conditions: &'a [Condition<'a>], changes: &'a [Change<'a>]) -> Self {
        // SAFETY: `Condition` and `Change` are transparent.
        let (conditions, changes) = unsafe {
            (
                std::slice::from_raw_parts(conditions.as_ptr().cast::<RawCondition<'a>>(), conditions.len()),
                std::slice::from_raw_parts(changes.as_ptr().cast::<RawChange<'a>>(), changes.len()),
            )
        };
        Self(RawWrite { id, conditions: conditions.into(), changes: changes.into(), reserved: [0; 3] })
    }

    pub(super) fn from_raw(raw: &RawWrite<'a>) -> Self {
        Self(*raw)
    }

    /// Returns the write as it crosses the boundary.
    #[doc(hidden)]
    pub fn raw(&self) -> &RawWrite<'a> {
        &self.0
    }

    /// Returns the number that the host has chosen. [`Feed::outcome`](super::Feed::outcome) names it. Numbers of later writes
    /// are greater.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Returns the required revisions, each key once. Each key that is changed is among them, and each that was read for the
    /// decision.
    pub fn conditions(&self) -> &'a [Condition<'a>] {
        let raw = self.0.conditions.as_slice();
        // SAFETY: `Condition` is transparent.
        unsafe { std::slice::from_raw_parts(raw.as_ptr().cast(), raw.len()) }
    }

    /// Returns the changes, each key once. Without any, the write has a revision all the same.
    pub fn changes(&self) -> &'a [Change<'a>] {
        Change::from_raw(self.0.changes.as_slice())
    }
}

impl std::fmt::Debug for Write<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Write")
            .field("id", &self.id())
            .field("conditions", &self.conditions())
            .field("changes", &self.changes())
            .finish()
    }
}

/// The revision that a key must have for a write to take effect. Since 1.6.
#[derive(Copy, Clone)]
#[repr(transparent)]
pub struct Condition<'a>(RawCondition<'a>);

impl<'a> Condition<'a> {
    /// Creates a condition, as the host does. For tests of a backend.
    pub fn new(key: &'a str, revision: u64) -> Self {
        Self(RawCondition { key: key.into(), revision, reserved: 0 })
    }

    /// Returns the key.
    pub fn key(&self) -> &'a str {
        self.0.key.as_str()
    }

    /// Returns the revision that the key must have; 0: it must be absent.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }
}

impl std::fmt::Debug for Condition<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Condition").field("key", &self.key()).field("revision", &self.revision()).finish()
    }
}

/// The change of one key: part of a [`Write`], and the argument of [`Feed::apply`](super::Feed::apply). Since 1.6.
#[derive(Copy, Clone)]
#[repr(transparent)]
pub struct Change<'a>(RawChange<'a>);

impl<'a> Change<'a> {
    /// Creates a change that stores a record.
    pub fn put(key: &'a str, record: &'a [u8]) -> Self {
        Self(RawChange { key: key.into(), record: record.into(), flags: 0, reserved: 0 })
    }

    /// Creates a change that removes a key; with `expired`, because its entry has expired.
    pub fn delete(key: &'a str, expired: bool) -> Self {
        let flags = RawChange::DELETE | if expired { RawChange::EXPIRED } else { 0 };
        Self(RawChange { key: key.into(), record: [].as_slice().into(), flags, reserved: 0 })
    }

    /// Returns the changes that crossed the boundary.
    #[doc(hidden)]
    pub fn from_raw<'b>(raw: &'b [RawChange<'a>]) -> &'b [Self] {
        // SAFETY: it is transparent.
        unsafe { std::slice::from_raw_parts(raw.as_ptr().cast(), raw.len()) }
    }

    /// Returns the key.
    pub fn key(&self) -> &'a str {
        self.0.key.as_str()
    }

    /// Returns the record to store; `None` if the key is removed.
    pub fn record(&self) -> Option<&'a [u8]> {
        (self.0.flags & RawChange::DELETE == 0).then(|| self.0.record.as_slice())
    }

    /// Returns whether the key is removed because its entry has expired. Pass it on to the feeds of all hosts.
    pub fn expired(&self) -> bool {
        self.0.flags & RawChange::EXPIRED != 0
    }
}

impl std::fmt::Debug for Change<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Change")
            .field("key", &self.key())
            .field("record", &self.record().map(<[u8]>::len))
            .field("expired", &self.expired())
            .finish()
    }
}
