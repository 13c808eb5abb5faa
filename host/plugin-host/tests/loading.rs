//! Real libraries: what the loader reads from them, how it refuses broken ones, and their hot reload. The libraries are
//! plugins of the workspace, built by cargo.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vkog_plugin_api::Stage;
use vkog_plugin_api::abi::HOOK_NAMES;
use vkog_plugin_host::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// Returns the library of a package of the workspace, as cargo builds it.
fn built(package: &str) -> &'static Path {
    static BUILT: LazyLock<BTreeMap<String, PathBuf>> = LazyLock::new(|| {
        let test = std::env::current_exe().expect("a test knows where it is");
        let target = test.ancestors().nth(3).expect("a test is in TARGET/PROFILE/deps");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()));
        cargo.args(["build", "--message-format=json-render-diagnostics", "--package=drill", "--package=hangs"]);
        cargo
            .args([
                "--package=fault-no-plugin",
                "--package=memory",
                "--package=vkog-bytes",
                "--package=vkog-conflict",
                "--target-dir",
            ])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = cargo.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8_lossy(&output.stdout).into_owned();
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let library = |message: serde_json::Value| {
            let files = message["filenames"].as_array()?;
            let mut files = files.iter().filter_map(|file| file.as_str()).map(PathBuf::from);
            let is_library = |file: &PathBuf| file.extension().is_some_and(|it| it == std::env::consts::DLL_EXTENSION);
            Some((message["target"]["name"].as_str()?.replace('_', "-"), files.find(is_library)?))
        };
        messages.filter_map(library).collect()
    });
    &BUILT[package]
}

/// A plugin folder.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().expect("a folder can be made"))
    }

    /// Puts a library into the folder. Returns its path.
    fn add(&self, package: &str) -> PathBuf {
        self.write(package, &std::fs::read(built(package)).expect("the library was built"))
    }

    fn write(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.0.path().join(format!("{name}{}", std::env::consts::DLL_SUFFIX));
        std::fs::write(&path, data).expect("a file can be written");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
        }
        path
    }
}

fn context() -> Arc<HostContext> {
    Arc::new(HostContext::new(0, || 0))
}

/// The configuration with these keys in the table `drill`.
fn drill(table: serde_json::Value) -> Settings {
    let serde_json::Value::Object(table) = table else { panic!("a table") };
    [("drill".to_owned(), Table::new(table).expect("valid keys of the host"))].into()
}

#[track_caller]
fn loaded(path: &Path, settings: &Settings) -> Result<Plugin, LoadError> {
    load(&[path.to_owned()], settings, &context()).pop().expect("one outcome for one library")
}

/// Asserts that a library is refused with this code.
#[track_caller]
fn refused(path: &Path, settings: &Settings, code: &str) {
    match loaded(path, settings) {
        Err(error) => {
            assert_eq!((error.fault.code(), &*error.path), (code, path), "{error}");
            assert!(error.to_string().contains(&error.fault.line()), "{error}");
        }
        Ok(plugin) => panic!("{plugin} is not refused"),
    }
}

#[test]
fn a_library_is_loaded_with_the_facts_of_its_plugin() {
    let folder = Folder::new();
    let path = folder.add("drill");
    let settings = drill(serde_json::json!({ "label": "first", "required": false }));
    let plugin = loaded(&path, &settings).expect("it is a plugin");
    assert_eq!(
        (plugin.name(), plugin.library().version(), plugin.path()),
        ("drill", env!("CARGO_PKG_VERSION"), &*path)
    );
    assert_eq!(plugin.library().sha256(), Sha256::of(&std::fs::read(&path).expect("it exists")));
    assert_eq!((plugin.library().stage(), plugin.library().stage_name()), (Stage::Transform as u32, "transform"));
    assert_eq!(*plugin.table(), settings["drill"]);
    let lacking = ["make_room", "read_get", "before_request", "serve", "serve_update", "applied"];
    let hooks: Vec<_> = HOOK_NAMES.into_iter().filter(|hook| !lacking.contains(hook)).collect();
    assert_eq!(plugin.library().hook_names().collect::<Vec<_>>(), hooks);
    assert_eq!(plugin.library().required_hook_names(), [""; 0]);
    let line = format!("stage transform, hooks {}", hooks.join(" "));
    assert!(plugin.to_string().starts_with("drill ") && plugin.to_string().ends_with(&line), "{plugin}");
    assert!(plugin.to_string().contains(&format!("vkog-plugin-api {},", plugin.library().api_version())), "{plugin}");
    assert!(plugin.library().api_version().starts_with("1."), "{plugin}");
    let other = loaded(&folder.add("hangs"), &Settings::new()).expect("it is a plugin");
    assert_eq!((other.library().stage(), other.library().stage_name()), (Stage::Policy as u32, "policy"));
    let strict = loaded(&folder.add("vkog-conflict"), &Settings::new()).expect("it is a plugin");
    assert_eq!(strict.library().required_hook_names(), ["guard_post", "guard_put", "guard_delete"]);
    assert_eq!(
        unknown_in_order(&["drill".to_owned(), "x".to_owned()], &[plugin]).into_iter().collect::<Vec<_>>(),
        ["x"]
    );
}

