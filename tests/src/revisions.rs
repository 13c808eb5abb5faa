//! Revisions, and the guards of rejected writes, where a store in etcd promises less than one in files.

use serde_json::Value;

use crate::client::Reply;
use crate::server::{Server, on_etcd};

impl Reply {
    /// Returns the revision in the result of an operation of a batch. The response is JSON.
    #[track_caller]
    pub fn revision_at(&self, index: usize) -> u64 {
        let results: Value = serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"));
        results[index]["revision"].as_u64().unwrap_or_else(|| panic!("no revision at {index} in {self}"))
    }
}

impl Server {
    /// Returns the revision of the last change in the store, or in its etcd. It is 0 if the store has never had one.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        let text = self.path("GET", "/metrics").send().expect(200).text().to_string();
        let number = text.lines().find_map(|line| line.strip_prefix("vkog_revision ")?.parse::<f64>().ok());
        number.unwrap_or_else(|| panic!("no vkog_revision in\n{text}")) as u64
    }
}

/// Asserts that these are the revisions of changes one after the other, after the change with the revision `before`. In files, they are
/// consecutive. In etcd, they increase, because other keys take some.
#[track_caller]
pub fn assert_successive(before: u64, revisions: &[u64]) {
    let previous = [before].into_iter().chain(revisions.iter().copied());
    let follows = |(previous, revision): (u64, &u64)| match on_etcd() {
        true => *revision > previous,
        false => *revision == previous + 1,
    };
    assert!(previous.zip(revisions).all(follows), "{revisions:?} after {before}");
}

/// Asserts that these are the revisions of all changes of one step, after the change with the revision `before`. In files, they are
/// consecutive. In etcd, all are the same.
#[track_caller]
pub fn assert_one_step(before: u64, revisions: &[u64]) {
    if on_etcd() {
        assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?} of one step");
        assert_successive(before, &revisions[..1]);
    } else {
        assert_successive(before, revisions);
    }
}

/// How often the guards of a rejected write run: in etcd once more, after the server has confirmed that the entries are current.
pub fn guard_runs() -> u64 {
    if on_etcd() { 2 } else { 1 }
}
