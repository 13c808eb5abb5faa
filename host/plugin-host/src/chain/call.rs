//! One call of a hook: what is lent to the plugin, and what it says.

use abi_stable::std_types::RSlice;

use super::details;
use vkog_plugin_api::abi::{HookFn, Outcome, RawCall, RawEntry, RawInstance, Verb};

/// Where a request came from: what a plugin rarely asks for, and so is looked up only when it does.
pub trait Origin: Send + Sync {
    /// The first header of this name, whatever its case.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The header at this position.
    fn header_at(&self, index: usize) -> Option<(&str, &[u8])>;
    /// The client's address; empty on a Unix socket.
    fn client(&self) -> &str;
    /// The plugin that asks; empty where a client does.
    fn asker(&self) -> &str {
        ""
    }
}

/// What a hook is called about.
#[derive(Copy, Clone)]
pub struct Subject<'a> {
    /// What is asked for.
    pub verb: Verb,
    /// The key.
    pub key: &'a str,
    /// The value to be written; empty for get and delete.
    pub value: &'a [u8],
    /// The media type of that value.
    pub content_type: &'a str,
    /// The request's query.
    pub query: &'a str,
    /// The revision the store had reached when the request arrived.
    pub arrived: u64,
    /// How deep plugins have asked: 0 for what a client asks.
    pub depth: u32,
    /// Headers and client.
    pub origin: &'a dyn Origin,
}

/// An entry as hooks see it.
#[derive(Copy, Clone)]
pub struct Seen<'a> {
    /// The value.
    pub value: &'a [u8],
    /// Its media type.
    pub content_type: &'a str,
    /// The details of all plugins, as [`super::Chain::guard`] gave them.
    pub details: &'a [u8],
    /// The revision.
    pub revision: u64,
}

impl<'a> Seen<'a> {
    pub(super) fn raw(&self, plugin: &str) -> RawEntry<'a> {
        RawEntry { details: details::find(self.details, plugin).into(), ..self.raw_without_details() }
    }

    #[inline(always)]
    pub(super) fn raw_without_details(&self) -> RawEntry<'a> {
        RawEntry {
            value: self.value.into(),
            content_type: self.content_type.into(),
            details: RSlice::EMPTY,
            revision: self.revision,
            reserved: [0; 2],
        }
    }
}

/// A function that is called with the key of an entry and the entry.
pub type Each<'a> = dyn FnMut(&str, Seen<'_>) + 'a;

/// Gives every entry of the store to a function.
pub type Scan<'a> = &'a dyn Fn(&mut Each<'_>);

/// What a plugin said during a call, beside its verdict. [`RawCall::cx`] points to it.
pub(super) struct Said<'a> {
    pub(super) plugin: &'static str,
    pub(super) origin: &'a dyn Origin,
    pub(super) scan: Option<Scan<'a>>,
    /// None while it has said nothing, as most do: there is less to make and to drop then.
    pub(super) words: Option<Box<Words>>,
}

impl Drop for Said<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(words) = self.words.take() {
            drop_words(words);
        }
    }
}

/// Apart, because most have said nothing.
#[cold]
#[inline(never)]
fn drop_words(words: Box<Words>) {
    drop(words);
}

/// What a plugin says through the functions of [`HostApi`](vkog_plugin_api::abi::HostApi).
#[derive(Default)]
pub(super) struct Words {
    pub(super) message: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) details: Option<Vec<u8>>,
}

impl<'a> Said<'a> {
    #[inline(always)]
    pub(super) fn nothing(origin: &'a dyn Origin) -> Self {
        Self { plugin: "", origin, scan: None, words: None }
    }

    /// Its words, to be added to.
    pub(super) fn words(&mut self) -> &mut Words {
        self.words.get_or_insert_default()
    }

    /// Takes one of its words, if there are any.
    #[inline(always)]
    pub(super) fn take<T: Default>(&mut self, word: impl FnOnce(&mut Words) -> &mut T) -> T {
        match &mut self.words {
            Some(words) => std::mem::take(word(words)),
            None => T::default(),
        }
    }
}

/// A call that is about this, without a [`RawCall::cx`].
#[inline(always)]
pub(super) fn about<'a>(
    subject: &Subject<'a>,
    [before, after]: [Option<&'a RawEntry<'a>>; 2],
    revision: u64,
) -> RawCall<'a> {
    RawCall {
        key: subject.key.into(),
        value: subject.value.into(),
        content_type: subject.content_type.into(),
        query: subject.query.into(),
        before,
        after,
        arrived: subject.arrived,
        verb: subject.verb,
        flags: 0,
        revision,
        reserved: 0,
        cx: std::ptr::null_mut(),
    }
}

/// A call that is about this, with the value that a plugin put in place of the request's. Apart, because few do.
#[cold]
pub(super) fn about_replaced<'a>(subject: &Subject<'a>, value: &'a [u8]) -> RawCall<'a> {
    about(&Subject { value, ..*subject }, [None, None], 0)
}

/// Calls a hook. What the plugin says beside its verdict is in `said` then.
///
/// # Safety
///
/// The instance is that of the module this function came from, and not destroyed; the module's layout was checked, and what
/// it is part of is loaded.
#[inline(always)]
pub(super) unsafe fn call(hook: HookFn, instance: RawInstance, raw: &mut RawCall<'_>, said: &mut Said<'_>) -> Outcome {
    raw.cx = std::ptr::from_mut(said).cast();
    // SAFETY: the caller's promise.
    unsafe { (hook.call)(instance.ptr, raw) }
}
