//! `cargo xtask bench http`: requests a second and latencies of both engines, beside nginx with a fixed answer, Webdis
//! before Redis, and Redis itself; and what plugins, many entries and many connections cost.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use super::peers::Peer;
use super::plugins::{idle_plugins, plugin_folder};
use super::race::{BATCH, Kind, Pace, Racer, race};
use super::store::make_store;
use super::{GOAL_AGAINST, Options, Table, connections, with_program};
use crate::Result;

/// A part of this benchmark.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    Reads,
    Writes,
    Durable,
    Batches,
    Plugins,
    Entries,
    Connections,
}

/// The plugins of a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plugins {
    None,
    /// bytes and conflict.
    Shipped,
    /// Twelve that do nothing in every hook.
    Idle,
}

/// The rival of vkog.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rival {
    /// nginx, which answers every request with the same bytes.
    Nginx,
    /// Webdis before Redis.
    Webdis,
    /// Redis, by its own protocol.
    Redis,
    /// The same vkog with the same engine, without plugins and with few entries.
    Plain,
    /// Another vkog with the same engine, plugins and entries.
    Other,
}

/// A load on vkog with each engine, and the rivals that get it as well. A goal is the lowest ratio of vkog's rate to that of
/// the rival, for hyper and for tiny_http.
struct Case {
    part: Part,
    kind: Kind,
    fsync: &'static str,
    clients: &'static [u32],
    keys: u64,
    plugins: Plugins,
    rivals: &'static [(Rival, [&'static str; 2])],
}

/// The expected ratio to another vkog: a change without a cost reaches it.
const AGAINST: &[(Rival, [&str; 2])] = &[(Rival::Other, [GOAL_AGAINST; 2])];
const ENGINES: [&str; 2] = ["hyper", "tiny"];
const KEYS: u64 = 10_000;
const MANY_KEYS: u64 = 10_000_000;

const READS: Case = Case {
    part: Part::Reads,
    kind: Kind::Get,
    fsync: "never",
    clients: &[64, 16],
    keys: KEYS,
    plugins: Plugins::Shipped,
    rivals: &[(Rival::Nginx, ["≥ 0.85", "≥ 0.55"]), (Rival::Webdis, ["≥ 1.6", "≥ 1.0"]), (Rival::Redis, ["", ""])],
};
const WRITES: Case = Case {
    part: Part::Writes,
    kind: Kind::Put,
    rivals: &[(Rival::Webdis, ["≥ 1.5", "≥ 1.0"]), (Rival::Redis, ["", ""])],
    ..READS
};
const BATCHES: Case = Case {
    part: Part::Batches,
    kind: Kind::Batches,
    clients: &[16],
    rivals: &[(Rival::Redis, ["≥ 1,000,000/s", ""])],
    ..READS
};
/// A server without plugins.
const PLAIN: Case = Case { plugins: Plugins::None, ..READS };
const PLUGINS: Case = Case { part: Part::Plugins, clients: &[64], rivals: &[(Rival::Plain, ["", ""])], ..READS };

const CASES: &[Case] = &[
    READS,
    WRITES,
    Case { fsync: "100ms", rivals: &[(Rival::Webdis, ["", ""])], ..WRITES },
    Case { part: Part::Durable, fsync: "always", rivals: &[(Rival::Redis, ["≥ 1.0", "≥ 0.8"])], ..WRITES },
    BATCHES,
    Case { fsync: "always", rivals: &[(Rival::Redis, ["≥ 500,000/s", ""])], ..BATCHES },
    PLUGINS,
    Case { plugins: Plugins::Idle, rivals: &[(Rival::Plain, ["≥ 0.95"; 2])], ..PLUGINS },
    Case {
        part: Part::Entries,
        keys: MANY_KEYS,
        plugins: Plugins::None,
        rivals: &[(Rival::Plain, ["≥ 0.85"; 2])],
        ..PLUGINS
    },
];

pub(crate) fn run(options: &Options, parts: &[Part]) -> Result<()> {
    let includes = |part: Part| parts.is_empty() || parts.contains(&part);
    with_program(&options.profile, &["vkog-bytes", "vkog-conflict"], |program, libraries, folder| {
        let libraries: Vec<PathBuf> = libraries.iter().map(|library| library.file.clone()).collect();
        let shipped = plugin_folder(&folder.join("shipped"), &libraries)?;
        let is_idle = |case: &&Case| case.plugins == Plugins::Idle && includes(case.part);
        let idle = match CASES.iter().find(is_idle) {
            Some(_) => plugin_folder(&folder.join("twelve"), &idle_plugins(folder, 12)?)?,
            None => PathBuf::new(),
        };
        let (rounds, seconds) = if options.quick { (3, 1) } else { (5, 2) };
        println!("medians of {rounds} rounds of {seconds} s; latencies are p50 and p99\n");
        let stores = Cell::new(0);
        let bench = Bench { program, against: options.against.as_deref(), folder, shipped, idle, rounds, stores };
        let mut table = Table::default();
        let is_wanted = |case: &&Case| includes(case.part) && !(options.quick && case.keys == MANY_KEYS);
        for case in CASES.iter().filter(is_wanted) {
            for &clients in case.clients {
                bench.run(case, Pace { clients, seconds }, &mut table)?;
            }
        }
        if includes(Part::Connections) && bench.against.is_none() {
            let servers = [bench.vkog(program, "hyper", &PLAIN)?, bench.vkog(program, "hyper", &PLAIN)?];
            connections::measure(folder, &servers, KEYS, rounds, seconds, &mut table)?;
        }
        table.print(&options.peer());
        Ok(())
    })
}

