//! `vkog-plugin-api` 1.x is compatible in both directions: plugins built against 1.0.0 and 1.2.0 work in this server, and a
//! plugin built against this version works in a host of 1.0.0, except for what that host does not have.

use std::ffi::OsString;

use vkog_tests::{Setup, administered, frozen, frozen_1_2, program, written_plugin};

#[test]
fn a_plugin_built_against_1_0_0_loads_and_all_its_hooks_work() {
    let setup = Setup::new().load(&frozen().plugin).config("[plugins.abi-1-frozen]\nprefix = \"old \"\n");
    let server = setup.start();
    server.post("k", "1").expect(200);
    server.put("k", "wine").expect(200);
    server.get("k").expect(200).is("old wine");
    server.path("GET", "/k/k?hide").send().expect(404);
    let refused = server.key("PUT", "k").header("X-No", "not today").body("2").send();
    refused.refused(403, "not today").has("Vkog-Plugin", "abi-1-frozen");
    server.put("k", "2").expect(200);
    server.logs(&["may hold 134217728"]);
    server.logs(&["k was written 1 times, and read"]);
    server.stop();

    let server = setup.start();
    server.put("k", "3").expect(200);
    server.put("k", "4").expect(409).has("Vkog-Plugin", "abi-1-frozen");
    server.delete("k").expect(500).has("Vkog-Plugin", "abi-1-frozen");
    server.get("k").expect(200).is("old 3");
    server.logs(&["found 1 entries"]);
    server.logs(&["k was written 3 times, and read"]);
    server.logs(&["k is not to be deleted"]);
}

#[test]
fn a_plugin_built_against_1_2_0_loads_and_its_additions_work() {
    let config = |suffix: &str| administered(&format!("[plugins.abi-1-2-frozen]\nsuffix = {suffix:?}\n"));
    let setup = Setup::new().load(frozen_1_2()).config(config("one"));
    setup.write_config(&config("one"));
    let check = ["plugins", "check", "--json", "--config", "vkog.toml"].map(OsString::from);
    let exit = setup.run(check.into_iter().chain([frozen_1_2().into()])).expect(0);
    let checked: serde_json::Value = serde_json::from_str(&exit.stdout).expect("it is JSON");
    let required = serde_json::json!(["before_put", "tick", "settings_changed"]);
    assert_eq!(checked["plugins"][0]["required_hooks"], required, "{checked}");
    let server = setup.start();
    server.logs(&["wrote the entry of its tick"]);
    server.get("ticked").expect(200).is("yes");

    server.post("old/1", "1").expect(200);
    server.post("old/2", "2").expect(200);
    server.post("removed", "0").expect(200);
    server.post("k", "1").expect(200);
    server.path("PUT", "/k/k?old/").body("2").send().expect(200).has("X-Frozen", "one");
    server.get("old/1").expect(404);
    server.get("removed").expect(200).is("2");

    setup.write_config(&config("two"));
    assert_eq!(server.reloaded("abi-1-2-frozen"), "reconfigured");
    server.put("k", "3").expect(200).has("X-Frozen", "two");
    let metrics = server.path("GET", "/metrics").send().expect(200).text();
    let values: Vec<_> = metrics.lines().filter(|line| line.starts_with("vkog_plugin_abi_1_2_frozen_")).collect();
    assert_eq!(values.len(), 2, "{metrics}");
    assert!(values.iter().any(|line| line.contains("ticks") && line.ends_with(" 1")), "{values:?}");
    assert!(values.iter().any(|line| line.contains("puts_total") && line.ends_with(" 3")), "{values:?}");
}

/// With all additions since 1.0.0.
const NEW: &str = r#"
use std::time::Duration;
use vkog_plugin_api::*;

struct New {
    host: Host,
    puts: Counter,
}

impl Plugin for New {
    type Settings = NoSettings;
    const BLOCKS: bool = true;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let puts = host.counter("puts_total", "Puts.");
        host.gauge("level", "A level.").set(5);
        assert!(host.now().elapsed().is_ok());
        Ok(New { host, puts })
    }
}

impl BeforePut for New {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.puts.add(1);
        assert_eq!(put.asker(), None);
        self.host.get("other").map(drop)
    }
}

impl AfterPut for New {
    fn after_put(&self, put: &After<'_, Put>) {
        put.add_header("X-New", "1");
    }
}

impl Tick for New {
    fn tick(&self) -> Duration {
        Duration::MAX
    }
}

impl SettingsChanged for New {
    fn settings_changed(&self, _: NoSettings) -> Result<(), String> {
        Ok(())
    }
}

export_plugin!(New, required: [before_put]);
"#;

#[test]
fn a_current_plugin_loads_in_a_host_of_1_0_0_without_newer_functions() {
    let manifest = "[package]\nname = \"abi-1-new\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = \
                    [\"cdylib\"]\n\n[dependencies]\nvkog-plugin-api = \"1\"\n";
    let library = written_plugin("abi-1-new", manifest, NEW);
    let output = program(&frozen().host).arg(library).args(["{}", "before_put", "after_put"]).output();
    let output = output.expect("the old host runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let told = format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    for line in [
        "left out: hook 17",
        "left out: hook 18",
        "message: this host is older than vkog-plugin-api 1.1; use a newer one",
        "before_put: kind 1, status 501",
        "header X-New: 1",
        "after_put: kind 0, status 0",
        "destroyed",
    ] {
        assert!(said.lines().any(|said| said == line), "{line:?} is not among\n{told}");
    }
}

/// Requires a hook of 1.0 and one that came later.
const REQUIRING: &str = "
use vkog_plugin_api::*;

struct Requiring;

impl Plugin for Requiring {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        panic!(\"the host lacks a hook\")
    }
}

impl BeforePut for Requiring {
    fn before_put(&self, _: &mut Before<'_, Put>) -> Verdict {
        Ok(())
    }
}

HOOK

export_plugin!(Requiring, required: [before_put, NAME]);
";

#[test]
fn a_host_of_1_0_0_names_the_newer_hook_that_a_current_plugin_requires() {
    for (name, version, hook) in [
        ("tick", 1, "impl Tick for Requiring { fn tick(&self) -> std::time::Duration { std::time::Duration::MAX } }"),
        ("make_room", 3, "impl MakeRoom for Requiring { fn make_room(&self) -> bool { false } }"),
        ("read_get", 5, "impl ReadGet for Requiring { fn read_get(&self, _: &mut Read<'_>) -> Verdict { Ok(()) } }"),
    ] {
        let package = format!("abi-1-requiring-{}", name.replace('_', "-"));
        let manifest = format!(
            "[package]\nname = {package:?}\nversion = \"1.0.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = \
             [\"cdylib\"]\n\n[dependencies]\nvkog-plugin-api = \"1\"\n"
        );
        let library = written_plugin(&package, &manifest, &REQUIRING.replace("HOOK", hook).replace("NAME", name));
        let output = program(&frozen().host).arg(library).arg("{}").output().expect("the old host runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let fact = format!("not created: it requires the hook {name} of vkog-plugin-api 1.{version}, which only newer");
        assert!(!output.status.success() && said.contains(&fact), "{said}");
    }
}

#[test]
fn the_frozen_copy_of_1_0_0_is_unchanged() {
    let output = program(&frozen().host).arg(&frozen().plugin).args([r#"{"prefix": "old "}"#, "before_put"]).output();
    let said = String::from_utf8_lossy(&output.expect("the old host runs").stdout).into_owned();
    assert!(
        said.contains("abi-1-frozen built with vkog-plugin-api 1.0.0") && said.contains("value: old value"),
        "{said}"
    );
}
