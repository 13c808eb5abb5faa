//! Ordered plugins and how they are asked: what a host is made of, and what `testing` runs a plugin in.
//! For each hook the chain holds only the plugins that have it. Knows nothing of HTTP, of libraries or of the store.

mod call;
mod details;
mod member;
mod port;
mod stats;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use vkog_plugin_api::abi::{HOOK_NAMES, HookFn, Outcome, RawCall, RawInstance, Verb};

pub use call::{Each, Origin, Scan, Seen, Subject};
pub use member::{Conduct, Failed, Member, OnFailure, QUARANTINE_PANICS, QUARANTINE_WINDOW};
pub use port::{Answered, Asked, Asking, DEPTH_MAX, Metric, Port, Services, system_clock};
pub use stats::HookStats;

use vkog_runtime::Counts;

use call::{Said, Words, about, about_replaced, call};
use details::DETAILS_MAX;
use port::{Entered, Lock, Scope};

const BEFORE: usize = 0;
const GUARD: usize = 4;
const AFTER: usize = 8;
const UNDO: usize = 12;
const START: usize = 16;
const TICK: usize = 17;
const SETTINGS_CHANGED: usize = 18;
const MAKE_ROOM: usize = 19;

/// So many runs of a hook's list are timed at first on each thread, then one in [`TIMED_EVERY`]: to read the clock costs
/// more than to call a plugin.
const TIMED_FIRST: u64 = 256;
/// See [`TIMED_FIRST`].
const TIMED_EVERY: u64 = 256;

/// Why an operation is not done: what a plugin said, or that it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The plugin's name; empty where the host itself refuses.
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

/// A member's place in one hook's list.
struct Link {
    /// Its place in the chain, which keeps the instance alive.
    member: usize,
    instance: RawInstance,
    name: &'static str,
    /// None where the plugin is in quarantine and what it would be asked is refused.
    hook: Option<HookFn>,
    stats: Arc<HookStats>,
}

/// Those who have a hook, in the order in which they are called.
#[derive(Default)]
struct List {
    links: Vec<Link>,
    /// Somebody has a budget: every run is timed.
    always_timed: bool,
}

// SAFETY: a link's instance is a member's, which may be sent and shared.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

/// Plugins in their order. It never changes: another order, or other plugins, are another chain, and what is under way
/// ends in the one it began in.
pub struct Chain {
    members: Vec<Arc<Member>>,
    /// By hook id.
    lists: [List; HOOK_NAMES.len()],
    /// By verb: a hook may wait.
    blocks: [bool; 4],
    /// How often each was gone through: each link was called so often, but for what its statistics take away.
    runs: Counts<{ HOOK_NAMES.len() }>,
}

impl Chain {
    /// Orders plugins: those that are named in `order` come first, in that order; the others follow by stage, then by name.
    pub fn new(mut members: Vec<Arc<Member>>, order: &[String]) -> Self {
        let rank = |member: &Member| order.iter().position(|name| name == member.name()).unwrap_or(order.len());
        members.sort_by_key(|member| (rank(member), member.stage(), member.name()));
        let mut lists: [List; HOOK_NAMES.len()] = std::array::from_fn(|_| List::default());
        let mut blocks = [false; 4];
        for (index, member) in members.iter().enumerate() {
            let quarantined = member.is_quarantined();
            for (id, list) in lists.iter_mut().enumerate().take(START) {
                let Some((hook, stats)) = member.hook(id) else { continue };
                if quarantined && (id >= AFTER || member.conduct().on_failure == OnFailure::Skip) {
                    continue;
                }
                let link = Link {
                    member: index,
                    instance: member.instance(),
                    name: member.name(),
                    hook: (!quarantined).then_some(*hook),
                    stats: Arc::clone(stats),
                };
                blocks[id % blocks.len()] |= !quarantined && member.blocks_in(id);
                list.always_timed |= member.conduct().budget.is_some();
                // `after` and `undo` run from the last plugin to the first.
                if id >= AFTER { list.links.insert(0, link) } else { list.links.push(link) }
            }
        }
        Self { members, lists, blocks, runs: Counts::default() }
    }

