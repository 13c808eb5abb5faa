//! The files of the store: entries in their stored form, images at random moments, and a search for plain text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use vkog_tests::{Server, Setup, TOKEN};

use super::batch::value_of;
use super::config::{MARKER, round_of};
use super::tenant::{State, Tenant, index_of, state};

/// An entry as it is stored.
pub(super) struct Stored {
    revision: u64,
    value: Vec<u8>,
}

/// The files of a store at a moment, and how many operations of each client had succeeded shortly before and after it.
pub(super) struct Image {
    pub(super) store: PathBuf,
    /// The server has synced each write.
    pub(super) is_synced: bool,
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
}

/// Parses an export.
fn parsed(lines: &str) -> BTreeMap<String, Stored> {
    let entry = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let value = value_of(&line, "value_base64")?;
        let revision = line["revision"].as_u64().expect("an entry has a revision");
        Some((line["key"].as_str().expect("an entry has a key").to_owned(), Stored { revision, value }))
    };
    lines.lines().filter_map(entry).collect()
}

pub(super) fn export_of(server: &Server) -> BTreeMap<String, Stored> {
    let request = server.path("GET", "/export").header("Authorization", format!("Bearer {TOKEN}"));
    parsed(&request.send().expect(200).text())
}

/// Exports the files of a store without a server.
fn export_of_file(setup: &Setup, store: &Path) -> BTreeMap<String, Stored> {
    let exit = setup.run(["export".into(), "-f".into(), store.as_os_str().to_owned()]).expect(0);
    parsed(&exit.stdout)
}

/// Returns a stored key as the client sees it, if it is one of its keys.
fn seen<'a>(tenants: &[Tenant], tenant: &Tenant, key: &'a str) -> Option<&'a str> {
    let owner = tenants.iter().find(|tenant| !tenant.prefix.is_empty() && key.starts_with(tenant.prefix));
    match owner {
        Some(owner) => key.strip_prefix(tenant.prefix).filter(|_| owner.prefix == tenant.prefix),
        None => Some(key).filter(|_| tenant.prefix.is_empty()),
    }
}

/// Compares an export with the model. Learns from it in which round each value was stored.
pub(super) fn compare(tenants: &mut [Tenant], stored: &BTreeMap<String, Stored>) {
    for at in 0..tenants.len() {
        let (mut entries, mut index) = (State::new(), BTreeSet::new());
        for (whole, Stored { revision, value }) in stored {
            let Some(key) = seen(tenants, &tenants[at], whole) else { continue };
            let round = round_of(value).unwrap_or_else(|| panic!("{whole} is not encrypted"));
            let tenant = &mut tenants[at];
            if key.starts_with("index/") {
                index.insert(key.to_owned());
                if let Some(rounds) = tenant.index.get_mut(key) {
                    assert!((rounds[0]..=rounds[1]).contains(&round), "{whole}: {round}, not {rounds:?}");
                    *rounds = [round; 2];
                }
                let len = tenant.index_cost(key, round) - whole.len() as u64;
                assert_eq!(value.len() as u64, len, "{whole}");
                continue;
            }
            entries.insert(key.to_owned(), *revision);
            let Some(entry) = tenant.entries.get_mut(key) else { continue };
            assert!((entry.rounds[0]..=entry.rounds[1]).contains(&round), "{whole}: {round}, not {:?}", entry.rounds);
            entry.set_round(round);
            assert_eq!(value.len() as u64, entry.stored, "{whole}, round {round}");
        }
        let tenant = &tenants[at];
        assert_eq!(entries, state(&tenant.entries), "{}", tenant.token);
        assert_eq!(index, tenant.index.keys().cloned().collect(), "the index of {}", tenant.token);
    }
}

