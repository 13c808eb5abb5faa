//! Libraries with deliberate faults that the workspace cannot contain: truncated, for another machine, built against
//! another version of vkog-plugin-api, or built with another panic strategy.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::artefacts::{build, built, built_by_cargo, target_folder, workspace};
use crate::server::only_ours;
use crate::windows::{as_library, on_windows};

/// A small complete plugin. `HOOK` and `EXPORT` are placeholders.
const PLUGIN: &str = r#"#![forbid(unsafe_code)]
//! A plugin that a test builds.
use vkog_plugin_api::*;

struct Small;

impl Plugin for Small {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Small)
    }
}

impl BeforePost for Small {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        if post.value().len() > 16 {
            return Err(Refusal::new(413, "values are at most 16 bytes here"));
        }
        Ok(())
    }
}
HOOK
export_plugin!(SmallEXPORT);
"#;

/// Implements the additional hook of version 1.7.0.
const SWEEP: &str = "
impl Sweep for Small {
    fn sweep(&self) {}
}
";

/// That hook, inserted at the end of `hooks!`.
const SWEEP_HOOK: &str = "    and TICK SETTINGS_CHANGED MAKE_ROOM SERVE SERVE_UPDATE APPLIED SWEEP
}

/// Tidies up.
pub trait Sweep: Plugin {
    /// Tidies up.
    fn sweep(&self);
}

impl<P: Sweep> Probe<P> {
    #[doc(hidden)]
    pub const SWEEP: Option<HookEntry> = {
        unsafe extern \"C\" fn sweep<P: Sweep>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, |plugin: &P, _: &mut Request<'_>| plugin.sweep()) }
        }
        Some(HookEntry { id: 25, flags: 0, hook: HookFn { call: sweep::<P> } })
    };
}";

/// The plugins that are built against changed copies of vkog-plugin-api.
pub struct Faults {
    /// Against 2.0.0.
    pub other_major: PathBuf,
    /// Against 1.6.1, in which a type that crosses the boundary has changed.
    pub other_layout: PathBuf,
    /// Against 1.7.0, which has one hook and one host function more, both at the end; the hook is required.
    pub new_hook_required: PathBuf,
    /// The same, but the hook is not required.
    pub new_hook_optional: PathBuf,
}

/// A plugin built against the real vkog-plugin-api, with `panic = "abort"`.
#[track_caller]
pub fn aborts() -> PathBuf {
    static ABORTS: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
        let folder = faults_folder().join("fault-aborts");
        plugin_crate(&folder, "fault-aborts", &workspace().join("plugin-api"), "", "", "[workspace]\n\n");
        copy_lock(&folder);
        let mut cargo = built_by_cargo("rustc", &folder, &target_folder());
        // Only this crate: what it links may unwind, what it does itself may not, and that is what it declares.
        Ok(build(cargo.args(["--offline", "--lib", "--", "-C", "panic=abort"]))?.library("fault-aborts"))
    });
    ABORTS.as_ref().unwrap_or_else(|error| panic!("{error}")).clone()
}

/// Builds them, once for each process. Builds of earlier runs are reused.
#[track_caller]
pub fn faults() -> &'static Faults {
    static FAULTS: LazyLock<Result<Faults, String>> = LazyLock::new(make);
    FAULTS.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

