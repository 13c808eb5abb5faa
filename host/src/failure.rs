//! Why a command failed: its errors, one per line, and the exit status of the program.

use std::error::Error;

use crate::logging;

/// An error of any command.
type AnyError = Box<dyn Error + Send + Sync>;

/// The reason why the program ends without success. Every error converts into it.
pub struct Failure {
    errors: Vec<AnyError>,
    status: u8,
}

impl Failure {
    /// A failure for several independent reasons.
    pub fn new<E: Error + Send + Sync + 'static>(errors: impl IntoIterator<Item = E>) -> Self {
        Self { errors: errors.into_iter().map(|error| AnyError::from(error)).collect(), status: 1 }
    }

    /// A command line that cannot be parsed.
    pub fn usage<E: Error + Send + Sync + 'static>(error: E) -> Self {
        Self { status: 2, ..Self::from(error) }
    }

    /// Prints one line for each error to standard error.
    pub fn report(&self) {
        for error in &self.errors {
            logging::say(&format!("vkog: {error}"));
        }
    }

    /// Returns the exit status: 2 for a wrong command line, else 1.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new([error])
    }
}
