//! Races: servers get the same load in turn, for several rounds.

use std::fs;
use std::path::{Path, PathBuf};

use super::peers::{Load, redis_benchmark, wrk};
use super::{Table, median};
use crate::Result;

/// How many operations a batch has, or commands a pipeline.
pub(super) const BATCH: u32 = 64;

/// The load of the clients: one request after the other, or batches of puts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Put,
    Batches,
}

/// How clients send it.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) clients: u32,
    /// The length of one round.
    pub(super) seconds: u32,
}

/// A server, and what was measured of it in each round.
pub(super) struct Racer {
    drive: Box<dyn Fn() -> Result<Load>>,
    loads: Vec<Load>,
}

impl Racer {
    pub(super) fn new(drive: impl Fn() -> Result<Load> + 'static) -> Self {
        Self { drive: Box::new(drive), loads: Vec::new() }
    }

    /// A server of HTTP that gets requests for random keys below a path, or batches.
    pub(super) fn http(folder: &Path, port: u16, kind: Kind, path: &str, keys: u64, pace: Pace) -> Result<Self> {
        let script = script(folder, kind, path, keys)?;
        Ok(Self::new(move || {
            let load = wrk(&format!("http://127.0.0.1:{port}"), pace.clients, pace.seconds, &script)?;
            let operations = if kind == Kind::Batches { BATCH } else { 1 };
            Ok(Load { per_second: load.per_second * f64::from(operations), ..load })
        }))
    }

    /// A Redis that gets commands, or pipelines of them, by its own protocol.
    pub(super) fn redis(port: u16, kind: Kind, pace: Pace) -> Self {
        let (command, ahead, rate) = match kind {
            Kind::Get => ("get", 1, 75_000),
            Kind::Put => ("set", 1, 75_000),
            Kind::Batches => ("set", BATCH, 500_000),
        };
        Self::new(move || redis_benchmark(port, pace.clients, ahead, rate * pace.seconds, command))
    }

    /// Puts the load on the server once.
    pub(super) fn drive(&mut self) -> Result<()> {
        self.loads.push((self.drive)()?);
        Ok(())
    }

    pub(super) fn median(&self, value: impl Fn(&Load) -> f64) -> f64 {
        median(self.loads.iter().map(value))
    }

    /// The median of the ratios of each round.
    pub(super) fn over(&self, peer: &Self, value: impl Fn(&Load) -> f64) -> f64 {
        median(self.loads.iter().zip(&peer.loads).map(|(ours, theirs)| value(ours) / value(theirs)))
    }

    fn shown(&self) -> String {
        let [p50, p99] = [self.median(|load| load.p50), self.median(|load| load.p99)];
        format!("{:.0}/s, {p50:.2} and {p99:.2} ms", self.median(|load| load.per_second))
    }

    /// Adds a row: this server beside a peer, with the lowest and the highest ratio of a round.
    pub(super) fn beside_with_range(&self, peer: &Self, what: &str, goal: &str, table: &mut Table) {
        let ratio = self.over(peer, |load| load.per_second);
        let ratios = self.loads.iter().zip(&peer.loads).map(|(ours, theirs)| ours.per_second / theirs.per_second);
        let (least, most) = ratios.fold((f64::MAX, 0.0_f64), |(least, most), it| (least.min(it), most.max(it)));
        let ratio = format!("{ratio:.2} ({least:.2} to {most:.2})");
        table.row(what, self.shown(), peer.shown(), ratio, goal);
    }

    /// Adds a row: this server beside a peer.
    pub(super) fn beside(&self, peer: &Self, what: &str, goal: &str, table: &mut Table) {
        let ratio = self.over(peer, |load| load.per_second);
        table.row(what, self.shown(), peer.shown(), format!("{ratio:.2}"), goal);
    }
}

/// Measures all of them in every round. Another one is the first in each, because what runs first may find a warmer or a
/// cooler machine.
pub(super) fn race(racers: &mut [Racer], rounds: usize) -> Result<()> {
    for round in 0..rounds {
        let (before, after) = racers.split_at_mut(round % racers.len().max(1));
        after.iter_mut().chain(before).try_for_each(Racer::drive)?;
    }
    Ok(())
}

/// Writes what wrk sends, as Lua: keys of 16 bytes at random, values of 64. Each of its threads makes the requests before the
/// clock starts, and sends them in turn: for more entries than fit into any cache.
pub(super) fn script(folder: &Path, kind: Kind, path: &str, keys: u64) -> Result<PathBuf> {
    let (name, made, request) = match kind {
        Kind::Get => ("get", 200_000, format!(r#"wrk.format("GET", "{path}" .. key())"#)),
        Kind::Put => ("put", 200_000, format!(r#"wrk.format("PUT", "{path}" .. key(), nil, string.rep("v", 64))"#)),
        Kind::Batches => ("batches", 500, "batch()".to_owned()),
    };
    let script = format!(
        r#"
local requests, at = {{}}, 0
local function key()
  return string.format("key:%012d", math.random(0, {keys} - 1))
end
-- A text of less than 256 bytes in MessagePack.
local function str(text)
  return string.char(0xd9, #text) .. text
end
local function batch()
  local parts = {{ string.char(0xdc, 0, {BATCH}) }}
  for i = 1, {BATCH} do
    local put = str("op") .. str("put") .. str("key") .. str(key()) .. str("value") .. str(string.rep("v", 64))
    parts[#parts + 1] = string.char(0x83) .. put
  end
  return wrk.format("POST", "/batch", {{ ["Content-Type"] = "application/msgpack" }}, table.concat(parts))
end
function init()
  math.randomseed(tonumber(tostring({{}}):match("0x(%x+)"), 16) % 100000)
  for i = 1, {made} do
    requests[i] = {request}
  end
end
function request()
  at = at % {made} + 1
  return requests[at]
end
"#
    );
    let file = folder.join(format!("{name}{}{keys}.lua", path.replace('/', "-")));
    fs::write(&file, script)?;
    Ok(file)
}
