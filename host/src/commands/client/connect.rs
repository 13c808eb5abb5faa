//! Connections to a server: over TCP, with TLS for `https://`, or at a Unix socket. The client also reads a response that the
//! server sends before it has received the whole request.

#[cfg(unix)]
use std::path::Path;
use std::time::Duration;

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

/// An agent that connects to this socket for every address.
#[cfg(unix)]
pub(super) fn to_socket(config: Config, path: &Path) -> Agent {
    Agent::with_parts(config, ().chain(unix::Socket(path.to_owned())).chain(Attentive), unix::Nowhere)
}

/// The timeout of a response that the server sent before it stopped reading. It has arrived, or is about to.
const EARLY_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connector whose connections still read the response if the server rejects the body early and stops reading.
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
    /// Whether the server has stopped reading.
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

    fn await_input(&mut self, mut timeout: NextTimeout) -> Result<bool, Error> {
        if self.refused {
            timeout.per_read = Some(EARLY_RESPONSE_TIMEOUT.into());
        }
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        !self.refused && self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
