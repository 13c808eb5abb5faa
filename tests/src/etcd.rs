//! Members of an etcd cluster on this machine, for the tests of hosts that share a store.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::DEADLINE;
use crate::network::Network;
use crate::process::Running;

/// The link of a member over which the test itself reaches it, where the members are the nodes of a network.
const OWN_LINK: usize = 0;

/// A cluster of etcd members. They are killed when it is dropped.
pub struct Etcd {
    members: Vec<Member>,
    /// Further arguments of each member.
    arguments: Vec<String>,
    network: Option<Network>,
    folder: TempDir,
}

struct Member {
    /// Where it listens for clients and for the other members.
    client: String,
    peer: String,
    process: Option<Running>,
}

impl Etcd {
    /// Starts a cluster with this number of members, and waits until it has a leader. `None` if etcd is not installed: the test
    /// is skipped then.
    #[track_caller]
    pub fn start(members: usize) -> Option<Self> {
        Self::start_as(None, members, &[])
    }

    /// The same with further arguments of each member.
    #[track_caller]
    pub fn start_with(members: usize, arguments: &[&str]) -> Option<Self> {
        Self::start_as(None, members, arguments)
    }

    /// The same, with the members on the nodes of a network.
    #[track_caller]
    pub fn start_in(network: Option<Network>, members: usize) -> Option<Self> {
        Self::start_as(network, members, &[])
    }

    #[track_caller]
    fn start_as(network: Option<Network>, members: usize, arguments: &[&str]) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            println!("skipped: etcd is not installed (the Debian packages etcd-server and etcd-client)");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("vkog-etcd-").tempdir().expect("a temporary folder can be made");
        let addresses: Vec<_> = match &network {
            Some(network) => (0..members)
                .map(|member| ("0.0.0.0:2379".to_owned(), format!("{}:2380", network.peer_address(member))))
                .collect(),
            None => free_ports(2 * members)
                .chunks(2)
                .map(|ports| (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1])))
                .collect(),
        };
        let members = addresses.into_iter().map(|(client, peer)| Member { client, peer, process: None }).collect();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut etcd = Self { members, arguments, network, folder };
        (0..etcd.members.len()).for_each(|member| etcd.run(member));
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
        let name = |member: usize| format!("member-{member}");
        let url = |address: &str| format!("http://{address}");
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
            .args(["--initial-cluster", &cluster.join(","), "--log-level", "error"])
            .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(&self.addresses()[member])])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            // A test kills the leader often.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--data-dir")
            .arg(data)
            .args(&self.arguments)
            .current_dir(self.folder.path());
        self.members[member].process = Some(Running::start(&mut command));
    }

    /// Kills a member.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Sends a member a signal, by its name without `SIG`.
    pub fn signal(&self, member: usize, name: &str) {
        if let Some(process) = &self.members[member].process {
            process.signal(name);
        }
    }

    /// The member that leads, if one answers as leader.
    pub fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|&member| {
            let status = self.etcdctl_at(&[member], &["endpoint", "status", "-w", "fields"]);
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(&format!("\"{name}\"")));
                line.and_then(|line| line.split(" : ").nth(1)).map(str::to_owned)
            };
            matches!((field("MemberID"), field("Leader")), (Some(own), Some(leader)) if own == leader)
        })
    }

    /// Waits until a member leads.
    #[track_caller]
    pub fn wait_for_leader(&self) -> usize {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(leader) = self.leader() {
                return leader;
            }
            assert!(Instant::now() < deadline, "no member of etcd leads:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs `etcdctl` against all members. Returns its standard output.
    pub fn etcdctl(&self, arguments: &[&str]) -> String {
        self.etcdctl_at(&(0..self.members.len()).collect::<Vec<_>>(), arguments)
    }

    /// Drops the history of all keys, and what it took on disk.
    pub fn compact(&self) {
        let status = self.etcdctl(&["endpoint", "status", "-w", "json"]);
        let members: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let revision = members[0]["Status"]["header"]["revision"].as_u64().unwrap_or_default();
        self.etcdctl(&["compaction", &revision.to_string()]);
        self.etcdctl(&["defrag"]);
    }

    fn etcdctl_at(&self, members: &[usize], arguments: &[&str]) -> String {
        let all = self.addresses();
        let endpoints: Vec<_> = members.iter().map(|member| all[*member].as_str()).collect();
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--dial-timeout=1s", "--command-timeout=5s", "--endpoints", &endpoints.join(",")])
            .args(arguments)
            .output()
            .expect("etcdctl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
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

    /// Returns the logs of the members.
    pub fn logs(&self) -> String {
        self.members.iter().filter_map(|member| Some(member.process.as_ref()?.stderr.text())).collect()
    }

    /// The folder with the data of the members.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Ports that were free a moment ago. No two calls return the same one: the other test may not listen on it yet, or its members may still
/// be looking for each other there.
fn free_ports(count: usize) -> Vec<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port is free");
    std::iter::repeat_with(|| free().port()).filter(|port| given.insert(*port)).take(count).collect()
}
