//! `vkog plugins new`: creates the crate of a small plugin, with a test.
//!
//! The program contains the sources of vkog-plugin-api, of vkog-plugin-testing and of the crates that these need, and copies
//! them into the new crate. So the crate builds without a registry, against the API version of this server, and still builds
//! after an upgrade of the server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use include_dir::{Dir, include_dir};

use thiserror::Error;

use super::super::say;

/// The crates to copy, by their folders in the workspace. `plugin-api` contains vkog-plugin-testing.
static CRATES: [(&str, Dir<'_>); 5] = [
    ("plugin-api", include_dir!("$CARGO_MANIFEST_DIR/../plugin-api")),
    ("host/engine", include_dir!("$CARGO_MANIFEST_DIR/engine")),
    ("host/plugin-host", include_dir!("$CARGO_MANIFEST_DIR/plugin-host")),
    ("host/runtime", include_dir!("$CARGO_MANIFEST_DIR/runtime")),
    ("host/store", include_dir!("$CARGO_MANIFEST_DIR/store")),
];
/// The manifest of the workspace, from which these crates inherit.
const WORKSPACE: &str = include_str!("../../../../Cargo.toml");
const LICENSE: &str = include_str!("../../../../LICENSE");

const MANIFEST: &str = include_str!("template/Cargo.toml.in");
const SOURCE: &str = include_str!("template/lib.rs");
const README: &str = include_str!("template/README.md");

/// The folder of the copies in the new crate. It has the layout of the workspace, so that the relative paths in their manifests
/// are valid.
const VENDORED: &str = "vendor/vkog";

/// Names that the language, the compiler, the target folder of cargo or the new crate itself use.
#[rustfmt::skip]
const TAKEN: [&str; 65] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super", "trait", "true",
    "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
    "alloc", "core", "proc_macro", "std", "test",
    "build", "deps", "examples", "incremental",
    "abi_stable", "serde", "serde_json", "vkog_plugin_api", "vkog_plugin_testing",
];

/// The name of a crate that can be a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrateName(String);

impl CrateName {
    /// Returns the name of the plugin, as `export_plugin!` derives it.
    fn plugin(&self) -> &str {
        vkog_plugin_api::export::plugin_name(&self.0)
    }

    /// Returns the name of the library that cargo builds.
    fn library(&self) -> String {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        format!("{prefix}{}{suffix}", self.0.replace('-', "_"))
    }
}

/// Why a text cannot be the name of a plugin crate.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// It begins with something else than a small letter.
    #[error("the name of a plugin begins with a lower-case letter; choose a name such as short-values")]
    Start,
    /// It has a character that no name has.
    #[error(
        "the name of a plugin has lower-case letters, digits, - and _, not {0:?}; choose a name such as short-values"
    )]
    Character(char),
    /// It is too long.
    #[error("the maximum length of a name is 64 characters, this one has {0}; choose a name such as short-values")]
    Length(usize),
    /// It is only the prefix `vkog-`.
    #[error("the name is empty without the leading vkog-; choose a name such as short-values")]
    OnlyPrefix,
    /// It is a keyword, or a name that the compiler or cargo uses.
    #[error("Rust or cargo reserves this name; choose a name such as short-values")]
    Reserved,
}

/// Why a crate cannot be created.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NewError {
    /// The folder exists.
    #[error("cannot create {}: it exists; choose another name, or another folder with --path", .path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The folder cannot be created.
    #[error("cannot create {}: {source}; choose a folder that exists and is writable with --path", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}; the folder was removed again, free disk space and try again", .path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// `--api` names a folder whose manifest cannot be read.
    #[error(
        "cannot use --api {}: its Cargo.toml cannot be read ({source}); give the folder plugin-api of a clone of VKOG",
        .path.display()
    )]
    NoManifest {
        /// The folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// `--api` names another crate.
    #[error("cannot use --api {}: it is not the crate vkog-plugin-api; give the folder plugin-api of a clone of VKOG", .0.display())]
    OtherCrate(PathBuf),
    /// `--api` names a path that the system cannot make absolute.
    #[error("cannot use --api {}: {source}; give the folder plugin-api of a clone of VKOG", .path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl FromStr for CrateName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.starts_with(|first: char| first.is_ascii_lowercase()) {
            return Err(NameError::Start);
        }
        let fits = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '-' || char == '_';
        if let Some(char) = text.chars().find(|char| !fits(*char)) {
            return Err(NameError::Character(char));
        }
        if text.len() > 64 {
            return Err(NameError::Length(text.len()));
        }
        let name = Self(text.to_owned());
        if name.plugin().is_empty() {
            return Err(NameError::OnlyPrefix);
        }
        if TAKEN.contains(&text.replace('-', "_").as_str()) {
            return Err(NameError::Reserved);
        }
        Ok(name)
    }
}

