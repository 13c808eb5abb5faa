//! Hit rates of the evictions of `bytes` beside those of Redis, for one trace of reads: a key that is not found is written.
//! The arguments are the number of requests, of keys, and of entries that fit.
//!
//! Both hold about the same number of entries. Redis (`redis-server` in the path) runs on a port of the loopback interface
//! and reads and writes in a script, so that the next request sees what this one leaves, as here.

#[allow(dead_code, unused_imports)]
#[path = "../src/lib.rs"]
mod plugin;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vkog_plugin_testing::{Setup, TestHost};

/// The length of a value, in bytes; keys have 16.
const VALUE: usize = 300;
const KEY: usize = 16;
/// The exponent of the distribution of keys.
const EXPONENT: f64 = 0.99;
/// The number of requests that Redis gets before its responses are read.
const PIPELINE: usize = 500;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A trace of requests: keys by a Zipf distribution.
struct Trace {
    sums: Vec<f64>,
    random: u64,
}

impl Trace {
    fn new(keys: usize) -> Self {
        let mut sum = 0.0;
        let weights = (1..=keys).map(|rank| (rank as f64).powf(-EXPONENT));
        let sums = weights.map(|weight| {
            sum += weight;
            sum
        });
        Self { sums: sums.collect(), random: 0x9e37_79b9_7f4a_7c15 }
    }

    fn next(&mut self) -> String {
        // Xorshift, so that every run is the same.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let total = self.sums.last().copied().unwrap_or(0.0);
        let at = (self.random >> 11) as f64 / (1_u64 << 53) as f64 * total;
        key(self.sums.partition_point(|sum| *sum < at))
    }
}

fn key(rank: usize) -> String {
    // Frequent keys are no neighbours.
    format!("{:016x}", (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn ours(evict: &str, requests: usize, keys: usize, entries: usize) -> (f64, usize, Duration) {
    let limit = entries * (KEY + VALUE);
    let settings = format!(r#"{{"max_size": {limit}, "evict": {evict:?}}}"#);
    let host: TestHost =
        Setup::new().load_other(vkog_plugin_testing::plugin!(plugin::Bytes, "bytes")).settings(&settings).start();
    let (mut trace, value, mut hits) = (Trace::new(keys), [b'v'; VALUE], 0);
    let begun = Instant::now();
    for _ in 0..requests {
        let key = trace.next();
        if host.get(&key).status == 200 {
            hits += 1;
        } else {
            host.put(&key, value).expect(200);
        }
    }
    let time = begun.elapsed();
    let held = host.keys("").map_or(0, |keys| keys.len());
    assert!(held * (KEY + VALUE) <= limit, "{held} entries exceed the limit");
    (hits as f64 / requests as f64, held, time)
}

struct Redis {
    process: Child,
    stream: BufReader<TcpStream>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Redis {
    fn start() -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let arguments = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port", &port.to_string()];
        let mut process = Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => return Ok(Self { process, stream: BufReader::new(stream) }),
                Err(error) if Instant::now() > deadline => {
                    let _ = process.kill();
                    return Err(error.into());
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    /// Sends commands and returns the responses, as text.
    fn run(&mut self, commands: &[Vec<String>]) -> Result<Vec<String>> {
        let mut text = String::new();
        for command in commands {
            text.push_str(&format!("*{}\r\n", command.len()));
            command.iter().for_each(|part| text.push_str(&format!("${}\r\n{part}\r\n", part.len())));
        }
        self.stream.get_mut().write_all(text.as_bytes())?;
        commands.iter().map(|_| self.response()).collect()
    }

    fn response(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("-", error)) => Err(error.into()),
            Some(("$", length)) => {
                let mut value = vec![0; length.parse::<usize>()? + 2];
                std::io::Read::read_exact(&mut self.stream, &mut value)?;
                Ok(String::from_utf8(value)?.trim_end().to_owned())
            }
            Some((_, value)) => Ok(value.to_owned()),
            None => Err("Redis closed the connection".into()),
        }
    }

    fn one(&mut self, command: &[&str]) -> Result<String> {
        let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
        Ok(self.run(&[command])?.remove(0))
    }

    fn memory(&mut self) -> Result<u64> {
        let info = self.one(&["INFO", "memory"])?;
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).ok_or("no used_memory")?;
        Ok(line.trim().parse()?)
    }
}

impl Redis {
    /// Sets `maxmemory` so that at least this number of entries fit, and at most 0.5 % more.
    fn calibrate(&mut self, entries: usize, access: impl Fn(usize) -> Vec<String>) -> Result<()> {
        let mut bytes_per_entry = KEY + VALUE + 64;
        let mut memory = usize::try_from(self.memory()?)? + entries * bytes_per_entry;
        for _ in 0..20 {
            self.one(&["FLUSHALL"])?;
            self.one(&["CONFIG", "SET", "maxmemory", &memory.to_string()])?;
            let all: Vec<Vec<String>> = (0..entries * 3 / 2).map(&access).collect();
            for part in all.chunks(PIPELINE) {
                self.run(part)?;
            }
            let held: usize = self.one(&["DBSIZE"])?.parse()?;
            if (entries..=entries + entries / 200).contains(&held) {
                break;
            }
            bytes_per_entry = bytes_per_entry.min(usize::try_from(self.memory()?)? / held.max(1));
            memory = (memory + (entries + entries / 400) * bytes_per_entry).saturating_sub(held * bytes_per_entry);
        }
        self.one(&["FLUSHALL"]).map(drop)
    }
}

/// Returns the hit rate and the number of entries at the end.
fn redis(policy: &str, requests: usize, keys: usize, entries: usize) -> Result<(f64, usize, Duration)> {
    let mut redis = Redis::start()?;
    let value = "v".repeat(VALUE);
    let script = "if redis.call('GET', KEYS[1]) then return 1 end redis.call('SET', KEYS[1], ARGV[1]) return 0";
    let script = redis.one(&["SCRIPT", "LOAD", script])?;
    let access = |key: String| vec!["EVALSHA".to_owned(), script.clone(), "1".to_owned(), key, value.clone()];
    redis.one(&["CONFIG", "SET", "maxmemory-policy", policy])?;
    redis.calibrate(entries, |rank| access(key(rank)))?;
    let (mut trace, mut hits, mut left) = (Trace::new(keys), 0, requests);
    let begun = Instant::now();
    while left > 0 {
        let part: Vec<Vec<String>> = (0..PIPELINE.min(left)).map(|_| access(trace.next())).collect();
        hits += redis.run(&part)?.iter().filter(|found| *found == "1").count();
        left -= part.len();
    }
    let (time, held) = (begun.elapsed(), redis.one(&["DBSIZE"])?.parse()?);
    Ok((hits as f64 / requests as f64, held, time))
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let mut argument = |default| arguments.next().unwrap_or(default);
    let (requests, keys, entries) = (argument(5_000_000), argument(500_000), argument(50_000));
    println!("| policy | vkog: hit rate, entries, time | Redis: hit rate, entries, time | ratio |\n|---|---|---|---|");
    for policy in ["lru", "lfu"] {
        let (rate, held, time) = ours(policy, requests, keys, entries);
        let (their_rate, their_held, their_time) = redis(&format!("allkeys-{policy}"), requests, keys, entries)?;
        println!(
            "| {policy} | {rate:.4}, {held}, {time:.1?} | {their_rate:.4}, {their_held}, {their_time:.1?} | {:.4} |",
            rate / their_rate
        );
    }
    Ok(())
}
