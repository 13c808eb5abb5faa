//! The session of this host: its leases, its fence, its membership, and the election of a leader.
//!
//! A fence is a key below the host's lease. Groups of writes take effect only while it exists as it was created. So when a
//! group's response is lost, or the lease, this removes the fence, reads the slots, settles all groups in flight by them,
//! and creates another fence.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::sleep;
use vkog_plugin_api::backend::CommitOutcome;

use crate::client::{CallError, DELETE_RANGE, LEASE_GRANT, LEASE_REVOKE, RANGE, TXN};
use crate::commit::{self, Settled};
use crate::keys::Keys;
use crate::node::{Node, pause_after};
use crate::proto::{
    Compare, Compared, DeleteRangeRequest, Ignored, LeaseGrantRequest, LeaseRequest, LeaseResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use crate::write::Fence;

/// How long one call may take. A member that does not answer at all is noticed earlier, by `alive`.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long writes wait for a valid session.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// The lifetime of the slots after the host is gone, in seconds: a day.
const SLOTS_TTL: i64 = 86_400;
/// The pause after a failure that leaves the session valid.
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// How long the close may wait for groups in flight, and for each call.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// An obstacle to a valid session.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Call(#[from] CallError),
    /// Such as a request for it that was sent twice. The next attempt removes it.
    #[error("the fence of this host exists already")]
    Fence,
}

impl SessionError {
    /// Returns the outcome of all writes, if an operator has to do something before etcd accepts one.
    fn refusal(&self, keys: &Keys) -> Option<CommitOutcome> {
        match self {
            Self::Call(error) if error.is_no_space() => Some(commit::no_space()),
            Self::Call(error) if error.is_denied() => Some(commit::denied(error, keys)),
            _ => None,
        }
    }
}

/// Keeps the session valid until the task is aborted.
pub(crate) async fn run(node: &Arc<Node>) {
    let mut failures = 0;
    let mut ended = Instant::now();
    loop {
        match renew(node).await {
            Ok(()) => {
                failures = 0;
                maintain(node).await;
                ended = Instant::now();
            }
            Err(error) => {
                if let Some(refusal) = error.refusal(&node.keys) {
                    node.report(node.commits.refuse_all(refusal));
                } else if ended.elapsed() > WAIT_MAX {
                    let message = format!("etcd does not accept writes of this server: {error}");
                    node.report(node.commits.drop_waiting(&CommitOutcome::Dropped { message }));
                }
                if failures == 0 {
                    node.note(&format!("cannot prepare etcd for writes of this server: {error}"));
                }
                sleep(pause_after(failures)).await;
                failures += 1;
            }
        }
    }
}

/// Makes the session valid: settles the groups in flight, then raises a new fence.
async fn renew(node: &Arc<Node>) -> Result<(), SessionError> {
    node.commits.lower_fence();
    let id = node.id();
    if !id.is_empty() {
        let fence = DeleteRangeRequest { key: node.keys.fence(&id) };
        node.client.call::<_, Ignored>(DELETE_RANGE, fence, TIMEOUT).await?;
        let (key, range_end) = node.keys.slots(&id);
        let slots = RangeRequest { key, range_end, ..RangeRequest::default() };
        let slots: RangeResponse = node.client.call(RANGE, slots, TIMEOUT).await?;
        // The slots were there to be read if their lease still is.
        let lease = node.identity().slots_lease;
        let complete = lease == 0 || node.client.keep_alive(lease, TIMEOUT).await? > 0;
        let Settled { outcomes, unknown } = node.commits.settle(&slots.kvs, complete, &node.keys, &id);
        node.report(outcomes);
        if !unknown.is_empty() {
            let giving_up = Arc::clone(node);
            node.runtime.spawn(async move { give_up(&giving_up, unknown).await });
        }
    }
    let lease = node.identity().lease;
    if !keep_alive(node, lease).await? {
        let began = Instant::now();
        let granted = grant(node, node.settings.lease_ttl.into()).await?;
        let mut identity = node.identity();
        if identity.id.is_empty() {
            identity.id = format!("{:016x}", granted.id);
        }
        identity.lease = granted.id;
        identity.alive_until = began.checked_add(seconds(granted.ttl));
    }
    let lease = node.identity().slots_lease;
    if lease == 0 || node.client.keep_alive(lease, TIMEOUT).await? <= 0 {
        let granted = grant(node, SLOTS_TTL).await?;
        node.identity().slots_lease = granted.id;
    }
    // Without data that this host knows, etcd must not accept its writes.
    node.check_history(TIMEOUT).await?;
    let fence = raise(node).await?;
    node.commits.raise_fence(fence);
    commit::pump(node);
    Ok(())
}

/// Reports writes as unknown when all that they may have changed has been passed to the host.
async fn give_up(node: &Node, writes: Vec<u64>) {
    let revision = loop {
        match node.last_revision(TIMEOUT).await {
            Ok(revision) => break revision,
            Err(_) => sleep(RETRY_PAUSE).await,
        }
    };
    // Fails only when the sender is gone, which the node owns.
    let _ = node.applied.subscribe().wait_for(|applied| *applied >= revision).await;
    let message = "etcd has forgotten it".to_owned();
    node.report(writes.into_iter().map(|id| (id, CommitOutcome::Unknown { message: message.clone() })).collect());
}

