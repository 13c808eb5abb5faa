//! Adds its version and its settings to the response of each read, and refuses a PUT of `refuse` with its version. It has no
//! `settings_changed` hook, so new settings need a new instance.

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
pub(crate) struct Settings {
    #[serde(default)]
    said: String,
}

pub(crate) struct Versioned {
    host: Host,
    settings: Settings,
}

impl Plugin for Versioned {
    type Settings = Settings;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        Ok(Versioned { host, settings })
    }
}

impl BeforePut for Versioned {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.value() == b"refuse" { Err(Refusal::new(403, crate::VERSION)) } else { Ok(()) }
    }
}

impl AfterGet for Versioned {
    fn after_get(&self, get: &After<'_, Get>) {
        get.add_header("X-Version", crate::VERSION);
        get.add_header("X-Said", &self.settings.said);
    }
}

impl Drop for Versioned {
    fn drop(&mut self) {
        self.host.log(Level::Info, &format!("{} is dropped", crate::VERSION));
    }
}
