//! Why a file of a store cannot be read, or does not belong to the others.

use std::fmt;
use std::io;

use super::invalid::LeftOut;

/// Why a file of a store cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum Damage {
    /// The operating system cannot read it.
    Io(io::Error),
    /// Its content is not what it should be.
    At {
        /// Where, in bytes from its start.
        offset: u64,
        /// What is wrong there.
        defect: Defect,
    },
}

/// What is wrong with the content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// The checksum of its head is wrong, or there is no head.
    Head,
    /// It ends within its head.
    HeadCutOff,
    /// It has a format that this program does not read.
    Format {
        /// Its format.
        found: u64,
        /// The formats that this program reads, human-readable.
        known: &'static str,
    },
    /// A record of a log whose checksum is right is invalid.
    Record,
    /// A record of a log is damaged: a later one shows that it was on disk.
    DamagedRecord {
        /// Where the later one is, in bytes.
        later: u64,
    },
    /// A record of a log that another log follows is damaged.
    DamagedRecordBeforeNextLog,
    /// A revision is not greater than the one before it.
    RevisionOrder {
        /// The revision.
        revision: u64,
        /// The one before it.
        after: u64,
    },
    /// A snapshot has another length than its head says.
    Length {
        /// Its length, in bytes.
        found: u64,
        /// Its length according to the head, in bytes.
        expected: u64,
    },
    /// The checksum of the directory of chunks is wrong.
    Directory,
    /// The directory of chunks is invalid.
    InvalidDirectory,
    /// The heading of the chunks is damaged.
    Heading,
    /// The checksum of a chunk is wrong.
    Chunk {
        /// Its length, in bytes.
        bytes: u64,
        /// The number of its entries.
        entries: u64,
    },
    /// A chunk is invalid.
    InvalidChunk,
    /// A snapshot does not hold what its head says.
    Totals {
        /// The number of its entries, and the sum of their sizes.
        found: (u64, u64),
        /// The same according to the head.
        expected: (u64, u64),
    },
    /// It is not MessagePack, or not a store.
    NotAStore,
    /// It ends before its content does.
    CutOff,
    /// It has entries that cannot be in a store.
    Entries(Vec<LeftOut>),
    /// It has a part that no store has.
    UnknownPart(String),
    /// More bytes follow the end of the map.
    TrailingBytes,
    /// Nothing in it could be salvaged.
    NothingToSalvage,
}

/// Why a log does not belong to the snapshot beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mismatch {
    /// It continues another generation.
    Generation {
        /// The generation that it continues.
        continues: u64,
        /// The snapshot, and its generation.
        snapshot: (std::path::PathBuf, u64),
    },
    /// It continues a file of another store.
    Store,
    /// It continues another copy of this generation.
    Copy(u64),
}

impl Damage {
    pub(crate) fn at(offset: u64, defect: Defect) -> Self {
        Self::At { offset, defect }
    }
}

impl From<io::Error> for Damage {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::At { defect: Defect::NothingToSalvage, .. } => write!(f, "{}", Defect::NothingToSalvage),
            Self::At { offset, defect } => write!(f, "{defect} at byte {offset}"),
        }
    }
}

impl std::error::Error for Damage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::At { .. } => None,
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("its head is damaged"),
            Self::HeadCutOff => f.write_str("it ends within its head"),
            Self::Format { found, known } => write!(f, "its format is {found}, this program reads {known};"),
            Self::Record => f.write_str("an invalid record"),
            Self::DamagedRecord { later } => write!(f, "a damaged record (whole ones follow at byte {later})"),
            Self::DamagedRecordBeforeNextLog => f.write_str("a damaged record (the log goes on)"),
            Self::RevisionOrder { revision, after } => write!(f, "revision {revision} after revision {after}"),
            Self::Length { found, expected } => {
                write!(f, "it has {found} bytes and should have {expected}, it differs")
            }
            Self::Directory => f.write_str("the directory of chunks is damaged"),
            Self::InvalidDirectory => f.write_str("the directory of chunks is invalid"),
            Self::Heading => f.write_str("the heading of the chunks is damaged"),
            Self::Chunk { bytes, entries } => {
                write!(f, "the chunk of {bytes} bytes and {entries} entries is damaged")
            }
            Self::InvalidChunk => f.write_str("a chunk is invalid"),
            Self::Totals { found, expected } => write!(
                f,
                "it holds {} entries of {} bytes, not {} of {}, as it says",
                found.0, found.1, expected.0, expected.1
            ),
            Self::NotAStore => f.write_str("not MessagePack, or not a store,"),
            Self::CutOff => f.write_str("it is cut off"),
            Self::Entries(entries) => {
                let (number, noun) = (entries.len(), if entries.len() == 1 { "entry" } else { "entries" });
                write!(f, "{number} {noun} that no request can write")?;
                entries.first().map_or(Ok(()), |first| write!(f, ", the first ({})", first.reason))
            }
            Self::UnknownPart(name) => write!(f, "an unknown part \"{name}\""),
            Self::TrailingBytes => f.write_str("more bytes than the map has"),
            Self::NothingToSalvage => f.write_str("there is nothing in it that a store has"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation { continues, snapshot: (path, generation) } => write!(
                f,
                "it continues generation {continues} of the store, {} is generation {generation}",
                path.display()
            ),
            Self::Store => f.write_str("it continues another store's file"),
            Self::Copy(generation) => write!(f, "it continues another copy of generation {generation} of the store"),
        }
    }
}
