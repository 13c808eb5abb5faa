//! The plugins that benchmarks load.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::build;
use crate::serve::remove_write_access;

/// Copies libraries into a folder from which a server loads them.
pub(super) fn plugin_folder(folder: &Path, libraries: &[PathBuf]) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    for library in libraries {
        let copy = folder.join(library.file_name().ok_or("a library has a name")?);
        fs::copy(library, &copy)?;
        remove_write_access(&copy)?;
    }
    remove_write_access(folder)?;
    Ok(folder.to_owned())
}

/// Writes and builds plugins that do nothing in every hook. They differ only in their names.
pub(super) fn idle_plugins(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let crates = folder.join("idle");
    let names: Vec<String> = (1..=count).map(|number| format!("idle-{number:02}")).collect();
    let source = idle_source();
    for name in &names {
        fs::create_dir_all(crates.join(name).join("src"))?;
        fs::write(crates.join(name).join("src/lib.rs"), &source)?;
        let api = build::root().canonicalize()?.join("plugin-api");
        fs::write(
            crates.join(name).join("Cargo.toml"),
            format!(
                "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = \
                 [\"cdylib\"]\n\n\
                 [dependencies]\nvkog-plugin-api = {{ path = {api:?} }}\n"
            ),
        )?;
    }
    fs::write(crates.join("Cargo.toml"), format!("[workspace]\nresolver = \"3\"\nmembers = {names:?}\n"))?;
    fs::copy(build::root().join("Cargo.lock"), crates.join("Cargo.lock"))?;
    let target = folder.parent().and_then(Path::parent).ok_or("no target folder")?;
    let built = build::cargo()
        .current_dir(&crates)
        .args(["build", "--release", "--offline", "--target-dir"])
        .arg(target)
        .status()?;
    if !built.success() {
        return Err("the plugins that do nothing could not be built".into());
    }
    let library = |name: &String| {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        target.join("release").join(format!("{prefix}{}{suffix}", name.replace('-', "_")))
    };
    Ok(names.iter().map(library).collect())
}

fn idle_source() -> String {
    let mut source =
        "use vkog_plugin_api::*;\n\nstruct Idle;\n\nimpl Plugin for Idle {\n    type Settings = NoSettings;\n\n    \
                      fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {\n        Ok(Idle)\n    }\n}\n"
            .to_owned();
    for (phase, method, reference, result, body) in [
        ("Before", "before", "&mut ", " -> Verdict", "Ok(())"),
        ("Guard", "guard", "&mut ", " -> Verdict", "Ok(())"),
        ("Undo", "undo", "&", "", ""),
        ("After", "after", "&", "", ""),
    ] {
        for verb in ["Get", "Post", "Put", "Delete"] {
            let hook = format!("{method}_{}", verb.to_lowercase());
            source.push_str(&format!(
                "\nimpl {phase}{verb} for Idle {{\n    fn {hook}(&self, _: {reference}{phase}<'_, {verb}>){result} \
                 {{\n        \
                 {body}\n    }}\n}}\n"
            ));
        }
    }
    source.push_str("\nexport_plugin!(Idle);\n");
    source
}
