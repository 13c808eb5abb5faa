//! How the system's allocator treats large allocations.

#![allow(unsafe_code)]

/// Sets how glibc's allocator, if it is in use, treats the memory of a store. Call it before the process has threads.
///
/// - It returns each allocation of a mebibyte or more to the system as soon as it is freed. By default it does that only until
///   the first one is freed, and then keeps such memory in pieces that later allocations of another size do not fill: a store of
///   values of 1 MiB took 1.4 times its size after they had been replaced by others.
/// - With `one_arena`, all threads share one arena. By default each thread has its own, and cannot reuse what another one has
///   freed: a store of small entries took 1.5 times its size after another connection had replaced them. It costs nothing where
///   few threads allocate. The environment variable `MALLOC_ARENA_MAX` takes precedence.
pub fn configure_allocator(one_arena: bool) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 1 << 20;
        let arenas = (one_arena && std::env::var_os("MALLOC_ARENA_MAX").is_none()).then_some((libc::M_ARENA_MAX, 1));
        // The other threshold follows the first one unless it is set: free memory at the end of a heap up to this size stays in
        // the process.
        let thresholds = [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, 2 * LARGE)];
        for (parameter, value) in thresholds.into_iter().chain(arenas) {
            // SAFETY: the call changes a number of the allocator.
            if unsafe { libc::mallopt(parameter, value) } == 0 {
                tracing::debug!("cannot set a parameter of the allocator, so it may keep freed memory");
            }
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = one_arena;
}
