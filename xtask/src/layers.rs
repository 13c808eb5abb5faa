//! `cargo xtask layers`: checks which package and which module imports which.
//!
//! Cargo refuses an import from a package that is no dependency, so this checks the dependencies. Inside the package `vkog`
//! it searches the sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::Result;
use crate::build;

/// A rule for the packages in a folder, or in all folders below one (`plugins/*`).
struct Package {
    folder: &'static str,
    /// The packages of the workspace that it may depend on.
    imports: &'static [&'static str],
    /// The packages of the workspace that only its tests may depend on.
    tests_import: &'static [&'static str],
}

impl Package {
    const fn new(folder: &'static str, imports: &'static [&'static str]) -> Self {
        Self { folder, imports, tests_import: &[] }
    }

    /// What plugins depend on: nothing but the interface.
    const fn plugin(folder: &'static str) -> Self {
        Self { folder, imports: &["vkog-plugin-api"], tests_import: &["vkog-plugin-api", "vkog-plugin-testing"] }
    }
}

/// All packages, from the lowest layer to the highest.
const PACKAGES: &[Package] = &[
    Package::new("plugin-api", &[]),
    Package::new("host/runtime", &[]),
    Package::new("host/store", &["vkog-runtime"]),
    Package::new("host/plugin-host", &["vkog-plugin-api", "vkog-runtime"]),
    Package::new("host/engine", &["vkog-plugin-api", "vkog-plugin-host", "vkog-runtime", "vkog-store"]),
    Package::new("plugin-api/testing", &["vkog-engine", "vkog-plugin-api", "vkog-plugin-host", "vkog-store"]),
    Package {
        folder: "host",
        imports: &["vkog-engine", "vkog-plugin-api", "vkog-plugin-host", "vkog-runtime", "vkog-store"],
        // A test compares it with the server.
        tests_import: &["vkog-plugin-testing"],
    },
    Package::plugin("plugins/*"),
    Package::plugin("examples/*"),
    Package::plugin("tests/plugins/*"),
    // Black-box tests know the program and nothing of its sources.
    Package::new("tests", &[]),
    Package::new("xtask", &[]),
];

/// What HTTP, TLS and the command line need: the packages below `host` must build without these.
const FRONT_END: &[&str] = &["clap", "hyper", "rustls", "tiny_http", "ureq"];

/// Packages, and the crates that must not be among their dependencies, directly or through others.
const BUILDS_WITHOUT: &[(&str, &[&str])] = &[
    ("vkog-plugin-api", FRONT_END),
    ("vkog-runtime", FRONT_END),
    ("vkog-runtime", &["abi_stable"]),
    ("vkog-store", FRONT_END),
    ("vkog-store", &["abi_stable"]),
    ("vkog-plugin-host", FRONT_END),
    ("vkog-engine", FRONT_END),
    ("vkog-plugin-testing", FRONT_END),
];

/// All that a package may depend on, outside of tests. abi_stable needs serde_json anyway.
const DEPENDS_ON: &[(&str, &[&str])] = &[("vkog-plugin-api", &["abi_stable", "serde", "serde_json"])];

/// The modules of the package `vkog`, and the other modules that each may name.
const MODULES: &[(&str, &[&str])] = &[
    ("http", &[]),
    // Tokens are in the configuration.
    ("api", &["config", "http", "schema"]),
    ("config", &["http"]),
    ("failure", &[]),
    ("progress", &[]),
    ("schema", &[]),
    ("serve", &["api", "config", "failure", "http", "progress"]),
    ("commands", &["config", "failure", "progress", "schema"]),
    ("cli", &["commands", "config", "failure", "serve"]),
];

/// The only files and folders below `host` and `plugin-api` that may hold unsafe code.
const UNSAFE: &[&str] = &[
    "host/plugin-host/src/",
    // System calls that no crate offers.
    "host/src/http/tiny/sockets.rs",
    // Takes the file descriptors that the service manager passes.
    "host/src/listen/passed.rs",
    "host/runtime/src/threads.rs",
    "plugin-api/src/abi.rs",
    "plugin-api/src/ask.rs",
    "plugin-api/src/call.rs",
    "plugin-api/src/export.rs",
    "plugin-api/src/hooks.rs",
    "plugin-api/src/host.rs",
    "plugin-api/src/metrics.rs",
    // Creates a plugin of the test's own program, without a library.
    "plugin-api/testing/src/",
];

/// Checks all rules.
///
/// # Errors
///
/// Lists every import and every unsafe block that a rule forbids.
pub(crate) fn check() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let metadata = metadata()?;
    let mut broken = Vec::new();
    check_packages(&metadata, &mut broken)?;
    check_trees(&metadata, &mut broken)?;
    check_modules(&mut broken)?;
    check_unsafe(&mut broken)?;
    if broken.is_empty() {
        println!("all layers hold");
        Ok(())
    } else {
        Err(broken.join("\n").into())
    }
}

