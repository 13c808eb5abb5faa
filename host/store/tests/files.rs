//! The files of a store as other programs see them: their names, their mode, what a check counts in them.

use std::fs;
use std::path::Path;

use crossbeam_channel::bounded;
use vkog_store::{
    Change, Contents, Decision, Disk, Entry, LocalDisk, LocalStore, NewEntry, Options, Store, Update, exists, has_file,
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
    let store = LocalStore::open(LocalDisk, &path, options, &|_, _| {}).expect("it is new");
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
