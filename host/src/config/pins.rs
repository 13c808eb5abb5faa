//! Pins in a configuration file: changes the key `sha256` of a table `[plugins.NAME]`, and nothing else of the text.

use std::fs::{File as OpenFile, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use thiserror::Error;
use toml_edit::{DocumentMut, InlineTable, Item, Table, TomlError, Value};
use vkog_plugin_host::Sha256;

use super::error::FileError;
use super::file::File;

/// The key of a pin.
const KEY: &str = "sha256";

/// A changed configuration file, written beside the old one. [`commit`](Self::commit) puts it in its place; without that,
/// dropping it removes it. Until then other changes of pins wait (Unix only).
pub struct PinChange {
    temporary: NamedTempFile,
    /// The configuration file, behind all symbolic links.
    target: PathBuf,
    /// The path as it was given.
    path: PathBuf,
    /// The locked folder of the file. The file itself is replaced, so it cannot be locked.
    _lock: Option<OpenFile>,
}

/// Why a pin cannot be changed. The configuration file is unchanged then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PinError {
    /// The file cannot be read.
    #[error("cannot change the pin in {}: {source}; the file is unchanged, let this user read it", .path.display())]
    Read {
        /// The configuration file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file cannot be replaced.
    #[error(
        "cannot change the pin in {}: {source}; the file is unchanged, let this user write it and its folder",
        .path.display()
    )]
    Write {
        /// The configuration file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("cannot change the pin in {}: {source}; the file is unchanged, correct it", .path.display())]
    Syntax {
        /// The configuration file.
        path: PathBuf,
        /// The mistake.
        source: TomlError,
    },
    /// The changed text would have a mistake.
    #[error("cannot change the pin in {}{source}; the file is unchanged, change the pin by hand", .path.display())]
    Result {
        /// The configuration file.
        path: PathBuf,
        /// The mistake.
        source: FileError,
    },
    /// The changed text would not have the pin, because the plugin's settings are not in tables.
    #[error("cannot find [plugins.{name}] in {}; the file is unchanged, change the pin by hand", .path.display())]
    Layout {
        /// The configuration file.
        path: PathBuf,
        /// The name of the plugin.
        name: String,
    },
}

impl PinChange {
    /// Prepares a new pin of a plugin, or with `None` its removal. An existing pin is replaced. Comments, order and spaces of
    /// the file remain, and so do its owner and its permissions. Removing the last key of a table removes the table, unless a
    /// comment is above it.
    ///
    /// # Errors
    ///
    /// The file cannot be read or replaced, or the result would not be a valid configuration.
    pub fn prepare(path: &Path, name: &str, pin: Option<Sha256>) -> Result<Self, PinError> {
        let unreadable = |source| PinError::Read { path: path.to_owned(), source };
        let unwritable = |source| PinError::Write { path: path.to_owned(), source };
        let target = path.canonicalize().map_err(unreadable)?;
        let folder = target.parent().unwrap_or(Path::new("/"));
        let lock = lock(folder);
        let text = std::fs::read_to_string(&target).map_err(unreadable)?;
        let mut document: DocumentMut =
            text.parse().map_err(|source| PinError::Syntax { path: path.to_owned(), source })?;
        match pin {
            Some(pin) => set(&mut document, name, pin),
            None => remove(&mut document, name),
        }
        let text = document.to_string();
        let changed = File::parse(&text).map_err(|source| PinError::Result { path: path.to_owned(), source })?;
        if changed.settings.get(name).and_then(|table| table.host.sha256) != pin {
            return Err(PinError::Layout { path: path.to_owned(), name: name.to_owned() });
        }
        let temporary = written_beside(&target, folder, &text).map_err(unwritable)?;
        Ok(Self { temporary, target, path: path.to_owned(), _lock: lock })
    }

    /// Replaces the configuration file.
    ///
    /// # Errors
    ///
    /// The system does not allow it.
    pub fn commit(self) -> Result<(), PinError> {
        let Self { temporary, target, path, _lock } = self;
        temporary.persist(target).map_err(|error| PinError::Write { path, source: error.error })?;
        Ok(())
    }
}

