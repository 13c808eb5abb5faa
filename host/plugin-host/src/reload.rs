//! A hot reload: decides for each library whether its plugin stays, gets new settings, or is replaced by a new instance.

use std::path::Path;
use std::sync::Arc;

use vkog_runtime::run_with_timeout;

use crate::chain::{HostContext, PluginError};
use crate::error::{LoadError, LoadFault, SKIPPED};
use crate::load::{Library, Plugin};
use crate::registry::{RELOAD_TIMEOUT, ReloadOutcome, ReloadReport, SharedScan, extract};
use crate::settings::{Settings, Table, is_no_plugin, is_pinned};
use crate::trust::VerifiedLibrary;

/// The state of a reload.
pub(crate) struct Reload {
    /// The loaded plugins that nothing has been decided about, or that are to be replaced.
    pub(crate) old: Vec<Plugin>,
    /// The plugins of the next chain.
    pub(crate) next: Vec<Candidate>,
    pub(crate) reports: Vec<ReloadReport>,
}

/// A plugin of the next chain.
pub(crate) struct Candidate {
    pub(crate) plugin: Plugin,
    /// This reload created it.
    is_new: bool,
    /// It did not start, or its library contained another plugin, which stays.
    pub(crate) failed: bool,
}

impl Reload {
    pub(crate) fn new(old: Vec<Plugin>) -> Self {
        Self { old, next: Vec::new(), reports: Vec::new() }
    }

    /// Decides about a library of the plugin folder and reports the result. A plugin that stays moves from `old` to `next`; a
    /// plugin that is to be replaced stays in `old`.
    pub(crate) fn add(&mut self, path: &Path, settings: &Settings, context: &Arc<HostContext>) {
        let position = self.old.iter().position(|plugin| plugin.path() == path);
        let name = position.map(|position| self.old[position].name().to_owned());
        let outcome = match self.decide(path, position, settings, context) {
            Ok(outcome) => outcome,
            Err(fault) if position.is_none() && is_no_plugin(settings, path, &fault) => {
                tracing::warn!("skipped {}: {SKIPPED}", path.display());
                return;
            }
            Err(fault) => ReloadOutcome::Failed(LoadError { path: path.to_owned(), fault }),
        };
        if let (Some(position), ReloadOutcome::Unchanged | ReloadOutcome::Reconfigured) = (position, &outcome) {
            let plugin = self.old.remove(position);
            self.next.push(Candidate { plugin, is_new: false, failed: false });
        }
        let name = match (&outcome, self.next.last()) {
            (ReloadOutcome::Failed(_), _) | (_, None) => name,
            // The new library may contain a plugin with another name.
            (_, Some(next)) => Some(next.plugin.name().to_owned()),
        };
        self.reports.push(ReloadReport { path: path.to_owned(), name, outcome });
    }

    /// Keeps those of the removed plugins that are the backend of the store, and reports it.
    pub(crate) fn keep_backends(&mut self, gone: &mut Vec<Plugin>) {
        let kept = extract(gone, |plugin| plugin.member().is_backend_in_use());
        self.keep(kept, |name| LoadFault::BackendInUse { name });
    }

    /// Keeps those of the removed plugins, and of those whose libraries contain another plugin now, that the configuration requires,
    /// unless another library contains them now, and reports it. Without `encrypt`, for example, values would be stored as they are.
    pub(crate) fn keep_required(&mut self, gone: &mut Vec<Plugin>, settings: &Settings) {
        let is_expected = |name: &str| settings.get(name).is_some_and(|table| table.host.is_expected);
        let has_moved = |name: &str| self.next.iter().any(|candidate| candidate.plugin.name() == name);
        let is_kept = |plugin: &Plugin| is_expected(plugin.name()) && !has_moved(plugin.name());
        let kept = extract(gone, is_kept);
        let kept_in_place: Vec<_> = self.old.iter().filter(|plugin| is_kept(plugin)).cloned().collect();
        for plugin in kept_in_place {
            let (path, name) = (plugin.path(), plugin.name().to_owned());
            let Some(candidate) = self.next.iter_mut().find(|candidate| candidate.plugin.path() == path) else {
                continue;
            };
            candidate.failed = true;
            let fault = LoadFault::OtherPlugin { name: name.clone(), other: candidate.plugin.name().to_owned() };
            let report = ReloadReport {
                path: path.to_owned(),
                name: Some(name),
                outcome: ReloadOutcome::Failed(LoadError { path: path.to_owned(), fault }),
            };
            self.reports.retain(|report| report.path != path);
            self.reports.push(report);
        }
        self.keep(kept, |name| LoadFault::Required { name });
    }

    fn keep(&mut self, kept: Vec<Plugin>, fault: impl Fn(String) -> LoadFault) {
        for plugin in kept {
            let (path, name) = (plugin.path().to_owned(), plugin.name().to_owned());
            let fault = fault(name.clone());
            let outcome = ReloadOutcome::Failed(LoadError { path: path.clone(), fault });
            self.reports.push(ReloadReport { path, name: Some(name), outcome });
            self.next.push(Candidate { plugin, is_new: false, failed: false });
        }
    }

