//! The bytes of a snapshot, and the errors of a snapshot whose parts contradict each other.

use super::*;

/// The length of the head.
const HEAD: usize = 237;

fn insert(map: &Map, key: &str, revision: u64, draft: &NewEntry<'_>) {
    let hashed = map.hash(key.as_bytes());
    let entry = Entry::with_revision(key, draft, revision, &mut Vec::new());
    map.insert(&mut map.write(map.shard_of(hashed)), hashed, entry);
}

fn file_of(bytes: &[u8]) -> std::fs::File {
    let file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_at(0, bytes).expect("it can be written");
    file
}

fn bytes_of(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; file.len().expect("it is open") as usize];
    file.read_at(0, &mut bytes).expect("it can be read");
    bytes
}

/// A snapshot of one entry, and its head.
fn snapshot() -> (Vec<u8>, Meta) {
    let map = Map::new(5);
    insert(&map, "k", 7, &NewEntry { value: b"v", content_type: "image/png", details: vec![0x80] });
    let file = file_of(b"");
    let len = write(&map, &file, Meta::new(3, 6, 9), || 1000, Duration::ZERO).expect("it can be written");
    assert_eq!(len, file.len().expect("it is open"));
    (bytes_of(&file), Meta::decode(&file).ok().flatten().expect("it is whole"))
}

/// Reads a file, with the revisions of a file of the Go program after 100.
fn read_bytes(bytes: &[u8]) -> Result<(Map, Meta), Damage> {
    read(&file_of(bytes), 1, &|count| 100 * count, &|_, _| {})
}

fn defect(bytes: &[u8]) -> (u64, Defect) {
    match read_bytes(bytes) {
        Err(Damage::At { offset, defect }) => (offset, defect),
        Err(damage) => panic!("{damage}"),
        Ok(_) => panic!("it is whole"),
    }
}

#[test]
fn a_snapshot_has_the_documented_bytes() {
    let (bytes, _) = snapshot();
    let name = |name: &str| [&[0xa0 | name.len() as u8], name.as_bytes()].concat();
    let number = |name_of: &str, number: u64| [&name(name_of)[..], &[0xcf], &number.to_be_bytes()].concat();
    let chunk = b"\xa1k\xa1v";
    let crc = crc32c::crc32c(chunk).to_be_bytes();
    let directory = [b"\x96\x04\x01\xce", &crc[..], b"\x07\x91\x00\x91\x93\x00\xa9image/png\xc4\x01\x80"].concat();
    let at = HEAD + chunk.len() + "?Chunks?".len();
    let mut expected = [&b"\x84"[..], &name("VKOG"), &[0x8d]].concat();
    for (name, value) in [
        ("format", 2),
        ("generation", 3),
        ("store", 6),
        ("seed", 5),
        ("revision", 1000),
        ("entries", 1),
        ("chunks", 1),
        ("chunks_at", at as u64),
        ("end", (at + directory.len()) as u64),
        ("chunks_crc", crc32c::crc32c(&directory).into()),
        ("log", 9),
    ] {
        expected.extend(number(name, value));
    }
    expected.extend(name("head_crc"));
    expected.extend([&[0xcf][..], &u64::from(crc32c::crc32c(&expected)).to_be_bytes()].concat());
    expected.extend([&name("clean")[..], &[0xc2], &number("KVSize", 2), &name("KV"), b"\xdf\0\0\0\x01"].concat());
    assert_eq!(expected.len(), HEAD);
    expected.extend([chunk, &name("Chunks")[..], &[0x91], &directory].concat());
    assert_eq!(bytes, expected);
}

#[test]
fn the_clean_flag_is_the_one_byte_that_changes() {
    let (bytes, meta) = snapshot();
    let file = file_of(&bytes);
    assert!(!meta.clean && meta.has_clean_flag());
    set_clean(&file, true).expect("it can be written");
    let now = bytes_of(&file);
    let changed: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] != now[*at]).collect();
    assert_eq!((&changed[..], now.len()), (&[HEAD - 25][..], bytes.len()));
    let read = |file| Meta::decode(file).ok().flatten().expect("it is whole");
    assert_eq!(read(&file), Meta { clean: true, ..meta });
    set_clean(&file, false).expect("it can be written");
    assert_eq!((read(&file), bytes_of(&file)), (meta, bytes));
}