    /// The plugins in the order in which their before-hooks and guards run.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// The hooks of a plugin of this chain, how often each was called, and how it behaved.
    pub fn stats<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = (&'static str, u64, &'a HookStats)> + 'a {
        (0..HOOK_NAMES.len()).filter_map(move |id| {
            let (_, stats) = member.hook(id)?;
            let listed = |link: &Link| Arc::ptr_eq(&link.stats, stats) && link.hook.is_some();
            let runs = if counts_runs(id) && self.lists[id].links.iter().any(listed) { self.runs.sum(id) } else { 0 };
            Some((HOOK_NAMES[id], stats.calls.load(Relaxed).wrapping_add(runs), &**stats))
        })
    }

    /// Whether an operation of this verb has a hook that may wait.
    pub fn blocks(&self, verb: Verb) -> bool {
        self.blocks[verb as usize]
    }

    /// Whether no plugin has a guard for this verb, so that none has to be asked under a lock.
    pub fn is_unguarded(&self, verb: Verb) -> bool {
        self.lists[GUARD + verb as usize].links.is_empty()
    }

    /// Whether no plugin has a say in, or is told of, an operation of this verb.
    pub fn is_unasked(&self, verb: Verb) -> bool {
        [BEFORE, GUARD, AFTER].iter().all(|phase| self.lists[phase + verb as usize].links.is_empty())
    }

    /// Whether a plugin may be able to make room.
    pub fn may_make_room(&self) -> bool {
        self.members.iter().any(|member| member.has("make_room"))
    }

    /// Has the plugins make room, on a thread that may wait. Says whether one did.
    pub fn make_room(self: &Arc<Self>) -> bool {
        // All of them, whatever the first says.
        self.members.iter().filter(|member| member.make_room(self)).count() > 0
    }

    /// Asks the before-hooks. No lock may be held.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn before(self: &Arc<Self>, subject: &Subject<'_>) -> Result<Prepared, Refusal> {
        let id = BEFORE + subject.verb as usize;
        let mut prepared = Prepared::default();
        if self.lists[id].links.is_empty() {
            return Ok(prepared);
        }
        let mut round = Round::begin(self, id, subject, Lock::Free);
        let mut raw = about(subject, [None, None], 0);
        for (position, link) in round.list.links.iter().enumerate() {
            let outcome = round.ask(link, &mut raw);
            if outcome.kind != Outcome::GO_ON {
                return Err(round.refused(position, outcome));
            }
            prepared.hidden |= outcome.bits & Outcome::HIDE != 0;
            if let Some(value) = round.said.take(|words| &mut words.value) {
                let value = prepared.value.insert(value);
                raw = about_replaced(subject, value);
            }
        }
        Ok(prepared)
    }

    /// Asks the guards; `entry` is locked. Where one refuses, hides or fails, those before it are undone.
    ///
    /// # Errors
    ///
    /// The first refusal.
    pub fn guard(self: &Arc<Self>, subject: &Subject<'_>, entry: Option<Seen<'_>>) -> Result<Passed, Refusal> {
        let id = GUARD + subject.verb as usize;
        if self.lists[id].links.is_empty() {
            return Ok(Passed::default());
        }
        let mut details = Vec::new();
        let mut round = Round::begin(self, id, subject, Lock::Held);
        let raw_entry = entry.as_ref().map(Seen::raw_without_details);
        let mut raw = about(subject, [raw_entry.as_ref(), None], 0);
        let detailed = detailed([entry.as_ref(), None]);
        for (position, link) in round.list.links.iter().enumerate() {
            let outcome = round.ask_with_details(link, &mut raw, detailed);
            if outcome.kind != Outcome::GO_ON {
                self.undo_before(position, subject, entry);
                return Err(round.refused(position, outcome));
            }
            if outcome.bits & Outcome::HIDE != 0 {
                self.undo_before(position, subject, entry);
                round.stopped(position);
                return Ok(Passed { details: Vec::new(), hidden: true });
            }
            if let Some(own) = round.said.take(|words| &mut words.details).filter(|own| !own.is_empty()) {
                let plugin = link.name;
                if own.len() > DETAILS_MAX {
                    self.undo_before(position + 1, subject, entry);
                    round.stopped(position);
                    let message =
                        format!("plugin \"{plugin}\" set {} bytes of details; {DETAILS_MAX} is the most", own.len());
                    tracing::error!(plugin, hook = HOOK_NAMES[id], "{message}");
                    return Err(Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() });
                }
                details.push((plugin, own));
            }
        }
        if details.is_empty() {
            return Ok(Passed::default());
        }
        Ok(Passed { details: details::join(&details), hidden: false })
    }

    /// Undoes all guards of an operation: they had passed, and it will not happen.
    pub fn undo(self: &Arc<Self>, subject: &Subject<'_>, entry: Option<Seen<'_>>) {
        self.undo_before(self.lists[GUARD + subject.verb as usize].links.len(), subject, entry);
    }

    /// Undoes the guards at positions below `end`, the last first.
    fn undo_before(self: &Arc<Self>, end: usize, subject: &Subject<'_>, entry: Option<Seen<'_>>) {
        let (id, guards) = (UNDO + subject.verb as usize, &self.lists[GUARD + subject.verb as usize].links);
        let passed = &guards[..end];
        if self.lists[id].links.is_empty() || passed.is_empty() {
            return;
        }
        // Who has an undo hook has the guard, too.
        let all = end == guards.len();
        let mut round = Round::begin(self, id, subject, Lock::Held);
        let raw_entry = entry.as_ref().map(Seen::raw_without_details);
        let mut raw = about(subject, [raw_entry.as_ref(), None], 0);
        let detailed = detailed([entry.as_ref(), None]);
        for link in &round.list.links {
            if all || passed.iter().any(|guard| guard.member == link.member) {
                round.ask_with_details(link, &mut raw, detailed);
            } else {
                link.stats.calls.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Tells the after-hooks that an operation is done, and which revision it has. Returns the headers that they add to the
    /// answer.
    pub fn after(
        self: &Arc<Self>,
        subject: &Subject<'_>,
        revision: u64,
        before: Option<Seen<'_>>,
        after: Option<Seen<'_>>,
    ) -> Vec<(String, String)> {
        let id = AFTER + subject.verb as usize;
        if self.lists[id].links.is_empty() {
            return Vec::new();
        }
        let mut round = Round::begin(self, id, subject, Lock::Free);
        let raw_before = before.as_ref().map(Seen::raw_without_details);
        let raw_after = after.as_ref().map(Seen::raw_without_details);
        let mut raw = about(subject, [raw_before.as_ref(), raw_after.as_ref()], revision);
        let detailed = detailed([before.as_ref(), after.as_ref()]);
        for link in &round.list.links {
            // That it failed changes nothing for the client.
            round.ask_with_details(link, &mut raw, detailed);
        }
        match &mut round.said.words {
            None => Vec::new(),
            Some(words) => added(words, id),
        }
    }
}

/// The headers that after-hooks added. Apart, because most add none.
#[cold]
fn added(words: &mut Words, id: usize) -> Vec<(String, String)> {
    let mut headers = std::mem::take(&mut words.headers);
    headers.retain(|header| may_be_sent(header, "after", id));
    headers
}

impl Drop for Chain {
    fn drop(&mut self) {
        // The counts go on in the next chain.
        for (id, list) in self.lists.iter().enumerate().filter(|(id, _)| counts_runs(*id)) {
            for link in list.links.iter().filter(|link| link.hook.is_some()) {
                link.stats.calls.fetch_add(self.runs.sum(id), Relaxed);
            }
        }
    }
}

/// Whether each run of this hook's list calls everybody in it, but for those that are then taken away.
fn counts_runs(id: usize) -> bool {
    id < START
}

/// The entries before and after, if any plugin has details of them.
type Detailed<'a> = Option<[Option<&'a Seen<'a>>; 2]>;

#[inline(always)]
fn detailed<'a>(entries: [Option<&'a Seen<'a>>; 2]) -> Detailed<'a> {
    entries.iter().flatten().any(|entry| !entry.details.is_empty()).then_some(entries)
}

/// Going once through a list.
struct Round<'a> {
    chain: &'a Chain,
    list: &'a List,
    id: usize,
    said: Said<'a>,
    /// When the last call ended, if this round is timed.
    clock: Option<Instant>,
    _scope: Entered,
}

impl<'a> Round<'a> {
    #[inline(always)]
    fn begin(chain: &'a Arc<Chain>, id: usize, subject: &Subject<'a>, lock: Lock) -> Self {
        let list = &chain.lists[id];
        let entered = Scope { depth: subject.depth, lock, chain: Arc::as_ptr(chain) }.enter();
        let run = chain.runs.count(id);
        let timed = list.always_timed || run < TIMED_FIRST || run % TIMED_EVERY == 0;
        let clock = timed.then(Instant::now);
        // Last, so that it is made where it stays: to move it costs as much as a call.
        Self { chain, list, id, clock, _scope: entered, said: Said::nothing(subject.origin) }
    }

    /// Asks about the entries before and after, with the plugin's own details in them where any plugin has some.
    #[inline(always)]
    fn ask_with_details(&mut self, link: &'a Link, raw: &mut RawCall<'_>, entries: Detailed<'_>) -> Outcome {
        match entries {
            None => self.ask(link, raw),
            Some(entries) => self.ask_with_own_details(link, raw, entries),
        }
    }

    // Apart, so that what it needs of the call is not kept for those who do not come here.
    #[inline(never)]
    fn ask_with_own_details(&mut self, link: &'a Link, raw: &RawCall<'_>, entries: [Option<&Seen<'_>>; 2]) -> Outcome {
        let [before, after] = entries.map(|entry| entry.map(|entry| entry.raw(link.name)));
        self.ask(link, &mut RawCall { before: before.as_ref(), after: after.as_ref(), ..*raw })
    }

    #[inline(always)]
    fn ask(&mut self, link: &'a Link, raw: &mut RawCall<'_>) -> Outcome {
        self.said.plugin = link.name;
        let Some(hook) = link.hook else {
            self.said.words().message =
                Some(format!("plugin \"{}\" is in quarantine after it failed again and again", link.name));
            return Outcome { kind: Outcome::REFUSED, status: 503, bits: 0 };
        };
        // SAFETY: whoever created the member promised that its module is sound; the chain keeps the instance alive.
        let outcome = unsafe { call(hook, link.instance, raw, &mut self.said) };
        if let Some(begun) = self.clock {
            self.clock = Some(link.note(self.id, &self.chain.members[link.member], begun));
        }
        if outcome.kind != Outcome::GO_ON {
            self.went_wrong(link, outcome);
        }
        outcome
    }

    #[cold]
    fn went_wrong(&mut self, link: &Link, outcome: Outcome) {
        if outcome.kind == Outcome::PANICKED {
            let said = self.said.take(|words| &mut words.message).unwrap_or_default();
            self.chain.members[link.member].panicked(self.id, &link.stats, &said);
        } else {
            link.stats.refusals.fetch_add(1, Relaxed);
        }
    }

    /// Those behind this position are not asked.
    #[cold]
    fn stopped(&self, position: usize) {
        for link in self.list.links[position + 1..].iter().filter(|link| link.hook.is_some()) {
            link.stats.calls.fetch_sub(1, Relaxed);
        }
    }

    /// What the client is told of what the plugin at this position said.
    #[cold]
    fn refused(&mut self, position: usize, outcome: Outcome) -> Refusal {
        self.stopped(position);
        let (id, plugin) = (self.id, self.said.plugin);
        if outcome.kind == Outcome::PANICKED {
            // What a panic says is for the log: it may tell a client what is not its business.
            let message = format!("plugin \"{plugin}\" failed in {}; nothing was changed", HOOK_NAMES[id]);
            return Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() };
        }
        let mut status = outcome.status;
        if !(400..=599).contains(&status) {
            tracing::warn!(
                plugin,
                hook = HOOK_NAMES[id],
                status,
                "refused with a status that is no error; 500 is sent"
            );
            status = 500;
        }
        let mut headers = self.said.take(|words| &mut words.headers);
        headers.retain(|header| may_be_sent(header, plugin, id));
        let message = self.said.take(|words| &mut words.message).unwrap_or_default();
        Refusal { plugin: plugin.to_owned(), status, message, headers }
    }
}

impl Link {
    /// Notes how long a call took that began then. Returns when it ended.
    #[cold]
    fn note(&self, id: usize, member: &Member, begun: Instant) -> Instant {
        let ended = Instant::now();
        let time = ended - begun;
        self.stats.times.record(time);
        if let Some(budget) = member.conduct().budget.filter(|budget| time > *budget) {
            self.stats.overruns.fetch_add(1, Relaxed);
            let (plugin, hook) = (member.name(), HOOK_NAMES[id]);
            tracing::warn!(plugin, hook, "plugin \"{plugin}\" took {time:?} in {hook}; its budget is {budget:?}");
        }
        ended
    }
}

/// A plugin's text as one line: what a terminal or a reader of lines would take for more is escaped.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let breaks = |char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}');
    if !text.contains(breaks) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        if breaks(char) { line.extend(char.escape_default()) } else { line.push(char) }
    }
    line.into()
}

