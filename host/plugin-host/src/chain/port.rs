//! What plugins reach of their host between calls, and the functions they reach it with.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock, Weak};
use std::time::SystemTime;

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RNone, ROption, RSlice, RSome, RStr};

use super::call::{Origin, Said, Seen};
use super::{Chain, Refusal, one_line};
use vkog_plugin_api::abi::{AnswerFn, EachFn, HostApi, HostApiRef, RawAnswer, RawAsk, RawHeader, ScanFn, Verb};

/// How deep plugins may ask while they are asked.
pub const DEPTH_MAX: u32 = 8;

/// What a plugin asks of the store.
pub struct Asked<'a> {
    /// What to do.
    pub verb: Verb,
    /// With which entry.
    pub key: &'a str,
    /// The value to be written.
    pub value: &'a [u8],
    /// Its media type; empty for the default.
    pub content_type: &'a str,
    /// The query that hooks see.
    pub query: &'a str,
    /// The headers that hooks see.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// The revision that the entry has to have.
    pub if_revision: Option<u64>,
    /// From where it is asked.
    pub from: Asking,
}

/// From where a plugin asks.
#[derive(Clone)]
pub struct Asking {
    /// The plugin.
    pub plugin: &'static str,
    /// How deep in hooks this is: 1 for what no hook asks.
    pub depth: u32,
    /// The chain whose hook asks. What is asked passes the same, since who waits for it is under way in that one.
    pub chain: Option<Arc<Chain>>,
}