#[test]
fn a_snapshot_of_many_chunks_is_read_as_it_was_written() {
    const ENTRIES: u64 = 60;
    let map = Map::new(5);
    let value = |revision: u64| vec![revision as u8; 20_000 + revision as usize];
    let content_type = |revision| ["image/png", DEFAULT_CONTENT_TYPE, DEFAULT_CONTENT_TYPE][revision as usize % 3];
    let details = |revision: u64| vec![0x80; usize::from(revision.is_multiple_of(5))];
    for revision in 1..=ENTRIES {
        let draft =
            NewEntry { value: &value(revision), content_type: content_type(revision), details: details(revision) };
        insert(&map, &format!("key-{revision}"), revision, &draft);
    }
    let file = file_of(b"");
    write(&map, &file, Meta::new(3, 6, 9), || 1000, Duration::ZERO).expect("it can be written");
    let (found, meta) = read(&file, 1, &|_| 0, &|_, _| {}).unwrap_or_else(|damage| panic!("{damage}"));
    // A chunk ends with the first entry that makes it long enough.
    assert_eq!((meta.chunks, meta.entries, meta.revision), (5, ENTRIES, 1000));
    assert_eq!((found.totals(), found.seed()), (map.totals(), 5));
    found.for_each(|entry| {
        let revision = entry.revision();
        assert_eq!(entry.key(), format!("key-{revision}"));
        assert!(*entry.value() == value(revision), "the value of {}", entry.key());
        assert_eq!((entry.content_type(), entry.details()), (content_type(revision), &details(revision)[..]));
    });
}

#[test]
fn a_snapshot_whose_parts_contradict_each_other_is_refused() {
    type Change = fn(&mut Meta, &mut Vec<u8>);
    let (whole, meta) = snapshot();
    let (end, at, pieces_end) = (meta.end, meta.chunks_at, HEAD as u64 + 4);
    let length = |found, expected| Defect::Length { found, expected };
    let cases: [(&str, Change, u64, Defect); 15] = [
        ("longer", |_, bytes| bytes.push(0), end, length(end + 1, end)),
        ("shorter", |_, bytes| bytes.truncate(bytes.len() - 1), end - 1, length(end - 1, end)),
        ("longer head", |meta, _| meta.end += 1, end, length(end, end + 1)),
        ("directory behind", |meta, _| meta.chunks_at = meta.end + 1, 6, Defect::Head),
        ("directory before", |meta, _| meta.chunks_at = 0, 0, Defect::Directory),
        ("checksum", |meta, _| meta.chunks_crc ^= 1, at, Defect::Directory),
        ("more chunks", |meta, _| meta.chunks += 1, at, Defect::InvalidDirectory),
        ("fewer chunks", |meta, _| meta.chunks -= 1, at, Defect::InvalidDirectory),
        ("more entries", |meta, _| meta.entries += 1, at, Defect::InvalidDirectory),
        ("longer chunk", |meta, bytes| bytes[meta.chunks_at as usize + 1] += 1, at, Defect::InvalidDirectory),
        ("other heading", |_, bytes| bytes[HEAD + 4] ^= 1, pieces_end, Defect::Heading),
        ("more bytes", |meta, _| meta.size += 1, 6, Defect::Totals { found: (1, 2), expected: (1, 3) }),
        ("chunk", |_, bytes| bytes[HEAD + 1] ^= 1, HEAD as u64, Defect::Chunk { bytes: 4, entries: 1 }),
        ("extra of none", |meta, bytes| bytes[meta.chunks_at as usize + 13] = 1, HEAD as u64, Defect::InvalidChunk),
        (
            "key and value of another length",
            |meta, bytes| {
                bytes[HEAD] = 0xa0;
                let crc = crc32c::crc32c(&bytes[HEAD..][..4]).to_be_bytes();
                bytes[meta.chunks_at as usize + 4..][..4].copy_from_slice(&crc);
            },
            HEAD as u64,
            Defect::InvalidChunk,
        ),
    ];
    for (what, change, offset, expected) in cases {
        let (mut bytes, mut meta) = (whole.clone(), meta);
        change(&mut meta, &mut bytes);
        // All checksums are right, but where a case changes one.
        if expected != Defect::Directory && meta.chunks_at < meta.end {
            meta.chunks_crc = crc32c::crc32c(&bytes[meta.chunks_at as usize..]);
        }
        bytes[..HEAD].copy_from_slice(&meta.encode());
        assert_eq!(defect(&bytes), (offset, expected), "{what}");
    }
    assert!(read_bytes(&whole).is_ok());
    assert_eq!(defect(&whole[..HEAD - 1]), (HEAD as u64 - 1, Defect::HeadCutOff));
    for (bit, expected) in [(22 * 8, Defect::Format { found: 3, known: "1 and 2" }), (100 * 8, Defect::Head)] {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1;
        assert_eq!(defect(&bytes), (6, expected));
    }
}

