//! Why a file of a store cannot be read, or does not belong to the others.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::invalid::LeftOut;

/// Why a file of a store cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Damage {
    /// The operating system cannot read it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its content is not what it should be.
    #[error("{defect}{}", Self::place(*offset, defect))]
    At {
        /// Where, in bytes from its start.
        offset: u64,
        /// The defect.
        defect: Defect,
    },
}

/// A defect in the content of a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Defect {
    /// The checksum of its head is wrong, or there is no head.
    #[error("its head is damaged")]
    Head,
    /// It ends within its head.
    #[error("it ends within its head")]
    HeadCutOff,
    /// It has a format that this program does not read.
    #[error("its format is {found}, this program reads {known};")]
    Format {
        /// Its format.
        found: u64,
        /// The formats that this program reads, human-readable.
        known: &'static str,
    },
    /// A record of a log whose checksum is right is invalid.
    #[error("an invalid record")]
    Record,
    /// A record of a log is damaged: a later one shows that it was on disk.
    #[error("a damaged record (intact ones follow at byte {later})")]
    DamagedRecord {
        /// Where the later one is, in bytes.
        later: u64,
    },
    /// A record of a log that another log follows is damaged.
    #[error("a damaged record (the log continues after it)")]
    DamagedRecordBeforeNextLog,
    /// A revision is not greater than the one before it.
    #[error("revision {revision} follows revision {after}")]
    RevisionOrder {
        /// The revision.
        revision: u64,
        /// The one before it.
        after: u64,
    },
    /// A snapshot has another length than its head says.
    #[error("its size is {found} bytes instead of {expected}, it differs")]
    Length {
        /// Its length, in bytes.
        found: u64,
        /// Its length according to the head, in bytes.
        expected: u64,
    },
    /// The checksum of the directory of chunks is wrong.
    #[error("the directory of chunks is damaged")]
    Directory,
    /// The directory of chunks is invalid.
    #[error("the directory of chunks is invalid")]
    InvalidDirectory,
    /// The heading of the chunks is damaged.
    #[error("the heading of the chunks is damaged")]
    Heading,
    /// The checksum of a chunk is wrong.
    #[error("the chunk of {bytes} bytes and {entries} entries is damaged")]
    Chunk {
        /// Its length, in bytes.
        bytes: u64,
        /// The number of its entries.
        entries: u64,
    },
    /// A chunk is invalid.
    #[error("a chunk is invalid")]
    InvalidChunk,
    /// A snapshot does not hold what its head says.
    #[error(
        "it holds {} entries of {} bytes, but its header has {} entries of {}",
        found.0, found.1, expected.0, expected.1
    )]
    Totals {
        /// The number of its entries, and the sum of their sizes.
        found: (u64, u64),
        /// The same according to the head.
        expected: (u64, u64),
    },
    /// It is not MessagePack, or not a store.
    #[error("not MessagePack, or not a store,")]
    NotAStore,
    /// It ends before its content does.
    #[error("it is truncated")]
    CutOff,
    /// It has entries that cannot be in a store.
    #[error(
        "{} {} that no request can write{}",
        .0.len(),
        if .0.len() == 1 { "entry" } else { "entries" },
        .0.first().map(|first| format!(", the first ({})", first.reason)).unwrap_or_default()
    )]
    Entries(Vec<LeftOut>),
    /// It has a part that no store has.
    #[error("an unknown part \"{0}\"")]
    UnknownPart(String),
    /// More bytes follow the end of the map.
    #[error("bytes follow the map")]
    TrailingBytes,
    /// Nothing in it could be salvaged.
    #[error("it contains no data of a store")]
    NothingToSalvage,
}

/// Why a log does not belong to the snapshot beside it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// It continues another generation.
    #[error("it continues generation {continues} of the store, {} is generation {}", snapshot.0.display(), snapshot.1)]
    Generation {
        /// The generation that it continues.
        continues: u64,
        /// The snapshot, and its generation.
        snapshot: (PathBuf, u64),
    },
    /// It continues a file of another store.
    #[error("it continues another store's file")]
    Store,
    /// It continues another copy of this generation.
    #[error("it continues another copy of generation {0} of the store")]
    Copy(u64),
}

impl Damage {
    pub(crate) fn at(offset: u64, defect: Defect) -> Self {
        Self::At { offset, defect }
    }

    fn place(offset: u64, defect: &Defect) -> String {
        if *defect == Defect::NothingToSalvage { String::new() } else { format!(" at byte {offset}") }
    }
}
