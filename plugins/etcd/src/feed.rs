//! The thread that passes the state and the changes to the host, and that learns from them who the members are.

use std::sync::Arc;

use prost::Message;
use tokio::sync::{mpsc, oneshot};

use crate::keys::Kind;
use crate::node::{Cluster, Node};
use crate::proto::{Event, KeyValue, Last};
use crate::watch::revision_of;
use vkog_plugin_api::backend::{Change, Loaded, Member};

/// A step of `watch` for the thread.
pub(crate) enum Step {
    /// The load begins; what was passed of another one does not count.
    Begin,
    Page(Vec<KeyValue>),
    /// The load ends. The thread answers whether it counts.
    Loaded(i64, oneshot::Sender<bool>),
    /// All changes of some revisions, in their order.
    Events(Vec<Event>),
}

/// A load that has not ended.
#[derive(Default)]
struct Load {
    /// [`Node::losses`] at its begin.
    losses: u64,
    /// The members and the leader that it has.
    cluster: Cluster,
}

/// Passes on what comes, until the sender is gone.
pub(crate) fn run(node: &Arc<Node>, mut steps: mpsc::Receiver<Step>) {
    let mut loading = Load::default();
    while let Some(step) = steps.blocking_recv() {
        match step {
            Step::Begin => {
                loading = Load { losses: *node.losses(), cluster: Cluster::default() };
                node.sink.load(&[]);
            }
            Step::Page(page) => load(node, &page, &mut loading.cluster),
            Step::Loaded(revision, answer) => {
                // Fails only if the watch is gone.
                let _ = answer.send(end_load(node, std::mem::take(&mut loading), revision));
            }
            Step::Events(events) => {
                for changes in events.chunk_by(|left, right| revision_of(left) == revision_of(right)) {
                    apply(node, changes);
                }
            }
        }
    }
}

/// Ends a load. Returns whether it counts: not if the connection was lost meanwhile, because the host has then forgotten pages.
fn end_load(node: &Node, load: Load, revision: i64) -> bool {
    let revision = u64::try_from(revision).unwrap_or(0);
    {
        let losses = node.losses();
        if *losses != load.losses {
            return false;
        }
        node.sink.loaded(revision);
    }
    {
        let mut cluster = node.cluster();
        (cluster.members, cluster.leader) = (load.cluster.members, load.cluster.leader);
    }
    node.applied.send_replace(revision);
    node.wake_session();
    true
}

fn load(node: &Node, page: &[KeyValue], loading: &mut Cluster) {
    let mut entries = Vec::with_capacity(page.len());
    for kv in page {
        match node.keys.kind(&kv.key) {
            Kind::Entry(key) => entries.push(Loaded::new(key, &kv.value, kv.revision())),
            kind => loading.note(&kind, Some(kv)),
        }
    }
    if !entries.is_empty() {
        node.sink.load(&entries);
    }
}

/// Passes on the changes of one revision. All of them were made by one host.
fn apply(node: &Node, events: &[Event]) {
    let mut last = None;
    let mut concerns_entries = false;
    for event in events {
        let Some(kv) = &event.kv else { continue };
        match node.keys.kind(&kv.key) {
            // Somebody else has overwritten it if it is not ours.
            Kind::Last => last = Last::decode(kv.value.clone()).ok(),
            Kind::Entry(_) => {}
            kind => {
                node.cluster().note(&kind, event.is_put().then_some(kv));
                if kind == Kind::Leader && node.cluster().leader.is_none() {
                    node.wake_session();
                }
                if matches!(kind, Kind::Host(id) if !event.is_put() && id == node.id()) {
                    // Somebody has deleted it.
                    node.announce_again();
                }
                continue;
            }
        }
        concerns_entries = true;
    }
    if !concerns_entries {
        return;
    }
    let revision = events.first().map_or(0, |event| u64::try_from(revision_of(event)).unwrap_or(0));
    let Last { host, expired } = last.unwrap_or_default();
    let changes: Vec<Change<'_>> = events
        .iter()
        .filter_map(|event| {
            let kv = event.kv.as_ref()?;
            let Kind::Entry(key) = node.keys.kind(&kv.key) else { return None };
            Some(if event.is_put() {
                Change::put(key, &kv.value)
            } else {
                Change::delete(key, expired.iter().any(|expired| expired == key))
            })
        })
        .collect();
    let own = !host.is_empty() && host == node.id();
    node.sink.apply(revision, own, &changes);
    node.applied.send_replace(revision);
}

impl Cluster {
    /// Notes a host or the leader; `None`: it is gone. A value without a lease is from somebody else, and never expires.
    fn note(&mut self, kind: &Kind<'_>, kv: Option<&KeyValue>) {
        let kv = kv.filter(|kv| kv.lease != 0);
        match kind {
            Kind::Host(id) => {
                self.members.retain(|member| member.id != *id);
                self.members.extend(kv.map(|kv| Member::new(*id, String::from_utf8_lossy(&kv.value))));
                self.members.sort_by(|left, right| left.id.cmp(&right.id));
            }
            Kind::Leader => {
                self.leader = kv.map(|kv| (String::from_utf8_lossy(&kv.value).into_owned(), kv.lease));
            }
            Kind::Entry(_) | Kind::Last | Kind::Foreign => {}
        }
    }
}
