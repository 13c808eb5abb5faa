//! Hosts that share a store, and the links between them and the members of etcd: those of a network, or proxies.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use vkog_tests::{Etcd, Network, Server, Setup, conflict, etcd_plugin};

/// Elections soon after a member has failed, which happens often in a test.
const ELECTIONS: [&str; 2] = ["--heartbeat-interval=50", "--election-timeout=500"];

/// Hosts on one store, each with the plugins etcd and conflict.
pub(crate) struct Cluster {
    pub(crate) etcd: Etcd,
    hosts: Vec<Host>,
}

struct Host {
    setup: Setup,
    server: Option<Server>,
    /// Whether its proxies pass nothing on.
    cut: Arc<AtomicBool>,
}

impl Cluster {
    /// Starts etcd and hosts. `None` if etcd is not installed.
    #[track_caller]
    pub(crate) fn start(members: usize, hosts: usize, set_up: impl Fn(Setup) -> Setup) -> Option<Self> {
        Some(Self::start_on(Etcd::start_with(members, &ELECTIONS)?, hosts, set_up))
    }

    /// Runs a test with a cluster, whose members are the nodes of a network if the system has one. The test does not run if etcd
    /// is not installed.
    pub(crate) fn run(
        members: usize,
        hosts: usize,
        set_up: impl Fn(Setup) -> Setup + Send,
        test: impl FnOnce(Self) + Send,
    ) {
        // Cargo may need another network to build them.
        let _ = (etcd_plugin(), conflict());
        Network::run(members, hosts + 1, |network| {
            if let Some(etcd) = Etcd::start_in(network, members, &ELECTIONS) {
                test(Self::start_on(etcd, hosts, set_up));
            }
        });
    }

    #[track_caller]
    fn start_on(etcd: Etcd, hosts: usize, set_up: impl Fn(Setup) -> Setup) -> Self {
        let hosts = (0..hosts)
            .map(|host| {
                let cut = Arc::<AtomicBool>::default();
                let mut links = etcd.addresses_by(link_of(host));
                if etcd.network().is_none() {
                    links.iter_mut().for_each(|link| *link = proxy(link, Arc::clone(&cut)));
                }
                let store = format!("etcd://{}/vkog", links.join(","));
                let setup = Setup::new().load(etcd_plugin()).load(conflict()).shared_store(store);
                Host { setup: set_up(setup), server: None, cut }
            })
            .collect();
        let mut cluster = Self { etcd, hosts };
        (0..cluster.hosts.len()).for_each(|host| cluster.start_host(host));
        cluster
    }

    /// The number of hosts.
    pub(crate) fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// A host that runs.
    #[track_caller]
    pub(crate) fn host(&self, host: usize) -> &Server {
        self.hosts[host].server.as_ref().expect("it runs")
    }

    /// The address of a host, if it runs.
    pub(crate) fn address(&self, host: usize) -> Option<String> {
        Some(self.hosts[host].server.as_ref()?.address().to_owned())
    }

    /// Starts a host again that was killed, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start_host(&mut self, host: usize) {
        let server = self.hosts[host].setup.start();
        server.wait_until_ready();
        self.hosts[host].server = Some(server);
    }

    /// Kills a host.
    pub(crate) fn kill(&mut self, host: usize) {
        self.hosts[host].server = None;
    }

    /// Sends a host a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, host: usize, name: &str) {
        if let Some(server) = &self.hosts[host].server {
            server.signal(name);
        }
    }

    /// Cuts the links between a host and etcd, or joins them: while they are cut, no byte gets through and no connection ends.
    pub(crate) fn cut(&self, host: usize, cut: bool) {
        match self.etcd.network() {
            Some(network) => (0..self.etcd.members()).for_each(|member| network.cut(member, link_of(host), cut)),
            None => self.hosts[host].cut.store(cut, SeqCst),
        }
    }
}

/// The link of each member to a host. The first one is that of the test.
pub(crate) fn link_of(host: usize) -> usize {
    host + 1
}

/// How often a proxy looks whether it is cut.
const LOOK: Duration = Duration::from_millis(20);

/// Begins to pass connections on to this address. Returns the address to connect to.
fn proxy(to: &str, cut: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound").to_string();
    let to = to.to_owned();
    thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&to) else { continue };
            let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor is free");
            for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
                let cut = Arc::clone(&cut);
                thread::spawn(move || pass(from, to, &cut));
            }
        }
    });
    address
}

/// Passes bytes on until one side ends.
fn pass(mut from: TcpStream, mut to: TcpStream, cut: &AtomicBool) {
    let mut buffer = vec![0; 64 << 10];
    from.set_read_timeout(Some(LOOK)).expect("it is not zero");
    let _ = to.set_nodelay(true);
    loop {
        if cut.load(SeqCst) {
            thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                while cut.load(SeqCst) {
                    thread::sleep(LOOK);
                }
                if to.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
