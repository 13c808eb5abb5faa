#![forbid(unsafe_code)]
//! Panics in the function that its settings name (`create`, `drop`, or a hook), and in the hook that the query of a request
//! names: `panic=HOOK`.

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The function that panics; none if it is not set.
    #[serde(default, rename = "where")]
    place: String,
}

struct Panics {
    place: String,
}

impl Panics {
    fn reach(&self, place: &str) {
        // The message does not name the function, so that the test sees what the host adds.
        assert!(self.place != place, "on purpose");
    }
}

impl Plugin for Panics {
    type Settings = Settings;
    // After the plugins that reserve, so that their undo hooks must run.
    const STAGE: Stage = Stage::Observe;

    fn create(_host: Host, settings: Settings) -> Result<Self, CreateError> {
        let plugin = Panics { place: settings.place };
        if plugin.place == "create" {
            // Without a drop, which is tested separately.
            std::mem::ManuallyDrop::new(plugin).reach("create");
            unreachable!("it panics there");
        }
        Ok(plugin)
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        self.reach("drop");
    }
}

impl Start for Panics {
    fn start(&self, _stored: &Stored<'_>) -> Result<(), String> {
        self.reach("start");
        Ok(())
    }
}

macro_rules! reach {
    ($($hook:ident $method:ident: $view:ty => $result:ty, $value:expr;)*) => {$(
        impl $hook for Panics {
            fn $method(&self, call: $view) -> $result {
                let named = call.query().split('&').find_map(|part| part.strip_prefix("panic="));
                assert!(named != Some(stringify!($method)), "on purpose");
                self.reach(stringify!($method));
                $value
            }
        }
    )*};
}

reach! {
    BeforeGet before_get: &mut Before<'_, Get> => Verdict, Ok(());
    BeforePost before_post: &mut Before<'_, Post> => Verdict, Ok(());
    BeforePut before_put: &mut Before<'_, Put> => Verdict, Ok(());
    BeforeDelete before_delete: &mut Before<'_, Delete> => Verdict, Ok(());
    GuardGet guard_get: &mut Guard<'_, Get> => Verdict, Ok(());
    GuardPost guard_post: &mut Guard<'_, Post> => Verdict, Ok(());
    GuardPut guard_put: &mut Guard<'_, Put> => Verdict, Ok(());
    GuardDelete guard_delete: &mut Guard<'_, Delete> => Verdict, Ok(());
    AfterGet after_get: &After<'_, Get> => (), ();
    AfterPost after_post: &After<'_, Post> => (), ();
    AfterPut after_put: &After<'_, Put> => (), ();
    AfterDelete after_delete: &After<'_, Delete> => (), ();
    UndoGet undo_get: &Undo<'_, Get> => (), ();
    UndoPost undo_post: &Undo<'_, Post> => (), ();
    UndoPut undo_put: &Undo<'_, Put> => (), ();
    UndoDelete undo_delete: &Undo<'_, Delete> => (), ();
}

export_plugin!(Panics);
