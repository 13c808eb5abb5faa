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
        check(put.value(), self.0)
    }
}

export_plugin!(Limit);

fn check(value: &[u8], limit: usize) -> Verdict {
    if value.len() > limit {
        return Err(Refusal::new(413, format!("at most {limit} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_over_the_limit_is_refused_with_413() {
        assert_eq!(check(b"12345", 5), Ok(()));
        let refusal = check(b"123456", 5).expect_err("it has 6 bytes");
        assert_eq!(refusal.status(), 413);
        assert_eq!(refusal.message(), "at most 5 bytes");
    }
}
