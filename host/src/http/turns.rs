//! One request of a connection at a time. tiny_http hands over the requests that a client has sent ahead before the first
//! is answered; they have to be done in their order (RFC 9112, section 9.3.2), and a reply that is sent before its turn
//! blocks the thread that sends it.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// So many that two workers rarely meet.
const PARTS: usize = 64;
/// How long a connection is remembered on which nothing may be believed any more. Its address may be another's by then.
const DISTRUST: Duration = Duration::from_secs(600);

/// The connections on which a request is under way, by the client's address.
pub(super) struct Turns<R> {
    parts: [Mutex<HashMap<SocketAddr, Connection<R>>>; PARTS],
    hasher: RandomState,
}

enum Connection<R> {
    /// A request is under way, and these wait for it.
    Busy(VecDeque<R>),
    /// Since then nothing that comes is a request, for sure.
    Distrusted(Instant),
}

/// What becomes of a request that came.
pub(super) enum Turn<R> {
    /// It is its turn.
    Now(R),
    /// It waits.
    Later,
    /// It may be a part of a body that an earlier request of the connection described badly.
    Never(R),
}

impl<R> Turns<R> {
    pub(super) fn new() -> Self {
        Self { parts: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }

    fn part(&self, client: &SocketAddr) -> &Mutex<HashMap<SocketAddr, Connection<R>>> {
        &self.parts[self.hasher.hash_one(client) as usize % PARTS]
    }

    /// A request came.
    pub(super) fn come(&self, client: SocketAddr, request: R) -> Turn<R> {
        match self.part(&client).lock().entry(client) {
            Entry::Vacant(vacant) => {
                vacant.insert(Connection::Busy(VecDeque::new()));
                Turn::Now(request)
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Connection::Busy(waiting) => {
                    waiting.push_back(request);
                    Turn::Later
                }
                Connection::Distrusted(since) if since.elapsed() < DISTRUST => Turn::Never(request),
                connection => {
                    *connection = Connection::Busy(VecDeque::new());
                    Turn::Now(request)
                }
            },
        }
    }

    /// A request is answered. Gives the one whose turn it is now.
    pub(super) fn answered(&self, client: SocketAddr) -> Option<R> {
        let mut part = self.part(&client).lock();
        let Some(Connection::Busy(waiting)) = part.get_mut(&client) else { return None };
        let next = waiting.pop_front();
        if next.is_none() {
            part.remove(&client);
        }
        next
    }

    /// A request described its body badly: nothing of the connection is believed any more. Gives those that wait.
    pub(super) fn distrust(&self, client: SocketAddr) -> Vec<R> {
        let mut part = self.part(&client).lock();
        part.retain(
            |_, connection| !matches!(connection, Connection::Distrusted(since) if since.elapsed() >= DISTRUST),
        );
        match part.insert(client, Connection::Distrusted(Instant::now())) {
            Some(Connection::Busy(waiting)) => waiting.into(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_connection_take_turns_and_others_do_not_wait() {
        let turns = Turns::new();
        let (one, other): (SocketAddr, SocketAddr) = (([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
        assert!(matches!(turns.come(one, 1), Turn::Now(1)));
        assert!(matches!(turns.come(one, 2), Turn::Later));
        assert!(matches!(turns.come(one, 3), Turn::Later));
        assert!(matches!(turns.come(other, 4), Turn::Now(4)));
        assert_eq!([(); 3].map(|()| turns.answered(one)), [Some(2), Some(3), None]);
        assert!(matches!(turns.come(one, 5), Turn::Now(5)));
    }

    #[test]
    fn what_follows_a_badly_described_body_is_no_request() {
        let turns = Turns::new();
        let one: SocketAddr = ([127, 0, 0, 1], 1).into();
        assert!(matches!(turns.come(one, 1), Turn::Now(1)));
        assert!(matches!(turns.come(one, 2), Turn::Later));
        assert_eq!(turns.distrust(one), [2]);
        assert_eq!(turns.answered(one), None);
        assert!(matches!(turns.come(one, 3), Turn::Never(3)));
    }
}
