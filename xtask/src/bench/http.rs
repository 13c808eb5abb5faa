//! `cargo xtask bench http`: requests per second and latencies of both engines, beside nginx with a fixed response,
//! Webdis before Redis, and Redis itself; and the cost of plugins, many entries and many connections. The competitors
//! alternate in every round. Name parts to run only them: see [`PARTS`]. `--quick` runs fewer and shorter rounds;
//! `--against PROGRAM` compares with another vkog.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::against::Against;
use super::peers::{Load, Peer, redis_benchmark, wrk};
use super::plugins::{idle_plugins, plugin_folder};
use super::store::{machine, make_store, requests};
use super::{Options, Table, median};
use crate::Result;
use crate::build;

const PARTS: [&str; 7] = ["reads", "writes", "durable", "batches", "plugins", "entries", "connections"];
const KEYS: u64 = 10_000;
const MANY_KEYS: u64 = 10_000_000;
const CLIENTS: [u32; 2] = [64, 16];
const IDLE_CONNECTIONS: usize = 10_000;
const ENGINES: [&str; 2] = ["hyper", "tiny"];
/// The number of operations per batch, or of commands per pipeline.
const BATCH: u32 = 64;
/// The number of clients that send batches.
const BATCH_CLIENTS: u32 = 16;

pub(crate) fn run(words: &[&str]) -> Result<()> {
    let options = Options::parse(words, &PARTS)?;
    let built = build::build(&["vkog", "vkog-bytes", "vkog-conflict"], options.profile(), None)?;
    let program = &built.iter().find(|built| built.package == "vkog").ok_or("cargo built no vkog")?.file;
    let folder = program.parent().ok_or("no folder")?.join("bench");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let shipped: Vec<PathBuf> =
        built.iter().filter(|built| built.package != "vkog").map(|built| built.file.clone()).collect();
    let shipped = plugin_folder(&folder.join("shipped"), &shipped)?;
    let (rounds, seconds) = if options.quick { (3, 1) } else { (5, 2) };
    if let Some(other) = &options.against {
        let against = Against::new([program, other], &folder, rounds, seconds);
        compare(against, &options, &folder, &shipped)?;
        return Ok(fs::remove_dir_all(&folder)?);
    }
    let bench = Bench { program, folder: &folder, shipped: &shipped, rounds, seconds, stores: Cell::new(0) };
    println!("{}; medians of {rounds} rounds of {seconds} s, latencies are p50 and p99\n", machine());
    let mut table = Table::default();
    for part in PARTS.iter().filter(|part| options.includes(part)) {
        match *part {
            "reads" => CLIENTS.iter().try_for_each(|clients| bench.reads(*clients, &mut table))?,
            "writes" => CLIENTS.iter().try_for_each(|clients| bench.writes(*clients, &mut table))?,
            "durable" => CLIENTS.iter().try_for_each(|clients| bench.durable_writes(*clients, &mut table))?,
            "batches" => bench.batches(&mut table)?,
            "plugins" => bench.plugins(&mut table)?,
            "entries" => bench.entries(&mut table)?,
            _ => bench.connections(&mut table)?,
        }
    }
    fs::remove_dir_all(&folder)?;
    table.print("peer");
    Ok(())
}

/// Compares with another vkog in the parts that put a load on a server.
fn compare(mut against: Against<'_>, options: &Options, folder: &Path, shipped: &Path) -> Result<()> {
    for part in PARTS.iter().filter(|part| options.includes(part)) {
        match *part {
            "reads" => CLIENTS
                .iter()
                .try_for_each(|clients| against.requests("GET", "never", *clients, KEYS, Some(shipped)))?,
            "writes" => CLIENTS
                .iter()
                .try_for_each(|clients| against.requests("PUT", "never", *clients, KEYS, Some(shipped)))?,
            "durable" => CLIENTS
                .iter()
                .try_for_each(|clients| against.requests("PUT", "always", *clients, KEYS, Some(shipped)))?,
            "batches" => {
                let script = folder.join("batches.lua");
                fs::write(&script, batches())?;
                for fsync in ["never", "always"] {
                    let what = format!("batches of {BATCH} PUTs, --fsync {fsync}, {BATCH_CLIENTS} clients");
                    against.load(&what, BATCH_CLIENTS, &script, fsync, KEYS, Some(shipped))?;
                }
            }
            "plugins" => against.requests("GET", "never", 64, KEYS, None)?,
            "entries" if !options.quick => against.requests("GET", "never", 64, MANY_KEYS, None)?,
            part => eprintln!("{part}: left out of this comparison"),
        }
    }
    against.print();
    Ok(())
}

