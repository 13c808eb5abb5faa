//! How a server is connected to: over TCP, with TLS where that is asked for, or at a Unix socket; and so that its answer is
//! read though it does not take all that is sent.

#[cfg(unix)]
use std::path::Path;

use ureq::config::Config;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector, Transport,
};
use ureq::{Agent, Error};

#[cfg(unix)]
use super::unix;

/// An agent for addresses on the web.
pub(super) fn to_the_web(config: Config) -> Agent {
    let connector = ().chain(TcpConnector::default()).chain(Attentive).chain(RustlsConnector::default());
    Agent::with_parts(config, connector, DefaultResolver::default())
}

/// An agent for which every address is that of this socket.
#[cfg(unix)]
pub(super) fn to_socket(config: Config, path: &Path) -> Agent {
    Agent::with_parts(config, ().chain(unix::Socket(path.to_owned())).chain(Attentive), unix::Nowhere)
}

/// A server may refuse a body while it is sent, and close the connection to it. What it said is there to be read.
#[derive(Debug)]
struct Attentive;

impl<In: Transport> Connector<In> for Attentive {
    type Out = Connection<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, inner: Option<In>) -> Result<Option<Connection<In>>, Error> {
        Ok(inner.map(|inner| Connection { inner, refused: false }))
    }
}

#[derive(Debug)]
struct Connection<T> {
    inner: T,
    /// Whether the server takes nothing more.
    refused: bool,
}

impl<T: Transport> Transport for Connection<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !self.refused {
            match self.inner.transmit_output(amount, timeout) {
                Err(Error::Io(_) | Error::Timeout(_)) => self.refused = true,
                sent => return sent,
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        !self.refused && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
