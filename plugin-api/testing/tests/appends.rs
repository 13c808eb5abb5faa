//! A guard that makes the value of what the entry holds appends to it, and leaves a touched entry as it is.
//!
//! Provoked with the recipe of the guide for plugin authors.

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, plugin};

/// Appends instead of replacing.
struct Appends;

impl Plugin for Appends {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Appends)
    }
}

impl GuardPut for Appends {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        match put.entry() {
            Some(entry) if put.origin() != Origin::Touch => put.replace_value(&[entry.value(), put.value()].concat()),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_guard_appends_to_the_entry_and_a_touch_does_not() {
    let host = Setup::new().load_other(plugin!(Appends, "appends")).start();
    for value in ["a", "b", "c"] {
        host.put("k", value).expect(200);
    }
    host.touch("k").send().expect(200);
    host.get("k").is("abc");
}
