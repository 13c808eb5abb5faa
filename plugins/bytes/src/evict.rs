//! Eviction: removes entries so that a write fits. Chooses them as Redis does: from random samples, the best of which stay
//! in a pool between calls. Knows neither the ledger nor how entries are counted.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use vkog_plugin_api::{Answer, Ask, Counter, Entry, Host, Refusal};

use super::access::{AccessTable, Policy};

/// The number of entries of a sample, and how many of the pool are evicted for each.
const SAMPLE: (u64, usize) = (16, 2);
/// The maximum number of candidates that stay in the pool.
const POOL: usize = 64;
/// The maximum number of entries that are removed at a time, so that they share few syncs of the log.
const BATCH: usize = 64;
/// After this number of attempts that removed nothing, there is no room.
const FRUITLESS_MAX: usize = 64;
/// The maximum number of refused writes of which the shortfall is known.
const WANTED_MAX: usize = 1024;
/// The bytes that are removed beyond what a write needs: a part of the limit, and their maximum.
const AHEAD: (u64, u64) = (256, 256 << 10);
/// The number of refusals of one operation after which these bytes double. A large batch is refused once for each of its writes that
/// lacks room, other writes take what it has removed, and it is decided again 256 times only.
const DOUBLE_AFTER: u32 = 16;
/// The number of operations whose refusals are counted.
const COUNTED_MAX: usize = 64;

/// The maximum time for which a write that finds nothing to remove waits for removals of other threads.
const WAIT: Duration = Duration::from_secs(10);

/// A refused write.
struct Wanted {
    /// The bytes by which its entry grows.
    needs: u64,
    /// How many of them are not free. In a batch, the operations before it have reserved some.
    lacks: u64,
    /// [`Evictor::freed`] at that time.
    freed: u64,
    /// How often its operation was refused before.
    refusals: u32,
}

/// The refused writes for which no room was made yet, and how often operations were refused.
#[derive(Default)]
struct Refused {
    wanted: Vec<Wanted>,
    /// By the revision of the store when the request arrived, which all attempts of an operation have in common.
    counts: VecDeque<(u64, u32)>,
}

impl Refused {
    /// Counts a refusal. Returns how often the operation was refused before.
    fn count(&mut self, arrived: u64) -> u32 {
        // An upsert of a plugin does not say when it arrived.
        if arrived == u64::MAX {
            return 0;
        }
        if let Some((_, count)) = self.counts.iter_mut().find(|(other, _)| *other == arrived) {
            *count += 1;
            return *count;
        }
        if self.counts.len() == COUNTED_MAX {
            self.counts.pop_front();
        }
        self.counts.push_back((arrived, 0));
        0
    }
}

/// An entry that may be evicted.
struct Candidate {
    /// Its rank in the table, then its revision, for entries of which the table knows nothing.
    rank: (u64, u64),
    hash: u64,
    cost: u64,
    key: String,
}