#[test]
fn the_second_of_two_libraries_of_a_plugin_is_refused_in_their_order() {
    let folder = Folder::new();
    let library = std::fs::read(built("drill")).expect("it was built");
    std::fs::write(folder.0.path().join("notes.txt"), "no library").expect("a file can be written");
    let (second, first) = (folder.write("b", &library), folder.write("a", &library));
    let paths = libraries(folder.0.path()).expect("the folder can be read");
    assert_eq!(paths, [first.clone(), second]);
    let outcomes = load(&paths, &Settings::new(), &context());
    let [Ok(_), Err(LoadError { fault: LoadFault::DuplicateName { name, first: before }, .. })] = &*outcomes else {
        panic!("not one of two is refused")
    };
    assert_eq!((&**name, before), ("drill", &first));
}

#[test]
fn a_library_is_refused_with_the_code_of_its_mistake() {
    let folder = Folder::new();
    let path = folder.add("drill");
    refused(&path, &drill(serde_json::json!({ "label": 5 })), "bad-settings");
    refused(&path, &drill(serde_json::json!({ "sha256": "0".repeat(64) })), "wrong-sha256");
    // The pin is that of the plugin in the library, whatever the name of the file is.
    let other_name = folder.write("other", &std::fs::read(&path).expect("it exists"));
    refused(&other_name, &drill(serde_json::json!({ "sha256": "0".repeat(64) })), "wrong-sha256");
    refused(&folder.add("fault-no-plugin"), &Settings::new(), "no-plugin");
    refused(&folder.write("text", b"#!/bin/sh\necho no library\n"), &Settings::new(), "not-a-library");
    refused(&folder.write("empty", b""), &Settings::new(), "not-a-library");
}

#[test]
fn a_library_that_is_cut_off_anywhere_is_refused() {
    let folder = Folder::new();
    let library = std::fs::read(built("fault-no-plugin")).expect("it was built");
    let cuts = [16, 32, 64, 100, 500, 1000, 4096].into_iter();
    for len in cuts.chain((1..8).map(|part| library.len() * part / 8)).chain([library.len() - 1]) {
        refused(&folder.write("cut", &library[..len]), &Settings::new(), "cut-off");
    }
}

/// A registry, and the number of ticks that its plugin `drill` counts.
struct Server {
    registry: Registry,
    source: Source,
}

impl Server {
    fn new(folder: &Folder, settings: Settings) -> Self {
        let source = Source { folder: Some(folder.0.path().to_owned()), settings, order: Vec::new() };
        Self { registry: Registry::new(Vec::new(), Vec::new(), context()), source }
    }

    /// Reloads the plugins. Returns the names and the outcomes.
    #[track_caller]
    fn reload(&self) -> Vec<(String, String)> {
        let reports = self.registry.reload(&self.source, &scan()).expect("the folder can be read");
        assert!(!self.registry.is_reloading() && self.registry.acquire().is_some());
        let outcome = |outcome| match outcome {
            ReloadOutcome::Failed(error) => error.fault.code().to_owned(),
            other => format!("{other:?}").to_lowercase(),
        };
        let name = |report: &ReloadReport| report.name.clone().unwrap_or_default();
        reports.into_iter().map(|report| (name(&report), outcome(report.outcome))).collect()
    }

    fn chain(&self) -> Vec<&'static str> {
        self.registry.chain().members().iter().map(|member| member.name()).collect()
    }

    fn ticks(&self) -> i64 {
        let metrics = self.registry.context().metrics("drill");
        metrics.iter().find(|(name, _)| name == "ticks_total").map_or(0, |(_, metric)| metric.value())
    }

    #[track_caller]
    fn wait_for_ticks(&self) {
        let (before, deadline) = (self.ticks(), Instant::now() + DEADLINE);
        while self.ticks() < before + 2 {
            assert!(Instant::now() < deadline, "no tick");
            std::thread::yield_now();
        }
    }
}

