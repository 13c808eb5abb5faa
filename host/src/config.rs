//! The configuration from flags, environment variables and a file. A flag takes precedence over a variable, which takes
//! precedence over the file.

mod auth;
mod cors;
mod error;
mod file;
mod listen;
mod origin;
mod pins;
mod store;
mod text;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, Command};
use serde::{Deserialize, Deserializer};

use crate::http::{ClientFiles, TlsFiles, default_limit};
use vkog_plugin_host::Source;
use vkog_store::{Fsync, VALUE_MAX};

pub use auth::{Auth, Permission, Proof, Token, interned};
pub use cors::{CorsOrigin, NotAnOrigin};
pub use error::{AuthError, ConfigError, Conflict, CorsError, FileError, Mistake, ProxyError, ValueError};
pub use file::File;
pub use listen::{Host, Listen, Scheme, SocketMode, TcpAddress};
pub use origin::{AllowedHost, NotAHost, Proxy, ProxyHeader, forwarded_parameter, split_port};
pub use pins::{PinChange, PinError};
pub use store::{Reads, SharedStoreConfig, StoreUrl};
use text::{duration, duration_from_text, from_text, fsync, fsync_from_text, timeout, timeout_from_text};

/// The default file of the store.
pub const DEFAULT_FILE: &str = "local.vkog";

/// The minimum of the maximum size of a batch, in bytes. With a larger `max-value`, that is the maximum.
pub const BATCH_MIN: u64 = 16 << 20;

/// The default time within which a route of a plugin must respond.
pub const ROUTE_TIMEOUT: Duration = Duration::from_secs(30);

/// A number of bytes: `268435456`, `256MiB`, `256MB`.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) => Ok(Self(size.as_u64())),
            Err(_) => Err(ValueError::Size),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of bytes, or a text such as \"256MiB\"")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The HTTP engine.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Http {
    /// hyper, on every address: tiny_http has limits that no code around it can lift (docs/reference/http.md).
    Auto,
    /// tiny_http.
    Tiny,
    /// hyper.
    Hyper,
}

