//! What a reload does with each library: nothing, new settings, another instance.

use std::path::Path;
use std::sync::Arc;

use crate::{Failed, Port};

use crate::error::{LoadError, LoadFault};
use crate::load::{Library, Plugin};
use crate::registry::{Outcome, PATIENCE, SharedScan, Taken};
use crate::terms::{Settings, Table, is_pinned};
use crate::trust::Image;
use vkog_runtime::run_with_timeout;

/// What is loaded while others are to take its place.
pub(crate) struct Exchange {
    pub(crate) old: Vec<Plugin>,
    pub(crate) next: Vec<Candidate>,
    pub(crate) taken: Vec<Taken>,
}

/// A plugin that is to be in the next chain.
pub(crate) struct Candidate {
    pub(crate) plugin: Plugin,
    /// It was created just now.
    is_fresh: bool,
    /// It did not start.
    pub(crate) failed: bool,
}

/// Why a plugin that counts what the store holds does not start.
pub(crate) fn not_quiet() -> Failed {
    Failed::Error(format!("requests under way did not end within {PATIENCE:?}, and it counts what the store holds"))
}

impl Exchange {
    pub(crate) fn new(old: Vec<Plugin>) -> Self {
        Self { old, next: Vec::new(), taken: Vec::new() }
    }

    /// Takes in a library of the folder. What stays as it is goes on in `next`; what is replaced waits in `old`.
    pub(crate) fn take(&mut self, path: &Path, settings: &Settings, port: &Arc<Port>) {
        let position = self.old.iter().position(|plugin| plugin.path() == path);
        let name = position.map(|position| self.old[position].name().to_owned());
        let outcome = match self.judge(path, position, settings, port) {
            Ok(outcome) => outcome,
            Err(fault) => Outcome::Failed(LoadError { path: path.to_owned(), fault }),
        };
        if let (Some(position), Outcome::Kept | Outcome::Reconfigured) = (position, &outcome) {
            let plugin = self.old.remove(position);
            self.next.push(Candidate { plugin, is_fresh: false, failed: false });
        }
        let name = match (&outcome, self.next.last()) {
            (Outcome::Failed(_), _) | (_, None) => name,
            // It may be another than the one that was there.
            (_, Some(taken)) => Some(taken.plugin.name().to_owned()),
        };
        self.taken.push(Taken { path: path.to_owned(), name, outcome });
    }

    fn judge(
        &mut self,
        path: &Path,
        position: Option<usize>,
        settings: &Settings,
        port: &Arc<Port>,
    ) -> Result<Outcome, LoadFault> {
        let image = Image::read(path, is_pinned(settings, path))?;
        if let Some(position) = position {
            let plugin = &mut self.old[position];
            let table = settings.get(plugin.name()).cloned().unwrap_or_default();
            let same_code = plugin.sha256() == image.sha256() && !plugin.member().is_quarantined();
            if same_code && *plugin.table() == table {
                return Ok(Outcome::Kept);
            }
            if same_code && let Some(outcome) = reconfigure(plugin, table)? {
                return Ok(outcome);
            }
        }
        let others = self.old.iter().chain(self.next.iter().map(|candidate| &candidate.plugin));
        let others = others.filter(|other| other.path() != path);
        let others: Vec<_> = others.map(|other| (other.name().to_owned(), other.path().to_owned())).collect();
        let (path, settings, port) = (path.to_owned(), settings.clone(), Arc::clone(port));
        let created = run_with_timeout("create", PATIENCE, move || {
            let library = Library::open_image(&path, &image, &settings)?;
            if let Some((name, first)) = others.into_iter().find(|(name, _)| name == library.name()) {
                return Err(LoadFault::DuplicateName { name, first });
            }
            let table = settings.get(library.name()).cloned().unwrap_or_default();
            library.create(table, &port)
        });
        let plugin = created.unwrap_or(Err(LoadFault::NoReturn { place: "create", patience: PATIENCE }))?;
        self.next.push(Candidate { plugin, is_fresh: true, failed: false });
        Ok(if position.is_some() { Outcome::Reloaded } else { Outcome::Loaded })
    }

    /// Whether a plugin that was created counts what the store holds.
    pub(crate) fn counts(&self) -> bool {
        self.next.iter().any(|candidate| candidate.is_fresh && candidate.plugin.member().has("start"))
    }

    /// Starts what was created. `may_count` says whether a plugin that counts what the store holds may start.
    pub(crate) fn start(&mut self, scan: &SharedScan, may_count: impl Fn() -> Result<(), Failed>) {
        for Candidate { plugin, failed, .. } in self.next.iter_mut().filter(|candidate| candidate.is_fresh) {
            let (member, scan) = (Arc::clone(plugin.member()), Arc::clone(scan));
            let started = if member.has("start") {
                may_count().map_or_else(
                    |failed| Some(Err(failed)),
                    |()| run_with_timeout("start", PATIENCE, move || member.start(&*scan)),
                )
            } else {
                // There is nothing to call, and nothing to wait for.
                Some(member.start(&*scan))
            };
            let error = match started {
                Some(Ok(())) => continue,
                Some(Err(failed)) => plugin.start_fault(failed),
                None => {
                    let fault = LoadFault::NoReturn { place: "start", patience: PATIENCE };
                    LoadError { path: plugin.path().to_owned(), fault }
                }
            };
            if let Some(report) = self.taken.iter_mut().find(|report| report.path == plugin.path()) {
                report.outcome = Outcome::Failed(error);
            }
            *failed = true;
        }
    }
}

/// Hands a plugin its new settings. `None` if it has to be made anew for them.
fn reconfigure(plugin: &mut Plugin, table: Table) -> Result<Option<Outcome>, LoadFault> {
    if plugin.table().terms != table.terms || !plugin.member().has("settings_changed") {
        return Ok(None);
    }
    let (member, settings) = (Arc::clone(plugin.member()), table.settings_json());
    match run_with_timeout("settings", PATIENCE, move || member.settings_changed(&settings)) {
        None => Err(LoadFault::NoReturn { place: "settings_changed", patience: PATIENCE }),
        Some(None) => Ok(None),
        Some(Some(Ok(()))) => {
            plugin.set_table(table);
            Ok(Some(Outcome::Reconfigured))
        }
        Some(Some(Err(Failed::Panicked(said) | Failed::Error(said) | Failed::Settings(said)))) => {
            Err(LoadFault::BadSettings { name: plugin.name().to_owned(), said })
        }
    }
}
