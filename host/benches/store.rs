//! The cost of the store without a network and without the time of a disk, each beside a baseline:
//! reads and writes of the map beside a `HashMap` behind one lock and beside `DashMap`, appends to the log beside plain
//! writes of as many bytes, snapshots beside a copy of the memory.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use dashmap::DashMap;
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use parking_lot::{Mutex, RwLock};
use vkog_store::{
    Change, Decision, Disk, Entry, File, Fsync, Import, LocalDisk, LocalStore, NewEntry, Options, Store as _, Update,
};

fn main() {
    divan::main();
}

const KEYS: u64 = 100_000;
const VALUE: &[u8] = &[b'v'; 64];
const THREADS: [usize; 2] = [1, 2];
const PATH: &str = "store";

/// A disk in memory. A log without readers may drop its bytes.
#[derive(Clone, Default)]
struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, MemoryFile>>>,
    forgets: bool,
}

#[derive(Clone, Default)]
struct MemoryFile {
    data: Arc<RwLock<Vec<u8>>>,
    forgets: bool,
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn File>>> {
        Ok(self.files.lock().get(path).map(|file| Box::new(file.clone()) as Box<dyn File>))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let file = MemoryFile { data: Arc::default(), forgets: self.forgets };
        self.files.lock().insert(path.to_owned(), file.clone());
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().remove(path);
        Ok(())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.data.read().len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let data = self.data.read();
        let from = data.get(offset as usize..).and_then(|data| data.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, written: &[u8]) -> io::Result<()> {
        if !self.forgets {
            let mut data = self.data.write();
            let (start, end) = (offset as usize, offset as usize + written.len());
            if data.len() < end {
                data.resize(end, 0);
            }
            data[start..end].copy_from_slice(written);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.data.write().resize(len as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn key(number: u64) -> String {
    format!("key:{number:012}")
}

fn keys() -> Vec<String> {
    (0..KEYS).map(key).collect()
}

/// Gives the keys in an order that no cache foresees, to several threads.
fn spread(keys: &[String], turn: &AtomicU64) -> usize {
    (turn.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % keys.len()
}

fn draft() -> NewEntry<'static> {
    NewEntry { value: VALUE, content_type: "text/plain", details: Vec::new() }
}

/// A disk with a store of [`KEYS`] entries.
fn filled() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let mut import = Import::default();
    keys().iter().for_each(|key| import.push(key, &draft()));
    import.run(disk.clone(), PATH.as_ref(), Options::default(), &|_, _| {}).expect("memory holds it");
    disk
}

fn open(disk: impl Disk, path: &Path) -> LocalStore {
    // No automatic snapshot.
    let options = Options { fsync: Fsync::Never, log_min: u64::MAX, ..Options::default() };
    LocalStore::open(disk, path, options, &|_, _, _| {}).expect("it was just written")
}

fn put(store: &LocalStore, key: &str) {
    let mut entry = Some(Entry::new(key, &draft()));
    let decide = move |_: &[Change], _: Option<&Entry>| entry.take().map_or(Decision::Reject(()), Decision::Write);
    store.update(key, decide, |update| assert!(matches!(update, Update::Committed(_))));
}

mod read {
    use super::*;

    #[divan::bench(threads = THREADS, sample_size = 5000)]
    fn store(bencher: Bencher<'_, '_>) {
        let (store, keys, turn) = (open(filled(), PATH.as_ref()), keys(), AtomicU64::new(0));
        bencher.bench(|| store.read(&keys[spread(&keys, &turn)], |entry| entry.cloned()));
    }

    #[divan::bench(threads = THREADS, sample_size = 5000)]
    fn dash_map(bencher: Bencher<'_, '_>) {
        let (keys, turn) = (keys(), AtomicU64::new(0));
        let map: DashMap<String, Arc<[u8]>> = keys.iter().map(|key| (key.clone(), VALUE.into())).collect();
        bencher.bench(|| map.get(&keys[spread(&keys, &turn)]).map(|value| Arc::clone(&value)));
    }

    #[divan::bench(threads = THREADS, sample_size = 5000)]
    fn hash_map(bencher: Bencher<'_, '_>) {
        let (keys, turn) = (keys(), AtomicU64::new(0));
        let map: HashMap<String, Arc<[u8]>> = keys.iter().map(|key| (key.clone(), VALUE.into())).collect();
        let map = RwLock::new(map);
        bencher.bench(|| map.read().get(&keys[spread(&keys, &turn)]).cloned());
    }
}

/// Of keys that are there: what a PUT does. The store also makes the record of each, and gives it a revision.
mod write {
    use super::*;

    #[divan::bench(threads = THREADS, sample_size = 5000)]
    fn store(bencher: Bencher<'_, '_>) {
        let mut disk = filled();
        disk.forgets = true;
        let (store, keys, turn) = (open(disk, PATH.as_ref()), keys(), AtomicU64::new(0));
        bencher.bench(|| put(&store, &keys[spread(&keys, &turn)]));
    }

    #[divan::bench(threads = THREADS, sample_size = 5000)]
    fn dash_map(bencher: Bencher<'_, '_>) {
        let (keys, turn, map) = (keys(), AtomicU64::new(0), DashMap::<String, Arc<[u8]>>::new());
        bencher.bench(|| map.insert(keys[spread(&keys, &turn)].clone(), VALUE.into()));
    }

    #[divan::bench(threads = THREADS, sample_size = 5000)]
    fn hash_map(bencher: Bencher<'_, '_>) {
        let (keys, turn) = (keys(), AtomicU64::new(0));
        let map = RwLock::new(HashMap::<String, Arc<[u8]>>::new());
        bencher.bench(|| map.write().insert(keys[spread(&keys, &turn)].clone(), VALUE.into()));
    }
}

/// To a file that is not synced.
mod append {
    use super::*;

    #[divan::bench(sample_size = 5000)]
    fn store(bencher: Bencher<'_, '_>) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let (store, keys, turn) = (open(LocalDisk, &folder.path().join(PATH)), keys(), AtomicU64::new(0));
        bencher.bench_local(|| put(&store, &keys[spread(&keys, &turn)]));
    }

    #[divan::bench(sample_size = 5000)]
    fn plain_write(bencher: Bencher<'_, '_>) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = LocalDisk.create(&folder.path().join("plain")).expect("it is ours");
        // As long as the record of such an entry.
        let (record, mut at) = ([7; 112], 0);
        bencher.bench_local(|| {
            file.write_at(at, black_box(&record)).expect("there is room");
            at += record.len() as u64;
        });
    }
}

mod snapshot {
    use super::*;

    fn bytes(disk: &MemoryDisk) -> Vec<u8> {
        disk.files.lock()[Path::new(PATH)].data.read().clone()
    }

    #[divan::bench(sample_count = 20, sample_size = 1)]
    fn encode(bencher: Bencher<'_, '_>) {
        let disk = filled();
        let length = bytes(&disk).len();
        bencher
            .counter(BytesCount::new(length))
            .counter(ItemsCount::new(KEYS))
            .with_inputs(|| {
                let store = open(disk.clone(), PATH.as_ref());
                put(&store, &key(0));
                store
            })
            .bench_local_values(|store| {
                store.close().expect("memory holds it");
                store
            });
    }

    #[divan::bench(sample_count = 20)]
    fn decode(bencher: Bencher<'_, '_>) {
        let disk = filled();
        let length = bytes(&disk).len();
        bencher
            .counter(BytesCount::new(length))
            .counter(ItemsCount::new(KEYS))
            .bench_local(|| open(disk.clone(), PATH.as_ref()));
    }

    #[divan::bench(sample_count = 20)]
    fn memcpy(bencher: Bencher<'_, '_>) {
        let bytes = bytes(&filled());
        let mut copy = vec![0; bytes.len()];
        bencher
            .counter(BytesCount::new(bytes.len()))
            .counter(ItemsCount::new(KEYS))
            .bench_local(|| copy.copy_from_slice(black_box(&bytes)));
    }
}
