//! `cargo xtask bench backup`: a backup of a running server beside its snapshot, and what reads notice of it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::peers::Peer;
use super::race::{Kind, Pace, Racer};
use super::store::make_store;
use super::{Options, Table, median, with_program};
use crate::Result;

const ROUNDS: usize = 5;
const MILLION: u64 = 1_000_000;
const CONFIG: &str = "open = true\n[[access.tokens]]\nname = \"bench\"\ntoken = \"bench\"\nright = \"admin\"\n";
/// The maximum duration of a snapshot.
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn run(options: &Options) -> Result<()> {
    with_program(&options.profile, &[], |program, _, folder| {
        let entries = if options.quick { MILLION / 10 } else { MILLION };
        let (store, config) = (folder.join("backup.vkog"), folder.join("backup.toml"));
        make_store(program, &store, entries)?;
        fs::write(&config, CONFIG)?;
        let config = config.to_str().ok_or("a folder that is not UTF-8")?;
        let (vkog, _) = Peer::vkog(program, &store, &["--config", config])?;
        let backup = Backup { program: program.to_owned(), port: vkog.port, file: folder.join("backup.jsonl") };
        let mut table = Table::default();
        times(&backup, &vkog, entries, &mut table)?;
        reads(&backup, &vkog, entries, folder, &mut table)?;
        vkog.stop()?;
        table.print("snapshot");
        Ok(())
    })
}

/// The command that backs the server up.
#[derive(Clone)]
struct Backup {
    program: PathBuf,
    port: u16,
    file: PathBuf,
}

impl Backup {
    fn run(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args([
            "backup",
            "--overwrite",
            "--token",
            "bench",
            "--url",
            &format!("http://127.0.0.1:{}", self.port),
        ]);
        let status = command.arg(&self.file).stdout(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { Err("vkog backup failed".into()) }
    }
}

/// Measures backups and snapshots in turn.
fn times(backup: &Backup, vkog: &Peer, entries: u64, table: &mut Table) -> Result<()> {
    let (mut backups, mut snapshots) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let began = Instant::now();
        backup.run()?;
        backups.push(began.elapsed().as_secs_f64());
        snapshots.push(snapshot(vkog)?.as_secs_f64());
    }
    let ratio = median(backups.iter().zip(&snapshots).map(|(backup, snapshot)| backup / snapshot));
    let [ours, theirs] = [backups, snapshots].map(|times| format!("{:.3} s", median(times.into_iter())));
    table.row(&format!("backup, {entries} entries; a snapshot"), ours, theirs, format!("{ratio:.2}"), "≤ 2");
    Ok(())
}

/// Requests a snapshot by SIGUSR1. Returns its duration.
fn snapshot(vkog: &Peer) -> Result<Duration> {
    let before = snapshots(vkog.port)?;
    let began = Instant::now();
    Command::new("kill").args(["-USR1", &vkog.id().to_string()]).status()?;
    while snapshots(vkog.port)? == before {
        if began.elapsed() > DEADLINE {
            return Err("the server writes no snapshot".into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(began.elapsed())
}

/// Returns the number of snapshots, as a line of the metrics.
fn snapshots(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find(|line| line.starts_with("vkog_snapshots_total "));
    Ok(line.ok_or("no vkog_snapshots_total in /metrics")?.to_owned())
}

/// Measures reads without a backup, and while one after the other is made.
fn reads(backup: &Backup, vkog: &Peer, entries: u64, folder: &Path, table: &mut Table) -> Result<()> {
    let get = || Racer::http(folder, vkog.port, Kind::Get, "/k/", entries, Pace { clients: 16, seconds: 3 });
    let (mut without, mut with) = (get()?, get()?);
    for _ in 0..ROUNDS {
        without.drive()?;
        let (end, backup) = (Instant::now() + Duration::from_secs(3), backup.clone());
        let backups = thread::spawn(move || {
            while Instant::now() < end {
                backup.run().map_err(|error| error.to_string())?;
            }
            Ok::<(), String>(())
        });
        with.drive()?;
        backups.join().map_err(|_| "the thread that makes backups failed")??;
    }
    let [p99_without, p99_with] = [&without, &with].map(|racer| racer.median(|load| load.p99));
    table.row(
        "p99 of GET, 16 clients: without a backup, while backups are made",
        format!("{p99_without:.2} ms, {p99_with:.2} ms"),
        String::new(),
        format!("{:.2}", p99_with / p99_without),
        "≤ 1.5",
    );
    Ok(())
}
