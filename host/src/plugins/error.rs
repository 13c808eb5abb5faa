//! Every way a plugin library can be wrong: one stable code and one sentence each.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a library is not a plugin of this host.
#[derive(Debug)]
pub struct LoadError {
    /// The library.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: LoadFault,
}

/// What is wrong with a library. [`code`](Self::code) names the variant for scripts.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadFault {
    /// The file, or a private copy of it, could not be read or written.
    Unreadable(io::Error),
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
    NotLoadable(libloading::Error),
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
}

impl LoadFault {
    /// A word that stays the same in every version, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::NotALibrary { .. } => "not-a-library",
            Self::CutOff { .. } => "cut-off",
            Self::WrongArchitecture { .. } => "wrong-architecture",
            Self::NotLoadable(_) => "not-loadable",
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
        }
    }
}

impl fmt::Display for LoadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "{error}; check that it exists and that this user may read it"),
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
            Self::NotLoadable(error) => {
                // What the linker said is the error's source.
                let said = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
                let said = said.replace('\n', " ");
                write!(f, "the system does not load it: {said}; install what it needs, or build it on this system")
            }
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
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot load {}: {} [{}]", self.path.display(), self.fault, self.fault.code())
    }
}

impl std::error::Error for LoadError {}
