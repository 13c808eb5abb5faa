//! `--against PROGRAM`: compares the vkog of this tree with another one, such as that of the previous commit. They
//! alternate in every round, each on its own store. A ratio above 1 means that the vkog of this tree is better.

use std::fs;
use std::path::{Path, PathBuf};

use super::peers::{Load, Peer, wrk};
use super::store::{Life, machine, make_store, megabytes, requests, seconds, vkog_life};
use super::{Table, median};
use crate::Result;

const ENGINES: [&str; 2] = ["hyper", "tiny"];
/// The lowest ratio of a change that costs nothing.
const GOAL: &str = "≥ 0.97";

/// The vkog of this tree and the other one.
pub(crate) struct Against<'a> {
    programs: [&'a Path; 2],
    folder: &'a Path,
    rounds: usize,
    /// The length of one load.
    seconds: u32,
    table: Table,
}

impl<'a> Against<'a> {
    pub(crate) fn new(programs: [&'a Path; 2], folder: &'a Path, rounds: usize, seconds: u32) -> Self {
        println!("{}; {rounds} rounds of {seconds} s, latencies are p50 and p99\n", machine());
        Self { programs, folder, rounds, seconds, table: Table::default() }
    }

    pub(crate) fn print(&self) {
        self.table.print(&format!("{}", self.programs[1].display()));
    }

    /// Measures GET, or PUT with a setting of `--fsync`, for each engine. `plugins` is a folder of libraries.
    pub(crate) fn requests(
        &mut self,
        method: &str,
        fsync: &str,
        clients: u32,
        keys: u64,
        plugins: Option<&Path>,
    ) -> Result<()> {
        let script = requests(self.folder, method, "/k/", keys)?;
        let what = match method {
            "GET" => "GET".to_owned(),
            _ => format!("{method} --fsync {fsync}"),
        };
        let what = if plugins.is_some() { what } else { format!("{what} without plugins") };
        self.load(&format!("{what}, {clients} clients"), clients, &script, fsync, keys, plugins)
    }

    /// Puts the load of a wrk script on both programs, for each engine.
    pub(crate) fn load(
        &mut self,
        what: &str,
        clients: u32,
        script: &Path,
        fsync: &str,
        keys: u64,
        plugins: Option<&Path>,
    ) -> Result<()> {
        for http in ENGINES {
            let peers = self.start(keys, plugins, &["--http", http, "--fsync", fsync])?;
            let loads = self.take_turns(|which| {
                wrk(&format!("http://127.0.0.1:{}", peers[which].port), clients, self.seconds, script)
            })?;
            let what = format!("{what}, {http}");
            let [ours, theirs] = loads.map(|loads| middle(&loads));
            self.row(&what, shown(&ours), shown(&theirs), ours.per_second / theirs.per_second);
        }
        Ok(())
    }

    /// Measures the start, the memory and the snapshot of a store with this number of entries.
    pub(crate) fn start_and_snapshot(&mut self, entries: u64) -> Result<()> {
        let files = self.stores(entries)?;
        let lives = self.take_turns(|which| vkog_life(self.programs[which], &files[which]))?;
        let [ours, theirs] = lives.map(|lives| Life::medians(&lives));
        let what = |measured: &str| format!("{measured}, {entries} entries");
        // Less is better.
        self.row(&what("start"), seconds(ours.start), seconds(theirs.start), theirs.start / ours.start);
        self.row(&what("snapshot"), seconds(ours.save), seconds(theirs.save), theirs.save / ours.save);
        let ratio = theirs.memory / ours.memory;
        self.row(&what("resident memory"), megabytes(ours.memory), megabytes(theirs.memory), ratio);
        Ok(())
    }

    fn row(&mut self, what: &str, ours: String, theirs: String, ratio: f64) {
        self.table.row(what, ours, theirs, format!("{ratio:.2}"), GOAL);
    }

    /// Makes a store for each program, by that program.
    fn stores(&self, entries: u64) -> Result<[PathBuf; 2]> {
        let files = ["ours.vkog", "theirs.vkog"].map(|name| self.folder.join(name));
        for (program, file) in self.programs.iter().zip(&files) {
            for old in [file.clone(), PathBuf::from(format!("{}.log", file.display()))] {
                let _ = fs::remove_file(old);
            }
            make_store(program, file, entries)?;
        }
        Ok(files)
    }

    fn start(&self, keys: u64, plugins: Option<&Path>, options: &[&str]) -> Result<[Peer; 2]> {
        let files = self.stores(keys)?;
        let start = |which: usize| Peer::vkog_with(self.programs[which], &files[which], plugins, options);
        Ok([start(0)?.0, start(1)?.0])
    }

    /// Measures the current program (0) and the other one (1) in every round. The first of a round changes, because what runs
    /// first may find a warmer or a cooler machine.
    fn take_turns<T>(&self, measure: impl Fn(usize) -> Result<T>) -> Result<[Vec<T>; 2]> {
        let mut measured = [Vec::new(), Vec::new()];
        for round in 0..self.rounds {
            for which in [round % 2, 1 - round % 2] {
                measured[which].push(measure(which)?);
            }
        }
        Ok(measured)
    }
}

/// The medians of several loads.
pub(super) fn middle(loads: &[Load]) -> Load {
    let of = |value: fn(&Load) -> f64| median(loads.iter().map(value).collect());
    Load { per_second: of(|load| load.per_second), p50: of(|load| load.p50), p99: of(|load| load.p99) }
}

fn shown(load: &Load) -> String {
    format!("{:.0}/s, {:.2} and {:.2} ms", load.per_second, load.p50, load.p99)
}
