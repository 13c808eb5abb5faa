//! `vkog plugins add`: puts a library into the plugin folder, from a file or from the web, after all checks that a server makes.

use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::fs::DirBuilder;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueHint;
use clap::builder::{OsStringValueParser, TypedValueParser};
use thiserror::Error;
use vkog_plugin_host::{
    self as plugins, HostContext, Library, LoadFault, Plugin, Settings, Sha256, VerifiedLibrary, is_pinned,
};

use super::download::download;
use super::folder::{FolderArgs, PluginFolder, RELOAD, contains, file_name};
use crate::commands::client::duration;
use crate::commands::new_file::NewFile;
use crate::commands::{say, write_way_out};
use crate::config::{PinChange, PinError};
use crate::failure::Failure;
use crate::urls::{strip_scheme, without_credentials};
use vkog_store::{Disk, LocalDisk};

/// The arguments of `vkog plugins add`.
#[derive(clap::Args)]
pub struct Add {
    /// The library: a file, or an http:// or https:// address
    #[arg(
        value_name = "LIBRARY|URL",
        value_parser = OsStringValueParser::new().map(Source::from),
        value_hint = ValueHint::FilePath
    )]
    library: Source,

    /// Require this SHA-256 of the library; an http:// address needs it
    #[arg(long, value_name = "HEX")]
    sha256: Option<Sha256>,

    /// Pin the plugin to this library in the file of --config
    #[arg(long, requires = "config")]
    pin: bool,

    /// Replace the library of the same plugin, and with --pin its pin
    #[arg(long)]
    replace: bool,

    #[command(flatten)]
    folder: FolderArgs,

    /// Trust only the certificates in this file for a download (PEM) [default: public authorities]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// Maximum time without progress of a download
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

/// Whether a text is a URL: a scheme, and what follows it.
fn has_scheme(text: &str) -> bool {
    let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    text.split_once("://").is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(is_of_scheme))
}

/// Where the library is. It is shown without credentials.
#[derive(Clone)]
enum Source {
    File(PathBuf),
    Web(String),
}

impl From<OsString> for Source {
    fn from(given: OsString) -> Self {
        match given.to_str() {
            Some(url) if has_scheme(url) => Self::Web(url.to_owned()),
            _ => Self::File(given.into()),
        }
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Web(url) => f.write_str(&without_credentials(url)),
        }
    }
}

/// Why a library cannot be added. Unless the text says otherwise, nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
enum AddError {
    #[error("cannot download over {0}://; use https:// or http://, or give the path of a file")]
    OtherScheme(String),
    #[error(
        "cannot download {0}: without TLS, others can replace the library; give its SHA-256 with --sha256, or use https://"
    )]
    Insecure(String),
    #[error(
        "cannot add {library}: its sha256 is {found}, and --sha256 is {expected}; get the library again, or correct --sha256"
    )]
    OtherSha256 { library: String, found: Sha256, expected: Sha256 },
    #[error("cannot add {library}: {} [{}]", .source.line(), .source.code())]
    Unloadable { library: String, source: LoadFault },
    #[error("cannot add to the plugin folder {}: {} [{}]", .path.display(), .source.line(), .source.code())]
    Folder { path: PathBuf, source: LoadFault },
    #[error("cannot add {name}: {} {what}; replace it with --replace", .path.display())]
    Exists { name: String, path: PathBuf, what: String, source: io::Error },
    #[error(
        "cannot add {name}: several libraries in the plugin folder contain it, {files}; remove all but one with vkog plugins rm FILE"
    )]
    Several { name: String, files: String },
    #[error("cannot add {name}: {} contains the plugin {other}; rename or remove that library", .path.display())]
    OtherPlugin { name: String, path: PathBuf, other: String },
    #[error("cannot create the plugin folder {}: {source}; {}", .path.display(), write_way_out(.source))]
    CreateFolder { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; {}", .path.display(), write_way_out(.source))]
    Write { path: PathBuf, source: io::Error },
    #[error("added {} without its pin: {source}", .path.display())]
    Unpinned { path: PathBuf, source: PinError },
}