/// What became of what a plugin asked for.
pub enum Answered<'a> {
    /// A get found this.
    Found(Seen<'a>),
    /// It is done, with this revision.
    Done(u64),
    /// There is no such entry.
    Absent,
    /// It was refused by a plugin, or by the host itself, which has an empty name.
    Refused(Cow<'a, Refusal>),
}

/// The store as plugins ask it, through their chain.
pub trait Services: Send + Sync {
    /// Does what a plugin asks for, waits until it is kept, and gives what became of it.
    fn ask(self: Arc<Self>, asked: &Asked<'_>, answer: &mut dyn FnMut(Answered<'_>));

    /// Does all that a plugin asks for, each by itself, waits until all of it is kept, and gives what became of each, in the
    /// same order.
    fn ask_each(self: Arc<Self>, asked: &[Asked<'_>], answer: &mut dyn FnMut(Answered<'_>)) {
        asked.iter().for_each(|asked| Arc::clone(&self).ask(asked, answer));
    }

    /// Gives every entry whose key begins so, and that a get would find, to a function, until that says `false`.
    fn for_each(self: Arc<Self>, prefix: &str, from: &Asking, each: &mut dyn FnMut(&str, Seen<'_>) -> bool);

    /// A plugin has panicked so often that it must not be called any more: [`Member::is_quarantined`](super::Member).
    fn quarantined(&self);
}

/// What the plugins of one host share of it.
pub struct Port {
    max_size: u64,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    services: RwLock<Option<Weak<dyn Services>>>,
    metrics: Mutex<BTreeMap<(&'static str, String), Metric>>,
}

/// The system's time, as a [`Port`]'s clock.
pub fn system_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A number that a plugin publishes.
#[derive(Clone)]
pub struct Metric {
    /// What it is, for people.
    pub help: String,
    /// It may also shrink, and be negative.
    pub is_gauge: bool,
    number: &'static AtomicU64,
}

impl Metric {
    /// Its value; a gauge's is signed.
    pub fn value(&self) -> i64 {
        self.number.load(Relaxed) as i64
    }
}

impl Port {
    /// Nothing can be asked yet. The clock gives milliseconds since 1970.
    pub fn new(max_size: u64, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { max_size, clock: Box::new(clock), services: RwLock::default(), metrics: Mutex::default() }
    }

    /// From now on plugins may ask.
    pub fn open(&self, services: Weak<dyn Services>) {
        *self.services.write().unwrap_or_else(PoisonError::into_inner) = Some(services);
    }

    /// From now on they may not.
    pub fn close(&self) {
        *self.services.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The numbers that a plugin publishes, by name.
    pub fn metrics(&self, plugin: &str) -> Vec<(String, Metric)> {
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let own = metrics.iter().filter(|((owner, _), _)| *owner == plugin);
        own.map(|((_, name), metric)| (name.clone(), metric.clone())).collect()
    }

    pub(super) fn services(&self) -> Option<Arc<dyn Services>> {
        self.services.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Weak::upgrade)
    }
}

/// What a plugin's [`RawHost::cx`](vkog_plugin_api::abi::RawHost) points to. Leaked, so that a thread which the plugin forgot to end
/// may still log.
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) port: Arc<Port>,
    /// It has started and is not destroyed. Before and after it may wait for whoever waits for it: who exchanges plugins.
    pub(super) may_ask: AtomicBool,
}

/// Whether an entry is locked. As wide as its neighbour in [`Scope`]: then that is copied in whole words.
#[repr(u32)]
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum Lock {
    Free,
    Held,
}

/// Where a thread is while it runs hooks.
#[derive(Copy, Clone)]
pub(super) struct Scope {
    /// How deep plugins have asked: 0 for what a client asked.
    pub(super) depth: u32,
    pub(super) lock: Lock,
    /// The chain, as `Arc::as_ptr` gives it; null outside of one.
    pub(super) chain: *const Chain,
}

thread_local! {
    static SCOPE: Cell<Scope> = const { Cell::new(Scope { depth: 0, lock: Lock::Free, chain: std::ptr::null() }) };
}

/// The scope before, which comes back when this is dropped.
pub(super) struct Entered(Scope);

impl Scope {
    #[inline(always)]
    pub(super) fn enter(self) -> Entered {
        Entered(SCOPE.replace(self))
    }
}

impl Drop for Entered {
    #[inline(always)]
    fn drop(&mut self) {
        SCOPE.set(self.0);
    }
}

/// From where the plugin asks, or why it must not.
fn asking(identity: &'static Identity) -> Result<(Arc<dyn Services>, Asking), Refusal> {
    let scope = SCOPE.get();
    let refuse =
        |message: &str| Refusal { plugin: String::new(), status: 508, message: message.into(), headers: vec![] };
    if scope.lock == Lock::Held {
        return Err(refuse("nothing can be asked of the store in guard and undo hooks: an entry is locked"));
    }
    if scope.depth >= DEPTH_MAX {
        return Err(refuse(&format!("plugins ask each other more than {DEPTH_MAX} deep")));
    }
    if !identity.may_ask.load(Relaxed) {
        return Err(refuse("this plugin has not started yet, or is not loaded any more"));
    }
    let services = identity.port.services().ok_or_else(|| refuse("the store is not served yet, or not any more"))?;
    let chain = (!scope.chain.is_null()).then(|| {
        // SAFETY: the pointer is an `Arc`'s, and whoever runs hooks in this scope holds that `Arc`.
        unsafe {
            Arc::increment_strong_count(scope.chain);
            Arc::from_raw(scope.chain)
        }
    });
    Ok((services, Asking { plugin: &identity.name, depth: scope.depth + 1, chain }))
}

/// The functions every plugin is handed.
pub(super) static HOST_API: LazyLock<HostApiRef> = LazyLock::new(|| {
    HostApi {
        log,
        max_size,
        message,
        refusal_header,
        replace_value,
        set_details,
        header,
        header_at,
        client,
        scan,
        ask,
        for_each,
        now,
        metric,
        asker,
        ask_each,
    }
    .leak_into_prefix()
});

/// Keeps a panic of the host's own code from crossing into a plugin, where it would end the process.
fn contained<T>(otherwise: T, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(otherwise)
}

/// The plugin that `cx` stands for.
///
/// # Safety
///
/// `cx` is the [`RawHost::cx`](vkog_plugin_api::abi::RawHost) that the plugin was created with.
unsafe fn identity(cx: *const ()) -> &'static Identity {
    // SAFETY: member.rs leaked it for this plugin.
    unsafe { &*cx.cast() }
}

