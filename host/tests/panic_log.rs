//! A panic of the host is an event of the log, and prints nothing else. A separate program, because the panic hook
//! belongs to the whole process.

use std::io::Write;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no holder of this lock panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn a_panic_is_an_event_of_the_log() {
    let lines = Lines::default();
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_writer(lines.clone()).finish();
    let others = std::panic::take_hook();
    vkog::logging::log_panics();
    tracing::subscriber::with_default(log, || {
        assert!(std::panic::catch_unwind(|| panic!("two\nlines")).is_err());
    });
    std::panic::set_hook(others);
    let written =
        String::from_utf8(lines.0.lock().expect("no holder of this lock panics").clone()).expect("it is text");
    let event: serde_json::Value = serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
    assert_eq!((&event["level"], &event["message"]), (&"ERROR".into(), &"panicked: two\nlines".into()), "{written}");
    assert!(event["place"].as_str().is_some_and(|place| place.contains("panic_log.rs")), "{written}");
}
