//! The state of a thread that runs hooks: the chain, the nesting depth, and whether it may call the store.

use std::cell::Cell;
use std::sync::Arc;

use super::Chain;

/// Whether the thread holds the lock of an entry, updates an entry, serves a route, or applies changes. As wide as `depth` in
/// [`Scope`], so that the compiler copies both in one word.
#[repr(u32)]
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum Lock {
    Free,
    Held,
    /// Free, in a `serve` hook: its store calls have the permissions of the client.
    Serving,
    /// Free, in the function of an update or in a `serve_update` hook: it must not call the store.
    Updating,
    /// Free, on the thread that applies changes of other hosts, which the store waits for.
    Applying,
}

/// The state of a thread that runs hooks.
#[derive(Copy, Clone)]
pub(super) struct Scope {
    /// The nesting depth of plugin requests: 0 for a request of a client.
    pub(super) depth: u32,
    pub(super) lock: Lock,
    /// The chain, from `Arc::as_ptr`, or null outside of a chain.
    pub(super) chain: *const Chain,
}

thread_local! {
    static SCOPE: Cell<Scope> = const { Cell::new(Scope { depth: 0, lock: Lock::Free, chain: std::ptr::null() }) };
}

/// Restores the previous scope when it is dropped.
pub(super) struct ScopeGuard(Scope);

impl Scope {
    #[inline(always)]
    pub(super) fn enter(self) -> ScopeGuard {
        ScopeGuard(SCOPE.replace(self))
    }

    /// Returns the scope of this thread.
    pub(super) fn current() -> Self {
        SCOPE.get()
    }

    /// Returns the chain, if the thread runs hooks of one.
    pub(super) fn chain(&self) -> Option<Arc<Chain>> {
        (!self.chain.is_null()).then(|| {
            // SAFETY: the pointer came from an `Arc`, which the caller of the hooks holds until it leaves this scope.
            unsafe {
                Arc::increment_strong_count(self.chain);
                Arc::from_raw(self.chain)
            }
        })
    }
}

impl Drop for ScopeGuard {
    #[inline(always)]
    fn drop(&mut self) {
        SCOPE.set(self.0);
    }
}