/// How a log line is written.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// The options of the server, with the same names on the command line, in the environment and in the file. `None` is unset.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// Open the store in this file [default: local.vkog]
    #[arg(short, long, value_name = "FILE", env = "VKOG_FILE", hide_env = true)]
    pub file: Option<PathBuf>,

    /// Share the store at URL, such as etcd://10.0.0.1/vkog
    // The help has this text as it is.
    #[allow(rustdoc::bare_urls)]
    #[arg(long, value_name = "URL", env = "VKOG_STORE", hide_env = true)]
    #[serde(deserialize_with = "from_text")]
    pub store: Option<StoreUrl>,

    /// Select linearizable or local reads [default: linearizable]
    #[arg(long, value_name = "MODE", env = "VKOG_READS", hide_env = true, hide_possible_values = true)]
    pub reads: Option<Reads>,

    /// Limit the age of the data of local reads [default: 5s]
    #[arg(long, value_name = "DURATION", env = "VKOG_MAX_LAG", hide_env = true, value_parser = timeout)]
    #[serde(deserialize_with = "timeout_from_text")]
    pub max_lag: Option<Duration>,

    /// Limit the time until a shared store responds [default: 2s]
    #[arg(long, value_name = "DURATION", env = "VKOG_STORE_TIMEOUT", hide_env = true, value_parser = timeout)]
    #[serde(deserialize_with = "timeout_from_text")]
    pub store_timeout: Option<Duration>,

    /// Limit the size of the store (bytes plugin) [default: 128MiB]
    #[arg(short = 's', long, value_name = "SIZE", env = "VKOG_MAX_SIZE", hide_env = true)]
    pub max_size: Option<Size>,

    /// Load the plugins in DIR [default: plugins beside the program]
    #[arg(long, value_name = "DIR", env = "VKOG_PLUGIN_DIR", hide_env = true)]
    pub plugin_dir: Option<PathBuf>,

    /// Run without plugins; overrides --plugin-dir
    #[arg(long, env = "VKOG_NO_PLUGINS", hide_env = true)]
    pub no_plugins: bool,

    /// Listen on host:port or unix:PATH [default: 127.0.0.1:3110]
    #[arg(long, value_name = "ADDR,...", env = "VKOG_LISTEN", hide_env = true, value_delimiter = ',')]
    #[serde(deserialize_with = "listen::one_or_more")]
    pub listen: Option<Vec<Listen>>,

    /// Set the mode of Unix sockets (octal) [default: by the umask]
    #[arg(long, value_name = "MODE", env = "VKOG_SOCKET_MODE", hide_env = true)]
    #[serde(deserialize_with = "from_text")]
    pub socket_mode: Option<SocketMode>,

    /// Let every client read and write without a token
    #[arg(long, env = "VKOG_OPEN", hide_env = true)]
    pub open: bool,

    /// Accept these host names without a token [default: localhost]
    #[arg(long, value_name = "NAME,...", env = "VKOG_ALLOWED_HOSTS", hide_env = true, value_delimiter = ',')]
    pub allowed_hosts: Option<Vec<AllowedHost>>,

    /// Let web pages of these origins use this server
    // The help has this text as it is.
    #[allow(rustdoc::bare_urls)]
    #[arg(long, value_name = "ORIGIN,...", env = "VKOG_CORS_ORIGINS", hide_env = true, value_delimiter = ',')]
    // In the file it is the table [cors].
    #[serde(skip)]
    pub cors_origins: Option<Vec<CorsOrigin>>,

    /// Select the HTTP engine; auto selects hyper [default: auto]
    #[arg(long, value_name = "auto|tiny|hyper", env = "VKOG_HTTP", hide_env = true, hide_possible_values = true)]
    pub http: Option<Http>,

    /// Serve HTTPS with this certificate and its chain (PEM)
    #[arg(long, value_name = "FILE", env = "VKOG_TLS_CERT", hide_env = true)]
    pub tls_cert: Option<PathBuf>,

    /// Read the private key of the certificate from this file (PEM)
    #[arg(long, value_name = "FILE", env = "VKOG_TLS_KEY", hide_env = true)]
    pub tls_key: Option<PathBuf>,

    /// Accept client certificates of these authorities (PEM)
    #[arg(long, value_name = "FILE", env = "VKOG_TLS_CLIENT_CA", hide_env = true)]
    pub tls_client_ca: Option<PathBuf>,

    /// Reject the client certificates that these lists revoke (PEM)
    #[arg(long, value_name = "FILE", env = "VKOG_TLS_CLIENT_CRL", hide_env = true)]
    pub tls_client_crl: Option<PathBuf>,

    /// Client certificates: required or optional [default: required]
    #[arg(long, value_name = "MODE", env = "VKOG_TLS_CLIENT_AUTH", hide_env = true, hide_possible_values = true)]
    pub tls_client_auth: Option<ClientAuth>,

    /// Sync the log always, each DURATION or never [default: always]
    #[arg(long, value_name = "always|DURATION|never", env = "VKOG_FSYNC", hide_env = true, value_parser = fsync)]
    #[serde(deserialize_with = "fsync_from_text")]
    pub fsync: Option<Fsync>,

    /// Write a snapshot when the log exceeds this size and that of the last snapshot [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "VKOG_LOG_MIN", hide_env = true)]
    pub log_min: Option<Size>,

    /// Limit the size of a value [default: the value of --max-size]
    #[arg(long, value_name = "SIZE", env = "VKOG_MAX_VALUE", hide_env = true)]
    pub max_value: Option<Size>,

    /// Limit the memory of bodies [default: 1/8 of available memory]
    #[arg(long, value_name = "SIZE", env = "VKOG_MEMORY_BUDGET", hide_env = true)]
    pub memory_budget: Option<Size>,

    /// Limit the time until a route responds [default: 30s]
    #[arg(long, value_name = "DURATION", env = "VKOG_ROUTE_TIMEOUT", hide_env = true, value_parser = timeout)]
    #[serde(deserialize_with = "timeout_from_text")]
    pub route_timeout: Option<Duration>,

    /// Keep serving, but not ready, before a stop [default: 0s]
    #[arg(long, value_name = "DURATION", env = "VKOG_DRAIN_TIME", hide_env = true, value_parser = duration)]
    #[serde(deserialize_with = "duration_from_text")]
    pub drain_time: Option<Duration>,

    /// Log every request
    #[arg(long, env = "VKOG_LOG_REQUESTS", hide_env = true)]
    pub log_requests: bool,

    /// Limit the memory of the change history [default: 64MiB]
    #[arg(long, value_name = "SIZE", env = "VKOG_WATCH_HISTORY", hide_env = true)]
    pub watch_history: Option<Size>,

    /// Log as text or json [default: text on a terminal, else json]
    #[arg(long, value_name = "text|json", env = "VKOG_LOG_FORMAT", hide_env = true, hide_possible_values = true)]
    pub log_format: Option<LogFormat>,
}