/// Creates the crate `name` in a folder and prints the next steps. The crate has copies of vkog-plugin-api and
/// vkog-plugin-testing, or depends on the one in the folder `api`.
///
/// # Errors
///
/// The folder exists or cannot be written, or `api` is not the folder of vkog-plugin-api.
pub fn new(name: &CrateName, parent: Option<&Path>, api: Option<&Path>) -> Result<ExitCode, NewError> {
    let api = api.map(own_api).transpose()?;
    let folder = parent.map_or_else(|| PathBuf::from(&name.0), |parent| parent.join(&name.0));
    let shown = folder.display();
    // Not `create_dir_all`: only a folder that was created here may be removed after a failure.
    fs::create_dir(&folder).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => NewError::Exists { path: folder.clone(), source },
        _ => NewError::Folder { path: folder.clone(), source },
    })?;
    if let Err(source) = fill(&folder, name, api.as_deref()) {
        // If this fails as well, the error of the write says why.
        let _ = fs::remove_dir_all(&folder);
        return Err(NewError::Write { path: folder, source });
    }
    let target = Path::new("target").join("release");
    say(&format!(
        "created {shown}: a plugin that rejects long values; continue with
  cd {shown}
  cargo build --release
  vkog plugins check {}
  vkog --plugin-dir {}",
        target.join(name.library()).display(),
        target.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Returns the absolute path of a vkog-plugin-api, because a relative path would be resolved in the new crate.
fn own_api(path: &Path) -> Result<PathBuf, NewError> {
    let manifest = fs::read_to_string(path.join("Cargo.toml"))
        .map_err(|source| NewError::NoManifest { path: path.to_owned(), source })?;
    if !manifest.lines().any(|line| line == "name = \"vkog-plugin-api\"") {
        return Err(NewError::OtherCrate(path.to_owned()));
    }
    let testing = path.join("testing");
    if let Err(source) = fs::metadata(testing.join("Cargo.toml")) {
        return Err(NewError::NoManifest { path: testing, source });
    }
    // Not `canonicalize`: cargo does not accept its results on Windows (`\\?\C:\...`).
    std::path::absolute(path).map_err(|source| NewError::Path { path: path.to_owned(), source })
}

fn fill(folder: &Path, name: &CrateName, api: Option<&Path>) -> io::Result<()> {
    let (is, path) = match api {
        Some(path) => ("A path, not a copy: changes there apply here.".to_owned(), path.display().to_string()),
        None => (
            format!("A copy of the plugin API of vkog {}; it is not on a package registry.", env!("CARGO_PKG_VERSION")),
            format!("{VENDORED}/plugin-api"),
        ),
    };
    // A JSON string is a TOML string. A slash also separates folders on Windows.
    let quoted = |path: String| serde_json::Value::from(path).to_string();
    let (testing, path) = (quoted(format!("{path}/testing")), quoted(path));
    let manifest = MANIFEST.replace("CRATE", &name.0).replace("API_IS", &is);
    let manifest = manifest.replace("API_PATH", &path).replace("TESTING_PATH", &testing);
    let named = |text: &str| text.replace("PLUGIN", name.plugin()).replace("LIBRARY", &name.library());
    fs::create_dir(folder.join("src"))?;
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/lib.rs"), named(SOURCE))?;
    fs::write(folder.join("README.md"), named(README))?;
    fs::write(folder.join(".gitignore"), "/target\n/local.vkog*\n")?;
    if api.is_none() {
        vendor(&folder.join(VENDORED))?;
    }
    Ok(())
}

/// Writes the copies, as a workspace with no other members.
fn vendor(folder: &Path) -> io::Result<()> {
    for (path, sources) in &CRATES {
        fs::create_dir_all(folder.join(path))?;
        sources.extract(folder.join(path))?;
    }
    let is_members = |line: &&str| line.starts_with("members = ");
    let members = WORKSPACE.lines().find(is_members).unwrap_or_default();
    let copied = r#"members = ["plugin-api", "plugin-api/testing", "host/*"]"#;
    fs::write(folder.join("Cargo.toml"), WORKSPACE.replace(members, copied))?;
    fs::write(folder.join("LICENSE"), LICENSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for text in ["short", "json-only", "rate_limit2", "vkog-short", "x"] {
            assert_eq!(text.parse(), Ok(CrateName(text.to_owned())), "{text}");
        }
        let long = "x".repeat(65);
        for text in [
            "",
            "9lives",
            "-short",
            "../short",
            "Short",
            "gr\u{fc}n",
            "a b",
            "a.b",
            "vkog-",
            "fn",
            "std",
            "proc-macro",
            "test",
            "deps",
            "vkog-plugin-api",
            &long,
        ] {
            let error = text.parse::<CrateName>().expect_err(text);
            assert!(error.to_string().contains("; choose a name such as "), "{error}");
        }
    }

    #[test]
    fn the_plugin_and_its_library_are_named_as_they_will_be_built() {
        let name: CrateName = "vkog-json-only".parse().expect("it is one");
        assert_eq!(name.plugin(), "json-only");
        assert!(name.library().contains("vkog_json_only."), "{}", name.library());
    }
}