fn scan() -> SharedScan {
    Arc::new(|_: &mut Each<'_>| {})
}

/// Outcomes as they are compared.
fn outcomes(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, outcome)| ((*name).to_owned(), (*outcome).to_owned())).collect()
}

#[test]
fn a_reload_decides_for_each_library_what_becomes_of_its_plugin() {
    let folder = Folder::new();
    let library = folder.add("drill");
    let mut server = Server::new(&folder, drill(serde_json::json!({ "label": "a" })));
    assert_eq!(server.reload(), outcomes(&[("drill", "loaded")]));
    let member = || server.registry.chain().members().first().cloned().expect("it is loaded");
    let first = member();
    assert_eq!(server.reload(), outcomes(&[("drill", "unchanged")]));
    server.source.settings = drill(serde_json::json!({ "label": "b" }));
    assert_eq!(server.reload(), outcomes(&[("drill", "reconfigured")]));
    server.source.settings = drill(serde_json::json!({ "label": "wrong" }));
    assert_eq!(server.reload(), outcomes(&[("drill", "bad-settings")]));
    server.source.settings = drill(serde_json::json!({ "label": "b" }));
    assert_eq!(server.reload(), outcomes(&[("drill", "unchanged")]));
    let member = || server.registry.chain().members().first().cloned().expect("it is loaded");
    assert!(Arc::ptr_eq(&first, &member()), "it is still the first instance");
    drop(first);
    // Keys of the host need a new instance.
    server.source.settings = drill(serde_json::json!({ "label": "b", "budget": "1m" }));
    assert_eq!(server.reload(), outcomes(&[("drill", "reloaded")]));
    folder.add("hangs");
    server.source.order = vec!["hangs".to_owned()];
    assert_eq!(server.reload(), outcomes(&[("drill", "unchanged"), ("hangs", "loaded")]));
    assert_eq!(server.chain(), ["hangs", "drill"]);
    server.source.order.clear();
    std::fs::rename(&library, folder.0.path().join(format!("moved{}", std::env::consts::DLL_SUFFIX)))
        .expect("it can be renamed");
    assert_eq!(server.reload(), outcomes(&[("hangs", "unchanged"), ("drill", "loaded"), ("drill", "removed")]));
    assert_eq!(server.chain(), ["drill", "hangs"]);
    folder.write("moved", b"no library");
    assert_eq!(server.reload(), outcomes(&[("hangs", "unchanged"), ("drill", "not-a-library")]));
    assert_eq!(server.chain(), ["drill", "hangs"]);
    server.registry.look(|plugins, chain, order| {
        assert_eq!((plugins.len(), chain.members().len(), order.len()), (2, 2, 0));
    });
    server.source.folder = Some(folder.0.path().join("missing"));
    server.registry.reload(&server.source, &scan()).expect_err("the folder cannot be read");
    assert_eq!(server.chain().len(), 2);
}

/// A feed that sends the revisions of changes.
struct Revisions(std::sync::Mutex<std::sync::mpsc::Sender<u64>>);

fn revisions() -> (Arc<Revisions>, std::sync::mpsc::Receiver<u64>) {
    let (send, revisions) = std::sync::mpsc::channel();
    (Arc::new(Revisions(std::sync::Mutex::new(send))), revisions)
}

