//! A server for one test: a free port, a temporary folder, the plugins that the test names.

use std::ffi::{OsStr, OsString};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::artefacts::{artefacts, etcd_plugin};
use crate::certificate::Certificate;
use crate::client::Client;
use crate::process::{Exit, Running};
use crate::windows::{self, on_windows};
use crate::wire::Wire;

/// The HTTP engines, as values of `--http`.
pub const ENGINES: [&str; 2] = ["tiny", "hyper"];

/// Returns the library of the bytes plugin.
pub fn bytes() -> PathBuf {
    artefacts().library("vkog-bytes")
}

/// Returns the library of the conflict plugin.
pub fn conflict() -> PathBuf {
    artefacts().library("vkog-conflict")
}

/// Returns the library of the ttl plugin.
pub fn ttl() -> PathBuf {
    artefacts().library("vkog-ttl")
}

/// Removes the write permission of others from a library or a folder: under a umask of 002 the group can write build products,
/// and the host would refuse it.
pub fn only_ours(path: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = std::fs::metadata(path).expect("it was just made");
        let mode = metadata.permissions().mode() & !0o022;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// The address of the etcd that has the stores of all servers instead of files, as `cargo xtask etcd` sets it.
fn etcd_with_all_stores() -> Option<String> {
    std::env::var("VKOG_ETCD").ok()
}

/// Whether the stores of all servers are in etcd instead of files.
pub fn on_etcd() -> bool {
    etcd_with_all_stores().is_some()
}

/// Copies a library into a plugin folder.
fn put_into(folder: &Path, library: &Path, name: &OsStr) {
    let copy = folder.join(name);
    std::fs::copy(library, &copy).unwrap_or_else(|error| panic!("cannot copy {}: {error}", library.display()));
    only_ours(&copy);
}

/// The setup of a server. It can start several servers, one after the other, with the same store.
#[derive(Clone)]
pub struct Setup {
    folder: Arc<TempDir>,
    plugins: Vec<(PathBuf, OsString)>,
    config: Option<String>,
    store: Option<PathBuf>,
    shared_store: Option<String>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    descriptors: Option<u32>,
    trusted: Option<String>,
    is_http2: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// Creates a setup without plugins and configuration, in a new folder.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("vkog-test-").tempdir().expect("a temporary folder can be made");
        only_ours(folder.path());
        Self {
            folder: Arc::new(folder),
            plugins: Vec::new(),
            config: None,
            store: None,
            shared_store: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            descriptors: None,
            trusted: None,
            is_http2: false,
        }
    }

    /// Creates a setup with one of the [`ENGINES`], or with hyper and clients that use HTTP/2, for `h2`.
    pub fn on(engine: &str) -> Self {
        match engine {
            "h2" => Self { is_http2: true, ..Self::on("hyper") },
            _ => Self::new().env("VKOG_HTTP", engine),
        }
    }

    /// Adds a plugin: copies the library into the plugin folder.
    pub fn load(self, library: impl AsRef<Path>) -> Self {
        let name = library.as_ref().file_name().expect("a library has a name").to_owned();
        self.load_as(library, name)
    }

    /// Adds a plugin under another file name.
    pub fn load_as(mut self, library: impl AsRef<Path>, name: impl Into<OsString>) -> Self {
        self.plugins.push((library.as_ref().to_owned(), name.into()));
        self
    }

    /// Sets the configuration file.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = Some(text.into());
        self
    }

    /// Sets another store file than `store.vkog` in the folder.
    pub fn store(mut self, file: impl Into<PathBuf>) -> Self {
        self.store = Some(file.into());
        self
    }

    /// Sets the URL of a store that several hosts share, instead of a file.
    pub fn shared_store(mut self, url: impl Into<String>) -> Self {
        self.shared_store = Some(url.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Limits the number of file descriptors.
    pub fn descriptors(mut self, count: u32) -> Self {
        self.descriptors = Some(count);
        self
    }

    /// Turns on TLS; clients trust only the authority of this certificate.
    pub fn certificate(mut self, certificate: &Certificate) -> Self {
        certificate.write(self.folder());
        self.trusted = Some(certificate.authority.clone());
        self.args(["--tls-cert", "cert.pem", "--tls-key", "key.pem"])
    }

    /// Returns the temporary folder, which is also the current directory of the server.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the configuration file, also while a server runs.
    pub fn write_config(&self, text: &str) {
        std::fs::write(self.folder().join("vkog.toml"), text).expect("the configuration can be written");
    }

    /// Returns the store file.
    pub fn store_file(&self) -> PathBuf {
        self.store.clone().unwrap_or_else(|| self.folder().join("store.vkog"))
    }

    /// Returns the URL of the store, if it is shared. Each file that would be a store has another prefix in etcd.
    fn store_url(&self) -> Option<String> {
        let of_file = |etcd| format!("etcd://{etcd}/{}", self.store_file().display().to_string().trim_matches('/'));
        self.shared_store.clone().or_else(|| etcd_with_all_stores().map(of_file))
    }

    /// Prepares `vkog` without arguments: in the folder, without `VKOG_` variables of the environment.
    pub fn vkog(&self) -> Command {
        let Some(count) = self.descriptors else { return self.prepared(windows::program(artefacts().vkog())) };
        let mut shell = self.prepared(Command::new("sh"));
        shell.args(["-c", &format!("ulimit -n {count} && exec \"$0\" \"$@\"")]).arg(artefacts().vkog());
        shell
    }

    /// Prepares a shell command that finds `vkog`, in the folder.
    pub fn shell(&self, line: &str) -> Command {
        let programs = artefacts().vkog().parent().expect("a program is in a folder");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path));
        let mut command = self.prepared(Command::new("sh"));
        command.args(["-c", line]).env("PATH", std::env::join_paths(path).expect("no folder of ours has a colon"));
        command
    }

    /// A command that runs in the folder, with no variable of ours from outside.
    pub fn prepared(&self, mut command: Command) -> Command {
        command.current_dir(self.folder());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VKOG_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command.env("RUST_BACKTRACE", "0").envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Creates a folder with copies of the plugins.
    pub fn plugin_folder(&self) -> PathBuf {
        let folder =
            tempfile::Builder::new().prefix("plugins-").tempdir_in(self.folder()).expect("a folder can be made");
        for (library, name) in &self.plugins {
            put_into(folder.path(), library, name);
        }
        only_ours(folder.path());
        folder.keep()
    }

    /// Returns the command that runs the server.
    fn serving(&self) -> Command {
        let mut command = self.vkog();
        command.args(["--listen", "127.0.0.1:0"]);
        match self.store_url() {
            Some(url) => command.args(["--store", &url]),
            None => command.arg("--file").arg(self.store_file()),
        };
        let is_on_etcd = self.shared_store.is_none() && on_etcd();
        if self.plugins.is_empty() && !is_on_etcd {
            command.arg("--no-plugins");
        } else {
            let folder = self.plugin_folder();
            if is_on_etcd {
                let library = etcd_plugin();
                put_into(&folder, &library, library.file_name().expect("a library has a name"));
            }
            command.arg("--plugin-dir").arg(folder);
        }
        if is_on_etcd {
            // On a busy machine, a round of etcd may take longer than the default.
            command.args(["--store-timeout", "30s"]);
        }
        if let Some(text) = &self.config {
            self.write_config(text);
            command.arg("--config").arg(self.folder().join("vkog.toml"));
        }
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            if is_on_etcd && argument == "--fsync" {
                // Only a store in files has it.
                arguments.next();
            } else {
                command.arg(argument);
            }
        }
        command
    }

    /// Starts the server and waits until it listens.
    #[track_caller]
    pub fn start(&self) -> Server {
        Server::serve(self, &mut self.serving())
    }

    /// Starts the server with only these arguments.
    #[track_caller]
    pub fn start_with<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Server {
        Server::serve(self, self.vkog().args(arguments.into_iter().map(Into::into)))
    }

    /// Starts the server with this as its standard error.
    #[track_caller]
    pub fn start_with_stderr(&self, stderr: Stdio) -> Server {
        Server::listen(self, Running::start_with_stderr(&mut self.serving(), stderr))
    }

    /// Starts the server by a given command.
    #[track_caller]
    pub fn start_by(&self, command: &mut Command) -> Server {
        Server::serve(self, command)
    }

    /// Starts the server, which is expected to end.
    #[track_caller]
    pub fn fail(&self) -> Exit {
        Running::start(&mut self.serving()).wait()
    }

    fn scheme(&self) -> &'static str {
        if self.trusted.is_some() { "https://" } else { "http://" }
    }

    fn client(&self, address: &str, process: &Running) -> Client {
        Client::new(&format!("{}{address}", self.scheme()), self.trusted.as_deref(), self.is_http2, &process.stderr)
    }

    /// Runs `vkog` with these arguments until it ends.
    #[track_caller]
    pub fn run<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Exit {
        Running::start(self.vkog().args(arguments.into_iter().map(Into::into))).wait()
    }
}

