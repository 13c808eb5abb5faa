//! The supervisor: a thread that works around what tiny_http lacks. It restarts the accepting after an error, closes
//! lingering connections, adds workers where all are blocked, and frees stalled connections by connecting to the server.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{Shared, sockets};
use crate::http::{Listener, Service};

/// The interval of the supervisor.
const INTERVAL: Duration = Duration::from_millis(100);
/// The interval in which the pools are resized.
const RESIZE_INTERVAL: Duration = Duration::from_secs(2);
/// The interval in which the supervisor connects to the server in any case: so neither a connection that is queued behind a
/// silent one stalls, nor does the [timeout](super::TIMEOUT) of the listening socket end the accepting.
const NUDGE_INTERVAL: Duration = Duration::from_millis(500);
/// How long nudges are delayed, so that several become one step.
const NUDGE_DELAY: Duration = Duration::from_millis(2);

impl Listener {
    /// Duplicates the socket for a tiny_http server.
    pub(super) fn duplicate(&self) -> io::Result<tiny_http::Listener> {
        Ok(match self {
            Self::Tcp(listener) | Self::Tls(listener) => listener.try_clone()?.into(),
            #[cfg(unix)]
            Self::Unix(listener) => listener.try_clone()?.into(),
        })
    }

    /// Connects to the server and hangs up.
    fn nudge(&self) {
        let connected = match self {
            Self::Tcp(listener) | Self::Tls(listener) => listener.local_addr().and_then(|mut address| {
                if address.ip().is_unspecified() {
                    address.set_ip(if address.is_ipv4() {
                        Ipv4Addr::LOCALHOST.into()
                    } else {
                        Ipv6Addr::LOCALHOST.into()
                    });
                }
                TcpStream::connect_timeout(&address, Duration::from_millis(100)).map(drop)
            }),
            #[cfg(unix)]
            Self::Unix(listener) => listener
                .local_addr()
                .and_then(|address| std::os::unix::net::UnixStream::connect_addr(&address).map(drop)),
        };
        if let Err(error) = connected {
            tracing::debug!("cannot connect to the listening socket of this server: {error}");
        }
    }
}

impl<S: Service> Shared<S> {
    /// Supervises until the server stops.
    pub(super) fn supervise(self: &Arc<Self>) {
        let (mut nudged, mut resized) = (Instant::now(), Instant::now());
        while !self.is_stopping() {
            let mut nudges = usize::from(self.stall_breaker.nudges.recv_timeout(INTERVAL).is_ok());
            if nudges > 0 {
                thread::sleep(NUDGE_DELAY);
                nudges += self.stall_breaker.nudges.try_iter().count();
            } else if nudged.elapsed() >= NUDGE_INTERVAL {
                nudges = 1;
            }
            if nudges > 0 {
                nudged = Instant::now();
                (0..nudges).for_each(|_| self.listener.nudge());
            }
            self.closing.tend();
            if resized.elapsed() >= RESIZE_INTERVAL {
                resized = Instant::now();
                self.pools.lock().retain(|pool| pool.resize());
            }
            let pools = self.pools.lock().clone();
            // A client does not read, or has pipelined requests behind one that takes long.
            for pool in pools.iter().filter(|pool| pool.is_stuck()) {
                self.add_worker(pool, pool.workers());
            }
            // tiny_http stops accepting for good at the first error, which usually passes soon: too many open files. The old
            // server continues to serve its connections.
            let has_ended = pools.last().is_none_or(|newest| !newest.accepts());
            if has_ended && sockets::has_room() {
                match self.listen() {
                    Ok(()) => tracing::info!("accepting connections again"),
                    Err(error) => tracing::warn!("cannot accept connections: {error}; trying again"),
                }
            }
        }
    }
}
