//! Ordered plugins and how they are asked. For each hook it holds only the plugins that have it.

use vkog_plugin_api::Verb;
use vkog_plugin_api::abi::{HOOK_NAMES, HookFn, Outcome, RawInstance};

use super::call::{Origin, Said, Scan, Seen, Subject, call};
use super::details::{self, DETAILS_MAX};
use super::error::{LoadError, LoadFault};
use super::load::Plugin;

const BEFORE: usize = 0;
const GUARD: usize = 4;
const AFTER: usize = 8;
const UNDO: usize = 12;
const START: usize = 16;

/// Why an operation is not done: what a plugin said, or that it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The plugin's name.
    pub plugin: String,
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// One line.
    pub message: String,
    /// Further headers of the answer.
    pub headers: Vec<(String, String)>,
}

/// What the before-hooks made of a request.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The value to write instead of the request's.
    pub value: Option<Vec<u8>>,
    /// The entry counts as absent (get).
    pub hidden: bool,
}

/// What the guards made of an operation that they let pass.
#[derive(Debug, Default)]
pub struct Passed {
    /// The details of the entry to be written, for [`Seen::details`].
    pub details: Vec<u8>,
    /// The entry counts as absent (get).
    pub hidden: bool,
}

/// A plugin's place in one hook's list.
struct Link {
    plugin: usize,
    hook: HookFn,
    instance: RawInstance,
}

/// The loaded plugins in their order.
pub struct Chain {
    plugins: Vec<Plugin>,
    /// By hook id, in the order in which they are called.
    links: [Vec<Link>; HOOK_NAMES.len()],
}

// SAFETY: a link's instance is a plugin's, and `Plugin: Send + Sync` is what plugin-api asks of every plugin type.
unsafe impl Send for Chain {}
// SAFETY: as above; hooks take `&self`.
unsafe impl Sync for Chain {}

impl Chain {
    /// Orders plugins by stage, then by name, and splits their hooks.
    pub fn new(mut plugins: Vec<Plugin>) -> Self {
        plugins.sort_by(|a, b| (a.stage(), a.name()).cmp(&(b.stage(), b.name())));
        let mut links = [const { Vec::new() }; HOOK_NAMES.len()];
        for (index, plugin) in plugins.iter().enumerate() {
            for (id, hook) in plugin.hooks() {
                let link = Link { plugin: index, hook, instance: plugin.instance() };
                // `after` and `undo` run from the last plugin to the first.
                if (AFTER..START).contains(&id) { links[id].insert(0, link) } else { links[id].push(link) }
            }
        }
        Self { plugins, links }
    }

    /// The plugins in the order in which their before-hooks and guards run.
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// Whether no plugin has a guard for this verb, so that none has to be asked under a lock.
    pub fn is_unguarded(&self, verb: Verb) -> bool {
        self.links[GUARD + verb as usize].is_empty()
    }

    /// Tells the plugins what the store holds. `scan` gives every entry to a function.
    ///
    /// # Errors
    ///
    /// The first plugin that refuses to start.
    pub fn start(&self, scan: Scan<'_>) -> Result<(), LoadError> {
        let subject =
            Subject { verb: Verb::Get, key: "", value: &[], content_type: "", query: "", arrived: 0, origin: &Nowhere };
        for link in &self.links[START] {
            let plugin = &self.plugins[link.plugin];
            let (outcome, said) = call(link.hook, link.instance, plugin.name(), &subject, [None, None], 0, Some(scan));
            if outcome.kind != Outcome::GO_ON {
                let (name, said) = (plugin.name().to_owned(), said.message.unwrap_or_default());
                let fault = if outcome.kind == Outcome::PANICKED {
                    LoadFault::StartPanicked { name, said }
                } else {
                    LoadFault::StartFailed { name, said }
                };
                return Err(LoadError { path: plugin.path().to_owned(), fault });
            }
        }
        Ok(())
    }

