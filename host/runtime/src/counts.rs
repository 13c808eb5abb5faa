//! How often things happened, counted without a locked instruction: each thread has numbers of its own.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// So many threads count on their own. Those beyond share a place, and wait for each other's caches.
const OWN_PLACES: usize = 64;
const SHARED_PLACE: usize = OWN_PLACES;

/// The numbers of one place, in cache lines of their own.
#[repr(align(128))]
struct Place<const N: usize>([AtomicU64; N]);

/// So many numbers that any thread may count up: for what happens so often that a locked instruction would show.
pub struct Counts<const N: usize>(Box<[Place<N>]>);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self((0..=OWN_PLACES).map(|_| Place([const { AtomicU64::new(0) }; N])).collect())
    }
}

impl<const N: usize> Counts<N> {
    /// Counts one more, and returns how many there were before at this thread's place.
    #[inline(always)]
    pub fn count(&self, index: usize) -> u64 {
        let place = PLACE.get();
        if place < OWN_PLACES {
            let number = &self.0[place].0[index];
            // Nobody else writes it, so that reading and writing need not be one step.
            let before = number.load(Relaxed);
            number.store(before + 1, Relaxed);
            return before;
        }
        self.count_elsewhere(index)
    }

    #[cold]
    fn count_elsewhere(&self, index: usize) -> u64 {
        if PLACE.get() == UNKNOWN {
            PLACE.set(Claim::take());
            return self.count(index);
        }
        self.0[SHARED_PLACE].0[index].fetch_add(1, Relaxed)
    }

    /// How many were counted by all threads.
    pub fn sum(&self, index: usize) -> u64 {
        self.0.iter().map(|place| place.0[index].load(Relaxed)).sum()
    }
}

const UNKNOWN: usize = usize::MAX;

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(UNKNOWN) };
    /// Gives the place back when the thread ends.
    static CLAIM: Cell<Option<Claim>> = const { Cell::new(None) };
}

/// A thread's right to a place of its own.
struct Claim(usize);

/// The places that no thread has, and the first that none has had yet.
static FREE: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

impl Claim {
    /// A place for this thread, until it ends.
    fn take() -> usize {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match free.0.pop() {
            Some(place) => place,
            None if free.1 < OWN_PLACES => {
                free.1 += 1;
                free.1 - 1
            }
            None => return SHARED_PLACE,
        };
        // A thread whose locals are gone already counts with the others.
        match CLAIM.try_with(|claim| claim.set(Some(Claim(place)))) {
            Ok(()) => place,
            Err(_) => SHARED_PLACE,
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        PLACE.set(SHARED_PLACE);
        FREE.lock().unwrap_or_else(PoisonError::into_inner).0.push(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn no_run_is_lost_however_many_threads_count_and_end() {
        let runs = Counts::<4>::default();
        for _ in 0..3 {
            thread::scope(|scope| {
                for _ in 0..OWN_PLACES + 20 {
                    scope.spawn(|| (0..1000).for_each(|_| _ = runs.count(3)));
                }
            });
        }
        assert_eq!(runs.sum(3), 3 * 1000 * (OWN_PLACES as u64 + 20));
        assert_eq!(runs.sum(2), 0);
    }
}