impl Image {
    /// Compares the image with the states between its moments: it contains one of them, and the exact index of that one. Returns
    /// how many operations of each client are in it.
    pub(super) fn check(&self, setup: &Setup, tenants: &[Tenant], fields: &[&str]) -> Vec<usize> {
        contains_no_plain_text(self.store.parent().expect("a file is in a folder"));
        let stored = export_of_file(setup, &self.store);
        let newest = stored.values().map(|stored| stored.revision).max().unwrap_or(0);
        let found = tenants.iter().enumerate().map(|(at, tenant)| {
            let keys = stored.iter().filter_map(|(key, stored)| Some((seen(tenants, tenant, key)?, stored.revision)));
            let keys: Vec<(String, u64)> = keys.map(|(key, revision)| (key.to_owned(), revision)).collect();
            let (index, entries): (Vec<_>, Vec<_>) = keys.into_iter().partition(|(key, _)| key.starts_with("index/"));
            let (index, entries): (State, State) = (index.into_iter().collect(), entries.into_iter().collect());
            let moments = self.before[at]..=self.after[at].min(tenant.journal.len());
            // The last one, because a batch may change nothing.
            let moment = moments.clone().rev().find(|moment| state(&tenant.entries_after(*moment)) == entries);
            let moment = moment.unwrap_or_else(|| {
                let nearest = state(&tenant.entries_after(*moments.start()));
                panic!("{} is in no state of {moments:?}:\n{entries:?}\nbut {nearest:?}", tenant.token)
            });
            // The image ends at one revision for all clients.
            let next = tenant.journal.get(moment).and_then(|effects| effects[0].revision());
            assert!(next.is_none_or(|next| next > newest), "{} lacks {next:?}, not {newest}", tenant.token);
            let expected = index_of(&tenant.entries_after(moment), fields);
            assert_eq!(index.into_keys().collect::<BTreeSet<_>>(), expected, "the index of {}", tenant.token);
            moment
        });
        found.collect()
    }
}

impl Image {
    /// Cuts off the end of the log, as a power cut may. Returns false if that could not have happened: if less was written in this
    /// round, or if the log was synced, as each write is with `--fsync always`, and each log that has a successor.
    pub(super) fn tear(&mut self, bytes: usize) -> bool {
        let path = format!("{}.log", self.store.display());
        if self.is_synced || fs::exists(format!("{path}.next")).expect("the folder can be read") {
            return false;
        }
        let log = fs::read(&path).unwrap_or_default();
        // The log is longer than its content, by zeros.
        let end = log.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if end < 3 * bytes || self.before.iter().any(|operations| *operations < 8) {
            return false;
        }
        self.before.fill(0);
        fs::write(path, &log[..end - bytes]).expect("it can be written");
        true
    }
}

/// Asserts that no file of a folder contains a part of a value.
pub(super) fn contains_no_plain_text(folder: &Path) {
    for file in fs::read_dir(folder).expect("the folder can be read") {
        let path = file.expect("the folder can be read").path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !name.starts_with("store.vkog") && !name.ends_with(".backup") {
            continue;
        }
        let bytes = fs::read(&path).expect("the file can be read");
        let marker = MARKER.as_bytes();
        let found = bytes.windows(marker.len()).position(|part| part == marker);
        assert_eq!(found, None, "plain text in {}", path.display());
    }
}

/// Copies the files of a store into a new folder.
pub(super) fn copy(store: &Path, number: usize) -> PathBuf {
    let folder = store.with_file_name(format!("image-{number}"));
    fs::create_dir(&folder).expect("a folder can be made");
    vkog_tests::only_ours(&folder);
    let own = store.file_name().expect("it has a name").to_string_lossy().into_owned();
    for file in fs::read_dir(store.parent().expect("a file is in a folder")).expect("the folder can be read") {
        let file = file.expect("the folder can be read");
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with(&own) && !name.ends_with(".lock") {
            fs::copy(file.path(), folder.join(name)).expect("it can be copied");
        }
    }
    folder.join(store.file_name().expect("it has a name"))
}
