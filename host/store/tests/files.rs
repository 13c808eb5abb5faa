//! The files of a store as other programs see them: their names, their mode, what a check counts in them.

use std::fs;
use std::path::Path;

use crossbeam_channel::bounded;
use vkog_store::{
    Change, Contents, DEFAULT_CONTENT_TYPE, Damage, Decision, Defect, Disk, Entry, Import, InvalidEntry, KEY_MAX,
    LoadPhase, LocalDisk, LocalStore, NewEntry, Options, Store, Update, check_entry, exists, has_file,
    owned_content_type,
};

/// Runs an update that succeeds.
fn update(store: &LocalStore, key: &str, decide: impl Fn() -> Decision<()> + Send + 'static) {
    let (send, done) = bounded(1);
    let decide = move |_: &[Change], _: Option<&Entry>| decide();
    store.update(key, decide, move |update| {
        assert!(matches!(update, Update::Committed(_)));
        send.send(()).expect("the test waits");
    });
    done.recv().expect("it is committed");
}

fn put(store: &LocalStore, key: &'static str, value: &'static [u8]) {
    let draft = move || NewEntry { value, content_type: "text/plain", details: Vec::new() };
    update(store, key, move || Decision::Write(Entry::new(key, &draft())));
}

#[test]
fn a_check_counts_the_entries_and_the_records_of_the_log() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("store");
    assert!(!exists(&path).expect("the folder can be read"));
    let options = Options { first_revision: || 5, ..Options::default() };
    let store = LocalStore::open(LocalDisk, &path, options, &|_, _, _| {}).expect("it is new");
    put(&store, "b", b"12");
    put(&store, "a", b"3");
    put(&store, "c", b"4");
    update(&store, "c", || Decision::Remove);
    assert!(exists(&path).expect("the folder can be read"));
    let contents = Contents::read(&path, &|_, _| {}).expect("it is whole");
    assert_eq!((contents.totals(), contents.revision()), (store.totals(), 8));
    assert_eq!(contents.totals().0, 2);
    assert_eq!((contents.generation(), contents.lost_log().is_some()), (0, false));
    let entries: Vec<_> = contents.entries().iter().map(|entry| (entry.key().to_owned(), entry.revision())).collect();
    assert_eq!(entries, [("a".to_owned(), 6), ("b".to_owned(), 5)]);
    let [log] = contents.logs() else { panic!("one log") };
    assert_eq!((log.records, log.torn), (4, 0));
    assert!(log.len > 0 && log.path == folder.path().join("store.log"));
}

#[test]
fn the_files_of_a_store_are_those_beside_it_with_its_endings() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let at = |name: &str| folder.path().join(name);
    let within = at("within");
    fs::create_dir(&within).expect("a folder can be made");
    for name in ["store", "store.log", "store.log.next", "store.new", "store.lock"] {
        assert!(has_file(&at("store"), &at(name)), "{name}");
        assert!(has_file(&at("store"), &within.join("..").join(name)), "{name} by another path");
        assert!(!has_file(&at("store"), &within.join(name)), "{name} in another folder");
    }
    for name in ["store.toml", "other", "store.log.old"] {
        assert!(!has_file(&at("store"), &at(name)), "{name}");
    }
}

#[test]
fn a_disk_opens_files_only_and_removes_what_may_be_gone() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("file");
    assert!(LocalDisk.open(&path).expect("it is absent").is_none());
    assert!(LocalDisk.open(folder.path()).is_err(), "a folder is no file");
    let file = LocalDisk.create(&path).expect("it can be made");
    file.write_at(2, b"abc").expect("it can be written");
    let mut read = [9; 5];
    file.read_at(0, &mut read).expect("it has five bytes");
    assert_eq!((&read, file.len().expect("it is open")), (b"\0\0abc", 5));
    assert!(file.read_at(1, &mut read).is_err(), "it has no more bytes");
    file.set_len(3).expect("it can be cut off");
    assert_eq!(fs::read(&path).expect("it exists"), b"\0\0a");
    assert!(LocalDisk.open(&path).expect("it can be read").is_some());
    LocalDisk.remove(&path).expect("it exists");
    LocalDisk.remove(&path).expect("that it is gone is no error");
    assert!(LocalDisk.remove(folder.path()).is_err(), "a folder is no file");
    LocalDisk.sync_folder(&path).expect("the folder exists");
    assert!(LocalDisk.sync_folder(&path.join("file")).is_err(), "there is no such folder");
    assert!(!path.exists());
}

