//! Signs of life: notices that etcd does not answer, and that the changes arrive in time.

use std::time::{Duration, Instant};

use crate::client::{CallError, STATUS};
use crate::node::{Node, pause_after};
use crate::proto::{StatusRequest, StatusResponse};

const INTERVAL: Duration = Duration::from_millis(400);
/// How long a member may take to answer for itself.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the cluster may take to agree, such as while it elects a leader.
const READ_TIMEOUT: Duration = Duration::from_millis(1500);
/// After this time without a sign of life, there is no connection.
const DISCONNECTED_AFTER: Duration = Duration::from_millis(1800);
/// How long the changes may be on their way before the watch is opened again.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(5);

/// Checks the connection until the runtime stops.
pub(crate) async fn run(node: &Node) {
    // The last sign of life, if there was any.
    let mut last: Option<Instant> = None;
    let mut failures = 0;
    // Why there is no connection, once that is reported.
    let mut reported = None;
    loop {
        match beat(node).await {
            Ok(is_current) => {
                // Otherwise the sink is behind, and that is no sign of life, but the connection works.
                if is_current {
                    (last, failures, reported) = (Some(Instant::now()), 0, None);
                    node.set_connected();
                }
                tokio::time::sleep(INTERVAL).await;
            }
            Err(error) => {
                let reason = error.reason(&node.keys);
                if reported.as_ref() == Some(&reason) {
                    // Writes that came back from a group that was lost meanwhile.
                    node.drop_waiting(&reason);
                } else if last
                    .map_or(failures + 1 >= node.client.endpoints(), |last| last.elapsed() >= DISCONNECTED_AFTER)
                    || error.is_loss()
                {
                    node.set_disconnected(&reason);
                    reported = Some(reason);
                }
                tokio::time::sleep(pause_after(failures).min(INTERVAL)).await;
                failures += 1;
            }
        }
    }
}

/// Returns whether the sink has all changes that were committed when this was called.
async fn beat(node: &Node) -> Result<bool, CallError> {
    let status: Result<StatusResponse, CallError> = node.client.call(STATUS, StatusRequest {}, STATUS_TIMEOUT).await;
    let has_no_leader = status.as_ref().is_ok_and(|status| status.leader == 0);
    let status = match status {
        // Some versions let only administrators ask.
        Err(error) if error.is_denied() => StatusResponse::default(),
        result => result.inspect_err(|error| {
            if matches!(error, CallError::TimedOut { .. }) {
                node.client.fail_over();
            }
        })?,
    };
    {
        let mut cluster = node.cluster();
        cluster.engine_version = status.version;
        cluster.size = u64::try_from(status.db_size).unwrap_or(0);
        cluster.quota = u64::try_from(status.db_size_quota).unwrap_or(0);
        cluster.has_no_space = status.errors.iter().any(|error| error.contains("alarm:NOSPACE"));
    }
    let revision = node.last_revision(READ_TIMEOUT).await.map_err(|error| {
        // The member answers, but it may be cut off from the others.
        if matches!(error, CallError::Etcd(_) | CallError::TimedOut { .. }) && node.client.endpoints() > 1 {
            node.client.fail_over();
        }
        match error {
            CallError::TimedOut { endpoint, .. } if has_no_leader => CallError::NoLeader { endpoint },
            error => error,
        }
    })?;
    let mut applied = node.applied.subscribe();
    if *applied.borrow_and_update() == 0 {
        return Ok(true);
    }
    loop {
        let before = *applied.borrow_and_update();
        if before >= revision {
            return Ok(true);
        }
        if tokio::time::timeout(WATCH_SILENCE_MAX, applied.changed()).await.is_err() {
            node.client.fail_over();
            return Ok(false);
        }
    }
}