struct Bench<'a> {
    program: &'a Path,
    folder: &'a Path,
    /// With bytes and conflict.
    shipped: &'a Path,
    rounds: usize,
    /// The duration of one load.
    seconds: u32,
    /// The number of stores that were created.
    stores: Cell<u32>,
}

/// Puts a load on one of those who are compared.
type Racer<'a> = Box<dyn Fn() -> Result<Load> + 'a>;

/// The loads of several rounds; none of a peer that is not installed.
#[derive(Default)]
struct Rounds(Vec<Load>);

impl Rounds {
    fn median(&self, value: impl Fn(&Load) -> f64) -> f64 {
        median(self.0.iter().map(value).collect())
    }

    /// The median of the ratios of each round.
    fn over(&self, other: &Self, value: impl Fn(&Load) -> f64) -> String {
        let ratios = self.0.iter().zip(&other.0).map(|(ours, theirs)| value(ours) / value(theirs)).collect();
        format!("{:.2}", median(ratios))
    }

    fn shown(&self) -> String {
        format!("{:.0}/s, {:.2} and {:.2} ms", self.median(rate), self.median(|load| load.p50), self.median(p99))
    }

    /// A row beside a peer, if the peer is installed.
    fn beside(&self, what: &str, peer: &Self, goal: &str, table: &mut Table) {
        if !peer.0.is_empty() {
            table.row(what, self.shown(), peer.shown(), self.over(peer, rate), goal);
        }
    }
}

fn rate(load: &Load) -> f64 {
    load.per_second
}

fn p99(load: &Load) -> f64 {
    load.p99
}

