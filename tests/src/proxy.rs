//! Reverse proxies in front of a server, with the configurations of docs/how-to/reverse-proxy.md.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::DEADLINE;
use crate::process::Running;

/// A reverse proxy that listens. It is killed when it is dropped.
pub struct Proxy {
    process: Running,
    address: String,
    _folder: TempDir,
}

/// How a kind of proxy is started.
struct Kind {
    name: &'static str,
    program: &'static str,
    /// The Debian package.
    package: &'static str,
    /// The address of the proxy in the documented configuration.
    listens: &'static str,
    /// The whole configuration, in which `FOLDER` and `ADDRESS` are replaced, and `BLOCK` by the documented one.
    configuration: &'static str,
    /// The arguments, in which `FOLDER` and `ADDRESS` are replaced.
    arguments: &'static [&'static str],
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "nginx",
        program: "nginx",
        package: "nginx-light",
        listens: "listen 80;",
        // One process, which ends with the test. gzip is on in Debian's own configuration.
        configuration: "daemon off; master_process off; pid FOLDER/pid; error_log stderr; events {}\n\
            http { access_log off; gzip on; gzip_types *; gzip_proxied any; client_body_temp_path FOLDER/1;\n\
            proxy_temp_path FOLDER/2; fastcgi_temp_path FOLDER/3; uwsgi_temp_path FOLDER/4; scgi_temp_path FOLDER/5;\n\
            proxy_cache_path FOLDER/cache keys_zone=vkog:1m;\nBLOCK}\n",
        arguments: &["-c", "FOLDER/proxy", "-p", "FOLDER", "-e", "stderr"],
    },
    Kind {
        name: "apache",
        program: "apache2",
        package: "apache2",
        listens: "<VirtualHost *:80>",
        configuration: "ServerRoot FOLDER\nPidFile FOLDER/pid\nErrorLog /dev/stderr\nListen ADDRESS\nServerName localhost\n\
            DefaultRuntimeDir FOLDER\nMutex file:FOLDER\n\
            LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so\n\
            LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n\
            LoadModule filter_module /usr/lib/apache2/modules/mod_filter.so\n\
            LoadModule env_module /usr/lib/apache2/modules/mod_env.so\n\
            LoadModule deflate_module /usr/lib/apache2/modules/mod_deflate.so\n\
            LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so\n\
            LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so\n\
            <IfModule unixd_module>\nUser www-data\nGroup www-data\n</IfModule>\n\
            AddOutputFilterByType DEFLATE text/html text/plain application/json\nBLOCK",
        arguments: &["-X", "-f", "FOLDER/proxy"],
    },
    Kind {
        name: "haproxy",
        program: "haproxy",
        package: "haproxy",
        listens: "bind :80",
        configuration: "BLOCK",
        arguments: &["-db", "-f", "FOLDER/proxy"],
    },
    Kind {
        name: "caddyfile",
        program: "caddy",
        package: "caddy",
        listens: "vkog.example {",
        configuration: "{\n\tadmin off\n}\nBLOCK",
        arguments: &["run", "--config", "FOLDER/proxy", "--adapter", "caddyfile"],
    },
    Kind {
        name: "vcl",
        program: "varnishd",
        package: "varnish",
        listens: "vcl 4.1;",
        configuration: "BLOCK",
        arguments: &["-F", "-j", "none", "-n", "FOLDER/run", "-a", "ADDRESS", "-f", "FOLDER/proxy", "-s", "malloc,32m"],
    },
    Kind {
        name: "squid",
        program: "squid",
        package: "squid",
        listens: "http_port 80 ",
        configuration: "pid_filename FOLDER/pid\ncache_log stdio:/dev/stderr\naccess_log none\ncoredump_dir FOLDER\n\
            visible_hostname proxy\npinger_enable off\nshutdown_lifetime 0 seconds\nBLOCK",
        arguments: &["-N", "-f", "FOLDER/proxy"],
    },
];

impl Proxy {
    /// Starts the proxy of this name (the language of its block in the document) in front of an address; returns none, and
    /// prints a line, where it is not installed.
    #[track_caller]
    pub fn start(name: &str, block: &str, upstream: &str) -> Option<Self> {
        let kind = KINDS.iter().find(|kind| kind.name == name).unwrap_or_else(|| panic!("no proxy {name}"));
        let Some(program) = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
            .map(|folder| Path::new(folder).join(kind.program))
            .into_iter()
            .find(|program| program.exists())
        else {
            eprintln!("skipped: {} is not installed (apt-get install {})", kind.program, kind.package);
            return None;
        };
        // The port may be taken by another process before the proxy listens.
        for _ in 0..3 {
            if let Some(proxy) = Self::try_start(kind, &program, block, upstream) {
                return Some(proxy);
            }
        }
        panic!("{name} does not listen");
    }

    fn try_start(kind: &Kind, program: &Path, block: &str, upstream: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("vkog-proxy-").tempdir().expect("a temporary folder can be made");
        open_to_all(folder.path());
        // No server of another test has an address of this network.
        let free = TcpListener::bind("127.77.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a port is free").to_string();
        let (host, port) = address.rsplit_once(':').expect("an address has a port");
        assert!(block.contains(kind.listens), "no {:?} in {block}", kind.listens);
        assert!(block.contains("3110"), "no upstream in {block}");
        let listens = kind.listens.replace("*:80", &address).replace(":80", &address);
        let listens =
            listens.replace("vkog.example", &format!("http://:{port}")).replace(" 80", &format!(" {address}"));
        let listens = if kind.name == "caddyfile" { format!("{listens}\n\tbind {host}") } else { listens };
        let (_, upstream_port) = upstream.rsplit_once(':').expect("an address has a port");
        let block = block.replace(kind.listens, &listens).replace("3110", upstream_port);
        let fill =
            |text: &str| text.replace("FOLDER", &folder.path().display().to_string()).replace("ADDRESS", &address);
        fs::write(folder.path().join("proxy"), fill(kind.configuration).replace("BLOCK", &block)).expect("it is ours");
        let mut command = Command::new(program);
        command.args(kind.arguments.iter().map(|argument| fill(argument))).current_dir(folder.path());
        let process = Running::start(command.env("HOME", folder.path()).env("XDG_DATA_HOME", folder.path()));
        let proxy = Self { process, address, _folder: folder };
        proxy.listens().then_some(proxy)
    }

    /// Waits until the proxy accepts a connection. Returns false if it ended.
    fn listens(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < DEADLINE {
            if TcpStream::connect(&self.address).is_ok() {
                return true;
            }
            let id = self.process.id().to_string();
            let state = Command::new("ps").args(["-o", "stat=", "-p", &id]).stderr(Stdio::null()).output();
            if state.is_ok_and(|output| output.stdout.is_empty() || output.stdout.starts_with(b"Z")) {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        eprintln!("{}: {}{}", self.address, self.process.stdout.text(), self.process.stderr.text());
        false
    }

    /// `ip:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns the output of the proxy so far.
    pub fn log(&self) -> String {
        self.process.stdout.text() + &self.process.stderr.text()
    }
}

/// Lets every user write into a folder: a proxy that root starts changes its user.
fn open_to_all(folder: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("it is ours");
    }
    #[cfg(not(unix))]
    let _ = folder;
}