/// Removes entries for writes that do not fit.
pub(crate) struct Evictor {
    host: Host,
    accesses: AccessTable,
    limit: u64,
    ahead: u64,
    refused_writes: Mutex<Refused>,
    /// The candidates of which others were better, those with the lowest rank last.
    pool: Mutex<Vec<Candidate>>,
    /// The bytes of all removed entries.
    freed: AtomicU64,
    /// The number of threads that wait for removals, and a signal at the end of each.
    removing: (Mutex<u32>, Condvar),
    evicted: Counter,
    refused: Counter,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Evictor {
    pub(crate) fn new(host: Host, policy: Policy, limit: u64) -> Self {
        Self {
            host,
            accesses: AccessTable::new(policy, limit),
            limit,
            ahead: (limit / AHEAD.0).min(AHEAD.1),
            refused_writes: Mutex::default(),
            pool: Mutex::default(),
            freed: AtomicU64::new(0),
            removing: Default::default(),
            evicted: host.counter("evicted_total", "Entries that were removed to make room."),
            refused: host
                .counter("evictions_refused_total", "Removals to make room that a plugin or the store refused."),
        }
    }

    /// Records that a client has read or written an entry.
    pub(crate) fn accessed(&self, key: &str) {
        self.accesses.record(self.accesses.hash(key));
    }

    /// Records that an entry was removed, by an eviction or otherwise.
    pub(crate) fn freed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, SeqCst);
    }

    /// Records that a write was refused: when its request arrived, what it needs, and what it lacks. The host calls
    /// [`make_room`](Self::make_room) next.
    pub(crate) fn want(&self, arrived: u64, needs: u64, lacks: u64) {
        let mut refused = lock(&self.refused_writes);
        let refusals = refused.count(arrived);
        if refused.wanted.len() < WANTED_MAX {
            refused.wanted.push(Wanted { needs, lacks, freed: self.freed.load(SeqCst), refusals });
        }
    }

    /// Removes entries for a write that was refused. `free` returns the free bytes, `cost` those of an entry. Returns whether
    /// entries were removed since the refusal, by this call or others.
    pub(crate) fn make_room(&self, free: impl Fn() -> u64, cost: impl Fn(&str, Entry<'_>) -> u64) -> bool {
        // Without a refusal of this plugin, it is another one that lacks room.
        let Some(Wanted { needs, lacks, freed, refusals }) = lock(&self.refused_writes).wanted.pop() else {
            return false;
        };
        let gained = || self.freed.load(SeqCst).wrapping_sub(freed);
        let doubled = (refusals / DOUBLE_AFTER).min(u64::BITS / 2);
        let ahead = (self.ahead << doubled).min(self.limit);
        // Other writes took what was removed before, so what others remove now is not enough.
        let spare = if doubled > 0 { ahead } else { 0 };
        if gained() >= lacks && free() >= needs.saturating_add(spare) {
            return true;
        }
        // Do not wait for the pool: the thread that has it may wait for this one, if hooks of a removal write to the store.
        let (mut pooled, mut own) = (None, Vec::new());
        match self.pool.try_lock() {
            Ok(pool) => pooled = Some(pool),
            Err(TryLockError::Poisoned(pool)) => pooled = Some(pool.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        // One thread at a time makes room for others as well.
        let goal = lacks.saturating_add(if pooled.is_some() { ahead } else { spare });
        let pool = pooled.as_deref_mut().unwrap_or(&mut own);
        pool.iter_mut().for_each(|candidate| candidate.rank.0 = self.accesses.rank(candidate.hash));
        pool.sort_unstable_by_key(|candidate| Reverse(candidate.rank));
        // What others remove meanwhile does not count, because their writes take it.
        let (mut sum, mut fruitless) = (0, 0);
        while sum < goal && fruitless < FRUITLESS_MAX {
            // Requests that are nested too deep find nothing, and must not wait for those around them.
            let Ok(victims) = self.choose(pool, goal - sum, &cost) else { return gained() > 0 };
            let removed = self.remove(&victims);
            sum += removed;
            fruitless = if removed > 0 { 0 } else { fruitless + 1 };
        }
        drop(pooled);
        if gained() == 0 {
            // Others remove what is left, but their removals are not durable yet. Hooks of a removal may be what needs room: so
            // the time is limited.
            let (removing, ended) = &self.removing;
            let waits = |removing: &mut u32| *removing > 0 && gained() == 0;
            drop(ended.wait_timeout_while(lock(removing), WAIT, waits));
        }
        gained() > 0
    }

    /// Takes the best candidates out of the pool, until they have this number of bytes.
    fn choose(
        &self,
        pool: &mut Vec<Candidate>,
        goal: u64,
        cost: impl Fn(&str, Entry<'_>) -> u64,
    ) -> Result<Vec<Candidate>, Refusal> {
        let (mut victims, mut sum) = (Vec::new(), 0);
        while sum < goal && victims.len() < BATCH {
            self.sample(pool, &victims, &cost)?;
            let before = victims.len();
            while sum < goal
                && victims.len() < before + SAMPLE.1
                && let Some(victim) = pool.pop()
            {
                sum += victim.cost;
                victims.push(victim);
            }
            if victims.len() == before {
                break;
            }
        }
        Ok(victims)
    }

    /// Adds a random sample of entries to the pool, which keeps those with the lowest rank.
    fn sample(
        &self,
        pool: &mut Vec<Candidate>,
        victims: &[Candidate],
        cost: impl Fn(&str, Entry<'_>) -> u64,
    ) -> Result<(), Refusal> {
        self.host.sample(SAMPLE.0, |key, entry| {
            let hash = self.accesses.hash(key);
            let rank = (self.accesses.rank(hash), entry.revision());
            let at = pool.partition_point(|other| other.rank > rank);
            let is_known = pool.iter().chain(victims).any(|other| other.hash == hash);
            if !is_known && (at > 0 || pool.len() < POOL) {
                pool.insert(at, Candidate { rank, hash, cost: cost(key, entry), key: key.to_owned() });
                if pool.len() > POOL {
                    pool.remove(0);
                }
            }
            ControlFlow::Continue(())
        })
    }

    /// Removes entries through the chain. Returns the bytes of those that were removed.
    fn remove(&self, victims: &[Candidate]) -> u64 {
        let asks: Vec<_> = victims.iter().map(|victim| Ask::delete(&victim.key)).collect();
        let (removing, ended) = &self.removing;
        *lock(removing) += 1;
        let answers = self.host.ask_each(&asks);
        *lock(removing) -= 1;
        ended.notify_all();
        let mut sum = 0;
        for (victim, answer) in victims.iter().zip(answers) {
            match answer {
                Ok(Answer::Done(_)) => {
                    self.evicted.add(1);
                    sum += victim.cost;
                }
                Ok(_) => {}
                Err(_) => {
                    self.refused.add(1);
                    // Another attempt tries others first.
                    self.accesses.spare(victim.hash);
                }
            }
        }
        sum
    }
}
