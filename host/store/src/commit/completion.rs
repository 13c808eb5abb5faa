//! Completions: the callbacks of writers and readers, and the threads on which they run.

use std::sync::Arc;

use vkog_runtime::Mailbox;

use super::{Commit, Gathered, Outcome, Pending, Reader};
use crate::store::RolledBack;

/// A callback that is due, and its argument.
pub(super) enum Completion {
    Update(Pending, Outcome),
    Read(Reader, Result<(), RolledBack>, Option<Arc<Mailbox>>),
}

impl Completion {
    /// Takes the mailbox on which it runs, if any.
    fn take_mailbox(&mut self) -> Option<Arc<Mailbox>> {
        match self {
            Self::Update(Pending { mailbox, .. }, _) | Self::Read(_, _, mailbox) => mailbox.take(),
        }
    }

    pub(super) fn complete(self) {
        match self {
            Self::Update(Pending { all, finish, .. }, outcome) => finish(all, outcome),
            Self::Read(reader, outcome, _) => reader(outcome),
        }
    }
}

impl Commit {
    /// Sends completions to their mailboxes, each of which is woken once, and the rest to a few threads: a client that does not
    /// read, or a slow plugin, delays no commit.
    pub(super) fn dispatch(&self, completions: Gathered<Completion>) {
        const SHARE: usize = 32;
        // There are as few mailboxes as cores.
        let mut shares: Vec<(Option<Arc<Mailbox>>, Vec<Completion>)> = Vec::new();
        let count = completions.len();
        for mut completion in completions {
            let mailbox = completion.take_mailbox();
            let same = |(other, share): &(Option<Arc<Mailbox>>, Vec<Completion>)| match (other, &mailbox) {
                (Some(other), Some(mailbox)) => Arc::ptr_eq(other, mailbox),
                (None, None) => share.len() < SHARE,
                _ => false,
            };
            match shares.iter_mut().rfind(|each| same(each)) {
                Some((_, share)) => share.push(completion),
                None => {
                    let mut share = Vec::with_capacity(if mailbox.is_some() { count } else { SHARE });
                    share.push(completion);
                    shares.push((mailbox, share));
                }
            }
        }
        for (mailbox, share) in shares {
            let job = Box::new(move || share.into_iter().for_each(Completion::complete));
            match mailbox {
                None => self.completions.run(job),
                Some(mailbox) => mailbox.send(job).into_iter().for_each(|job| self.completions.run(job)),
            }
        }
    }
}