    fn decide(
        &mut self,
        path: &Path,
        position: Option<usize>,
        settings: &Settings,
        context: &Arc<HostContext>,
    ) -> Result<ReloadOutcome, LoadFault> {
        let verified = VerifiedLibrary::read(path, is_pinned(settings, path))?;
        if let Some(position) = position {
            let plugin = &mut self.old[position];
            let table = settings.get(plugin.name()).cloned().unwrap_or_default();
            let same_code = plugin.library().sha256() == verified.sha256()
                && !plugin.member().is_quarantined()
                && !plugin.member().files_have_changed();
            if same_code && *plugin.table() == table {
                return Ok(ReloadOutcome::Unchanged);
            }
            let reconfigured = if same_code { reconfigure(plugin, table)? } else { None };
            if let Some(outcome) = reconfigured {
                return Ok(outcome);
            }
            if plugin.member().is_backend_in_use() {
                return Err(LoadFault::BackendInUse { name: plugin.name().to_owned() });
            }
        }
        let plugin = self.create(path, verified, settings, context)?;
        self.next.push(Candidate { plugin, is_new: true, failed: false });
        Ok(if position.is_some() { ReloadOutcome::Reloaded } else { ReloadOutcome::Loaded })
    }

    /// Creates a plugin on its own thread, for which this one waits for a limited time.
    fn create(
        &self,
        path: &Path,
        verified: VerifiedLibrary,
        settings: &Settings,
        context: &Arc<HostContext>,
    ) -> Result<Plugin, LoadFault> {
        let others = self.old.iter().chain(self.next.iter().map(|candidate| &candidate.plugin));
        let others = others.filter(|other| other.path() != path);
        let others: Vec<_> = others.map(|other| (other.name().to_owned(), other.path().to_owned())).collect();
        let (path, settings, context) = (path.to_owned(), settings.clone(), Arc::clone(context));
        let created = run_with_timeout("create", RELOAD_TIMEOUT, move || {
            let library = Library::open_verified(&path, &verified, &settings)?;
            if let Some((name, first)) = others.into_iter().find(|(name, _)| name == library.name()) {
                return Err(LoadFault::DuplicateName { name, first });
            }
            let table = settings.get(library.name()).cloned().unwrap_or_default();
            library.create(table, &context)
        });
        created.unwrap_or(Err(LoadFault::NoReturn { function: "create", timeout: RELOAD_TIMEOUT }))
    }

    /// Whether a plugin that this reload created has a `start` hook, and so counts what the store holds.
    pub(crate) fn counts(&self) -> bool {
        let starts = |candidate: &Candidate| candidate.is_new && !candidate.failed;
        self.next.iter().any(|candidate| starts(candidate) && candidate.plugin.member().has("start"))
    }

    /// Starts the plugins that this reload created. Without `drained`, operations are in flight in the old chain, and a plugin
    /// that counts what the store holds does not start.
    pub(crate) fn start(&mut self, scan: &SharedScan, drained: bool) {
        for Candidate { plugin, failed, .. } in self.next.iter_mut().filter(|new| new.is_new && !new.failed) {
            let (member, scan) = (Arc::clone(plugin.member()), Arc::clone(scan));
            let started = if !member.has("start") {
                // There is no hook to call, and so nothing to wait for.
                Some(member.start(&*scan))
            } else if drained {
                run_with_timeout("start", RELOAD_TIMEOUT, move || member.start(&*scan))
            } else {
                Some(Err(PluginError::NotDrained { timeout: RELOAD_TIMEOUT }))
            };
            let error = match started {
                Some(Ok(())) => continue,
                Some(Err(error)) => plugin.start_error(error),
                None => {
                    let fault = LoadFault::NoReturn { function: "start", timeout: RELOAD_TIMEOUT };
                    LoadError { path: plugin.path().to_owned(), fault }
                }
            };
            if let Some(report) = self.reports.iter_mut().find(|report| report.path == plugin.path()) {
                report.outcome = ReloadOutcome::Failed(error);
            }
            *failed = true;
        }
    }
}

/// Passes new settings to a plugin. Returns `None` if they need a new instance.
fn reconfigure(plugin: &mut Plugin, table: Table) -> Result<Option<ReloadOutcome>, LoadFault> {
    if plugin.table().host != table.host || !plugin.member().has("settings_changed") {
        return Ok(None);
    }
    let (member, settings) = (Arc::clone(plugin.member()), table.settings_json());
    match run_with_timeout("settings", RELOAD_TIMEOUT, move || member.settings_changed(&settings)) {
        None => Err(LoadFault::NoReturn { function: "settings_changed", timeout: RELOAD_TIMEOUT }),
        Some(None) => Ok(None),
        Some(Some(Ok(()))) => {
            plugin.set_table(table);
            Ok(Some(ReloadOutcome::Reconfigured))
        }
        Some(Some(Err(error))) => Err(LoadFault::BadSettings { name: plugin.name().to_owned(), error }),
    }
}
