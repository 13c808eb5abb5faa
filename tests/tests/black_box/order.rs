//! The order of plugins is that of the configuration, otherwise that of their stages and names. `/plugins` shows the
//! order and its reason.

use vkog_tests::{Server, Setup, administered, artefacts, bytes, conflict};

fn setup() -> Setup {
    Setup::new().load(bytes()).load(conflict()).load(artefacts().library("drill")).args([
        "-s",
        "10",
        "--max-value",
        "1MiB",
    ])
}

/// Returns the plugins in their order, and the reason for each position.
fn order(server: &Server) -> Vec<String> {
    let text = |plugin: &serde_json::Value| {
        format!("{} {}", plugin["name"].as_str().unwrap_or_default(), plugin["ordered_by"].as_str().unwrap_or_default())
    };
    server.plugins().iter().map(text).collect()
}

/// Returns the plugin that refuses a create that both conflict and bytes would refuse.
fn first_to_refuse(server: &Server) -> String {
    let reply = server.post("k", [b'x'; 100]);
    reply.header("Vkog-Plugin").unwrap_or_else(|| panic!("not refused by a plugin: {reply}")).to_owned()
}

#[test]
fn stages_and_names_order_plugins_by_default() {
    let server = setup().start();
    server.post("k", "v").expect(200);
    assert_eq!(order(&server), ["drill stage", "conflict stage", "bytes stage"]);
    assert_eq!(first_to_refuse(&server), "conflict");
}

#[test]
fn the_configured_order_comes_first_and_a_reload_changes_it() {
    let setup = setup().config(administered("[plugins]\norder = [\"bytes\", \"missing\", \"conflict\"]\n"));
    let server = setup.start();
    server.post("k", "v").expect(200);
    assert_eq!(order(&server), ["bytes plugins.order", "conflict plugins.order", "drill stage"]);
    assert_eq!(first_to_refuse(&server), "bytes");
    server.logs(&["WARN", "plugins.order names missing, a plugin that was not loaded from "]);

    setup
        .write_config(&administered("[plugins]\norder = [\"conflict\", \"somebody\"]\n[plugins.anybody]\nlimit = 1\n"));
    server.reload().expect(200);
    assert_eq!(order(&server), ["conflict plugins.order", "drill stage", "bytes stage"]);
    assert_eq!(first_to_refuse(&server), "conflict");
    server.logs(&["WARN", "plugins.order names somebody, a plugin that was not loaded from "]);
    server.logs(&["WARN", "[plugins.anybody] names a plugin that was not loaded"]);
}

#[test]
fn an_order_that_hides_values_from_a_plugin_of_the_stage_access_is_a_warning() {
    let plugins = artefacts();
    let libraries = ["vkog-compress", "vkog-index", "vkog-tenant"].map(|package| plugins.library(package));
    let setup = libraries.iter().fold(Setup::new(), Setup::load);
    let config = |order: &str| {
        administered(&format!(
            "[plugins]\norder = [{order}]\nindex.fields = [\"city\"]\ntenant.tokens = {{}}\ntenant.others = \"whole\"\n"
        ))
    };
    let setup = setup.config(config("\"index\", \"compress\""));
    let server = setup.start();
    let warning = "plugins.order puts compress, which transforms values, before index, which then sees them as they are stored; \
                   name index before compress in order";
    server.logs_no(&["which transforms values"]);
    setup.write_config(&config("\"compress\""));
    server.reload().expect(200);
    server.logs(&["WARN", warning]);
    server.logs_no(&["before tenant"]);
    server.stop().expect(0);
    let server = setup.config(config("\"compress\"")).start();
    server.logs(&["WARN", warning]);
}

#[test]
fn an_invalid_order_stops_the_start() {
    for wrong in ["5", "\"bytes\"", "[1, 2]", "{ bytes = 1 }"] {
        let exit = setup().config(format!("[plugins]\norder = {wrong}\n")).fail();
        assert_ne!(exit.status.code(), Some(0), "{exit}");
        let line = exit.one_error();
        assert!(line.contains("plugins.order: ") && line.contains("order = [\"conflict\", \"bytes\"]"), "{exit}");
    }
}
