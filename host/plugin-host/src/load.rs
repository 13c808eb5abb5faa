//! The loader: from a library file to a created plugin. It makes these checks in this order, as many as possible before code of
//! the library runs: owners and permissions, hash, tables of the file, header of abi_stable, version and layout of the types at
//! the boundary, table of hooks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use vkog_plugin_api::Stage;
use vkog_plugin_api::abi::{HOOK_NAMES, HookEntry, PluginModuleRef};

use crate::chain::{HostContext, Member, PluginError};
use crate::error::{LoadError, LoadFault};
use crate::glibc::GlibcVersion;
use crate::preflight;
use crate::settings::{self, Settings, Table};
use crate::sha256::Sha256;
use crate::trust::VerifiedLibrary;

/// A library that passed all checks. Its plugin is not created yet.
#[derive(Clone)]
pub struct Library {
    path: PathBuf,
    sha256: Sha256,
    module: PluginModuleRef,
    /// The version of vkog-plugin-api that it was built with.
    api_version: String,
    /// The newest glibc whose symbols it needs.
    glibc: Option<GlibcVersion>,
}

/// A loaded plugin. It is destroyed when all of its clones and all chains that contain it are dropped. Its library stays open
/// until the process ends, because abi_stable keeps references into it.
#[derive(Clone)]
pub struct Plugin {
    library: Library,
    table: Table,
    member: Arc<Member>,
}

/// Drops plugins, each on its own thread, which destroys those that nothing else refers to. Returns the names of those
/// that have not returned at the deadline. They are abandoned.
pub(crate) fn destroy(plugins: Vec<Plugin>, deadline: Instant) -> Vec<&'static str> {
    let mut ended = Vec::with_capacity(plugins.len());
    for plugin in plugins {
        let name = plugin.member().name();
        let (ending, end) = bounded(0);
        let thread = thread::Builder::new().name(format!("drop {name}")).spawn(move || {
            let _ending: Sender<Infallible> = ending;
            drop(plugin);
        });
        if let Err(error) = thread {
            tracing::debug!(
                plugin = name,
                "destroyed on the current thread, because no other could be started: {error}"
            );
        }
        ended.push((name, end));
    }
    ended.retain(|(_, end)| end.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout));
    ended.into_iter().map(|(name, _)| name).collect()
}

/// Returns the libraries in a folder, ordered by name.
///
/// # Errors
///
/// The folder cannot be read.
pub fn libraries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == std::env::consts::DLL_EXTENSION) {
            found.push(path);
        } else if is_versioned(&path) {
            tracing::warn!(
                "skipped {}: the name of a plugin ends with {}; rename it if it is one, or move it to another folder",
                path.display(),
                std::env::consts::DLL_SUFFIX
            );
        }
    }
    found.sort();
    Ok(found)
}

/// Whether the name of a file is that of a library with a version: `libz.so.1`.
fn is_versioned(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.contains(&format!("{}.", std::env::consts::DLL_SUFFIX))
}

/// Loads libraries and creates their plugins. The failure of one does not affect the others.
pub fn load(paths: &[PathBuf], settings: &Settings, port: &Arc<HostContext>) -> Vec<Result<Plugin, LoadError>> {
    open_each(paths, settings, |library| {
        let table = settings.get(library.name()).cloned().unwrap_or_default();
        library.create(table, port)
    })
}

/// Checks and opens libraries as [`load`] does, but creates no plugins. So it has no effect outside of this process, unless the
/// initialisers of a library have one, and it does not check whether a plugin accepts its settings.
pub fn open(paths: &[PathBuf], settings: &Settings) -> Vec<Result<Library, LoadError>> {
    open_each(paths, settings, Ok)
}