/// Ignores the variables that are set to the empty text, as if they were not set.
pub fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| {
        let value = arg.get_env().and_then(std::env::var_os);
        value.is_some_and(|value| value.is_empty())
    };
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(None::<&'static str>) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The store's file, if it is not a shared one.
    pub file: PathBuf,
    /// The store that several servers share, if it is one.
    pub shared: Option<SharedStoreConfig>,
    /// The maximum total size of keys and values, in bytes.
    pub max_size: u64,
    /// The plugin folder and the settings of the plugins.
    pub plugins: Source,
    /// Whether the server runs without plugins; overrides the plugin tables.
    pub no_plugins: bool,
    /// Authentication and authorization of clients.
    pub auth: Auth,
    /// Where to listen. Empty: at the sockets of the service manager or, if it passes none, at the default address.
    pub listen: Vec<Listen>,
    /// The permission bits of the files of Unix sockets; `None` leaves them to the umask.
    pub socket_mode: Option<SocketMode>,
    /// The HTTP engine.
    pub http: Http,
    /// The certificate and the key of TLS, if it is on.
    pub tls: Option<TlsFiles>,
    /// The options of the store in a file.
    pub store: vkog_store::Options,
    /// The maximum size of a value, in bytes.
    pub max_value: u64,
    /// The maximum memory for request bodies in flight, in bytes.
    pub memory_budget: u64,
    /// The time within which a route of a plugin must respond.
    pub route_timeout: Duration,
    /// The time for which the server serves after the signal to stop, while it is not ready.
    pub drain_time: Duration,
    /// Whether each request is logged.
    pub log_requests: bool,
    /// The format of log lines; `None` is text on a terminal, else JSON.
    pub log_format: Option<LogFormat>,
}

impl Config {
    /// Returns the plugins that a server loads. With `no-plugins` there are none, and their tables are ignored.
    pub fn served_plugins(&self) -> Source {
        if self.no_plugins { Source::default() } else { self.plugins.clone() }
    }

    /// Merges the options of the command line and of the environment with those of the file.
    ///
    /// # Errors
    ///
    /// Options contradict each other, or a path or a size cannot be used.
    pub fn new(given: Options, file: File) -> Result<Self, ConfigError> {
        Self::merge(given, file, true)
    }

    /// Merges options for a command that neither loads plugins nor opens the store: the plugin folder need not exist.
    ///
    /// # Errors
    ///
    /// Those of [`Config::new`].
    pub fn without_plugins(given: Options, file: File) -> Result<Self, ConfigError> {
        Self::merge(given, file, false)
    }

