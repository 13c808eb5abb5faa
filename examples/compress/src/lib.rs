//! Compresses values with Zstandard when they are written, and decompresses them when they are read. Decides which values
//! are worth it; knows nothing of keys and stored entries.

#![forbid(unsafe_code)]

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

/// The levels that need no more than a few megabytes of memory for each value that is compressed.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// The beginnings of the media types whose values are compressed already.
#[rustfmt::skip]
const COMPRESSED: [&str; 13] = [
    "audio/", "image/", "video/", "font/woff", "application/gzip", "application/java-archive", "application/vnd.rar",
    "application/x-7z-compressed", "application/x-bzip2", "application/x-gzip", "application/x-xz", "application/zip",
    "application/zstd",
];
/// Those among them that are not compressed.
const PLAIN: [&str; 4] = ["audio/wav", "audio/x-wav", "image/bmp", "image/svg+xml"];

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde", default)]
struct Settings {
    level: i32,
    /// Shorter values are stored as they are, in bytes.
    minimum_size: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: 3, minimum_size: 256 }
    }
}

struct Compress {
    settings: Settings,
    saved: Counter,
}

impl Plugin for Compress {
    type Settings = Settings;
    const STAGE: Stage = Stage::Transform;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        if !LEVELS.contains(&settings.level) {
            return Err(format!("level is {}; give 1 to 19", settings.level).into());
        }
        Ok(Compress { settings, saved: host.counter("saved_bytes_total", "Bytes that compression saved in writes.") })
    }
}

impl Compress {
    /// Replaces the value to write, if compression is worth it.
    fn compress<O: Write>(&self, write: &Before<'_, O>) -> Verdict {
        let value = write.value();
        // A touch does not change the value.
        let is_kept = write.origin() == Origin::Touch || is_compressed(write);
        if value.len() < self.settings.minimum_size || is_kept {
            return Ok(());
        }
        let compressed = zstd::bulk::compress(value, self.settings.level);
        let compressed =
            compressed.map_err(|error| Refusal::new(500, format!("cannot compress the value: {error}")))?;
        if let Some(saved) = value.len().checked_sub(compressed.len()).filter(|saved| *saved > 0) {
            self.saved.add(saved as u64);
            write.replace_value(&compressed);
        }
        Ok(())
    }
}

/// Whether the value is compressed already: by its content coding, such as gzip, or by its media type, such as image/png.
fn is_compressed(request: &Request<'_>) -> bool {
    let has_coding = request.header("content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case(b"identity"));
    let begins = |start: &&str| {
        let begin = request.content_type().get(..start.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(start))
    };
    has_coding || COMPRESSED.iter().any(begins) && !PLAIN.iter().any(begins)
}

impl BeforePost for Compress {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        self.compress(post)
    }
}

impl BeforePut for Compress {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.compress(put)
    }
}

impl ReadGet for Compress {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        // A stream, because a damaged frame may declare any size.
        let value = zstd::stream::decode_all(read.value());
        let value = value.map_err(|_| Refusal::new(500, "The stored value is damaged: it cannot be decompressed"))?;
        read.replace_value(&value);
        Ok(())
    }
}

export_plugin!(Compress, required: [read_get]);

#[cfg(test)]
mod tests {
    use vkog_plugin_testing::{Setup, TestHost};

    use super::*;

    fn host(settings: &str) -> TestHost {
        Setup::new().load::<Compress>().settings(settings).start()
    }

    /// Text that a compressor shortens to a fifth or less.
    fn text(bytes: usize) -> String {
        (0..)
            .map(|line| format!("line {line} of a text\n"))
            .flat_map(|line| line.into_bytes())
            .take(bytes)
            .map(char::from)
            .collect()
    }