fn set(document: &mut DocumentMut, name: &str, pin: Sha256) {
    let implicit = || {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    };
    let plugins = document.entry("plugins").or_insert_with(implicit);
    // A table in an inline table is an inline table.
    let new =
        if plugins.is_inline_table() { Item::Value(InlineTable::new().into()) } else { Item::Table(Table::new()) };
    let Some(plugins) = plugins.as_table_like_mut() else { return };
    let Some(table) = plugins.entry(name).or_insert(new).as_table_like_mut() else { return };
    match table.get_mut(KEY) {
        Some(Item::Value(value)) => {
            // The comment after the value is a part of it.
            let decor = value.decor().clone();
            *value = Value::from(pin.to_string());
            *value.decor_mut() = decor;
        }
        _ => drop(table.insert(KEY, toml_edit::value(pin.to_string()))),
    }
}

fn remove(document: &mut DocumentMut, name: &str) {
    let Some(plugins) = document.get_mut("plugins").and_then(Item::as_table_like_mut) else { return };
    let Some(item) = plugins.get_mut(name) else { return };
    let has_comment =
        item.as_table().and_then(|table| table.decor().prefix()?.as_str()).is_some_and(|it| it.contains('#'));
    let Some(table) = item.as_table_like_mut() else { return };
    table.remove(KEY);
    if table.is_empty() && !has_comment {
        plugins.remove(name);
    }
}

/// Locks a folder until the file is closed. Elsewhere than on Unix a folder cannot be locked, and some file systems have no
/// locks: then two changes at the same time may lose one.
fn lock(folder: &Path) -> Option<OpenFile> {
    let folder = OpenFile::open(folder).ok()?;
    folder.lock().ok()?;
    Some(folder)
}

/// Writes a text to a new file in the folder of `target`, with the owner and the permissions of `target`.
fn written_beside(target: &Path, folder: &Path, text: &str) -> io::Result<NamedTempFile> {
    // A file that this user may not write is not replaced, either.
    let metadata = OpenFile::options().write(true).open(target)?.metadata()?;
    let mut temporary = tempfile::Builder::new().prefix(".vkog-").tempfile_in(folder)?;
    temporary.write_all(text.as_bytes())?;
    keep_owner(temporary.as_file(), &metadata)?;
    temporary.as_file().set_permissions(metadata.permissions())?;
    temporary.as_file().sync_all()?;
    Ok(temporary)
}

/// Gives a new file the owner of the one that it will replace: a server that cannot read its configuration does not reload.
#[cfg(unix)]
fn keep_owner(new: &OpenFile, old: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let created = new.metadata()?;
    if (created.uid(), created.gid()) == (old.uid(), old.gid()) {
        return Ok(());
    }
    fchown(new, Some(old.uid()), Some(old.gid()))
}

