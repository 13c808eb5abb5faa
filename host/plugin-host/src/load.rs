//! From a file to a plugin. Every check that can be made is made before code of the library runs, in this order: who can
//! write the file, its hash, its own tables, the header of abi_stable, the version and the layout of the types at the
//! boundary, the table of hooks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::{Failed, Member, Port};
use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError, ROOT_MODULE_LOADER_NAME_WITH_NUL, RootModule};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use vkog_plugin_api::Stage;
use vkog_plugin_api::abi::{HOOK_NAMES, HookEntry, PluginModuleRef};

use crate::error::{LoadError, LoadFault};
use crate::preflight;
use crate::sha256::Sha256;
use crate::terms::{self, Settings, Table};
use crate::trust::Image;

/// A library whose checks were passed and whose module is known; nothing is created yet.
#[derive(Clone)]
pub struct Library {
    path: PathBuf,
    sha256: Sha256,
    module: PluginModuleRef,
    /// The version of vkog-plugin-api it was built with.
    api_version: String,
}

/// A plugin that was created. When all of its clones and the chains it is in are dropped the plugin is destroyed; its library stays open
/// until the process ends, because abi_stable keeps references into it.
#[derive(Clone)]
pub struct Plugin {
    library: Library,
    table: Table,
    member: Arc<Member>,
}

/// Drops plugins, each on a thread of its own, which destroys those that nothing else holds. Returns the names of those that
/// have not returned by the deadline; they are left to themselves.
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
            tracing::debug!(plugin = name, "it was destroyed on this thread: no further one: {error}");
        }
        ended.push((name, end));
    }
    ended.retain(|(_, end)| end.recv_deadline(deadline) == Err(RecvTimeoutError::Timeout));
    ended.into_iter().map(|(name, _)| name).collect()
}

/// The libraries in a folder, in the order of their names.
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
        }
    }
    found.sort();
    Ok(found)
}

/// Loads libraries and creates their plugins. All are tried, whatever becomes of the others.
pub fn load(paths: &[PathBuf], settings: &Settings, port: &Arc<Port>) -> Vec<Result<Plugin, LoadError>> {
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut load_one = |path: &PathBuf| {
        let library = Library::open(path, settings)?;
        let name = library.name().to_owned();
        if let Some(first) = names.get(&name) {
            return Err(LoadFault::DuplicateName { name, first: first.clone() });
        }
        names.insert(name.clone(), path.clone());
        library.create(settings.get(&name).cloned().unwrap_or_default(), port)
    };
    paths.iter().map(|path| load_one(path).map_err(|fault| LoadError { path: path.clone(), fault })).collect()
}

impl Library {
    /// Opens and checks a library.
    pub(crate) fn open(path: &Path, settings: &Settings) -> Result<Self, LoadFault> {
        let image = Image::read(path, terms::is_pinned(settings, path))?;
        Self::open_image(path, &image, settings)
    }

    /// Checks what was read of a library, and opens that.
    pub(crate) fn open_image(path: &Path, image: &Image, settings: &Settings) -> Result<Self, LoadFault> {
        terms::check_file_name(settings, path, image.sha256())?;
        preflight::check(image.bytes())?;
        let header = open_copy(image)?;
        let (module, api_version) = root_module(header)?;
        check_names(module)?;
        let library = Self { path: path.to_owned(), sha256: image.sha256(), module, api_version };
        terms::check_name(settings, library.name(), library.sha256)?;
        if !module.unwinds() {
            return Err(LoadFault::PanicAbort { name: library.name().to_owned() });
        }
        let unknown = |entry: &&HookEntry| entry.id as usize >= HOOK_NAMES.len();
        for entry in module.hooks().iter().filter(unknown) {
            if entry.flags & HookEntry::REQUIRED != 0 {
                let (name, theirs) = (library.name().to_owned(), library.api_version.clone());
                return Err(LoadFault::MissingHook { name, id: entry.id, theirs });
            }
            tracing::warn!(plugin = library.name(), hook = entry.id, "a hook that this host does not know is left out");
        }
        Ok(library)
    }

