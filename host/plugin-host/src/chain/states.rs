//! The states that plugins keep from one hook of an operation to the next.

use std::fmt::{self, Debug, Formatter};
use std::sync::{Mutex, OnceLock, PoisonError};

use vkog_plugin_api::abi::RawState;

use super::scope::{Lock, Scope};

/// The states that plugins keep for one operation. Part of the operation, and dropped with it. It allocates and locks nothing
/// until a plugin gets its place.
///
/// The hooks of one operation run one after the other, on any threads.
#[derive(Default)]
pub struct CallStates(OnceLock<Box<Mutex<Vec<Slot>>>>);

/// The state of one plugin.
struct Slot {
    /// The name, which is compared by its address: each instance of a plugin has its own, and gets no state of another one.
    plugin: &'static str,
    state: RawState,
}

// SAFETY: vkog-plugin-api requires `Send` of every state.
unsafe impl Send for Slot {}

impl CallStates {
    /// Returns the place for the state of a plugin. It is valid until another plugin gets its place or the states are
    /// dropped, so until the hook returns.
    pub(super) fn place(&self, plugin: &'static str) -> *mut RawState {
        let mut slots = self.0.get_or_init(Box::default).lock().unwrap_or_else(PoisonError::into_inner);
        let known = slots.iter().position(|slot| std::ptr::eq(slot.plugin, plugin));
        let index = known.unwrap_or_else(|| {
            slots.push(Slot { plugin, state: RawState { ptr: std::ptr::null_mut(), drop: None } });
            slots.len() - 1
        });
        &raw mut slots[index].state
    }

    /// Drops all states, because the operation has ended. Plugin code runs meanwhile, which cannot call the store.
    #[inline]
    pub fn clear(&self) {
        if let Some(slots) = self.0.get() {
            drop_all(slots);
        }
    }
}

#[cold]
fn drop_all(slots: &Mutex<Vec<Slot>>) {
    let slots = std::mem::take(&mut *slots.lock().unwrap_or_else(PoisonError::into_inner));
    // As under a lock: a store call could wait for a reload, which waits for this operation.
    let _scope = Scope { depth: 0, lock: Lock::Held, chain: std::ptr::null() }.enter();
    for Slot { state: RawState { ptr, drop }, .. } in slots {
        if let Some(drop) = drop.filter(|_| !ptr.is_null()) {
            // SAFETY: the plugin has set both together, and its library is never unloaded. The slot was taken out of the list,
            // so this happens once.
            unsafe { drop(ptr) }
        }
    }
}

impl Drop for CallStates {
    #[inline]
    fn drop(&mut self) {
        self.clear();
    }
}

impl Debug for CallStates {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("CallStates")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    static DROPS: AtomicU32 = AtomicU32::new(0);

    unsafe extern "C" fn count(_: *mut ()) {
        DROPS.fetch_add(1, SeqCst);
    }

    #[test]
    fn each_plugin_has_its_own_place_and_its_state_is_dropped_once() {
        let states = CallStates::default();
        let (one, two): (&'static str, &'static str) = (String::from("one").leak(), String::from("one").leak());
        let set = |plugin| {
            // SAFETY: the place is valid until another plugin gets its own.
            unsafe { *states.place(plugin) = RawState { ptr: std::ptr::dangling_mut(), drop: Some(count) } }
        };
        set(one);
        // SAFETY: as above.
        assert!(unsafe { (*states.place(two)).ptr.is_null() }, "another instance with the same name");
        set(two);
        // SAFETY: as above.
        assert!(!unsafe { (*states.place(one)).ptr.is_null() });
        states.clear();
        assert_eq!(DROPS.load(SeqCst), 2);
        drop(states);
        assert_eq!(DROPS.load(SeqCst), 2);
    }
}
