//! With every write synced, a power cut loses no acknowledged write, tears none and invents none, also if it comes
//! while the store recovers from another power cut.
//!
//! Clients write, remove, run several operations in one step (all of which must survive, or none), read and take
//! snapshots, one after the other or concurrently, and close and open the store in between. The power is cut at every
//! single change of the disk. From the unsynced data, images are drawn at random of what a real disk might contain. A
//! store must open on each image, agree with what the clients were acknowledged, open a second time and hold the same.
//! Opening is interrupted at every step in turn, and from one image of each run the clients continue to the next power
//! cut.
//!
//! With `VKOG_FULL` in the environment, as `cargo xtask test --full` sets it, there are more loads.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::bounded;
use vkog_store::{Fsync, LocalStore, Options, Store as _};

use crate::client::{
    self, Answer, Content, Contents, DEADLINE, change, close, contents, look, open, start, start_all,
    within_the_deadline,
};
use crate::disk::{Image, SimulatedDisk};
use crate::history::History;
use crate::random::Random;

/// How clients use a store.
#[derive(Copy, Clone, Debug)]
struct Load {
    seed: u64,
    clients: usize,
    /// The number of writes that each client has in flight.
    at_once: usize,
    /// The number of times that it waits for those.
    rounds: usize,
    options: Options,
    /// The number of times that the store is opened.
    sessions: usize,
}

impl Load {
    /// One client that waits for every outcome: every run is the same up to its power cut.
    fn one_by_one(seed: u64) -> Self {
        Self { seed, clients: 1, at_once: 1, rounds: 14, options: client::ALWAYS, sessions: 2 }
    }

    /// Several clients, and automatic snapshots.
    fn all_at_once(seed: u64) -> Self {
        let options =
            Options { fsync: Fsync::Always, log_min: [500, 3000, 20_000][seed as usize % 3], ..Options::default() };
        Self { seed, clients: 3, at_once: 1 + seed as usize % 5, rounds: 6, options, sessions: 2 }
    }

    /// Runs to the end or until the power is cut.
    fn run(&self, disk: &SimulatedDisk, history: &History) {
        for session in 0..self.sessions {
            let store = match open(disk, self.options) {
                Ok(store) => store,
                Err(error) => {
                    assert!(disk.crashed(), "the store does not open: {error}");
                    return;
                }
            };
            thread::scope(|scope| {
                for client in 0..self.clients {
                    let random = Random::new(self.seed << 8 | (session * 16 + client) as u64);
                    let store = &store;
                    scope.spawn(move || self.client(disk, store, history, client, random));
                }
            });
            // Every other session ends without a clean stop, as a kill ends it.
            if (self.seed + session as u64).is_multiple_of(2) {
                let closed = within_the_deadline("closing", || store.close());
                assert!(closed.is_ok() || disk.crashed(), "the store does not close: {:?}", closed.err());
            }
        }
    }

    fn client(&self, disk: &SimulatedDisk, store: &LocalStore, history: &History, client: usize, mut random: Random) {
        for _ in 0..self.rounds {
            if random.percent(if self.clients == 1 { 12 } else { 4 }) {
                let written = within_the_deadline("a snapshot", || store.snapshot());
                assert!(written.is_ok() || disk.crashed(), "no snapshot: {:?}", written.err());
            }
            let (tell, told) = bounded(self.at_once);
            for _ in 0..self.at_once {
                let tell = tell.clone();
                if random.percent(25) {
                    let changes = some_changes(client, history, &mut random);
                    let note = history.attempt_all(&changes);
                    start_all(store, &changes, move |answer| {
                        note(&answer);
                        let _ = tell.send(answer);
                    });
                    continue;
                }
                let key = some_key(client, &mut random);
                let content = random.percent(75).then(|| history.content(&mut random));
                let note = history.attempt(&key, content.as_ref());
                start(store, &key, content.as_ref(), move |answer| {
                    note(&answer);
                    let _ = tell.send(answer);
                });
                if random.percent(30) {
                    let (found, kept) = look(store, &key);
                    if let (Some((revision, _)), Ok(Ok(()))) = (found, kept.recv_timeout(DEADLINE)) {
                        history.told(&key, revision);
                    }
                }
            }
            let answers: Vec<Answer> =
                (0..self.at_once).map(|_| told.recv_timeout(DEADLINE).expect("every write gets a response")).collect();
            if answers.iter().any(|answer| matches!(answer, Answer::Refused(_))) {
                assert!(disk.crashed(), "a write was refused: {answers:?}");
                return;
            }
        }
    }
}

/// Returns a key of the client, or a shared one.
fn some_key(client: usize, random: &mut Random) -> String {
    let own = random.percent(80);
    format!("{}/{}", if own { client } else { 9 }, random.below(5))
}

/// Returns the operations of one step. Few of them are removals, because the removal of an absent key fails the whole step.
fn some_changes(client: usize, history: &History, random: &mut Random) -> Vec<(String, Option<Content>)> {
    let one = |_| (some_key(client, random), random.percent(90).then(|| history.content(random)));
    (0..2 + history.serial() as usize % 4).map(one).collect()
}

/// Opens a store on an image. Returns its entries and what it leaves behind.
fn recovered(image: &Image, options: Options) -> Result<(Contents, u64, SimulatedDisk), String> {
    let disk = SimulatedDisk::of(image);
    let store = open(&disk, options).map_err(|error| error.to_string())?;
    let found = (contents(&store), store.revision());
    drop(store);
    Ok((found.0, found.1, disk))
}

