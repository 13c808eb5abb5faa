//! The memory budget: the number of bytes that all requests in flight may hold together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;

/// A share of at most this many bytes is small.
pub(super) const SMALL: u64 = 64 << 10;

/// A limit on the bytes that requests in flight hold, over all connections.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
}

/// The budget has no room for a share until other requests end.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Budget {
    /// A budget of this many bytes. It lives until the process ends, so that a share needs no reference count.
    pub fn new(limit: u64) -> &'static Self {
        Box::leak(Box::new(Self { limit, used: AtomicU64::new(0) }))
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The number of bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// A share of no bytes yet.
    pub fn share(&'static self) -> Share {
        Share { budget: self, bytes: 0 }
    }

    fn take(&self, bytes: u64, limit: u64) -> Result<(), Exhausted> {
        let before = self.used.fetch_add(bytes, Relaxed);
        if before.saturating_add(bytes) > limit {
            self.used.fetch_sub(bytes, Relaxed);
            return Err(Exhausted);
        }
        Ok(())
    }
}

/// A part of the budget. Dropping it returns the bytes.
#[derive(Debug)]
pub struct Share {
    budget: &'static Budget,
    bytes: u64,
}

impl Share {
    /// Grows to this many bytes; never shrinks. Small shares have an eighth of the limit on top of it for themselves, so
    /// that a few large requests do not lock out the small ones.
    ///
    /// # Errors
    ///
    /// The budget has no room. The share keeps its size.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Exhausted> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else { return Ok(()) };
        let limit = self.budget.limit;
        let limit = if bytes <= SMALL { limit.saturating_add(limit / 8) } else { limit };
        self.budget.take(more, limit)?;
        self.bytes = bytes;
        Ok(())
    }

    /// Grows to this many bytes even if the budget has no room, for memory that stays in use. Further requests find less room.
    pub fn overdraw_to(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.bytes);
        self.budget.used.fetch_add(more, Relaxed);
        self.bytes += more;
    }

    /// Makes a response body that holds the share until it is dropped, when the client has received it.
    pub fn body(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Counted { bytes, _share: self })
    }
}

/// Bytes and their share.
struct Counted {
    bytes: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.used.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// The default limit, in bytes: an eighth of the memory that the process may use. The store copies a value up to four
/// times until its write is durable, and the entries need memory as well.
pub fn default_limit() -> u64 {
    usable_memory() / 8
}

/// The memory that the process may use, in bytes: the lowest of its address-space limit, the limits of its control groups
/// and the physical memory. One GiB on systems where none of these is known.
fn usable_memory() -> u64 {
    let limits = [address_space(), control_group(), physical()];
    limits.into_iter().flatten().min().unwrap_or(1 << 30)
}

#[cfg(unix)]
fn address_space() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

#[cfg(not(unix))]
fn address_space() -> Option<u64> {
    None
}

/// The lowest `memory.max` (cgroup v2) of the process's control group and those above it.
#[cfg(target_os = "linux")]
fn control_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = std::path::Path::new("/sys/fs/cgroup");
    let own = root.join(group);
    let above = own.ancestors().take_while(|folder| folder.starts_with(root));
    // A limit is a number, or `max` for none.
    let limit = |folder: &std::path::Path| {
        let text = std::fs::read_to_string(folder.join("memory.max")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    above.filter_map(limit).min()
}

#[cfg(not(target_os = "linux"))]
fn control_group() -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn physical() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(kib.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

#[cfg(not(target_os = "linux"))]
fn physical() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_limit_and_return_their_bytes() {
        let budget = Budget::new(1 << 20);
        let (mut first, mut second) = (budget.share(), budget.share());
        assert_eq!(first.grow_to(900 << 10), Ok(()));
        assert_eq!(first.grow_to(100), Ok(()), "a share does not shrink");
        assert_eq!(budget.used(), 900 << 10);
        assert_eq!(second.grow_to(200 << 10), Err(Exhausted));
        assert_eq!(budget.used(), 900 << 10, "a refusal takes nothing");
        drop(first);
        assert_eq!(second.grow_to(200 << 10), Ok(()));
        let body = second.body(vec![1; 3]);
        assert_eq!((&body[..], budget.used()), (&[1; 3][..], 200 << 10));
        drop(body);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn large_shares_leave_room_for_small_ones() {
        let budget = Budget::new(1 << 20);
        let mut large = budget.share();
        assert_eq!(large.grow_to(1 << 20), Ok(()));
        let mut small = [budget.share(), budget.share(), budget.share()];
        let grown = small.each_mut().map(|share| share.grow_to(SMALL).is_ok());
        assert_eq!(grown, [true, true, false]);
        assert_eq!(large.grow_to((1 << 20) + 1), Err(Exhausted));
    }

    #[test]
    fn the_default_limit_is_known_on_this_machine() {
        assert!(default_limit() > 1 << 20, "{}", default_limit());
    }
}
