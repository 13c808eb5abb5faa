//! Why a configuration cannot be used.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

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
    #[error("cannot use {}: {source}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The mistake.
        source: FileError,
    },
    /// `--plugin-dir` names something that is not a folder.
    #[error("cannot use --plugin-dir {}: it is not a folder; make it, or start with --no-plugins", .0.display())]
    NoPluginFolder(PathBuf),
    /// An option contradicts another one.
    #[error("cannot use {option}: {conflict}")]
    Conflict {
        /// The option.
        option: &'static str,
        /// What it contradicts.
        conflict: Conflict,
    },
}

/// What an option contradicts.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Conflict {
    /// A certificate without its key.
    #[error("there is no --tls-key; give both")]
    NoKey,
    /// A key without its certificate.
    #[error("there is no --tls-cert; give both")]
    NoCertificate,
    /// TLS with tiny_http.
    #[error("tiny_http speaks no TLS; use --http hyper")]
    TinyTls,
    /// TLS where no address speaks it.
    #[error("no --listen speaks TLS: a Unix socket and http:// do not; leave it out, or listen on host:port")]
    UnusedTls,
    /// `https://` without a certificate.
    #[error("https:// needs a certificate; give --tls-cert and --tls-key, or leave out https://")]
    HttpsWithoutCertificate,
    /// A mode for the files of Unix sockets, of which there are none.
    #[error("no --listen is a Unix socket with a file; leave it out, or listen on unix:PATH")]
    NoSocketFile,
    /// Values that are larger than a store can hold.
    #[error("a store holds values of at most {max} bytes; choose that or less")]
    ValueMax {
        /// The limit of the store, in bytes.
        max: u64,
    },
    /// A memory budget that is smaller than one request body.
    #[error("one body may have {least} bytes; give at least that, or lower --max-value")]
    BudgetMin {
        /// The longest request body, in bytes.
        least: u64,
    },
}

/// A mistake in a configuration file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The text is not TOML.
    #[error("{}{}", .line.map(|line| format!("line {line}: ")).unwrap_or_default(), one_line(.source))]
    Syntax {
        /// The line of the mistake, counted from 1.
        line: Option<usize>,
        /// What the parser expected.
        source: toml::de::Error,
    },
    /// A key has a value of the wrong type.
    #[error("{key}: {}; {way_out}", one_line(.source))]
    Key {
        /// The key.
        key: &'static str,
        /// What the key expects.
        source: toml::de::Error,
        /// How to write it.
        way_out: &'static str,
    },
    /// The table of a plugin has a value that the host cannot use.
    #[error("[plugins.{name}] {source}")]
    Plugin {
        /// The plugin.
        name: String,
        /// The mistake.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The table `[access]` cannot be used.
    #[error("[access] {0}")]
    Access(#[source] AuthError),
    /// The table `[proxy]` cannot be used.
    #[error("[proxy] {0}")]
    Proxy(#[source] ProxyError),
    /// An option has a value of the wrong type, or there is no such option.
    #[error("{}", one_line(.0))]
    Options(#[source] toml::de::Error),
}

/// Why the table `[access]` cannot be used, or why a listener needs one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuthError {
    /// A value has the wrong type, or a key is unknown.
    #[error("{}", one_line(.0))]
    Malformed(#[from] toml::de::Error),
    /// The table has no token.
    #[error("it has no token, and no client could send one; write a table [[access.tokens]]")]
    NoTokens,
    /// Two tokens have the same name.
    #[error("two tokens are called {0:?}; give each a name of its own")]
    SameName(String),
    /// Two tokens have the same secret.
    #[error("{0:?} and {1:?} are the same token; give each one of its own")]
    SameToken(String, String),
    /// Other machines reach the address, and the configuration neither has tokens nor allows every client.
    #[error(
        "cannot serve an address that other machines reach without [access]: every client could read and write; add tokens \
         to [[access.tokens]] of the configuration, or allow it with --open"
    )]
    Unprotected,
}

/// Why the table `[proxy]` cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// A value has the wrong type, or a key is unknown.
    #[error("{}", one_line(.0))]
    Malformed(#[from] toml::de::Error),
    /// A proxy is neither an address, nor a network, nor `unix`.
    #[error("trusted: {0:?} is no address; write an address (127.0.0.1), a network (10.0.0.0/8) or unix")]
    NotAnAddress(String),
    /// The table names no proxy.
    #[error("trusted is empty; name a proxy or leave the table out")]
    NoProxies,
}

/// Returns the message of a TOML error in one line.
fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

/// A text that is not the value of an option.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ValueError {
    /// A size without a number, or with an unknown unit.
    #[error("not a size; write bytes, or a number with KiB, MiB, GiB, KB, MB or GB")]
    Size,
    /// `unix:` without a path.
    #[error("no path after unix:")]
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
    #[error("write always, never, or a duration such as 100ms or 1s")]
    Fsync,
}
