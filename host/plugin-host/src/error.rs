//! Every way a plugin library can be wrong: one stable code and one sentence each.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::one_line;

use crate::sha256::Sha256;
use crate::trust::LIBRARY_MAX;

/// Why a library is not a plugin of this host.
#[derive(Debug)]
pub struct LoadError {
    /// The library.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: LoadFault,
}

/// Which part of a library's place it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The library itself.
    Library,
    /// The folder it is in.
    Folder,
    /// A folder around that one.
    Ancestor,
}

/// What is wrong with a library. [`code`](Self::code) names the variant for scripts.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadFault {
    /// The file, or a folder on the way to it, could not be read.
    Unreadable(io::Error),
    /// It is a folder, a pipe, a device.
    NotAFile {
        /// Which of them.
        found: &'static str,
    },
    /// It is larger than what is read.
    TooLarge {
        /// How long it is, in bytes, as far as that was read.
        len: u64,
    },
    /// It is a symbolic link to another folder.
    SymlinkOut {
        /// What it leads to.
        to: PathBuf,
    },
    /// Others than the operator can write it, or put something in its place.
    Writable {
        /// What they can write.
        path: PathBuf,
        /// What that is of the library.
        part: Part,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs neither to the user of the host nor to root.
    WrongOwner {
        /// What belongs to somebody else.
        path: PathBuf,
        /// What that is of the library.
        part: Part,
        /// The owner's number.
        owner: u32,
        /// The number of the user of the host.
        user: u32,
    },
    /// It is not the library that the configuration pins.
    WrongSha256 {
        /// The plugin's name.
        name: String,
        /// The hash in the configuration.
        pinned: Sha256,
        /// The hash of the library.
        found: Sha256,
    },
    /// It has the dynamic linker look for other libraries where anybody may put them.
    SearchPath {
        /// The entry of its dynamic section.
        entry: &'static str,
        /// What that says.
        says: String,
    },
    /// It needs a library that the dynamic linker would look for in the current directory.
    LibraryPath {
        /// That library.
        needed: String,
        /// What LD_LIBRARY_PATH is.
        folders: String,
    },
    /// The private copy of it could not be made.
    NoCopy {
        /// Where.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Nothing may be run from where private copies are made.
    NoExec {
        /// Where that is.
        folder: PathBuf,
    },
    /// It is not a shared library of any system.
    NotALibrary {
        /// How it begins.
        found: String,
    },
    /// A part of the file that its own tables name is missing.
    CutOff {
        /// What is missing.
        missing: &'static str,
        /// How long the file is, in bytes.
        len: u64,
    },
    /// It was built for another processor or another system.
    WrongArchitecture {
        /// What it is for.
        theirs: String,
        /// What this host runs on.
        ours: String,
    },
    /// The system's dynamic linker refused it.
    NotLoadable {
        /// What that said.
        said: String,
        /// The library that it needs and that is not there, where that is not said.
        missing: Option<String>,
    },
    /// It wants room in the static thread-local storage, and the process has none left.
    StaticTls {
        /// What the linker said.
        said: String,
    },
    /// What it says of its plugin cannot be that.
    BadName {
        /// The name or the version.
        what: &'static str,
        /// What it says.
        says: String,
    },
    /// It is a library, but exports no plugin.
    NoPlugin,
    /// It exports a plugin through another version of abi_stable.
    OtherAbi(String),
    /// It was built with another major version of vkog-plugin-api.
    OtherMajor {
        /// The version it was built with.
        theirs: String,
        /// The version this host has.
        ours: String,
    },
    /// The types at the boundary are laid out differently.
    OtherLayout(String),
    /// A panic of it would end the host.
    PanicAbort {
        /// The plugin's name.
        name: String,
    },
    /// It needs a hook that this host does not know.
    MissingHook {
        /// The plugin's name.
        name: String,
        /// The hook's number.
        id: u32,
        /// The version of vkog-plugin-api it was built with.
        theirs: String,
    },
    /// Another library has a plugin of the same name.
    DuplicateName {
        /// The plugin's name.
        name: String,
        /// The library that was loaded first.
        first: PathBuf,
    },
    /// Its table of the configuration cannot be read.
    BadSettings {
        /// The plugin's name.
        name: String,
        /// Why.
        said: String,
    },
    /// `create` returned an error.
    CreateFailed {
        /// The plugin's name.
        name: String,
        /// The error.
        said: String,
    },
    /// `create`, or the constructor of the module, panicked.
    CreatePanicked {
        /// The plugin's name.
        name: String,
        /// What the panic said.
        said: String,
    },
    /// `start` returned an error.
    StartFailed {
        /// The plugin's name.
        name: String,
        /// The error.
        said: String,
    },
    /// `start` panicked.
    StartPanicked {
        /// The plugin's name.
        name: String,
        /// What the panic said.
        said: String,
    },
    /// At a reload, its code did not return in time.
    NoReturn {
        /// What was called.
        place: &'static str,
        /// How long it had.
        patience: Duration,
    },
}

impl LoadFault {
    /// Why the linker refused a library.
    pub(crate) fn of_linker(error: libloading::Error, missing: Option<String>) -> Self {
        // What the linker said is the error's source.
        let said = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        // "static TLS" is what glibc says, the other one musl.
        if said.contains("static TLS") || said.contains("initial-exec TLS") {
            return Self::StaticTls { said };
        }
        Self::NotLoadable { said, missing }
    }

    /// The name of the plugin, where the library has told it or the configuration stands for it.
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

    /// A word that stays the same in every version, for scripts and tests.
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
            Self::OtherAbi(_) => "other-abi",
            Self::OtherMajor { .. } => "other-major",
            Self::OtherLayout(_) => "other-layout",
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
    /// One line, whatever a library or a plugin says of itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sentence = String::new();
        self.write(&mut sentence)?;
        f.write_str(&one_line(&sentence))
    }
}

