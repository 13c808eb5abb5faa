//! `cargo xtask bench shared`: servers on an etcd cluster of three members, beside a client that sends single requests to that cluster and
//! beside a server with files. All of them run on this machine. So the requests of the servers cost the members CPU time, and the other way
//! round; rates and CPU times of each are measured.

use std::cell::RefCell;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use super::etcd_client::{self, Client};
use super::peers::{Load, Peer, wrk};
use super::plugins::plugin_folder;
use super::race::{Kind, Racer, race, script};
use super::store::{fill, make_store};
use super::{Options, Table, median, with_program};
use crate::Result;

const MEMBERS: usize = 3;
const KEYS: u64 = 10_000;
const CLIENTS: [u32; 3] = [16, 64, 256];
/// The clients of the measurements that do not depend on their number.
const SOME_CLIENTS: u32 = 64;
/// Clock ticks in a second of `/proc/PID/stat`.
const TICKS: f64 = 100.0;

pub(crate) fn run(options: &Options) -> Result<()> {
    with_program(&options.profile, &["vkog-etcd"], |program, libraries, folder| {
        let target = program.parent().ok_or("no folder")?;
        let client = etcd_client::Program::new(options.against.as_deref(), &options.profile, target)?;
        let library = libraries.first().ok_or("cargo built no vkog-etcd")?.file.clone();
        let plugins = plugin_folder(&folder.join("plugins"), &[library])?;
        let (rounds, seconds) = if options.quick { (3, 1) } else { (5, 2) };
        println!(
            "medians of {rounds} rounds of {seconds} s, with the lowest and the highest ratio; latencies are p50 and p99\n"
        );
        let cluster = Cluster::start(folder)?;
        let bench = Bench { program, folder, plugins, client, cluster, rounds, seconds };
        let mut table = Table::default();
        bench.fill()?;
        bench.beside_etcd(&mut table)?;
        bench.beside_files(&mut table)?;
        bench.two_servers(&mut table)?;
        table.print("etcd, or a server with files");
        Ok(())
    })
}

/// An etcd cluster on this machine.
pub(super) struct Cluster {
    members: Vec<Peer>,
}

