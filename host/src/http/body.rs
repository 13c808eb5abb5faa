//! Buffers the body of a request, within its limit and the memory budget.

use std::time::Duration;

use super::budget::{Budget, SMALL, Share};
use super::{BodyFault, BodyLength};

/// Bodies of at most this length, and heads of HTTP/2, are not counted, in bytes: the number of requests in flight bounds them.
pub const UNCOUNTED: usize = 4 << 10;
/// A client may send slower than [`RATE_MIN`] for this long.
const SLOW_MAX: Duration = Duration::from_secs(30);
/// The minimum rate of a body, in bytes per second, on average over [`SLOW_MAX`]: an earlier burst does not count, since
/// the body holds its share of the memory budget meanwhile.
const RATE_MIN: u64 = 1 << 10;

/// The body of a request that is being received. It allocates for what has arrived, never for what is declared.
#[derive(Debug)]
pub struct BodyBuffer {
    bytes: Vec<u8>,
    length: BodyLength,
    /// The longest body, in bytes: what is declared, if it is.
    max: u64,
    share: Share,
    /// The time of the last successful check of the rate, after the head, and the number of bytes received by then.
    checked: (Duration, u64),
}

impl BodyBuffer {
    /// Creates an empty buffer.
    ///
    /// # Errors
    ///
    /// The declared length exceeds `max`.
    pub fn new(length: BodyLength, max: u64, budget: &'static Budget) -> Result<Self, BodyFault> {
        let max = match length {
            BodyLength::Known(declared) if declared > max => {
                return Err(BodyFault::TooLarge { declared: Some(declared) });
            }
            BodyLength::Known(declared) => declared,
            BodyLength::Chunked => max,
        };
        Ok(Self { bytes: Vec::new(), length, max, share: budget.share(), checked: (Duration::ZERO, 0) })
    }

