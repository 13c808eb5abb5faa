//! `cargo xtask floors`: who may import whom, held against the sources and the manifests.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::build;

/// The host's modules, and which other modules of the host each may name.
const MODULES: &[(&str, &[&str])] = &[
    ("store", &[]),
    ("plugins", &[]),
    ("http", &[]),
    ("ops", &["plugins", "store"]),
    // `Verb` and `Origin` are the plugins' words, the default media type is the store's.
    // Who may change the host is in the configuration.
    ("api", &["config", "http", "ops", "plugins", "schema", "store"]),
    ("config", &["http", "plugins", "store"]),
    ("failure", &[]),
    ("progress", &[]),
    ("schema", &[]),
    ("serve", &["api", "config", "failure", "http", "ops", "plugins", "progress", "store"]),
    // The limits of a key are the operations'.
    ("commands", &["config", "failure", "ops", "plugins", "progress", "schema", "store"]),
    ("cli", &["commands", "config", "failure", "plugins", "serve", "store"]),
];

/// Packages that may depend on no other package of the workspace than these.
const PACKAGES: &[(&str, &[&str])] = &[
    ("plugin-api", &[]),
    ("host", &["vkog-plugin-api"]),
    ("plugins/*", &["vkog-plugin-api"]),
    ("examples/*", &["vkog-plugin-api"]),
    ("tests/plugins/*", &["vkog-plugin-api"]),
    ("tests", &[]),
    ("xtask", &[]),
];

/// The only places of the host, and of plugin-api, that may be unsafe.
const UNSAFE: &[&str] = &[
    "host/src/plugins/",
    // A call of the system that no library has.
    "host/src/http/tiny/sockets.rs",
    "host/src/threads.rs",
    "plugin-api/src/abi.rs",
    "plugin-api/src/ask.rs",
    "plugin-api/src/call.rs",
    "plugin-api/src/chain/",
    "plugin-api/src/export.rs",
    "plugin-api/src/hooks.rs",
    "plugin-api/src/host.rs",
    "plugin-api/src/metrics.rs",
    // A plugin of the test's own program is created without a library.
    "plugin-api/src/testing/bench.rs",
];

pub(crate) fn check() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let mut broken = Vec::new();
    for path in sources(Path::new("host/src"))? {
        let module = module_of(&path);
        let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == module) else { continue };
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            for (other, _) in MODULES {
                if *other != module && !allowed.contains(other) && line.contains(&format!("crate::{other}")) {
                    broken.push(format!("{}:{}: {module} names {other}", path.display(), number + 1));
                }
            }
        }
    }
    for (folder, allowed) in PACKAGES {
        for manifest in manifests(folder)? {
            let text = fs::read_to_string(&manifest)?;
            let (_, after) = text.split_once("[dependencies]").unwrap_or(("", ""));
            for line in after.lines().take_while(|line| !line.starts_with("[lints")) {
                let name = line.split(['=', '.', ' ']).next().unwrap_or("");
                if is_ours(name) && !allowed.contains(&name) {
                    broken.push(format!("{}: depends on {name}", manifest.display()));
                }
            }
        }
    }
    for folder in ["host/src", "plugin-api/src"] {
        for path in sources(Path::new(folder))? {
            let shown = path.display().to_string();
            let allowed = UNSAFE.iter().any(|prefix| shown.starts_with(prefix));
            let text = fs::read_to_string(&path)?;
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            if !allowed && code.clone().any(|line| line.contains("unsafe ") || line.contains("unsafe(")) {
                broken.push(format!("{shown}: unsafe code outside {}", UNSAFE.join(", ")));
            }
        }
    }
    if broken.is_empty() {
        println!("floors hold");
        Ok(())
    } else {
        Err(broken.join("\n").into())
    }
}

fn is_ours(package: &str) -> bool {
    package.starts_with("vkog") || package.starts_with("fault-") || package == "xtask"
}

/// The first folder or file below `host/src` that a source belongs to.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix("host/src").unwrap_or(path);
    let first = below.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    first.unwrap_or_default().trim_end_matches(".rs").to_owned()
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn manifests(folder: &str) -> Result<Vec<PathBuf>> {
    let Some(parent) = folder.strip_suffix("/*") else { return Ok(vec![Path::new(folder).join("Cargo.toml")]) };
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let manifest = entry?.path().join("Cargo.toml");
        if manifest.is_file() {
            found.push(manifest);
        }
    }
    Ok(found)
}
