//! `cargo xtask bench store`: start, snapshot and memory beside Redis, or beside another vkog, and how all of that grows.

use std::fs;
use std::io::{BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::peers::Peer;
use super::race::{Kind, Pace, Racer};
use super::{GOAL_AGAINST, Options, Table, median, with_program};
use crate::Result;

pub(super) const ROUNDS: usize = 3;
pub(super) const MILLION: u64 = 1_000_000;

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.quick && options.against.is_none() {
        return Err("--quick is for comparisons; add --against=PROGRAM".into());
    }
    with_program(&options.profile, &[], |program, _, folder| {
        let mut table = Table::default();
        let entries = if options.quick { MILLION / 10 } else { MILLION };
        lives(program, options.against.as_deref(), entries, folder, &mut table)?;
        if options.against.is_none() {
            snapshots(program, folder, &mut table)?;
            growth(program, folder, &mut table)?;
        }
        table.print(&options.peer());
        Ok(())
    })
}

/// Makes a store file of this number of entries, without a server: 16-byte keys, 64-byte values.
pub(super) fn make_store(program: &Path, file: &Path, entries: u64) -> Result<()> {
    let mut import = Command::new(program);
    import.args(["import", "--file"]).arg(file);
    fill(import, entries)
}

/// Passes this number of entries to `vkog import`: 16-byte keys, 64-byte values.
pub(super) fn fill(mut import: Command, entries: u64) -> Result<()> {
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let mut input = BufWriter::new(import.stdin.take().ok_or("no standard input")?);
    let value = "v".repeat(64);
    for number in 0..entries {
        writeln!(input, "{{\"key\":\"key:{number:012}\",\"value\":\"{value}\"}}")?;
    }
    drop(input);
    if import.wait()?.success() { Ok(()) } else { Err("vkog import failed".into()) }
}

/// The measurements from the start of a server to its stop.
struct Life {
    start: Duration,
    save: Duration,
    /// In megabytes.
    memory: f64,
}

/// The name of a measurement, its value, and how that is printed.
type Measured = (&'static str, fn(&Life) -> f64, fn(f64) -> String);

/// Measures start, snapshot and memory of vkog and of what it is compared with, in turn. Less is better.
fn lives(program: &Path, other: Option<&Path>, entries: u64, folder: &Path, table: &mut Table) -> Result<()> {
    let [ours, theirs] = [folder.join("ours.vkog"), folder.join("theirs.vkog")];
    make_store(program, &ours, entries)?;
    match other {
        Some(other) => make_store(other, &theirs, entries)?,
        None => {
            let (redis, _) = Peer::redis(folder, &["--enable-debug-command", "yes"])?;
            // `DEBUG POPULATE` makes keys `key:0` …; their values are filled up to 64 bytes.
            redis.command(&["DEBUG", "POPULATE", &entries.to_string(), "key:000000", "64"])?;
            redis.command(&["SAVE"])?;
            redis.stop()?;
        }
    }
    let mut lives = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        lives[1].push(match other {
            Some(other) => vkog_life(other, &theirs)?,
            None => redis_life(folder)?,
        });
        lives[0].push(vkog_life(program, &ours)?);
    }
    let goals = if other.is_some() { [GOAL_AGAINST; 3] } else { ["≥ 2.5", "≥ 2", "≥ 1"] };
    let measured: [Measured; 3] = [
        ("start", |life| life.start.as_secs_f64(), seconds),
        ("snapshot; Redis SAVE", |life| life.save.as_secs_f64(), seconds),
        ("resident memory", |life| life.memory, megabytes),
    ];
    for ((what, value, shown), goal) in measured.into_iter().zip(goals) {
        let [ours, theirs] = [0, 1].map(|who| median(lives[who].iter().map(value)));
        let ratio = format!("{:.2}", theirs / ours);
        table.row(&format!("{what}, {entries} entries"), shown(ours), shown(theirs), ratio, goal);
    }
    Ok(())
}

fn redis_life(folder: &Path) -> Result<Life> {
    let (redis, start) = Peer::redis(folder, &[])?;
    let memory = redis.resident()?;
    let began = Instant::now();
    redis.command(&["SAVE"])?;
    let save = began.elapsed();
    redis.stop()?;
    Ok(Life { start, save, memory })
}

fn vkog_life(program: &Path, file: &Path) -> Result<Life> {
    let (vkog, start) = Peer::vkog(program, file, &[])?;
    let memory = vkog.resident()?;
    // A server writes a snapshot when it stops, if anything has changed.
    put(vkog.port)?;
    Ok(Life { start, save: vkog.stop()?, memory })
}

/// Measures reads without a snapshot, and while one after the other is written.
fn snapshots(program: &Path, folder: &Path, table: &mut Table) -> Result<()> {
    let (vkog, _) = Peer::vkog(program, &folder.join("ours.vkog"), &[])?;
    let get = || Racer::http(folder, vkog.port, Kind::Get, "/k/", MILLION, Pace { clients: 16, seconds: 2 });
    let (mut without, mut with) = (get()?, get()?);
    for _ in 0..ROUNDS {
        without.drive()?;
        let end = Instant::now() + Duration::from_secs(2);
        let (port, id) = (vkog.port, vkog.id());
        let snapshots = thread::spawn(move || -> std::io::Result<()> {
            while Instant::now() < end {
                put(port)?;
                // SIGUSR1 requests a snapshot.
                Command::new("kill").args(["-USR1", &id.to_string()]).status()?;
                thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        with.drive()?;
        snapshots.join().map_err(|_| "the thread that requests snapshots failed")??;
    }
    vkog.stop()?;
    let [p99_without, p99_with] = [&without, &with].map(|racer| racer.median(|load| load.p99));
    table.row(
        "p99 of GET, 16 clients: without a snapshot, while snapshots are written",
        format!("{p99_without:.2} ms, {p99_with:.2} ms"),
        String::new(),
        format!("{:.2}", p99_with / p99_without),
        "≤ 2",
    );
    Ok(())
}

fn put(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"PUT /k/bench HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nv")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// The memory of an entry in a small store and in a large one.
fn growth(program: &Path, folder: &Path, table: &mut Table) -> Result<()> {
    let mut empty = None;
    for entries in [0, 10_000_u64, 100_000, 1_000_000, 10_000_000] {
        let file = folder.join(format!("{entries}.vkog"));
        if entries > 0 {
            make_store(program, &file, entries)?;
        }
        let (vkog, start) = Peer::vkog(program, &file, &[])?;
        let memory = vkog.resident()?;
        let (start_empty, memory_empty) = *empty.get_or_insert((start, memory));
        if entries > 0 {
            let mut get = Racer::http(folder, vkog.port, Kind::Get, "/k/", entries, Pace { clients: 16, seconds: 2 })?;
            get.drive()?;
            table.row(
                &format!("{entries} entries: start, memory, GET"),
                format!(
                    "{}, {}, {:.0}/s",
                    seconds(start.as_secs_f64()),
                    megabytes(memory),
                    get.median(|load| load.per_second)
                ),
                String::new(),
                format!(
                    "{:.0} ns and {:.0} bytes an entry",
                    (start.as_secs_f64() - start_empty.as_secs_f64()).max(0.0) * 1e9 / entries as f64,
                    (memory - memory_empty) * 1e6 / entries as f64
                ),
                "flat",
            );
        }
        vkog.stop()?;
        let _ = fs::remove_file(&file);
    }
    Ok(())
}

pub(super) fn seconds(value: f64) -> String {
    format!("{value:.3} s")
}

pub(super) fn megabytes(value: f64) -> String {
    format!("{value:.0} MB")
}
