//! Counters without locked instructions: each thread increments its own slot.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// The number of threads that have their own slot. All others share one, with locked instructions.
const OWN_SLOTS: usize = 64;
const SHARED_SLOT: usize = OWN_SLOTS;

/// The counters of one slot, in their own cache lines.
#[repr(align(128))]
struct Slot<const N: usize>([AtomicU64; N]);

/// `N` counters that any thread may increment, for events so frequent that a locked instruction would be measurable.
pub struct Counts<const N: usize>(Box<[Slot<N>]>);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self((0..=OWN_SLOTS).map(|_| Slot([const { AtomicU64::new(0) }; N])).collect())
    }
}

impl<const N: usize> Counts<N> {
    /// Increments a counter. Returns the value that it had before in this thread's slot.
    #[inline(always)]
    pub fn count(&self, index: usize) -> u64 {
        let slot = SLOT.get();
        if slot < OWN_SLOTS {
            let number = &self.0[slot].0[index];
            // Only this thread writes it, so that reading and writing need not be one step.
            let before = number.load(Relaxed);
            number.store(before + 1, Relaxed);
            return before;
        }
        self.count_slowly(index)
    }

    #[cold]
    fn count_slowly(&self, index: usize) -> u64 {
        if SLOT.get() == UNKNOWN {
            SLOT.set(Claim::take());
            return self.count(index);
        }
        self.0[SHARED_SLOT].0[index].fetch_add(1, Relaxed)
    }

    /// The sum over all threads.
    pub fn sum(&self, index: usize) -> u64 {
        self.0.iter().map(|slot| slot.0[index].load(Relaxed)).sum()
    }
}

const UNKNOWN: usize = usize::MAX;

thread_local! {
    static SLOT: Cell<usize> = const { Cell::new(UNKNOWN) };
    /// Frees the slot when the thread ends.
    static CLAIM: Cell<Option<Claim>> = const { Cell::new(None) };
}

/// A thread's right to its slot.
struct Claim(usize);

/// The slots that threads have freed, and the first one that was never used.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

impl Claim {
    /// Returns a slot for this thread, until it ends.
    fn take() -> usize {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = match free.0.pop() {
            Some(slot) => slot,
            None if free.1 < OWN_SLOTS => {
                free.1 += 1;
                free.1 - 1
            }
            None => return SHARED_SLOT,
        };
        // A thread that is ending, whose locals are destroyed already, uses the shared slot.
        match CLAIM.try_with(|claim| claim.set(Some(Claim(slot)))) {
            Ok(()) => slot,
            Err(_) => SHARED_SLOT,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        SLOT.set(SHARED_SLOT);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_count_is_lost_while_threads_start_and_end() {
        let counts = Counts::<4>::default();
        for _ in 0..3 {
            thread::scope(|scope| {
                for _ in 0..OWN_SLOTS + 20 {
                    scope.spawn(|| (0..1000).for_each(|_| _ = counts.count(3)));
                }
            });
        }
        assert_eq!(counts.sum(3), 3 * 1000 * (OWN_SLOTS as u64 + 20));
        assert_eq!(counts.sum(2), 0);
    }
}
