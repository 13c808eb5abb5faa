//! Each mistake in the source of a plugin is a compile-time error that says what to do.
//!
//! Provoked with sources that have one mistake each.

use vkog_tests::rejected_plugin;

/// A plugin without a hook.
const PLUGIN: &str = "use vkog_plugin_api::*;

struct Mine;

impl Plugin for Mine {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Mine)
    }
}
";

const GUARD: &str = "
impl GuardPut for Mine {
    fn guard_put(&self, _put: &mut Guard<'_, Put>) -> Verdict {
        Ok(())
    }
}
";

const EXPORT: &str = "
export_plugin!(Mine);
";

/// Asserts that a plugin in a crate with this name does not compile, and that the errors contain all of the words.
#[track_caller]
fn rejected(name: &str, source: &[&str], words: &[&str]) {
    let said = rejected_plugin(&format!("wrong-{name}"), &source.concat());
    for word in words {
        assert!(said.contains(word), "no {word:?} in\n{said}");
    }
}

#[test]
fn the_error_for_a_wrong_hook_signature_shows_the_right_one() {
    for (name, old, new, right) in [
        ("argument", "&mut Guard<'_, Put>", "&Guard<'_, Put>", "&mut vkog_plugin_api::Guard<'_, vkog_plugin_api::Put>"),
        ("operation", "Put>)", "Post>)", "Guard<'_, vkog_plugin_api::Put>"),
        ("result", "Verdict", "bool", "Result<(), Refusal>"),
    ] {
        let told = ["method `guard_put`", "to match the trait", right];
        rejected(name, &[PLUGIN, &GUARD.replace(old, new), EXPORT], &told);
    }
}

#[test]
fn the_error_for_a_plugin_without_a_hook_says_to_implement_one() {
    let told = "this plugin implements no hook: implement at least one of the hook traits, such as GuardPut";
    rejected("no-hook", &[PLUGIN, EXPORT], &[told]);
}

#[test]
fn the_error_for_a_type_that_is_not_a_plugin_says_to_implement_it() {
    let told = ["`Mine` is not a plugin", "write `impl Plugin for Mine`, with `type Settings` and `fn create`"];
    rejected("no-plugin", &["use vkog_plugin_api::*; struct Mine;", EXPORT], &told);
    rejected("only-hook", &["use vkog_plugin_api::*; struct Mine;", GUARD, EXPORT], &told);
}

#[test]
fn the_error_for_unreadable_settings_says_what_to_derive() {
    let plugin = PLUGIN.replace("NoSettings", "Mine");
    let derive = "`#[derive(vkog_plugin_api::serde::Deserialize)]` with `#[serde(crate = \"vkog_plugin_api::serde\")]`";
    rejected("settings", &[&plugin, GUARD, EXPORT], &["`Mine` cannot be read from", derive]);
}

#[test]
fn the_error_for_a_missing_required_hook_names_it() {
    let export = "export_plugin!(Mine, required: [guard_put, guard_post]);";
    rejected("required", &[PLUGIN, GUARD, export], &["`guard_post` is required, but", "implement its trait"]);
    let export = "export_plugin!(Mine, required: [gaurd_put]);";
    rejected("misspelt", &[PLUGIN, GUARD, export], &["`gaurd_put` is required, but", "correct the name"]);
}

#[test]
fn the_error_for_an_undo_without_its_guard_says_to_implement_it() {
    let undo = "impl UndoPut for Mine { fn undo_put(&self, _put: &Undo<'_, Put>) {} }";
    rejected("undo", &[PLUGIN, undo, EXPORT], &["`Mine: GuardPut`", "implement that guard as well"]);
}
