//! The content of one file of the simulated disk, and what a power cut may leave of it.

use crate::random::Random;

/// The size of a sector, which reaches the disk completely or not at all.
const SECTOR: u64 = 512;

#[derive(Default)]
pub(crate) struct Inode {
    pub(crate) now: Vec<u8>,
    pub(crate) durable: Vec<u8>,
    /// The changes since then, in order.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) serial: u64,
}

pub(crate) struct Piece {
    pub(crate) serial: u64,
    /// It was synced, but an earlier change was not.
    pub(crate) firm: bool,
    /// A sync of it failed: the system believes it is written, and no later sync tries again.
    pub(crate) given_up: bool,
    pub(crate) what: What,
}

pub(crate) enum What {
    Write { offset: u64, data: Vec<u8> },
    SetLen(u64),
}

/// Which of the unsynced changes a power cut keeps.
pub(crate) enum Keep {
    All,
    None,
    /// The first changes.
    First(usize),
    /// Each with this chance, in percent.
    Some(usize),
}

impl Keep {
    pub(crate) fn draw(random: &mut Random, changes: usize) -> Self {
        match random.below(8) {
            0 => Self::All,
            1 => Self::None,
            2 => Self::First(random.below(changes + 1)),
            3 => Self::Some(95),
            4 => Self::Some(5),
            _ => Self::Some(random.below(101)),
        }
    }

    pub(crate) fn keeps(&self, random: &mut Random, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::First(count) => index < *count,
            Self::Some(percent) => random.below(100) < *percent,
        }
    }
}

impl Inode {
    pub(crate) fn change(&mut self, what: What) {
        apply(&mut self.now, &what);
        self.serial += 1;
        self.pieces.push(Piece { serial: self.serial, firm: false, given_up: false, what });
    }

    pub(crate) fn write(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let room = (SECTOR - offset % SECTOR).min(data.len() as u64) as usize;
            let (piece, rest) = data.split_at(room);
            self.change(What::Write { offset, data: piece.to_vec() });
            (offset, data) = (offset + room as u64, rest);
        }
    }

    /// The changes up to this piece are synced.
    pub(crate) fn synced(&mut self, serial: u64) {
        for piece in &mut self.pieces {
            piece.firm |= piece.serial <= serial && !piece.given_up;
        }
        let firm = self.pieces.iter().take_while(|piece| piece.firm).count();
        for piece in self.pieces.drain(..firm) {
            apply(&mut self.durable, &piece.what);
        }
    }

    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Vec<u8> {
        let mut data = self.durable.clone();
        let keep = Keep::draw(random, self.pieces.len());
        for (index, piece) in self.pieces.iter().enumerate() {
            if piece.firm || keep.keeps(random, index) {
                apply(&mut data, &piece.what);
                continue;
            }
            let (Keep::Some(_) | Keep::First(_), What::Write { offset, data: piece }) = (&keep, &piece.what) else {
                continue;
            };
            let half = random.below(piece.len() + 1);
            let torn = match random.below(8) {
                // Torn within the sector, its start or its end written.
                0 => What::Write { offset: *offset, data: piece[..half].to_vec() },
                1 => What::Write { offset: *offset + half as u64, data: piece[half..].to_vec() },
                // The length arrived, the data did not.
                2 => What::Write { offset: *offset, data: vec![0; piece.len()] },
                // The previous content of that part of the disk.
                3 => What::Write { offset: *offset, data: piece.iter().map(|_| random.next() as u8).collect() },
                _ => continue,
            };
            apply(&mut data, &torn);
        }
        data
    }
}

pub(crate) fn apply(data: &mut Vec<u8>, what: &What) {
    match what {
        What::Write { data: piece, .. } if piece.is_empty() => {}
        What::Write { offset, data: piece } => {
            let start = *offset as usize;
            if data.len() < start + piece.len() {
                data.resize(start + piece.len(), 0);
            }
            data[start..start + piece.len()].copy_from_slice(piece);
        }
        What::SetLen(len) => data.resize(*len as usize, 0),
    }
}