impl Cluster {
    /// Starts the members, and waits until they have a leader.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let mut cluster = Self { members: Peer::etcd(folder, MEMBERS)? };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if let Some(leader) = cluster.leader()? {
                // The clients use the first one.
                cluster.members.swap(0, leader);
                return Ok(cluster);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err("etcd elects no leader".into())
    }

    /// Returns the member that leads.
    fn leader(&self) -> Result<Option<usize>> {
        for (at, member) in self.members.iter().enumerate() {
            if TcpStream::connect(("127.0.0.1", member.port)).is_err() {
                return Ok(None);
            }
            let mut ctl = Command::new("etcdctl");
            ctl.env("ETCDCTL_API", "3").args(["--endpoints", &member.address(), "endpoint", "status"]);
            let output = ctl.stderr(Stdio::null()).output();
            let output =
                output.map_err(|error| format!("cannot start etcdctl: {error}; install Debian's etcd-client"))?;
            if String::from_utf8_lossy(&output.stdout).split(", ").nth(4) == Some("true") {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// The URL of a store in the cluster.
    pub(super) fn url(&self) -> String {
        let addresses: Vec<String> = self.members.iter().map(Peer::address).collect();
        format!("etcd://{}/vkog", addresses.join(","))
    }

    fn processes(&self) -> Vec<u32> {
        self.members.iter().map(Peer::id).collect()
    }
}

/// The CPU time of some processes for each request, in microseconds, in each round.
type Costs = Rc<RefCell<Vec<f64>>>;

struct Bench<'a> {
    program: &'a Path,
    folder: &'a Path,
    /// The folder with the plugin.
    plugins: PathBuf,
    /// The client of etcd.
    client: etcd_client::Program,
    cluster: Cluster,
    rounds: usize,
    seconds: u32,
}

impl Bench<'_> {
    /// Writes and linearizable reads, beside the same number of clients of etcd.
    fn beside_etcd(&self, table: &mut Table) -> Result<()> {
        let server = self.server(&[])?;
        for clients in CLIENTS {
            for (kind, call, what, goal) in [
                (Kind::Put, "put", "PUT; single puts", "≥ 3"),
                (Kind::Get, "range", "linearizable GET; linearizable ranges", "≥ 5"),
            ] {
                let (ours, our_costs) = self.http(&[&server], kind, clients, self.cluster.processes())?;
                let (theirs, their_costs) = self.etcd(call, clients);
                let mut racers = [ours, theirs];
                race(&mut racers, self.rounds)?;
                let what = format!("{what}, {clients} clients");
                racers[0].beside_with_range(&racers[1], &what, goal, table);
                cost_row(&format!("{what}: CPU time of the members for each"), &our_costs, &their_costs, goal, table);
            }
        }
        Ok(())
    }

    /// Local reads, beside those of a server with files.
    fn beside_files(&self, table: &mut Table) -> Result<()> {
        let store = self.folder.join("files.vkog");
        make_store(self.program, &store, KEYS)?;
        let files = Peer::vkog(self.program, &store, &[])?.0;
        let server = self.server(&["--reads", "local"])?;
        let (ours, our_costs) = self.http(&[&server], Kind::Get, SOME_CLIENTS, vec![server.id()])?;
        let (theirs, their_costs) = self.http(&[&files], Kind::Get, SOME_CLIENTS, vec![files.id()])?;
        let mut racers = [ours, theirs];
        race(&mut racers, self.rounds)?;
        let what = format!("local GET; GET of a server with files, {SOME_CLIENTS} clients");
        racers[0].beside_with_range(&racers[1], &what, "≥ 0.95", table);
        cost_row(&format!("{what}: CPU time of the server for each"), &our_costs, &their_costs, "≥ 0.95", table);
        Ok(())
    }

    /// Two servers that have the clients of one. On a machine with few cores, the ratio of what they can serve is twice that of their CPU
    /// times.
    fn two_servers(&self, table: &mut Table) -> Result<()> {
        for (reads, what) in [("local", "local GET"), ("linearizable", "linearizable GET")] {
            let [one, other] = [self.server(&["--reads", reads])?, self.server(&["--reads", reads])?];
            let (both, both_costs) = self.http(&[&one, &other], Kind::Get, SOME_CLIENTS, vec![one.id(), other.id()])?;
            let (alone, alone_costs) = self.http(&[&one], Kind::Get, SOME_CLIENTS, vec![one.id()])?;
            let mut racers = [both, alone];
            race(&mut racers, self.rounds)?;
            let what = format!("{what}, {SOME_CLIENTS} clients: two servers; one");
            racers[0].beside_with_range(&racers[1], &what, "≥ 1.8 with enough cores", table);
            let [both, alone] = [&both_costs, &alone_costs].map(|costs| median(costs.borrow().iter().copied()));
            let ratio = format!("{:.2}", 2.0 * alone / both);
            let what = format!("{what}; twice the ratio of their CPU times for each request");
            table.row(&what, format!("{both:.1} µs"), format!("{alone:.1} µs"), ratio, "≥ 1.8");
        }
        Ok(())
    }

    /// Makes the entries that are read.
    fn fill(&self) -> Result<()> {
        let mut import = Command::new(self.program);
        import.args(["import", "--store", &self.cluster.url(), "--plugin-dir"]).arg(&self.plugins);
        fill(import, KEYS)
    }

    /// Starts a server on the cluster.
    fn server(&self, options: &[&str]) -> Result<Peer> {
        Ok(Peer::vkog_shared(self.program, &self.cluster.url(), &self.plugins, options)?.0)
    }

    /// Servers of HTTP that share the clients.
    fn http(&self, servers: &[&Peer], kind: Kind, clients: u32, processes: Vec<u32>) -> Result<(Racer, Costs)> {
        let script = script(self.folder, kind, "/k/", KEYS)?;
        let urls: Vec<String> = servers.iter().map(|server| format!("http://127.0.0.1:{}", server.port)).collect();
        let (share, seconds) = (clients / u32::try_from(urls.len())?, self.seconds);
        Ok(with_costs(processes, move || {
            thread::scope(|scope| {
                let script = &script;
                let drive =
                    |url| scope.spawn(move || wrk(url, share, seconds, script).map_err(|error| error.to_string()));
                let threads: Vec<_> = urls.iter().map(String::as_str).map(drive).collect();
                let mut sum = Load { per_second: 0.0, p50: 0.0, p99: 0.0 };
                for thread in threads {
                    let load = thread.join().map_err(|_| "a thread panicked")??;
                    sum.per_second += load.per_second;
                    (sum.p50, sum.p99) = (sum.p50.max(load.p50), sum.p99.max(load.p99));
                }
                let requests = sum.per_second * f64::from(seconds);
                Ok((sum, requests))
            })
        }))
    }

    /// The cluster, with a client that sends single requests.
    fn etcd(&self, call: &'static str, clients: u32) -> (Racer, Costs) {
        let (member, seconds) = (self.cluster.members[0].address(), self.seconds);
        let client = Client::new(&self.client, member, call, clients, KEYS);
        with_costs(self.cluster.processes(), move || client.drive(seconds))
    }
}

/// Measures what processes spend in each round. `drive` returns the number of requests as well.
fn with_costs(processes: Vec<u32>, drive: impl Fn() -> Result<(Load, f64)> + 'static) -> (Racer, Costs) {
    let costs = Costs::default();
    let spent = Rc::clone(&costs);
    let racer = Racer::new(move || {
        let before = cpu(&processes)?;
        let (load, requests) = drive()?;
        spent.borrow_mut().push((cpu(&processes)? - before) * 1e6 / requests);
        Ok(load)
    });
    (racer, costs)
}

/// Adds a row: how many times more the peer spends.
fn cost_row(what: &str, ours: &Costs, theirs: &Costs, goal: &str, table: &mut Table) {
    let ratio = median(ours.borrow().iter().zip(&*theirs.borrow()).map(|(ours, theirs)| theirs / ours));
    let shown = |costs: &Costs| format!("{:.1} µs", median(costs.borrow().iter().copied()));
    table.row(what, shown(ours), shown(theirs), format!("1 : {ratio:.2}"), goal);
}

/// Returns the CPU time of processes so far, in seconds.
fn cpu(processes: &[u32]) -> Result<f64> {
    let mut ticks = 0.0;
    for process in processes {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The fields follow the name of the program, in which a space may be.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        // `utime` and `stime`.
        for field in fields.skip(11).take(2) {
            ticks += field.parse::<f64>()?;
        }
    }
    Ok(ticks / TICKS)
}
