//! The sentence of each load error: one lower-case clause with the fact and the way out.

use std::fmt;

use super::{LoadFault, Part, linker_text};
use crate::trust::LIBRARY_MAX;

impl LoadFault {
    pub(super) fn write(&self, f: &mut impl fmt::Write) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "{error}; check that it exists and that this user may read it"),
            Self::NotAFile { found } => write!(f, "it is {found} and not a file; replace it with the library"),
            Self::TooLarge { len } => write!(
                f,
                "it has {len} bytes or more, and the maximum is {LIBRARY_MAX}; make sure that it is the library of a plugin, \
                 or strip its debug information"
            ),
            Self::SymlinkOut { to } => write!(
                f,
                "it is a symbolic link out of its folder, to {}; replace it with a copy, or use that folder",
                to.display()
            ),
            Self::Writable { path, part, mode } => {
                let (path, who) = (path.display(), if mode & 0o002 == 0 { "its group" } else { "everybody" });
                match part {
                    Part::Library => write!(
                        f,
                        "{who} can write it (mode {mode:04o}); make sure that it is unchanged, then run chmod go-w {path}"
                    ),
                    Part::Folder => write!(
                        f,
                        "{who} can put libraries into {path} (mode {mode:04o}); check its contents, then run \
                         chmod go-w {path}"
                    ),
                    Part::Ancestor => write!(
                        f,
                        "{who} can rename the contents of {path} (mode {mode:04o}) and so replace the library; run \
                         chmod o-w {path}, or use another folder"
                    ),
                }
            }
            Self::WrongOwner { path, part, owner, user } => {
                let what = if *part == Part::Library { "it" } else { "its folder" };
                write!(
                    f,
                    "{what} belongs to user {owner}, who may change it, and not to root or to user {user} of the server; \
                     check it, then run chown {user} {}",
                    path.display()
                )
            }
            Self::WrongSha256 { name, pinned, found } => write!(
                f,
                "its sha256 is {found}, and [plugins.{name}] pins {pinned}; restore that library, or pin \
                 this one if you trust it"
            ),
            Self::SearchPath { entry, value } => write!(
                f,
                "its {entry} is \"{value}\", where other users may put a library; link it without, or with an \
                 absolute path"
            ),
            Self::LibraryPath { needed, folders } => write!(
                f,
                "it needs {needed}, and LD_LIBRARY_PATH, which is \"{folders}\", makes the linker search the current \
                 directory; use only absolute, non-empty folders in LD_LIBRARY_PATH"
            ),
            Self::NoCopy { folder, error } => write!(
                f,
                "its private copy cannot be created in {}: {error}; free space there, or set {} to another folder",
                folder.display(),
                if cfg!(windows) { "TMP" } else { "TMPDIR" }
            ),
            Self::NoExec { folder } => write!(
                f,
                "{}, the folder of its private copy, is mounted noexec; set TMPDIR to another folder",
                folder.display()
            ),
            Self::NotALibrary { found } => write!(
                f,
                "it is not a shared library, it begins with {found}; build the plugin with crate-type = [\"cdylib\"]"
            ),
            Self::CutOff { missing, len } => {
                write!(f, "it is truncated: its {missing} is beyond its {len} bytes; copy it again")
            }
            Self::WrongArchitecture { theirs, ours } => {
                write!(f, "it is built for {theirs}, this host runs on {ours}; build it for {ours}")
            }
            Self::NotLoadable { error, missing } => {
                let said = linker_text(error);
                let missing = missing.as_ref().map_or_else(String::new, |missing| format!("{missing}: "));
                write!(
                    f,
                    "the system cannot load it: {missing}{said}; install the libraries it needs, or build it on this system"
                )
            }
            Self::StaticTls { error } => write!(
                f,
                "it uses static thread-local storage, as allocators do, and the process has none left: {}; build it \
                 without (tikv-jemallocator: feature disable_initial_exec_tls; mimalloc: feature local_dynamic_tls), or \
                 restart the server if the library loaded before",
                linker_text(error)
            ),
            Self::BadName { what, value } => write!(
                f,
                "the {what} of its plugin is \"{value}\"; use at most 64 ASCII letters, digits and {}",
                if *what == "name" { "- or _" } else { "., + or -" }
            ),
            Self::NoPlugin => write!(f, "it exports no plugin; add export_plugin!(YourType) to its lib.rs"),
            Self::OtherAbi { report } => write!(
                f,
                "its plugin was exported with an incompatible abi_stable ({report}); rebuild it with abi_stable 0.11"
            ),
            Self::OtherMajor { theirs, ours } => {
                let major = ours.split('.').next().unwrap_or(ours);
                write!(
                    f,
                    "it was built with vkog-plugin-api {theirs}, this host has {ours}; rebuild it with {major}.x, or use a \
                     host of its version"
                )
            }
            Self::OtherLayout { report } => write!(
                f,
                "the types at its boundary differ from this host's ({report}); rebuild it with an unchanged vkog-plugin-api"
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
                "its plugin has the name \"{name}\", like the plugin of {}; remove one of the two, or rename its crate",
                first.display()
            ),
            Self::BadSettings { name, error } => {
                write!(f, "bad settings for plugin \"{name}\": {error}; correct [plugins.{name}] in the configuration")
            }
            Self::CreateFailed { name, error } => {
                write!(f, "plugin \"{name}\" could not be created: {error}; fix the cause, or remove the library")
            }
            Self::CreatePanicked { name, error } => {
                write!(f, "plugin \"{name}\" panicked while it was created: {error}; report it to its author")
            }
            Self::StartFailed { name, error } => {
                write!(f, "plugin \"{name}\" did not start: {error}; fix the cause, or remove the library")
            }
            Self::StartPanicked { name, error } => {
                write!(f, "plugin \"{name}\" panicked while it started: {error}; report it to its author")
            }
            Self::NoReturn { function, timeout } => write!(
                f,
                "its {function} did not return within {timeout:?} and was abandoned; reload again later, \
                 or report it to its author"
            ),
        }
    }
}
