//! A cluster of real etcd members on loopback, in a temporary folder. It ends with the value.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a port that was free a moment ago. No two calls return the same one: the other test may not listen on it yet, or its members
/// may still be looking for each other there.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it listens").port();
        if GIVEN.lock().expect("nothing panics with it").insert(port) {
            return port;
        }
    }
}

/// The certificates of a cluster with TLS.
pub(crate) struct Tls {
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// A cluster.
pub(crate) struct Cluster {
    folder: TempDir,
    members: Vec<Member>,
    pub(crate) tls: Option<Tls>,
}

struct Member {
    client: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Cluster {
    /// Starts members with further arguments. Returns `None`, and says so, if etcd is not installed.
    pub(crate) fn start(count: usize, arguments: &[&str]) -> Option<Self> {
        Self::start_with(count, arguments, |_| None)
    }

    /// Starts members that speak TLS with certificates made in the cluster's folder.
    pub(crate) fn start_with(count: usize, arguments: &[&str], tls: impl Fn(&Path) -> Option<Tls>) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: etcd is not installed (apt-get install etcd-server etcd-client)");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("etcd-").tempdir().expect("a folder can be made");
        let tls = tls(folder.path());
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(index, (_, peer))| format!("m{index}=http://127.0.0.1:{peer}")).collect();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let members = ports.iter().enumerate().map(|(index, (client, peer))| {
            let mut all: Vec<String> = [
                ("--name", format!("m{index}")),
                ("--data-dir", folder.path().join(format!("m{index}")).display().to_string()),
                ("--listen-client-urls", format!("{scheme}://127.0.0.1:{client}")),
                ("--advertise-client-urls", format!("{scheme}://127.0.0.1:{client}")),
                ("--listen-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("--initial-advertise-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("--initial-cluster", peers.join(",")),
                ("--initial-cluster-token", folder.path().display().to_string()),
            ]
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
            if let Some(Tls { ca, cert, key }) = &tls {
                for (name, file) in [("trusted-ca-file", ca), ("cert-file", cert), ("key-file", key)] {
                    all.push(format!("--{name}={}", file.display()));
                }
                all.push("--client-cert-auth".to_owned());
            }
            all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
            Member { client: *client, arguments: all, process: None }
        });
        let members = members.collect();
        let mut cluster = Self { folder, members, tls };
        for index in 0..count {
            cluster.run(index);
        }
        wait_until("the members listen", || {
            cluster.members.iter().all(|member| TcpStream::connect(("127.0.0.1", member.client)).is_ok())
        });
        cluster.assert_runs();
        Some(cluster)
    }

    /// Asserts that all members still run: one ends if another process has taken its port.
    #[track_caller]
    fn assert_runs(&mut self) {
        for (index, member) in self.members.iter_mut().enumerate() {
            let status = member.process.as_mut().and_then(|process| process.try_wait().expect("it can be waited for"));
            let log = || std::fs::read_to_string(self.folder.path().join(format!("m{index}.log"))).unwrap_or_default();
            assert!(status.is_none(), "m{index} has ended:\n{}", log());
        }
    }

    /// Starts a member, again.
    pub(crate) fn run(&mut self, index: usize) {
        let log = File::create(self.folder.path().join(format!("m{index}.log"))).expect("a log can be made");
        let member = &mut self.members[index];
        let mut etcd = Command::new("etcd");
        etcd.args(&member.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        etcd.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        member.process = Some(etcd.spawn().expect("etcd can be started"));
    }

    /// Returns `HOST:PORT` of a member.
    pub(crate) fn endpoint(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.members[index].client)
    }

    /// Returns the URL of a store on all members.
    pub(crate) fn url(&self) -> String {
        let endpoints: Vec<String> = (0..self.members.len()).map(|index| self.endpoint(index)).collect();
        format!("etcd://{}/vkog", endpoints.join(","))
    }

    /// Sends a signal to a member.
    pub(crate) fn signal(&self, index: usize, signal: &str) {
        let id = self.members[index].process.as_ref().expect("it runs").id();
        let status = Command::new("kill").args([signal, &id.to_string()]).status().expect("kill exists");
        assert!(status.success());
    }

    /// Returns the processes of the members that run.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| Some(member.process.as_ref()?.id())).collect()
    }

    /// Kills a member with SIGKILL, and waits for its end.
    pub(crate) fn kill(&mut self, index: usize) {
        let mut process = self.members[index].process.take().expect("it runs");
        process.kill().expect("it can be killed");
        process.wait().expect("it ends");
    }

    /// Runs etcdctl, and returns what it prints.
    #[track_caller]
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = self.try_ctl(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs etcdctl.
    pub(crate) fn try_ctl(&self, arguments: &[&str]) -> Output {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoints: Vec<String> =
            (0..self.members.len()).map(|index| format!("{scheme}://{}", self.endpoint(index))).collect();
        let mut ctl = Command::new("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(","), "--command-timeout=20s"]);
        if let Some(Tls { ca, cert, key }) = &self.tls {
            ctl.arg("--cacert").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
        }
        ctl.args(arguments).stdin(Stdio::null()).output().expect("etcdctl is installed")
    }

    /// Returns the member that leads.
    pub(crate) fn leader(&self) -> usize {
        let mut leader = None;
        wait_until("the cluster has a leader", || {
            let output = self.try_ctl(&["endpoint", "status", "--write-out=simple"]);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let leads = |line: &&str| line.split(", ").nth(4) == Some("true");
            let line = text.lines().find(leads).map(str::to_owned);
            let found = line.and_then(|line| {
                (0..self.members.len()).find(|index| line.contains(&format!("{},", self.endpoint(*index))))
            });
            leader = found;
            leader.is_some()
        });
        leader.expect("it was found")
    }

    /// Returns the lease of the first key that `etcdctl get` finds with these arguments.
    pub(crate) fn lease(&self, arguments: &[&str]) -> String {
        let entries = self.ctl(&[&["get", "--write-out=fields"], arguments].concat());
        let lease = entries.lines().find_map(|line| line.strip_prefix("\"Lease\" : ")).expect("it has a lease");
        format!("{:x}", lease.parse::<i64>().expect("a number"))
    }

    /// Compacts all revisions up to the current one.
    pub(crate) fn compact(&self) {
        let status = self.ctl(&["get", "vkog/none", "--write-out=json"]);
        let revision: String = status
            .split("\"revision\":")
            .nth(1)
            .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect())
            .expect("a revision");
        self.ctl(&["compact", "--physical", &revision]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut process) = member.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        if std::thread::panicking() {
            for index in 0..self.members.len() {
                let log = std::fs::read_to_string(self.folder.path().join(format!("m{index}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(15).collect();
                println!("the log of m{index} ends with");
                tail.iter().rev().for_each(|line| println!("{line}"));
            }
        }
    }
}
