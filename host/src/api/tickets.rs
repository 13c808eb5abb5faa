//! `/watch/tickets`: tickets for watches. A ticket stands for an access token or a client certificate in the query of `/watch`,
//! because a browser's `EventSource` sends no header fields, and a token does not belong into a URL: URLs are logged.
//!
//! A ticket is valid for a minute, for watches of one prefix, and as long as its token is. Tickets are in memory only.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::Serialize;

use super::auth::{Credential, unauthorized};
use super::json::json;
use super::problem::{ErrorFormat, Problem};
use super::query::parameters;
use crate::http::{RequestHead, Response};
use vkog_engine::{KEY_MAX, host_refusal};
use vkog_plugin_host::{Refusal, Sha256};

/// How long a ticket is valid. A watch that started with it continues.
const LIFETIME: Duration = Duration::from_secs(60);
/// The maximum number of valid tickets for one token. A further one replaces the oldest.
const PER_TOKEN_MAX: usize = 256;
/// The number of random bytes of a ticket.
const RANDOM: usize = 32;

/// The valid tickets, in the order in which they expire.
#[derive(Default)]
pub(super) struct Tickets(Mutex<VecDeque<Ticket>>);

struct Ticket {
    /// The hash of the ticket's text. Hashes are compared, so that the time that this takes reveals nothing of a ticket.
    sha256: Sha256,
    /// The token that it stands for.
    credential: Credential,
    /// The prefix of the watches that it is valid for.
    prefix: String,
    expires: Instant,
}

/// The response to a request for a ticket.
#[derive(Serialize)]
struct Issued {
    ticket: String,
    /// In seconds.
    expires_in: u64,
}

/// Parses the query of a request for a ticket. Returns the prefix.
///
/// # Errors
///
/// The prefix is given twice, malformed, or longer than a key.
pub(super) fn parse_query(query: &str) -> Result<String, Problem> {
    let [prefix] = parameters(query, ["prefix"])?;
    match prefix.unwrap_or_default() {
        prefix if prefix.len() <= KEY_MAX => Ok(prefix),
        _ => Err(Problem::new(400, format!("prefix is longer than a key: {KEY_MAX} bytes are the most"))),
    }
}

impl Tickets {
    /// Issues a ticket. The client has been authorized to watch the prefix.
    pub(super) fn issue(&self, credential: Credential, prefix: String, format: ErrorFormat) -> Response {
        let mut random = [0; RANDOM];
        if let Err(error) = getrandom::fill(&mut random) {
            tracing::error!("cannot make a ticket: {error}");
            return Problem::new(500, "Internal error; the log says more").reply(format);
        }
        let ticket = URL_SAFE_NO_PAD.encode(random);
        self.add(&ticket, credential, prefix, Instant::now());
        json(&Issued { ticket, expires_in: LIFETIME.as_secs() })
    }

    fn add(&self, text: &str, credential: Credential, prefix: String, now: Instant) {
        let mut tickets = self.0.lock();
        while tickets.front().is_some_and(|oldest| oldest.expires <= now) {
            tickets.pop_front();
        }
        let is_own = |ticket: &&Ticket| ticket.credential == credential;
        if tickets.iter().filter(is_own).count() == PER_TOKEN_MAX
            && let Some(oldest) = tickets.iter().position(|ticket| is_own(&ticket))
        {
            tickets.remove(oldest);
        }
        let sha256 = Sha256::of(text.as_bytes());
        tickets.push_back(Ticket { sha256, credential, prefix, expires: now + LIFETIME });
    }

    /// Returns the token of the client that starts a watch: the one that its ticket stands for, or else the one of its header.
    ///
    /// # Errors
    ///
    /// 401 for an unknown or expired ticket, or one beside an `Authorization` header; 403 for a ticket of another prefix.
    pub(super) fn credential(
        &self,
        head: &RequestHead,
        ticket: Option<&str>,
        prefix: &str,
    ) -> Result<Credential, Refusal> {
        match ticket {
            None => Ok(Credential::of(head)),
            Some(_) if head.headers.get("authorization").is_some() => {
                Err(unauthorized("Send either a ticket or the header Authorization"))
            }
            Some(ticket) => self.redeem(ticket, prefix, Instant::now()),
        }
    }

    /// Returns the token of the client that starts a watch, as [`credential`](Self::credential) does, for a watch of any prefix.
    ///
    /// # Errors
    ///
    /// 401, as for that function.
    pub(super) fn holder(&self, head: &RequestHead, ticket: Option<&str>) -> Result<Credential, Refusal> {
        match ticket {
            Some(ticket) if head.headers.get("authorization").is_none() => {
                let (credential, _) = self.find(ticket, Instant::now())?;
                Ok(credential)
            }
            _ => self.credential(head, ticket, ""),
        }
    }

    fn redeem(&self, text: &str, prefix: &str, now: Instant) -> Result<Credential, Refusal> {
        match self.find(text, now)? {
            (credential, own) if prefix.starts_with(&own) => Ok(credential),
            _ => Err(host_refusal(403, "Not allowed: the ticket is for another prefix")),
        }
    }

    /// Returns the token that a ticket stands for, and the prefix of its watches.
    fn find(&self, text: &str, now: Instant) -> Result<(Credential, String), Refusal> {
        let sha256 = Sha256::of(text.as_bytes());
        let tickets = self.0.lock();
        match tickets.iter().find(|ticket| ticket.sha256 == sha256 && ticket.expires > now) {
            Some(ticket) => Ok((ticket.credential.clone(), ticket.prefix.clone())),
            None => Err(unauthorized("The ticket is unknown or has expired; get another with POST /watch/tickets")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    fn credential(token: &str) -> Credential {
        let mut headers = Headers::default();
        headers.push("Authorization", format!("Bearer {token}").as_bytes());
        Credential::of(&RequestHead::new(Method::Post, "/watch/tickets".to_owned(), headers, None))
    }

    fn status(redeemed: Result<Credential, Refusal>) -> u16 {
        redeemed.map_or_else(|refusal| refusal.status, |_| 200)
    }

    #[test]
    fn a_ticket_expires() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        tickets.add("one", credential("a"), String::new(), now);
        assert_eq!(tickets.redeem("one", "", now + LIFETIME - Duration::from_nanos(1)).ok(), Some(credential("a")));
        assert_eq!(status(tickets.redeem("one", "", now + LIFETIME)), 401);
        // Memory is freed, too.
        tickets.add("two", credential("a"), String::new(), now + LIFETIME);
        assert_eq!(tickets.0.lock().len(), 1);
    }

    #[test]
    fn a_ticket_is_valid_for_its_prefix_only() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        tickets.add("one", credential("a"), "a/".to_owned(), now);
        for (prefix, expected) in [("a/", 200), ("a/b", 200), ("a", 403), ("", 403), ("b/", 403)] {
            assert_eq!(status(tickets.redeem("one", prefix, now)), expected, "{prefix}");
        }
        assert_eq!(status(tickets.redeem("", "a/", now)), 401);
    }

    #[test]
    fn the_tickets_of_one_token_do_not_replace_those_of_another() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        tickets.add("other", credential("other"), String::new(), now);
        for number in 0..=PER_TOKEN_MAX {
            tickets.add(&number.to_string(), credential("a"), String::new(), now);
        }
        assert_eq!(tickets.0.lock().len(), PER_TOKEN_MAX + 1);
        assert_eq!(status(tickets.redeem("0", "", now)), 401);
        assert_eq!(tickets.redeem("1", "", now).ok(), Some(credential("a")));
        assert_eq!(tickets.redeem("other", "", now).ok(), Some(credential("other")));
    }
}