fn log_failure(plugin: &str, id: usize, said: &str) {
    let (hook, said) = (HOOK_NAMES[id], one_line(said));
    tracing::error!(plugin, hook, "plugin \"{plugin}\" failed in {hook}: {said}");
}

/// Whether a header of a plugin's is well-formed (RFC 9110, section 5) and leaves the framing to the host.
fn may_be_sent((name, value): &(String, String), plugin: &str, id: usize) -> bool {
    const FRAMING: [&str; 6] =
        ["connection", "content-length", "transfer-encoding", "trailer", "upgrade", "vkog-plugin"];
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let sent = !name.is_empty()
        && name.bytes().all(token)
        && value.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t')
        && !FRAMING.iter().any(|framing| name.eq_ignore_ascii_case(framing));
    if !sent {
        tracing::warn!(plugin, hook = HOOK_NAMES[id], name, "a header that cannot be sent was dropped");
    }
    sent
}

/// The origin of what nobody asked for.
struct Nowhere;

static NOWHERE: Nowhere = Nowhere;

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
    fn text_with_line_breaks_and_escapes_becomes_one_line() {
        assert_eq!(
            one_line("a \u{1b}[31m\r\nERROR b\u{2028}\u{85}\0"),
            "a \\u{1b}[31m\\r\\nERROR b\\u{2028}\\u{85}\\u{0}"
        );
        assert!(matches!(one_line("caf\u{e9} \"x\" \\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_header_that_would_break_the_answer_is_not_sent() {
        let may_be_sent = |name: &str, value: &str| may_be_sent(&(name.to_owned(), value.to_owned()), "mine", 0);
        assert!(may_be_sent("WWW-Authenticate", "Bearer realm=\"vkog\""));
        assert!(!may_be_sent("X-Two\r\nLines", "1"));
        assert!(!may_be_sent("X-Split", "1\r\nSet-Cookie: a"));
        assert!(!may_be_sent("", "1"));
        assert!(!may_be_sent("content-LENGTH", "0"));
        assert!(!may_be_sent("Vkog-Plugin", "somebody else"));
    }
}