/// Where a library of a plugin goes.
enum Slot {
    /// No library of the plugin exists.
    Free(PathBuf),
    /// The same library exists.
    Same(PathBuf),
    /// Another library of the plugin exists, or one with its file name that does not load.
    Taken(PathBuf),
}

impl Slot {
    fn path(&self) -> &Path {
        match self {
            Self::Free(path) | Self::Same(path) | Self::Taken(path) => path,
        }
    }

    /// Returns what the command did.
    fn done(&self) -> &'static str {
        match self {
            Self::Free(_) => "added",
            Self::Same(_) => "already there:",
            Self::Taken(_) => "replaced",
        }
    }
}

/// Adds a library to the plugin folder. The library is read once, so that the bytes that are checked are written.
///
/// # Errors
///
/// The library cannot be read or downloaded, a server would not load it, another library of its plugin exists, or the folder or the
/// configuration cannot be written.
pub fn add(Add { library: source, sha256, pin, replace, folder, cacert, timeout }: Add) -> Result<ExitCode, Failure> {
    let folder = folder.resolve()?;
    let none = Settings::new();
    // A new pin replaces the old one, so the old one does not count.
    let pins = if pin && replace { &none } else { folder.settings() };
    let unloadable = |fault| AddError::Unloadable { library: source.to_string(), source: fault };
    let (origin, verified) = match &source {
        Source::File(path) => {
            let is_known = sha256.is_some() || is_pinned(pins, path);
            (path.clone(), VerifiedLibrary::read(path, is_known).map_err(unloadable)?)
        }
        Source::Web(url) if strip_scheme(url, "http://").is_some() && sha256.is_none() => {
            return Err(Failure::usage(AddError::Insecure(source.to_string())));
        }
        Source::Web(url) if ["http://", "https://"].iter().all(|scheme| strip_scheme(url, scheme).is_none()) => {
            let scheme = url.split("://").next().unwrap_or_default();
            return Err(Failure::usage(AddError::OtherScheme(scheme.to_owned())));
        }
        Source::Web(url) => {
            let origin = origin(&source.to_string());
            let bytes = download(url, cacert.as_ref(), timeout, sha256.is_some())?;
            (origin.clone(), VerifiedLibrary::from_memory(&origin, bytes))
        }
    };
    let found = verified.sha256();
    if let Some(expected) = sha256.filter(|expected| *expected != found) {
        return Err(AddError::OtherSha256 { library: source.to_string(), found, expected }.into());
    }
    let plugin = create(&origin, &verified, pins, &folder).map_err(unloadable)?;
    let slot = slot(&folder, plugin.library(), replace)?;
    let change = match &folder.config_file {
        Some(config) if pin => Some(PinChange::prepare(config, plugin.name(), Some(found))?),
        _ => None,
    };
    let is_pinned = pin || folder.settings().get(plugin.name()).is_some_and(|table| table.host.sha256.is_some());
    prepare_folder(&folder.path, is_pinned)?;
    if !matches!(slot, Slot::Same(_)) {
        let failed = |source| AddError::Write { path: slot.path().to_owned(), source };
        write(slot.path(), verified.bytes(), replace).map_err(failed)?;
    }
    if let Some(change) = change {
        let unpinned = |source| AddError::Unpinned { path: slot.path().to_owned(), source };
        change.commit().map_err(unpinned)?;
    }
    report(&plugin, &slot, folder.config_file.as_deref().filter(|_| pin));
    Ok(ExitCode::SUCCESS)
}

/// Checks a library and creates its plugin, as `vkog plugins check` does.
fn create(
    origin: &Path,
    verified: &VerifiedLibrary,
    pins: &Settings,
    folder: &PluginFolder,
) -> Result<Plugin, LoadFault> {
    let context = Arc::new(HostContext::new(folder.config.max_size, plugins::system_clock));
    let library = Library::open_verified(origin, verified, pins)?;
    let table = folder.settings().get(library.name()).cloned().unwrap_or_default();
    library.create(table, &context)
}

