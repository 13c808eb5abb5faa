//! Server-sent events, read as a browser reads them.

use std::collections::VecDeque;
use std::time::Instant;

use serde_json::Value;

use crate::DEADLINE;
use crate::client::Reply;
use crate::server::Server;
use crate::wire::Wire;

/// A stream of events.
pub struct Watching {
    wire: Wire,
    text: Vec<u8>,
    waiting: VecDeque<Event>,
    /// The head of the reply.
    pub head: Reply,
    /// The last id that was received, with or without an event.
    pub last_id: Option<u64>,
    /// The number of ids without an event.
    pub bare_ids: usize,
}

/// A received event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The last id when it was received.
    pub id: Option<u64>,
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Value,
}

impl Event {
    /// Returns its key.
    #[track_caller]
    pub fn key(&self) -> &str {
        self.data["key"].as_str().unwrap_or_else(|| panic!("no key in {self:?}"))
    }
}

impl Server {
    /// Opens a watch; the fields are further header lines.
    #[track_caller]
    pub fn watch(&self, query: &str, fields: &str) -> Watching {
        let watching = self.try_watch(query, fields);
        watching.unwrap_or_else(|refused| panic!("no stream: {refused}"))
    }

    /// Opens a watch, or returns the reply of the failure.
    ///
    /// # Errors
    ///
    /// The status is not 200.
    #[track_caller]
    pub fn try_watch(&self, query: &str, fields: &str) -> Result<Watching, Reply> {
        self.try_watch_over(self.wire(), query, fields)
    }

    /// The same over a connection that the test has made.
    ///
    /// # Errors
    ///
    /// The status is not 200.
    #[track_caller]
    pub fn try_watch_over(&self, mut wire: Wire, query: &str, fields: &str) -> Result<Watching, Reply> {
        wire.send(format!("GET /watch?{query} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
        let head = wire.try_head().unwrap_or_else(|error| panic!("no reply to {query}: {error}\n{}", self.log()));
        if head.status != 200 {
            return Err(head);
        }
        let (text, waiting) = (Vec::new(), VecDeque::new());
        let mut watching = Watching { wire, text, waiting, head, last_id: None, bare_ids: 0 };
        // The first line is the status.
        assert!(watching.read() && watching.last_id.is_some(), "no id first: {}", watching.head);
        watching.bare_ids = 0;
        Ok(watching)
    }
}

impl Watching {
    /// Returns the next event; `None` if the stream has ended.
    #[track_caller]
    pub fn event(&mut self) -> Option<Event> {
        let begun = Instant::now();
        while self.waiting.is_empty() {
            // Ids without events come endlessly.
            assert!(begun.elapsed() < DEADLINE, "no event comes: {}", self.head);
            if !self.read() {
                return None;
            }
        }
        self.waiting.pop_front()
    }

    /// Returns this number of events.
    #[track_caller]
    pub fn events(&mut self, count: usize) -> Vec<Event> {
        let events: Vec<_> = std::iter::from_fn(|| self.event()).take(count).collect();
        assert_eq!(events.len(), count, "the stream ended early: {}", self.head);
        events
    }

    /// Returns the events that still arrive from a server that was killed: the stream may break off anywhere.
    pub fn remaining(&mut self) -> Vec<Event> {
        while let Ok(chunk) = self.wire.chunk()
            && !chunk.is_empty()
        {
            self.take(&chunk);
        }
        self.waiting.drain(..).collect()
    }

    /// Reads until data arrives. Returns whether the stream continues.
    #[track_caller]
    pub fn read(&mut self) -> bool {
        let chunk = self.wire.chunk().unwrap_or_else(|error| panic!("the stream broke off: {error}: {}", self.head));
        self.take(&chunk);
        !chunk.is_empty()
    }

    fn take(&mut self, chunk: &[u8]) {
        self.text.extend(chunk);
        while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
            let block = String::from_utf8(self.text.drain(..end + 2).collect()).expect("events are UTF-8");
            self.take_block(&block);
        }
    }

    fn take_block(&mut self, block: &str) {
        let (mut name, mut data) = ("message".to_owned(), None);
        let mut came = false;
        for line in block.lines().filter(|line| !line.is_empty()) {
            match line.split_once(": ") {
                Some(("id", id)) => {
                    self.last_id = Some(id.parse().unwrap_or_else(|_| panic!("no revision: {line}")));
                    came = true;
                }
                Some(("event", text)) => text.clone_into(&mut name),
                Some(("data", text)) => {
                    assert!(data.is_none(), "data of two lines: {block}");
                    data = Some(serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {line}")));
                }
                Some(("retry", _)) => {}
                _ => panic!("no field: {line}"),
            }
        }
        match data {
            Some(data) => self.waiting.push_back(Event { id: self.last_id, name, data }),
            None => self.bare_ids += usize::from(came),
        }
    }
}