/// Opens a store on an image, and again on what that leaves behind, and checks the entries.
fn check(image: &Image, history: &History, options: Options) -> Result<(), String> {
    let (first, revision, disk) = recovered(image, options)?;
    history.check(&first, revision)?;
    // To save time, what the first left behind is opened for one image in four, and for all that have an unfinished
    // snapshot.
    let left = disk.now();
    let again = [("of the same image", image), ("after the first", &left)];
    for (what, image) in again.into_iter().take(if left.0.len() > 2 || revision.is_multiple_of(4) { 2 } else { 1 }) {
        let (second, again, _) = recovered(image, options).map_err(|error| format!("{what}: {error}"))?;
        if (&first, revision) != (&second, again) {
            return Err(format!("the second recovery {what} gives another store"));
        }
    }
    Ok(())
}

/// The images that were checked, and which run they are of.
struct Run<'a> {
    load: Load,
    step: u64,
    images: &'a AtomicU64,
    in_recovery: &'a AtomicU64,
}

impl Run<'_> {
    fn checked(&self, what: &str, image: &Image, history: &History) {
        self.images.fetch_add(1, Ordering::Relaxed);
        if let Err(fact) = check(image, history, self.load.options) {
            panic!("{fact}\n{what} of {:?}, crash at step {}, {image:?}", self.load, self.step);
        }
    }

    /// Cuts the power at this step, and a few times more on the way on.
    fn crash(&self) {
        let mut random = Random::new(self.load.seed << 20 | self.step);
        let mut disk = SimulatedDisk::empty();
        let mut history = History::default();
        disk.crash_at(self.step);
        for cut in 1..=3 {
            self.load.run(&disk, &history);
            disk.crash();
            for _ in 0..4 {
                self.checked(&format!("power cut {cut}"), &disk.after_power_cut(&mut random), &history);
            }
            let image = disk.after_power_cut(&mut random);
            let image = self.crash_recovery(&image, &history, &mut random);
            if cut == 1 && !self.step.is_multiple_of(3) {
                return;
            }
            disk = SimulatedDisk::of(&image);
            let store = match open(&disk, self.load.options) {
                Ok(store) => store,
                Err(error) => panic!("{error}\nafter power cut {cut} of {:?}", self.load),
            };
            history = History::from(&store, history.serial());
            drop(store);
            disk.crash_at(disk.steps() + 1 + random.below(60) as u64);
        }
    }

    /// Cuts the power at every step of a recovery. Returns an image on which another one can be tried.
    fn crash_recovery(&self, image: &Image, history: &History, random: &mut Random) -> Image {
        let mut last = image.clone();
        for step in 1.. {
            let disk = SimulatedDisk::of(image);
            disk.crash_at(step);
            match open(&disk, self.load.options) {
                Ok(store) => drop(store),
                Err(error) => assert!(disk.crashed(), "{error}\nin the recovery of {:?}", self.load),
            }
            // The recovery took fewer steps.
            if !disk.crashed() {
                break;
            }
            let image = disk.after_power_cut(random);
            self.in_recovery.fetch_add(1, Ordering::Relaxed);
            self.checked(&format!("step {step} of the recovery"), &image, history);
            if random.percent(40) {
                last = image;
            }
        }
        last
    }
}

/// Cuts the power at every step of some loads. Returns how many images were checked, and how many of them are of cuts
/// during a recovery.
fn crash_everywhere(loads: &[Load]) -> (u64, u64) {
    let (images, in_recovery) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut runs = Vec::new();
    for load in loads {
        let disk = SimulatedDisk::empty();
        let history = History::default();
        load.run(&disk, &history);
        let store = open(&disk, load.options).expect("a store that was never cut off");
        history.check(&contents(&store), store.revision()).expect("a store that was never cut off");
        close(store);
        runs.extend((1..=disk.steps()).map(|step| Run {
            load: *load,
            step,
            images: &images,
            in_recovery: &in_recovery,
        }));
    }
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run.crash();
                }
            });
        }
    });
    println!(
        "{} loads, {} runs, {images:?} crash images, {in_recovery:?} of them in recoveries",
        loads.len(),
        runs.len()
    );
    (images.into_inner(), in_recovery.into_inner())
}

#[test]
fn a_power_cut_at_any_step_loses_nothing_acknowledged_and_makes_nothing_up() {
    let seeds = 0..if std::env::var_os("VKOG_FULL").is_some() { 100 } else { 7 };
    let loads: Vec<Load> = seeds.flat_map(|seed| [Load::one_by_one(seed), Load::all_at_once(seed)]).collect();
    let (images, in_recovery) = crash_everywhere(&loads);
    assert!(images >= 30_000 || loads.len() < 14, "{images} images are too few");
    assert!(in_recovery * 4 >= images, "{in_recovery} of {images} are of cuts during a recovery, which is too few");
}

#[test]
fn the_same_key_in_two_writes_at_once_survives_with_the_later_one() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, client::ALWAYS).expect("a store");
    let history = History::default();
    let mut random = Random::new(7);
    let (tell, told) = bounded(64);
    for _ in 0..64 {
        let content = history.content(&mut random);
        let note = history.attempt("key", Some(&content));
        let tell = tell.clone();
        start(&store, "key", Some(&content), move |answer| {
            note(&answer);
            let _ = tell.send(());
        });
    }
    for _ in 0..64 {
        told.recv_timeout(DEADLINE).expect("every write gets a response");
    }
    disk.crash();
    for _ in 0..20 {
        check(&disk.after_power_cut(&mut random), &history, client::ALWAYS).expect("what was acknowledged");
    }
    assert!(matches!(change(&store, "key", None), Answer::Refused(_)), "after the cut nothing is acknowledged");
}
