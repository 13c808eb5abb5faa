//! Transforms: values that plugins replaced when they were written, and turn back when they are read.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vkog_plugin_api::abi::Outcome;

use super::call::{EntryView, OpContext, raw_call};
use super::details::{find, insert};
use super::dispatch::Dispatch;
use super::{Chain, READ_GET, Refusal};

/// Their name among the details of an entry. No plugin can have this name.
const NAME: &str = ":transforms";

/// The plugins that have replaced a value and turn it back when it is read: their names, separated by commas, in the order in
/// which they replaced it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transforms(String);

impl Transforms {
    /// Returns those that are recorded among the details of an entry.
    pub fn of(details: &[u8]) -> Self {
        Self(recorded(details).to_owned())
    }

    /// Whether the details of an entry record any.
    #[inline]
    pub fn are_in(details: &[u8]) -> bool {
        !details.is_empty() && !recorded(details).is_empty()
    }

    /// Whether the value is as the client sent it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a plugin that has replaced the value after the others.
    pub(super) fn add(&mut self, plugin: &str) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(plugin);
    }

    /// Adds them to the details of the entry that is written.
    pub fn record(&self, details: Vec<u8>) -> Vec<u8> {
        if self.is_empty() { details } else { insert(&details, NAME, self.0.as_bytes()) }
    }
}

fn recorded(details: &[u8]) -> &str {
    std::str::from_utf8(find(details, NAME)).unwrap_or_default()
}

/// A value that was turned back.
#[derive(Debug)]
pub struct ReadValue {
    /// The value, as it was sent.
    pub value: Vec<u8>,
    /// The media type, if a plugin replaced it.
    pub content_type: Option<String>,
    /// The headers that the plugins add to the response.
    pub headers: Vec<(String, String)>,
}

impl Chain {
    /// Turns the value of an entry back: calls the `read_get` hooks of the plugins that have replaced it, the last first. The
    /// caller holds no lock. Returns none if no plugin has replaced it.
    ///
    /// # Errors
    ///
    /// A hook refused or panicked. Or a plugin is in quarantine or not loaded, which is a 503.
    #[inline]
    pub fn read(self: &Arc<Self>, op: &OpContext<'_>, entry: EntryView<'_>) -> Result<Option<ReadValue>, Refusal> {
        if Transforms::are_in(entry.details) { self.read_back(op, entry).map(Some) } else { Ok(None) }
    }

    #[cold]
    fn read_back(self: &Arc<Self>, op: &OpContext<'_>, entry: EntryView<'_>) -> Result<ReadValue, Refusal> {
        let (mut value, mut content_type) = (None::<Vec<u8>>, None::<String>);
        let mut dispatch = Dispatch::begin_uncounted(self, READ_GET, op);
        for name in recorded(entry.details).rsplit(',') {
            let Some(slot) = dispatch.list.slots.iter().find(|slot| slot.name == name) else {
                return Err(missing(name, self.members.iter().any(|member| member.name() == name)));
            };
            let stored = entry.raw(name);
            let read = OpContext {
                value: value.as_deref().unwrap_or(entry.value),
                content_type: content_type.as_deref().unwrap_or(entry.content_type),
                ..*op
            };
            let mut raw = raw_call(&read, [None, Some(&stored)], 0);
            if slot.hook.is_some() {
                slot.stats.calls.fetch_add(1, Relaxed);
            }
            let outcome = dispatch.call(slot, &mut raw);
            if outcome.kind != Outcome::GO_ON {
                return Err(dispatch.refusal(outcome));
            }
            let replaced = dispatch.output.take(|output| &mut output.value);
            value = replaced.or(value);
            let replaced = dispatch.output.take(|output| &mut output.content_type);
            content_type = replaced.filter(|replaced| is_media_type(replaced, name)).or(content_type);
        }
        let value = value.unwrap_or_else(|| entry.value.to_vec());
        Ok(ReadValue { value, content_type, headers: dispatch.added_headers() })
    }
}

/// Whether a media type from a plugin may be sent.
fn is_media_type(text: &str, plugin: &str) -> bool {
    let is_valid = (1..=255).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !is_valid {
        tracing::warn!(
            plugin,
            hook = "read_get",
            "dropped an invalid media type; use 1 to 255 visible ASCII characters"
        );
    }
    is_valid
}

#[cold]
fn missing(plugin: &str, is_loaded: bool) -> Refusal {
    let fact = if is_loaded { "has no read_get hook any more" } else { "is not loaded" };
    let message = format!("plugin \"{plugin}\" {fact}, and it has transformed this value");
    Refusal { plugin: String::new(), status: 503, message, headers: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_transforms_are_found_among_other_details() {
        let mut transforms = Transforms::default();
        assert_eq!(transforms.record(vec![1]), [1]);
        transforms.add("compress");
        transforms.add("encrypt");
        let details = transforms.record(insert(&[], "ttl", &[7]));
        assert!(Transforms::are_in(&details) && !Transforms::are_in(&insert(&[], "ttl", &[7])));
        assert_eq!(Transforms::of(&details), transforms);
        assert_eq!(find(&details, "ttl"), [7]);
        assert_eq!(recorded(&details), "compress,encrypt");
    }
}