impl LoadFault {
    fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "{error}; check that it exists and that this user may read it"),
            Self::NotAFile { found } => write!(f, "it is {found} and not a file; put the library itself there"),
            Self::TooLarge { len } => write!(
                f,
                "it has {len} bytes or more, and at most {LIBRARY_MAX} are read; put the plugin's library there, or strip it \
                 of its debug information"
            ),
            Self::SymlinkOut { to } => write!(
                f,
                "it is a link out of its folder, to {}; put a copy of that there, or name that folder",
                to.display()
            ),
            Self::Writable { path, part, mode } => {
                let (path, who) = (path.display(), if mode & 0o002 == 0 { "its group" } else { "everybody" });
                match part {
                    Part::Library => write!(
                        f,
                        "{who} can write it (mode {mode:04o}); make sure that it is yours still, then chmod go-w {path}"
                    ),
                    Part::Folder => write!(
                        f,
                        "{who} can put libraries into {path} (mode {mode:04o}); make sure what is in it, then \
                         chmod go-w {path}"
                    ),
                    Part::Ancestor => write!(
                        f,
                        "{who} can rename what is in {path} (mode {mode:04o}), and so exchange it; chmod o-w \
                         {path}, or use another folder"
                    ),
                }
            }
            Self::WrongOwner { path, part, owner, user } => {
                let what = if *part == Part::Library { "it" } else { "its folder" };
                write!(
                    f,
                    "{what} belongs to user {owner}, who may change it, and not to root or user {user}, who runs the host; \
                     make sure what it is, then chown {user} {}",
                    path.display()
                )
            }
            Self::WrongSha256 { name, pinned, found } => write!(
                f,
                "its sha256 is {found}, and [plugins.{name}] pins {pinned}; put that library back, or pin this one if it \
                 is the one you mean"
            ),
            Self::SearchPath { entry, says } => write!(
                f,
                "its {entry} is \"{says}\", which leads the linker to where anybody may put a library; link it without, \
                 or with an absolute path"
            ),
            Self::LibraryPath { needed, folders } => write!(
                f,
                "it needs {needed}, and LD_LIBRARY_PATH, which is \"{folders}\", has that looked for in the current \
                 directory; leave only absolute folders in LD_LIBRARY_PATH, and nothing empty between its colons"
            ),
            Self::NoCopy { folder, error } => write!(
                f,
                "no private copy of it can be made in {}: {error}; make room there, or set {} to another folder",
                folder.display(),
                if cfg!(windows) { "TMP" } else { "TMPDIR" }
            ),
            Self::NoExec { folder } => write!(
                f,
                "{}, where the private copy of it is made, is mounted noexec; set TMPDIR to a folder that is not",
                folder.display()
            ),
            Self::NotALibrary { found } => write!(
                f,
                "it is not a shared library, it begins with {found}; build the plugin with crate-type = [\"cdylib\"]"
            ),
            Self::CutOff { missing, len } => {
                write!(f, "it is cut off, its {missing} would lie beyond its {len} bytes; copy it again")
            }
            Self::WrongArchitecture { theirs, ours } => {
                write!(f, "it is built for {theirs}, this host runs on {ours}; build it for {ours}")
            }
            Self::NotLoadable { said, missing } => {
                let missing = missing.as_ref().map_or_else(String::new, |missing| format!("{missing}: "));
                write!(
                    f,
                    "the system does not load it: {missing}{said}; install what it needs, or build it on this system"
                )
            }
            Self::StaticTls { said } => write!(
                f,
                "it uses static thread-local storage, as allocators do, and the process has none left: {said}; build it \
                 without (tikv-jemallocator: feature disable_initial_exec_tls; mimalloc: feature local_dynamic_tls), or \
                 restart the server if the library loaded before"
            ),
            Self::BadName { what, says } => write!(
                f,
                "the {what} of its plugin is \"{says}\"; a {what} is at most 64 ASCII letters, digits and {}",
                if *what == "name" { "- or _" } else { "., + or -" }
            ),
            Self::NoPlugin => write!(f, "no plugin is in it; add export_plugin!(YourType) to its lib.rs"),
            Self::OtherAbi(said) => write!(
                f,
                "its plugin was exported with an incompatible abi_stable ({said}); rebuild it with abi_stable 0.11"
            ),
            Self::OtherMajor { theirs, ours } => {
                let major = ours.split('.').next().unwrap_or(ours);
                write!(
                    f,
                    "it was built with vkog-plugin-api {theirs}, this host has {ours}; rebuild it with {major}.x, or use a \
                     host of its version"
                )
            }
            Self::OtherLayout(said) => write!(
                f,
                "the types at its boundary differ from this host's ({said}); rebuild it with an unchanged vkog-plugin-api"
            ),
            Self::PanicAbort { name } => write!(
                f,
                "plugin \"{name}\" was built with panic = \"abort\", so that its panic would end this host; rebuild it with \
                 panic = \"unwind\""
            ),
            Self::MissingHook { name, id, theirs } => write!(
                f,
                "plugin \"{name}\" requires hook {id} of vkog-plugin-api {theirs}, which this host does not have; use a \
                 newer host, or an older version of the plugin"
            ),
            Self::DuplicateName { name, first } => write!(
                f,
                "its plugin is called \"{name}\" like that of {}; remove one of the two, or rename its crate",
                first.display()
            ),
            Self::BadSettings { name, said } => {
                write!(f, "bad settings for plugin \"{name}\": {said}; correct [plugins.{name}] in the configuration")
            }
            Self::CreateFailed { name, said } => {
                write!(f, "plugin \"{name}\" could not be created: {said}; correct that or remove the library")
            }
            Self::CreatePanicked { name, said } => {
                write!(f, "plugin \"{name}\" panicked while it was created: {said}; report it to its author")
            }
            Self::StartFailed { name, said } => {
                write!(f, "plugin \"{name}\" did not start: {said}; correct that or remove the library")
            }
            Self::StartPanicked { name, said } => {
                write!(f, "plugin \"{name}\" panicked while it started: {said}; report it to its author")
            }
            Self::NoReturn { place, patience } => write!(
                f,
                "its {place} did not return within {patience:?} and was abandoned; reload again when what it waits for is \
                 there, or report it to its author"
            ),
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot load {}: {} [{}]", self.path.display(), self.fault, self.fault.code())
    }
}

impl std::error::Error for LoadError {}