/// Opens libraries, refuses a second one with the same plugin name, and applies `then` to the others.
fn open_each<T>(
    paths: &[PathBuf],
    settings: &Settings,
    then: impl Fn(Library) -> Result<T, LoadFault>,
) -> Vec<Result<T, LoadError>> {
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut open_one = |path: &PathBuf| {
        let library = Library::open(path, settings)?;
        let name = library.name().to_owned();
        if let Some(first) = names.get(&name) {
            return Err(LoadFault::DuplicateName { name, first: first.clone() });
        }
        names.insert(name, path.clone());
        then(library)
    };
    paths.iter().map(|path| open_one(path).map_err(|fault| LoadError { path: path.clone(), fault })).collect()
}

impl Library {
    /// Reads, checks and opens a library.
    pub(crate) fn open(path: &Path, settings: &Settings) -> Result<Self, LoadFault> {
        let verified = VerifiedLibrary::read(path, settings::is_pinned(settings, path))?;
        Self::open_verified(path, &verified, settings)
    }

    /// Checks and opens a library that was read. `path` is where the server will find it, or the path it was read from.
    ///
    /// # Errors
    ///
    /// It is not the content that `settings` pin for the plugin, or not a plugin that this server can load.
    pub fn open_verified(path: &Path, verified: &VerifiedLibrary, settings: &Settings) -> Result<Self, LoadFault> {
        settings::check_file_name(settings, path, verified.sha256())?;
        preflight::check(verified.bytes())?;
        let glibc = preflight::needed_glibc(verified.bytes());
        match (glibc, GlibcVersion::of_process()) {
            (Some(needed), Some(ours)) if needed > ours => return Err(LoadFault::NewerGlibc { needed, ours }),
            _ => {}
        }
        let header = open_copy(verified)?;
        let (module, api_version) = root_module(header)?;
        check_names(module)?;
        let library = Self { path: path.to_owned(), sha256: verified.sha256(), module, api_version, glibc };
        settings::check_name(settings, library.name(), library.sha256)?;
        if !module.unwinds() {
            return Err(LoadFault::PanicAbort { name: library.name().to_owned() });
        }
        if let Some(hook) = missing_hook(module) {
            let (name, theirs) = (library.name().to_owned(), library.api_version);
            return Err(LoadFault::MissingHook { name, hook, theirs });
        }
        for entry in module.hooks().iter().filter(|entry| is_unknown(entry)) {
            tracing::warn!(
                plugin = library.name(),
                hook = entry.id,
                "ignored a hook that this server does not have; use a newer server to run it"
            );
        }
        Ok(library)
    }

    /// Creates the plugin with its table in the configuration.
    ///
    /// # Errors
    ///
    /// The plugin rejects its settings, returns an error or panics.
    pub fn create(self, table: Table, port: &Arc<HostContext>) -> Result<Plugin, LoadFault> {
        let name = || self.name().to_owned();
        // SAFETY: the layout of the module was checked in `root_module`, and its library is never closed.
        match unsafe { Member::create(self.module, &table.settings_json(), port, table.host.failure_policy) } {
            Ok(member) => Ok(Plugin { library: self, table, member: Arc::new(member) }),
            Err(PluginError::Route(error)) => Err(LoadFault::BadRoute { name: name(), error }),
            Err(error @ PluginError::Settings { .. }) => Err(LoadFault::BadSettings { name: name(), error }),
            Err(error @ PluginError::Panicked { .. }) => Err(LoadFault::CreatePanicked { name: name(), error }),
            Err(error) => Err(LoadFault::CreateFailed { name: name(), error }),
        }
    }

    /// Returns the name of the plugin.
    pub fn name(&self) -> &str {
        self.module.name().as_str()
    }

    /// Returns the path from which it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the version of the plugin.
    pub fn version(&self) -> &str {
        self.module.version().as_str()
    }

    /// Returns the version of vkog-plugin-api that it was built with.
    pub fn api_version(&self) -> &str {
        &self.api_version
    }

    /// Returns the scheme of the URLs of stores that it opens; `None` if it is no backend.
    pub fn scheme(&self) -> Option<&str> {
        scheme(self.module)
    }

