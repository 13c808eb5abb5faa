//! The software bill of materials of a release, in CycloneDX 1.6: every crate that is compiled into the program and the
//! plugins, with version, license and the hash in `Cargo.lock`. It names no path and no time, so that it is reproducible.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::VERSION;
use crate::Result;
use crate::build;

/// Returns the document for these packages of the workspace, built for a target.
pub(super) fn sbom(packages: &[&str], triple: &str) -> Result<Value> {
    let mut cargo = build::cargo();
    let output = cargo.args(["metadata", "--format-version=1", "--locked", "--filter-platform", triple]).output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let by_id = |list: &Value| -> BTreeMap<String, Value> {
        list.as_array().into_iter().flatten().map(|item| (text(item, "id").to_owned(), item.clone())).collect()
    };
    let (crates, nodes) = (by_id(&metadata["packages"]), by_id(&metadata["resolve"]["nodes"]));
    let is_root = |id: &&String| packages.contains(&text(&crates[*id], "name")) && crates[*id]["source"].is_null();
    let roots: Vec<&str> = crates.keys().filter(is_root).map(String::as_str).collect();
    let (mut found, mut open) = (BTreeSet::new(), roots.clone());
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(compiled_in(&nodes[id]));
        }
    }
    let hashes = hashes()?;
    let components: Vec<Value> = found.iter().map(|id| component(&crates[*id], &hashes)).collect();
    let depends = |on: &[&str]| on.iter().map(|id| purl(&crates[*id])).collect::<BTreeSet<_>>();
    let release = json!({ "ref": "release", "dependsOn": depends(&roots) });
    let others =
        found.iter().map(|id| json!({ "ref": purl(&crates[*id]), "dependsOn": depends(&compiled_in(&nodes[*id])) }));
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "release",
                "name": "vkog",
                "version": VERSION,
                "description": format!("The program vkog and its plugins for {triple}"),
                "licenses": [{ "license": { "id": "MIT" } }],
            },
        },
        "components": components,
        "dependencies": std::iter::once(release).chain(others).collect::<Vec<_>>(),
    }))
}

/// Returns the crates that are compiled into a crate: neither for its tests nor for its build script.
fn compiled_in(node: &Value) -> Vec<&str> {
    let dependencies = node["deps"].as_array().into_iter().flatten();
    let normal = dependencies.filter(|dependency| {
        dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
    });
    normal.map(|dependency| text(dependency, "pkg")).collect()
}

fn component(package: &Value, hashes: &BTreeMap<(String, String), String>) -> Value {
    let (name, version) = (text(package, "name"), text(package, "version"));
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(package),
        "name": name,
        "version": version,
        "purl": purl(package),
    });
    if let Some(license) = package["license"].as_str() {
        // Older manifests write a slash.
        let expression = license.replace(" / ", " OR ").replace('/', " OR ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    if let Some(hash) = hashes.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
    }
    component
}

/// Returns the hashes in `Cargo.lock` by name and version.
fn hashes() -> Result<BTreeMap<(String, String), String>> {
    let lock: toml::Table = std::fs::read_to_string("Cargo.lock")?.parse()?;
    let packages = lock.get("package").and_then(toml::Value::as_array).ok_or("Cargo.lock lists no package")?;
    let hash = |package: &toml::Value| {
        let text = |key| Some(package.get(key)?.as_str()?.to_owned());
        Some(((text("name")?, text("version")?), text("checksum")?))
    };
    Ok(packages.iter().filter_map(hash).collect())
}

/// Returns the package URL, which identifies a crate in every database of vulnerabilities.
fn purl(package: &Value) -> String {
    // The plus sign of a version is escaped in a URL.
    format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version").replace('+', "%2B"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}