/// Returns what cargo knows about the packages of the workspace.
fn metadata() -> Result<Value> {
    let output =
        Command::new(env!("CARGO")).args(["metadata", "--format-version=1", "--no-deps", "--offline"]).output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn check_packages(metadata: &Value, broken: &mut Vec<String>) -> Result<()> {
    let root = fs::canonicalize(".")?;
    for package in list(metadata, "packages") {
        let manifest = fs::canonicalize(text(package, "manifest_path"))?;
        let folder = manifest.parent().and_then(|folder| folder.strip_prefix(&root).ok()).unwrap_or(Path::new(""));
        let Some(rule) = PACKAGES.iter().find(|rule| is_in(folder, rule.folder)) else {
            broken.push(format!("{}: no rule in xtask/src/layers.rs; add one", folder.display()));
            continue;
        };
        let name = text(package, "name");
        if let Some((_, allowed)) = DEPENDS_ON.iter().find(|(other, _)| *other == name) {
            let shipped = list(package, "dependencies").filter(|dependency| text(dependency, "kind") != "dev");
            for other in shipped.map(|dependency| text(dependency, "name")).filter(|other| !allowed.contains(other)) {
                broken.push(format!("{}/Cargo.toml: must not depend on {other}", folder.display()));
            }
        }
        // A feature would select what of a package is compiled for whom.
        if package["features"].as_object().is_some_and(|features| !features.is_empty()) {
            broken.push(format!("{}/Cargo.toml: has features; make a package of what they select", folder.display()));
        }
        // A dependency with a path is a package of the workspace.
        for dependency in list(package, "dependencies").filter(|dependency| !dependency["path"].is_null()) {
            let name = text(dependency, "name");
            let for_tests = text(dependency, "kind") == "dev";
            if !(rule.imports.contains(&name) || for_tests && rule.tests_import.contains(&name)) {
                broken.push(format!("{}/Cargo.toml: must not depend on {name}", folder.display()));
            }
        }
    }
    Ok(())
}

/// Returns true if a rule for `pattern` is about the folder.
fn is_in(folder: &Path, pattern: &str) -> bool {
    match pattern.strip_suffix("/*") {
        Some(parent) => folder.parent() == Some(Path::new(parent)),
        None => folder == Path::new(pattern),
    }
}

fn check_trees(metadata: &Value, broken: &mut Vec<String>) -> Result<()> {
    for (package, forbidden) in BUILDS_WITHOUT {
        if !list(metadata, "packages").any(|member| text(member, "name") == *package) {
            continue;
        }
        let output = Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--prefix=none", "--format={p}", "--edges=normal,build", "--package", package])
            .output()?;
        if !output.status.success() {
            return Err(format!("cargo tree: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let tree = String::from_utf8(output.stdout)?;
        let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        for name in forbidden.iter().filter(|name| names.contains(name)) {
            broken.push(format!("{package}: must build without {name}; see cargo tree -p {package} -i {name}"));
        }
    }
    Ok(())
}

fn check_modules(broken: &mut Vec<String>) -> Result<()> {
    for path in sources(Path::new("host/src"))? {
        let module = module_of(&path);
        let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == module) else { continue };
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            for (other, _) in MODULES {
                if *other != module && !allowed.contains(other) && line.contains(&format!("crate::{other}")) {
                    broken.push(format!("{}:{}: {module} must not name {other}", path.display(), number + 1));
                }
            }
        }
    }
    Ok(())
}

fn check_unsafe(broken: &mut Vec<String>) -> Result<()> {
    for path in ["host", "plugin-api"]
        .into_iter()
        .map(|folder| sources(Path::new(folder)))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        let shown = path.display().to_string();
        // Tests, benchmarks and what a fuzzer runs are not shipped.
        let is_shipped = shown.contains("/src/") && !shown.starts_with("host/fuzz/");
        if !is_shipped || UNSAFE.iter().any(|prefix| shown.starts_with(prefix)) {
            continue;
        }
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            if !is_comment && (line.contains("unsafe ") || line.contains("unsafe(")) {
                broken.push(format!("{shown}:{}: unsafe code; it may stand in {}", number + 1, UNSAFE.join(", ")));
            }
        }
    }
    Ok(())
}

/// Returns the first folder or file below `host/src` that a source belongs to.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix("host/src").unwrap_or(path);
    let first = below.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    first.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// Returns the Rust files in a folder and below it, without those that cargo made.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