    /// Returns the newest glibc whose symbols its library needs, or `None` if it needs none.
    pub fn glibc(&self) -> Option<GlibcVersion> {
        self.glibc
    }

    /// Returns the hash of the library as it was read.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Returns its stage in the chain as a number, because a later version of the interface may have more stages.
    pub fn stage(&self) -> u32 {
        self.module.stage()
    }

    /// Returns the name of the stage.
    pub fn stage_name(&self) -> &'static str {
        const NAMES: [(Stage, &str); 5] = [
            (Stage::Access, "access"),
            (Stage::Transform, "transform"),
            (Stage::Policy, "policy"),
            (Stage::Accounting, "accounting"),
            (Stage::Observe, "observe"),
        ];
        NAMES.iter().find(|(stage, _)| *stage as u32 == self.stage()).map_or("unknown", |(_, name)| name)
    }

    /// Returns the names of its hooks.
    pub fn hook_names(&self) -> impl Iterator<Item = &'static str> {
        self.known_hooks().map(|entry| HOOK_NAMES[entry.id as usize])
    }

    /// Returns the names of the hooks that it requires the server to have.
    pub fn required_hook_names(&self) -> Vec<&'static str> {
        if let Some(required) = self.module.required() {
            return required.iter().map(|name| name.as_str()).collect();
        }
        // Built before 1.5.
        let required = self.known_hooks().filter(|entry| entry.flags & HookEntry::REQUIRED != 0);
        required.map(|entry| HOOK_NAMES[entry.id as usize]).collect()
    }

    /// Returns its hooks that this server has.
    fn known_hooks(&self) -> impl Iterator<Item = &HookEntry> {
        self.module.hooks().as_slice().iter().filter(|entry| !is_unknown(entry))
    }
}

/// Returns the name of a hook that a plugin requires and this server does not have. A plugin that was built before 1.5 has no
/// such names, and knows no hook that this server lacks.
fn missing_hook(module: PluginModuleRef) -> Option<String> {
    let required = module.required()?;
    let unknown = required.iter().find(|name| !HOOK_NAMES.contains(&name.as_str()));
    unknown.map(|name| name.escape_debug().to_string())
}

fn is_unknown(entry: &HookEntry) -> bool {
    entry.id as usize >= HOOK_NAMES.len()
}

/// Opens a private copy with the dynamic linker, and finds the header of abi_stable in it.
fn open_copy(verified: &VerifiedLibrary) -> Result<&'static LibHeader, LoadFault> {
    let copy = verified.copy()?;
    // SAFETY: the preflight found a plugin in it. Its initialisers run, as those of any library do: plugins are native code
    // that the operator chose to trust.
    let library = unsafe { open_now(copy.path()) }.map_err(|error| copy.refused(error, missing(verified)))?;
    // SAFETY: the symbol is a static of this type in every abi_stable library; its first bytes are a magic number, which
    // `upgrade` checks.
    let header: AbiHeaderRef = unsafe {
        match library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) {
            Ok(symbol) => *symbol,
            Err(_) => return Err(LoadFault::NoPlugin),
        }
    };
    // abi_stable keeps references into a library's types: it is never closed.
    std::mem::forget(library);
    header.upgrade().map_err(|error| LoadFault::OtherAbi { report: one_line(&error) })
}

/// # Safety
///
/// As for any library: its initialisers run.
#[cfg(unix)]
unsafe fn open_now(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // Resolve all symbols now, so that a missing one is an error here and not a crash at the first call.
    // SAFETY: the caller's promise.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
}

/// Whether the process has loaded a library with this name, so that the linker would not search for it.
pub(crate) fn is_loaded(name: &str) -> bool {
    #[cfg(target_os = "linux")]
    {
        use libloading::os::unix::{Library, RTLD_LAZY};
        // The value in glibc and musl; libloading does not define it.
        const RTLD_NOLOAD: std::ffi::c_int = 4;
        // SAFETY: this loads nothing, so no initialiser runs.
        unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_NOLOAD) }.is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = name;
        false
    }
}

