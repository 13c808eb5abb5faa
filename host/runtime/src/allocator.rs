//! How the system's allocator treats large allocations.

#![allow(unsafe_code)]

/// Lets the allocator return each allocation of a mebibyte or more to the system as soon as it is freed. By default, glibc
/// does that only until the first one is freed, and then keeps such memory in pieces that later allocations of another size do
/// not fill: a store of values of 1 MiB took 1.4 times its size after they had been replaced by others. Call it before the
/// process has threads. Other allocators are left as they are.
pub fn return_large_allocations() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 1 << 20;
        // The other threshold follows the first one unless it is set: free memory at the end of a heap up to this size stays in the process.
        for (parameter, value) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, 2 * LARGE)] {
            // SAFETY: the call changes a number of the allocator.
            if unsafe { libc::mallopt(parameter, value) } == 0 {
                tracing::debug!("cannot set a threshold of the allocator, so it may keep freed memory");
            }
        }
    }
}
