//! One process at a time can open a store, under any of its names, and a refused start does not change the files.

use std::fs;
use std::path::{Path, PathBuf};

use crossbeam_channel::bounded;
use vkog_store::{Change, Decision, Entry, LocalDisk, LocalStore, Lock, NewEntry, Options, Store, StoreError, Update};

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().canonicalize().expect("it exists").join("store");
    (folder, path)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    path.with_file_name(format!("{}{ending}", path.file_name().expect("a name").to_string_lossy()))
}

fn open(path: &Path) -> LocalStore {
    LocalStore::open(LocalDisk, path, Options::default(), &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn put(store: &LocalStore, key: &'static str) {
    let (send, done) = bounded(1);
    let decide = move |_: &[Change], _: Option<&Entry>| {
        let draft = NewEntry { value: b"value", content_type: "text/plain", details: Vec::new() };
        Decision::<()>::Write(Entry::new(key, &draft))
    };
    store.update(key, decide, move |update| {
        let _ = send.send(matches!(update, Update::Committed(_)));
    });
    assert_eq!(done.recv(), Ok(true), "it is committed");
}

/// The names and the content of all files beside a store.
fn files(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let found = fs::read_dir(path.parent().expect("a folder")).expect("it can be read");
    let mut files: Vec<_> = found
        .map(|file| file.expect("it can be read").path())
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect();
    files.sort_unstable();
    files
}

#[test]
fn a_lock_is_exclusive_and_names_its_process_and_goes_with_it() {
    let (_folder, path) = folder();
    let lock_path = beside(&path, ".lock");
    let lock = Lock::take(&path).expect("it is free");
    assert_eq!(lock.store(), path);
    let id = std::process::id().to_string();
    assert_eq!(fs::read_to_string(&lock_path).expect("it exists").trim(), id);
    let Err(StoreError::Locked { path: locked, pid }) = Lock::take(&path) else { panic!("it is locked") };
    assert_eq!((&locked, &pid), (&path, &id));
    fs::write(&lock_path, "").expect("it is ours");
    let Err(StoreError::Locked { pid, .. }) = Lock::take(&path) else { panic!("it is locked") };
    assert_eq!(pid, "(unknown)");
    drop(lock);
    assert!(!lock_path.exists(), "it was not used");
    // One that was used stays, and one that was there before.
    let lock = Lock::take(&path).expect("it is free");
    lock.keep();
    drop(lock);
    assert!(lock_path.exists());
    fs::write(&lock_path, "a longer text than the id of a process").expect("it is ours");
    let lock = Lock::take(&path).expect("it is free");
    assert_eq!(fs::read_to_string(&lock_path).expect("it exists").trim(), id);
    drop(lock);
    assert!(lock_path.exists());
}

#[test]
fn a_lock_is_refused_where_there_can_be_no_store() {
    let (_folder, path) = folder();
    fs::create_dir(&path).expect("a folder can be made");
    assert!(matches!(Lock::take(&path), Err(StoreError::NotAFile { path: refused }) if refused == path));
    let within = path.join("no folder").join("store");
    assert!(matches!(Lock::take(&within), Err(StoreError::Unwritable { .. })));
    assert!(!beside(&path, ".lock").exists());
    let file = beside(&path, ".other");
    fs::write(&file, b"").expect("a file can be made");
    Lock::take(&file).expect("a file may be a store");
}

#[cfg(unix)]
#[test]
fn a_link_has_the_lock_of_the_file_it_stands_for() {
    use std::os::unix::fs::symlink;

    let (_folder, path) = folder();
    let within = beside(&path, ".folder");
    fs::create_dir(&within).expect("a folder can be made");
    let (link, second) = (within.join("link"), beside(&path, ".second"));
    symlink("../store", &link).expect("a link can be made");
    symlink(&link, &second).expect("a link can be made");
    for name in [&path, &link, &second] {
        let lock = Lock::take(name).expect("it is free");
        assert!(lock.store().ends_with("store") && beside(&path, ".lock").exists(), "{}", name.display());
        for other in [&path, &link, &second] {
            assert!(matches!(Lock::take(other), Err(StoreError::Locked { path, .. }) if path == *other));
        }
    }
    // A lock file that is a link to nowhere is no lock.
    symlink(path.with_file_name("nowhere").join("lock"), beside(&path, ".lock")).expect("a link can be made");
    assert!(matches!(Lock::take(&path), Err(StoreError::Unwritable { .. })));
}

#[cfg(unix)]
#[test]
fn a_store_is_locked_under_every_name_also_after_a_snapshot() {
    let (_folder, path) = folder();
    let refused = |ending: &str| {
        let other = path.with_file_name("other");
        for ending in ["", ".log"] {
            let _ = fs::remove_file(beside(&other, ending));
        }
        fs::hard_link(beside(&path, ending), beside(&other, ending)).expect("a second name can be made");
        let locked = matches!(Lock::take(&other), Err(StoreError::LockedElsewhere { path }) if path == other);
        assert!(!beside(&other, ".lock").exists(), "a refused lock leaves nothing");
        locked
    };
    let lock = Lock::take(&path).expect("it is free");
    let store = open(&path);
    // There was no file to lock before.
    assert!(!refused(".log"));
    store.hold(lock);
    assert!(refused(".log"));
    for key in ["first", "second"] {
        put(&store, key);
        store.snapshot().expect("it can be written");
        assert!(refused(""), "after the snapshot of the {key} entry");
    }
    drop(store);
    assert!(!refused(""));
    let lock = Lock::take(&path).expect("it is free");
    assert!(refused(""));
    let store = open(&path);
    store.hold(lock);
    assert!(refused(""), "the store keeps what the lock had");
}

#[cfg(unix)]
#[test]
fn a_store_whose_lock_file_is_gone_can_only_be_read() {
    for replaced in [false, true] {
        let (_folder, path) = folder();
        let lock_path = beside(&path, ".lock");
        let lock = Lock::take(&path).expect("it is free");
        let store = open(&path);
        store.hold(lock);
        put(&store, "key");
        store.snapshot().expect("it has its lock");
        let before = fs::read(&path).expect("it exists");
        fs::remove_file(&lock_path).expect("it exists");
        if replaced {
            fs::write(&lock_path, "1").expect("it can be written");
        }
        put(&store, "other");
        let error = store.snapshot().expect_err("another process may have the store");
        assert!(matches!(&*error, StoreError::LockLost { path: of, lock } if *of == path && *lock == lock_path));
        assert!(matches!(store.closed().as_deref(), Some(StoreError::LockLost { .. })));
        drop(store);
        assert_eq!(fs::read(&path).expect("it exists"), before);
        assert_eq!(lock_path.exists(), replaced, "the lock of another process stays");
    }
}

#[test]
fn a_start_that_is_refused_leaves_the_files_as_they_were() {
    let (_folder, path) = folder();
    let start = |keeps: bool, writes: bool| {
        let lock = Lock::take(&path).expect("it is free");
        let store = open(&path);
        store.hold(lock);
        if keeps {
            store.keep_files();
        }
        if writes {
            put(&store, "key");
        }
    };
    start(false, false);
    assert!(files(&path).is_empty(), "{:?}", files(&path));
    start(true, false);
    let names: Vec<_> = files(&path).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [beside(&path, ".lock"), beside(&path, ".log")]);
    // Nothing is lost that was written.
    start(false, true);
    let store = open(&path);
    assert_eq!(store.totals().0, 1);
    store.close().expect("it can be written");
    drop(store);
    // Nor where the files were new.
    for ending in ["", ".log", ".lock"] {
        fs::remove_file(beside(&path, ending)).expect("it exists");
    }
    start(false, true);
    assert_eq!(open(&path).totals().0, 1);
    open(&path).close().expect("it can be written");
    // The snapshot is clean again, with its log and without.
    for without_log in [false, true] {
        if without_log {
            fs::remove_file(beside(&path, ".log")).expect("it exists");
        }
        let stable = |files: Vec<(PathBuf, Vec<u8>)>| {
            files.into_iter().filter(|(name, _)| !name.ends_with("store.lock")).collect::<Vec<_>>()
        };
        let before = stable(files(&path));
        start(false, false);
        assert!(stable(files(&path)) == before, "without its log: {without_log}");
        // A start that succeeds changes the clean flag, so that a missing log is noticed.
        start(true, false);
        assert!(stable(files(&path)) != before);
        open(&path).close().expect("it can be written");
    }
}

#[cfg(unix)]
#[test]
fn the_files_get_the_mode_and_the_owner_of_the_store() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    let (_folder, path) = folder();
    let about = |path: &Path| {
        let about = fs::metadata(path).expect("it exists");
        (about.mode() & 0o7777, about.uid(), about.gid())
    };
    let store = open(&path);
    put(&store, "key");
    store.close().expect("it can be written");
    drop(store);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("it is ours");
    // Only root may give a file away, and to itself in this test.
    let (_, user, group) = about(&path);
    let _ = chown(&path, Some(user + 1), Some(group + 1));
    let expected = about(&path);
    assert_eq!(expected.0, 0o640);
    let lock = Lock::take(&path).expect("it is free");
    assert_eq!(about(&beside(&path, ".lock")), expected);
    let store = open(&path);
    store.hold(lock);
    store.keep_files();
    assert_eq!(about(&beside(&path, ".log")), expected);
    put(&store, "other");
    store.snapshot().expect("it can be written");
    assert_eq!((about(&path), about(&beside(&path, ".log"))), (expected, expected));
}