/// On Windows a new file has the permissions of its folder.
#[cfg(not(unix))]
fn keep_owner(_: &OpenFile, _: &Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    /// Returns the text after a change.
    fn changed(text: &str, pin: Option<&str>) -> String {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("vkog.toml");
        std::fs::write(&path, text).expect("it is ours");
        let pin = pin.map(|pin| pin.parse().expect("a hash"));
        PinChange::prepare(&path, "bytes", pin).expect(text).commit().expect(text);
        let left = std::fs::read_dir(folder.path()).expect("it exists").count();
        assert_eq!(left, 1, "a temporary file remains");
        std::fs::read_to_string(&path).expect("it exists")
    }

    #[test]
    fn a_pin_is_added_and_replaced_without_other_changes() {
        let pin = format!("sha256 = \"{ONE}\"");
        let old = "2".repeat(64);
        for (before, after) in [
            ("".to_owned(), format!("[plugins.bytes]\n{pin}\n")),
            (
                "# top\nopen = true # yes\n\n[plugins]\norder = [ \"ttl\" ]\n\n[proxy]\ntrusted = [\"unix\"]\n"
                    .to_owned(),
                format!(
                    "# top\nopen = true # yes\n\n[plugins]\norder = [ \"ttl\" ]\n\n[plugins.bytes]\n{pin}\n\n[proxy]\n\
                     trusted = [\"unix\"]\n"
                ),
            ),
            (
                "# settings\n[plugins.bytes] # here\nmax = 5 # five\n\n# end\n".to_owned(),
                format!("# settings\n[plugins.bytes] # here\nmax = 5 # five\n{pin}\n\n# end\n"),
            ),
            (
                format!("[plugins.bytes]\n# monday\nsha256 = \"{old}\" # old\nmax = 5\n"),
                format!("[plugins.bytes]\n# monday\n{pin} # old\nmax = 5\n"),
            ),
            ("[plugins]\nbytes = { max = 5 }\n".to_owned(), format!("[plugins]\nbytes = {{ max = 5 , {pin} }}\n")),
            (
                "plugins = { ttl = { max = 5 } }\n".to_owned(),
                format!("plugins = {{ ttl = {{ max = 5 }} , bytes = {{ {pin} }} }}\n"),
            ),
            (
                "plugins.bytes.max = 5\nopen = true\n".to_owned(),
                format!("plugins.bytes.max = 5\nplugins.bytes.{pin}\nopen = true\n"),
            ),
        ] {
            assert_eq!(changed(&before, Some(ONE)), after, "{before}");
            assert_eq!(changed(&after, Some(ONE)), after);
        }
    }

    #[test]
    fn a_removed_pin_leaves_the_other_settings_and_comments() {
        for (before, after) in [
            (
                format!("open = true\n\n[plugins.bytes]\nsha256 = \"{ONE}\"\n\n[plugins.ttl]\nmax = 5\n"),
                "open = true\n\n[plugins.ttl]\nmax = 5\n",
            ),
            (
                format!("[plugins.bytes]\nmax = 5 # five\nsha256 = \"{ONE}\"\n# end\n"),
                "[plugins.bytes]\nmax = 5 # five\n# end\n",
            ),
            (format!("# why\n[plugins.bytes]\nsha256 = \"{ONE}\"\n"), "# why\n[plugins.bytes]\n"),
            ("[plugins.bytes]\nmax = 5\n".to_owned(), "[plugins.bytes]\nmax = 5\n"),
        ] {
            assert_eq!(changed(&before, None), after, "{before}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_changed_file_keeps_its_owner_its_permissions_and_its_link() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().expect("a folder can be made");
        let (real, link) = (folder.path().join("real.toml"), folder.path().join("vkog.toml"));
        std::fs::write(&real, "open = true\n").expect("it is ours");
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).expect("it is ours");
        symlink("real.toml", &link).expect("a link can be made");
        // Only root can do that.
        let is_given_away = std::os::unix::fs::chown(&real, Some(54321), None).is_ok();
        let pin = ONE.parse().expect("a hash");
        PinChange::prepare(&link, "bytes", Some(pin)).expect("it is valid").commit().expect("it is ours");
        assert!(link.is_symlink());
        if is_given_away {
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&real.metadata().expect("it exists")), 54321);
        }
        assert_eq!(real.metadata().expect("it exists").permissions().mode() & 0o777, 0o640);
        assert!(std::fs::read_to_string(&real).expect("it exists").contains(ONE));
    }

    #[test]
    fn changes_at_the_same_time_are_all_kept() {
        if cfg!(not(unix)) {
            return;
        }
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("vkog.toml");
        std::fs::write(&path, "").expect("it is ours");
        std::thread::scope(|scope| {
            for turn in 0..16 {
                let path = &path;
                scope.spawn(move || {
                    let pin = Sha256::of(&[turn]);
                    let change = PinChange::prepare(path, &format!("p{turn}"), Some(pin));
                    change.expect("it is valid").commit().expect("it is ours");
                });
            }
        });
        let text = std::fs::read_to_string(&path).expect("it exists");
        assert_eq!(text.matches("sha256").count(), 16, "{text}");
    }
}
