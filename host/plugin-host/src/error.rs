//! The errors of loading a plugin: each has a stable code, and one sentence as its text.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::chain::{PluginError, RouteError, one_line};
use crate::glibc::GlibcVersion;
use crate::sha256::Sha256;
use crate::trust::LIBRARY_MAX;

/// A plugin library cannot be loaded. Its text is one line, for any text of the library or the plugin.
#[derive(Debug, Error)]
#[error("cannot load {path}: {} [{}]", fault.line(), fault.code())]
pub struct LoadError {
    /// The library.
    pub path: PathBuf,
    /// The mistake.
    #[source]
    pub fault: LoadFault,
}

impl LoadError {
    /// The error of a plugin that did not start.
    pub(crate) fn start(path: PathBuf, name: String, error: PluginError) -> Self {
        let fault = match error {
            PluginError::Panicked { .. } => LoadFault::StartPanicked { name, error },
            _ => LoadFault::StartFailed { name, error },
        };
        Self { path, fault }
    }
}

/// Why a file in the plugin folder was skipped, and what the operator can do.
pub const SKIPPED: &str = "it exports no plugin; move it to another folder";

/// The part of a path that a check of owners and permissions is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The library itself.
    Library,
    /// The folder that contains the library.
    Folder,
    /// A folder above that one.
    Ancestor,
}

