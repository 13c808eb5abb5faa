//! A plugin of the time of vkog-plugin-api 1.2.0 that uses each part of the interface that 1.1 and 1.2 added.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    suffix: String,
}

struct Frozen {
    host: Host,
    suffix: Mutex<String>,
    puts: Counter,
    ticks: Gauge,
}

impl Plugin for Frozen {
    type Settings = Settings;
    const BLOCKS: bool = true;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        if host.now() < SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000) {
            return Err("the clock of the host is wrong".into());
        }
        let puts = host.counter("puts_total", "Writes.");
        let ticks = host.gauge("ticks", "Ticks.");
        Ok(Frozen { host, suffix: Mutex::new(settings.suffix), puts, ticks })
    }
}

impl SettingsChanged for Frozen {
    fn settings_changed(&self, settings: Settings) -> Result<(), String> {
        *self.suffix.lock().map_err(|error| error.to_string())? = settings.suffix;
        Ok(())
    }
}

/// Writes the entry `ticked` with the first tick.
impl Tick for Frozen {
    fn tick(&self) -> Duration {
        self.ticks.add(1);
        match self.host.post("ticked", b"yes") {
            Ok(_) => self.host.log(Level::Info, "wrote the entry of its tick"),
            Err(refusal) => self.host.log(Level::Warn, refusal.message()),
        }
        Duration::from_secs(3600)
    }
}

/// Removes every entry whose key begins with the query, and notes how many they were.
impl BeforePut for Frozen {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.asker().is_some() || put.query().is_empty() {
            return Ok(());
        }
        let mut keys = Vec::new();
        self.host.for_each(put.query(), |key, _| {
            keys.push(key.to_owned());
            ControlFlow::Continue(())
        })?;
        for key in &keys {
            self.host.delete(key)?;
        }
        self.host.put("removed", keys.len().to_string().as_bytes())?;
        Ok(())
    }
}

impl AfterPut for Frozen {
    fn after_put(&self, put: &After<'_, Put>) {
        self.puts.add(1);
        let suffix = self.suffix.lock().map(|suffix| suffix.clone()).unwrap_or_default();
        put.add_header("X-Frozen", &suffix);
    }
}

export_plugin!(Frozen, required: [before_put, tick, settings_changed]);
