//! The cost of idle connections: memory, and the latency of other connections.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use super::Table;
use super::peers::Peer;
use super::race::{Kind, Pace, Racer};
use crate::Result;

const IDLE: usize = 10_000;

/// Measures GETs of one server while it has idle connections, and GETs of another one that has none.
pub(super) fn measure(
    folder: &Path,
    [crowded, free]: &[Peer; 2],
    keys: u64,
    rounds: usize,
    seconds: u32,
    table: &mut Table,
) -> Result<()> {
    let before = crowded.resident()?;
    let mut idle = match keep(crowded.port, IDLE) {
        Ok(idle) => idle,
        Err(error) => {
            let way_out = "raise the soft and hard limits of file descriptors (ulimit -n) of this shell";
            eprintln!("{IDLE} connections are left out: {error}; {way_out}");
            return Ok(());
        }
    };
    let resident = crowded.resident()?;
    let get = |server: &Peer| Racer::http(folder, server.port, Kind::Get, "/k/", keys, Pace { clients: 16, seconds });
    let (mut with, mut without) = (get(crowded)?, get(free)?);
    for _ in 0..rounds {
        with.drive()?;
        without.drive()?;
        // All are still there, and are not given up: that they are idle is allowed for so long only.
        idle.iter_mut().try_for_each(ask)?;
    }
    let what = format!("GET, hyper, 16 clients, {IDLE} idle connections; none");
    with.beside(&without, &what, "", table);
    let shown = |racer: &Racer| format!("{:.2} ms", racer.median(|load| load.p99));
    let ratio = format!("{:.2}", with.over(&without, |load| load.p99));
    table.row(&format!("{what}: p99"), shown(&with), shown(&without), ratio, "1");
    let what = format!("resident memory, hyper, {IDLE} idle connections; before");
    table.row(&what, format!("{resident:.0} MB"), format!("{before:.0} MB"), String::new(), "< 150 MB");
    Ok(())
}

/// Opens this number of connections, and uses each once.
fn keep(port: u16, count: usize) -> Result<Vec<TcpStream>> {
    let open = |_| {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(10)))?;
        ask(&mut connection)?;
        Ok(connection)
    };
    (0..count).map(open).collect()
}

/// Sends one request over a connection and reads the answer.
fn ask(connection: &mut TcpStream) -> Result<()> {
    connection.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = [0; 512];
    let read = connection.read(&mut answer)?;
    if answer[..read].starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err("an idle connection was closed".into()) }
}