/// Returns a file name for a download from a URL, given as it is shown. It stands for the plugin until the library is open, and no
/// file gets it.
fn origin(url: &str) -> PathBuf {
    let path = url.split('?').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let plain = |char: char| if char.is_ascii_alphanumeric() || "-_.".contains(char) { char } else { '_' };
    name.chars().map(plain).collect::<String>().into()
}

/// Finds the place of a library: that of the library of the same plugin, or else `libvkog_NAME.so`, by which a pin of the plugin
/// is found before any code of the library runs.
fn slot(folder: &PluginFolder, library: &Library, replace: bool) -> Result<Slot, Failure> {
    let name = library.name();
    let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let target = folder.path.join(format!("{prefix}vkog_{}{suffix}", name.replace('-', "_")));
    let opened = if folder.path.exists() { folder.open()? } else { Vec::new() };
    let path_of = |result: &Result<Library, _>| match result {
        Ok(library) => library.path().to_owned(),
        Err(plugins::LoadError { path, .. }) => path.clone(),
    };
    let of_plugin: Vec<_> = opened.iter().filter(|result| contains(result, name)).collect();
    if of_plugin.len() > 1 {
        let files: Vec<String> = of_plugin.iter().map(|result| file_name(&path_of(result))).collect();
        return Err(AddError::Several { name: name.to_owned(), files: files.join(", ") }.into());
    }
    let target_name = target.file_name();
    let taken = match of_plugin.first() {
        Some(Ok(there)) if there.sha256() == library.sha256() => return Ok(Slot::Same(there.path().to_owned())),
        Some(Ok(there)) => (there.path().to_owned(), format!("contains {name} {}", there.version())),
        Some(Err(error)) => (error.path.clone(), format!("does not load [{}]", error.fault.code())),
        None => {
            return match opened.iter().flatten().find(|there| there.path().file_name() == target_name) {
                Some(there) => {
                    let other = there.name().to_owned();
                    Err(AddError::OtherPlugin { name: name.to_owned(), path: target, other }.into())
                }
                None => Ok(Slot::Free(target)),
            };
        }
    };
    let (path, what) = taken;
    if replace {
        return Ok(Slot::Taken(path));
    }
    let source = io::ErrorKind::AlreadyExists.into();
    Err(AddError::Exists { name: name.to_owned(), path, what, source }.into())
}

/// Creates the plugin folder if it does not exist, and checks that no other user can put libraries into it.
fn prepare_folder(path: &Path, is_pinned: bool) -> Result<(), AddError> {
    if !path.exists() {
        create_folder(path).map_err(|source| AddError::CreateFolder { path: path.to_owned(), source })?;
    }
    // A pin replaces the check, as it does for a server.
    if is_pinned {
        return Ok(());
    }
    plugins::check_folder(path).map_err(|source| AddError::Folder { path: path.to_owned(), source })
}

/// Creates the plugin folder, but not the folders above it. Only its owner can write it, with any umask.
fn create_folder(path: &Path) -> io::Result<()> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o755);
    }
    builder.create(path)
}

/// Writes a library to a file that gets its name when it is on disk. So no server loads a part of it, and the file that a server
/// has loaded is replaced and not changed.
fn write(path: &Path, bytes: &[u8], replace: bool) -> io::Result<()> {
    let mut file = NewFile::create(path, 0o644)?;
    file.write_all(bytes)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // With any umask: another user may run the server, and only the owner can write it.
        file.file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.file().sync_all()?;
    file.persist(path, replace)?;
    LocalDisk.sync_folder(path)
}

fn report(plugin: &Plugin, slot: &Slot, pinned_in: Option<&Path>) {
    let library = plugin.library();
    say(&format!(
        "{} {} {} (vkog-plugin-api {}) as {}",
        slot.done(),
        plugin.name(),
        library.version(),
        library.api_version(),
        slot.path().display()
    ));
    say(&format!("sha256 {}", library.sha256()));
    if let Some(config) = pinned_in {
        say(&format!("pinned in {}", config.display()));
    }
    match plugin.scheme() {
        Some(scheme) => {
            say(&format!("restart the servers whose store is {scheme}://; others apply this when they reload"))
        }
        None => say(RELOAD),
    }
}
