//! Accepts only JSON values. Decides what is JSON (RFC 8259); ignores keys, media types and stored entries.

#![forbid(unsafe_code)]

use serde_json::Error;
use vkog_plugin_api::serde::de::IgnoredAny;
use vkog_plugin_api::*;

struct JsonOnly;

impl Plugin for JsonOnly {
    type Settings = NoSettings;
    // Before plugins that store values in another form.
    const STAGE: Stage = Stage::Access;

    fn create(_host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        Ok(JsonOnly)
    }
}

impl BeforePost for JsonOnly {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        check(post.value())
    }
}

impl BeforePut for JsonOnly {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        // The value of a touch was checked when it was written, and may have been transformed since.
        if put.origin() == Origin::Touch { Ok(()) } else { check(put.value()) }
    }
}

export_plugin!(JsonOnly);

fn check(value: &[u8]) -> Verdict {
    // Check UTF-8 first, because a parser that stores nothing does not check strings.
    let text = str::from_utf8(value).map_err(|error| {
        let (line, column) = position(&value[..error.valid_up_to()]);
        not_json(&format!("invalid UTF-8 at line {line} column {column}"))
    })?;
    // Store nothing of the value, so that the check needs no memory and accepts any depth.
    serde_json::from_str(text).map(|IgnoredAny| ()).map_err(|error: Error| not_json(&error.to_string()))
}

fn not_json(why: &str) -> Refusal {
    Refusal::new(422, format!("Value is not JSON: {why}"))
}

/// Returns the line and column after this text. They count from 1, columns in bytes, as in serde_json.
fn position(text: &[u8]) -> (usize, usize) {
    let line = text.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = text.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use vkog_plugin_testing::{Setup, plugin};

    use super::*;

    #[test]
    fn invalid_json_neither_creates_nor_replaces_an_entry() {
        let host = Setup::new().load::<JsonOnly>().start();
        host.post("a", "{\"a\": 1}").expect(200);
        host.post("b", "{a}").refused(422, "Value is not JSON: ").has("Vkog-Plugin", "json-only");
        host.put("a", "{a}").refused(422, "Value is not JSON: ");
        host.get("a").is("{\"a\": 1}");
        host.get("b").expect(404);
    }

    /// Stores values in another form, which is no JSON.
    struct Other;

    impl Plugin for Other {
        type Settings = NoSettings;
        const STAGE: Stage = Stage::Transform;

        fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
            Ok(Other)
        }
    }

    impl BeforePut for Other {
        fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
            put.replace_value(&[b"\xff", put.value()].concat());
            Ok(())
        }
    }

    impl ReadGet for Other {
        fn read_get(&self, read: &mut Read<'_>) -> Verdict {
            read.replace_value(&read.value()[1..]);
            Ok(())
        }
    }

    #[test]
    fn a_touch_of_a_transformed_value_is_accepted() {
        let host = Setup::new().load::<JsonOnly>().load_other(plugin!(Other, "other")).start();
        host.put("a", "[1]").expect(200);
        host.touch("a").send().expect(200);
        host.batch([host.touch("a")]).succeeded();
        host.get("a").is("[1]");
    }

    fn refusal(value: &[u8]) -> String {
        let refusal = check(value).expect_err("this is no JSON");
        assert_eq!(refusal.status(), 422);
        refusal.message().to_owned()
    }

    #[test]
    fn every_kind_of_json_value_is_accepted() {
        for value in ["{\"a\": [1, -2.5e3, true, null]}", "\"photo\"", "0", " [] \n", "\"\u{e4}\\u00e4\""] {
            assert_eq!(check(value.as_bytes()), Ok(()), "{value}");
        }
    }

    #[test]
    fn invalid_json_is_refused_with_line_and_column() {
        assert_eq!(refusal(b"{\n  \"a\": b\n}"), "Value is not JSON: expected value at line 2 column 8");
        assert_eq!(refusal(b"[1,"), "Value is not JSON: EOF while parsing a value at line 1 column 3");
        assert_eq!(refusal(b"{} {}"), "Value is not JSON: trailing characters at line 1 column 4");
    }

    #[test]
    fn invalid_utf_8_is_refused_also_inside_strings() {
        assert_eq!(refusal(b"{\n\"a\": \"\xff\"}"), "Value is not JSON: invalid UTF-8 at line 2 column 7");
        assert_eq!(refusal(b"\x89PNG"), "Value is not JSON: invalid UTF-8 at line 1 column 1");
    }

    #[test]
    fn a_million_brackets_are_checked_without_running_out_of_stack() {
        let depth = 1_000_000;
        let value = [vec![b'['; depth], vec![b']'; depth]].concat();
        assert_eq!(check(&value), Ok(()));
    }
}