#[cfg(unix)]
#[test]
fn a_new_file_is_for_its_owner_until_it_gets_the_mode_of_another() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (path, other) = (folder.path().join("file"), folder.path().join("other"));
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o7777;
    drop(LocalDisk.create(&path).expect("it can be made"));
    LocalDisk.imitate(&path, &other).expect("there is nothing to imitate");
    assert_eq!(mode(&path), 0o600);
    drop(LocalDisk.create(&other).expect("it can be made"));
    fs::set_permissions(&other, fs::Permissions::from_mode(0o640)).expect("it is ours");
    LocalDisk.imitate(&path, &other).expect("it is ours");
    assert_eq!(mode(&path), 0o640);
    assert!(LocalDisk.free(&path).is_some_and(|free| free > 0));
    assert!(LocalDisk.free(Path::new("file")).is_some(), "the current folder is on a disk, too");
}

#[test]
fn a_check_names_the_generation_the_snapshot_and_both_logs() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("store");
    let open = || LocalStore::open(LocalDisk, &path, Options::default(), &|_, _, _| {}).expect("it is whole");
    let store = open();
    put(&store, "a", b"1");
    assert_eq!((store.snapshots(), store.syncs().count() > 0), ((0, 0), true));
    store.snapshot().expect("it can be written");
    assert_eq!((store.snapshots(), store.snapshot_failure().is_some()), ((1, 0), false));
    put(&store, "b", b"2");
    let before = Contents::read(&path, &|_, _| {}).expect("it is whole");
    assert_eq!((before.generation(), before.totals()), (1, (2, 4)));
    assert_eq!(before.snapshot_len(), fs::metadata(&path).expect("it exists").len());
    let [log] = before.logs() else { panic!("one log") };
    assert_eq!((log.records, log.len), (1, store.log_len()));
    store.close().expect("it can be written");
    drop(store);
    let after = Contents::read(&path, &|_, _| {}).expect("it is whole");
    assert_eq!((after.generation(), after.revision()), (2, before.revision()));
    assert!(after.logs().iter().all(|log| log.records == 0));
    // Nothing was written: closing writes no snapshot, and the next opening has the same.
    let store = open();
    store.close().expect("it can be written");
    assert_eq!((store.snapshots(), store.revision()), ((0, 0), before.revision()));
    assert_eq!(Contents::read(&path, &|_, _| {}).expect("it is whole").generation(), 2);
}

#[test]
fn opening_reports_the_bytes_of_the_snapshot_and_then_those_of_the_log() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("store");
    let store = LocalStore::open(LocalDisk, &path, Options::default(), &|_, _, _| {}).expect("it is new");
    put(&store, "a", b"1");
    store.snapshot().expect("it can be written");
    assert_eq!(store.unfinished_snapshot_len(), None);
    fs::write(path.with_extension("new"), "12345").expect("it can be written");
    assert_eq!(store.unfinished_snapshot_len(), Some(5));
    fs::remove_file(path.with_extension("new")).expect("it exists");
    put(&store, "b", b"2");
    let log_len = store.log_len();
    let copy = folder.path().join("copy");
    fs::copy(&path, &copy).expect("it can be read");
    fs::copy(path.with_extension("log"), copy.with_extension("log")).expect("it can be read");
    let reported = parking_lot::Mutex::new(Vec::new());
    let report = |phase, done: u64, total: u64| reported.lock().push((phase, done, total));
    LocalStore::open(LocalDisk, &copy, Options::default(), &report).expect("it is whole");
    let reported = reported.into_inner();
    let (snapshot, log): (Vec<_>, Vec<_>) = reported.iter().partition(|(phase, ..)| *phase == LoadPhase::Snapshot);
    assert_eq!([&snapshot[..], &log[..]].concat(), reported);
    assert!(snapshot.last().is_some_and(|(_, done, total)| 0 < *done && done <= total), "{snapshot:?}");
    assert!(log.last().is_some_and(|(_, done, total)| *done == log_len && done <= total), "{log:?}");
}