impl Bench<'_> {
    /// vkog with an engine, on its own store with [`KEYS`] entries.
    fn vkog(&self, http: &str, plugins: Option<&Path>, fsync: &str) -> Result<Peer> {
        self.stores.set(self.stores.get() + 1);
        let store = self.folder.join(format!("{}.vkog", self.stores.get()));
        make_store(self.program, &store, KEYS)?;
        Ok(Peer::vkog_with(self.program, &store, plugins, &["--http", http, "--fsync", fsync])?.0)
    }

    /// Redis with these options; `None` if it is not installed.
    fn redis(&self, options: &[&str]) -> Result<Option<Peer>> {
        if let Err(error) = Command::new("redis-server").arg("--version").output() {
            eprintln!("Redis is left out: {error}; install Debian's redis-server");
            return Ok(None);
        }
        Ok(Some(Peer::redis(self.folder, options)?.0))
    }

    fn wrk<'a>(&'a self, peer: &'a Peer, clients: u32, method: &'a str, path: &'a str, keys: u64) -> Racer<'a> {
        Box::new(move || {
            let script = requests(self.folder, method, path, keys)?;
            wrk(&format!("http://127.0.0.1:{}", peer.port), clients, self.seconds, &script)
        })
    }

    fn redis_benchmark<'a>(&'a self, redis: &'a Peer, clients: u32, command: &'a str) -> Racer<'a> {
        Box::new(move || redis_benchmark(redis.port, clients, 1, 75_000 * self.seconds, command))
    }

    fn race<const N: usize>(&self, racers: [Option<Racer<'_>>; N]) -> Result<[Rounds; N]> {
        let mut loads = [const { Rounds(Vec::new()) }; N];
        for _ in 0..self.rounds {
            for (racer, loads) in racers.iter().zip(&mut loads) {
                if let Some(racer) = racer {
                    loads.0.push(racer()?);
                }
            }
        }
        Ok(loads)
    }

    fn reads(&self, clients: u32, table: &mut Table) -> Result<()> {
        let nginx = Peer::nginx(self.folder, &"v".repeat(64))?;
        let redis = self.redis(&[])?;
        let webdis = redis.as_ref().map(|redis| Peer::webdis(self.folder, redis)).transpose()?.flatten();
        if let Some(webdis) = &webdis {
            // There has to be something to find.
            self.wrk(webdis, 16, "PUT", "/SET/", KEYS)()?;
        }
        let [hyper, tiny] = ENGINES.map(|http| self.vkog(http, Some(self.shipped), "never"));
        let (hyper, tiny) = (hyper?, tiny?);
        let [fixed, through, own, hyper, tiny] = self.race([
            nginx.as_ref().map(|nginx| self.wrk(nginx, clients, "GET", "/k/", KEYS)),
            webdis.as_ref().map(|webdis| self.wrk(webdis, clients, "GET", "/GET/", KEYS)),
            redis.as_ref().map(|redis| self.redis_benchmark(redis, clients, "get")),
            Some(self.wrk(&hyper, clients, "GET", "/k/", KEYS)),
            Some(self.wrk(&tiny, clients, "GET", "/k/", KEYS)),
        ])?;
        let goals = [["≥ 0.85", "≤ 1.5", "≥ 1.6"], ["≥ 0.55", "≤ 2", "≥ 1.0"]];
        for ((http, ours), [rate_goal, p99_goal, through_goal]) in ENGINES.iter().zip([hyper, tiny]).zip(goals) {
            let what = format!("GET, {http}, {clients} clients");
            ours.beside(&format!("{what}; nginx with a fixed answer"), &fixed, rate_goal, table);
            if !fixed.0.is_empty() {
                let p99_goal = if clients == 64 { p99_goal } else { "" };
                let shown = |rounds: &Rounds| format!("{:.2} ms", rounds.median(p99));
                let what = format!("{what}: p99; that of nginx");
                table.row(&what, shown(&ours), shown(&fixed), ours.over(&fixed, p99), p99_goal);
            }
            ours.beside(&format!("{what}; Webdis before Redis"), &through, through_goal, table);
            ours.beside(&format!("{what}; Redis, its own protocol"), &own, "", table);
        }
        Ok(())
    }

    fn writes(&self, clients: u32, table: &mut Table) -> Result<()> {
        let redis = self.redis(&[])?;
        let webdis = redis.as_ref().map(|redis| Peer::webdis(self.folder, redis)).transpose()?.flatten();
        let vkog = |http, fsync| self.vkog(http, Some(self.shipped), fsync);
        let ours = [vkog("hyper", "never")?, vkog("tiny", "never")?, vkog("hyper", "100ms")?, vkog("tiny", "100ms")?];
        let put = |vkog| Some(self.wrk(vkog, clients, "PUT", "/k/", KEYS));
        let [through, own, hyper, tiny, late_hyper, late_tiny] = self.race([
            webdis.as_ref().map(|webdis| self.wrk(webdis, clients, "PUT", "/SET/", KEYS)),
            redis.as_ref().map(|redis| self.redis_benchmark(redis, clients, "set")),
            put(&ours[0]),
            put(&ours[1]),
            put(&ours[2]),
            put(&ours[3]),
        ])?;
        for (http, never, late, goal) in [("hyper", hyper, late_hyper, "≥ 1.5"), ("tiny", tiny, late_tiny, "≥ 1.0")]
        {
            let what = |fsync: &str| format!("PUT --fsync {fsync}, {http}, {clients} clients");
            never.beside(&format!("{}; Webdis before Redis", what("never")), &through, goal, table);
            never.beside(&format!("{}; Redis, its own protocol", what("never")), &own, "", table);
            late.beside(&format!("{}; Webdis before Redis", what("100ms")), &through, "", table);
        }
        Ok(())
    }

    fn durable_writes(&self, clients: u32, table: &mut Table) -> Result<()> {
        let always = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"];
        let redis = self.redis(&always)?;
        let [hyper, tiny] = ENGINES.map(|http| self.vkog(http, Some(self.shipped), "always"));
        let (hyper, tiny) = (hyper?, tiny?);
        let [theirs, hyper, tiny] = self.race([
            redis.as_ref().map(|redis| self.redis_benchmark(redis, clients, "set")),
            Some(self.wrk(&hyper, clients, "PUT", "/k/", KEYS)),
            Some(self.wrk(&tiny, clients, "PUT", "/k/", KEYS)),
        ])?;
        for ((http, ours), goal) in ENGINES.iter().zip([hyper, tiny]).zip(["≥ 1.0", "≥ 0.8"]) {
            let what = format!("PUT --fsync always, {http}, {clients} clients; Redis appendfsync always");
            ours.beside(&what, &theirs, goal, table);
        }
        Ok(())
    }

    /// Batches of PUTs of existing keys in MessagePack, beside Redis' pipelines.
    fn batches(&self, table: &mut Table) -> Result<()> {
        let always = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"];
        let script = self.folder.join("batches.lua");
        fs::write(&script, batches())?;
        for (fsync, options, goal) in [("never", &[][..], "≥ 1,000,000/s"), ("always", &always, "≥ 500,000/s")] {
            let redis = self.redis(options)?;
            let [hyper, tiny] = ENGINES.map(|http| self.vkog(http, Some(self.shipped), fsync));
            let (hyper, tiny) = (hyper?, tiny?);
            let puts = |peer: &Peer| -> Result<Load> {
                let load = wrk(&format!("http://127.0.0.1:{}", peer.port), BATCH_CLIENTS, self.seconds, &script)?;
                Ok(Load { per_second: load.per_second * f64::from(BATCH), ..load })
            };
            let sets = |redis: &Peer| redis_benchmark(redis.port, BATCH_CLIENTS, BATCH, 500_000 * self.seconds, "set");
            let [theirs, hyper, tiny] = self.race([
                redis.as_ref().map(|redis| Box::new(move || sets(redis)) as Racer<'_>),
                Some(Box::new(|| puts(&hyper))),
                Some(Box::new(|| puts(&tiny))),
            ])?;
            for ((http, ours), goal) in ENGINES.iter().zip([hyper, tiny]).zip([goal, ""]) {
                let what = format!(
                    "PUTs, {BATCH} a batch, --fsync {fsync}, {http}, {BATCH_CLIENTS} clients; Redis SET, {BATCH} a pipeline, the same"
                );
                ours.beside(&what, &theirs, goal, table);
            }
        }
        Ok(())
    }

    /// Reads with the two plugins that come with the program, and with twelve that do nothing in every hook, against those
    /// without a plugin.
    fn plugins(&self, table: &mut Table) -> Result<()> {
        let idle = plugin_folder(&self.folder.join("twelve"), &idle_plugins(self.folder, 12)?)?;
        for http in ENGINES {
            let none = self.vkog(http, None, "never")?;
            let (two, twelve) = (self.vkog(http, Some(self.shipped), "never")?, self.vkog(http, Some(&idle), "never")?);
            let get = |vkog| Some(self.wrk(vkog, 64, "GET", "/k/", KEYS));
            let [none, two, twelve] = self.race([get(&none), get(&two), get(&twelve)])?;
            let what = format!("GET, {http}, 64 clients");
            two.beside(&format!("{what}, bytes and conflict; no plugin"), &none, "", table);
            twelve.beside(&format!("{what}, 12 plugins that do nothing in all hooks; none"), &none, "≥ 0.95", table);
        }
        Ok(())
    }

    /// Reads of a large store against those of a small one.
    fn entries(&self, table: &mut Table) -> Result<()> {
        let large = self.folder.join("large.vkog");
        make_store(self.program, &large, MANY_KEYS)?;
        for http in ENGINES {
            let (large, _) = Peer::vkog(self.program, &large, &["--http", http])?;
            let small = self.vkog(http, None, "always")?;
            let [many, few] = self.race([
                Some(self.wrk(&large, 64, "GET", "/k/", MANY_KEYS)),
                Some(self.wrk(&small, 64, "GET", "/k/", KEYS)),
            ])?;
            let what = format!("GET, {http}, 64 clients, {MANY_KEYS} keys; {KEYS} keys");
            many.beside(&what, &few, "≥ 0.85", table);
        }
        Ok(fs::remove_file(large)?)
    }

    /// The cost of idle connections: memory, and latency of other clients.
    fn connections(&self, table: &mut Table) -> Result<()> {
        let (crowded, free) = (self.vkog("hyper", None, "never")?, self.vkog("hyper", None, "never")?);
        let before = crowded.resident()?;
        let mut idle = match keep(crowded.port, IDLE_CONNECTIONS) {
            Ok(idle) => idle,
            Err(error) => {
                let way_out = "raise the limits on descriptors (ulimit -n) of this shell and of its hard limit";
                eprintln!("{IDLE_CONNECTIONS} connections are left out: {error}; {way_out}");
                return Ok(());
            }
        };
        let resident = crowded.resident()?;
        let (mut with, mut without) = (Rounds::default(), Rounds::default());
        for _ in 0..self.rounds {
            with.0.push(self.wrk(&crowded, 16, "GET", "/k/", KEYS)()?);
            without.0.push(self.wrk(&free, 16, "GET", "/k/", KEYS)()?);
            // All connections are still open, and have not reached the idle timeout.
            idle.iter_mut().try_for_each(ask)?;
        }
        let what = format!("GET, hyper, 16 clients, {IDLE_CONNECTIONS} idle connections; none");
        with.beside(&what, &without, "", table);
        let shown = |rounds: &Rounds| format!("{:.2} ms", rounds.median(p99));
        table.row(&format!("{what}: p99"), shown(&with), shown(&without), with.over(&without, p99), "1");
        let what = format!("resident memory, hyper, {IDLE_CONNECTIONS} idle connections; before");
        let (resident, before) = (format!("{resident:.0} MB"), format!("{before:.0} MB"));
        table.row(&what, resident, before, String::new(), "< 150 MB");
        Ok(())
    }
}

/// This number of connections that have been used once and stay open.
fn keep(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        ask(&mut connection)?;
        connections.push(connection);
    }
    Ok(connections)
}

