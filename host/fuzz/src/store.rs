//! A store's files: the length of FILE and of FILE.log as three bytes each, and then FILE, FILE.log and FILE.log.next.

use std::collections::BTreeMap;
use std::path::Path;

use vkog_store::{self as store, Contents, Fsync, LocalDisk, LocalStore, Options, Repair, StoreError};

use crate::server::FOLDER;

type Held = BTreeMap<String, (u64, Vec<u8>)>;

/// Opens the store twice, or repairs it, and looks that a file that was not understood was not changed.
pub fn check(data: &[u8]) {
    let path = FOLDER.path().join(format!("store-{:?}", std::thread::current().id()));
    let files = [path.clone(), path.with_extension("log"), path.with_extension("log.next")];
    let Some((lengths, rest)) = data.split_at_checked(6) else { return };
    let length = |bytes: &[u8]| bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (file, rest) = rest.split_at(length(&lengths[..3]).min(rest.len()));
    let (log, next) = rest.split_at(length(&lengths[3..]).min(rest.len()));
    let contents = [file, log, next];
    let put = || {
        for (path, data) in files.iter().zip(contents) {
            let _ = std::fs::remove_file(path);
            if !data.is_empty() {
                std::fs::write(path, data).expect("it can be written");
            }
        }
    };
    put();
    let inspected = Contents::read(&path, &|_, _| {});
    let opened = open(&path);
    match (&opened, &inspected) {
        (Ok(held), Ok(contents)) => {
            let entries = contents.entries();
            assert_eq!(entries.len(), held.len());
            assert!(entries.iter().all(|entry| held[entry.key()] == (entry.revision(), entry.value().to_vec())));
            assert_eq!(open(&path).expect("it opened before"), *held, "another recovery, another store");
        }
        (Err(_), Err(_)) => {
            for (path, data) in files.iter().zip(contents) {
                assert_eq!(std::fs::read(path).unwrap_or_default(), data, "{} was changed", path.display());
            }
        }
        (opened, inspected) => {
            panic!("opened: {:?}, inspected: {:?}", opened.as_ref().err(), inspected.as_ref().err());
        }
    }
    put();
    if let Ok(Repair::Repaired(_)) = store::repair(&path, &|_, _| {}) {
        open(&path).expect("what was repaired opens");
    }
    for file in std::fs::read_dir(FOLDER.path()).expect("the file exists") {
        let file = file.expect("the file exists").path();
        if file.to_string_lossy().starts_with(&*path.to_string_lossy()) {
            let _ = std::fs::remove_file(file);
        }
    }
}

fn open(path: &Path) -> Result<Held, StoreError> {
    // Reading without opening does not move the revisions to the current time either.
    let options = Options { fsync: Fsync::Never, first_revision: || 0, ..Options::default() };
    let store = LocalStore::open(LocalDisk, path, options, &|_, _, _| {})?;
    let mut held = Held::new();
    store.for_each(|entry| {
        let twice = held.insert(entry.key().to_owned(), (entry.revision(), entry.value().to_vec()));
        assert!(twice.is_none(), "{} exists twice", entry.key());
    });
    Ok(held)
}
