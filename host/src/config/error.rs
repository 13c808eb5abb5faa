//! Why a configuration cannot be used.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use crate::urls::without_credentials_in;
use thiserror::Error;
use vkog_plugin_host::SettingError;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read {}: {source}; give the path of a TOML file", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The configuration file has a mistake.
    #[error("cannot use {}{source}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The mistake.
        source: FileError,
    },
    /// `--plugin-dir` cannot be examined, for example because it does not exist.
    #[error("cannot use --plugin-dir {}: {source}; {}, or remove the option", .path.display(), way_out_of(.source))]
    NoPluginFolder {
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// `--plugin-dir` is a file.
    #[error("cannot use --plugin-dir {}: it is not a folder; give the folder that has the libraries, or remove the option", .0.display())]
    PluginFolderIsFile(PathBuf),
    /// An option contradicts another one.
    #[error("cannot use {option}: {conflict}")]
    Conflict {
        /// The option.
        option: &'static str,
        /// The contradiction.
        conflict: Conflict,
    },
}

/// The contradiction of an option with another one.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Conflict {
    /// A certificate without its key.
    #[error("--tls-key is missing; give both")]
    NoKey,
    /// A key without its certificate.
    #[error("--tls-cert is missing; give both")]
    NoCertificate,
    /// Something about client certificates without the authorities that sign them.
    #[error("--tls-client-ca is missing; name the authorities of client certificates with it")]
    NoClientCa,
    /// Client certificates without TLS.
    #[error("client certificates need TLS; give --tls-cert and --tls-key too, or remove it")]
    ClientCaWithoutTls,
    /// TLS with tiny_http.
    #[error("tiny_http does not support TLS; use --http hyper")]
    TinyTls,
    /// A limit below which no value fits.
    #[error("no value fits into 0 bytes; choose a larger size, or remove the option")]
    Zero,
    /// A certificate without an address that uses TLS.
    #[error("no --listen address uses TLS: a Unix socket and http:// do not; remove it, or listen on host:port")]
    UnusedTls,
    /// `https://` without a certificate.
    #[error("https:// needs a certificate; give --tls-cert and --tls-key, or remove https://")]
    HttpsWithoutCertificate,
    /// A file mode without a Unix socket that has a file.
    #[error("no --listen address is a Unix socket with a file; remove it, or listen on unix:PATH")]
    NoSocketFile,
    /// Values that are larger than a store can hold.
    #[error("the maximum size of a value is {max} bytes; choose a smaller size")]
    ValueMax {
        /// The limit of the store, in bytes.
        max: u64,
    },
    /// A shared store beside a file.
    #[error("--file or VKOG_FILE names another store; remove one of them, or set VKOG_FILE to nothing")]
    TwoStores,
    /// A shared store without the plugins.
    #[error("a plugin connects to it; remove --no-plugins")]
    StoreWithoutPlugins,
    /// An option of the files of a store, with a shared store.
    #[error("--store has no log on this machine; remove one of them")]
    OnlyForFiles,
    /// An option of a shared store, with a file.
    #[error("the store is a file on this machine; remove it, or name a shared store with --store")]
    OnlyForSharedStores,
    /// A memory budget that is smaller than one request body.
    #[error("a request body can have {least} bytes; set at least this size, or lower --max-value")]
    BudgetMin {
        /// The longest request body, in bytes.
        least: u64,
    },
}

/// A mistake in a configuration file. Its text continues the path of the file.
#[derive(Debug, Error)]
#[error(
    "{}: {}{source}",
    .line.map(|line| format!(":{line}")).unwrap_or_default(),
    .key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default()
)]
pub struct FileError {
    /// The line of the mistake, counted from 1.
    pub line: Option<usize>,
    /// The key of the mistake, with the tables around it: `access.tokens.name`.
    pub key: Option<String>,
    /// The mistake.
    pub source: Mistake,
}