/// The call that `cx` stands for.
///
/// # Safety
///
/// `cx` is the [`RawCall::cx`](vkog_plugin_api::abi::RawCall::cx) of a call that has not returned. The views see to it: they borrow
/// the call.
unsafe fn said<'a>(cx: *mut ()) -> &'a mut Said<'a> {
    // SAFETY: call.rs set it to a `Said` that outlives the call.
    unsafe { &mut *cx.cast() }
}

unsafe extern "C" fn log(cx: *const (), level: u32, line: RStr<'_>) {
    contained((), || {
        // SAFETY: see `identity`.
        let plugin = unsafe { identity(cx) }.name.as_str();
        let line = one_line(line.as_str());
        match level {
            1 => tracing::error!(plugin, "{line}"),
            2 => tracing::warn!(plugin, "{line}"),
            3 => tracing::info!(plugin, "{line}"),
            _ => tracing::debug!(plugin, "{line}"),
        }
    });
}

unsafe extern "C" fn max_size(cx: *const ()) -> u64 {
    // SAFETY: see `identity`.
    unsafe { identity(cx) }.port.max_size
}

unsafe extern "C" fn now(cx: *const ()) -> u64 {
    // SAFETY: see `identity`.
    contained(0, || (unsafe { identity(cx) }.port.clock)())
}

unsafe extern "C" fn message(cx: *mut (), text: RStr<'_>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.words().message = Some(text.to_string()));
}

unsafe extern "C" fn refusal_header(cx: *mut (), name: RStr<'_>, value: RStr<'_>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.words().headers.push((name.to_string(), value.to_string())));
}

unsafe extern "C" fn replace_value(cx: *mut (), value: RSlice<'_, u8>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.words().value = Some(value.to_vec()));
}

unsafe extern "C" fn set_details(cx: *mut (), details: RSlice<'_, u8>) {
    // SAFETY: see `said`.
    contained((), || unsafe { said(cx) }.words().details = Some(details.to_vec()));
}

unsafe extern "C" fn header(cx: *mut (), name: RStr<'_>) -> ROption<RSlice<'static, u8>> {
    contained(RNone, || {
        // SAFETY: see `said`. The origin outlives the call, and the views lend no longer than that.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        origin.header(name.as_str()).map(RSlice::from_slice).into()
    })
}

unsafe extern "C" fn header_at(cx: *mut (), index: usize) -> ROption<RawHeader<'static>> {
    contained(RNone, || {
        // SAFETY: as in `header`.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        match origin.header_at(index) {
            Some((name, value)) => RSome(RawHeader { name: name.into(), value: value.into() }),
            None => RNone,
        }
    })
}

unsafe extern "C" fn client(cx: *mut ()) -> RStr<'static> {
    contained(RStr::empty(), || {
        // SAFETY: as in `header`.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        origin.client().into()
    })
}

unsafe extern "C" fn asker(cx: *mut ()) -> RStr<'static> {
    contained(RStr::empty(), || {
        // SAFETY: as in `header`.
        let origin: &'static dyn Origin = unsafe { std::mem::transmute(said(cx).origin) };
        origin.asker().into()
    })
}

unsafe extern "C" fn scan(cx: *mut (), state: *mut (), each: ScanFn) {
    contained((), || {
        // SAFETY: see `said`.
        let (plugin, scan) = unsafe { (said(cx).plugin, said(cx).scan) };
        if let Some(scan) = scan {
            scan(&mut |key, seen| {
                // SAFETY: plugin-api passes the state that belongs to this function, and waits until the scan is over.
                unsafe { (each.each)(state, key.into(), &seen.raw(plugin)) }
            });
        }
    });
}

unsafe extern "C" fn ask(cx: *const (), raw: &RawAsk<'_>, state: *mut (), answer: AnswerFn) {
    // SAFETY: plugin-api passes what belongs together, and waits until this returns.
    unsafe { ask_all_of(cx, std::slice::from_ref(raw), state, answer) }
}

