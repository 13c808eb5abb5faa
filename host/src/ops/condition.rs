//! What has to be true of an entry for an operation to be done (RFC 9110, section 13).

/// Revisions that a client names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revisions {
    /// Any: the entry is there.
    Any,
    /// One of these.
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

/// The conditions of a request. None is always true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// `If-Match`: the entry's revision has to be one of these.
    pub one_of: Option<Revisions>,
    /// `If-None-Match`: the entry's revision must not be one of these.
    pub none_of: Option<Revisions>,
}

/// Which condition does not hold.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The entry is none of those that it had to be.
    OneOf,
    /// The entry is one of those that it must not be: this one.
    NoneOf(u64),
}

impl Conditions {
    /// Whether an entry with this revision, or an absent one, is as the client expects it.
    pub(super) fn check(&self, current: Option<u64>) -> Result<(), Unmet> {
        if self.one_of.as_ref().is_some_and(|revisions| !revisions.include(current)) {
            return Err(Unmet::OneOf);
        }
        match current {
            Some(revision) if self.none_of.as_ref().is_some_and(|revisions| revisions.include(current)) => {
                Err(Unmet::NoneOf(revision))
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
        let all = |one_of, none_of| Conditions { one_of, none_of };
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
