//! The state that a plugin keeps from one hook of an operation to the next.

#![allow(unsafe_code)]

use std::any::Any;

use crate::abi::RawState;
use crate::call::Request;
use crate::export::caught;

/// The target of [`RawState::ptr`]: a box of any type, so that the pointer is thin.
type Boxed = Box<dyn Any + Send>;

unsafe extern "C" fn drop_state(ptr: *mut ()) {
    // SAFETY: `set_state` made the pointer with `Box::into_raw`, and the host or `take_state` drops it once.
    let state = unsafe { Box::from_raw(ptr.cast::<Boxed>()) };
    // A panic must not unwind into the host. Its message is in the log.
    let _ = caught(|| drop(state));
}

impl Request<'_> {
    /// Keeps a value for the later hooks of this plugin for the same operation, such as from `before_put` to `guard_put` and
    /// `after_put`. Replaces the previous one. The host drops it at the end of the operation, also after a failure, on any
    /// thread. Each operation of a batch, of a listing or of a watch has its own. With a host older than 1.5 it is dropped
    /// at once. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// impl BeforePut for Mine {
    ///     fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
    ///         put.set_state(put.value().len());
    ///         Ok(())
    ///     }
    /// }
    ///
    /// impl AfterPut for Mine {
    ///     fn after_put(&self, put: &After<'_, Put>) {
    ///         if let Some(sent) = put.take_state::<usize>() {
    ///             put.add_header("X-Sent", &sent.to_string());
    ///         }
    ///     }
    /// }
    /// ```
    pub fn set_state<T: Send + 'static>(&self, state: T) {
        drop(self.take_boxed());
        if let Some(place) = self.state_place() {
            let boxed: Box<Boxed> = Box::new(Box::new(state));
            // SAFETY: the host lends the place to this hook alone, until it returns.
            unsafe { *place = RawState { ptr: Box::into_raw(boxed).cast(), drop: Some(drop_state) } };
        }
    }

    /// Returns a clone of the value that an earlier hook of this plugin has [kept](Self::set_state) for the operation; `None` if
    /// there is none, or one of another type. The value stays for later hooks. Use it in a guard, which may run several times for
    /// one write. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// /// Stores with the entry what `before_put` has found in the value.
    /// fn keep_title(put: &Guard<'_, Put>) {
    ///     put.set_details(put.state::<String>().unwrap_or_default().as_bytes());
    /// }
    /// ```
    pub fn state<T: Clone + Send + 'static>(&self) -> Option<T> {
        let place = self.state_place()?;
        // SAFETY: as in `set_state`; only `set_state` of this library sets the pointer. The clone may call this plugin, but no
        // function that changes the place: it has no access to the request.
        let boxed = unsafe { (*place).ptr.cast::<Boxed>().as_ref() }?;
        boxed.downcast_ref::<T>().cloned()
    }

    /// Takes the value that an earlier hook of this plugin has [kept](Self::set_state) for the operation; `None` if there is
    /// none, or one of another type. Later hooks, and a guard that runs again, do not find it any more: see
    /// [`state`](Self::state). Since 1.5.
    pub fn take_state<T: Send + 'static>(&self) -> Option<T> {
        match self.take_boxed()?.downcast() {
            Ok(state) => Some(*state),
            Err(other) => {
                drop(other);
                None
            }
        }
    }

    fn take_boxed(&self) -> Option<Boxed> {
        let place = self.state_place()?;
        // SAFETY: as in `set_state`.
        let RawState { ptr, .. } =
            unsafe { std::mem::replace(&mut *place, RawState { ptr: std::ptr::null_mut(), drop: None }) };
        // SAFETY: only `set_state` of this library sets the pointer, and it was just taken out of its place.
        (!ptr.is_null()).then(|| unsafe { *Box::from_raw(ptr.cast::<Boxed>()) })
    }

    fn state_place(&self) -> Option<*mut RawState> {
        // SAFETY: `cx` belongs to the call, which has not returned: `self` borrows it.
        let place = unsafe { self.api.state()?(self.call.cx) };
        (!place.is_null()).then_some(place)
    }
}