unsafe extern "C" fn ask_each(cx: *const (), raw: RSlice<'_, RawAsk<'_>>, state: *mut (), answer: AnswerFn) {
    // SAFETY: as in `ask`.
    unsafe { ask_all_of(cx, raw.as_slice(), state, answer) }
}

fn asked<'a>(raw: &'a RawAsk<'a>, from: &Asking) -> Asked<'a> {
    Asked {
        verb: raw.verb,
        key: raw.key.as_str(),
        value: raw.value.as_slice(),
        content_type: raw.content_type.as_str(),
        query: raw.query.as_str(),
        headers: raw.headers.iter().map(|header| (header.name.as_str(), header.value.as_slice())).collect(),
        if_revision: (raw.flags & RawAsk::IF_REVISION != 0).then_some(raw.revision),
        from: from.clone(),
    }
}

/// # Safety
///
/// `cx` is as [`identity`] says; the state belongs to the function, and lives until this returns.
unsafe fn ask_all_of(cx: *const (), raw: &[RawAsk<'_>], state: *mut (), answer: AnswerFn) {
    contained((), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let mut give = |answered: Answered<'_>| {
            let mut raw = RawAnswer {
                entry: None,
                message: RStr::empty(),
                plugin: RStr::empty(),
                revision: 0,
                status: 200,
                flags: 0,
                reserved: [0; 2],
            };
            let found;
            match &answered {
                Answered::Found(seen) => {
                    found = seen.raw(&identity.name);
                    raw.entry = Some(&found);
                    raw.revision = seen.revision;
                }
                Answered::Done(revision) => raw.revision = *revision,
                Answered::Absent => raw.status = 404,
                Answered::Refused(refusal) => {
                    raw.status = refusal.status.into();
                    raw.message = refusal.message.as_str().into();
                    raw.plugin = refusal.plugin.as_str().into();
                }
            }
            // SAFETY: the caller's promise.
            unsafe { (answer.answer)(state, &raw) }
        };
        let (services, from) = match asking(identity) {
            Ok(asking) => asking,
            Err(refusal) => return raw.iter().for_each(|_| give(Answered::Refused(Cow::Borrowed(&refusal)))),
        };
        match raw {
            [one] => services.ask(&asked(one, &from), &mut give),
            several => {
                let asked: Vec<_> = several.iter().map(|raw| asked(raw, &from)).collect();
                services.ask_each(&asked, &mut give);
            }
        }
    });
}

unsafe extern "C" fn for_each(cx: *const (), prefix: RStr<'_>, state: *mut (), each: EachFn) -> u32 {
    contained(500, || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let (services, from) = match asking(identity) {
            Ok(asking) => asking,
            Err(refusal) => return refusal.status.into(),
        };
        services.for_each(prefix.as_str(), &from, &mut |key, seen| {
            // SAFETY: plugin-api passes the state that belongs to this function, and waits until `for_each` returns.
            unsafe { (each.each)(state, key.into(), &seen.raw(&identity.name)) }
        });
        0
    })
}

unsafe extern "C" fn metric(cx: *const (), kind: u32, name: RStr<'_>, help: RStr<'_>) -> *const u64 {
    contained(std::ptr::null(), || {
        // SAFETY: see `identity`.
        let identity = unsafe { identity(cx) };
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let (name, is_gauge) = (name.as_str(), kind == 1);
        if name.is_empty() || !name.bytes().all(letter) || kind > 1 {
            let plugin = identity.name.as_str();
            tracing::warn!(plugin, "{name:?} is not published: the name of a number is of a to z, 0 to 9 and _");
            return std::ptr::null();
        }
        let mut metrics = identity.port.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let number = || &*Box::leak(Box::new(AtomicU64::new(0)));
        let metric = metrics.entry((identity.name.as_str(), name.to_owned())).or_insert_with(|| Metric {
            help: help.to_string(),
            is_gauge,
            number: number(),
        });
        metric.is_gauge = is_gauge;
        metric.number.as_ptr().cast_const()
    })
}
