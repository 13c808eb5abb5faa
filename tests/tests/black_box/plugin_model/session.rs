//! A client that runs random operations on its entries, and compares each reply with the model.

use serde_json::Value;
use vkog_tests::{Client, Reply, Request, encode};

use super::account::{Account, Full, numbers};
use super::config::Round;
use super::random::Random;
use super::tenant::{Effect, Entry, Rounds, Tenant};

/// An operation whose reply was lost because the server was killed: either all of its effects are in the store, or none.
pub(super) struct Lost {
    pub(super) effects: Vec<Effect>,
    pub(super) error: String,
}

/// The result of an operation whose reply is as expected.
pub(super) type Step = Result<(), Lost>;

pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    pub(super) tenant: &'a mut Tenant,
    pub(super) random: &'a mut Random,
    /// The rounds whose configuration may be in force.
    pub(super) rounds: Rounds,
    pub(super) round: Round,
    /// The bytes of all other clients, if none of them writes meanwhile.
    pub(super) others: Option<u64>,
}

/// A precondition, and whether it holds.
struct Condition {
    header: Option<(&'static str, String)>,
    holds: bool,
}

pub(super) fn parsed(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"))
}

impl<'a> Session<'a> {
    /// Runs one operation.
    ///
    /// # Errors
    ///
    /// The server was killed meanwhile.
    pub(super) fn operation(&mut self) -> Step {
        match self.random.below(100) {
            0..30 => self.write(),
            30..52 => self.read(),
            52..58 => self.touch(),
            58..66 => self.delete(),
            66..82 => self.batch(),
            82..87 => self.list(),
            87..90 => self.delete_by_prefix(),
            90..97 => self.find(),
            _ => self.protected(),
        }
    }

    pub(super) fn key(&mut self) -> String {
        format!("{}{}", self.tenant.folder, self.random.key())
    }

    fn found(&self, key: &str) -> Option<Entry> {
        self.tenant.entries.get(key).cloned()
    }

    pub(super) fn new_entry(&mut self) -> Entry {
        let (value, is_coded) = self.random.value();
        let content_type = self.random.of(&["text/plain", "application/json", "application/octet-stream"]);
        Entry::new(value, content_type, is_coded, self.rounds)
    }

    /// Sends a request that changes nothing.
    fn ask(&self, request: Request<'_>) -> Result<Reply, Lost> {
        request.try_send().map_err(|error| Lost { effects: Vec::new(), error })
    }

    /// Sends a request that changes entries, if it succeeds.
    pub(super) fn send(&self, request: Request<'_>, effects: &[Effect]) -> Result<Reply, Lost> {
        request.try_send().map_err(|error| Lost { effects: effects.to_vec(), error })
    }

    /// Returns the refusal of `bytes`, as far as it can be known.
    pub(super) fn refusal(&self, effects: &[Effect], fails: bool) -> Option<Full> {
        let held = self.others? + self.tenant.held();
        let (fields, limit) = (self.round.fields(), self.round.limit());
        let account = Account { tenant: self.tenant, held, limit, fields, round: self.rounds[0] };
        account.decide(effects, fails).err()
    }

    /// Checks a refusal of `bytes` while others write: its numbers fit together.
    pub(super) fn is_full(&self, message: &str, reply: &Reply) {
        assert!(self.others.is_none(), "it fits: {reply}");
        let numbers = numbers(message).unwrap_or_else(|| panic!("no numbers in {reply}"));
        assert!(numbers[0] > numbers[1], "it fits: {reply}");
    }

    /// Sends a request that changes one entry, and records the change if it succeeds.
    fn change(&mut self, request: Request<'_>, key: &str, after: Option<Entry>) -> Step {
        let mut effects = vec![Effect { key: key.to_owned(), after }];
        let refusal = self.refusal(&effects, false);
        let reply = self.send(request, &effects)?;
        if let Some((_, message)) = refusal {
            drop(reply.refused(413, &format!("{message}\n")).has("Vkog-Plugin", "bytes"));
            return Ok(());
        }
        if reply.status == 413 {
            self.is_full(&reply.text(), &reply);
            return Ok(());
        }
        let reply = reply.expect(200).is("Ok");
        if let Some(after) = &mut effects[0].after {
            after.revision = reply.revision();
        }
        self.tenant.apply(effects, self.rounds, self.round.fields());
        Ok(())
    }

    fn condition(&mut self, found: Option<&Entry>) -> Condition {
        let current = found.map_or(1, |entry| entry.revision);
        let (name, value, holds) = match self.random.below(12) {
            0 => ("If-Match", format!("\"{current}\""), found.is_some()),
            1 => ("If-Match", format!("\"1\", \"{current}\""), found.is_some()),
            2 => ("If-Match", "\"1\"".to_owned(), false),
            3 => ("If-Match", "*".to_owned(), found.is_some()),
            4 => ("If-None-Match", "*".to_owned(), found.is_none()),
            5 => ("If-None-Match", format!("\"{current}\""), found.is_none()),
            _ => return Condition { header: None, holds: true },
        };
        Condition { header: Some((name, value)), holds }
    }

