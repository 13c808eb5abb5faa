//! `cargo xtask bench attack`: measures the latency of another client and the memory of the server during attacks that
//! exhaust servers. `tests/tests/black_box/hostile.rs` asserts that the server survives them.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::peers::Peer;
use super::store::make_store;
use super::with_program;
use crate::Result;

/// The duration and the interval of the requests of another client.
const MEASURED: Duration = Duration::from_secs(5);
const PACE: Duration = Duration::from_millis(2);
const GET: &[u8] = b"GET /k/key:000000000001 HTTP/1.1\r\nHost: localhost\r\n\r\n";

pub(super) fn run() -> Result<()> {
    raise_descriptors();
    with_program("release", &[], |program, _, folder| {
        let store = folder.join("attack.vkog");
        make_store(program, &store, 10_000)?;
        println!("| meanwhile | memory more | p50 | p99 | longest |\n|---|---|---|---|---|");
        for (what, attack) in ATTACKS {
            let (peer, _) = Peer::vkog(program, &store, &["--http", "hyper"])?;
            let before = peer.resident()?;
            let attack = attack(peer.port)?;
            let times = attack.beside(|| measured(peer.port))?;
            let more = peer.resident()? - before;
            let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
            println!("| {what} | {more:.0} MB | {:.2} ms | {:.2} ms | {:.2} ms |", at(0.5), at(0.99), at(1.0));
        }
        Ok(())
    })
}

const ATTACKS: [(&str, Begin); 5] = [
    ("nothing", |_| Ok(Attack::default())),
    ("10,000 idle connections", |port| Ok(Attack::held(answered(port, 10_000)?))),
    ("5,000 that send a byte a second", |port| Ok(Attack { slow: true, ..Attack::held(opened(port, 5000, b"G")?) })),
    ("1,000 uploads that stop halfway", |port| {
        let head = b"PUT /k/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\nhalf";
        Ok(Attack::held(opened(port, 1000, head)?))
    }),
    ("100,000 requests sent ahead", |port| Ok(Attack { ahead: Some(port), ..Attack::default() })),
];

/// Begins an attack on a port.
type Begin = fn(u16) -> Result<Attack>;

/// The load beside the measured client.
#[derive(Default)]
struct Attack {
    held: Vec<TcpStream>,
    /// A byte a second on each.
    slow: bool,
    /// Requests that are sent ahead, again and again.
    ahead: Option<u16>,
}

impl Attack {
    fn held(held: Vec<TcpStream>) -> Self {
        Self { held, ..Self::default() }
    }

    fn beside<T>(mut self, run: impl FnOnce() -> T) -> T {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while self.slow && !ended.load(Ordering::Relaxed) {
                    let round = Instant::now();
                    self.held.iter_mut().for_each(|stream| drop(stream.write_all(b"G")));
                    thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
                }
            });
            scope.spawn(|| {
                while let (Some(port), false) = (self.ahead, ended.load(Ordering::Relaxed)) {
                    // A failure shows in the latency of the other client, or not at all.
                    let _ = sent_ahead(port, 100_000);
                }
            });
            let result = run();
            ended.store(true, Ordering::Relaxed);
            result
        })
    }
}

fn opened(port: u16, count: usize, begun: &[u8]) -> Result<Vec<TcpStream>> {
    let open = |_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(begun)?;
        Ok(stream)
    };
    (0..count).map(open).collect()
}

/// Open connections on which a response was received.
fn answered(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = opened(port, count, GET)?;
    streams.iter_mut().try_for_each(|stream| stream.read(&mut [0; 1024]).map(drop))?;
    Ok(streams)
}

fn sent_ahead(port: u16, count: usize) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let mut writer = stream.try_clone()?;
    let sending = thread::spawn(move || {
        let _ = writer.write_all(&GET.repeat(count));
        let _ = writer.shutdown(std::net::Shutdown::Write);
    });
    let mut piece = vec![0; 1 << 16];
    while stream.read(&mut piece)? > 0 {}
    sending.join().map_err(|_| "the sender panicked")?;
    Ok(())
}

/// Returns the sorted latencies of a client that sends a request now and then on one connection.
fn measured(port: u16) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut times, began) = (Vec::new(), Instant::now());
    while began.elapsed() < MEASURED {
        let asked = Instant::now();
        stream.write_all(GET)?;
        let mut answer = [0; 1024];
        let read = stream.read(&mut answer)?;
        times.push(asked.elapsed());
        if !answer[..read].starts_with(b"HTTP/1.1 200") {
            return Err(format!("the other client got {}", answer[..read].escape_ascii()).into());
        }
        thread::sleep(PACE);
    }
    times.sort();
    Ok(times)
}

/// Raises the limit of file descriptors to the maximum.
fn raise_descriptors() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}
