//! Which keys there are: in byte order, page by page, and how many. For plugins each key that is shown or counted is read:
//! what a GET would not find is not there, and what it would not be allowed to see is not shown.

use std::sync::Arc;

use arc_swap::Guard;
use crossbeam_channel::bounded;

use super::ask::by_host;
use super::{Added, Answer, Conditions, Ops, Request};
use vkog_plugin_host::{Origin, Refusal, Verb};
use vkog_store::{Entry, Store as _};

/// So many entries are taken at a time where most of them may go into one prefix.
const FOLDED: usize = 16;

/// Which keys to list.
#[derive(Debug)]
pub struct Listing {
    /// How they begin.
    pub prefix: String,
    /// What they come after: the [`Page::next`] of the page before, or any text.
    pub after: Option<String>,
    /// How many keys and prefixes at most, at least one.
    pub limit: usize,
    /// Keys that have this after the prefix are folded into what comes before its end.
    pub delimiter: Option<String>,
}

/// A part of a listing.
#[derive(Default)]
pub struct Page {
    /// The keys, and what is kept under them.
    pub entries: Vec<Entry>,
    /// What keys were folded into.
    pub prefixes: Vec<String>,
    /// The last key or prefix, if there are more.
    pub next: Option<String>,
}

/// Who wants to know.
#[derive(Clone)]
pub struct Viewer {
    /// Headers and client.
    pub origin: Arc<dyn Origin>,
    /// The query, not decoded.
    pub query: String,
}

impl Origin for Viewer {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.origin.header(name)
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.origin.header_at(index)
    }

    fn client(&self) -> &str {
        self.origin.client()
    }
}

impl Viewer {
    /// A read of a key by them.
    pub(super) fn get(&self, key: &str, arrived: u64) -> Request {
        Request {
            verb: Verb::Get,
            key: key.to_owned(),
            value: Vec::new(),
            content_type: "".into(),
            query: self.query.clone(),
            conditions: Conditions::default(),
            arrived,
            depth: 0,
            origin: Arc::new(self.clone()),
        }
    }
}

/// Whether a read was refused because of its key, and not because of who reads, or because a plugin failed.
pub(super) fn is_about_the_key(refusal: &Refusal) -> bool {
    matches!(refusal.status, 403 | 404 | 410)
}

impl Ops {
    /// A page of keys. Waits for the disk and for plugins, and so is not for a thread that others wait for.
    ///
    /// # Errors
    ///
    /// A plugin refused to let a key be read, and not because of the key (403, 404, 410: those are left out): who asks is
    /// not known, or the plugin failed. A page without the keys concerned would look whole.
    pub fn list(self: &Arc<Self>, listing: &Listing, viewer: &Viewer) -> Result<Page, Refusal> {
        let Listing { prefix, after, limit, delimiter } = listing;
        let end = end_of(prefix);
        let mut from = prefix.as_bytes().to_vec();
        if let Some(after) = after {
            from = from.max(match folded(after, prefix, delimiter.as_deref()) {
                // All that was folded has been listed.
                Some(folded) if folded == after => end_of(folded).unwrap_or_default(),
                _ => behind(after),
            });
        }
        let mut page = Page::default();
        let mut last = String::new();
        loop {
            let shown = page.entries.len() + page.prefixes.len();
            // One more than fits says whether there are more.
            let count = if delimiter.is_some() { FOLDED } else { limit + 1 - shown };
            let entries = self.store.range(&from, end.as_deref(), count);
            let is_last = entries.len() < count;
            for entry in entries {
                if entry.key().as_bytes() < from.as_slice() {
                    continue;
                }
                from = behind(entry.key());
                let Some(entry) = self.shown(entry, viewer)? else { continue };
                if page.entries.len() + page.prefixes.len() == *limit {
                    page.next = Some(last);
                    return Ok(page);
                }
                if let Some(folded) = folded(entry.key(), prefix, delimiter.as_deref()) {
                    from = end_of(folded).unwrap_or_default();
                    folded.clone_into(&mut last);
                    page.prefixes.push(folded.to_owned());
                } else {
                    entry.key().clone_into(&mut last);
                    page.entries.push(entry);
                }
            }
            if is_last {
                return Ok(page);
            }
        }
    }

    /// How many keys begin so. Waits as [`list`](Self::list) does.
    ///
    /// # Errors
    ///
    /// As those of [`list`](Self::list).
    pub fn count(self: &Arc<Self>, prefix: &str, viewer: &Viewer) -> Result<u64, Refusal> {
        if self.plugins.wait_for_chain().is_unasked(Verb::Get) {
            return Ok(self.store.count(prefix));
        }
        self.store.with_prefix(prefix).try_fold(0, |count, entry| {
            let shown = self.shown(entry, viewer)?;
            Ok(count + u64::from(shown.is_some()))
        })
    }

    /// The entry as a GET finds it now, if one would.
    fn shown(self: &Arc<Self>, entry: Entry, viewer: &Viewer) -> Result<Option<Entry>, Refusal> {
        let chain = self.plugins.wait_for_chain();
        if chain.is_unasked(Verb::Get) {
            return Ok(Some(entry));
        }
        let request = viewer.get(entry.key(), self.revision());
        let (tell, told) = bounded(1);
        self.run_in(Guard::from_inner(chain), request, move |answer, _: Added| {
            let _ = tell.send(answer);
        });
        match told.recv() {
            Ok(Answer::Found(entry)) => Ok(Some(entry)),
            Ok(Answer::Refused(refusal)) if !is_about_the_key(&refusal) => Err(refusal),
            Ok(_) => Ok(None),
            // Nobody answers only if what should have panicked, and that was logged.
            Err(_) => Err(by_host(500, "Internal error; the log says more".to_owned())),
        }
    }
}

/// What a key is folded into, if it is.
fn folded<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let (rest, delimiter) = (key.strip_prefix(prefix)?, delimiter?);
    let at = rest.find(delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}

/// The first key that is greater.
fn behind(key: &str) -> Vec<u8> {
    [key.as_bytes(), &[0]].concat()
}

/// What is greater than all keys with this prefix, and than nothing else; none for the prefix of all.
fn end_of(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    // No byte of UTF-8 is 255.
    *end.last_mut()? += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_folded_at_the_first_delimiter_behind_the_prefix() {
        for (key, prefix, delimiter, expected) in [
            ("a/b/c", "", "/", Some("a/")),
            ("a/b/c", "a/", "/", Some("a/b/")),
            ("a/b/c", "a/b", "/", Some("a/b/")),
            ("a/b/c", "a/b/", "/", None),
            ("/a", "", "/", Some("/")),
            ("a::b", "", "::", Some("a::")),
            ("a:b", "", "::", None),
            ("b/c", "a", "/", None),
        ] {
            assert_eq!(folded(key, prefix, Some(delimiter)), expected, "{key} {prefix}");
        }
        assert_eq!(folded("a/b", "", None), None);
    }

    #[test]
    fn a_prefix_ends_behind_all_that_begin_with_it() {
        let end = end_of("aé");
        assert!("aé\u{10ffff}".as_bytes() < end.as_deref().unwrap_or_default());
        assert!("aê".as_bytes() >= end.as_deref().unwrap_or_default());
        assert_eq!(end_of(""), None);
    }
}
