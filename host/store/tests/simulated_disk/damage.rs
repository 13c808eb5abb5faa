//! A file that was truncated or changed after it was written is never mistaken for the original.
//!
//! The last three records of a log of a dozen are truncated at every byte: the store is an exact prefix, and reports
//! it. Every single bit is flipped in a log, in a snapshot, and in two logs around an unfinished snapshot. Then the
//! store does not open and changes nothing, or it has all entries. If the flip is in the last batch, which no later
//! durable-offset record covers, it may have all but that batch, and reports it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::client::{self, Contents, FILE, change, close, contents, open, put, snapshot};
use crate::disk::{Call, Fault, Image, SimulatedDisk, without_room};
use crate::history::History;
use crate::random::Random;

/// Opens a store on an image. Returns its entries and its warnings.
fn opened(image: &Image) -> (Result<Contents, String>, String, SimulatedDisk) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let disk = SimulatedDisk::of(image);
    let result = tracing::subscriber::with_default(subscriber, || open(&disk, client::ALWAYS));
    let result = result.map(|store| contents(&store)).map_err(|error| error.to_string());
    let warned = String::from_utf8_lossy(&lines.0.lock()).into_owned();
    (result, warned, disk)
}

fn path(ending: &str) -> PathBuf {
    format!("{FILE}{ending}").into()
}

/// Writes and removes with a sync each. Returns the entries of the store before the first and after each.
fn write(disk: &SimulatedDisk, changes: usize) -> Vec<Contents> {
    let store = open(disk, client::ALWAYS).expect("a store");
    let history = History::default();
    let mut random = Random::new(changes as u64);
    let mut states = vec![contents(&store)];
    for step in 0..changes {
        let mut content = history.content(&mut random);
        content.value.truncate(24);
        content.content_type.truncate(20);
        content.details.truncate(5);
        let key = format!("key-{}", step % 5);
        let remove = step % 5 == 3 && states[step].contains_key(&key);
        change(&store, &key, (!remove).then_some(&content));
        states.push(contents(&store));
    }
    states
}

/// Returns the offsets of the records of a log, and of its end.
fn records(log: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    let mut at = 0;
    while let Some(length) = log.get(at..at + 4)
        && *length != [0; 4]
    {
        at += 8 + u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        starts.push(at);
    }
    assert!(log[at..].iter().all(|byte| *byte == 0), "a whole log, and room");
    starts
}

#[test]
fn a_log_truncated_at_any_byte_yields_an_exact_prefix_and_is_reported() {
    let disk = SimulatedDisk::empty();
    let states = write(&disk, 12);
    let whole = disk.now();
    let log = &whole.0[&path(".log")];
    let starts = records(log);
    // After the head and its mark, every change is a mark and a record.
    let (three, end) = (starts[starts.len() - 1 - 6], starts[starts.len() - 1]);
    let mut prefixes = 0;
    // And at some positions in the preallocated space after them.
    for length in (three..=end + 20).chain([log.len() - 1, log.len()]) {
        let mut image = whole.clone();
        image.0.insert(path(".log"), log[..length].to_vec());
        let (found, warned, disk) = opened(&image);
        let found = found.unwrap_or_else(|error| panic!("{error}\ncut off at {length} of {}", log.len()));
        let state = states.iter().rposition(|state| *state == found);
        let state = state.unwrap_or_else(|| panic!("cut off at {length} of {}: {found:?}", log.len()));
        let records_left = starts.partition_point(|start| *start <= length) - 1;
        assert_eq!(state, (records_left - 2) / 2, "changes left when cut off at {length}");
        assert_eq!(
            length < end && !starts.contains(&length),
            warned.contains("cut off"),
            "cut off at {length}: {warned}"
        );
        prefixes += usize::from(state < 12);
        // The rest is a valid log.
        let store = open(&disk, client::ALWAYS).expect("a store");
        put(&store, "after", "all");
        drop(store);
        assert_eq!(opened(&disk.now()).0.map(|found| found.len()), Ok(found.len() + 1));
    }
    println!("{} places, {prefixes} with less than all", end + 23 - three);
}