/// The mistake at one place of a configuration file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Mistake {
    /// The text is not TOML, or a value cannot be used.
    #[error("{}", expectation(.0.message()))]
    Value(#[source] toml::de::Error),
    /// The list of plugins that run first is not a list of names.
    #[error("{}; write the names of plugins, order = [\"conflict\", \"bytes\"]", expectation(.0.message()))]
    Order(#[source] toml::de::Error),
    /// A table has no such key.
    #[error("unknown key; {}", way_out(.similar.as_deref(), .known))]
    UnknownKey {
        /// The key that was probably meant.
        similar: Option<String>,
        /// All keys of the table.
        known: Vec<String>,
    },
    /// The settings of a plugin are not in a table.
    #[error("expected a table; write a table [plugins.NAME] for each plugin")]
    NotATable,
    /// The table of a plugin has a value that the host cannot use.
    #[error("{}", .0.source().map(|source| expectation(&source.to_string())).unwrap_or_default())]
    Plugin(#[source] SettingError),
    /// The table `[access]` cannot be used.
    #[error(transparent)]
    Access(#[from] AuthError),
    /// The table `[proxy]` cannot be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The table `[cors]` cannot be used.
    #[error(transparent)]
    Cors(#[from] CorsError),
}

/// Returns the way out of an unknown key.
fn way_out(similar: Option<&str>, known: &[String]) -> String {
    match similar {
        Some(similar) => format!("did you mean `{similar}`?"),
        None => {
            let known: Vec<String> = known.iter().map(|key| format!("`{key}`")).collect();
            format!("expected one of {}", known.join(", "))
        }
    }
}

/// Returns the message of a deserializer in one line, what it expected before what it found. It has no credentials.
fn expectation(message: &str) -> String {
    let message = without_credentials_in(&message.replace('\n', " "));
    let found =
        ["invalid type: ", "invalid value: ", "unknown variant "].iter().find_map(|kind| message.strip_prefix(kind));
    match found.and_then(|rest| rest.split_once(", expected ")) {
        Some((found, expected)) => format!("expected {expected}, found {found}"),
        None => message,
    }
}

/// Why the table `[access]` cannot be used, or why a listener needs one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthError {
    /// A value has the wrong type, or a key is unknown.
    #[error("{}", expectation(.0.message()))]
    Malformed(#[from] toml::de::Error),
    /// The table has no token.
    #[error("no token is configured; add a table [[access.tokens]]")]
    NoTokens,
    /// Two tokens have the same name.
    #[error("two tokens are named {0:?}; give each token a unique name")]
    SameName(String),
    /// Two tokens have the same secret.
    #[error("{0:?} and {1:?} are the same token; give each client its own token")]
    SameToken(String, String),
    /// Other machines can reach the address, and the configuration neither has tokens nor allows every client.
    #[error(
        "cannot serve an address that other machines can reach: without tokens every client could read and write; add \
         [[access.tokens]] to the configuration, or allow it with --open"
    )]
    Unprotected,
    /// Every web page could read and write.
    #[error(
        "cannot allow all origins without tokens: every web page that a user of this network opens could read and write; add \
         tokens to [[access.tokens]] of the configuration, or list the origins in [cors] or --cors-origins"
    )]
    AnyOrigin,
}

/// Why the table `[cors]` cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CorsError {
    /// A value is not an origin or has the wrong type, or a key is unknown.
    #[error("{}", expectation(.0.message()))]
    Malformed(#[from] toml::de::Error),
}

/// Why the table `[proxy]` cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// A value has the wrong type, or a key is unknown.
    #[error("{}", expectation(.0.message()))]
    Malformed(#[from] toml::de::Error),
    /// A proxy is neither an address, nor a network, nor `unix`.
    #[error("trusted: {0:?} is not an address; write an address (127.0.0.1), a network (10.0.0.0/8) or unix")]
    NotAnAddress(String),
    /// The table names no proxy.
    #[error("trusted is empty; name a proxy, or remove the table")]
    NoProxies,
}

/// A text that is not the value of an option.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ValueError {
    /// A size without a number, or with an unknown unit.
    #[error("not a size; write bytes, or a number with KiB, MiB, GiB, KB, MB or GB")]
    Size,
    /// `unix:` without a path.
    #[error("the path is missing; write unix:PATH")]
    NoPath,
    /// Neither a TCP address nor a Unix socket.
    #[error("not an address; write host:port (127.0.0.1:3110, [::1]:0), :port for all interfaces, or unix:PATH")]
    Address,
    /// `unix:@NAME` on another system than Linux.
    #[error("only Linux has abstract sockets; write unix:PATH, and unix:./@NAME for a file whose name begins with @")]
    AbstractSocket,
    /// Not the permission bits of a file.
    #[error("not a file mode; write three or four octal digits such as 0660")]
    Mode,
    /// Neither `always` nor `never` nor a duration.
    #[error("not an interval; write always, never, or a duration such as 100ms or 1s")]
    Fsync,
    /// Not the URL of a shared store.
    #[error("not the URL of a store; write SCHEME://ADDRESS such as etcd://10.0.0.1:2379,10.0.0.2:2379/vkog")]
    StoreUrl,
    /// No duration, or none at all.
    #[error("not a time; write a duration such as 500ms or 30s")]
    Timeout,
}

/// Returns the way out if a folder cannot be examined.
fn way_out_of(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create it",
        io::ErrorKind::PermissionDenied => "let this user read it",
        _ => "give another folder",
    }
}