/// A server that listens. Requests go through its [`Client`], to which it dereferences. It is killed when it is
/// dropped.
pub struct Server {
    process: Running,
    address: String,
    /// Its standard output at the start.
    announced: String,
    client: Client,
    setup: Setup,
}

impl Deref for Server {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Server {
    #[track_caller]
    fn serve(setup: &Setup, command: &mut Command) -> Self {
        Self::listen(setup, Running::start(command))
    }

    #[track_caller]
    fn listen(setup: &Setup, process: Running) -> Self {
        if !process.stdout.wait_for(|text| text.contains('\n')) {
            panic!("it does not listen: {}", process.wait());
        }
        let announced = process.stdout.text();
        let before = format!("listening on {}", setup.scheme());
        let address = announced.strip_prefix(&before).and_then(|rest| rest.split_once('\n'));
        let (address, _) = address.unwrap_or_else(|| panic!("it says {announced:?}: {}", process.stderr.text()));
        let (address, client) = (address.to_owned(), setup.client(address, &process));
        Self { process, address, announced, client, setup: setup.clone() }
    }

    /// Returns the address, `ip:port`: the first one if there are several.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// A number in the server's `/proc/PID/status`, by its name: `VmRSS` and `VmHWM` (the highest so far) are the
    /// resident memory in KiB, `Threads` is a count.
    #[cfg(target_os = "linux")]
    #[track_caller]
    pub fn proc_status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("the server runs");
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let value = value.unwrap_or_else(|| panic!("no {name} in {status}"));
        value.trim().trim_end_matches(" kB").parse().expect("it is a number")
    }

