//! `cargo xtask bench shared-start`: how long a server needs to load its entries from three members of etcd, and its memory beside that of a
//! server with the same entries in a file.

use std::process::Command;
use std::time::Duration;

use super::peers::Peer;
use super::plugins::plugin_folder;
use super::shared::Cluster;
use super::store::{MILLION, ROUNDS, fill, make_store, megabytes, seconds};
use super::{Options, Table, median, with_program};
use crate::Result;

/// Resident memory that changes by less than this in a second has settled, in megabytes.
const SETTLED: f64 = 0.5;

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.against.is_some() {
        return Err("the peer of a server on etcd is one with a file; leave out --against".into());
    }
    let entries = if options.quick { MILLION / 10 } else { MILLION };
    with_program(&options.profile, &["vkog-etcd"], |program, libraries, folder| {
        let library = libraries.first().ok_or("cargo built no vkog-etcd")?.file.clone();
        let plugins = plugin_folder(&folder.join("plugins"), &[library])?;
        let cluster = Cluster::start(folder)?;
        let url = cluster.url();
        let file = folder.join("entries.vkog");
        make_store(program, &file, entries)?;
        let mut import = Command::new(program);
        import.args(["import", "--store", &url, "--plugin-dir"]).arg(&plugins);
        fill(import, entries)?;
        let mut lives = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let (alone, start) = Peer::vkog(program, &file, &[])?;
            lives[1].push((start.as_secs_f64(), settled(&alone)?));
            alone.stop()?;
            let (shared, start) = Peer::vkog_shared(program, &url, &plugins, &[])?;
            lives[0].push((start.as_secs_f64(), settled(&shared)?));
            shared.stop()?;
        }
        let median_of = |value: fn(&(f64, f64)) -> f64| lives.each_ref().map(|lives| median(lives.iter().map(value)));
        let mut table = Table::default();
        let [ours, theirs] = median_of(|life| life.0);
        table.row(&format!("start, {entries} entries"), seconds(ours), seconds(theirs), String::new(), "≤ 10 s");
        let [ours, theirs] = median_of(|life| life.1);
        let ratio = format!("{:.2}", ours / theirs);
        table.row(&format!("resident memory, {entries} entries"), megabytes(ours), megabytes(theirs), ratio, "≤ 1.10");
        table.print("vkog with a file");
        Ok(())
    })
}

/// Waits until the resident memory of a server has settled. Returns it, in megabytes.
fn settled(server: &Peer) -> Result<f64> {
    let mut last = server.resident()?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let now = server.resident()?;
        if (now - last).abs() < SETTLED {
            return Ok(now);
        }
        last = now;
    }
}