    /// Appends a piece that has arrived.
    ///
    /// # Errors
    ///
    /// The body exceeds the limit, or the memory budget has no room for it.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BodyFault> {
        let len = self.bytes.len() + piece.len();
        if len as u64 > self.max {
            return Err(BodyFault::TooLarge { declared: None });
        }
        if len > self.bytes.capacity() {
            self.make_room(len)?;
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// Makes room for at least `len` bytes, and for half as much again as there was: so the bytes are moved a few times only.
    fn make_room(&mut self, len: usize) -> Result<(), BodyFault> {
        let capacity = self.bytes.capacity();
        let wanted = (capacity + capacity / 2).max(SMALL as usize);
        let room = wanted.min(usize::try_from(self.max).unwrap_or(usize::MAX)).max(len);
        if room > UNCOUNTED {
            self.share.grow_to(room as u64).map_err(|_| BodyFault::NoMemory)?;
        }
        self.bytes.try_reserve_exact(room - self.bytes.len()).map_err(|_| BodyFault::NoMemory)
    }

    /// Returns the number of bytes that have arrived.
    pub fn received(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether all bytes of a known length have arrived. The end of a chunked body is its last chunk.
    pub fn is_full(&self) -> bool {
        self.length == BodyLength::Known(self.received())
    }

    /// Checks the rate, `elapsed` after the head of the request.
    ///
    /// # Errors
    ///
    /// The client sends too slowly.
    pub fn check_rate(&mut self, elapsed: Duration) -> Result<(), BodyFault> {
        let (since, received) = self.checked;
        let took = elapsed.saturating_sub(since);
        if took <= SLOW_MAX {
            return Ok(());
        }
        if self.received() - received < took.as_secs() * RATE_MIN {
            return Err(BodyFault::TooSlow);
        }
        self.checked = (elapsed, self.received());
        Ok(())
    }

    /// Returns the whole body and its share of the memory budget, to be held until the request has been answered.
    ///
    /// # Errors
    ///
    /// Less has arrived than was declared.
    pub fn finish(self) -> Result<(Vec<u8>, Share), BodyFault> {
        match self.length {
            BodyLength::Known(declared) if self.received() < declared => Err(self.cut_off()),
            _ => Ok((self.bytes, self.share)),
        }
    }

    /// Returns the fault of a body whose client ended the connection before the end of the body.
    pub fn cut_off(&self) -> BodyFault {
        let declared = match self.length {
            BodyLength::Known(declared) => Some(declared),
            BodyLength::Chunked => None,
        };
        BodyFault::CutOff { received: self.received(), declared }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 10 << 20;

    fn buffer(length: BodyLength, budget: &'static Budget) -> BodyBuffer {
        BodyBuffer::new(length, MAX, budget).expect("it is not too long")
    }

    #[test]
    fn a_body_is_what_arrived_in_pieces() {
        for length in [BodyLength::Known(12), BodyLength::Chunked] {
            let mut buffer = buffer(length, Budget::new(MAX));
            for piece in ["one ", "two ", "", "last"] {
                assert!(!buffer.is_full());
                assert_eq!(buffer.push(piece.as_bytes()), Ok(()));
            }
            assert_eq!(buffer.is_full(), length != BodyLength::Chunked);
            let (bytes, _) = buffer.finish().expect("it is whole");
            assert_eq!(bytes, b"one two last");
        }
    }

    #[test]
    fn a_body_over_its_limit_is_too_large_as_soon_as_that_is_known() {
        let budget = Budget::new(MAX);
        let declared = BodyBuffer::new(BodyLength::Known(MAX + 1), MAX, budget).map(drop);
        assert_eq!(declared, Err(BodyFault::TooLarge { declared: Some(MAX + 1) }));
        let mut chunked = BodyBuffer::new(BodyLength::Chunked, 10, budget).expect("nothing is declared");
        assert_eq!(chunked.push(&[0; 10]), Ok(()));
        assert_eq!(chunked.push(&[0]), Err(BodyFault::TooLarge { declared: None }));
    }

    #[test]
    fn a_body_takes_memory_as_it_arrives_and_returns_it_with_its_share() {
        let budget = Budget::new(MAX);
        let mut buffer = buffer(BodyLength::Known(MAX), budget);
        assert_eq!((budget.used(), buffer.bytes.capacity()), (0, 0));
        let piece = vec![1; 100_000];
        while !buffer.is_full() {
            let left = (MAX - buffer.received()).min(piece.len() as u64) as usize;
            assert_eq!(buffer.push(&piece[..left]), Ok(()));
            assert!(budget.used() >= buffer.received());
            assert!(budget.used() <= buffer.received() * 3 / 2, "{} for {}", budget.used(), buffer.received());
        }
        let (bytes, share) = buffer.finish().expect("it is whole");
        assert_eq!((bytes.len(), bytes.capacity(), budget.used()), (MAX as usize, MAX as usize, MAX));
        drop(share);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_small_body_is_not_counted() {
        let budget = Budget::new(0);
        let mut buffer = buffer(BodyLength::Known(4096), budget);
        assert_eq!(buffer.push(&[1; 4096]), Ok(()));
        assert!(buffer.is_full());
    }

    #[test]
    fn a_body_beyond_the_budget_finds_no_memory() {
        let budget = Budget::new(1 << 20);
        let mut first = buffer(BodyLength::Chunked, budget);
        assert_eq!(first.push(&vec![0; 900 << 10]), Ok(()));
        let mut second = buffer(BodyLength::Chunked, budget);
        assert_eq!(second.push(&vec![0; 200 << 10]), Err(BodyFault::NoMemory));
        drop(first);
        assert_eq!(second.push(&vec![0; 200 << 10]), Ok(()));
    }

    #[test]
    fn a_body_that_ends_early_is_cut_off() {
        let mut buffer = buffer(BodyLength::Known(5), Budget::new(MAX));
        assert_eq!(buffer.push(b"four"), Ok(()));
        assert_eq!(buffer.finish().map(drop), Err(BodyFault::CutOff { received: 4, declared: Some(5) }));
    }

    #[test]
    fn a_body_is_too_slow_after_half_a_minute_below_the_minimum_rate() {
        let mut buffer = buffer(BodyLength::Known(MAX), Budget::new(MAX));
        assert_eq!(buffer.push(&[0; 100]), Ok(()));
        assert_eq!(buffer.check_rate(Duration::from_secs(30)), Ok(()));
        assert_eq!(buffer.check_rate(Duration::from_secs(31)), Err(BodyFault::TooSlow));
        assert_eq!(buffer.push(&vec![0; 100 << 10]), Ok(()));
        assert_eq!(buffer.check_rate(Duration::from_secs(100)), Ok(()));
        // A megabyte that came at once buys no hour.
        assert_eq!(buffer.push(&vec![0; 1 << 20]), Ok(()));
        assert_eq!(buffer.check_rate(Duration::from_secs(140)), Ok(()));
        assert_eq!(buffer.push(&[0; 100]), Ok(()));
        assert_eq!(buffer.check_rate(Duration::from_secs(170)), Ok(()));
        assert_eq!(buffer.check_rate(Duration::from_secs(171)), Err(BodyFault::TooSlow));
    }
}