    /// Creates the plugin with its table of the configuration.
    pub(crate) fn create(self, table: Table, port: &Arc<Port>) -> Result<Plugin, LoadFault> {
        let name = || self.name().to_owned();
        // SAFETY: the layout of the module was checked in `root_module`, and its library is never closed.
        match unsafe { Member::create(self.module, &table.settings_json(), port, table.terms.conduct) } {
            Ok(member) => Ok(Plugin { library: self, table, member: Arc::new(member) }),
            Err(Failed::Settings(said)) => Err(LoadFault::BadSettings { name: name(), said }),
            Err(Failed::Error(said)) => Err(LoadFault::CreateFailed { name: name(), said }),
            Err(Failed::Panicked(said)) => Err(LoadFault::CreatePanicked { name: name(), said }),
        }
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        self.module.name().as_str()
    }
}

/// Has the dynamic linker open a private copy, and finds abi_stable's header in it.
fn open_copy(image: &Image) -> Result<&'static LibHeader, LoadFault> {
    let copy = image.copy()?;
    // SAFETY: the preflight found a plugin in it. Its initialisers run, as those of any library do; that plugins are
    // native code of the operator's choice is what the README says of them.
    let library = unsafe { open_now(copy.path()) }.map_err(|error| copy.refused(error, missing(image)))?;
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
    header.upgrade().map_err(|error| LoadFault::OtherAbi(one_line(&error)))
}

/// # Safety
///
/// As for any library: its initialisers run.
#[cfg(unix)]
unsafe fn open_now(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    // At once, so that a missing symbol is an error now and not a crash at the first call.
    // SAFETY: the caller's promise.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
}