    /// Asks the before-hooks. No lock may be held.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn before(&self, subject: &Subject<'_>) -> Result<Prepared, Refusal> {
        let id = BEFORE + subject.verb as usize;
        let mut prepared = Prepared::default();
        for link in &self.links[id] {
            let subject = Subject { value: prepared.value.as_deref().unwrap_or(subject.value), ..*subject };
            let plugin = self.plugins[link.plugin].name();
            let (outcome, said) = call(link.hook, link.instance, plugin, &subject, [None, None], 0, None);
            if outcome.kind != Outcome::GO_ON {
                return Err(refusal(id, outcome, said, plugin));
            }
            prepared.hidden |= outcome.bits & Outcome::HIDE != 0;
            if let Some(value) = said.value {
                prepared.value = Some(value);
            }
        }
        Ok(prepared)
    }

    /// Asks the guards; `entry` is locked. Where one refuses, hides or fails, those before it are undone.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn guard(&self, subject: &Subject<'_>, entry: Option<Seen<'_>>) -> Result<Passed, Refusal> {
        let id = GUARD + subject.verb as usize;
        let mut details = Vec::new();
        for (position, link) in self.links[id].iter().enumerate() {
            let plugin = self.plugins[link.plugin].name();
            let (outcome, said) = call(link.hook, link.instance, plugin, subject, [entry, None], 0, None);
            if outcome.kind != Outcome::GO_ON {
                self.undo_before(position, subject, entry);
                return Err(refusal(id, outcome, said, plugin));
            }
            if outcome.bits & Outcome::HIDE != 0 {
                self.undo_before(position, subject, entry);
                return Ok(Passed { details: Vec::new(), hidden: true });
            }
            if let Some(own) = said.details.filter(|own| !own.is_empty()) {
                if own.len() > DETAILS_MAX {
                    self.undo_before(position + 1, subject, entry);
                    let message =
                        format!("plugin \"{plugin}\" set {} bytes of details; {DETAILS_MAX} is the most", own.len());
                    tracing::error!(plugin, hook = HOOK_NAMES[id], "{message}");
                    return Err(Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() });
                }
                details.push((plugin, own));
            }
        }
        Ok(Passed { details: details::join(&details), hidden: false })
    }

    /// Undoes all guards of an operation: they had passed, and it will not happen.
    pub fn undo(&self, subject: &Subject<'_>, entry: Option<Seen<'_>>) {
        self.undo_before(self.links[GUARD + subject.verb as usize].len(), subject, entry);
    }

    /// Undoes the guards at positions below `end`, the last first.
    fn undo_before(&self, end: usize, subject: &Subject<'_>, entry: Option<Seen<'_>>) {
        let passed = &self.links[GUARD + subject.verb as usize][..end];
        let id = UNDO + subject.verb as usize;
        for link in &self.links[id] {
            if passed.iter().any(|guard| guard.plugin == link.plugin) {
                self.tell(id, link, subject, [entry, None], 0);
            }
        }
    }

    /// Tells the after-hooks that an operation is done, and which revision it has.
    pub fn after(&self, subject: &Subject<'_>, revision: u64, before: Option<Seen<'_>>, after: Option<Seen<'_>>) {
        let id = AFTER + subject.verb as usize;
        for link in &self.links[id] {
            self.tell(id, link, subject, [before, after], revision);
        }
    }

    /// Calls a hook that cannot refuse. That it failed changes nothing for the client.
    fn tell(&self, id: usize, link: &Link, subject: &Subject<'_>, entries: [Option<Seen<'_>>; 2], revision: u64) {
        let plugin = self.plugins[link.plugin].name();
        let (outcome, said) = call(link.hook, link.instance, plugin, subject, entries, revision, None);
        if outcome.kind != Outcome::GO_ON {
            log_failure(plugin, id, &said.message.unwrap_or_default());
        }
    }
}

fn log_failure(plugin: &str, id: usize, said: &str) {
    let hook = HOOK_NAMES[id];
    tracing::error!(plugin, hook, "plugin \"{plugin}\" failed in {hook}: {said}");
}

fn refusal(id: usize, outcome: Outcome, said: Said<'_>, plugin: &str) -> Refusal {
    let message = said.message.unwrap_or_default();
    if outcome.kind == Outcome::PANICKED {
        log_failure(plugin, id, &message);
        // What a panic says is for the log: it may tell a client what is not its business.
        let message = format!("plugin \"{plugin}\" failed in {}; nothing was changed", HOOK_NAMES[id]);
        return Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() };
    }
    let mut status = outcome.status;
    if !(400..=599).contains(&status) {
        tracing::warn!(plugin, hook = HOOK_NAMES[id], status, "refused with a status that is no error; 500 is sent");
        status = 500;
    }
    let mut headers = said.headers;
    headers.retain(|(name, value)| {
        let sent = may_be_sent(name, value);
        if !sent {
            tracing::warn!(plugin, hook = HOOK_NAMES[id], name, "a header that cannot be sent was dropped");
        }
        sent
    });
    Refusal { plugin: plugin.to_owned(), status, message, headers }
}

/// Whether a header of a plugin's is well-formed (RFC 9110, section 5) and leaves the framing to the host.
fn may_be_sent(name: &str, value: &str) -> bool {
    const FRAMING: [&str; 6] =
        ["connection", "content-length", "transfer-encoding", "trailer", "upgrade", "vkog-plugin"];
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty()
        && name.bytes().all(token)
        && value.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t')
        && !FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing))
}

/// The origin of what no client asked for.
struct Nowhere;

impl Origin for Nowhere {
    fn header(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    fn header_at(&self, _index: usize) -> Option<(&str, &[u8])> {
        None
    }

    fn client(&self) -> &str {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_would_break_the_answer_is_not_sent() {
        assert!(may_be_sent("WWW-Authenticate", "Bearer realm=\"vkog\""));
        assert!(!may_be_sent("X-Two\r\nLines", "1"));
        assert!(!may_be_sent("X-Split", "1\r\nSet-Cookie: a"));
        assert!(!may_be_sent("", "1"));
        assert!(!may_be_sent("content-LENGTH", "0"));
        assert!(!may_be_sent("Vkog-Plugin", "somebody else"));
    }
}
