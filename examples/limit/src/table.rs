//! A token bucket for each client, in bounded memory. A bucket is one time: when it is full again.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The number of parts of the table, each with its own lock.
const SHARDS: usize = 64;
/// The maximum number of clients of a part.
const CLIENTS_MAX: usize = 1024;

/// A rate and a burst.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Rate {
    /// The time in which a bucket gets one token.
    interval: Duration,
    /// The time in which an empty bucket gets full.
    full: Duration,
}

impl Rate {
    /// Requests per second, and the number of tokens in a full bucket.
    pub(crate) fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / rate;
        Self { interval, full: interval * burst }
    }

    /// Takes a token at a time. `full_at` is the time when the bucket is full again.
    ///
    /// # Errors
    ///
    /// The bucket is empty. The error is the time until it has a token.
    fn take(self, full_at: &mut Duration, now: Duration) -> Result<(), Duration> {
        let empty = now + self.full;
        // A clock that was put back must not block a client for longer than an empty bucket does.
        *full_at = (*full_at).clamp(now, empty);
        let taken = *full_at + self.interval;
        if taken > empty {
            return Err(taken - empty);
        }
        *full_at = taken;
        Ok(())
    }
}

/// The buckets of the clients whose buckets are not full.
pub(crate) struct Table<C> {
    rate: Rate,
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<C, Duration>>>,
}

impl<C: Clone + Eq + Hash> Table<C> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// Takes a token from the bucket of a client. The time is that since 1970.
    ///
    /// # Errors
    ///
    /// The bucket is empty. The error is the time until it has a token.
    pub(crate) fn take(&self, client: C, now: Duration) -> Result<(), Duration> {
        let shard = self.hasher.hash_one(&client) as usize % SHARDS;
        let mut shard = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if !shard.contains_key(&client) && shard.len() >= CLIENTS_MAX {
            make_room(&mut shard, now);
        }
        self.rate.take(shard.entry(client).or_insert(now), now)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// Forgets the clients whose buckets are full. If there are none, it forgets the one whose bucket is full first.
fn make_room<C: Clone + Eq + Hash>(shard: &mut HashMap<C, Duration>, now: Duration) {
    shard.retain(|_, full_at| *full_at > now);
    if shard.len() < CLIENTS_MAX {
        return;
    }
    let first = shard.iter().min_by_key(|(_, full_at)| **full_at).map(|(client, _)| client.clone());
    first.map(|client| shard.remove(&client));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_never_gives_more_than_burst_and_rate_allow() {
        let rate = Rate::new(10, 5);
        let (mut full_at, mut given) = (Duration::ZERO, 0);
        for millis in 1000..61_000 {
            let now = Duration::from_millis(millis);
            given += u32::from(rate.take(&mut full_at, now).is_ok());
        }
        assert_eq!(given, 5 + 599);
    }

    #[test]
    fn a_million_clients_take_bounded_memory() {
        let table = Table::new(Rate::new(1, 1));
        for client in 0..1_000_000_u32 {
            // A minute for all of them, so some buckets are full again.
            let _ = table.take(client, Duration::from_micros(u64::from(client) * 60));
        }
        assert!(table.len() <= SHARDS * CLIENTS_MAX, "{}", table.len());
        // A client that keeps sending is not forgotten.
        let now = Duration::from_secs(1000);
        assert_eq!(table.take(1, now), Ok(()));
        assert_eq!(table.take(1, now), Err(Duration::from_secs(1)));
    }

    #[test]
    fn a_full_shard_forgets_the_client_whose_bucket_is_full_first() {
        let second = Duration::from_secs(1);
        let mut shard: HashMap<u64, Duration> =
            (0..1024).map(|client| (client, second * (client as u32 + 2))).collect();
        make_room(&mut shard, second);
        assert!(shard.len() == 1023 && !shard.contains_key(&0));
        make_room(&mut shard, second * 10);
        assert_eq!(shard.len(), 1023 - 8);
    }
}