    fn merge(given: Options, file: File, loads_plugins: bool) -> Result<Self, ConfigError> {
        let File { options: written, settings, order, auth, proxy } = file;
        let shared = shared_store(&given, &written)?;
        let max_size = given.max_size.or(written.max_size).map_or(128 << 20, |size| size.0);
        if max_size == 0 {
            return Err(conflict("--max-size", Conflict::Zero));
        }
        let no_plugins = given.no_plugins || given.plugin_dir.is_none() && written.no_plugins;
        if shared.is_some() && no_plugins && loads_plugins {
            return Err(conflict("--store", Conflict::StoreWithoutPlugins));
        }
        let folder = match given.plugin_dir.or(written.plugin_dir) {
            _ if no_plugins || !loads_plugins => None,
            Some(path) => match path.metadata() {
                Ok(found) if found.is_dir() => Some(path),
                Ok(_) => return Err(ConfigError::PluginFolderIsFile(path)),
                Err(source) => return Err(ConfigError::NoPluginFolder { path, source }),
            },
            None => default_plugin_folder().filter(|folder| folder.is_dir()),
        };
        let listen = given.listen.or(written.listen).unwrap_or_default();
        let socket_mode = given.socket_mode.or(written.socket_mode);
        if socket_mode.is_some() && !listen.iter().any(|listen| matches!(listen, Listen::Unix(_))) {
            return Err(conflict("--socket-mode", Conflict::NoSocketFile));
        }
        let http = given.http.or(written.http).unwrap_or(Http::Auto);
        let tls = tls(given.tls_cert.or(written.tls_cert), given.tls_key.or(written.tls_key), http, &listen)?;
        let client_auth = given.tls_client_auth.or(written.tls_client_auth);
        let (ca, crl) =
            (given.tls_client_ca.or(written.tls_client_ca), given.tls_client_crl.or(written.tls_client_crl));
        let tls = with_clients(tls, ca, crl, client_auth)?;
        if auth.has_certificates() && tls.as_ref().is_none_or(|tls| tls.clients.is_none()) {
            return Err(conflict("certificate in [[access.tokens]]", Conflict::NoClientCa));
        }
        let auth = Auth {
            open: given.open || written.open,
            allowed_hosts: given.allowed_hosts.or(written.allowed_hosts).unwrap_or_default(),
            cors: given.cors_origins.or(written.cors_origins).unwrap_or_default(),
            proxy,
            ..auth
        };
        let max_value = match given.max_value.or(written.max_value) {
            Some(Size(0)) => return Err(conflict("--max-value", Conflict::Zero)),
            Some(Size(bytes)) if bytes > VALUE_MAX => {
                return Err(conflict("--max-value", Conflict::ValueMax { max: VALUE_MAX }));
            }
            Some(Size(bytes)) => bytes,
            None => max_size.min(VALUE_MAX),
        };
        let defaults = vkog_store::Options::default();
        let store = vkog_store::Options {
            fsync: given.fsync.or(written.fsync).unwrap_or(defaults.fsync),
            log_min: given.log_min.or(written.log_min).map_or(defaults.log_min, |size| size.0),
            history_max: given.watch_history.or(written.watch_history).map_or(defaults.history_max, |size| size.0),
            ..defaults
        };
        let memory_budget = memory_budget(given.memory_budget.or(written.memory_budget), max_value)?;
        Ok(Self {
            file: given.file.or(written.file).unwrap_or_else(|| DEFAULT_FILE.into()),
            shared,
            max_size,
            plugins: Source { folder, settings, order },
            no_plugins,
            auth,
            listen,
            socket_mode,
            http,
            tls,
            store,
            max_value,
            memory_budget,
            route_timeout: given.route_timeout.or(written.route_timeout).unwrap_or(ROUTE_TIMEOUT),
            drain_time: given.drain_time.or(written.drain_time).unwrap_or_default(),
            log_requests: given.log_requests || written.log_requests,
            log_format: given.log_format.or(written.log_format),
        })
    }
}

/// Returns the shared store, if the store is one. A shared store on the command line takes precedence over a file in the
/// configuration file, but not the other way round: units and images set `VKOG_FILE`, and each server would open its own file.
fn shared_store(given: &Options, written: &Options) -> Result<Option<SharedStoreConfig>, ConfigError> {
    let url = given.store.as_ref().or(written.store.as_ref());
    let names_file = given.file.is_some() || given.store.is_none() && written.file.is_some();
    if url.is_some() && names_file {
        return Err(conflict("--store", Conflict::TwoStores));
    }
    let reads = given.reads.or(written.reads);
    let max_lag = given.max_lag.or(written.max_lag);
    let timeout = given.store_timeout.or(written.store_timeout);
    if let Some(url) = url.cloned() {
        let only_files = [("--fsync", given.fsync.is_some()), ("--log-min", given.log_min.is_some())];
        return match only_files.into_iter().find(|(_, is_set)| *is_set) {
            Some((option, _)) => Err(conflict(option, Conflict::OnlyForFiles)),
            None => Ok(Some(SharedStoreConfig::new(url, reads, max_lag, timeout))),
        };
    }
    let only_shared = [
        ("--reads", given.reads.is_some()),
        ("--max-lag", given.max_lag.is_some()),
        ("--store-timeout", given.store_timeout.is_some()),
    ];
    match only_shared.into_iter().find(|(_, is_set)| *is_set) {
        Some((option, _)) => Err(conflict(option, Conflict::OnlyForSharedStores)),
        None => Ok(None),
    }
}

