//! A plugin of the time of vkog-plugin-api 1.0.0, with something of everything that it had.

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    prefix: String,
}

struct Frozen {
    host: Host,
    prefix: String,
}

impl Plugin for Frozen {
    type Settings = Settings;
    const STAGE: Stage = Stage::Transform;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        host.log(Level::Info, &format!("may hold {}", host.max_size()));
        Ok(Frozen { host, prefix: settings.prefix })
    }
}

impl Start for Frozen {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut entries = 0;
        stored.for_each(|_, _| entries += 1);
        self.host.log(Level::Info, &format!("found {entries} entries"));
        Ok(())
    }
}

impl BeforePut for Frozen {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if let Some(why) = put.header("x-no") {
            let why = String::from_utf8_lossy(why).into_owned();
            return Err(Refusal::new(403, why).with_header("X-Headers", put.headers().count().to_string()));
        }
        put.replace_value(&[self.prefix.as_bytes(), put.value()].concat());
        Ok(())
    }
}

/// The details are as many bytes as the entry was written.
impl GuardPut for Frozen {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        let mut written = put.entry().map_or(Vec::new(), |entry| entry.details().to_vec());
        if written.len() == 3 {
            return Err(Refusal::new(409, "three times is enough"));
        }
        written.push(b'x');
        put.set_details(&written);
        Ok(())
    }
}

impl UndoPut for Frozen {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.host.log(Level::Info, &format!("undo of {}", put.key()));
    }
}

impl GuardGet for Frozen {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        if get.query() == "hide" {
            get.hide();
        }
        Ok(())
    }
}

impl AfterGet for Frozen {
    fn after_get(&self, get: &After<'_, Get>) {
        let details = get.entry_after().map_or(0, |entry| entry.details().len());
        self.host.log(Level::Info, &format!("{} was written {details} times, and read", get.key()));
    }
}

impl BeforeDelete for Frozen {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        panic!("{} is not to be deleted", delete.key());
    }
}

export_plugin!(Frozen, required: [start, before_put]);