    /// Bytes that no compressor shortens.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..bytes).map(|_| next()).collect()
    }

    #[test]
    fn a_text_is_stored_compressed_and_read_as_it_was() {
        let host = host("{}");
        let text = text(100_000);
        host.put("k", &text).expect(200);
        let stored = host.stored("k").expect("it was stored");
        assert!(stored.len() * 5 < text.len(), "{} bytes", stored.len());
        host.get("k").expect(200).is(&text);
        assert_eq!(host.metric("compress", "saved_bytes_total"), (text.len() - stored.len()) as i64);
        host.post("new", &text).expect(200);
        assert_eq!(host.stored("new"), Some(stored));
        host.get("new").is(&text);
    }

    #[test]
    fn values_that_would_not_shrink_are_stored_as_they_are() {
        let host = host("{}");
        let short = text(255);
        for (key, value) in [("short", short.as_bytes()), ("noise", &noise(10_000))] {
            host.put(key, value).expect(200);
            assert_eq!(host.stored(key).as_deref(), Some(value), "{key}");
            host.get(key).is(value);
        }
        host.put("long", text(256)).expect(200);
        assert!(host.stored("long").expect("it was stored").len() < 256);
    }

    #[test]
    fn a_value_with_a_content_coding_is_stored_as_it_is() {
        let host = host("{}");
        let text = text(1000);
        for (coding, is_compressed) in [("gzip", false), ("br, gzip", false), ("identity", true), ("Identity", true)] {
            host.request(Verb::Put, "k").header("Content-Encoding", coding).body(&text).send().expect(200);
            assert_eq!(host.stored("k").expect("it was stored") != text.as_bytes(), is_compressed, "{coding}");
            host.get("k").is(&text);
        }
    }

    #[test]
    fn a_value_with_a_compressed_media_type_is_stored_as_it_is() {
        let host = host("{}");
        let text = text(1000);
        for (media_type, is_compressed) in [
            ("image/png", false),
            ("Image/PNG", false),
            ("font/woff2", false),
            ("video/mp4; codecs=avc1", false),
            ("application/zip", false),
            ("image/svg+xml", true),
            ("font/ttf", true),
            ("application/json", true),
            ("im", true),
        ] {
            host.request(Verb::Put, "k").content_type(media_type).body(&text).send().expect(200);
            assert_eq!(host.stored("k").expect("it was stored") != text.as_bytes(), is_compressed, "{media_type}");
            host.get("k").is(&text).has("Content-Type", media_type);
        }
    }

    #[test]
    fn a_higher_level_compresses_more_and_reads_what_a_lower_one_wrote() {
        let mut host = host(r#"{"level": 1, "minimum_size": 0}"#);
        host.put("low", text(100_000)).expect(200);
        host.change_settings("compress", r#"{"level": 19}"#).expect("the level is a good one");
        host.put("high", text(100_000)).expect(200);
        let size = |key| host.stored(key).expect("it was stored").len();
        assert!(size("high") < size("low"), "{} {}", size("high"), size("low"));
        host.get("low").is(text(100_000));
    }

    #[test]
    fn a_level_out_of_range_stops_the_start() {
        for level in [0, 20, -1] {
            let error = Setup::new().load::<Compress>().settings(&format!("{{\"level\": {level}}}")).try_start();
            let error = error.err().expect("the level is refused").to_string();
            assert!(error.ends_with(&format!("level is {level}; give 1 to 19")), "{error}");
        }
    }

    /// Stores what is no frame, under the name of the real plugin.
    struct Damaged;

    impl Plugin for Damaged {
        type Settings = NoSettings;

        fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
            Ok(Damaged)
        }
    }

    impl BeforePut for Damaged {
        fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
            put.replace_value(b"no frame");
            Ok(())
        }
    }

    impl ReadGet for Damaged {
        fn read_get(&self, _: &mut Read<'_>) -> Verdict {
            Ok(())
        }
    }

    #[test]
    fn a_damaged_value_is_refused_with_500() {
        let mut host = Setup::new().load_other(vkog_plugin_testing::plugin!(Damaged, "compress")).start();
        host.put("k", "value").expect(200);
        host.restart_with(Setup::new().load::<Compress>());
        host.get("k").refused(500, "The stored value is damaged").has("Vkog-Plugin", "compress");
    }
}