#[test]
fn an_import_counts_new_and_overwritten_entries_and_writes_a_snapshot() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("store");
    // The revisions are ahead of the time.
    let options = Options { first_revision: || 1 << 53, ..Options::default() };
    let store = LocalStore::open(LocalDisk, &path, options, &|_, _, _| {}).expect("it is new");
    put(&store, "a", b"before");
    put(&store, "b", b"before");
    let last = store.revision();
    store.close().expect("it can be written");
    drop(store);
    let mut import = Import::default();
    assert!(import.is_empty());
    for (key, value) in [("b", &b"1"[..]), ("c", b"2"), ("c", b"3"), ("d", b"4")] {
        import.push(key, &NewEntry { value, content_type: "text/plain", details: vec![0x80] });
    }
    assert_eq!((import.len(), import.is_empty()), (4, false));
    let added = import.run(LocalDisk, &path, Options::default(), &|_, _| {}).expect("it can be written");
    assert_eq!((added.new, added.overwritten, added.entries), (2, 1, 4));
    assert_eq!(added.revision, last + 4);
    let contents = Contents::read(&path, &|_, _| {}).expect("it is whole");
    assert_eq!((contents.revision(), contents.totals()), (added.revision, (4, 4 + 6 + 3)));
    let found: Vec<_> = contents
        .entries()
        .iter()
        .map(|entry| (entry.key().to_owned(), entry.value().to_vec(), added.revision.saturating_sub(entry.revision())))
        .collect();
    let own = |key: &str, value: &[u8], back| (key.to_owned(), value.to_vec(), back);
    assert_eq!(found, [own("a", b"before", 5), own("b", b"1", 3), own("c", b"3", 1), own("d", b"4", 0)]);
    assert!(contents.logs().iter().all(|log| log.records == 0), "a snapshot has them all");
}

#[test]
fn only_what_a_request_can_write_is_an_entry() {
    let long = vec![b'k'; KEY_MAX + 1];
    for (key, value, expected) in [
        (&b"key"[..], &b"v"[..], Ok("key")),
        (&long[1..], b"v", Ok(std::str::from_utf8(&long[1..]).expect("text"))),
        (&long, b"v", Err(InvalidEntry::LongKey { bytes: KEY_MAX + 1 })),
        (b"", b"v", Err(InvalidEntry::EmptyKey)),
        (b"\xff", b"v", Err(InvalidEntry::KeyNotUtf8)),
        (b"key", b"", Err(InvalidEntry::EmptyValue)),
    ] {
        assert_eq!(check_entry(key, value), expected);
    }
}

#[test]
fn an_entry_is_seen_as_its_value_and_a_media_type_is_copied() {
    let entry = Entry::new("key", &NewEntry { value: b"value", content_type: "text/plain", details: vec![0x80] });
    assert_eq!(entry.as_ref(), b"value");
    for content_type in [DEFAULT_CONTENT_TYPE, "text/plain", ""] {
        assert_eq!(owned_content_type(content_type), content_type);
    }
}

#[test]
fn damage_is_told_with_its_place_unless_nothing_was_salvaged() {
    let tell = |defect| Damage::At { offset: 7, defect }.to_string();
    assert!(tell(Defect::Record).ends_with(" at byte 7"));
    assert!(!tell(Defect::NothingToSalvage).contains("byte"));
}

#[test]
fn entries_of_the_go_program_keep_the_revisions_that_the_first_start_has_assigned() {
    let entries = |path: &Path| -> Vec<(String, u64)> {
        let contents = Contents::read(path, &|_, _| {}).expect("it is whole");
        contents.entries().iter().map(|entry| (entry.key().to_owned(), entry.revision())).collect()
    };
    for removes in [false, true] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("store");
        fs::write(&path, b"\x82\xa2KV\x82\xa1a\xa31st\xa1b\xa32nd\xa6KVSize\x08").expect("it can be written");
        let open = |first_revision| {
            let options = Options { first_revision, ..Options::default() };
            LocalStore::open(LocalDisk, &path, options, &|_, _, _| {}).expect("it is whole")
        };
        drop(open(|| 1001));
        let store = open(|| 2001);
        match removes {
            true => update(&store, "b", || Decision::Remove),
            false => put(&store, "c", b"3rd"),
        }
        assert_eq!(store.revision(), 2003);
        drop(store);
        let all = [("a", 2001), ("b", 2002), ("c", 2003)].map(|(key, revision)| (key.to_owned(), revision));
        let expected = if removes { &all[..1] } else { &all[..] };
        assert_eq!(entries(&path), expected);
        let store = open(|| 5001);
        assert_eq!((store.revision(), entries(&path)), (2003, expected.to_vec()));
        put(&store, "d", b"4th");
        assert_eq!(store.revision(), 5001);
    }
}