    pub(super) fn request(&self, method: &str, path: &str) -> Request<'a> {
        self.tenant.request(self.client, method, path)
    }

    /// Prepares a request for a key.
    fn of_key(&self, method: &str, key: &str, condition: &Condition) -> Request<'a> {
        let request = self.request(method, &format!("/k/{}", encode(key)));
        condition.header.iter().fold(request, |request, (name, value)| request.header(name, value.clone()))
    }

    fn write(&mut self) -> Step {
        let (key, after) = (self.key(), self.new_entry());
        let condition = self.condition(self.found(&key).as_ref());
        let method = *self.random.of(&["PUT", "POST"]);
        let request = self.of_key(method, &key, &condition);
        let request = request.header("Content-Type", after.content_type).body(&after.value);
        let request = if after.is_coded { request.header("Content-Encoding", "gzip") } else { request };
        if condition.holds {
            return self.change(request, &key, Some(after));
        }
        drop(self.ask(request)?.expect(412));
        Ok(())
    }

    fn touch(&mut self) -> Step {
        let key = self.key();
        let Some(found) = self.found(&key) else {
            drop(self.ask(self.of_key("PATCH", &key, &Condition { header: None, holds: true }))?.expect(404));
            return Ok(());
        };
        let condition = self.condition(Some(&found));
        let request = self.of_key("PATCH", &key, &condition);
        if condition.holds {
            return self.change(request, &key, Some(found));
        }
        drop(self.ask(request)?.expect(412));
        Ok(())
    }

    fn delete(&mut self) -> Step {
        let key = self.key();
        let found = self.found(&key);
        let condition = self.condition(found.as_ref());
        let request = self.of_key("DELETE", &key, &condition);
        match (found, condition.holds) {
            (Some(_), true) => return self.change(request, &key, None),
            (Some(_), false) => drop(self.ask(request)?.expect(412)),
            (None, _) => drop(self.ask(request)?.expect(404)),
        }
        Ok(())
    }

    fn read(&mut self) -> Step {
        let key = self.key();
        let Some(entry) = self.found(&key) else {
            drop(self.ask(self.of_key("GET", &key, &Condition { header: None, holds: true }))?.expect(404));
            return Ok(());
        };
        if self.random.percent(40) {
            return self.read_range(&key, &entry);
        }
        let condition = self.condition(Some(&entry));
        let method = *self.random.of(&["GET", "GET", "GET", "HEAD"]);
        let reply = self.ask(self.of_key(method, &key, &condition))?;
        if condition.holds {
            let body = if method == "HEAD" { &b""[..] } else { &entry.value };
            drop(is_entry(reply.expect(200).has("Content-Length", &entry.value.len().to_string()), &entry).is(body));
        } else {
            let is_none_match = condition.header.is_some_and(|(name, _)| name == "If-None-Match");
            drop(reply.expect(if is_none_match { 304 } else { 412 }));
        }
        Ok(())
    }

    fn read_range(&mut self, key: &str, entry: &Entry) -> Step {
        let len = entry.value.len();
        let (first, other) = (self.random.below(len + len / 8 + 2), 1 + self.random.below(len + 2));
        let last = (first + other).min(len) - 1;
        let (range, expected) = match self.random.below(5) {
            0 => (format!("{first}-"), Some((first, len.max(1) - 1))),
            1 => (format!("-{other}"), Some((len.saturating_sub(other), len - 1))),
            2 => (format!("{}-{first}", first + 1), None),
            3 => (format!("{first}-{first},0-1"), None),
            _ => (format!("{first}-{}", first + other - 1), Some((first, last))),
        };
        let request = self.request("GET", &format!("/k/{}", encode(key))).header("Range", format!("bytes={range}"));
        let (request, applies) = match self.random.below(4) {
            0 => (request.header("If-Range", format!("\"{}\"", entry.revision)), true),
            1 => (request.header("If-Range", "\"1\""), false),
            _ => (request, true),
        };
        let reply = self.ask(request)?;
        match expected.filter(|_| applies) {
            None => drop(is_entry(reply.expect(200), entry).is(&entry.value)),
            Some((first, _)) if first >= len => {
                drop(reply.expect(416).has("Content-Range", &format!("bytes */{len}")));
            }
            Some((first, last)) => {
                let reply = is_entry(reply.expect(206), entry).is(&entry.value[first..=last]);
                drop(reply.has("Content-Range", &format!("bytes {first}-{last}/{len}")));
            }
        }
        Ok(())
    }
}

/// Checks the headers of an entry.
fn is_entry(reply: Reply, entry: &Entry) -> Reply {
    let reply = reply.has("Content-Type", entry.content_type);
    assert_eq!(reply.revision(), entry.revision, "{reply}");
    assert_eq!(reply.header("Content-Encoding"), entry.is_coded.then_some("gzip"), "{reply}");
    reply
}