/// # Safety
///
/// As for any library: its initialisers run.
#[cfg(windows)]
unsafe fn open_now(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::windows::{LOAD_LIBRARY_SEARCH_DEFAULT_DIRS, Library};
    // Search for needed libraries beside the program and in the folders of the system, not in the current directory or in
    // PATH.
    // SAFETY: the caller's promise.
    unsafe { Library::load_with_flags(path, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS) }.map(Into::into)
}

/// Returns the missing library that a refused one needs, on systems whose error does not name it.
fn missing(verified: &VerifiedLibrary) -> Option<String> {
    #[cfg(windows)]
    {
        use libloading::os::windows::{LOAD_LIBRARY_AS_IMAGE_RESOURCE, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS, Library};
        preflight::needed_on_windows(verified.bytes()).into_iter().find(|name| {
            let flags = LOAD_LIBRARY_SEARCH_DEFAULT_DIRS | LOAD_LIBRARY_AS_IMAGE_RESOURCE;
            // SAFETY: a library that is opened as a resource runs no initialiser.
            unsafe { Library::load_with_flags(name, flags) }.is_err()
        })
    }
    #[cfg(not(windows))]
    {
        let _ = verified;
        None
    }
}

/// Checks the version and the layout of the types, and then calls the constructor of the module.
fn root_module(header: &'static LibHeader) -> Result<(PluginModuleRef, String), LoadFault> {
    let ours = PluginModuleRef::VERSION_STRINGS.version.to_string();
    let theirs = header.version_strings().version.to_string();
    if theirs.split('.').next() != ours.split('.').next() {
        return Err(LoadFault::OtherMajor { theirs, ours });
    }
    let Some(their_layout) = header.layout() else {
        return Err(LoadFault::OtherLayout { report: "it carries no description of them".to_owned() });
    };
    let our_layout = <PluginModuleRef as StableAbi>::LAYOUT;
    // abi_stable accepts prefix types of the library that are longer than those of the loader. An older plugin in a newer host
    // is as safe, because the host reads no field that the plugin does not have. So either direction may pass.
    if check_layout_compatibility(our_layout, their_layout).is_err() {
        check_layout_compatibility(their_layout, our_layout)
            .map_err(|error| LoadFault::OtherLayout { report: one_line(&error) })?;
    }
    // SAFETY: the layout was checked above.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() };
    match module {
        Ok(module) => Ok((module, theirs)),
        Err(LibraryError::IncompatibleVersionNumber { .. }) => Err(LoadFault::OtherMajor { theirs, ours }),
        Err(error) => {
            let error = PluginError::Panicked { message: one_line(&error) };
            Err(LoadFault::CreatePanicked { name: "?".to_owned(), error })
        }
    }
}

/// The maximum length of the name and of the version of a plugin, in bytes.
const NAME_MAX: usize = 64;

/// Checks the name, which appears in a header, in metric names and in the log, and the version, which scripts read.
fn check_names(module: PluginModuleRef) -> Result<(), LoadFault> {
    let (name, version) = (module.name().as_str(), module.version().as_str());
    let fits = |text: &str, others: &[u8]| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
        (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(letter)
    };
    if !fits(name, b"-_") {
        return Err(LoadFault::BadName { what: "name", value: name.to_owned() });
    }
    if !fits(version, b".+-") {
        return Err(LoadFault::BadName { what: "version", value: version.to_owned() });
    }
    match scheme(module) {
        Some(scheme) if !fits(scheme, b".+-") => Err(LoadFault::BadName { what: "scheme", value: scheme.to_owned() }),
        _ => Ok(()),
    }
}

/// Returns the scheme of the stores that the plugin opens as a backend.
fn scheme(module: PluginModuleRef) -> Option<&'static str> {
    Some(module.backend()?.into_option()?.scheme().as_str())
}

