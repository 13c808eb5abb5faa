//! A disk in memory that behaves like a real one: every reader sees written data, which survives a power cut only if it
//! was synced. Otherwise a power cut may keep each sector, drop it, tear it or replace it, and may keep or drop each
//! change of a name.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};
use vkog_store::{Disk, File};

use crate::client::DEADLINE;
use crate::inode::{Inode, Keep, What};
use crate::random::Random;

/// The calls of a disk.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Create,
    Write,
    SetLen,
    Sync,
    Rename,
    Remove,
    SyncFolder,
}

/// How a call fails.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Fault {
    /// The call has no effect.
    Fails(io::ErrorKind),
    /// Half of the data is written.
    Half(io::ErrorKind),
}

/// Names and contents of files, all of it durable.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) BTreeMap<PathBuf, Vec<u8>>);

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(path, data)| (path, data.len()))).finish()
    }
}

/// A handle of the disk. Clones share the disk.
#[derive(Clone)]
pub(crate) struct SimulatedDisk(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    name_changes: Vec<NameChange>,
    steps: u64,
    crash_at: Option<u64>,
    crashed: bool,
    faults: Vec<(Call, String, Fault, u32)>,
    held: Option<(Call, String)>,
    late: bool,
    waits: bool,
    capacity: Option<u64>,
    tells_free: bool,
    measured: u64,
    acknowledged: Arc<AtomicU64>,
    promised: u64,
    log_syncs: u64,
}

enum NameChange {
    Create { path: PathBuf, inode: usize },
    Rename { from: PathBuf, to: PathBuf, inode: usize },
    Remove { path: PathBuf },
}

impl SimulatedDisk {
    pub(crate) fn empty() -> Self {
        Self::of(&Image::default())
    }

    /// Creates a disk with this content.
    pub(crate) fn of(image: &Image) -> Self {
        let mut state = State::default();
        for (index, (path, data)) in image.0.iter().enumerate() {
            state.inodes.push(Inode { now: data.clone(), durable: data.clone(), ..Inode::default() });
            state.names.insert(path.clone(), index);
        }
        state.durable_names = state.names.clone();
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Returns the number of changes so far. A crash may come at each.
    pub(crate) fn steps(&self) -> u64 {
        self.0.state.lock().steps
    }

    /// The power is cut in this step, counted from the first; this and all that follow fail.
    pub(crate) fn crash_at(&self, step: u64) {
        self.0.state.lock().crash_at = Some(step);
    }

    /// Cuts the power now.
    pub(crate) fn crash(&self) {
        self.0.state.lock().crashed = true;
    }

    pub(crate) fn crashed(&self) -> bool {
        self.0.state.lock().crashed
    }

    /// Makes this number of calls fail, on files with this name ending.
    pub(crate) fn fault(&self, call: Call, ending: &str, fault: Fault, times: u32) {
        self.0.state.lock().faults.push((call, ending.to_owned(), fault, times));
    }

    /// Makes all calls succeed from now on.
    pub(crate) fn mend(&self) {
        self.0.state.lock().faults.clear();
    }

    /// Limits the space of the disk to this number of bytes, or removes the limit.
    pub(crate) fn capacity(&self, bytes: Option<u64>) {
        self.0.state.lock().capacity = bytes;
    }

    /// Makes the disk report its free space from now on.
    pub(crate) fn tell_free(&self) {
        self.0.state.lock().tells_free = true;
    }

    /// Returns how often the store has read the free space.
    pub(crate) fn measured(&self) -> u64 {
        self.0.state.lock().measured
    }

    /// Returns the number of bytes in all files.
    pub(crate) fn used(&self) -> u64 {
        self.0.state.lock().used()
    }

    /// Holds such calls: they do not return until what this returns is dropped, also by a test that fails.
    #[must_use]
    pub(crate) fn hold(&self, call: Call, ending: &str) -> Held {
        self.0.state.lock().held = Some((call, ending.to_owned()));
        Held(self.clone())
    }

    /// From now on a sync that fails does so, and does not say it until [`release_failed_syncs`](Self::release_failed_syncs).
    pub(crate) fn hold_failed_syncs(&self) {
        self.0.state.lock().late = true;
    }

    /// Waits until a call is held.
    pub(crate) fn wait_held(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.0.state.lock();
        while !state.waits {
            assert!(!self.0.changed.wait_until(&mut state, deadline).timed_out(), "no call came that is held");
        }
    }

    /// Releases what [`hold_failed_syncs`](Self::hold_failed_syncs) holds.
    pub(crate) fn release_failed_syncs(&self) {
        let mut state = self.0.state.lock();
        (state.late, state.waits) = (false, false);
        self.0.changed.notify_all();
    }

    /// Counts an acknowledged write.
    pub(crate) fn acknowledged(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.state.lock().acknowledged)
    }

