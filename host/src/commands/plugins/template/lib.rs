//! Rejects values over a limit in PUT requests. Other operations have their own hooks, such as
//! `BeforePost`.

use vkog_plugin_api::{serde::Deserialize, *};

/// The table `[plugins.PLUGIN]` of the server's configuration. An unknown key is an error.
#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    limit: Option<usize>,
}

/// The maximum length of a value, in bytes. The server creates one instance when it starts, and
/// calls its hooks from many threads.
struct Limit(usize);

impl Plugin for Limit {
    type Settings = Settings;

    fn create(_host: Host, settings: Settings) -> Result<Self, CreateError> {
        Ok(Limit(settings.limit.unwrap_or(10)))
    }
}

impl BeforePut for Limit {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.value().len() > self.0 {
            return Err(Refusal::new(413, format!("at most {} bytes", self.0)));
        }
        Ok(())
    }
}

export_plugin!(Limit);

#[cfg(test)]
mod tests {
    use vkog_plugin_testing::Setup;

    use super::*;

    #[test]
    fn a_put_over_the_limit_is_refused() {
        let host = Setup::new().load::<Limit>().settings(r#"{"limit": 5}"#).start();
        host.put("a", "short").expect(200);
        host.put("a", "much too long").refused(413, "at most 5 bytes");
        host.get("a").expect(200).is("short");
    }
}