/// Returns the memory budget, which is at least the maximum size of a body.
fn memory_budget(given: Option<Size>, max_value: u64) -> Result<u64, ConfigError> {
    let least = max_value.max(BATCH_MIN);
    match given {
        None => Ok(default_limit().max(least)),
        Some(Size(bytes)) if bytes >= least => Ok(bytes),
        Some(_) => Err(conflict("--memory-budget", Conflict::BudgetMin { least })),
    }
}

/// Returns the files of TLS, if it is on.
fn tls(
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    http: Http,
    listen: &[Listen],
) -> Result<Option<TlsFiles>, ConfigError> {
    let wants_tls = |listen: &Listen| matches!(listen, Listen::Tcp(tcp) if tcp.scheme == Some(Scheme::Https));
    match (certificate, key) {
        (None, None) if listen.iter().any(wants_tls) => Err(conflict("--listen", Conflict::HttpsWithoutCertificate)),
        (None, None) => Ok(None),
        (Some(_), None) => Err(conflict("--tls-cert", Conflict::NoKey)),
        (None, Some(_)) => Err(conflict("--tls-key", Conflict::NoCertificate)),
        _ if http == Http::Tiny => Err(conflict("--tls-cert", Conflict::TinyTls)),
        _ if !listen.is_empty() && !listen.iter().any(Listen::may_speak_tls) => {
            Err(conflict("--tls-cert", Conflict::UnusedTls))
        }
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, clients: None })),
    }
}

/// Adds the authorities of client certificates to the files of TLS.
fn with_clients(
    tls: Option<TlsFiles>,
    authorities: Option<PathBuf>,
    revoked: Option<PathBuf>,
    auth: Option<ClientAuth>,
) -> Result<Option<TlsFiles>, ConfigError> {
    let Some(authorities) = authorities else {
        return match (revoked, auth) {
            (Some(_), _) => Err(conflict("--tls-client-crl", Conflict::NoClientCa)),
            (None, Some(_)) => Err(conflict("--tls-client-auth", Conflict::NoClientCa)),
            (None, None) => Ok(tls),
        };
    };
    let Some(tls) = tls else { return Err(conflict("--tls-client-ca", Conflict::ClientCaWithoutTls)) };
    let is_required = auth != Some(ClientAuth::Optional);
    Ok(Some(TlsFiles { clients: Some(ClientFiles { authorities, revoked, is_required }), ..tls }))
}

/// Whether a TLS connection needs a client certificate.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// A connection without one is rejected.
    Required,
    /// A connection without one is accepted; its requests need tokens.
    Optional,
}

fn conflict(option: &'static str, conflict: Conflict) -> ConfigError {
    ConfigError::Conflict { option, conflict }
}

/// Returns the plugin folder of a server with these options: the given one, that of the file, or `plugins` beside the executable.
/// It need not exist. `None` if the system does not report where the executable is.
pub fn plugin_folder(given: Option<PathBuf>, file: &File) -> Option<PathBuf> {
    given.or_else(|| file.options.plugin_dir.clone()).or_else(default_plugin_folder)
}

