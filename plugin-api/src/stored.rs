//! The entries of the store, which the host passes to a function of a plugin one after the other.

#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use abi_stable::std_types::RStr;

use crate::abi::{RawEntry, ScanFn};
use crate::call::{Entry, Request, View};

/// The argument of [`Start`](crate::Start): all entries of the store.
pub struct Stored<'a> {
    request: Request<'a>,
}

impl<'a> View<'a> for Stored<'a> {
    fn new(request: Request<'a>) -> Self {
        Self { request }
    }
}

impl Stored<'_> {
    /// Calls a function with the key and the entry of each stored entry, in no particular order. The entries do not
    /// change meanwhile.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn total(stored: &Stored<'_>) -> usize {
    ///     let mut total = 0;
    ///     stored.for_each(|key, entry| total += key.len() + entry.value().len());
    ///     total
    /// }
    /// ```
    pub fn for_each<F: FnMut(&str, Entry<'_>)>(&self, mut each: F) {
        unsafe extern "C" fn shim<F: FnMut(&str, Entry<'_>)>(visit: *mut (), key: RStr<'_>, raw: &RawEntry<'_>) {
            // SAFETY: `for_each` below passes this pointer together with this function, and waits until the scan ends.
            let visit = unsafe { &mut *visit.cast::<Visit<'_, F>>() };
            visit.run(|each| each(key.as_str(), Entry { raw }));
        }

        let mut visit = Visit::new(&mut each);
        // SAFETY: `cx` belongs to the call, which has not returned, and the host calls the function only until `scan`
        // does.
        unsafe {
            self.request.api.scan()(self.request.call.cx, (&raw mut visit).cast(), ScanFn { each: shim::<F> });
        }
        visit.finish();
    }
}

/// A plugin's function that the host calls with entries, and the payload of its panic. The panic must not unwind
/// through the host's frames.
pub(crate) struct Visit<'f, F> {
    each: &'f mut F,
    panic: Option<Box<dyn Any + Send>>,
}

impl<'f, F> Visit<'f, F> {
    pub(crate) fn new(each: &'f mut F) -> Self {
        Self { each, panic: None }
    }

    /// Calls the function, unless it has panicked.
    pub(crate) fn run<R>(&mut self, call: impl FnOnce(&mut F) -> R) -> Option<R> {
        if self.panic.is_some() {
            return None;
        }
        match catch_unwind(AssertUnwindSafe(|| call(self.each))) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.panic = Some(panic);
                None
            }
        }
    }

    /// Resumes the panic, after the host's frames are gone.
    pub(crate) fn finish(self) {
        if let Some(panic) = self.panic {
            resume_unwind(panic);
        }
    }
}
