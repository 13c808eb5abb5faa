//! A repair salvages the intact parts, reports the losses, and leaves a store that opens. It does not change an intact store.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crossbeam_channel::bounded;
use vkog_store::Store as _;
use vkog_store::{
    Change, Contents, Damage, Decision, Defect, Disk, Entry, File, Fsync, InvalidEntry, LocalDisk, LocalStore, Lost,
    Mismatch, NewEntry, Options, Origin, Repair, Repaired, StoreError, Update, repair,
};

/// The store of a test, in its own folder.
struct Files {
    _folder: tempfile::TempDir,
    store: PathBuf,
}

/// A disk on which no snapshot gets its name.
struct WithoutRename;

impl Disk for WithoutRename {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn File>>> {
        LocalDisk.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        LocalDisk.create(path)
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalDisk.remove(path)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        LocalDisk.sync_folder(path)
    }
}

const OPTIONS: Options = Options { fsync: Fsync::Always, log_min: u64::MAX, history_max: 0, first_revision: || 11 };

/// Writes a value, or removes the entry.
fn change(store: &LocalStore, key: &str, value: Option<&[u8]>) {
    let entry =
        value.map(|value| Entry::new(key, &NewEntry { value, content_type: "text/plain", details: vec![0x80] }));
    let decide = move |_: &[Change], _: Option<&Entry>| match &entry {
        Some(entry) => Decision::<()>::Write(entry.clone()),
        None => Decision::Remove,
    };
    let (send, done) = bounded(1);
    store.update(key, decide, move |update| {
        let _ = send.send(matches!(update, Update::Committed(_)));
    });
    assert_eq!(done.recv(), Ok(true), "it is committed");
}

fn put(store: &LocalStore, key: &str, value: &str) {
    change(store, key, Some(value.as_bytes()));
}

