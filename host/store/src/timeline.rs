//! Timelines: each opening of a store begins one, which distinguishes the states of copies that diverged.
//!
//! Copies share the store's random number, and two of them can assign the same revisions. A state is therefore identified by its
//! revision and by the timeline of the opening that assigned it. The files have no field for a timeline. Instead, the salt of
//! each log is made from the timeline of the opening that begins the log, and from the log's generation. While that log has no
//! changes, the state of the files is one of that opening: so it is after a clean stop. After a crash, the log may have
//! changes of any later opening, and the timeline of the state is unknown.

use std::hash::{DefaultHasher, Hasher};

use crate::random::random;

/// The timeline of an opening.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timeline(u32);

impl Timeline {
    pub(crate) fn new() -> Self {
        Self(random() as u32)
    }

    /// The timeline of the opening that began the log with this salt.
    pub(crate) fn of_log(generation: u64, salt: u32) -> Self {
        Self(salt ^ spread(generation))
    }

    /// The salt of a log that the opening begins; never 0, which means none. The salts of consecutive generations differ.
    pub(crate) fn salt(self, generation: u64) -> u32 {
        (self.0 ^ spread(generation)).max(1)
    }

    /// The public id. Its reader learns neither the seed of the store nor the salt of a log, because the seed is a secret.
    fn id(self, seed: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(seed);
        hasher.write_u32(self.0);
        hasher.finish()
    }
}

/// Distributes consecutive generations over all bits. Different numbers below 2^32 have different results.
fn spread(generation: u64) -> u32 {
    (generation as u32).wrapping_mul(0x9E37_79B1)
}

/// The timelines of the states that an open store can have.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Timelines {
    /// That of this opening.
    pub(crate) own: Timeline,
    /// That of the state which the opening found, if it is known.
    pub(crate) found: Option<Timeline>,
    /// The revision of that state.
    pub(crate) found_at: u64,
}

impl Timelines {
    /// The id of the timeline that assigned a revision. A found state of an unknown timeline belongs to this opening.
    pub(crate) fn at(self, revision: u64, seed: u64) -> u64 {
        let found = self.found.filter(|_| revision <= self.found_at);
        found.unwrap_or(self.own).id(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_salt_of_a_log_identifies_the_opening_that_began_it() {
        let [one, other] = [Timeline(7), Timeline(8)];
        for generation in [1, 2, 3, u64::from(u32::MAX), 1 << 40] {
            assert_eq!(Timeline::of_log(generation, one.salt(generation)), one);
            assert_ne!(Timeline::of_log(generation, one.salt(generation)), other);
            assert_ne!(one.salt(generation), one.salt(generation + 1));
        }
        assert_eq!(Timeline(spread(5)).salt(5), 1);
        assert_ne!(one.id(1), one.id(2), "the seed is part of the id");
    }

    #[test]
    fn a_state_belongs_to_the_opening_that_assigned_its_revision() {
        let (own, before, seed) = (Timeline(7), Timeline(8), 1);
        let known = Timelines { own, found: Some(before), found_at: 10 };
        assert_eq!([9, 10, 11].map(|revision| known.at(revision, seed)), [before, before, own].map(|it| it.id(seed)));
        let unknown = Timelines { found: None, ..known };
        assert_eq!([10, 11].map(|revision| unknown.at(revision, seed)), [own.id(seed); 2]);
    }
}