/// The reason why a library cannot be loaded. [`code`](Self::code) names the variant for scripts.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadFault {
    /// The file, or a folder on its path, cannot be read.
    #[error("{0}; check that it exists and that this user may read it")]
    Unreadable(#[source] io::Error),
    /// The path leads to a folder, a pipe, a socket or a device.
    #[error("it is {found} and not a file; replace it with the library")]
    NotAFile {
        /// Which of these.
        found: &'static str,
    },
    /// The file is larger than the maximum.
    #[error(
        "it has {len} bytes or more, and the maximum is {LIBRARY_MAX}; make sure that it is the library of a plugin, \
         or strip its debug information"
    )]
    TooLarge {
        /// The size in bytes, as far as the file was read.
        len: u64,
    },
    /// The path is a symbolic link into another folder.
    #[error("it is a symbolic link out of its folder, to {to}; replace it with a copy, or use that folder")]
    SymlinkOut {
        /// The target.
        to: PathBuf,
    },
    /// Another user can modify or replace the library.
    #[error("{}", part.writable(path, *mode))]
    Writable {
        /// The file or folder that the user can write.
        path: PathBuf,
        /// The part of the path.
        part: Part,
        /// Its mode.
        mode: u32,
    },
    /// The owner is neither root nor the user of this process.
    #[error(
        "{} belongs to user {owner}, who may change it, and not to root or to user {user} of the server; check it, \
         then run chown {user} {path}",
        if *part == Part::Library { "it" } else { "its folder" }
    )]
    WrongOwner {
        /// The file or folder.
        path: PathBuf,
        /// The part of the path.
        part: Part,
        /// The user id of the owner.
        owner: u32,
        /// The user id of this process.
        user: u32,
    },
    /// The hash differs from the pin in the configuration.
    #[error(
        "its sha256 is {found}, and [plugins.{name}] pins {pinned}; restore that library, or pin this one if you \
         trust it"
    )]
    WrongSha256 {
        /// The name of the plugin.
        name: String,
        /// The pinned hash.
        pinned: Sha256,
        /// The hash of the library.
        found: Sha256,
    },
    /// The library makes the dynamic linker search for other libraries in a relative path.
    #[error(
        "its {entry} is \"{value}\", where other users may put a library; link it without, or with an absolute path"
    )]
    SearchPath {
        /// The entry of its dynamic section.
        entry: &'static str,
        /// The value of the entry.
        value: String,
    },
    /// The dynamic linker would search the current directory for a library that this one needs.
    #[error(
        "it needs {needed}, and LD_LIBRARY_PATH, which is \"{folders}\", makes the linker search the current \
         directory; use only absolute, non-empty folders in LD_LIBRARY_PATH"
    )]
    LibraryPath {
        /// The needed library.
        needed: String,
        /// The value of LD_LIBRARY_PATH.
        folders: String,
    },
    /// The private copy cannot be written.
    #[error(
        "its private copy cannot be created in {folder}: {error}; free space there, or set {} to another folder",
        if cfg!(windows) { "TMP" } else { "TMPDIR" }
    )]
    NoCopy {
        /// The folder for private copies.
        folder: PathBuf,
        /// The error.
        #[source]
        error: io::Error,
    },
    /// The folder for private copies is mounted noexec.
    #[error("{folder}, the folder of its private copy, is mounted noexec; set TMPDIR to another folder")]
    NoExec {
        /// The folder.
        folder: PathBuf,
    },
    /// The file is not a shared library of any system.
    #[error("it is not a shared library, it begins with {found}; build the plugin with crate-type = [\"cdylib\"]")]
    NotALibrary {
        /// The first bytes.
        found: String,
    },
    /// The file is shorter than its own tables say.
    #[error("it is truncated: its {missing} would lie beyond its {len} bytes; copy it again")]
    CutOff {
        /// The missing part.
        missing: &'static str,
        /// The size of the file in bytes.
        len: u64,
    },
    /// The library is for another processor or another system.
    #[error("it is built for {theirs}, this server runs on {ours}; build it for {ours}")]
    WrongArchitecture {
        /// The target of the library.
        theirs: String,
        /// The target of this server.
        ours: String,
    },
    /// The library needs symbols of a newer glibc.
    #[error("it needs glibc {needed}, this system has {ours}; build it on a system with glibc {ours} or older")]
    NewerGlibc {
        /// The version that the library needs.
        needed: GlibcVersion,
        /// The version of this system.
        ours: GlibcVersion,
    },
    /// The dynamic linker refused the library.
    #[error(
        "the system cannot load it: {}{}; install the libraries it needs, or build it on this system",
        missing.as_ref().map_or_else(String::new, |missing| format!("{missing}: ")),
        linker_text(error)
    )]
    NotLoadable {
        /// The error of the linker.
        #[source]
        error: libloading::Error,
        /// The missing library that it needs, if the error does not name it.
        missing: Option<String>,
    },
    /// The library uses static thread-local storage, and the process has none left.
    #[error(
        "it uses static thread-local storage, as allocators do, and the process has none left: {}; build it without \
         (tikv-jemallocator: feature disable_initial_exec_tls; mimalloc: feature local_dynamic_tls), or restart the server if \
         the library loaded before",
        linker_text(error)
    )]
    StaticTls {
        /// The error of the linker.
        #[source]
        error: libloading::Error,
    },
    /// The name or the version of its plugin is malformed.
    #[error(
        "the {what} of its plugin is \"{value}\"; use at most 64 ASCII letters, digits and {}",
        if *what == "name" { "- or _" } else { "., + or -" }
    )]
    BadName {
        /// Which: `name` or `version`.
        what: &'static str,
        /// The malformed text.
        value: String,
    },
    /// The library exports no plugin.
    #[error("it exports no plugin; add export_plugin!(YourType) to its lib.rs")]
    NoPlugin,
    /// The plugin was exported by an incompatible version of abi_stable.
    #[error("its plugin was exported with an incompatible abi_stable ({report}); rebuild it with abi_stable 0.11")]
    OtherAbi {
        /// The report of abi_stable, as one line.
        report: String,
    },
    /// The plugin was built with another major version of vkog-plugin-api.
    #[error(
        "it was built with vkog-plugin-api {theirs}, this server has {ours}; rebuild it with {}.x, or use a server of its \
         version",
        ours.split('.').next().unwrap_or(ours)
    )]
    OtherMajor {
        /// The version that it was built with.
        theirs: String,
        /// The version of this server.
        ours: String,
    },
    /// The types at the boundary have another layout.
    #[error(
        "the types at its boundary differ from those of this server ({report}); rebuild it with an unchanged vkog-plugin-api"
    )]
    OtherLayout {
        /// The report of abi_stable, as one line.
        report: String,
    },
    /// The plugin aborts the process when it panics.
    #[error(
        "plugin \"{name}\" was built with panic = \"abort\", so that its panic would end this server; rebuild it with \
         panic = \"unwind\""
    )]
    PanicAbort {
        /// The name of the plugin.
        name: String,
    },
    /// The plugin requires a hook that this server does not have.
    #[error(
        "plugin \"{name}\" requires the hook {hook} of vkog-plugin-api {theirs}, which this server does not have; use a newer \
         server, or an older version of the plugin"
    )]
    MissingHook {
        /// The name of the plugin.
        name: String,
        /// The name of the hook.
        hook: String,
        /// The version of vkog-plugin-api that it was built with.
        theirs: String,
    },
    /// A route of the plugin is malformed, or two are the same.
    #[error("plugin \"{name}\" has a route that cannot be served: {error}")]
    BadRoute {
        /// The name of the plugin.
        name: String,
        /// The mistake.
        #[source]
        error: RouteError,
    },
    /// Another library contains a plugin with the same name.
    #[error(
        "its plugin has the name \"{name}\", like the plugin of {first}; remove one of the two, or rename its \
        crate"
    )]
    DuplicateName {
        /// The name of the plugin.
        name: String,
        /// The library that was loaded first.
        first: PathBuf,
    },
    /// The plugin rejected its table in the configuration.
    #[error("bad settings for plugin \"{name}\": {error}; correct [plugins.{name}] in the file of --config")]
    BadSettings {
        /// The name of the plugin.
        name: String,
        /// The error of the plugin.
        #[source]
        error: PluginError,
    },
    /// `create` returned an error.
    #[error("plugin \"{name}\" could not be created: {error}; fix the cause, or remove the library")]
    CreateFailed {
        /// The name of the plugin.
        name: String,
        /// The error of the plugin.
        #[source]
        error: PluginError,
    },
    /// `create`, or the constructor of the module, panicked.
    #[error("plugin \"{name}\" panicked while it was created: {error}; report it to its author")]
    CreatePanicked {
        /// The name of the plugin.
        name: String,
        /// The panic.
        #[source]
        error: PluginError,
    },
    /// `start` returned an error.
    #[error("plugin \"{name}\" did not start: {error}; fix the cause, or remove the library")]
    StartFailed {
        /// The name of the plugin.
        name: String,
        /// The error of the plugin.
        #[source]
        error: PluginError,
    },
    /// `start` panicked.
    #[error("plugin \"{name}\" panicked while it started: {error}; report it to its author")]
    StartPanicked {
        /// The name of the plugin.
        name: String,
        /// The panic.
        #[source]
        error: PluginError,
    },
    /// The plugin is the backend of the open store, which cannot change it.
    #[error(
        "plugin \"{name}\" is the backend of the open store and is not replaced; restart the server to use the new library \
         or settings"
    )]
    BackendInUse {
        /// The name of the plugin.
        name: String,
    },
    /// The configuration requires the plugin, and its library is gone at a reload.
    #[error("[plugins.{name}] requires it, and its library is gone; add the library again, or set required = false")]
    Required {
        /// The name of the plugin.
        name: String,
    },
    /// The configuration requires the plugin, and its library contains another one at a reload.
    #[error(
        "[plugins.{name}] requires \"{name}\", and this library now contains the plugin \"{other}\"; put the library of \"{name}\" \
         back, or set required = false; give that of \"{other}\" another file name"
    )]
    OtherPlugin {
        /// The name of the plugin.
        name: String,
        /// The name of the plugin that the library contains.
        other: String,
    },
    /// A function of the plugin did not return in time during a reload.
    #[error(
        "its {function} did not return within {timeout:?} and was abandoned; reload again later, or report it to its \
         author"
    )]
    NoReturn {
        /// The function.
        function: &'static str,
        /// The timeout.
        timeout: Duration,
    },
}

