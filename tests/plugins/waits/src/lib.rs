#![forbid(unsafe_code)]
//! Blocks in the hooks of the keys `before` and `after` until the key `open` is created, and declares `BLOCKS`.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use vkog_plugin_api::*;

struct Waits {
    host: Host,
    open: Mutex<bool>,
    changed: Condvar,
}

impl Plugin for Waits {
    type Settings = NoSettings;
    const BLOCKS: bool = true;

    fn create(host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        Ok(Waits { host, open: Mutex::new(false), changed: Condvar::new() })
    }
}

impl Waits {
    fn wait(&self, hook: &str) -> bool {
        self.host.log(Level::Info, &format!("{hook} waits"));
        let open = self.open.lock().expect("no holder of this lock panics");
        // Shorter than a test's timeout, so that a deadlock is reported here.
        let waited = self.changed.wait_timeout_while(open, Duration::from_secs(20), |open| !*open);
        *waited.expect("no holder of this lock panics").0
    }
}

impl BeforeGet for Waits {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        if get.key() != "before" || self.wait("before_get") {
            return Ok(());
        }
        Err(Refusal::new(504, "no request created \"open\""))
    }
}

impl AfterPut for Waits {
    fn after_put(&self, put: &After<'_, Put>) {
        if put.key() == "after" {
            self.wait("after_put");
        }
    }
}

impl BeforePost for Waits {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        if post.key() == "open" {
            *self.open.lock().expect("no holder of this lock panics") = true;
            self.changed.notify_all();
        }
        Ok(())
    }
}

export_plugin!(Waits);
