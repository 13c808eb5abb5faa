//! A plugin learns the size of the details that others store: in the undo and the after of a write the same as in its guard,
//! also if a later plugin sets details.
//!
//! Provoked with a plugin before and one after it that set details, in writes that succeed, are refused or fail on disk.

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

macro_rules! detailing {
    ($($name:ident $stage:ident $details:expr;)*) => {$(
        /// Sets details, unless the value forbids it.
        struct $name;

        impl Plugin for $name {
            type Settings = NoSettings;
            const STAGE: Stage = Stage::$stage;

            fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
                Ok($name)
            }
        }

        impl GuardPut for $name {
            fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
                if put.value() == b"refused" && Self::STAGE == Stage::Observe {
                    return Err(Refusal::new(422, "refused"));
                }
                if put.value() != b"plain" {
                    put.set_details($details);
                }
                Ok(())
            }
        }
    )*};
}
detailing! {
    Early Policy b"12345678";
    Late Observe &[7; 300];
}

/// Publishes the sizes that its hooks see.
struct Sizes {
    guard: Gauge,
    undo: Gauge,
    after: Gauge,
    all: Gauge,
    of_plugins: Gauge,
}

impl Plugin for Sizes {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Accounting;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let gauge = |name: &str| host.gauge(name, "A size.");
        Ok(Sizes {
            guard: gauge("guard"),
            undo: gauge("undo"),
            after: gauge("after"),
            all: gauge("all"),
            of_plugins: gauge("of_plugins"),
        })
    }
}

impl GuardPut for Sizes {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.guard.set(put.earlier_details_size() as i64);
        Ok(())
    }
}

impl UndoPut for Sizes {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.undo.set(put.earlier_details_size() as i64);
    }
}

impl AfterPut for Sizes {
    fn after_put(&self, put: &After<'_, Put>) {
        self.after.set(put.earlier_details_size() as i64);
        let size = put.entry_after().map(|entry| entry.details_size()).unwrap_or_default();
        self.all.set(size.all as i64);
        self.of_plugins.set(size.plugins as i64);
    }
}

/// The size of the details of `Early`: a head and the name, a head and the bytes.
const EARLY: i64 = 1 + 5 + 2 + 8;
/// The size of the details of `Late`.
const LATE: i64 = 1 + 4 + 3 + 300;

fn sizes(host: &TestHost, names: [&str; 3]) -> [i64; 3] {
    names.map(|name| host.metric("sizes", name))
}

#[test]
fn the_size_of_earlier_details_is_the_same_in_guard_undo_and_after() {
    let setup = Setup::new().load_other(plugin!(Sizes, "sizes")).load_other(plugin!(Early, "early"));
    let host = setup.load_other(plugin!(Late, "late")).start();
    host.put("k", "v").expect(200);
    assert_eq!(sizes(&host, ["guard", "undo", "after"]), [EARLY, 0, EARLY]);
    assert_eq!(sizes(&host, ["after", "all", "of_plugins"]), [EARLY, 1 + EARLY + LATE, EARLY + LATE]);
    host.put("k", "refused").refused(422, "refused");
    assert_eq!(sizes(&host, ["guard", "undo", "after"]), [EARLY; 3]);
    host.put("k", "plain").expect(200);
    assert_eq!(sizes(&host, ["guard", "undo", "after"]), [0, EARLY, 0]);
    assert_eq!(sizes(&host, ["after", "all", "of_plugins"]), [0; 3]);
    host.fail_writes(1);
    host.put("k", "w").refused(503, "Rolled back");
    assert_eq!(sizes(&host, ["guard", "undo", "after"]), [EARLY, EARLY, 0]);
}

#[test]
fn the_details_of_the_host_are_those_of_no_plugin() {
    let host = Setup::new().load_other(plugin!(Sizes, "sizes")).start();
    host.request(Verb::Put, "k").header("Content-Encoding", "gzip").body("v").send().expect(200);
    let coding = 1 + ":content-encoding".len() + 2 + "gzip".len();
    assert_eq!(sizes(&host, ["after", "all", "of_plugins"]), [0, 1 + coding as i64, 0]);
}