impl BackendFeed for Revisions {
    fn load(&self, _: &[backend::Loaded<'_>]) {}
    fn loaded(&self, _: u64) {}
    fn apply(&self, revision: u64, _: bool, _: &[backend::Change<'_>]) {
        let _ = self.0.lock().expect("no test fails").send(revision);
    }
    fn outcome(&self, _: u64, _: backend::CommitOutcome) {}
    fn confirmed(&self, _: u64, _: Result<u64, String>) {}
    fn connected(&self, _: Result<(), String>) {}
}

#[test]
fn a_backend_in_use_is_neither_replaced_nor_removed_until_it_is_closed() {
    let folder = Folder::new();
    let library = folder.add("memory");
    let budget = |budget: &str| {
        let table = serde_json::from_value(serde_json::json!({ "budget": budget })).expect("a table");
        [("memory".to_owned(), Table::new(table).expect("a key of the host"))].into()
    };
    let mut server = Server::new(&folder, Settings::new());
    assert_eq!(server.reload(), outcomes(&[("memory", "loaded")]));
    let member = server.registry.chain().members()[0].clone();
    let (scheme, line) =
        server.registry.look(|plugins, _, _| (plugins[0].scheme().map(str::to_owned), plugins[0].to_string()));
    assert_eq!(scheme.as_deref(), Some("memory"));
    assert!(line.ends_with("hooks none, backend of memory:// stores"), "{line}");
    let backend = Backend::open(&member, "memory:", "{}", revisions().0).expect("it opens");
    assert!(backend.status().connected);
    server.source.settings = budget("1m");
    assert_eq!(server.reload(), outcomes(&[("memory", "backend-in-use")]));
    std::fs::remove_file(&library).expect("it can be removed");
    assert_eq!(server.reload(), outcomes(&[("memory", "backend-in-use")]));
    assert!(Arc::ptr_eq(&member, &server.registry.chain().members()[0]), "it is the same instance");
    folder.add("memory");
    server.source.settings = Settings::new();
    assert_eq!(server.reload(), outcomes(&[("memory", "unchanged")]));
    backend.close();
    drop((member, backend));
    server.source.settings = budget("1m");
    assert_eq!(server.reload(), outcomes(&[("memory", "reloaded")]));
}

#[test]
fn a_reload_whose_plugin_counts_the_entries_lets_no_change_in_meanwhile() {
    let folder = Folder::new();
    folder.add("memory");
    let server = Server::new(&folder, Settings::new());
    server.reload();
    let (feed, applied) = revisions();
    let backend = Backend::open(&server.registry.chain().members()[0], "memory:", "{}", feed).expect("it opens");
    let commit = move || {
        let change = backend::Change::put("a", b"1");
        backend.commit(&backend::Write::new(1, &[], &[change]));
    };
    folder.add("vkog-bytes");
    let applied = Arc::new(std::sync::Mutex::new(applied));
    let (counting, waiting) = (Arc::clone(&applied), std::sync::Mutex::new(Some(commit)));
    let scan: SharedScan = Arc::new(move |_: &mut Each<'_>| {
        let commit = waiting.lock().expect("no test fails").take().expect("one plugin starts");
        std::thread::spawn(commit);
        // It waits for the plugin. Otherwise it would be applied at once.
        let waited = counting.lock().expect("no test fails").recv_timeout(Duration::from_millis(100));
        assert!(waited.is_err(), "a change was applied while a plugin counts");
    });
    let reports = server.registry.reload(&server.source, &scan).expect("the folder can be read");
    assert!(reports.iter().all(|report| !matches!(report.outcome, ReloadOutcome::Failed(_))), "{reports:?}");
    assert_eq!(applied.lock().expect("no test fails").recv_timeout(DEADLINE), Ok(1));
}

#[test]
fn plugins_tick_while_the_server_serves_and_until_they_are_replaced() {
    let folder = Folder::new();
    let library = folder.add("drill");
    let settings = |label: &str| drill(serde_json::json!({ "label": label, "tick_ms": 1 }));
    let mut server = Server::new(&folder, settings("a"));
    server.reload();
    server.registry.start(&scan()).expect("it starts");
    server.registry.serve();
    server.wait_for_ticks();
    // The new instance ticks as well.
    server.source.settings = drill(serde_json::json!({ "label": "a", "tick_ms": 1, "budget": "1m" }));
    assert_eq!(server.reload(), outcomes(&[("drill", "reloaded")]));
    server.wait_for_ticks();
    std::fs::remove_file(&library).expect("it is ours");
    assert_eq!(server.reload(), outcomes(&[("drill", "removed")]));
    let ticks = server.ticks();
    assert!(server.chain().is_empty());
    folder.add("drill");
    assert_eq!(server.reload(), outcomes(&[("drill", "loaded")]));
    server.wait_for_ticks();
    assert!(server.ticks() > ticks);
    let deadline = Instant::now() + DEADLINE;
    assert_eq!(server.registry.stop(deadline), [""; 0]);
    assert!(server.registry.acquire().is_none() && server.registry.chain().members().is_empty());
    let ticks = server.ticks();
    assert_eq!(server.registry.stop(deadline), [""; 0]);
    server.registry.quarantine();
    assert!(server.registry.acquire().is_none(), "it stays closed");
    // A reload after the stop opens nothing.
    server.source.folder = None;
    server.registry.reload(&server.source, &scan()).expect("there is no folder to read");
    assert!(server.registry.acquire().is_none() && server.registry.chain().members().is_empty());
    assert_eq!(server.ticks(), ticks);
}

#[test]
fn a_stop_names_the_plugins_that_do_not_return() {
    let folder = Folder::new();
    folder.add("hangs");
    let mut server = Server::new(&folder, Settings::new());
    let hanging = |place: &str| {
        let table = Table::new([("where".to_owned(), place.into())].into_iter().collect()).expect("no key of the host");
        [("hangs".to_owned(), table)].into()
    };
    for (place, abandoned) in [("tick", "the tick of plugin \"hangs\""), ("drop", "the end of plugin \"hangs\"")] {
        server.source.settings = hanging(place);
        server.registry = Registry::new(Vec::new(), Vec::new(), context());
        assert_eq!(server.reload(), outcomes(&[("hangs", "loaded")]));
        server.registry.serve();
        let found = server.registry.stop(Instant::now() + Duration::from_millis(200));
        assert!(found.iter().any(|name| name == abandoned), "{place}: {found:?}");
    }
    server.source.settings = hanging("");
    server.registry = Registry::new(Vec::new(), Vec::new(), context());
    server.reload();
    let operation = server.registry.acquire().expect("it is open");
    let found = server.registry.stop(Instant::now());
    assert!(found.iter().any(|name| name == "a request in a hook of a plugin (hangs)"), "{found:?}");
    drop(operation);
}

/// Removes the library and reloads while something of the plugin is in flight. Returns whether the reload has destroyed
/// the plugin.
fn is_destroyed_by_its_removal(server: &Server, library: &Path) -> bool {
    let chain = server.registry.chain();
    let member = chain.members().iter().find(|member| member.name() == "drill").expect("it is loaded");
    let member = Arc::downgrade(member);
    drop(chain);
    std::fs::remove_file(library).expect("it is ours");
    server.registry.reload(&server.source, &scan()).expect("the folder can be read");
    member.upgrade().is_none()
}

#[test]
fn a_removal_waits_for_the_current_tick() {
    let folder = Folder::new();
    let library = folder.add("drill");
    // Another plugin that ticks, and stays.
    folder.add("hangs");
    let server = Server::new(&folder, drill(serde_json::json!({ "tick_ms": 0, "tick_takes_ms": 100 })));
    server.reload();
    server.registry.serve();
    server.wait_for_ticks();
    assert!(is_destroyed_by_its_removal(&server, &library));
}

#[test]
fn a_removal_waits_for_operations_in_flight() {
    let folder = Folder::new();
    let library = folder.add("drill");
    let server = Server::new(&folder, Settings::new());
    server.reload();
    let operation = server.registry.acquire().expect("it is open");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| is_destroyed_by_its_removal(&server, &library));
        let deadline = Instant::now() + DEADLINE;
        while !server.chain().is_empty() {
            assert!(Instant::now() < deadline, "the plugin is not removed");
            std::thread::yield_now();
        }
        // A reload that did not wait would end meanwhile.
        for _ in 0..100 {
            assert!(!reload.is_finished(), "an operation is in flight");
            std::thread::yield_now();
        }
        drop(operation);
        assert!(reload.join().expect("it does not panic"));
    });
}

