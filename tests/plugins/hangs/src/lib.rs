#![deny(unsafe_code)]
//! Never returns from the function that its settings name: `create`, `start`, `tick`, `settings_changed`, `drop`, a hook of
//! PUT for the key `hang`, or `exit`, a function that the system calls at the end of the process.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The function that never returns; none if it is not set.
    #[serde(default, rename = "where")]
    place: String,
}

struct Hangs {
    host: Host,
    place: Mutex<String>,
}

fn hang(host: Host, place: &str) -> ! {
    host.log(Level::Info, &format!("{place} hangs"));
    loop {
        thread::park();
    }
}

/// Registers a function that the end of the process waits for.
#[allow(unsafe_code)]
fn hang_at_exit() {
    unsafe extern "C" {
        safe fn atexit(function: extern "C" fn()) -> i32;
    }
    extern "C" fn hang() {
        loop {
            thread::park();
        }
    }
    assert_eq!(atexit(hang), 0);
}

impl Hangs {
    fn reach(&self, place: &str) {
        let is_here = *self.place.lock().expect("no holder of this lock panics") == place;
        if is_here {
            hang(self.host, place);
        }
    }
}

impl Plugin for Hangs {
    type Settings = Settings;

    fn create(host: Host, Settings { place }: Settings) -> Result<Self, CreateError> {
        match &*place {
            "create" => hang(host, "create"),
            "exit" => hang_at_exit(),
            _ => {}
        }
        Ok(Hangs { host, place: Mutex::new(place) })
    }
}

impl Drop for Hangs {
    fn drop(&mut self) {
        self.reach("drop");
    }
}

impl Start for Hangs {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        // If the store has entries, while it reads them.
        stored.for_each(|_, _| self.reach("start"));
        self.reach("start");
        Ok(())
    }
}

impl Tick for Hangs {
    fn tick(&self) -> Duration {
        self.reach("tick");
        Duration::from_secs(3600)
    }
}

impl SettingsChanged for Hangs {
    fn settings_changed(&self, Settings { place }: Settings) -> Result<(), String> {
        if place == "settings_changed" {
            hang(self.host, "settings_changed");
        }
        *self.place.lock().expect("no holder of this lock panics") = place;
        Ok(())
    }
}

impl BeforePut for Hangs {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.key() == "hang" {
            self.reach("before_put");
        }
        Ok(())
    }
}

impl GuardPut for Hangs {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.key() == "hang" {
            self.reach("guard_put");
        }
        Ok(())
    }
}

impl AfterPut for Hangs {
    fn after_put(&self, put: &After<'_, Put>) {
        if put.key() == "hang" {
            self.reach("after_put");
        }
    }
}

export_plugin!(Hangs);
