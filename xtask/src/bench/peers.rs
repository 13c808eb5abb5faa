//! The programs that are measured, each started on a port of 127.0.0.1 and ended by whoever started it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;

/// A started program; ended when it is dropped.
pub(crate) struct Peer {
    child: Child,
    pub(crate) port: u16,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Starts vkog on a store. Returns how long it took until it served.
    pub(crate) fn vkog(program: &Path, store: &Path, options: &[&str]) -> Result<(Self, Duration)> {
        let began = Instant::now();
        let mut child = Command::new(program)
            .args(["--no-plugins", "--listen", "127.0.0.1:0", "--max-size", "64GiB", "--file"])
            .arg(store)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no standard output")?).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let mut peer = Self { child, port: 0 };
        peer.port = port.ok_or_else(|| format!("vkog did not start: {line:?}"))?;
        Ok((peer, began.elapsed()))
    }

    /// Starts redis-server on a folder. Returns how long it took until it had loaded what is there.
    pub(crate) fn redis(folder: &Path, options: &[&str]) -> Result<(Self, Duration)> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let began = Instant::now();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
            .arg(folder)
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start redis-server: {error}; install Debian's redis-server"))?;
        let peer = Self { child, port };
        while began.elapsed() < Duration::from_secs(300) {
            // While it loads it answers -LOADING.
            if peer.command(&["PING"]).is_ok_and(|answer| answer.starts_with("+PONG")) {
                return Ok((peer, began.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err("redis-server does not answer".into())
    }

    /// Sends one command to Redis and reads the first piece of the answer.
    pub(crate) fn command(&self, words: &[&str]) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(stream, "*{}\r\n", words.len())?;
        for word in words {
            write!(stream, "${}\r\n{word}\r\n", word.len())?;
        }
        let mut answer = [0; 512];
        let read = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory now, in megabytes.
    pub(crate) fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kilobytes * 1024.0 / 1e6)
    }

    /// Asks for a clean stop and waits for it. Returns how long it took.
    pub(crate) fn stop(mut self) -> Result<Duration> {
        let began = Instant::now();
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(began.elapsed())
    }
}

/// What wrk measured.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    /// In milliseconds.
    pub(crate) p99: f64,
}

/// Drives a server with wrk from two threads. `script` is Lua.
pub(crate) fn wrk(url: &str, connections: u32, seconds: u32, script: &Path) -> Result<Load> {
    let mut command = Command::new("wrk");
    command.args(["-t2", &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency"]);
    let run = command.arg("-s").arg(script).arg(url).output();
    let output = run.map_err(|error| format!("cannot start wrk: {error}; install Debian's wrk"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("wrk saw errors: {text}").into());
    }
    let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let per_second = field("Requests/sec:").and_then(|text| text.parse().ok()).ok_or_else(|| text.clone())?;
    Ok(Load { per_second, p99: milliseconds(field("99%").ok_or_else(|| text.clone())?)? })
}

fn milliseconds(text: &str) -> Result<f64> {
    let at = text.find(|char: char| char.is_ascii_alphabetic()).ok_or("no unit")?;
    let number: f64 = text[..at].parse()?;
    Ok(match &text[at..] {
        "us" => number / 1000.0,
        "ms" => number,
        "s" => number * 1000.0,
        unit => return Err(format!("unit {unit}").into()),
    })
}

/// Drives Redis with redis-benchmark: SETs a second.
pub(crate) fn redis_benchmark(port: u16, clients: u32, requests: u32) -> Result<f64> {
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-t", "set", "-d", "64", "-r", "1000000", "--csv"])
        .args(["-c", &clients.to_string(), "-n", &requests.to_string()])
        .output()
        .map_err(|error| format!("cannot start redis-benchmark: {error}; install Debian's redis-tools"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("\"SET\"")).ok_or_else(|| text.clone())?;
    let field = line.split(',').nth(1).ok_or_else(|| text.clone())?;
    Ok(field.trim_matches('"').parse()?)
}
