//! `cargo xtask bench evict`: the hit rates of the evictions of bytes beside those of Redis, and what they cost a GET.

use std::fs;

use super::peers::Peer;
use super::plugins::plugin_folder;
use super::race::{Kind, Pace, Racer, race};
use super::store::make_store;
use super::{GOAL_AGAINST, Options, Table, with_program};
use crate::Result;
use crate::build;

const KEYS: u64 = 100_000;
/// The settings of bytes, and the goal of its rate compared with that without eviction.
const SETTINGS: [(&str, &str); 3] = [("no eviction", ""), ("lru", "evict = \"lru\"\n"), ("lfu", "evict = \"lfu\"\n")];

pub(crate) fn run(options: &Options) -> Result<()> {
    with_program(&options.profile, &["vkog-bytes"], |program, libraries, folder| {
        let libraries: Vec<_> = libraries.iter().map(|library| library.file.clone()).collect();
        let plugins = plugin_folder(&folder.join("plugins"), &libraries)?;
        let (rounds, seconds) = if options.quick { (5, 1) } else { (9, 2) };
        let pace = Pace { clients: 64, seconds };
        let (mut servers, mut racers) = (Vec::new(), Vec::new());
        let other = options.against.as_deref().map(|other| (other, SETTINGS[0]));
        for (program, (name, settings)) in SETTINGS.map(|settings| (program, settings)).into_iter().chain(other) {
            let folder = folder.join(format!("{}-{}", servers.len(), name.replace(' ', "-")));
            fs::create_dir(&folder)?;
            let (store, config) = (folder.join("store.vkog"), folder.join("vkog.toml"));
            make_store(program, &store, KEYS)?;
            fs::write(&config, format!("[plugins.bytes]\nmax_size = {}\n{settings}", 256 << 20))?;
            let config = config.to_str().ok_or("the folder is no text")?;
            let (server, _) =
                Peer::vkog_with(program, &store, Some(&plugins), &["--fsync", "never", "--config", config])?;
            racers.push(Racer::http(&folder, server.port, Kind::Get, "/k/", KEYS, pace)?);
            servers.push(server);
        }
        race(&mut racers, rounds)?;
        let mut table = Table::default();
        for (at, (name, _)) in SETTINGS.iter().enumerate().skip(1) {
            racers[at].beside(&racers[0], &format!("GET, {name}; no eviction"), GOAL_AGAINST, &mut table);
        }
        if let Some(other) = racers.get(SETTINGS.len()) {
            racers[0].beside(other, &format!("GET, no eviction; {}", options.peer()), GOAL_AGAINST, &mut table);
        }
        table.print(&options.peer());
        println!();
        drop(servers);
        let amounts: &[&str] = if options.quick { &["500000", "100000", "10000"] } else { &[] };
        let status = build::cargo()
            .args(["bench", "-p", "vkog-bytes", "--bench", "evict", "--profile", &options.profile, "--"])
            .args(amounts)
            .status()?;
        if status.success() { Ok(()) } else { Err("the hit rates could not be measured".into()) }
    })
}
