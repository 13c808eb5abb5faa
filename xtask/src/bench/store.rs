//! `cargo xtask bench store`: durable writes, start, snapshot and memory beside Redis, and how they grow with the
//! number of entries.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::against::{Against, middle};
use super::peers::{Load, Peer, redis_benchmark, wrk};
use super::{Options, Table, median};
use crate::Result;
use crate::build;

/// The script that wrk runs against vkog.
fn script(folder: &Path, method: &str, keys: u64) -> Result<PathBuf> {
    requests(folder, method, "/k/", keys)
}

/// Each of wrk's threads makes so many requests before the clock starts, and sends them in turn: for more entries than fit
/// into any cache.
const DRAWN: u32 = 200_000;

/// The script of wrk: requests for random keys of 16 bytes, with values of 64 bytes.
pub(super) fn requests(folder: &Path, method: &str, path: &str, keys: u64) -> Result<PathBuf> {
    let body = if method == "PUT" { "string.rep(\"v\", 64)" } else { "nil" };
    let script = format!(
        r#"
local requests, at = {{}}, 0
function init()
  math.randomseed(tonumber(tostring({{}}):match("0x(%x+)"), 16) % 100000)
  for i = 1, {DRAWN} do
    requests[i] = wrk.format("{method}", string.format("{path}key:%012d", math.random(0, {keys} - 1)), nil, {body})
  end
end
function request()
  at = at % {DRAWN} + 1
  return requests[at]
end
"#
    );
    let path = folder.join(format!("{method}{}{keys}.lua", path.replace('/', "-")));
    fs::write(&path, script)?;
    Ok(path)
}

const ROUNDS: usize = 3;
const CLIENTS: u32 = 64;
const MILLION: u64 = 1_000_000;

pub(crate) fn run(words: &[&str]) -> Result<()> {
    let options = Options::parse(words, &[])?;
    if options.quick && options.against.is_none() {
        return Err("--quick is for comparisons; add --against=PROGRAM".into());
    }
    let program =
        build::build(&["vkog"], options.profile(), None)?.into_iter().next().ok_or("cargo built no vkog")?.file;
    // Below the target folder: on a disk, not in memory as a temporary folder may be.
    let folder = program.parent().ok_or("no folder")?.join("bench");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    if let Some(other) = &options.against {
        let seconds = if options.quick { 1 } else { 3 };
        compare(Against::new([&program, other], &folder, ROUNDS, seconds), options.quick)?;
        return Ok(fs::remove_dir_all(&folder)?);
    }
    let mut table = Table::default();
    println!("{}\n", machine());
    writes(&program, &folder, &mut table)?;
    million(&program, &folder, &mut table)?;
    growth(&program, &folder, &mut table)?;
    fs::remove_dir_all(&folder)?;
    table.print("Redis");
    Ok(())
}

/// Compares with another vkog: writes, reads, start, snapshot, memory.
fn compare(mut against: Against<'_>, quick: bool) -> Result<()> {
    let entries = if quick { 100_000 } else { MILLION };
    for fsync in ["always", "100ms", "never"] {
        against.requests("PUT", fsync, CLIENTS, entries, None)?;
    }
    against.requests("GET", "never", CLIENTS, entries, None)?;
    against.start_and_snapshot(entries)?;
    against.print();
    Ok(())
}

