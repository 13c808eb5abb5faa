//! Members of an etcd cluster on this machine, for the tests of hosts that share a store.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{self, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rcgen::SanType;
use serde_json::Value;
use tempfile::TempDir;

use crate::certificate::Authority;
use crate::network::Network;
use crate::process::{Output, Running};
use crate::wait_until;

/// The link of a member over which the test itself reaches it, where the members are the nodes of a network.
const OWN_LINK: usize = 0;
/// The files in the folder of a cluster with TLS: the certificate of the authority; a certificate and its key.
const TLS_FILES: [&str; 3] = ["ca.pem", "client.pem", "client-key.pem"];
/// The number of lines of each member's log that a failed test prints.
const LOG_LINES: usize = 15;

/// A cluster of etcd members. They are killed when it is dropped. A test that fails prints the end of their logs.
pub struct Etcd {
    members: Vec<Member>,
    /// Further arguments of each member.
    arguments: Vec<String>,
    network: Option<Network>,
    has_tls: bool,
    folder: TempDir,
}

struct Member {
    /// Where it listens for clients and for the other members.
    client: String,
    peer: String,
    process: Option<Running>,
    /// The log since its last start.
    log: Output,
}

impl Etcd {
    /// Starts a cluster with this number of members, and waits until all serve clients and one leads. `None` if etcd is not
    /// installed: the test is skipped then.
    #[track_caller]
    pub fn start(members: usize) -> Option<Self> {
        Self::start_with(members, &[])
    }

    /// The same with further arguments of each member.
    #[track_caller]
    pub fn start_with(members: usize, arguments: &[&str]) -> Option<Self> {
        Self::start_in(None, members, arguments)
    }

    /// The same, with the members on the nodes of a network.
    #[track_caller]
    pub fn start_in(network: Option<Network>, members: usize, arguments: &[&str]) -> Option<Self> {
        Self::start_as(network, members, arguments, false)
    }

    /// Starts a cluster whose members serve clients over TLS, and only those that show a certificate of its authority: the one in
    /// [`tls_files`](Self::tls_files). The members show the same one. Its names are 127.0.0.1 and `etcd.test`.
    #[track_caller]
    pub fn start_with_tls(members: usize) -> Option<Self> {
        Self::start_as(None, members, &[], true)
    }

