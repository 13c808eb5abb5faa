//! Puts the load of a simple etcd client on a member: `etcd-load HOST:PORT put|range CLIENTS SECONDS`. Prints requests in a
//! second, and the p50 and p99 of their latencies in milliseconds. `cargo xtask bench shared` runs it.

#[path = "../tests/real_etcd/direct.rs"]
mod direct;

use std::time::Duration;

use direct::{Call, drive};

/// The length of the values that `cargo xtask bench` writes.
const VALUE_LEN: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [member, call, clients, seconds] = arguments.as_slice() else {
        return Err("usage: etcd-load HOST:PORT put|range CLIENTS SECONDS".into());
    };
    let call = match call.as_str() {
        "put" => Call::Put { value_len: VALUE_LEN },
        "range" => Call::Range,
        other => return Err(format!("{other:?} is neither put nor range").into()),
    };
    let rate = drive(member, call, clients.parse()?, Duration::from_secs(seconds.parse()?));
    println!("{} {} {}", rate.per_second, rate.percentile(50), rate.percentile(99));
    Ok(())
}