pub(super) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or("").trim_start_matches("MemTotal:").trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores ({}), {memory} of memory, Linux {}",
        model.unwrap_or("unknown"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// Both with every write synced before its answer, driven in turn.
fn writes(program: &Path, folder: &Path, table: &mut Table) -> Result<()> {
    let script = script(folder, "PUT", 1_000_000)?;
    let (redis, _) =
        Peer::redis(folder, &["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"])?;
    for (http, fsync) in [
        ("hyper", "always"),
        ("tiny", "always"),
        ("hyper", "100ms"),
        ("tiny", "100ms"),
        ("hyper", "never"),
        ("tiny", "never"),
    ] {
        let store = folder.join(format!("{http}-{fsync}.vkog"));
        let (vkog, _) = Peer::vkog(program, &store, &["--http", http, "--fsync", fsync])?;
        let url = format!("http://127.0.0.1:{}", vkog.port);
        let (mut ours, mut latencies, mut theirs, mut ratios) = (vec![], vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let load = wrk(&url, CLIENTS, 3, &script)?;
            let set = redis_benchmark(redis.port, CLIENTS, 1, 200_000, "set")?.per_second;
            ratios.push(load.per_second / set);
            ours.push(load.per_second);
            latencies.push(load.p99);
            theirs.push(set);
        }
        vkog.stop()?;
        table.row(
            &format!("PUT, --http {http} --fsync {fsync}, {CLIENTS} clients; Redis appendfsync always"),
            format!("{:.0}/s, p99 {:.1} ms", median(ours), median(latencies)),
            format!("{:.0}/s", median(theirs)),
            format!("{:.2}", median(ratios)),
            if (http, fsync) == ("hyper", "always") { "≥ 0.8" } else { "" },
        );
    }
    Ok(())
}

/// Reads of one million entries by both engines, driven in turn.
fn engines(program: &Path, folder: &Path, file: &Path, table: &mut Table) -> Result<()> {
    let script = script(folder, "GET", 1_000_000)?;
    let (mut rates, mut ratios) = ([vec![], vec![]], vec![]);
    for _ in 0..ROUNDS {
        let mut loads = vec![];
        for (http, rates) in ["hyper", "tiny"].iter().zip(&mut rates) {
            let (vkog, _) = Peer::vkog(program, file, &["--http", http])?;
            let load = wrk(&format!("http://127.0.0.1:{}", vkog.port), CLIENTS, 3, &script)?;
            vkog.stop()?;
            rates.push(load.per_second);
            loads.push(load.per_second);
        }
        ratios.push(loads[0] / loads[1]);
    }
    let [hyper, tiny] = rates.map(median);
    table.row(
        &format!("GET, {CLIENTS} clients: --http hyper, --http tiny"),
        format!("{hyper:.0}/s, {tiny:.0}/s"),
        String::new(),
        format!("{:.2}", median(ratios)),
        "",
    );
    Ok(())
}

/// A store file with this number of entries, created without a server.
pub(super) fn make_store(program: &Path, file: &Path, entries: u64) -> Result<()> {
    let mut import = std::process::Command::new(program)
        .args(["import", "--file"])
        .arg(file)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let mut input = BufWriter::new(import.stdin.take().ok_or("no standard input")?);
    let value = "v".repeat(64);
    for number in 0..entries {
        writeln!(input, "{{\"key\":\"key:{number:012}\",\"value\":\"{value}\"}}")?;
    }
    drop(input);
    if import.wait()?.success() { Ok(()) } else { Err("vkog import failed".into()) }
}

/// One million entries: 16-byte keys, 64-byte values.
fn million(program: &Path, folder: &Path, table: &mut Table) -> Result<()> {
    let file = folder.join("million.vkog");
    make_store(program, &file, MILLION)?;
    let redis_folder = folder.join("redis");
    fs::create_dir_all(&redis_folder)?;
    let (redis, _) = Peer::redis(&redis_folder, &["--enable-debug-command", "yes"])?;
    // `DEBUG POPULATE` makes keys `key:0` …; their values are filled up to 64 bytes.
    redis.command(&["DEBUG", "POPULATE", &MILLION.to_string(), "key:000000", "64"])?;
    redis.command(&["SAVE"])?;
    redis.stop()?;

    engines(program, folder, &file, table)?;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        theirs.push(redis_life(&redis_folder)?);
        ours.push(vkog_life(program, &file)?);
    }
    let (ours, theirs) = (Life::medians(&ours), Life::medians(&theirs));
    for (what, ours, theirs, goal) in [
        ("start with 1,000,000 entries", ours.start, theirs.start, "≥ 2.5"),
        ("snapshot of them; Redis SAVE", ours.save, theirs.save, "≥ 2"),
    ] {
        table.row(what, seconds(ours), seconds(theirs), format!("{:.2} × as fast", theirs / ours), goal);
    }
    let ratio = format!("{:.2}", ours.memory / theirs.memory);
    table.row("resident memory with them", megabytes(ours.memory), megabytes(theirs.memory), ratio, "< 1");

    let (without, with) = reads_beside_snapshots(program, &file, &script(folder, "GET", MILLION)?)?;
    table.row(
        "p99 of GET, 16 clients: without a snapshot, while snapshots are written",
        format!("{:.2} ms, {:.2} ms", without.p99, with.p99),
        String::new(),
        format!("{:.2}", with.p99 / without.p99),
        "≤ 2",
    );
    Ok(())
}

/// The measurements from a server's start to its stop: seconds, seconds, megabytes.
pub(super) struct Life {
    pub(super) start: f64,
    pub(super) save: f64,
    pub(super) memory: f64,
}

impl Life {
    pub(super) fn medians(lives: &[Self]) -> Self {
        let of = |value: fn(&Self) -> f64| median(lives.iter().map(value).collect());
        Self { start: of(|life| life.start), save: of(|life| life.save), memory: of(|life| life.memory) }
    }
}

fn redis_life(folder: &Path) -> Result<Life> {
    let (redis, start) = Peer::redis(folder, &[])?;
    let memory = redis.resident()?;
    let began = Instant::now();
    redis.command(&["SAVE"])?;
    let save = began.elapsed().as_secs_f64();
    redis.stop()?;
    Ok(Life { start: start.as_secs_f64(), save, memory })
}

pub(super) fn vkog_life(program: &Path, file: &Path) -> Result<Life> {
    let (vkog, start) = Peer::vkog(program, file, &[])?;
    let memory = vkog.resident()?;
    // A server writes a snapshot when it stops, if anything has changed.
    put(vkog.port)?;
    Ok(Life { start: start.as_secs_f64(), save: vkog.stop()?.as_secs_f64(), memory })
}

/// Reads without a snapshot, and reads while one after the other is written.
fn reads_beside_snapshots(program: &Path, file: &Path, script: &Path) -> Result<(Load, Load)> {
    let (vkog, _) = Peer::vkog(program, file, &[])?;
    let url = format!("http://127.0.0.1:{}", vkog.port);
    let (mut without, mut with) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        without.push(wrk(&url, 16, 2, script)?);
        let end = Instant::now() + Duration::from_secs(2);
        let (port, id) = (vkog.port, vkog.id());
        let snapshots = std::thread::spawn(move || -> std::io::Result<()> {
            while Instant::now() < end {
                put(port)?;
                // SIGUSR1 requests a snapshot.
                std::process::Command::new("kill").args(["-USR1", &id.to_string()]).status()?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        });
        with.push(wrk(&url, 16, 2, script)?);
        snapshots.join().map_err(|_| "the thread that asks for snapshots failed")??;
    }
    vkog.stop()?;
    Ok((middle(&without), middle(&with)))
}

pub(super) fn put(port: u16) -> std::io::Result<()> {
    use std::io::Read;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"PUT /k/bench HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\nv")?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// Measures the memory per entry in a small store and in a large one.
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
            let url = format!("http://127.0.0.1:{}", vkog.port);
            let load = wrk(&url, 16, 2, &script(folder, "GET", entries)?)?;
            table.row(
                &format!("{entries} entries: start, memory, GET"),
                format!("{}, {}, {:.0}/s", seconds(start.as_secs_f64()), megabytes(memory), load.per_second),
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