/// Sends one request over a connection and reads the answer.
fn ask(connection: &mut TcpStream) -> Result<()> {
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = [0; 512];
    let read = connection.read(&mut answer)?;
    if answer[..read].starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err("a kept connection was closed".into()) }
}

/// The script of wrk: batches that are made before the measurement, with values of 64 bytes.
fn batches() -> String {
    format!(
        r#"
local requests, at = {{}}, 0
-- A text of less than 256 bytes in MessagePack.
local function str(text)
  return string.char(0xd9, #text) .. text
end
function init()
  math.randomseed(tonumber(tostring({{}}):match("0x(%x+)"), 16) % 100000)
  for i = 1, 500 do
    local parts = {{ string.char(0xdc, 0, {BATCH}) }}
    for j = 1, {BATCH} do
      local key = string.format("key:%012d", math.random(0, {KEYS} - 1))
      local put = str("op") .. str("put") .. str("key") .. str(key) .. str("value") .. str(string.rep("v", 64))
      parts[#parts + 1] = string.char(0x83) .. put
    end
    local body = table.concat(parts)
    requests[i] = wrk.format("POST", "/batch", {{ ["Content-Type"] = "application/msgpack" }}, body)
  end
end
function request()
  at = at % 500 + 1
  return requests[at]
end
"#
    )
}