fn make() -> Result<Faults, String> {
    let folder = faults_folder();
    copy_api(&folder.join("api-2.0.0"), &[("Cargo.toml", r#"version = "1.6.0""#, r#"version = "2.0.0""#)]);
    copy_api(
        &folder.join("api-1.6.1"),
        &[
            ("Cargo.toml", r#"version = "1.6.0""#, r#"version = "1.6.1""#),
            ("src/abi.rs", "pub flags: u32,\n    /// The revision", "pub flags: i32,\n    /// The revision"),
            ("src/call.rs", "from_number(self.call.flags)", "from_number(self.call.flags as u32)"),
        ],
    );
    copy_api(
        &folder.join("api-1.7.0"),
        &[
            ("Cargo.toml", r#"version = "1.6.0""#, r#"version = "1.7.0""#),
            ("src/abi.rs", "pub const HOOK_NAMES: [&str; 25]", "pub const HOOK_NAMES: [&str; 26]"),
            ("src/abi.rs", "    \"applied\",\n];", "    \"applied\",\n    \"sweep\",\n];"),
            (
                "src/abi.rs",
                "    pub depend_on: for<'a> unsafe extern \"C\" fn(*const (), RStr<'a>),\n",
                "    pub depend_on: for<'a> unsafe extern \"C\" fn(*const (), RStr<'a>),\n    /// The weather.\n    \
                 pub weather: unsafe extern \"C\" fn(*const ()) -> u64,\n",
            ),
            ("src/hooks.rs", "    and TICK SETTINGS_CHANGED MAKE_ROOM SERVE SERVE_UPDATE APPLIED\n}", SWEEP_HOOK),
            ("src/lib.rs", "Start, Tick, ", "Start, Sweep, Tick, "),
        ],
    );
    let members = [
        ("fault-other-major", folder.join("api-2.0.0"), "", ""),
        ("fault-other-layout", folder.join("api-1.6.1"), "", ""),
        ("fault-new-hook-required", folder.join("api-1.7.0"), SWEEP, ", required: [sweep]"),
        ("fault-new-hook-optional", folder.join("api-1.7.0"), SWEEP, ""),
    ];
    for (name, api, hook, export) in &members {
        plugin_crate(&folder.join(name), name, api, hook, export, "");
    }
    let names: Vec<_> = members.iter().map(|(name, ..)| format!("\"{name}\"")).collect();
    let manifest = format!(
        "[workspace]\nresolver = \"3\"\nmembers = [{}]\nexclude = [\"api-2.0.0\", \"api-1.6.1\", \"api-1.7.0\"]\n",
        names.join(", ")
    );
    write(&folder.join("Cargo.toml"), &manifest);
    copy_lock(&folder);

    let built = build(built(&folder).args(["--offline", "--workspace"]))?;
    Ok(Faults {
        other_major: built.library("fault-other-major"),
        other_layout: built.library("fault-other-layout"),
        new_hook_required: built.library("fault-new-hook-required"),
        new_hook_optional: built.library("fault-new-hook-optional"),
    })
}

/// The folder of the crates: always the same, so that cargo reuses earlier builds.
fn faults_folder() -> PathBuf {
    target_folder().join("fault-builds")
}

/// Writes a small plugin's crate, whose manifest begins with `workspace`.
fn plugin_crate(folder: &Path, name: &str, api: &Path, hook: &str, export: &str, workspace: &str) {
    let manifest = format!(
        "{workspace}[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = [\"cdylib\"]\n\n\
         [dependencies]\nvkog-plugin-api = {{ path = {api:?} }}\n"
    );
    write(&folder.join("Cargo.toml"), &manifest);
    write(&folder.join("src/lib.rs"), &PLUGIN.replace("HOOK", hook).replace("EXPORT", export));
}

/// Writes the crate of a small good plugin that belongs to no workspace, and gives its folder.
pub fn small_plugin(name: &str) -> PathBuf {
    let folder = faults_folder().join(name);
    plugin_crate(&folder, name, &workspace().join("plugin-api"), "", "", "[workspace]\n\n");
    copy_lock(&folder);
    folder
}

/// Builds a plugin of which a document shows the manifest and the source, and gives its library.
#[track_caller]
pub fn written_plugin(name: &str, manifest: &str, source: &str) -> PathBuf {
    let folder = write_plugin(name, manifest, source);
    let built = build(built(&folder).arg("--offline"));
    built.unwrap_or_else(|error| panic!("{error}")).library(name)
}

/// Returns the compiler's errors for a plugin that must not compile.
#[track_caller]
pub fn rejected_plugin(name: &str, source: &str) -> String {
    let manifest = format!(
        "[package]\nname = {name:?}\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\nvkog-plugin-api = \"1\"\n"
    );
    let folder = write_plugin(name, &manifest, source);
    match build(built_by_cargo("check", &folder, &target_folder()).arg("--offline")) {
        Ok(_) => panic!("the compiler accepts\n{source}"),
        Err(said) => said,
    }
}

/// Writes the crate of a plugin, where a path to plugin-api in the manifest becomes the true one, and gives its folder.
fn write_plugin(name: &str, manifest: &str, source: &str) -> PathBuf {
    let folder = faults_folder().join(name);
    let path = |line: &str| match line.strip_prefix("vkog-plugin-api = ") {
        Some(_) => format!("vkog-plugin-api = {{ path = {:?} }}\n", workspace().join("plugin-api")),
        None => format!("{line}\n"),
    };
    let manifest: String = manifest.lines().map(path).collect();
    write(&folder.join("Cargo.toml"), &format!("[workspace]\n\n{manifest}"));
    write(&folder.join("src/lib.rs"), source);
    copy_lock(&folder);
    folder
}

/// Copies a crate of the workspace to a place where no workspace is around it, under another name, with what it
/// inherits written out and a path to plugin-api.
#[track_caller]
pub fn copy_out(from: &str, to: &Path, package: &str) {
    let root = std::fs::read_to_string(workspace().join("Cargo.toml")).expect("the workspace has a manifest");
    let manifest = std::fs::read_to_string(workspace().join(from).join("Cargo.toml")).expect("a crate has a manifest");
    let mut own = String::from("[workspace]\n\n");
    for line in manifest.replace("[lints]\nworkspace = true\n", "").lines() {
        match line.strip_suffix(".workspace = true") {
            Some(name @ ("vkog-plugin-api" | "vkog-plugin-testing")) => {
                let folder = if name == "vkog-plugin-api" { "plugin-api" } else { "plugin-api/testing" };
                own.push_str(&format!("{name} = {{ path = {:?} }}", workspace().join(folder)));
            }
            Some(name) => {
                let inherited = root.lines().find(|line| line.starts_with(&format!("{name} = ")));
                own.push_str(inherited.unwrap_or_else(|| panic!("{from} inherits {name}, which the workspace lacks")));
            }
            None if line.starts_with("name = ") => own.push_str(&format!("name = {package:?}")),
            None => own.push_str(line),
        }
        own.push('\n');
    }
    write(&to.join("Cargo.toml"), &own);
    copy_sources(&workspace().join(from).join("src"), &to.join("src"));
    copy_lock(to);
}

/// Copies vkog-plugin-api with changes: in a file, a text that must occur exactly once is replaced.
fn copy_api(to: &Path, changes: &[(&str, &str, &str)]) {
    let api = workspace().join("plugin-api");
    let mut files = files_in(&api.join("src"));
    files.push(api.join("Cargo.toml"));
    for file in files {
        let name = file.strip_prefix(&api).expect("it is in there").to_str().expect("our names are text");
        let mut text = std::fs::read_to_string(&file).expect("our sources are text");
        for (_, old, new) in changes.iter().filter(|(changed, ..)| *changed == name) {
            assert_eq!(text.matches(old).count(), 1, "{name} of plugin-api has {old:?} once");
            text = text.replace(old, new);
        }
        write(&to.join(name), &text);
    }
}

pub(crate) fn copy_sources(from: &Path, to: &Path) {
    for file in files_in(from) {
        let text = std::fs::read_to_string(&file).expect("our sources are text");
        write(&to.join(file.strip_prefix(from).expect("it is in there")), &text);
    }
}

/// The lock file of the workspace, so that cargo resolves no versions.
pub(crate) fn copy_lock(to: &Path) {
    let lock = std::fs::read_to_string(workspace().join("Cargo.lock")).expect("the workspace is locked");
    write(&to.join("Cargo.lock"), &lock);
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display())) {
        let path = entry.expect("a folder can be read to its end").path();
        if path.is_dir() { files.extend(files_in(&path)) } else { files.push(path) }
    }
    files
}

/// Writes a file, unless it is like that already: cargo builds again what has been written again. In one step, because
/// another process may be reading it.
fn write(file: &Path, text: &str) {
    if std::fs::read_to_string(file).is_ok_and(|there| there == text) {
        return;
    }
    let folder = file.parent().expect("a file is in a folder");
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| tempfile::NamedTempFile::new_in(folder))
        .and_then(|temporary| std::fs::write(temporary.path(), text).map(|()| temporary))
        .and_then(|temporary| temporary.persist(file).map_err(|error| error.error));
    written.unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
}

/// Faulty variants of a good library, by file name.
pub fn damaged(good: &Path, folder: &Path) -> BTreeMap<&'static str, PathBuf> {
    let library = std::fs::read(good).unwrap_or_else(|error| panic!("cannot read {}: {error}", good.display()));
    let mut other_machine = library.clone();
    if on_windows() {
        // Machine of a PE file's header, after its four letters: ARM64.
        let header = u32::from_le_bytes(library[0x3c..0x40].try_into().expect("four bytes")) as usize;
        other_machine[header + 4..header + 6].copy_from_slice(&0xaa64_u16.to_le_bytes());
    } else {
        // e_machine of an ELF header: AArch64.
        other_machine[18..20].copy_from_slice(&183_u16.to_le_bytes());
    }
    let upto = |percent: usize| library[..library.len() * percent / 100].to_vec();
    let files = [
        ("text", b"this is not a library\n".to_vec()),
        ("empty", Vec::new()),
        ("cut-10", upto(10)),
        ("cut-50", upto(50)),
        ("cut-90", upto(90)),
        // The table of sections is the last thing in the file; on Windows the names of symbols are.
        ("cut-last-byte", library[..library.len() - 1].to_vec()),
        ("aarch64", other_machine),
        ("bits-32", elf_32()),
        ("needs-more", needs_what_is_nowhere(&library)),
    ];
    only_ours(folder);
    files
        .into_iter()
        .map(|(name, data)| {
            let path = folder.join(as_library(&format!("lib{name}")));
            std::fs::write(&path, data).expect("a library can be written");
            only_ours(&path);
            (name, path)
        })
        .collect()
}

/// A 32-bit shared library for x86 with nothing in it: the header alone.
fn elf_32() -> Vec<u8> {
    let mut header = vec![0; 52];
    header[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put(16, 3); // e_type: shared object
    put(18, 3); // e_machine: 80386
    put(20, 1); // e_version
    put(40, 52); // e_ehsize
    put(42, 32); // e_phentsize
    put(46, 40); // e_shentsize
    header
}

/// The library that [`damaged`] has one need, and that no system has.
pub fn nowhere() -> &'static str {
    if on_windows() { "gone__.dll" } else { "libgone_.so.1" }
}

/// The same library, depending on another one that no system has.
fn needs_what_is_nowhere(library: &[u8]) -> Vec<u8> {
    // The library for unwinding on Linux, and the C library on Windows.
    let name = if on_windows() { "msvcrt.dll\0" } else { "libgcc_s.so.1\0" };
    let at = library.windows(name.len()).position(|window| window == name.as_bytes()).expect("every plugin needs it");
    let mut changed = library.to_vec();
    changed[at..at + nowhere().len()].copy_from_slice(nowhere().as_bytes());
    changed
}
