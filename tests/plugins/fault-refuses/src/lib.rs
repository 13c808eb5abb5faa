#![forbid(unsafe_code)]
//! Refuses in the function that its settings name (`create`, `start`, or a `before` or `guard` hook), and in the hook that the
//! query of a request names: `refuse=HOOK`.

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The function that refuses; none if it is not set.
    #[serde(default, rename = "where")]
    place: String,
    /// The status of the refusal.
    #[serde(default = "forbidden")]
    status: u16,
    /// Refuses only requests whose value starts with this.
    #[serde(default)]
    value: String,
    /// Refuses only requests whose key starts with this.
    #[serde(default)]
    key: String,
}

fn forbidden() -> u16 {
    403
}

struct Refuses {
    settings: Settings,
}

impl Refuses {
    fn verdict(&self, place: &str, request: &Request<'_>) -> Verdict {
        let Settings { place: refusing, value, key, .. } = &self.settings;
        if refusing == place && request.value().starts_with(value.as_bytes()) && request.key().starts_with(key) {
            return Err(
                Refusal::new(self.settings.status, "refused on purpose").with_header("X-Purpose", place.to_owned())
            );
        }
        Ok(())
    }
}

impl Plugin for Refuses {
    type Settings = Settings;
    // The last of all plugins, by its stage and its name.
    const STAGE: Stage = Stage::Observe;

    fn create(_host: Host, settings: Settings) -> Result<Self, CreateError> {
        if settings.place == "create" {
            return Err("refused on purpose".into());
        }
        Ok(Refuses { settings })
    }
}

impl Start for Refuses {
    fn start(&self, _stored: &Stored<'_>) -> Result<(), String> {
        if self.settings.place == "start" { Err("refused on purpose".to_owned()) } else { Ok(()) }
    }
}

macro_rules! refuse {
    ($($hook:ident $method:ident: $view:ty;)*) => {$(
        impl $hook for Refuses {
            fn $method(&self, call: $view) -> Verdict {
                if call.query().split('&').any(|part| part.strip_prefix("refuse=") == Some(stringify!($method))) {
                    return Err(Refusal::new(self.settings.status, "refused on purpose"));
                }
                self.verdict(stringify!($method), call)
            }
        }
    )*};
}

refuse! {
    BeforeGet before_get: &mut Before<'_, Get>;
    BeforePost before_post: &mut Before<'_, Post>;
    BeforePut before_put: &mut Before<'_, Put>;
    BeforeDelete before_delete: &mut Before<'_, Delete>;
    GuardGet guard_get: &mut Guard<'_, Get>;
    GuardPost guard_post: &mut Guard<'_, Post>;
    GuardPut guard_put: &mut Guard<'_, Put>;
    GuardDelete guard_delete: &mut Guard<'_, Delete>;
}

export_plugin!(Refuses);
