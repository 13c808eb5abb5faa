//! `cargo xtask layers`: checks which package and which module imports which.
//!
//! Cargo refuses an import from a package that is no dependency, and the lint `unsafe_code` refuses unsafe code outside the
//! files that allow it. This checks the rest: what packages depend on, directly or through others, and which module inside
//! the package `vkog` names which.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::build;

/// The packages for HTTP, TLS and the command line.
const FRONT_END: &[&str] = &["clap", "h2", "hyper", "rustls", "tiny_http", "ureq"];
/// The packages that neither plugins nor the black-box tests may use.
const INSIDE: &[&str] = &["vkog", "vkog-engine", "vkog-plugin-host", "vkog-runtime", "vkog-store"];
const PLUGINS: &[&str] = &[
    "vkog-bytes",
    "vkog-conflict",
    "vkog-ttl",
    "vkog-etcd",
    "vkog-audit",
    "vkog-bearer",
    "vkog-compress",
    "vkog-counter",
    "vkog-encrypt",
    "vkog-index",
    "vkog-json-only",
    "vkog-limit",
    "vkog-tenant",
];

/// Packages, and the crates that must not be among their dependencies, directly or through others.
const BUILDS_WITHOUT: &[(&[&str], &[&str])] = &[
    (&["vkog-runtime", "vkog-store", "vkog-plugin-host", "vkog-engine", "vkog-plugin-testing"], FRONT_END),
    (&["vkog-runtime", "vkog-store"], &["abi_stable"]),
    (&["vkog-plugin-host"], &["vkog-store"]),
    (PLUGINS, INSIDE),
    (&["vkog"], PLUGINS),
    (&["vkog-tests", "xtask"], INSIDE),
];

/// All that plugin authors get with vkog-plugin-api. abi_stable needs serde_json anyway.
const PLUGIN_API: &[&str] = &["abi_stable", "serde", "serde_json"];

/// The modules of the package `vkog`, and the other modules that each may name.
const MODULES: &[(&str, &[&str])] = &[
    ("http", &[]),
    // Tokens are in the configuration.
    ("api", &["any_store", "config", "http", "members", "schema"]),
    ("config", &["http"]),
    // The errors of commands determine the exit status.
    ("failure", &["commands"]),
    ("any_store", &["config"]),
    ("members", &["any_store", "schema"]),
    ("shared_store", &["config"]),
    ("progress", &[]),
    ("schema", &[]),
    ("serve", &["any_store", "api", "config", "failure", "http", "members", "progress", "shared_store"]),
    ("commands", &["config", "failure", "progress", "schema", "shared_store"]),
    ("cli", &["commands", "config", "failure", "serve"]),
];

/// Checks all rules.
///
/// # Errors
///
/// Lists every import that a rule forbids.
pub(crate) fn check() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let mut broken = Vec::new();
    for (packages, forbidden) in BUILDS_WITHOUT {
        for package in *packages {
            let names = dependencies(package, "--target=all")?;
            for name in forbidden.iter().filter(|name| names.iter().any(|found| found == *name)) {
                broken.push(format!("{package}: must build without {name}; see cargo tree -p {package} -i {name}"));
            }
        }
    }
    for name in dependencies("vkog-plugin-api", "--depth=1")? {
        if !PLUGIN_API.contains(&name.as_str()) {
            broken.push(format!("plugin-api/Cargo.toml: must not depend on {name}"));
        }
    }
    check_modules(&mut broken)?;
    if broken.is_empty() {
        println!("all layers hold");
        Ok(())
    } else {
        Err(broken.join("\n").into())
    }
}

/// Returns what a package depends on, outside of tests, as `cargo tree` with one more option lists it.
fn dependencies(package: &str, option: &str) -> Result<Vec<String>> {
    let output = build::cargo()
        .args([
            "tree",
            "--offline",
            "--prefix=none",
            "--format={p}",
            "--edges=normal,build",
            "--package",
            package,
            option,
        ])
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo tree: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let tree = String::from_utf8(output.stdout)?;
    // The first line is the package itself.
    Ok(tree.lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
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
