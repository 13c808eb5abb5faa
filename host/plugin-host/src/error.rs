//! The errors of loading a plugin: each has a stable code, and one sentence in message.rs.

mod message;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::chain::{PluginError, one_line};
use crate::sha256::Sha256;

/// A plugin library cannot be loaded.
#[derive(Debug)]
pub struct LoadError {
    /// The library.
    pub path: PathBuf,
    /// The reason.
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
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadFault {
    /// The file, or a folder on its path, cannot be read.
    Unreadable(io::Error),
    /// The path leads to a folder, a pipe, a socket or a device.
    NotAFile {
        /// Which of these.
        found: &'static str,
    },
    /// The file is larger than the maximum.
    TooLarge {
        /// The size in bytes, as far as the file was read.
        len: u64,
    },
    /// The path is a symbolic link into another folder.
    SymlinkOut {
        /// The target.
        to: PathBuf,
    },
    /// Another user can modify or replace the library.
    Writable {
        /// The file or folder that the user can write.
        path: PathBuf,
        /// The part of the path.
        part: Part,
        /// Its mode.
        mode: u32,
    },
    /// The owner is neither root nor the user of this process.
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
    WrongSha256 {
        /// The name of the plugin.
        name: String,
        /// The pinned hash.
        pinned: Sha256,
        /// The hash of the library.
        found: Sha256,
    },
    /// The library makes the dynamic linker search for other libraries in a relative path.
    SearchPath {
        /// The entry of its dynamic section.
        entry: &'static str,
        /// The value of the entry.
        value: String,
    },
    /// The dynamic linker would search the current directory for a library that this one needs.
    LibraryPath {
        /// The needed library.
        needed: String,
        /// The value of LD_LIBRARY_PATH.
        folders: String,
    },
    /// The private copy cannot be written.
    NoCopy {
        /// The folder for private copies.
        folder: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The folder for private copies is mounted noexec.
    NoExec {
        /// The folder.
        folder: PathBuf,
    },
    /// The file is not a shared library of any system.
    NotALibrary {
        /// The first bytes.
        found: String,
    },
    /// The file is shorter than its own tables say.
    CutOff {
        /// The missing part.
        missing: &'static str,
        /// The size of the file in bytes.
        len: u64,
    },
    /// The library is for another processor or another system.
    WrongArchitecture {
        /// The target of the library.
        theirs: String,
        /// The target of this server.
        ours: String,
    },
    /// The dynamic linker refused the library.
    NotLoadable {
        /// The error of the linker.
        error: libloading::Error,
        /// The missing library that it needs, if the error does not name it.
        missing: Option<String>,
    },
    /// The library uses static thread-local storage, and the process has none left.
    StaticTls {
        /// The error of the linker.
        error: libloading::Error,
    },
    /// The name or the version of its plugin is malformed.
    BadName {
        /// Which: `name` or `version`.
        what: &'static str,
        /// The malformed text.
        value: String,
    },
    /// The library exports no plugin.
    NoPlugin,
    /// The plugin was exported by an incompatible version of abi_stable.
    OtherAbi {
        /// The report of abi_stable, as one line.
        report: String,
    },
    /// The plugin was built with another major version of vkog-plugin-api.
    OtherMajor {
        /// The version that it was built with.
        theirs: String,
        /// The version of this server.
        ours: String,
    },
    /// The types at the boundary have another layout.
    OtherLayout {
        /// The report of abi_stable, as one line.
        report: String,
    },
    /// The plugin aborts the process when it panics.
    PanicAbort {
        /// The name of the plugin.
        name: String,
    },
    /// The plugin requires a hook that this server does not have.
    MissingHook {
        /// The name of the plugin.
        name: String,
        /// The id of the hook.
        id: u32,
        /// The version of vkog-plugin-api that it was built with.
        theirs: String,
    },
    /// Another library contains a plugin with the same name.
    DuplicateName {
        /// The name of the plugin.
        name: String,
        /// The library that was loaded first.
        first: PathBuf,
    },
    /// The plugin rejected its table in the configuration.
    BadSettings {
        /// The name of the plugin.
        name: String,
        /// The error of the plugin.
        error: PluginError,
    },
    /// `create` returned an error.
    CreateFailed {
        /// The name of the plugin.
        name: String,
        /// The error of the plugin.
        error: PluginError,
    },
    /// `create`, or the constructor of the module, panicked.
    CreatePanicked {
        /// The name of the plugin.
        name: String,
        /// The panic.
        error: PluginError,
    },
    /// `start` returned an error.
    StartFailed {
        /// The name of the plugin.
        name: String,
        /// The error of the plugin.
        error: PluginError,
    },
    /// `start` panicked.
    StartPanicked {
        /// The name of the plugin.
        name: String,
        /// The panic.
        error: PluginError,
    },
    /// A function of the plugin did not return in time during a reload.
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

    /// Returns the name of the plugin, if it is known from the library or from the configuration.
    pub fn plugin(&self) -> Option<&str> {
        match self {
            Self::WrongSha256 { name, .. }
            | Self::PanicAbort { name }
            | Self::MissingHook { name, .. }
            | Self::DuplicateName { name, .. }
            | Self::BadSettings { name, .. }
            | Self::CreateFailed { name, .. }
            | Self::CreatePanicked { name, .. }
            | Self::StartFailed { name, .. }
            | Self::StartPanicked { name, .. } => Some(name),
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
            Self::NotLoadable { .. } => "not-loadable",
            Self::StaticTls { .. } => "static-tls",
            Self::BadName { .. } => "bad-name",
            Self::NoPlugin => "no-plugin",
            Self::OtherAbi { .. } => "other-abi",
            Self::OtherMajor { .. } => "other-major",
            Self::OtherLayout { .. } => "other-layout",
            Self::PanicAbort { .. } => "panic-abort",
            Self::MissingHook { .. } => "missing-hook",
            Self::DuplicateName { .. } => "duplicate-name",
            Self::BadSettings { .. } => "bad-settings",
            Self::CreateFailed { .. } => "create-failed",
            Self::CreatePanicked { .. } => "create-panicked",
            Self::StartFailed { .. } => "start-failed",
            Self::StartPanicked { .. } => "start-panicked",
            Self::NoReturn { .. } => "no-return",
        }
    }
}

impl fmt::Display for LoadFault {
    /// Writes one line, for any text of the library or the plugin.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sentence = String::new();
        self.write(&mut sentence)?;
        f.write_str(&one_line(&sentence))
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot load {}: {} [{}]", self.path.display(), self.fault, self.fault.code())
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.fault.source()
    }
}

impl Error for LoadFault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreadable(error) | Self::NoCopy { error, .. } => Some(error),
            Self::NotLoadable { error, .. } | Self::StaticTls { error } => Some(error),
            Self::BadSettings { error, .. }
            | Self::CreateFailed { error, .. }
            | Self::CreatePanicked { error, .. }
            | Self::StartFailed { error, .. }
            | Self::StartPanicked { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// Returns the text of the dynamic linker, which is the source of the error, if there is one.
fn linker_text(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