/// Whether the process has a library of this name already, so that none would be looked for.
pub(crate) fn is_loaded(name: &str) -> bool {
    #[cfg(target_os = "linux")]
    {
        use libloading::os::unix::{Library, RTLD_LAZY};
        // Of glibc and musl; libloading has no name for it.
        const RTLD_NOLOAD: std::ffi::c_int = 4;
        // SAFETY: nothing is loaded, so that no initialiser runs.
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
    // What it needs is looked for beside the program and where the system keeps its libraries: not in the current
    // directory, nor in PATH.
    // SAFETY: the caller's promise.
    unsafe { Library::load_with_flags(path, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS) }.map(Into::into)
}

/// The library that a refused one needs and the system does not find, as far as the system does not say so itself.
fn missing(image: &Image) -> Option<String> {
    #[cfg(windows)]
    {
        use libloading::os::windows::{LOAD_LIBRARY_AS_IMAGE_RESOURCE, LOAD_LIBRARY_SEARCH_DEFAULT_DIRS, Library};
        preflight::needed_on_windows(image.bytes()).into_iter().find(|name| {
            let flags = LOAD_LIBRARY_SEARCH_DEFAULT_DIRS | LOAD_LIBRARY_AS_IMAGE_RESOURCE;
            // SAFETY: as a resource it is only looked at, and no initialiser runs.
            unsafe { Library::load_with_flags(name, flags) }.is_err()
        })
    }
    #[cfg(not(windows))]
    {
        let _ = image;
        None
    }
}

/// Checks the version and the layout of a library's types, and only then lets it make its module.
fn root_module(header: &'static LibHeader) -> Result<(PluginModuleRef, String), LoadFault> {
    let ours = PluginModuleRef::VERSION_STRINGS.version.to_string();
    let theirs = header.version_strings().version.to_string();
    if theirs.split('.').next() != ours.split('.').next() {
        return Err(LoadFault::OtherMajor { theirs, ours });
    }
    let Some(their_layout) = header.layout() else {
        return Err(LoadFault::OtherLayout("it carries no description of them".to_owned()));
    };
    let our_layout = <PluginModuleRef as StableAbi>::LAYOUT;
    // abi_stable lets only the library's prefix types be longer than the loader's. An older plugin in a newer host is as
    // safe, since no field beyond those it has is read; so the check is made in both directions.
    if check_layout_compatibility(our_layout, their_layout).is_err()
        && let Err(error) = check_layout_compatibility(their_layout, our_layout)
    {
        return Err(LoadFault::OtherLayout(one_line(&error)));
    }
    // SAFETY: the layout was checked just now.
    let module = unsafe { header.init_root_module_with_unchecked_layout::<PluginModuleRef>() };
    match module {
        Ok(module) => Ok((module, theirs)),
        Err(LibraryError::IncompatibleVersionNumber { .. }) => Err(LoadFault::OtherMajor { theirs, ours }),
        Err(error) => Err(LoadFault::CreatePanicked { name: "?".to_owned(), said: one_line(&error) }),
    }
}

/// The longest name and the longest version of a plugin, in bytes.
const NAME_MAX: usize = 64;

/// Checks what a library says of its plugin: the name stands in a header, in the names of metrics and in the log, and the
/// version in lines that scripts read.
fn check_names(module: PluginModuleRef) -> Result<(), LoadFault> {
    let (name, version) = (module.name().as_str(), module.version().as_str());
    let fits = |text: &str, others: &[u8]| {
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || others.contains(&byte);
        (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(letter)
    };
    if !fits(name, b"-_") {
        return Err(LoadFault::BadName { what: "name", says: name.to_owned() });
    }
    if !fits(version, b".+-") {
        return Err(LoadFault::BadName { what: "version", says: version.to_owned() });
    }
    Ok(())
}

/// abi_stable's errors are reports of up to hundreds of lines; those that say what is wrong begin with `Error:`.
fn one_line(error: &dyn std::fmt::Display) -> String {
    let report = error.to_string();
    let telling = report.lines().find_map(|line| line.trim().strip_prefix("Error:").map(str::trim));
    let line = telling.or_else(|| report.lines().map(str::trim).find(|line| !line.is_empty())).unwrap_or("unknown");
    line.chars().take(200).collect()
}

impl Plugin {
    /// The name, which is also that of its table in the configuration.
    pub fn name(&self) -> &str {
        self.library.name()
    }

    /// The version of the plugin.
    pub fn version(&self) -> &str {
        self.library.module.version().as_str()
    }

    /// The version of vkog-plugin-api it was built with.
    pub fn api_version(&self) -> &str {
        &self.library.api_version
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.library.path
    }

    /// The hash of that file as it was when it was opened.
    pub fn sha256(&self) -> Sha256 {
        self.library.sha256
    }

    /// What the configuration says of it.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Sets what the configuration says of it, now that the plugin knows.
    pub(crate) fn set_table(&mut self, table: Table) {
        self.table = table;
    }

    /// As the chain has it.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// What is wrong with it, given why it did not start.
    pub(crate) fn start_fault(&self, failed: Failed) -> LoadError {
        let name = self.name().to_owned();
        let fault = match failed {
            Failed::Panicked(said) => LoadFault::StartPanicked { name, said },
            Failed::Error(said) | Failed::Settings(said) => LoadFault::StartFailed { name, said },
        };
        LoadError { path: self.path().to_owned(), fault }
    }

    /// Where in the chain it stands, as a number: a later version of the interface may know more stages.
    pub fn stage(&self) -> u32 {
        self.library.module.stage()
    }

    /// The name of that stage.
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

    /// The names of the hooks it has.
    pub fn hook_names(&self) -> impl Iterator<Item = &'static str> {
        self.known_hooks().map(|entry| HOOK_NAMES[entry.id as usize])
    }

    /// The names of those that it is worthless without.
    pub fn required_hook_names(&self) -> impl Iterator<Item = &'static str> {
        let required = self.known_hooks().filter(|entry| entry.flags & HookEntry::REQUIRED != 0);
        required.map(|entry| HOOK_NAMES[entry.id as usize])
    }

    /// The hooks it has that this host knows.
    fn known_hooks(&self) -> impl Iterator<Item = &HookEntry> {
        let known = |entry: &&HookEntry| (entry.id as usize) < HOOK_NAMES.len();
        self.library.module.hooks().as_slice().iter().filter(known)
    }
}
