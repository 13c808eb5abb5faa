//! Why a command failed: its errors, one per line, and the exit status of the program.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use crate::commands::OpenError;
use crate::commands::client::{ClientError, RequestError};
use crate::commands::plugins::DownloadError;
use crate::commands::shared::SharedError;
use crate::logging;
use vkog_plugin_host::LoadError;
use vkog_store::StoreError;

/// The exit status of the program. Scripts rely on the numbers. `docs/reference/errors.md` lists them for each command.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The command succeeded.
    Success = 0,
    /// The command failed, and no other status describes the reason.
    Failure = 1,
    /// The command line cannot be parsed.
    Usage = 2,
    /// A key, a file or a folder does not exist.
    NotFound = 3,
    /// The server or a plugin refused the request, a precondition failed, or another process uses the store.
    Refused = 4,
    /// The token is missing or unknown, or it does not have the permission.
    Unauthorized = 5,
    /// The server is unreachable, unavailable, or did not respond in time.
    Unreachable = 6,
}

impl Status {
    /// All statuses, in ascending order.
    pub const ALL: [Self; 7] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::NotFound,
        Self::Refused,
        Self::Unauthorized,
        Self::Unreachable,
    ];

    /// Returns the meaning for a help text.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "another failure",
            Self::Usage => "wrong command line",
            Self::NotFound => "not found",
            Self::Refused => "refused, or a precondition failed",
            Self::Unauthorized => "no valid token or permission",
            Self::Unreachable => "unreachable, unavailable or timeout",
        }
    }

    /// Returns the status for an error: that of the first error in its chain of sources that determines one.
    fn of(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(status) = Self::own(error) {
                return status;
            }
            cause = error.source();
        }
        Self::Failure
    }

    /// Returns the status that an error determines without its sources.
    fn own(error: &(dyn Error + 'static)) -> Option<Self> {
        if let Some(error) = error.downcast_ref::<RequestError>() {
            return Some(error.status());
        }
        if let Some(error) = error.downcast_ref::<SharedError>() {
            return Some(error.status());
        }
        if let Some(error) = error.downcast_ref::<DownloadError>() {
            return error.status();
        }
        // A missing file of a client command, so that NotFound means a key.
        if let Some(ClientError::Read { .. } | ClientError::Write { .. }) = error.downcast_ref() {
            return Some(Self::Failure);
        }
        // A plugin that cannot be loaded, for any reason.
        if error.is::<LoadError>() {
            return Some(Self::Failure);
        }
        if let Some(OpenError::Missing(_)) = error.downcast_ref() {
            return Some(Self::NotFound);
        }
        if let Some(OpenError::Locked(error)) = error.downcast_ref() {
            return Self::own(error);
        }
        if let Some(StoreError::Locked { .. } | StoreError::LockedElsewhere { .. }) = error.downcast_ref() {
            return Some(Self::Refused);
        }
        match error.downcast_ref::<io::Error>()?.kind() {
            io::ErrorKind::NotFound => Some(Self::NotFound),
            io::ErrorKind::AlreadyExists => Some(Self::Refused),
            _ => None,
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// An error of any command.
type AnyError = Box<dyn Error + Send + Sync>;

/// The reason why the program ends without success. Every error converts into it.
pub struct Failure {
    errors: Vec<AnyError>,
    status: Status,
}

impl Failure {
    /// A failure for several independent reasons. Its status is that of the errors if they agree.
    pub fn new<E: Error + Send + Sync + 'static>(errors: impl IntoIterator<Item = E>) -> Self {
        let errors: Vec<AnyError> = errors.into_iter().map(|error| AnyError::from(error)).collect();
        let mut statuses = errors.iter().map(|error| Status::of(&**error));
        let first = statuses.next().unwrap_or(Status::Failure);
        let status = if statuses.all(|status| status == first) { first } else { Status::Failure };
        Self { errors, status }
    }

    /// A command line that cannot be parsed.
    pub fn usage<E: Error + Send + Sync + 'static>(error: E) -> Self {
        Self::with_status(Status::Usage, [error])
    }

    /// A failure for several reasons, with this status.
    pub fn with_status<E: Error + Send + Sync + 'static>(status: Status, errors: impl IntoIterator<Item = E>) -> Self {
        Self { status, ..Self::new(errors) }
    }

    /// Prints one line for each error to standard error.
    pub fn report(&self) {
        for error in &self.errors {
            logging::say(&format!("vkog: {error}"));
        }
    }

    /// Returns the exit status.
    pub fn status(&self) -> Status {
        self.status
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new([error])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_disagree_have_the_status_of_any_failure() {
        let of = |kinds: &[io::ErrorKind]| Failure::new(kinds.iter().copied().map(io::Error::from)).status();
        assert_eq!(of(&[io::ErrorKind::NotFound, io::ErrorKind::NotFound]), Status::NotFound);
        assert_eq!(of(&[io::ErrorKind::NotFound, io::ErrorKind::AlreadyExists]), Status::Failure);
        assert_eq!(of(&[io::ErrorKind::PermissionDenied]), Status::Failure);
    }
}