impl Files {
    /// A store without files.
    fn none() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let store = folder.path().join("store");
        Self { _folder: folder, store }
    }

    /// A store with a snapshot of two entries, revisions 11 and 12, and a log with two changes of the entry `c`.
    fn two_and_a_log() -> Self {
        let files = Self::none();
        let store = files.open(LocalDisk);
        put(&store, "a", "first value");
        put(&store, "b", "other value");
        store.snapshot().expect("it can be written");
        put(&store, "c", "a value in the log");
        put(&store, "c", "another in the log");
        files
    }

    fn open(&self, disk: impl Disk) -> LocalStore {
        LocalStore::open(disk, &self.store, OPTIONS, &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"))
    }

    fn path(&self, ending: &str) -> PathBuf {
        let mut path = self.store.clone().into_os_string();
        path.push(ending);
        path.into()
    }

    fn read(&self, ending: &str) -> Vec<u8> {
        fs::read(self.path(ending)).expect("it exists")
    }

    fn write(&self, ending: &str, data: &[u8]) {
        fs::write(self.path(ending), data).expect("it can be written");
    }

    /// Where a text stands in a file.
    fn find(&self, ending: &str, text: &str) -> usize {
        let data = self.read(ending);
        data.windows(text.len()).position(|part| part == text.as_bytes()).expect("it is in there")
    }

    /// Changes one bit of the byte at an offset.
    fn flip(&self, ending: &str, at: usize) {
        let mut data = self.read(ending);
        data[at] ^= 1;
        self.write(ending, &data);
    }

    /// All files and their content, by name.
    fn all(&self) -> Vec<(String, Vec<u8>)> {
        let folder = fs::read_dir(self.store.parent().expect("a folder")).expect("it can be read");
        let mut all: Vec<_> = folder
            .map(|found| found.expect("it can be read"))
            .map(|found| (found.file_name().into_string().expect("ours"), fs::read(found.path()).expect("a file")))
            .collect();
        all.sort_unstable();
        all
    }

    fn repair(&self) -> Result<Repair, StoreError> {
        repair(&self.store, &|_, _| {})
    }

    /// Repairs a store that is damaged, and compares the result with what the files have then.
    fn repaired(&self) -> Repaired {
        let before = self.all();
        let Ok(Repair::Repaired(repaired)) = self.repair() else { panic!("it is damaged and can be repaired") };
        let contents = Contents::read(&self.store, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((contents.totals(), contents.revision()), (repaired.totals, repaired.revision));
        assert!(contents.lost_log().is_none() && contents.logs().is_empty());
        // What was damaged is there under its new name.
        let after = self.all();
        let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
        for moved in &repaired.moved {
            let old = before.iter().find(|(file, _)| *file == name(&moved.from)).expect("it was there");
            let new = after.iter().find(|(file, _)| *file == name(&moved.to)).expect("it exists");
            assert_eq!(old.1, new.1, "{}", new.0);
        }
        assert_eq!(after.len(), before.len() + 1, "only the snapshot is new");
        repaired
    }

    /// Keys, values and revisions.
    fn entries(&self) -> Vec<(String, String, u64)> {
        let contents = Contents::read(&self.store, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let about = |entry: &Entry| (entry.key().to_owned(), text(entry.value()), entry.revision());
        contents.entries().iter().map(about).collect()
    }

    fn generation(&self) -> u64 {
        Contents::read(&self.store, &|_, _| {}).map_or(0, |contents| contents.generation())
    }
}

/// The origins of the salvaged files, in order.
fn origins(repaired: &Repaired) -> Vec<Origin> {
    repaired.files.iter().map(|file| file.origin).collect()
}

fn names(repaired: &Repaired) -> Vec<String> {
    let name = |path: &Path| path.file_name().expect("a file").to_string_lossy().into_owned();
    repaired.moved.iter().map(|moved| name(&moved.to)).collect()
}

const fn whole(chunks: u64, entries: u64) -> Origin {
    Origin::Snapshot { chunks, entries, unverified: 0, directory_is_damaged: false }
}

fn own(key: &str, value: &str, revision: u64) -> (String, String, u64) {
    (key.to_owned(), value.to_owned(), revision)
}

#[test]
fn a_whole_store_and_one_without_its_log_stay_as_they_are() {
    let files = Files::two_and_a_log();
    let before = files.all();
    assert!(matches!(files.repair(), Ok(Repair::Intact)));
    assert_eq!(files.all(), before);
    let log = files.read(".log");
    fs::remove_file(files.path(".log")).expect("it exists");
    let Ok(Repair::LostLog(lost)) = files.repair() else { panic!("its log is missing") };
    assert_eq!((lost.path, lost.len), (files.path(".log"), None));
    // A log that ends with its head has lost the record that follows.
    for (len, is_lost) in [(0, true), (10, true), (60, true), (71, false)] {
        files.write(".log", &log[..len]);
        match files.repair() {
            Ok(Repair::LostLog(lost)) if is_lost => assert_eq!(lost.len, Some(len as u64)),
            Ok(Repair::Intact) if !is_lost => {}
            other => panic!("{len} bytes: {other:?}"),
        }
    }
    // After a clean stop the log is empty and may be missing.
    files.write(".log", &log);
    files.open(LocalDisk).close().expect("it can be written");
    fs::remove_file(files.path(".log")).expect("it exists");
    assert!(matches!(files.repair(), Ok(Repair::Intact)));
}

#[test]
fn a_damaged_chunk_is_lost_and_the_log_is_kept() {
    let files = Files::two_and_a_log();
    let start = files.find("", "first value").min(files.find("", "other value")) - 3;
    // Each text follows one byte with its length.
    let len = 1 + "a".len() + 1 + "first value".len();
    files.flip("", files.find("", "first value"));
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [whole(0, 0), Origin::Log { records: 2, gap: false }]);
    let lost = Lost { at: start as u64, bytes: 2 * len as u64, entries: Some(2), is_tail: false };
    assert_eq!((&repaired.files[0].lost[..], &repaired.files[1].lost[..]), (&[lost][..], &[][..]));
    assert_eq!((repaired.files[0].path.clone(), repaired.files[1].path.clone()), (files.path(""), files.path(".log")));
    assert_eq!(files.entries(), [own("c", "another in the log", 14)]);
    assert_eq!((repaired.revision, files.generation()), (14, 2));
    assert_eq!(names(&repaired), ["store.damaged", "store.log.damaged"]);
    // The next ones get the next numbers.
    let mut damaged = "another in the log";
    for (number, value) in [(2, "after the first repair"), (3, "after the second repair")] {
        let store = files.open(LocalDisk);
        put(&store, value, value);
        drop(store);
        files.flip("", files.find("", damaged));
        let expected = [format!("store.damaged.{number}"), format!("store.log.damaged.{number}")];
        assert_eq!(names(&files.repaired()), expected);
        damaged = value;
    }
}

#[test]
fn a_damaged_record_is_lost_and_those_after_it_are_kept() {
    let files = Files::two_and_a_log();
    let log = files.read(".log");
    files.flip(".log", files.find(".log", "a value in the log"));
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [whole(1, 2), Origin::Log { records: 1, gap: false }]);
    let [lost] = repaired.files[1].lost[..] else { panic!("not one part") };
    let record = &log[lost.at as usize..];
    let len = 8 + u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    assert_eq!((lost.bytes, lost.entries, lost.is_tail), (len.into(), None, false));
    assert_eq!(
        files.entries(),
        [own("a", "first value", 11), own("b", "other value", 12), own("c", "another in the log", 14)]
    );
}

