//! Conditional requests (RFC 9110, section 13): what must hold for an entry before an operation succeeds.

/// The revisions that a condition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revisions {
    /// Every revision: the entry exists.
    Any,
    /// These revisions.
    These(Vec<u64>),
}

impl Revisions {
    fn include(&self, current: Option<u64>) -> bool {
        match (self, current) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::These(revisions), Some(current)) => revisions.contains(&current),
        }
    }
}

/// The conditions of a request. A condition that is absent holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `If-Match`: the entry has one of these revisions.
    pub if_match: Option<Revisions>,
    /// `If-None-Match`: the entry has none of these revisions.
    pub if_none_match: Option<Revisions>,
}

/// The condition that does not hold.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum PreconditionFailed {
    /// `If-Match`.
    IfMatch,
    /// `If-None-Match`, because the entry has this revision.
    IfNoneMatch(u64),
}

impl Conditions {
    /// Checks the conditions for an entry with this revision, or for an absent one.
    ///
    /// # Errors
    ///
    /// The first condition that does not hold.
    #[inline]
    pub fn check(&self, current: Option<u64>) -> Result<(), PreconditionFailed> {
        if self.if_match.as_ref().is_some_and(|revisions| !revisions.include(current)) {
            return Err(PreconditionFailed::IfMatch);
        }
        match current {
            Some(revision) if self.if_none_match.as_ref().is_some_and(|revisions| revisions.include(current)) => {
                Err(PreconditionFailed::IfNoneMatch(revision))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_hold_for_the_entries_that_they_name() {
        let these = |revisions: &[u64]| Some(Revisions::These(revisions.to_vec()));
        let all = |if_match, if_none_match| Conditions { if_match, if_none_match };
        for (conditions, absent, seven) in [
            (all(None, None), true, true),
            (all(Some(Revisions::Any), None), false, true),
            (all(these(&[6, 7]), None), false, true),
            (all(these(&[6]), None), false, false),
            (all(None, Some(Revisions::Any)), true, false),
            (all(None, these(&[7])), true, false),
            (all(None, these(&[6])), true, true),
        ] {
            let held = (conditions.check(None).is_ok(), conditions.check(Some(7)).is_ok());
            assert_eq!(held, (absent, seven), "{conditions:?}");
        }
    }
}
