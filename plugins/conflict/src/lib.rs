//! Separates create and update, and detects overlapping writes. Decides when a write conflicts with the stored entry;
//! has no state and ignores values.

#![forbid(unsafe_code)]

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    #[serde(default)]
    overlap: Overlap,
}

/// Whether a write succeeds if its entry was written since the request arrived.
#[derive(Deserialize, Default)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
enum Overlap {
    #[default]
    Allow,
    Refuse,
}

impl Overlap {
    /// Checks the revision of the current entry; `None` for an absent key. A write that requires the key fails
    /// elsewhere if the entry was removed.
    fn check(&self, revision: Option<u64>, arrived: u64) -> Verdict {
        match self {
            Overlap::Refuse if revision.is_some_and(|revision| revision > arrived) => {
                Err(Refusal::new(409, "Entry changed while the request was in flight: read it again, then retry"))
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
        // First, because its message is more precise: the key may have been free when the request arrived.
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
    use vkog_plugin_testing::{Setup, plugin};

    use super::*;

    #[test]
    fn post_only_creates_and_put_only_updates() {
        let host = Setup::new().load::<Conflict>().start();
        host.put("a", "1").refused(404, "Key does not exist").has("Vkog-Plugin", "conflict");
        host.post("a", "1").expect(200);
        host.post("a", "2").refused(409, "Key already exists");
        host.put("a", "3").expect(200);
        host.get("a").is("3");
        host.request(Verb::Put, "b").header("If-None-Match", "*").body("1").send().expect(200);
        host.delete("a").expect(200);
        host.post("a", "4").expect(200);
    }

    /// Writes a key while a client's request for it is in flight.
    struct Faster(Host);

    impl Plugin for Faster {
        type Settings = NoSettings;

        fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
            Ok(Faster(host))
        }
    }

    impl BeforePut for Faster {
        fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
            if put.asker().is_none() { self.0.put(put.key(), b"faster").map(drop) } else { Ok(()) }
        }
    }

    impl BeforeDelete for Faster {
        fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
            self.0.put(delete.key(), b"faster").map(drop)
        }
    }

    #[test]
    fn overlap_refuse_rejects_a_write_to_an_entry_that_changed_meanwhile() {
        let setup = Setup::new().load_other(plugin!(Faster, "faster")).load::<Conflict>();
        let host = setup.clone().settings("{\"overlap\": \"refuse\"}").start();
        host.post("a", "1").expect(200);
        host.put("a", "slow").refused(409, "Entry changed while the request was in flight: read it again");
        host.delete("a").refused(409, "Entry changed");
        host.get("a").is("faster");

        let host = setup.start();
        host.post("a", "1").expect(200);
        host.put("a", "slow").expect(200);
        host.delete("a").expect(200);
    }

    #[test]
    fn an_entry_as_old_as_the_request_and_an_absent_key_do_not_overlap() {
        let host = Setup::new().load::<Conflict>().settings("{\"overlap\": \"refuse\"}").start();
        host.post("a", "1").expect(200);
        host.put("a", "2").expect(200);
        host.delete("a").expect(200);
        host.post("a", "3").expect(200);
    }
}