    /// Returns the number of acknowledged writes at the start of the last sync that left no part of the logs unsynced.
    pub(crate) fn promised(&self) -> u64 {
        self.0.state.lock().promised
    }

    /// Waits for the end of a sync of the logs that began after this number of acknowledged writes.
    pub(crate) fn wait_promised(&self, acknowledged: u64) {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.0.state.lock();
        while state.promised < acknowledged {
            assert!(!self.0.changed.wait_until(&mut state, deadline).timed_out(), "no sync came");
        }
    }

    /// Returns the number of syncs of a log.
    pub(crate) fn log_syncs(&self) -> u64 {
        self.0.state.lock().log_syncs
    }

    /// Returns the content that readers see, as it is after a kill.
    pub(crate) fn now(&self) -> Image {
        let state = self.0.state.lock();
        Image(state.names.iter().map(|(path, inode)| (path.clone(), state.inodes[*inode].now.clone())).collect())
    }

    /// Returns a content that a power cut may leave behind.
    pub(crate) fn after_power_cut(&self, random: &mut Random) -> Image {
        let state = self.0.state.lock();
        let mut names = state.durable_names.clone();
        let keep = Keep::draw(random, state.name_changes.len());
        for (index, change) in state.name_changes.iter().enumerate() {
            if !keep.keeps(random, index) {
                continue;
            }
            match change {
                NameChange::Create { path, inode } => {
                    names.insert(path.clone(), *inode);
                }
                NameChange::Rename { from, to, inode } => {
                    if names.get(from) == Some(inode) {
                        names.remove(from);
                    }
                    names.insert(to.clone(), *inode);
                }
                NameChange::Remove { path } => {
                    names.remove(path);
                }
            }
        }
        Image(names.into_iter().map(|(path, inode)| (path, state.inodes[inode].after_power_cut(random))).collect())
    }

    /// Counts a step. Returns whether and how it fails.
    fn step(&self, call: Call, name: impl Fn(&State) -> PathBuf) -> io::Result<(MutexGuard<'_, State>, Outcome)> {
        let mut state = self.0.state.lock();
        if state.crashed {
            return Err(crashed());
        }
        state.steps += 1;
        if state.crash_at == Some(state.steps) {
            state.crashed = true;
            return Ok((state, Outcome::Crash));
        }
        let name = name(&state).display().to_string();
        while state.held.as_ref().is_some_and(|(held, ending)| *held == call && name.ends_with(ending)) {
            state.waits = true;
            self.0.changed.notify_all();
            self.0.changed.wait(&mut state);
        }
        let fault = state
            .faults
            .iter_mut()
            .find(|(of, ending, _, left)| *of == call && *left > 0 && name.ends_with(ending.as_str()));
        let outcome = match fault {
            Some((_, _, fault, left)) => {
                *left -= 1;
                Outcome::Fault(*fault)
            }
            None => Outcome::Done,
        };
        Ok((state, outcome))
    }
}

/// Calls are held until this is dropped.
pub(crate) struct Held(SimulatedDisk);

impl Held {
    pub(crate) fn release(self) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.0.state.lock();
        (state.held, state.waits) = (None, false);
        self.0.0.changed.notify_all();
    }
}

enum Outcome {
    Done,
    Crash,
    Fault(Fault),
}

impl Outcome {
    /// Whether the call has an effect. In a crash it is in flight, and may or may not have one.
    fn acts(&self) -> bool {
        !matches!(self, Self::Fault(_))
    }

    fn result(&self) -> io::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Crash => Err(crashed()),
            Self::Fault(Fault::Fails(kind) | Fault::Half(kind)) => Err((*kind).into()),
        }
    }
}

/// Returns the content before the zeros at the end of a file.
pub(crate) fn without_room(mut data: &[u8]) -> &[u8] {
    // Many bytes at a time, because the tests call it often.
    while let Some(rest) = data.strip_suffix(&[0; 4096]) {
        data = rest;
    }
    while let [rest @ .., 0] = data {
        data = rest;
    }
    data
}

fn crashed() -> io::Error {
    io::Error::other("crashed")
}

