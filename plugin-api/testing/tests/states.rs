//! A guard that runs twice, because it adds a write, finds the state of the operation each time. A plugin recognises its own
//! store calls by its name, and learns of a hook that it cannot switch off.
//!
//! Provoked with a plugin that finds a title before a write, and stores it under another key in the same step.

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, plugin};

/// Stores the first line of a value under another key.
struct Titles {
    guards: Counter,
}

impl Plugin for Titles {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        host.switch_off("after_gte");
        host.switch_off("after_put");
        Ok(Titles { guards: host.counter("guards_total", "Calls of the guard.") })
    }
}

impl BeforePut for Titles {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.key().starts_with("titles/") && put.asker() != Some(plugin_name!()) {
            return Err(Refusal::new(403, "only the plugin writes titles"));
        }
        let text = String::from_utf8_lossy(put.value());
        put.set_state(text.lines().next().unwrap_or_default().to_owned());
        Ok(())
    }
}

impl GuardPut for Titles {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.guards.add(1);
        assert!(put.state::<u8>().is_none(), "it is of another type");
        let Some(title) = put.state::<String>() else { return Err(Refusal::new(500, "no state")) };
        if put.asker().is_some() {
            return Ok(());
        }
        put.add(&Ask::put(&format!("titles/{}", put.key()), title.as_bytes()).upsert())
    }
}

impl AfterPut for Titles {
    fn after_put(&self, put: &After<'_, Put>) {
        put.add_header("X-After", "called");
    }
}

#[test]
fn a_guard_that_runs_again_finds_the_state() {
    let name = "vkog-plugin-testing";
    assert_eq!(plugin_name!(), &name["vkog-".len()..]);
    let host = Setup::new().load_other(plugin!(Titles, "plugin-testing")).start();
    let reply = host.put("a", "One\nTwo").expect(200);
    host.get("titles/a").expect(200).is("One");
    // Twice for the write, which adds another one, and once for that.
    assert_eq!(host.metric("plugin-testing", "guards_total"), 3);
    host.put("titles/a", "Other").refused(403, "only the plugin writes titles");
    assert!(reply.header("X-After").is_none(), "the hook is off: {reply}");
    let log = host.log();
    assert_eq!(log.trim_end(), "WARN plugin-testing: cannot switch off \"after_gte\": no hook has this name");
}
