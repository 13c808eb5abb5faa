//! The number of bytes in use and its limit, exact with any number of threads. Knows neither entries nor hooks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The bytes in use, and their limit.
pub(crate) struct Ledger {
    limit: u64,
    // Relaxed throughout: this number is the whole state, and no other memory is published by it.
    held: AtomicU64,
}

/// The error of a reservation that does not fit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full {
    /// The free bytes.
    pub(crate) free: u64,
    /// The bytes that would have to be released first.
    pub(crate) lacks: u64,
}

impl Ledger {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, held: AtomicU64::new(0) }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the free bytes.
    pub(crate) fn free(&self) -> u64 {
        self.limit.saturating_sub(in_use(self.held.load(Relaxed)))
    }

    /// Sets the bytes in use before the first reservation. They may exceed the limit, because stored entries stay
    /// stored.
    pub(crate) fn open(&self, held: u64) {
        self.held.store(held, Relaxed);
    }

    /// Reserves bytes: all or none.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), Full> {
        // A ledger over its limit refuses growth only.
        if bytes == 0 {
            return Ok(());
        }
        // Adding first and checking afterwards would exceed the limit for an instant and refuse other writes that fit.
        let fits = |held| {
            let sum = in_use(held).checked_add(bytes);
            sum.filter(|sum| *sum <= self.limit).map(|_| held.wrapping_add(bytes))
        };
        match self.held.fetch_update(Relaxed, Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(held) => {
                let held = in_use(held);
                Err(Full { free: self.limit.saturating_sub(held), lacks: held.saturating_add(bytes) - self.limit })
            }
        }
    }

    /// Releases bytes that were reserved or set by [`open`](Self::open).
    pub(crate) fn release(&self, bytes: u64) {
        self.settle(bytes, 0);
    }

    /// Replaces reserved bytes by those that are in use, which may exceed the limit.
    pub(crate) fn settle(&self, reserved: u64, used: u64) {
        // Writes of one key are settled in any order, so that the sum may be below zero for an instant.
        self.held.fetch_add(used.wrapping_sub(reserved), Relaxed);
    }
}

/// Returns the bytes in use: a sum below zero counts as none.
fn in_use(held: u64) -> u64 {
    if held.cast_signed() < 0 { 0 } else { held }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn held(ledger: &Ledger) -> u64 {
        ledger.held.load(Relaxed)
    }

    #[test]
    fn the_last_free_byte_can_be_reserved_and_the_next_cannot() {
        let ledger = Ledger::new(10);
        assert_eq!(ledger.reserve(7), Ok(()));
        assert_eq!(ledger.reserve(4), Err(Full { free: 3, lacks: 1 }));
        assert_eq!(ledger.reserve(3), Ok(()));
        assert_eq!(ledger.reserve(1), Err(Full { free: 0, lacks: 1 }));
        assert_eq!(held(&ledger), 10);
    }

    #[test]
    fn a_refused_reservation_takes_nothing_however_large() {
        let ledger = Ledger::new(u64::MAX);
        assert_eq!(ledger.reserve(1), Ok(()));
        assert_eq!(ledger.reserve(u64::MAX), Err(Full { free: u64::MAX - 1, lacks: 0 }));
        assert_eq!(held(&ledger), 1);
    }

    #[test]
    fn a_ledger_opened_over_its_limit_refuses_growth_until_there_is_room() {
        let ledger = Ledger::new(10);
        ledger.open(12);
        assert_eq!(ledger.reserve(1), Err(Full { free: 0, lacks: 3 }));
        assert_eq!(ledger.reserve(0), Ok(()), "nothing grows");
        ledger.release(3);
        assert_eq!(ledger.reserve(1), Ok(()));
        assert_eq!(held(&ledger), 10);
    }

    #[test]
    fn writes_may_be_settled_in_any_order() {
        let ledger = Ledger::new(10);
        assert_eq!(ledger.reserve(4), Ok(()));
        // The entry is removed with the six bytes that it has, before its write is settled.
        ledger.release(6);
        assert_eq!(ledger.reserve(11), Err(Full { free: 10, lacks: 1 }));
        assert_eq!(ledger.reserve(10), Ok(()));
        ledger.settle(4, 6);
        assert_eq!(held(&ledger), 10);
        ledger.settle(10, 12);
        assert_eq!(ledger.reserve(1), Err(Full { free: 0, lacks: 3 }));
        assert_eq!(held(&ledger), 12);
    }

    #[test]
    fn racing_threads_never_pass_the_limit_and_the_end_is_exact() {
        const LIMIT: u64 = 100;
        let ledger = Ledger::new(LIMIT);
        // The sum of what the threads own is never greater than the ledger's number, and so never greater than the
        // limit.
        let owned = AtomicU64::new(0);
        let run = |thread: u64| {
            let mut kept = 0;
            for round in 0..50_000 {
                let bytes = (round * 7 + thread) % 40 + 1;
                if ledger.reserve(bytes).is_ok() {
                    let sum = owned.fetch_add(bytes, Relaxed) + bytes;
                    assert!(sum <= LIMIT, "{sum} of {LIMIT} bytes are owned");
                    kept += bytes;
                }
                if kept > 0 && round % 3 != 0 {
                    owned.fetch_sub(kept, Relaxed);
                    ledger.release(kept);
                    kept = 0;
                }
            }
            kept
        };
        let kept: u64 = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || run(thread))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no assertion failed")).sum()
        });
        assert_eq!(held(&ledger), kept);
    }

    #[test]
    fn racing_threads_together_reserve_all_there_is() {
        const LIMIT: u64 = 100_000;
        let ledger = Ledger::new(LIMIT);
        let run = || (0..).take_while(|_: &u64| ledger.reserve(1).is_ok()).count() as u64;
        let reserved: u64 = thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it counts")).sum()
        });
        assert_eq!((reserved, held(&ledger)), (LIMIT, LIMIT));
    }
}