impl State {
    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].now.len() as u64).sum()
    }

    fn name_of(&self, inode: usize) -> PathBuf {
        self.names.iter().find(|(_, other)| **other == inode).map(|(path, _)| path.clone()).unwrap_or_default()
    }

    fn is_log(&self, inode: usize) -> bool {
        let name = self.name_of(inode);
        name.extension().is_some_and(|ending| ending == "log" || ending == "next")
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn File>>> {
        let state = self.0.state.lock();
        if state.crashed {
            return Err(crashed());
        }
        let handle = |inode: &usize| Box::new(Handle { disk: self.clone(), inode: *inode }) as Box<dyn File>;
        Ok(state.names.get(path).map(handle))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let (mut state, outcome) = self.step(Call::Create, |_| path.to_owned())?;
        if !outcome.acts() {
            return outcome.result().map(|()| unreachable!("a fault is an error"));
        }
        let inode = match state.names.get(path) {
            Some(inode) => {
                let inode = *inode;
                state.inodes[inode].change(What::SetLen(0));
                inode
            }
            None => {
                let inode = state.inodes.len();
                state.inodes.push(Inode::default());
                state.names.insert(path.to_owned(), inode);
                state.name_changes.push(NameChange::Create { path: path.to_owned(), inode });
                inode
            }
        };
        drop(state);
        outcome.result()?;
        Ok(Box::new(Handle { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, outcome) = self.step(Call::Rename, |_| from.to_owned())?;
        if outcome.acts() {
            let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), inode);
            state.name_changes.push(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        }
        outcome.result()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut state, outcome) = self.step(Call::Remove, |_| path.to_owned())?;
        if outcome.acts() && state.names.remove(path).is_some() {
            state.name_changes.push(NameChange::Remove { path: path.to_owned() });
        }
        outcome.result()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let (mut state, outcome) = self.step(Call::SyncFolder, |_| path.to_owned())?;
        if matches!(outcome, Outcome::Done) {
            state.durable_names = state.names.clone();
            state.name_changes.clear();
        }
        outcome.result()
    }

    fn free(&self, _: &Path) -> Option<u64> {
        let mut state = self.0.state.lock();
        state.measured += 1;
        let capacity = state.capacity.filter(|_| state.tells_free)?;
        Some(capacity.saturating_sub(state.used()))
    }
}

struct Handle {
    disk: SimulatedDisk,
    inode: usize,
}

impl Handle {
    fn step(&self, call: Call) -> io::Result<(MutexGuard<'_, State>, Outcome)> {
        self.disk.step(call, |state| state.name_of(self.inode))
    }

    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.0.state.lock();
        if state.crashed { Err(crashed()) } else { Ok(state) }
    }
}

impl File for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.inodes[self.inode].now.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.alive()?;
        let data = &state.inodes[self.inode].now;
        let end = offset as usize + buffer.len();
        buffer.copy_from_slice(data.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut state, outcome) = self.step(Call::Write)?;
        let grows = (offset + data.len() as u64).saturating_sub(state.inodes[self.inode].now.len() as u64);
        let room = state.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used()));
        let (length, result) = match outcome {
            Outcome::Fault(Fault::Half(_)) => (data.len() / 2, outcome.result()),
            Outcome::Fault(Fault::Fails(_)) => (0, outcome.result()),
            _ if grows > room => {
                (data.len().saturating_sub((grows - room) as usize), Err(io::ErrorKind::StorageFull.into()))
            }
            _ => (data.len(), outcome.result()),
        };
        state.inodes[self.inode].write(offset, &data[..length]);
        result
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let (mut state, outcome) = self.step(Call::SetLen)?;
        if outcome.acts() {
            state.inodes[self.inode].change(What::SetLen(len));
        }
        outcome.result()
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, outcome) = self.step(Call::Sync)?;
        let inode = &mut state.inodes[self.inode];
        let serial = inode.serial;
        match outcome {
            Outcome::Crash => return outcome.result(),
            Outcome::Fault(_) => {
                for piece in &mut inode.pieces {
                    piece.given_up |= !piece.firm;
                }
                // The next sync may return earlier.
                while state.late {
                    state.waits = true;
                    self.disk.0.changed.notify_all();
                    self.disk.0.changed.wait(&mut state);
                }
                return outcome.result();
            }
            Outcome::Done => {}
        }
        let acknowledged = state.acknowledged.load(Ordering::SeqCst);
        // Other threads continue, and their writes are not part of it.
        drop(state);
        std::thread::yield_now();
        let mut state = self.alive()?;
        state.inodes[self.inode].synced(serial);
        if state.is_log(self.inode) {
            state.log_syncs += 1;
            // Writes during this sync come after those that were acknowledged before it.
            let others = |index: usize| index != self.inode && state.is_log(index);
            let all = (0..state.inodes.len()).filter(|index| others(*index)).all(|i| state.inodes[i].pieces.is_empty());
            if all {
                state.promised = state.promised.max(acknowledged);
            }
            self.disk.0.changed.notify_all();
        }
        Ok(())
    }
}