/// Returns the first line of a report of abi_stable that states an error. A report may have hundreds of lines.
fn one_line(error: &dyn std::fmt::Display) -> String {
    let report = error.to_string();
    let telling = report.lines().find_map(|line| line.trim().strip_prefix("Error:").map(str::trim));
    let line = telling.or_else(|| report.lines().map(str::trim).find(|line| !line.is_empty())).unwrap_or("unknown");
    line.chars().take(200).collect()
}

impl fmt::Display for Plugin {
    /// Writes the plugin's name, its versions, its stage, its hooks, its routes and its scheme as a backend in one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}, vkog-plugin-api {}, stage {}, hooks {}",
            self.name(),
            self.library.version(),
            self.library.api_version(),
            self.library.stage_name(),
            match self.library.hook_names().collect::<Vec<_>>().join(" ") {
                hooks if hooks.is_empty() => "none".to_owned(),
                hooks => hooks,
            }
        )?;
        let mut before = ", routes ";
        for route in self.member.routes() {
            write!(f, "{before}{} /x/{}{}", route.method, self.name(), route.path)?;
            before = ", ";
        }
        match self.library.scheme() {
            Some(scheme) => write!(f, ", backend of {scheme}:// stores"),
            None => Ok(()),
        }
    }
}

impl Plugin {
    /// Returns the name, which is also the name of its table in the configuration.
    pub fn name(&self) -> &str {
        self.library.name()
    }

    /// Returns the scheme of the URLs of stores that it opens; `None` if it is no backend.
    pub fn scheme(&self) -> Option<&str> {
        self.library.scheme()
    }

    /// Returns its library.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Returns the path of the library.
    pub fn path(&self) -> &Path {
        &self.library.path
    }

    /// Returns its table in the configuration.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Sets its table, after the plugin accepted the new settings.
    pub(crate) fn set_table(&mut self, table: Table) {
        self.table = table;
    }

    /// Returns the plugin as a member of chains.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Returns the load error for a plugin that did not start.
    pub(crate) fn start_error(&self, error: PluginError) -> LoadError {
        LoadError::start(self.path().to_owned(), self.name().to_owned(), error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vkog_plugin_api::export::module;
    use vkog_plugin_api::{CreateError, Host, NoSettings, Tick};

    use super::*;

    struct Idle;

    impl vkog_plugin_api::Plugin for Idle {
        type Settings = NoSettings;

        fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
            Ok(Self)
        }
    }

    impl Tick for Idle {
        fn tick(&self) -> Duration {
            Duration::MAX
        }
    }

    #[test]
    fn a_name_and_a_version_are_short_and_of_few_letters() {
        const LETTERS: &str = "aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffff12345";
        for (name, version, refused) in [
            ("a", "1", None),
            ("Json-only_2", "1.0.0-rc.1+7", None),
            (&LETTERS[1..], &LETTERS[1..], None),
            ("", "1", Some("name")),
            (LETTERS, "1", Some("name")),
            ("a b", "1", Some("name")),
            ("a.b", "1", Some("name")),
            ("a\nb", "1", Some("name")),
            ("\u{e9}", "1", Some("name")),
            ("a", "", Some("version")),
            ("a", LETTERS, Some("version")),
            ("a", "1 0", Some("version")),
            ("a", "1_0", Some("version")),
        ] {
            let found = check_names(module::<Idle>(name, version, true, &vkog_plugin_api::__hooks!(Idle), &[]));
            let what = match found {
                Ok(()) => None,
                Err(LoadFault::BadName { what, .. }) => Some(what),
                Err(other) => panic!("{other}"),
            };
            assert_eq!(what, refused, "{name:?} {version:?}");
        }
    }

    #[test]
    fn a_report_is_shortened_to_the_line_that_states_the_error() {
        for (report, line) in [
            ("first\n  Error: second \nthird", "second"),
            ("\n  first\nsecond", "first"),
            ("", "unknown"),
            (&"x".repeat(300), &"x".repeat(200)),
        ] {
            assert_eq!(one_line(&report), line);
        }
    }
}