struct Bench<'a> {
    program: &'a Path,
    /// The other vkog, to compare with instead of the rivals.
    against: Option<&'a Path>,
    folder: &'a Path,
    shipped: PathBuf,
    idle: PathBuf,
    rounds: usize,
    /// How many stores were made.
    stores: Cell<u32>,
}

impl Bench<'_> {
    /// Runs a case with this number of clients, and adds its rows.
    fn run(&self, case: &Case, pace: Pace, table: &mut Table) -> Result<()> {
        let rivals = if self.against.is_some() { AGAINST } else { case.rivals };
        let wants_redis = rivals.iter().any(|(rival, _)| matches!(rival, Rival::Redis | Rival::Webdis));
        let redis = if wants_redis { Peer::redis_if_installed(self.folder, case.fsync == "always")? } else { None };
        let (mut servers, mut racers, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for engine in ENGINES {
            let server = self.vkog(self.program, engine, case)?;
            racers.push(self.racer(&server, "/k/", case, pace)?);
            servers.push(server);
        }
        for (rival, goals) in rivals {
            for (at, engine) in ENGINES.into_iter().enumerate() {
                if at == 0 || rival.has_engines() {
                    let Some((server, racer)) = self.start(*rival, engine, case, pace, redis.as_ref())? else { break };
                    servers.extend(server);
                    racers.push(racer);
                }
                rows.push((at, racers.len() - 1, format!("{engine}{}", rival.shown()), goals[at]));
            }
        }
        race(&mut racers, self.rounds)?;
        for (ours, theirs, who, goal) in rows {
            racers[ours].beside(
                &racers[theirs],
                &format!("{}, {} clients, {who}", case.shown(), pace.clients),
                goal,
                table,
            );
        }
        Ok(())
    }

    /// Starts what vkog with an engine is compared with. None if it is not installed.
    fn start(
        &self,
        rival: Rival,
        engine: &str,
        case: &Case,
        pace: Pace,
        redis: Option<&Peer>,
    ) -> Result<Option<(Option<Peer>, Racer)>> {
        let (server, path) = match (rival, redis) {
            (Rival::Redis, Some(redis)) => return Ok(Some((None, Racer::redis(redis.port, case.kind, pace)))),
            (Rival::Redis | Rival::Webdis, None) => return Ok(None),
            (Rival::Webdis, Some(redis)) => {
                let Some(webdis) = Peer::webdis(self.folder, redis)? else { return Ok(None) };
                // There has to be something to find.
                Racer::http(self.folder, webdis.port, Kind::Put, "/SET/", KEYS, pace)?.drive()?;
                (Some(webdis), if case.kind == Kind::Get { "/GET/" } else { "/SET/" })
            }
            (Rival::Nginx, _) => (Peer::nginx(self.folder, &"v".repeat(64))?, "/k/"),
            (Rival::Plain, _) => (Some(self.vkog(self.program, engine, &PLAIN)?), "/k/"),
            (Rival::Other, _) => (self.against.map(|other| self.vkog(other, engine, case)).transpose()?, "/k/"),
        };
        let Some(server) = server else { return Ok(None) };
        let racer = self.racer(&server, path, case, pace)?;
        Ok(Some((Some(server), racer)))
    }

    fn racer(&self, server: &Peer, path: &str, case: &Case, pace: Pace) -> Result<Racer> {
        Racer::http(self.folder, server.port, case.kind, path, case.keys, pace)
    }

    /// Starts a vkog with an engine for a case, on its own store.
    fn vkog(&self, program: &Path, engine: &str, case: &Case) -> Result<Peer> {
        self.stores.set(self.stores.get() + 1);
        let store = self.folder.join(format!("{}.vkog", self.stores.get()));
        make_store(program, &store, case.keys)?;
        let plugins = match case.plugins {
            Plugins::None => None,
            Plugins::Shipped => Some(self.shipped.as_path()),
            Plugins::Idle => Some(self.idle.as_path()),
        };
        Ok(Peer::vkog_with(program, &store, plugins, &["--http", engine, "--fsync", case.fsync])?.0)
    }
}

impl Rival {
    /// Whether it has an engine, so that each engine has its own rival.
    fn has_engines(self) -> bool {
        matches!(self, Self::Plain | Self::Other)
    }

    fn shown(self) -> &'static str {
        match self {
            Self::Nginx => "; nginx with a fixed answer",
            Self::Webdis => "; Webdis before Redis",
            Self::Redis => "; Redis, its own protocol",
            Self::Plain => "; no plugin, 10,000 keys",
            Self::Other => "",
        }
    }
}

impl Case {
    fn shown(&self) -> String {
        let what = match self.kind {
            Kind::Get => "GET".to_owned(),
            Kind::Put => format!("PUT --fsync {}", self.fsync),
            Kind::Batches => format!("PUTs, {BATCH} a batch, --fsync {}", self.fsync),
        };
        let plugins = match self.plugins {
            Plugins::None => ", no plugin",
            Plugins::Shipped => "",
            Plugins::Idle => ", 12 plugins that do nothing in all hooks",
        };
        if self.keys == KEYS { what + plugins } else { format!("{what}{plugins}, {} keys", self.keys) }
    }
}