#[test]
fn a_reload_that_creates_no_counting_plugin_closes_nothing() {
    let folder = Folder::new();
    folder.add("drill");
    let server = Server::new(&folder, Settings::new());
    server.reload();
    // A reload that waited for this operation would keep the chain closed for seconds.
    let _operation = server.registry.acquire().expect("it is open");
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.registry.reload(&server.source, &scan()).map(drop));
        while !reload.is_finished() {
            assert!(server.registry.acquire().is_some());
            std::thread::yield_now();
        }
    });
}

#[test]
fn a_counting_plugin_starts_once_and_while_no_operation_can_begin() {
    let folder = Folder::new();
    folder.add("hangs");
    let server = Arc::new(Server::new(&folder, Settings::new()));
    let (observed, starts) = (Arc::downgrade(&server), Arc::new(AtomicUsize::new(0)));
    let started = Arc::clone(&starts);
    let scan: SharedScan = Arc::new(move |_: &mut Each<'_>| {
        let server = observed.upgrade().expect("the test holds it");
        if server.registry.is_reloading() && server.registry.acquire().is_none() {
            started.fetch_add(1, SeqCst);
        }
    });
    for _ in 0..2 {
        server.registry.reload(&server.source, &scan).expect("the folder can be read");
        assert_eq!((starts.load(SeqCst), server.chain()), (1, vec!["hangs"]));
        assert!(server.registry.acquire().is_some() && !server.registry.is_reloading());
    }
}

#[test]
fn a_plugin_that_stays_keeps_its_tick() {
    let folder = Folder::new();
    folder.add("drill");
    let server = Server::new(&folder, drill(serde_json::json!({ "tick_ms": 3_600_000 })));
    server.registry.serve();
    for _ in 0..3 {
        server.reload();
    }
    assert_eq!(server.registry.stop(Instant::now() + DEADLINE), [""; 0]);
    assert_eq!(server.ticks(), 1, "another thread would have ticked at once");
}