impl LoadFault {
    /// Returns the fault for an error of the dynamic linker.
    pub(crate) fn of_linker(error: libloading::Error, missing: Option<String>) -> Self {
        let text = linker_text(&error);
        // The text of glibc and that of musl.
        if text.contains("static TLS") || text.contains("initial-exec TLS") {
            return Self::StaticTls { error };
        }
        Self::NotLoadable { error, missing }
    }

    /// Returns the message as one line, for any text of the library or the plugin.
    pub fn line(&self) -> String {
        one_line(&self.to_string()).into_owned()
    }

    /// Returns the name of the plugin, if it is known from the library or from the configuration.
    pub fn plugin(&self) -> Option<&str> {
        match self {
            Self::WrongSha256 { name, .. }
            | Self::PanicAbort { name }
            | Self::MissingHook { name, .. }
            | Self::BadRoute { name, .. }
            | Self::DuplicateName { name, .. }
            | Self::BadSettings { name, .. }
            | Self::CreateFailed { name, .. }
            | Self::CreatePanicked { name, .. }
            | Self::StartFailed { name, .. }
            | Self::StartPanicked { name, .. }
            | Self::BackendInUse { name }
            | Self::Required { name }
            | Self::OtherPlugin { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Returns a code for scripts and tests, which is stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::NotAFile { .. } => "not-a-file",
            Self::TooLarge { .. } => "too-large",
            Self::SymlinkOut { .. } => "symlink-out",
            Self::Writable { part: Part::Library, mode, .. } if mode & 0o002 != 0 => "world-writable",
            Self::Writable { part: Part::Library, .. } => "group-writable",
            Self::Writable { part: Part::Folder, .. } => "folder-writable",
            Self::Writable { part: Part::Ancestor, .. } => "parent-writable",
            Self::WrongOwner { part: Part::Library, .. } => "wrong-owner",
            Self::WrongOwner { .. } => "folder-owner",
            Self::WrongSha256 { .. } => "wrong-sha256",
            Self::SearchPath { .. } => "search-path",
            Self::LibraryPath { .. } => "library-path",
            Self::NoCopy { .. } => "no-copy",
            Self::NoExec { .. } => "no-exec",
            Self::NotALibrary { .. } => "not-a-library",
            Self::CutOff { .. } => "cut-off",
            Self::WrongArchitecture { .. } => "wrong-architecture",
            Self::NewerGlibc { .. } => "newer-glibc",
            Self::NotLoadable { .. } => "not-loadable",
            Self::StaticTls { .. } => "static-tls",
            Self::BadName { .. } => "bad-name",
            Self::NoPlugin => "no-plugin",
            Self::OtherAbi { .. } => "other-abi",
            Self::OtherMajor { .. } => "other-major",
            Self::OtherLayout { .. } => "other-layout",
            Self::PanicAbort { .. } => "panic-abort",
            Self::MissingHook { .. } => "missing-hook",
            Self::BadRoute { .. } => "bad-route",
            Self::DuplicateName { .. } => "duplicate-name",
            Self::BadSettings { .. } => "bad-settings",
            Self::CreateFailed { .. } => "create-failed",
            Self::CreatePanicked { .. } => "create-panicked",
            Self::StartFailed { .. } => "start-failed",
            Self::StartPanicked { .. } => "start-panicked",
            Self::BackendInUse { .. } => "backend-in-use",
            Self::Required { .. } | Self::OtherPlugin { .. } => "required",
            Self::NoReturn { .. } => "no-return",
        }
    }
}

impl Part {
    /// The message about a part that another user can write.
    fn writable(self, path: &Path, mode: u32) -> String {
        let (path, who) = (path.display(), if mode & 0o002 == 0 { "its group" } else { "everybody" });
        match self {
            Self::Library => {
                format!(
                    "{who} can write it (mode {mode:04o}); make sure that it is unchanged, then run chmod go-w {path}"
                )
            }
            Self::Folder => format!(
                "{who} can put libraries into {path} (mode {mode:04o}); check its contents, then run chmod go-w {path}"
            ),
            Self::Ancestor => format!(
                "{who} can rename the contents of {path} (mode {mode:04o}) and so replace the library; run chmod o-w \
                 {path}, or use another folder"
            ),
        }
    }
}

/// Returns the text of the dynamic linker, which is the source of the error, if there is one.
fn linker_text(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_others_can_write_is_reported_with_who_can() {
        for (part, mode, code, words) in [
            (Part::Library, 0o664, "group-writable", "its group can write it (mode 0664)"),
            (Part::Library, 0o666, "world-writable", "everybody can write it (mode 0666)"),
            (Part::Library, 0o606, "world-writable", "everybody can write it (mode 0606)"),
            (Part::Folder, 0o1775, "folder-writable", "its group can put libraries into /p (mode 1775)"),
            (Part::Folder, 0o757, "folder-writable", "everybody can put libraries into /p (mode 0757)"),
            (Part::Ancestor, 0o757, "parent-writable", "everybody can rename the contents of /p (mode 0757)"),
        ] {
            let fault = LoadFault::Writable { path: "/p".into(), part, mode };
            assert!(fault.code() == code && fault.line().starts_with(words), "{mode:o}: [{}] {fault}", fault.code());
        }
    }

    #[test]
    fn a_start_that_panics_has_another_code_than_one_that_fails() {
        let message = "two\nlines".to_owned();
        for (error, code) in [
            (PluginError::Panicked { message: message.clone() }, "start-panicked"),
            (PluginError::Returned { message }, "start-failed"),
        ] {
            let error = LoadError::start("/p".into(), "x".to_owned(), error);
            assert_eq!((error.fault.code(), error.fault.plugin()), (code, Some("x")));
            assert!(error.to_string().ends_with(&format!("[{code}]")) && !error.to_string().contains('\n'), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_library_that_needs_static_tls_has_a_code_of_its_own() {
        for (text, code) in [
            (c"/p: cannot allocate memory in static TLS block", "static-tls"),
            (c"/p: initial-exec TLS resolves to dynamic definition", "static-tls"),
            (c"libx.so: cannot open shared object file", "not-loadable"),
        ] {
            let fault = LoadFault::of_linker(libloading::Error::DlOpen { desc: text.into() }, None);
            let text = text.to_string_lossy();
            assert_eq!(fault.code(), code, "{text}");
            assert!(code == "static-tls" || fault.line().contains(&*text), "{fault}");
        }
    }
}
