//! A plugin writes entries again with the content codings that they have, and lists the entries that can be read beside those that
//! cannot.
//!
//! Provoked with a plugin that does both when a client writes a certain key, and with a transform that loses values.

use std::ops::ControlFlow;

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

/// Rewrites the entry `a` as the key says, or lists all entries, when a client posts a key. The result is in the refusal.
struct Rewriter {
    host: Host,
}

impl Plugin for Rewriter {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Access;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Rewriter { host })
    }
}

impl BeforePost for Rewriter {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        let revision = || self.host.get("a").map(|found| found.map_or(0, |found| found.revision));
        let ask = Ask::put("a", b"again").keep_content_encoding();
        let asked = match post.key() {
            "keep" => self.host.ask(&ask.if_revision(revision()?)),
            "lose" => self.host.ask(&Ask::put("a", b"again").if_revision(revision()?)),
            "replace" => self.host.ask(&ask.header("content-encoding", "br").if_revision(revision()?)),
            "stale" => self.host.ask(&ask.if_revision(revision()? - 1)),
            "unconditional" => self.host.ask(&ask),
            "update" => self.host.update(&ask, |_| Ok(b"again".to_vec())).map(Answer::Done),
            "update-lose" => self.host.update(&Ask::put("a", b""), |_| Ok(b"again".to_vec())).map(Answer::Done),
            "update-new" => {
                let ask = Ask::put("new", b"").keep_content_encoding();
                self.host.update(&ask, |_| Ok(b"again".to_vec())).map(Answer::Done)
            }
            "batch" => {
                let done = self.host.batch(&[ask.if_revision(revision()?)]);
                done.map(|answers| answers[0].clone()).map_err(|failure| failure.refusal)
            }
            prefix => return self.list(prefix, post.value().len() as u64),
        };
        asked.and(Err(Refusal::new(418, "done")))
    }
}

impl Rewriter {
    fn list(&self, prefix: &str, limit: u64) -> Verdict {
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        self.host.for_each_readable(
            &KeyRange::new(prefix.trim_matches('*')).limit(limit),
            |key, entry| {
                found.push(format!("{key}={}", String::from_utf8_lossy(entry.value())));
                if entry.value() == b"last" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
            |key, refusal| lost.push(format!("{key}: {} {}", refusal.status(), refusal.message())),
        )?;
        Err(Refusal::new(418, format!("{} | {}", found.join(" "), lost.join(" "))))
    }
}

/// Loses the values that begin with `lost`, and refuses to read others.
struct Loses;

impl Plugin for Loses {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Transform;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Loses)
    }
}

impl BeforePut for Loses {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.value().starts_with(b"lost") {
            put.replace_value(put.value());
        }
        Ok(())
    }
}

impl BeforeGet for Loses {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        if get.key() == "b/broken" { Err(Refusal::new(500, "the plugin is broken")) } else { Ok(()) }
    }
}

impl ReadGet for Loses {
    fn read_get(&self, _: &mut Read<'_>) -> Verdict {
        Err(Refusal::new(500, "the value is lost"))
    }
}

fn start() -> TestHost {
    let setup = Setup::new().load_other(plugin!(Rewriter, "rewriter"));
    setup.load_other(plugin!(Loses, "loses")).start()
}

fn coding(host: &TestHost) -> Option<String> {
    host.get("a").expect(200).header("Content-Encoding").map(str::to_owned)
}

#[test]
fn a_put_keeps_the_content_coding_of_the_entry_if_it_says_so() {
    let host = start();
    for (how, status, expected) in [
        ("keep", 418, Some("gzip")),
        ("lose", 418, None),
        // What the entry has comes before what the plugin sends.
        ("replace", 418, Some("gzip")),
        ("stale", 412, Some("gzip")),
        ("unconditional", 400, Some("gzip")),
        ("update", 418, Some("gzip")),
        ("update-lose", 418, None),
        ("update-new", 418, Some("gzip")),
        ("batch", 418, Some("gzip")),
    ] {
        host.request(Verb::Put, "a").header("Content-Encoding", "gzip").body("first").send().expect(200);
        let before = host.get("a").revision();
        host.post(how, "v").expect(status);
        assert_eq!(coding(&host).as_deref(), expected, "{how}");
        let is_new = status == 418 && how != "update-new";
        assert_eq!(host.get("a").revision() > before, is_new, "{how}");
    }
    assert_eq!(host.get("new").expect(200).header("Content-Encoding"), None);
    // An entry without a coding stays without one.
    host.put("a", "first").expect(200);
    host.post("keep", "v").expect(418);
    assert_eq!(coding(&host), None);
}

#[test]
fn a_listing_goes_on_after_a_value_that_cannot_be_turned_back() {
    let host = start();
    for (key, value) in [("a/1", "v"), ("a/2", "lost"), ("a/3", "v"), ("a/4", "lost"), ("a/5", "last"), ("a/6", "v")] {
        host.put(key, value).expect(200);
    }
    let all = "a/1=v a/3=v a/5=last | a/2: 500 the value is lost a/4: 500 the value is lost";
    host.post("*a/", "123456").refused(418, all);
    // Only those that can be read count for the limit.
    host.post("*a/", "12").refused(418, "a/1=v a/3=v | a/2: 500 the value is lost");
    host.post("*a/3", "1").refused(418, "a/3=v | ");
    // The listing ends if a plugin fails for a value that is not transformed.
    host.put("b/broken", "v").expect(200);
    host.post("*b/", "1").expect(500);
}