    /// The process id that the server itself knows: Wine's, for a program that Wine runs.
    pub fn own_id(&self) -> String {
        if !on_windows() {
            return self.id().to_string();
        }
        let mut lock = self.setup.store_file().into_os_string();
        lock.push(".lock");
        std::fs::read_to_string(lock).expect("the server has its store locked").trim().to_owned()
    }

    /// Creates another client with its own connections.
    pub fn client(&self) -> Client {
        self.setup.client(&self.address, &self.process)
    }

    /// Creates a client that reaches the server through a proxy at this address.
    pub fn client_through(&self, address: &str) -> Client {
        Client::new(&format!("http://{address}"), None, false, &self.process.stderr)
    }

    /// Opens a connection for raw bytes.
    #[track_caller]
    pub fn wire(&self) -> Wire {
        Wire::connect(&self.address, &self.process.stderr)
    }

    /// The same over a connection that the test has made.
    #[track_caller]
    pub fn wire_over(&self, stream: std::net::TcpStream) -> Wire {
        Wire::over(stream, &self.process.stderr)
    }

    /// Opens connections that the server serves: each has received a response.
    #[track_caller]
    pub fn wires(&self, count: usize) -> Vec<Wire> {
        let served = || {
            let mut wire = self.wire();
            wire.request("OPTIONS", "/k/any", b"");
            wire
        };
        std::iter::repeat_with(served).take(count).collect()
    }

    /// Waits until it is ready for requests.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        let deadline = std::time::Instant::now() + crate::DEADLINE;
        while self.path("GET", "/readyz").send().status != 200 {
            assert!(std::time::Instant::now() < deadline, "it is not ready:\n{}", self.log());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Returns the log so far.
    pub fn log(&self) -> String {
        self.process.stderr.text()
    }

    /// Waits for a line of the log that contains all of the words.
    #[track_caller]
    pub fn logs(&self, words: &[&str]) {
        let found = |log: &str| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(self.process.stderr.wait_for(found), "no line with {words:?} in the log:\n{}", self.log());
    }

    /// Waits until a condition holds for the log. Returns whether it does.
    pub fn logged(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.process.stderr.wait_for(wanted)
    }

    /// Asserts that no line of the log contains all of the words so far.
    #[track_caller]
    pub fn logs_no(&self, words: &[&str]) {
        let found = |line: &str| words.iter().all(|word| line.contains(word));
        assert!(!self.log().lines().any(found), "a line with {words:?} in the log:\n{}", self.log());
    }

    /// Sends the server a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Asks the server to stop as a service manager does, and waits until it is gone. It may have said no more on
    /// standard output than where it listens.
    #[track_caller]
    pub fn stop(self) -> Exit {
        self.stop_with("TERM")
    }

    /// The same by another signal.
    #[track_caller]
    pub fn stop_with(self, signal: &str) -> Exit {
        self.signal(signal);
        self.wait()
    }

    /// Waits until the server is gone, after a signal.
    #[track_caller]
    pub fn wait(self) -> Exit {
        let Self { process, announced, .. } = self;
        let exit = process.wait();
        assert_eq!(exit.stdout, announced, "standard output of {exit}");
        exit
    }
}