#[test]
fn a_snapshot_of_format_1_is_read() {
    let chunk = b"\xa1k\xa1v";
    let crc = crc32c::crc32c(chunk).to_be_bytes();
    let directory = [b"\x95\x04\x01\xce", &crc[..], b"\x91\x07\x90"].concat();
    let mut meta = Meta { format: FORMAT_1, generation: 3, seed: 5, revision: 8, ..Meta::default() };
    (meta.entries, meta.size, meta.chunks, meta.chunks_crc) = (1, 2, 1, crc32c::crc32c(&directory));
    meta.chunks_at = meta.encode().len() as u64 + 4 + 8;
    meta.end = meta.chunks_at + directory.len() as u64;
    let bytes = [&meta.encode()[..], chunk, b"\xa6Chunks\x91", &directory].concat();
    let (map, found) = read_bytes(&bytes).unwrap_or_else(|damage| panic!("{damage}"));
    assert_eq!((found, found.has_clean_flag()), (meta, false));
    let mut entries = Vec::new();
    map.for_each(|entry| entries.push((entry.key().to_owned(), entry.value().to_vec(), entry.revision())));
    assert_eq!(entries, [("k".to_owned(), b"v".to_vec(), 7)]);
}

#[test]
fn texts_and_bytes_of_every_length_are_read_back() {
    for len in [0, 1, 31, 32, 255, 256, 65_535, 65_536, 70_000] {
        for byte in [b'x', 0xff] {
            let mut out = Vec::new();
            put_bytes(&mut out, &vec![byte; len]);
            let end = out.len();
            out.push(7);
            let mut rest = &out[..];
            assert_eq!(take_bytes(&mut rest), Some(&vec![byte; len][..]), "{len} bytes");
            assert_eq!(rest, [7]);
            let mut rest = &out[..end - 1];
            assert_eq!((take_bytes(&mut rest), rest), (None, &out[..end - 1]), "{len} bytes, cut off");
        }
    }
    assert_eq!(take_bytes(&mut &b"\x05"[..]), None);
}

#[test]
fn a_file_of_the_go_program_is_read_in_its_order_or_refused_where_it_ends() {
    const WHOLE: &[u8] = b"\x82\xa2KV\x82\xa1a\xa31st\xa1b\xa32nd\xa6KVSize\x08";
    let (map, meta) = read_bytes(WHOLE).unwrap_or_else(|damage| panic!("{damage}"));
    assert_eq!((map.totals(), meta.revision, meta.generation), ((2, 8), 202, 0));
    let mut revisions = Vec::new();
    map.for_each(|entry| revisions.push((entry.revision(), entry.key().to_owned())));
    revisions.sort_unstable();
    assert_eq!(revisions, [(201, "a".to_owned()), (202, "b".to_owned())]);
    assert_eq!(defect(b""), (0, Defect::NotAStore));
    for len in 1..WHOLE.len() {
        assert_eq!(defect(&WHOLE[..len]), (len as u64, Defect::CutOff), "{len} bytes");
    }
    let other = |at: usize, byte: u8| {
        let mut bytes = WHOLE.to_vec();
        bytes[at] = byte;
        defect(&bytes)
    };
    // The name of a part, the map of entries, a key, a value, the size.
    for at in [1, 4, 5, 7, WHOLE.len() - 1] {
        assert_eq!(other(at, 0xc0), (at as u64, Defect::NotAStore), "byte {at}");
    }
    assert_eq!(other(3, b'X'), (1, Defect::UnknownPart("KX".to_owned())));
    assert_eq!(defect(&[WHOLE, b"\0"].concat()), (WHOLE.len() as u64, Defect::TrailingBytes));
    let (at, Defect::Entries(left_out)) = other(6, 0xff) else { panic!("a key is not UTF-8") };
    assert_eq!((at, left_out.len(), left_out[0].at, &left_out[0].value[..]), (5, 1, 5, &b"1st"[..]));
}
