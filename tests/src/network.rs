//! A network that tests can cut: each of its nodes has a network namespace. While a link is cut, its packets are lost, and no
//! connection over it ends.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use crate::process::Running;

/// The nodes of a network. Each has one link to the other nodes, and several to the namespace of the test, each with another address.
pub struct Network {
    /// For each node, a process that only holds its namespace.
    nodes: Vec<Running>,
}

impl Network {
    /// Runs a test on a thread whose network has nothing but these nodes, each with a number of links to it. The test gets `None`
    /// if the system makes no network namespaces: they need Linux, root, and the Debian packages iproute2 and util-linux.
    pub fn run<R: Send>(nodes: usize, links: usize, test: impl FnOnce(Option<Self>) -> R + Send) -> R {
        thread::scope(|scope| {
            let run = || {
                let own = namespace().filter(|own| enter(&path(own)).is_ok());
                test(own.as_ref().and_then(|_| Self::create(nodes, links)))
            };
            scope.spawn(run).join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Creates the nodes and the links in the namespace of this thread.
    fn create(nodes: usize, links: usize) -> Option<Self> {
        let here = |arguments: String| ip(Command::new("ip"), &arguments);
        here("link set lo up".to_owned())?;
        here("link add peers type bridge".to_owned())?;
        here("link set peers up".to_owned())?;
        let mut network = Self { nodes: Vec::new() };
        for node in 0..nodes {
            network.nodes.push(namespace()?);
            let id = network.nodes[node].id();
            let there = |arguments: String| ip(network.command(node, "ip"), &arguments);
            there("link set lo up".to_owned())?;
            for link in 0..links {
                here(format!("link add n{node}l{link} type veth peer name l{link} netns {id}"))?;
                here(format!("address add 10.77.{link}.{}/30 dev n{node}l{link}", 4 * node + 1))?;
                here(format!("link set n{node}l{link} up"))?;
                there(format!("address add {}/30 dev l{link}", network.address(node, link)))?;
                there(format!("link set l{link} up"))?;
            }
            here(format!("link add peer{node} type veth peer name peers netns {id}"))?;
            here(format!("link set peer{node} master peers up"))?;
            there(format!("address add {}/24 dev peers", network.peer_address(node)))?;
            there("link set peers up".to_owned())?;
        }
        Some(network)
    }

    /// The address of a node on one of its links.
    pub fn address(&self, node: usize, link: usize) -> String {
        format!("10.77.{link}.{}", 4 * node + 2)
    }

    /// The address of a node for the other nodes.
    pub fn peer_address(&self, node: usize) -> String {
        format!("10.78.0.{}", node + 1)
    }

    /// Prepares a program in the namespace of a node.
    pub fn command(&self, node: usize, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", path(&self.nodes[node]).display())).arg(program);
        command
    }

    /// Cuts a link of a node to the test, or joins it again.
    #[track_caller]
    pub fn cut(&self, node: usize, link: usize, cut: bool) {
        let done = ip(self.command(node, "ip"), &format!("link set l{link} {}", state(cut)));
        done.expect("a link can be cut");
    }

    /// Cuts the links of a node to the other nodes, or joins them again.
    #[track_caller]
    pub fn cut_peers(&self, node: usize, cut: bool) {
        ip(Command::new("ip"), &format!("link set peer{node} {}", state(cut))).expect("a link can be cut");
    }
}

fn state(cut: bool) -> &'static str {
    if cut { "down" } else { "up" }
}

/// Starts a process in a new network namespace. It ends with this process, which holds its standard input.
fn namespace() -> Option<Running> {
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "echo && exec cat"]);
    if Command::new("unshare").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return None;
    }
    let holder = Running::start_with_stdin(&mut command, Stdio::piped());
    holder.stdout.wait_for(|text| text.contains('\n')).then_some(holder)
}

fn path(holder: &Running) -> PathBuf {
    format!("/proc/{}/ns/net", holder.id()).into()
}

/// Runs `ip`. Returns none if it fails.
fn ip(mut command: Command, arguments: &str) -> Option<()> {
    let output = command.args(arguments.split(' ')).output().ok()?;
    if !output.status.success() {
        eprintln!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    output.status.success().then_some(())
}

/// Moves this thread into a network namespace.
#[cfg(target_os = "linux")]
fn enter(namespace: &Path) -> std::io::Result<()> {
    use std::os::fd::AsFd;

    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

    let file = std::fs::File::open(namespace)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(not(target_os = "linux"))]
fn enter(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
