//! Whether etcd has the history that this host has seen. After a restore it has another one, perhaps with the same revisions.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::client::{CallError, RANGE, TXN};
use crate::commit::revision_of;
use crate::node::Node;
use crate::proto::{
    Compare, Compared, Event, Ignored, KeyValue, Last, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};

/// A group of writes, as `last` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LastGroup {
    revision: u64,
    value: Bytes,
}

impl From<&KeyValue> for LastGroup {
    fn from(last: &KeyValue) -> Self {
        Self { revision: last.revision(), value: last.value.clone() }
    }
}

impl LastGroup {
    /// Checks that this group, which etcd has, can follow one that was seen before.
    fn follows(self, seen: Option<&Self>) -> Result<u64, CallError> {
        match seen {
            Some(seen) if self.revision < seen.revision || self.revision == seen.revision && self != *seen => {
                Err(CallError::OtherHistory { revision: seen.revision })
            }
            _ => Ok(self.revision),
        }
    }
}

impl Node {
    /// Notes the last group among keys that are passed to the sink.
    pub(crate) fn see_keys<'a>(&self, keys: impl DoubleEndedIterator<Item = &'a KeyValue>) {
        let last = self.keys.last();
        if let Some(found) = keys.rev().find(|kv| kv.key == last && kv.mod_revision > 0) {
            *self.seen() = Some(found.into());
        }
    }

    /// Notes the last group among changes that are passed to the sink.
    pub(crate) fn see_events(&self, events: &[Event]) {
        // A deletion has no value to compare.
        self.see_keys(events.iter().filter(|event| event.is_put()).filter_map(|event| event.kv.as_ref()));
    }

    /// Checks that the changes which come next follow those that this host has seen.
    pub(crate) async fn check_history(&self, limit: Duration) -> Result<(), CallError> {
        let Some(seen) = self.seen().clone() else { return Ok(()) };
        if self.last_revision(limit).await? == seen.revision {
            return Ok(());
        }
        let revision = i64::try_from(seen.revision).unwrap_or(i64::MAX);
        let request = RangeRequest { key: self.keys.last(), revision, ..RangeRequest::default() };
        let response: RangeResponse = self.client.call(RANGE, request, limit).await?;
        match response.kvs.first().map(LastGroup::from) {
            Some(there) if there == seen => Ok(()),
            _ => Err(CallError::OtherHistory { revision: seen.revision }),
        }
    }

    /// Reads the revision of the last group of any host; 0 if there was none.
    pub(crate) async fn last_revision(&self, limit: Duration) -> Result<u64, CallError> {
        loop {
            let request = RangeRequest { key: self.keys.last(), ..RangeRequest::default() };
            // Before the call: this host may see more during it.
            let (applied, seen) = (*self.applied.borrow(), self.seen().clone());
            let response: RangeResponse = self.client.call(RANGE, request, limit).await?;
            // The read is linearizable, so etcd is not behind what it has sent before.
            let revision = revision_of(response.header.as_ref());
            if revision < applied {
                return Err(CallError::WentBack { revision, applied });
            }
            match response.kvs.first() {
                Some(last) => return LastGroup::from(last).follows(seen.as_ref()),
                None if seen.is_none() => return Ok(0),
                // Somebody has deleted it. The next one has a later revision than all groups that this host may lack.
                None => self.put_last(limit).await?,
            }
        }
    }

    /// Puts `last` if it does not exist.
    async fn put_last(&self, limit: Duration) -> Result<(), CallError> {
        let absent = Compare::equal(self.keys.last(), Compared::Version(0));
        let put = RequestOp::put(self.keys.last(), Last::default().encode_to_vec().into(), 0);
        let request = TxnRequest { compare: vec![absent], success: vec![put], failure: Vec::new() };
        self.client.call::<_, Ignored>(TXN, request, limit).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_follows_itself_and_earlier_ones() {
        let group = |revision, value: &'static str| LastGroup { revision, value: value.into() };
        for (there, seen, follows) in [
            (group(5, "a"), None, true),
            (group(5, "a"), Some(group(5, "a")), true),
            (group(6, "b"), Some(group(5, "a")), true),
            (group(5, "b"), Some(group(5, "a")), false),
            (group(4, "a"), Some(group(5, "a")), false),
        ] {
            assert_eq!(there.clone().follows(seen.as_ref()).is_ok(), follows, "{there:?} after {seen:?}");
        }
    }
}
