//! Listing: the keys in byte order, page by page, and their number. Plugins see each key that is listed or counted as a get: a
//! key that a get would not find is left out, and so is one that it would not be allowed to see.

use std::sync::Arc;

use arc_swap::Guard;
use crossbeam_channel::bounded;

use super::transforms::is_transformed;
use super::{Engine, ExtraHeaders, Form, Outcome, RequestContext, host_refusal};
use vkog_plugin_host::{Cause, Refusal, Verb};
use vkog_store::{Entry, Store};

/// The number of entries that are read at a time if most of them may be folded into one prefix.
const FOLDED: usize = 16;

/// A page of keys to list.
#[derive(Debug)]
pub struct Listing {
    /// The prefix of the keys.
    pub prefix: String,
    /// The listing starts after this text, such as the [`Page::next`] of the previous page.
    pub after: Option<String>,
    /// The maximum number of keys and prefixes, at least 1.
    pub limit: usize,
    /// Keys that contain this after the prefix are folded into the part up to its end.
    pub delimiter: Option<String>,
    /// The form of the values, and so of their sizes.
    pub form: Form,
}

/// An entry of a listing.
pub struct Listed {
    /// The entry; without its value if that was turned back, because a page of such values may be large.
    pub entry: Entry,
    /// The length of its value, in bytes.
    pub size: usize,
    /// The headers that plugins add to a get of it.
    pub headers: ExtraHeaders,
}

impl Listed {
    fn new(entry: Entry, headers: ExtraHeaders, form: Form) -> Self {
        let size = entry.value().len();
        let is_copy = form == Form::Sent && is_transformed(&entry);
        let entry = if is_copy { entry.with_value(&[], entry.content_type()) } else { entry };
        Self { entry, size, headers }
    }
}

/// A page of a listing.
#[derive(Default)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Listed>,
    /// The prefixes that keys were folded into.
    pub prefixes: Vec<String>,
    /// The last key or prefix of the page, if more follow.
    pub next: Option<String>,
}

/// Whether a plugin refused a get because of its key, and not because of the client or because it failed.
pub(super) fn is_about_the_key(refusal: &Refusal) -> bool {
    matches!(refusal.status, 403 | 404 | 410)
}

impl<S: Store> Engine<S> {
    /// Lists a page of keys. Blocks for the disk and for plugins: do not call it from an event loop.
    ///
    /// # Errors
    ///
    /// A plugin refused a get because of the client, or failed, or cannot turn a value back. A page without the key would look
    /// complete. Refusals with 403, 404 or 410 concern the key: the page leaves that key out. Or a shared store cannot find out
    /// whether its entries are current.
    pub fn list(self: &Arc<Self>, listing: &Listing, client: &RequestContext) -> Result<Page, Refusal> {
        self.list_for(listing, client, Cause::List)
    }

    /// Lists a page of keys, as [`list`](Self::list) does, for this cause.
    pub(super) fn list_for(
        self: &Arc<Self>,
        listing: &Listing,
        client: &RequestContext,
        cause: Cause,
    ) -> Result<Page, Refusal> {
        self.wait_until_current(client.reads)?;
        let Listing { prefix, after, limit, delimiter, form } = listing;
        let end = end_of(prefix);
        let mut from = prefix.as_bytes().to_vec();
        if let Some(after) = after {
            from = from.max(match folded(after, prefix, delimiter.as_deref()) {
                // All keys of that prefix were listed.
                Some(folded) if folded == after => end_of(folded).unwrap_or_default(),
                _ => behind(after),
            });
        }
        let mut page = Page::default();
        let mut last = String::new();
        loop {
            // One entry more than fits shows whether more follow.
            let count = if delimiter.is_some() { FOLDED } else { limit.saturating_add(1) };
            let entries = self.store.range(&from, end.as_deref(), count);
            let is_last = entries.len() < count;
            for entry in entries {
                if entry.key().as_bytes() < from.as_slice() {
                    continue;
                }
                from = behind(entry.key());
                let prefix_of_several = folded(entry.key(), prefix, delimiter.as_deref());
                // A prefix has no size.
                let form = if prefix_of_several.is_some() { Form::Stored } else { *form };
                let Some(listed) = self.shown(entry, client, form, cause)? else { continue };
                if page.entries.len() + page.prefixes.len() == *limit {
                    page.next = Some(last);
                    return Ok(page);
                }
                if let Some(folded) = folded(listed.entry.key(), prefix, delimiter.as_deref()) {
                    from = end_of(folded).unwrap_or_default();
                    folded.clone_into(&mut last);
                    page.prefixes.push(folded.to_owned());
                } else {
                    listed.entry.key().clone_into(&mut last);
                    page.entries.push(listed);
                }
            }
            if is_last {
                return Ok(page);
            }
        }
    }

    /// Counts the keys that start with a prefix. Blocks as [`list`](Self::list) does.
    ///
    /// # Errors
    ///
    /// Those of [`list`](Self::list).
    pub fn count(self: &Arc<Self>, prefix: &str, client: &RequestContext) -> Result<u64, Refusal> {
        self.wait_until_current(client.reads)?;
        if self.plugins.acquire_blocking().has_no_hooks(Verb::Get) {
            return Ok(self.store.count(prefix));
        }
        self.store.with_prefix(prefix).try_fold(0, |count, entry| {
            let shown = self.shown(entry, client, Form::Stored, Cause::Count)?;
            Ok(count + u64::from(shown.is_some()))
        })
    }

    /// The entry as a get by this client finds it now, if it does.
    fn shown(
        self: &Arc<Self>,
        entry: Entry,
        client: &RequestContext,
        form: Form,
        cause: Cause,
    ) -> Result<Option<Listed>, Refusal> {
        let chain = self.plugins.acquire_blocking();
        if chain.has_no_hooks(Verb::Get) && (form == Form::Stored || !is_transformed(&entry)) {
            return Ok(Some(Listed::new(entry, Vec::new(), form)));
        }
        let request = client.get(entry.key(), self.revision(), form, cause);
        let (send, outcome) = bounded(1);
        self.run_in(Guard::from_inner(chain), request, move |outcome, headers: ExtraHeaders| {
            let _ = send.send((outcome, headers));
        });
        match outcome.recv() {
            Ok((Outcome::Found(entry), headers)) => Ok(Some(Listed::new(entry, headers, form))),
            Ok((Outcome::Refused(refusal), _)) if !is_about_the_key(&refusal) => Err(refusal.at_key(entry.key())),
            Ok(_) => Ok(None),
            // The host panicked, which was logged.
            Err(_) => Err(host_refusal(500, "Internal error; see the log of the server")),
        }
    }
}

/// The prefix that a key is folded into, if any.
fn folded<'a>(key: &'a str, prefix: &str, delimiter: Option<&str>) -> Option<&'a str> {
    let (rest, delimiter) = (key.strip_prefix(prefix)?, delimiter?);
    let at = rest.find(delimiter)?;
    Some(&key[..prefix.len() + at + delimiter.len()])
}

/// The first key after this one.
pub(super) fn behind(key: &str) -> Vec<u8> {
    [key.as_bytes(), &[0]].concat()
}

/// The end of the range of keys with this prefix; none for the empty prefix.
pub(super) fn end_of(prefix: &str) -> Option<Vec<u8>> {
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