fn default_plugin_folder() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.join("plugins"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_with_common_units() {
        for (text, bytes) in
            [("268435456", 268_435_456), ("256MiB", 268_435_456), ("256MB", 256_000_000), ("1 GiB", 1 << 30)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "much", "-1", "12 apples"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_flag_beats_the_file() {
        let file =
            File::parse("max-size = \"1MiB\"\nfile = \"a\"\nlisten = \"127.0.0.1:1\"\nmax-value = 7\nhttp = \"hyper\"")
                .expect("valid");
        let given = Options { max_size: Some(Size(5)), ..Options::default() };
        let config = Config::new(given, file).expect("consistent");
        assert_eq!((config.max_size, config.file, config.max_value), (5, PathBuf::from("a"), 7));
        let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
        assert_eq!((listen, config.http), (vec!["127.0.0.1:1".to_owned()], Http::Hyper));
    }

    #[test]
    fn the_store_is_a_file_or_shared_and_each_has_its_own_options() {
        let config = |given: &[&str], written: &str| {
            let command = <Options as clap::Args>::augment_args(Command::new("vkog"));
            let matches = command.try_get_matches_from([&["vkog"], given].concat()).expect("valid");
            let given = <Options as clap::FromArgMatches>::from_arg_matches(&matches).expect("valid");
            Config::new(given, File::parse(written).expect("valid"))
        };
        let in_file = "store = \"etcd://b\"\nreads = \"local\"\nmax-lag = \"1s\"";
        for (given, written, url) in [
            (&["--store", "etcd://a"][..], "", Some("etcd://a")),
            (&[], in_file, Some("etcd://b")),
            (&["--store", "etcd://a"], "file = \"f\"\nfsync = \"never\"", Some("etcd://a")),
            (&[], "", None),
        ] {
            let shared = config(given, written).expect(written).shared;
            assert_eq!(shared.map(|shared| shared.url.to_string()).as_deref(), url, "{given:?} {written}");
        }
        let shared = config(&["--store", "etcd://a"], "").expect("consistent").shared.expect("it is one");
        assert_eq!((shared.reads, shared.max_lag.as_secs(), shared.timeout.as_secs()), (Reads::Linearizable, 5, 2));
        let shared = config(&["--store-timeout", "3s"], in_file).expect("consistent").shared.expect("it is one");
        assert_eq!((shared.reads, shared.max_lag.as_secs(), shared.timeout.as_secs()), (Reads::Local, 1, 3));
        for (given, written, words) in [
            (
                &["--store", "etcd://a", "-f", "f"][..],
                "",
                "cannot use --store: --file or VKOG_FILE names another store",
            ),
            (&[], "store = \"etcd://a\"\nfile = \"f\"", "cannot use --store: --file or VKOG_FILE names another store"),
            (&["-f", "f"], in_file, "cannot use --store: --file or VKOG_FILE names another store"),
            (
                &["--store", "etcd://a", "--fsync", "never"],
                "",
                "cannot use --fsync: --store has no log on this machine",
            ),
            (&["--store", "etcd://a", "--log-min", "1MiB"], "", "cannot use --log-min: --store has no log"),
            (&["--store", "etcd://a", "--no-plugins"], "", "cannot use --store: a plugin connects to it"),
            (&["--reads", "local"], "", "cannot use --reads: the store is a file"),
            (&["--max-lag", "1s"], "", "cannot use --max-lag: the store is a file"),
            (&["-f", "f", "--store-timeout", "1s"], "", "cannot use --store-timeout: the store is a file"),
        ] {
            let error = config(given, written).expect_err(words).to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }

    #[test]
    fn tls_requires_both_files_and_an_engine_with_tls() {
        let config = |text: &str| Config::new(Options::default(), File::parse(text).expect("valid"));
        let both = "tls-cert = \"c\"\ntls-key = \"k\"\n";
        let files = TlsFiles { certificate: "c".into(), key: "k".into(), clients: None };
        assert_eq!(config(both).expect("consistent").tls, Some(files));
        for (text, words) in [
            ("tls-cert = \"c\"".to_owned(), "--tls-key is missing"),
            ("tls-key = \"k\"".to_owned(), "--tls-cert is missing"),
            (format!("{both}http = \"tiny\""), "use --http hyper"),
            (format!("{both}listen = \"unix:s\""), "Unix socket"),
            (format!("{both}listen = [\"http://127.0.0.1:1\", \"unix:s\"]"), "http://"),
            ("listen = \"https://127.0.0.1:1\"".to_owned(), "--tls-cert"),
            ("tls-client-ca = \"a\"".to_owned(), "--tls-cert"),
            (format!("{both}tls-client-auth = \"optional\""), "--tls-client-ca"),
            (format!("{both}tls-client-crl = \"r\""), "--tls-client-ca"),
            (
                format!("{both}[[access.tokens]]\nname = \"a\"\ncertificate = \"c\"\nright = \"read\""),
                "--tls-client-ca",
            ),
        ] {
            let error = config(&text).expect_err(&text).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
