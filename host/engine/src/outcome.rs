//! The outcome of an operation, and the message of a failure.

use std::borrow::Cow;
use std::sync::Arc;

use crate::PreconditionFailed;
use vkog_plugin_host::Refusal;
use vkog_store::{Entry, StoreError};

/// The outcome of one operation.
pub enum Outcome {
    /// A get found this entry.
    Found(Entry),
    /// A post or put was committed with this revision.
    Written(u64),
    /// A delete was committed with this revision.
    Removed(u64),
    /// There is no entry under the key, or plugins hide it.
    Absent,
    /// A condition of the request does not hold.
    PreconditionFailed(PreconditionFailed),
    /// A plugin refused the operation, or failed.
    Refused(Refusal),
    /// The store could not write.
    StoreFailed(Arc<StoreError>),
}

/// Headers that plugins add to a response.
pub type ExtraHeaders = Vec<(String, String)>;

impl Outcome {
    /// The HTTP status and the text of an operation that failed; none if it succeeded.
    pub fn failure(&self) -> Option<(u16, Cow<'static, str>)> {
        Some(match self {
            Self::Found(_) | Self::Written(_) | Self::Removed(_) => return None,
            Self::Absent => (404, "Not Found".into()),
            Self::PreconditionFailed(_) => (412, "Precondition failed: the entry is not as expected".into()),
            Self::Refused(refusal) => (refusal.status, refusal.message.clone().into()),
            Self::StoreFailed(error) => {
                let (status, outcome) = match &**error {
                    // Nothing was written that could be rolled back.
                    StoreError::Refused { status, .. } => (*status, "Refused"),
                    StoreError::Foreign { .. } => (500, "Unusable key"),
                    error if error.is_temporary() => (503, "Unavailable"),
                    error if error.is_full() => (507, "Rolled back"),
                    StoreError::Unresolved { .. } => (504, "Outcome unknown"),
                    error if error.is_certain() => (503, "Rolled back"),
                    _ => (503, "Outcome unknown"),
                };
                (status, format!("{outcome}: {error}").into())
            }
        })
    }
}

/// A refusal by the host itself, which names no plugin.
pub fn host_refusal(status: u16, message: impl Into<String>) -> Refusal {
    Refusal { plugin: String::new(), status, message: message.into(), headers: Vec::new() }
}