    #[track_caller]
    fn start_as(network: Option<Network>, members: usize, arguments: &[&str], has_tls: bool) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            println!("skipped: etcd is not installed (the Debian packages etcd-server and etcd-client)");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("vkog-etcd-").tempdir().expect("a temporary folder can be made");
        let addresses = |member: usize| match &network {
            Some(network) => ("0.0.0.0:2379".to_owned(), format!("{}:2380", network.peer_address(member))),
            None => (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port())),
        };
        let stopped = |member: usize| {
            let (client, peer) = addresses(member);
            Member { client, peer, process: None, log: Output::default() }
        };
        let members = (0..members).map(stopped).collect();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut etcd = Self { members, arguments, network, has_tls, folder };
        if has_tls {
            etcd.write_tls_files();
        }
        (0..etcd.members.len()).for_each(|member| etcd.run(member));
        wait_until("all members of etcd serve clients", || {
            etcd.assert_runs();
            (0..etcd.members.len()).all(|member| etcd.ids(member).is_some())
        });
        etcd.wait_for_leader();
        Some(etcd)
    }

    /// The network of which the members are nodes.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The number of members.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The URL of the store of hosts that use this cluster, with this prefix of its keys.
    pub fn store(&self, prefix: &str) -> String {
        format!("etcd://{}/{prefix}", self.addresses().join(","))
    }

    /// Starts a member again that was killed.
    #[track_caller]
    pub fn run(&mut self, member: usize) {
        let url = |address: &str| format!("http://{address}");
        let client_url = |address: &str| format!("{}://{address}", self.scheme());
        let cluster: Vec<_> =
            self.members.iter().enumerate().map(|(at, one)| format!("{}={}", name(at), url(&one.peer))).collect();
        let Member { client, peer, .. } = &self.members[member];
        let data = self.folder.path().join(name(member));
        let state = if data.exists() { "existing" } else { "new" };
        let mut command = match &self.network {
            Some(network) => network.command(member, "etcd"),
            None => Command::new("etcd"),
        };
        command
            .args(["--name", &name(member), "--initial-cluster-state", state, "--logger", "zap"])
            .args(["--initial-cluster", &cluster.join(",")])
            .args(["--listen-client-urls", &client_url(client)])
            .args(["--advertise-client-urls", &client_url(&self.addresses()[member])])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            // Members of two clusters refuse each other.
            .arg("--initial-cluster-token")
            .arg(self.folder.path())
            .arg("--data-dir")
            .arg(data)
            .args(&self.arguments)
            // On some architectures, etcd 3.4 starts only with this name of theirs.
            .env("ETCD_UNSUPPORTED_ARCH", if ARCH == "aarch64" { "arm64" } else { ARCH })
            .current_dir(self.folder.path());
        if self.has_tls {
            let [ca, cert, key] = TLS_FILES;
            command.args(["--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key, "--client-cert-auth"]);
        }
        let process = Running::start(&mut command);
        self.members[member].log = process.stderr.clone();
        self.members[member].process = Some(process);
    }

    /// Kills a member.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Removes the data of a member that was killed.
    pub fn lose_data(&self, member: usize) {
        std::fs::remove_dir_all(self.folder.path().join(name(member))).expect("the folder is ours");
    }

    /// Sends a running member a signal, by its name without `SIG`.
    #[track_caller]
    pub fn signal(&self, member: usize, name: &str) {
        self.members[member].process.as_ref().expect("it runs").signal(name);
    }

    /// The process ids of the running members.
    pub fn process_ids(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| Some(member.process.as_ref()?.id())).collect()
    }

    /// The member that leads, if one answers as leader.
    pub fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|&member| self.ids(member).is_some_and(|(own, leader)| own == leader))
    }

    /// Waits until a member leads.
    #[track_caller]
    pub fn wait_for_leader(&self) -> usize {
        let mut leader = None;
        wait_until("a member of etcd leads", || {
            self.assert_runs();
            leader = self.leader();
            leader.is_some()
        });
        leader.expect("it was found")
    }

    /// Runs `etcdctl` against all members, and asserts that it succeeds. Returns its standard output.
    #[track_caller]
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        let output = self.try_etcdctl(&self.addresses(), arguments);
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Returns the id of the lease of the first key that `etcdctl get` finds with these arguments.
    #[track_caller]
    pub fn lease(&self, arguments: &[&str]) -> String {
        let entries = self.etcdctl(&[&["get", "--write-out=fields"], arguments].concat());
        let lease = entries.lines().find_map(|line| line.strip_prefix("\"Lease\" : ")).expect("it has a lease");
        format!("{:x}", lease.parse::<i64>().expect("a number"))
    }

    /// Drops the history of all keys, and what it took on disk. All members must run, or return soon.
    #[track_caller]
    pub fn compact(&self) {
        let run = |arguments: &[&str]| {
            let output = self.try_etcdctl(&self.addresses(), arguments);
            if !output.status.success() {
                println!("etcdctl {arguments:?}: {}", text(&output.stderr));
            }
            output
        };
        wait_until("etcd compacts its history", || {
            let found = run(&["get", "any", "--write-out=json"]);
            let found: Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
            let Some(revision) = found["header"]["revision"].as_u64() else { return false };
            let compacted = run(&["compaction", "--physical", &revision.to_string()]);
            let is_compacted = compacted.status.success() || text(&compacted.stderr).contains("has been compacted");
            is_compacted && run(&["defrag"]).status.success()
        });
    }

    /// The addresses of the members for clients.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses_by(OWN_LINK)
    }

    /// The addresses of the members on one of their links, where they are the nodes of a network.
    pub fn addresses_by(&self, link: usize) -> Vec<String> {
        let address = |(at, member): (usize, &Member)| match &self.network {
            Some(network) => format!("{}:2379", network.address(at, link)),
            None => member.client.clone(),
        };
        self.members.iter().enumerate().map(address).collect()
    }

    /// The PEM files that clients need where the cluster has TLS: the certificate of the authority; the certificate of a client
    /// and its key.
    pub fn tls_files(&self) -> [PathBuf; 3] {
        TLS_FILES.map(|file| self.folder.path().join(file))
    }

    fn write_tls_files(&self) {
        let authority = Authority::new();
        // It has no common name, which etcd would take for a user.
        let certificate = authority.sign(1, |parameters| {
            let name = "etcd.test".try_into().expect("it is ASCII");
            parameters.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into()), SanType::DnsName(name)];
        });
        std::fs::write(&self.tls_files()[0], &authority.pem).expect("the certificate can be written");
        certificate.write(self.folder.path());
    }

    /// The scheme of the URLs for clients.
    fn scheme(&self) -> &'static str {
        if self.has_tls { "https" } else { "http" }
    }

    /// Asserts that no member has ended unless the test has killed it. One ends if another process has its port.
    #[track_caller]
    fn assert_runs(&self) {
        for (at, member) in self.members.iter().enumerate() {
            let has_ended = member.process.as_ref().is_some_and(Running::has_ended);
            assert!(!has_ended, "{} has ended:\n{}", name(at), member.log.text());
        }
    }

    /// The ids of a member and of the leader that it knows, if it answers.
    fn ids(&self, member: usize) -> Option<(String, String)> {
        let address = &self.addresses()[member..=member];
        let soon = ["--dial-timeout=1s", "--command-timeout=5s", "endpoint", "status", "--write-out=fields"];
        let status = text(&self.try_etcdctl(address, &soon).stdout);
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("\"{name}\"")))?;
            Some(line.split_once(" : ")?.1.to_owned())
        };
        Some((field("MemberID")?, field("Leader")?))
    }

    /// Runs `etcdctl` against these members.
    fn try_etcdctl(&self, addresses: &[String], arguments: &[&str]) -> process::Output {
        let urls: Vec<_> = addresses.iter().map(|address| format!("{}://{address}", self.scheme())).collect();
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--dial-timeout=20s", "--command-timeout=20s"]);
        if self.has_tls {
            let [ca, cert, key] = self.tls_files();
            command.arg("--cacert").arg(ca).arg("--cert").arg(cert).arg("--key").arg(key);
        }
        command.args(["--endpoints", &urls.join(",")]).args(arguments).output().expect("etcdctl runs")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (at, member) in self.members.iter().enumerate() {
                let log = member.log.text();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                println!("--- the end of the log of {}\n{end}", name(at));
            }
        }
    }
}

fn name(member: usize) -> String {
    format!("member-{member}")
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// Returns a port that was free a moment ago. No two calls return the same one: the other test may not listen on it yet, or its members
/// may still be looking for each other there.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let bound = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = bound.expect("a port is free").port();
        if given.insert(port) {
            return port;
        }
    }
}