#[test]
fn entries_without_a_checksum_get_new_revisions() {
    let files = Files::two_and_a_log();
    let data = files.read("");
    // The last byte belongs to the directory.
    files.flip("", data.len() - 1);
    let repaired = files.repaired();
    let origin =
        |chunks, entries, unverified| Origin::Snapshot { chunks, entries, unverified, directory_is_damaged: true };
    let [snapshot, log] = origins(&repaired)[..] else { panic!("two files") };
    assert!(snapshot == origin(0, 0, 2) || snapshot == origin(1, 2, 0), "{snapshot:?}");
    assert_eq!(log, Origin::Log { records: 2, gap: false });
    let found = files.entries();
    let now = repaired.revision;
    assert!(now > 1 << 50, "a time in microseconds: {now}");
    let mut new: Vec<u64> = found[..2].iter().map(|(_, _, revision)| *revision).collect();
    new.sort_unstable();
    assert_eq!(new, [now - 1, now]);
    assert_eq!(found[2], own("c", "another in the log", 14));
}

#[test]
fn a_log_of_another_store_or_of_a_copy_or_from_before_is_left_aside() {
    // Another store.
    let files = Files::two_and_a_log();
    files.write(".log", &Files::two_and_a_log().read(".log"));
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [whole(1, 2), Origin::Foreign]);
    assert_eq!((files.entries().len(), repaired.revision), (2, 12));

    // Another copy of this store, which has written its own snapshot.
    let files = Files::none();
    let store = files.open(LocalDisk);
    put(&store, "a", "first value");
    drop(store);
    let log = files.read(".log");
    files.open(LocalDisk).snapshot().expect("it can be written");
    let copy = Files::none();
    copy.write(".log", &log);
    let store = copy.open(LocalDisk);
    store.snapshot().expect("it can be written");
    put(&store, "b", "in the copy");
    files.write(".log", &copy.read(".log"));
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [whole(1, 1), Origin::Foreign]);
    assert_eq!(files.entries(), [own("a", "first value", 11)]);

    // The log of two snapshots before, also where the snapshot has a hole.
    for damaged in [false, true] {
        let files = Files::two_and_a_log();
        let old = files.read(".log");
        let store = files.open(LocalDisk);
        store.snapshot().expect("it can be written");
        change(&store, "c", None);
        store.snapshot().expect("it can be written");
        drop(store);
        if damaged {
            files.flip("", files.find("", "first value"));
        }
        files.write(".log", &old);
        match (damaged, files.repair()) {
            (true, Err(StoreError::Unreadable { damage: Damage::At { offset, defect }, .. })) => {
                assert_eq!((offset, defect), (0, Defect::NothingToSalvage));
            }
            (false, Ok(Repair::Repaired(repaired))) => {
                assert_eq!(origins(&repaired), [whole(1, 2), Origin::Superseded]);
                assert_eq!((files.entries().len(), files.generation()), (2, 4));
            }
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_log_before_a_snapshot_replaces_what_that_has_lost() {
    let files = Files::two_and_a_log();
    let old = files.read(".log");
    let store = files.open(LocalDisk);
    store.snapshot().expect("it can be written");
    drop(store);
    files.write(".log", &old);
    files.flip("", files.find("", "first value"));
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [whole(0, 0), Origin::Log { records: 2, gap: false }]);
    assert_eq!(files.entries(), [own("c", "another in the log", 14)]);
}

#[test]
fn the_logs_around_an_unfinished_snapshot_are_both_salvaged() {
    // The log, the next one, or neither of them is missing.
    for missing in ["", ".log", ".log.next"] {
        let files = Files::two_and_a_log();
        let store = files.open(WithoutRename);
        store.snapshot().expect_err("no file is renamed");
        assert_eq!((store.snapshots(), store.snapshot_failure().is_some()), ((0, 1), true));
        put(&store, "d", "in the next log");
        change(&store, "c", None);
        drop(store);
        assert!(matches!(files.repair(), Ok(Repair::Intact)));
        assert_eq!(files.entries().last(), Some(&own("d", "in the next log", 15)));
        files.flip("", files.find("", "first value"));
        let expected = match missing {
            "" => vec![whole(0, 0), Origin::Log { records: 2, gap: false }, Origin::Log { records: 2, gap: false }],
            ".log" => vec![whole(0, 0), Origin::Log { records: 2, gap: true }],
            _ => vec![whole(0, 0), Origin::Log { records: 2, gap: false }],
        };
        if !missing.is_empty() {
            fs::remove_file(files.path(missing)).expect("it exists");
        }
        let repaired = files.repaired();
        assert_eq!(origins(&repaired), expected, "without {missing:?}");
        let (found, generation) = match missing {
            ".log.next" => (own("c", "another in the log", 14), 2),
            _ => (own("d", "in the next log", 15), 3),
        };
        assert_eq!((files.entries(), files.generation()), (vec![found], generation), "without {missing:?}");
    }
}

#[test]
fn the_last_change_of_a_key_counts_in_whatever_order_the_logs_are() {
    let files = Files::two_and_a_log();
    let store = files.open(LocalDisk);
    change(&store, "c", None);
    put(&store, "c", "written again");
    drop(store);
    files.flip("", files.find("", "first value"));
    files.repaired();
    assert_eq!(files.entries(), [own("c", "written again", 16)]);

    let files = Files::two_and_a_log();
    let store = files.open(WithoutRename);
    store.snapshot().expect_err("no file is renamed");
    change(&store, "c", None);
    drop(store);
    let logs = [".log", ".log.next"].map(|ending| files.read(ending));
    files.write(".log", &logs[1]);
    files.write(".log.next", &logs[0]);
    files.flip("", files.find("", "first value"));
    let repaired = files.repaired();
    assert_eq!((files.entries(), repaired.revision), (Vec::new(), 15));
}

#[test]
fn bytes_that_no_row_covers_are_lost_once() {
    let files = Files::two_and_a_log();
    let start = files.find("", "first value").min(files.find("", "other value")) - 3;
    let mut data = files.read("");
    let (end, directory) = (files.find("", "Chunks") - 1, files.find("", "Chunks") + "Chunks?".len());
    (data[start], data[directory]) = (0xc1, 0xc1);
    files.write("", &data);
    let repaired = files.repaired();
    let lost = Lost { at: start as u64, bytes: (end - start) as u64, entries: None, is_tail: false };
    assert_eq!(repaired.files[0].lost, [lost]);
}

#[test]
fn a_log_that_follows_another_file_of_the_go_program_is_refused() {
    const FILE: &[u8] = b"\x82\xa2KV\x81\xa1a\xa31st\xa6KVSize\x04";
    let files = Files::none();
    files.write("", FILE);
    put(&files.open(LocalDisk), "b", "in the log");
    assert_eq!(files.entries(), [own("a", "1st", 11), own("b", "in the log", 12)]);
    // The same entries, and one byte more.
    files.write("", &[&FILE[..FILE.len() - 1], b"\xcc\x04"].concat());
    let error = Contents::read(&files.store, &|_, _| {}).err().expect("the log is of another file");
    let StoreError::Mismatch { path, mismatch: Mismatch::Store } = error else { panic!("{error}") };
    assert_eq!(path, files.path(".log"));
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [Origin::GoFile { entries: 1 }, Origin::Foreign]);
}