/// Creates the fence, and with it the membership of a host that serves.
async fn raise(node: &Node) -> Result<Fence, SessionError> {
    let identity = node.identity().clone();
    let fence = node.keys.fence(&identity.id);
    let absent = Compare::equal(fence.clone(), Compared::Version(0));
    let mut success = vec![RequestOp::put(fence, Bytes::new(), identity.lease)];
    if identity.serves() {
        success.push(RequestOp::put(node.keys.host(&identity.id), identity.about.clone().into(), identity.lease));
    }
    let request = TxnRequest { compare: vec![absent], success, failure: Vec::new() };
    let response: TxnResponse = node.client.call(TXN, request, TIMEOUT).await?;
    if !response.succeeded {
        return Err(SessionError::Fence);
    }
    let revision = response.header.map_or(0, |header| header.revision);
    Ok(Fence { id: identity.id, revision, lease: identity.slots_lease })
}

async fn grant(node: &Node, ttl: i64) -> Result<LeaseResponse, CallError> {
    node.client.call(LEASE_GRANT, LeaseGrantRequest { ttl }, TIMEOUT).await
}

/// Keeps the lease of the membership alive. Returns whether it exists.
async fn keep_alive(node: &Node, lease: i64) -> Result<bool, CallError> {
    if lease == 0 {
        return Ok(false);
    }
    let began = Instant::now();
    let ttl = node.client.keep_alive(lease, TIMEOUT).await?;
    node.identity().alive_until = began.checked_add(seconds(ttl));
    Ok(ttl > 0)
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

/// Keeps a valid session until it is not valid any more.
async fn maintain(node: &Node) {
    let interval = Duration::from_secs(node.settings.lease_ttl.into()) / 3;
    let mut next = Instant::now() + interval;
    let mut slots_next = Instant::now() + seconds(SLOTS_TTL) / 8;
    let mut is_noted = false;
    while node.commits.has_fence() {
        // A failure is tried again after a short pause: the session stays valid as long as the lease does.
        let pause = match attend(node, &mut next, &mut slots_next, interval).await {
            Ok(true) => {
                is_noted = false;
                next.saturating_duration_since(Instant::now())
            }
            Ok(false) => return,
            Err(error) if error.is_lease_gone() => return,
            Err(error) => {
                if !std::mem::replace(&mut is_noted, true) {
                    node.note(&format!("cannot renew the membership of this server in etcd: {error}"));
                }
                RETRY_PAUSE
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = node.session_woken() => {}
        }
    }
}

/// Does what is due. Returns whether the lease exists.
async fn attend(
    node: &Node,
    next: &mut Instant,
    slots_next: &mut Instant,
    interval: Duration,
) -> Result<bool, CallError> {
    let identity = node.identity().clone();
    if Instant::now() >= *next {
        if !keep_alive(node, identity.lease).await? {
            return Ok(false);
        }
        *next = Instant::now() + interval;
    }
    if Instant::now() >= *slots_next {
        if node.client.keep_alive(identity.slots_lease, TIMEOUT).await? <= 0 {
            return Ok(false);
        }
        *slots_next = Instant::now() + seconds(SLOTS_TTL) / 8;
    }
    if identity.about_is_new {
        // Before the call, because a newer one may come meanwhile.
        let about = {
            let mut identity = node.identity();
            identity.about_is_new = false;
            identity.about.clone()
        };
        let put = RequestOp::put(node.keys.host(&identity.id), about.into(), identity.lease);
        let request = TxnRequest { success: vec![put], ..TxnRequest::default() };
        let result = node.client.call::<_, Ignored>(TXN, request, TIMEOUT).await;
        result.inspect_err(|_| node.identity().about_is_new = true)?;
    }
    if identity.serves() && node.cluster().leader.is_none() {
        let leader = node.keys.leader();
        // It does not exist, or is not from a host.
        let vacant = Compare::equal(leader.clone(), Compared::Lease(0));
        let put = RequestOp::put(leader, identity.id.into(), identity.lease);
        let request = TxnRequest { compare: vec![vacant], success: vec![put], failure: Vec::new() };
        // The changes name the winner.
        node.client.call::<_, Ignored>(TXN, request, TIMEOUT).await?;
    }
    Ok(true)
}

/// Ends leadership and membership. `session` is the task that keeps them.
pub(crate) async fn end(node: &Node, session: &AbortHandle) {
    node.drop_waiting("this server stops");
    // Groups in flight get their outcome, unless etcd does not answer.
    let until = Instant::now() + END_TIMEOUT;
    while node.commits.in_flight() > 0 && Instant::now() < until {
        sleep(pause_after(0)).await;
    }
    session.abort();
    let identity = node.identity().clone();
    let leases = [Some(identity.lease), (node.commits.in_flight() == 0).then_some(identity.slots_lease)];
    for lease in leases.into_iter().flatten().filter(|lease| *lease != 0) {
        let revoke = LeaseRequest { id: lease };
        if let Err(error) = node.client.call::<_, Ignored>(LEASE_REVOKE, revoke, END_TIMEOUT).await {
            node.note(&format!("cannot end the membership of this server in etcd, so its lease expires: {error}"));
        }
    }
}
