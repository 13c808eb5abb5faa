//! The programs that are measured, each started on a port of 127.0.0.1 and ended by its starter.

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
        // nginx ends its workers only on a clean stop.
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// Starts vkog on a store, without plugins. Returns how long it took until it served.
    pub(crate) fn vkog(program: &Path, store: &Path, options: &[&str]) -> Result<(Self, Duration)> {
        Self::vkog_with(program, store, None, options)
    }

    /// Starts vkog on a store, with the plugins of a folder. Returns how long it took until it served.
    pub(crate) fn vkog_with(
        program: &Path,
        store: &Path,
        plugins: Option<&Path>,
        options: &[&str],
    ) -> Result<(Self, Duration)> {
        let began = Instant::now();
        let mut command = Command::new(program);
        match plugins {
            Some(folder) => command.arg("--plugin-dir").arg(folder),
            None => command.arg("--no-plugins"),
        };
        command.args(["--max-size", "64GiB", "--file"]).arg(store).args(options);
        Ok((Self::started(command)?, began.elapsed()))
    }

    /// Starts vkog on a store that several servers share, with the plugins of a folder. Returns the time until it had loaded the
    /// entries.
    pub(crate) fn vkog_shared(program: &Path, url: &str, plugins: &Path, options: &[&str]) -> Result<(Self, Duration)> {
        let began = Instant::now();
        let mut command = Command::new(program);
        command.arg("--plugin-dir").arg(plugins).args(["--max-size", "64GiB", "--store", url]).args(options);
        let peer = Self::started(command)?;
        while began.elapsed() < Duration::from_secs(300) {
            let mut stream = TcpStream::connect(("127.0.0.1", peer.port))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut response = String::new();
            stream.read_to_string(&mut response)?;
            if response.starts_with("HTTP/1.1 200 ") {
                return Ok((peer, began.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("vkog does not load the shared store".into())
    }

    /// Starts vkog, and waits until it serves.
    fn started(mut vkog: Command) -> Result<Self> {
        let mut child = vkog.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no standard output")?).read_line(&mut line)?;
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let mut peer = Self { child, port: 0 };
        peer.port = port.ok_or_else(|| format!("vkog did not start: {line:?}"))?;
        Ok(peer)
    }

    /// Starts members of an etcd cluster with room for millions of entries, each with a folder in this one.
    pub(crate) fn etcd(folder: &Path, members: usize) -> Result<Vec<Self>> {
        let ports = free_ports(2 * members)?;
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<_> =
            ports.chunks(2).enumerate().map(|(at, pair)| format!("m{at}={}", url(&pair[1]))).collect();
        let start = |(at, pair): (usize, &[u16])| {
            let [client, peer] = [url(&pair[0]), url(&pair[1])];
            let mut etcd = Command::new("etcd");
            etcd.args(["--name", &format!("m{at}"), "--initial-cluster", &cluster.join(",")])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--logger", "zap", "--log-level", "error", "--quota-backend-bytes", "8589934592", "--data-dir"])
                .arg(folder.join(format!("m{at}")));
            Self::silent(etcd, pair[0])
                .map_err(|error| format!("cannot start etcd: {error}; install Debian's etcd-server").into())
        };
        ports.chunks(2).enumerate().map(start).collect()
    }

    /// Starts redis-server on a folder. Returns the time until it had loaded its data.
    pub(crate) fn redis(folder: &Path, options: &[&str]) -> Result<(Self, Duration)> {
        let port = free_port()?;
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

    /// Starts an empty Redis, which syncs its log before every answer if `durable`. None where it is not installed.
    pub(crate) fn redis_if_installed(folder: &Path, durable: bool) -> Result<Option<Self>> {
        if let Err(error) = Command::new("redis-server").arg("--version").output() {
            eprintln!("Redis is left out: {error}; install Debian's redis-server");
            return Ok(None);
        }
        let always = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"];
        Ok(Some(Self::redis(folder, if durable { &always } else { &[] })?.0))
    }

    /// Starts nginx, which answers every request with these bytes: as fast as this machine speaks HTTP. None where it is not
    /// installed.
    pub(crate) fn nginx(folder: &Path, body: &str) -> Result<Option<Self>> {
        let port = free_port()?;
        let shown = folder.display();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let configuration = format!(
            "daemon off; worker_processes {cores}; pid {shown}/nginx.pid; error_log {shown}/nginx.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {shown}; proxy_temp_path {shown};\n\
             fastcgi_temp_path {shown}; uwsgi_temp_path {shown}; scgi_temp_path {shown};\n\
             server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{body}\"; }} }} }}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-e").arg(folder.join("nginx.log"));
        Self::http("nginx", command, port)
    }

    /// Starts Webdis before a Redis. None where it is not installed.
    pub(crate) fn webdis(folder: &Path, redis: &Self) -> Result<Option<Self>> {
        let port = free_port()?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let configuration = format!(
            "{{\"redis_host\": \"127.0.0.1\", \"redis_port\": {}, \"http_host\": \"127.0.0.1\", \"http_port\": {port}, \
             \"threads\": {cores}, \"pool_size\": 32, \"daemonize\": false, \"verbosity\": 0, \"logfile\": {:?}}}\n",
            redis.port,
            folder.join("webdis.log")
        );
        let file = folder.join("webdis.json");
        fs::write(&file, configuration)?;
        let mut command = Command::new("webdis");
        command.arg(file);
        Self::http("webdis", command, port)
    }

    /// Starts a program that will listen on this port.
    fn silent(mut command: Command, port: u16) -> std::io::Result<Self> {
        Ok(Self { child: command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?, port })
    }

    /// Starts a program and waits until it accepts connections.
    fn http(name: &str, command: Command, port: u16) -> Result<Option<Self>> {
        let peer = match Self::silent(command, port) {
            Ok(peer) => peer,
            Err(error) => {
                eprintln!("{name} is left out: {error}; install Debian's {name}");
                return Ok(None);
            }
        };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(Some(peer));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{name} does not answer").into())
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

    /// Returns `HOST:PORT`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
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

    /// Requests a clean stop and waits for it. Returns the time it took.
    pub(crate) fn stop(mut self) -> Result<Duration> {
        let began = Instant::now();
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(began.elapsed())
    }
}

fn free_port() -> Result<u16> {
    Ok(free_ports(1)?[0])
}

/// Returns free ports, no two of them the same.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    // All are bound before the first one is released.
    let bound = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    bound.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// The results of wrk or redis-benchmark.
pub(crate) struct Load {
    pub(crate) per_second: f64,
    /// Latencies, in milliseconds.
    pub(crate) p50: f64,
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
    let latency = |part: &str| milliseconds(field(part).ok_or_else(|| text.clone())?);
    Ok(Load { per_second, p50: latency("50%")?, p99: latency("99%")? })
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

/// Drives Redis with redis-benchmark: `get` or `set`, with this pipeline length per client.
pub(crate) fn redis_benchmark(port: u16, clients: u32, ahead: u32, requests: u32, command: &str) -> Result<Load> {
    let output = Command::new("redis-benchmark")
        .args(["-p", &port.to_string(), "-t", command, "-d", "64", "-r", "1000000", "--csv"])
        .args(["-c", &clients.to_string(), "-P", &ahead.to_string(), "-n", &requests.to_string()])
        .output()
        .map_err(|error| format!("cannot start redis-benchmark: {error}; install Debian's redis-tools"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // The name of the test, requests a second; average, minimum, p50, p95, p99 and maximum in milliseconds.
    let line = text.lines().find(|line| line.starts_with(&format!("{:?}", command.to_uppercase())));
    let fields: Vec<&str> = line.ok_or_else(|| text.clone())?.split(',').collect();
    let field =
        |index: usize| -> Result<f64> { Ok(fields.get(index).ok_or_else(|| text.clone())?.trim_matches('"').parse()?) };
    Ok(Load { per_second: field(1)?, p50: field(4)?, p99: field(6)? })
}