#[test]
fn a_file_of_the_go_program_is_salvaged_as_far_as_it_goes() {
    const WHOLE: &[u8] = b"\x82\xa2KV\x84\xa1a\xa31st\xa1b\xa32nd\xa0\xa3bad\xa1c\xa33rd\xa6KVSize\x0f";
    let files = Files::none();
    files.write("", WHOLE);
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [Origin::GoFile { entries: 3 }]);
    let [left_out] = &repaired.left_out[..] else { panic!("one entry has no key") };
    assert_eq!((left_out.at, &left_out.key[..], &left_out.value[..]), (17, &b""[..], &b"bad"[..]));
    assert_eq!(left_out.reason, InvalidEntry::EmptyKey);
    assert!(repaired.files[0].lost.is_empty());
    let keys: Vec<_> = files.entries().into_iter().map(|(key, value, _)| (key, value)).collect();
    let pairs = [("a", "1st"), ("b", "2nd"), ("c", "3rd")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(keys, pairs);

    // Cut off within the second entry.
    let files = Files::none();
    files.write("", &WHOLE[..13]);
    let repaired = files.repaired();
    assert_eq!(origins(&repaired), [Origin::GoFile { entries: 1 }]);
    assert_eq!(repaired.files[0].lost, [Lost { at: 11, bytes: 2, entries: Some(3), is_tail: false }]);
    assert_eq!(repaired.totals, (1, 4));
}

#[test]
fn files_without_anything_of_a_store_are_left_as_they_are() {
    for data in [&b"no store at all"[..], b"\x82\xa2KV\x84", b"\xc1"] {
        let files = Files::none();
        files.write("", data);
        let before = files.all();
        let Err(StoreError::Unreadable { path, damage }) = files.repair() else { panic!("nothing is salvaged") };
        assert!(matches!(damage, Damage::At { offset: 0, defect: Defect::NothingToSalvage }), "{damage}");
        assert_eq!((path, files.all()), (files.path(""), before));
    }
    // A newer program's file is not damaged.
    let files = Files::two_and_a_log();
    let mut data = files.read("");
    data[22] = 9;
    files.write("", &data);
    files.flip("", files.find("", "head_crc") + "head_crc".len() + 8);
    let before = files.all();
    let Err(StoreError::Unreadable { damage, .. }) = files.repair() else { panic!("it is of another format") };
    assert!(matches!(damage, Damage::At { defect: Defect::Format { found: 9, .. }, .. }), "{damage}");
    assert_eq!(files.all(), before);
}
