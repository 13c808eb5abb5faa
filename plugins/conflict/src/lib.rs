//! Create and update kept apart, and writers told of each other. Owns when a write conflicts with what is stored; holds
//! no state and looks at no value.

#![forbid(unsafe_code)]

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    #[serde(default)]
    overlap: Overlap,
}

/// What becomes of a write whose entry was written by somebody else since the request arrived.
#[derive(Deserialize, Default)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
enum Overlap {
    #[default]
    Allow,
    Refuse,
}

impl Overlap {
    /// An absent key has no revision: that its entry was removed meanwhile is seen by who needs it to be there.
    fn check(&self, revision: Option<u64>, arrived: u64) -> Verdict {
        match self {
            Overlap::Refuse if revision.is_some_and(|revision| revision > arrived) => {
                Err(Refusal::new(409, "Entry changed while the request was under way: read it again, then decide"))
            }
            _ => Ok(()),
        }
    }
}

struct Conflict {
    overlap: Overlap,
}

impl Plugin for Conflict {
    type Settings = Settings;
    const STAGE: Stage = Stage::Policy;

    fn create(_host: Host, settings: Settings) -> Result<Self, CreateError> {
        Ok(Conflict { overlap: settings.overlap })
    }
}

impl Conflict {
    fn check_overlap<O: Operation>(&self, guard: &Guard<'_, O>) -> Verdict {
        self.overlap.check(guard.entry().map(|entry| entry.revision()), guard.arrived())
    }
}

impl GuardPost for Conflict {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        // First, because it says more: the key was free when the request arrived, perhaps.
        self.check_overlap(post)?;
        if post.entry().is_some() { Err(Refusal::new(409, "Key already exists")) } else { Ok(()) }
    }
}

impl GuardPut for Conflict {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.check_overlap(put)?;
        // `If-None-Match: *` asks for a create in so many words; on a present key the host has answered 412.
        if put.entry().is_none() && put.header("if-none-match") != Some(b"*") {
            return Err(Refusal::new(404, "Key does not exist"));
        }
        Ok(())
    }
}

impl GuardDelete for Conflict {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        self.check_overlap(delete)
    }
}

export_plugin!(Conflict, required: [guard_post, guard_put, guard_delete]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_written_since_the_request_arrived_is_refused_with_409_where_that_is_set() {
        let refusal = Overlap::Refuse.check(Some(8), 7).expect_err("8 is newer than 7");
        assert_eq!(refusal.status(), 409);
        assert!(refusal.message().contains("read it again"), "{}", refusal.message());
        assert_eq!(Overlap::Allow.check(Some(8), 7), Ok(()));
    }

    #[test]
    fn an_entry_as_old_as_the_request_and_an_absent_key_do_not_overlap() {
        assert_eq!(Overlap::Refuse.check(Some(7), 7), Ok(()));
        assert_eq!(Overlap::Refuse.check(None, 7), Ok(()));
    }

    #[test]
    fn overlap_is_allowed_by_default() {
        assert!(matches!(Overlap::default(), Overlap::Allow));
    }
}