/// Flips every bit of a file. `last` is what the store held before the last change, if that change is in this file.
fn flip_every_bit(image: &Image, ending: &str, all: &Contents, last: Option<&Contents>) {
    let data = &image.0[&path(ending)];
    let (mut refused, mut cut, mut harmless) = (0, 0, Vec::new());
    // Test only the first bytes and the last one of the preallocated space.
    let end = without_room(data).len();
    for at in (0..data.len()).filter(|at| *at < end + 20 || *at == data.len() - 1) {
        for bit in 0..8 {
            let mut data = data.clone();
            data[at] ^= 1 << bit;
            let mut image = image.clone();
            image.0.insert(path(ending), data);
            let (found, warned, disk) = opened(&image);
            match found {
                Err(error) => {
                    refused += 1;
                    assert_eq!(disk.now(), image, "it was refused, and changed, after {at}.{bit}: {error}");
                    assert!(error.contains(FILE), "{error}");
                }
                Ok(found) if found == *all => harmless.push(at),
                Ok(found) if Some(&found) == last && warned.contains("cut off") => cut += 1,
                Ok(found) => panic!("FILE{ending}, bit {at}.{bit}: {found:?}, warned: {warned}"),
            }
        }
    }
    harmless.dedup();
    println!("FILE{ending}: {refused} refused, {cut} cut off, all there after a flip in bytes {harmless:?}");
    assert!(refused > 0 || last.is_some());
}

#[test]
fn no_flipped_bit_of_a_log_changes_an_entry() {
    let disk = SimulatedDisk::empty();
    let states = write(&disk, 8);
    flip_every_bit(&disk.now(), ".log", &states[8], Some(&states[7]));
}

#[test]
fn no_flipped_bit_of_a_snapshot_or_its_log_changes_an_entry() {
    let disk = SimulatedDisk::empty();
    write(&disk, 8);
    let store = open(&disk, client::ALWAYS).expect("a store");
    close(store);
    let states = write(&disk, 3);
    let image = disk.now();
    flip_every_bit(&image, "", &states[3], None);
    flip_every_bit(&image, ".log", &states[3], Some(&states[2]));
}

#[test]
fn no_flipped_bit_of_an_empty_log_changes_an_entry() {
    let disk = SimulatedDisk::empty();
    let states = write(&disk, 3);
    close(open(&disk, client::ALWAYS).expect("a store"));
    // The whole file is a head.
    flip_every_bit(&disk.now(), ".log", &states[3], Some(&states[3]));
}

#[test]
fn no_flipped_bit_of_the_logs_of_an_unfinished_snapshot_changes_an_entry() {
    let disk = SimulatedDisk::empty();
    write(&disk, 4);
    let store = open(&disk, client::ALWAYS).expect("a store");
    disk.fault(Call::Rename, ".new", Fault::Fails(io::ErrorKind::PermissionDenied), 1);
    store.snapshot().expect_err("the rename fails");
    put(&store, "after", "one");
    let before = contents(&store);
    put(&store, "after", "two");
    let all = contents(&store);
    let image = disk.now();
    drop(store);
    flip_every_bit(&image, ".log", &all, None);
    flip_every_bit(&image, ".log.next", &all, Some(&before));
}

#[test]
fn an_old_log_with_a_successor_ends_after_its_records() {
    let disk = SimulatedDisk::empty();
    write(&disk, 4);
    let store = open(&disk, client::ALWAYS).expect("a store");
    put(&store, "before", "one");
    disk.fault(Call::Rename, ".new", Fault::Fails(io::ErrorKind::PermissionDenied), 1);
    store.snapshot().expect_err("the rename fails");
    put(&store, "after", "one");
    let mut image = disk.now();
    drop(store);
    opened(&image).0.expect("a store");
    // A record of zeros, as far as can be known.
    image.0.get_mut(&path(".log")).expect("the old log").push(0);
    let error = opened(&image).0.expect_err("something may be lost");
    assert!(error.contains("a damaged record (the log continues after it)"), "{error}");
}

#[test]
fn no_flipped_bit_of_a_file_of_the_go_program_is_repaired_silently() {
    // MessagePack without a checksum: a flip in a value cannot be seen. All else can, or changes nothing.
    let data = b"\x82\xa2KV\x82\xa1a\xa31st\xa1b\xa32nd\xa6KVSize\x08";
    let disk = SimulatedDisk::of(&Image([(path(""), data.to_vec())].into()));
    let store = open(&disk, client::ALWAYS).expect("a store");
    assert_eq!(contents(&store).len(), 2);
    snapshot(&store);
    put(&store, "c", "3rd");
    drop(store);
    let image = disk.now();
    let (all, _, _) = opened(&image);
    let all = all.expect("a store");
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    flip_every_bit(&image, "", &all, None);
}
