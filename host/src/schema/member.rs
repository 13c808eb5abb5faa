//! The announcement of a server on a shared store, and the servers on it as `/plugins` lists them.

use serde::{Deserialize, Serialize};

/// A plugin of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPlugin {
    /// Its name.
    pub name: String,
    /// The version of its library.
    pub version: String,
    /// The hash of its library, in hexadecimal digits.
    pub sha256: String,
}

/// The announcement of a server to the others on its store. Other members are ignored, so that versions can differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// The name of its machine: servers of containers listen on the same addresses.
    pub machine: String,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Its version.
    pub version: String,
    /// Its plugins, in the order of the chain.
    pub plugins: Vec<MemberPlugin>,
}

impl About {
    /// The announcement of a command, which serves no clients: none, so that it becomes no member.
    pub const NOTHING: &'static str = "";

    /// Writes the announcement as JSON.
    pub fn to_json(&self) -> String {
        // These types can be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A server on a shared store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its id among the servers.
    pub id: String,
    /// Whether it is the server that responds.
    pub own: bool,
    /// Whether its plugins differ from those of the server that responds: other libraries, or another order.
    pub differs: bool,
    /// Its announcement.
    #[serde(flatten)]
    pub about: About,
}

impl Member {
    /// Reads what a server has announced. `here` has the plugins of the server that reads it. None for what announces no version.
    pub fn new(id: String, about: &str, own_id: &str, here: &[MemberPlugin]) -> Option<Self> {
        let about: About = serde_json::from_str(about).unwrap_or_default();
        let own = id == own_id;
        let is_server = !about.version.is_empty();
        is_server.then(|| Self { own, differs: !own && about.plugins != here, id, about })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_differs_by_a_library_or_its_order_and_not_by_fields_of_later_versions() {
        let plugin = |name: &str, sha256: &str| MemberPlugin {
            name: name.to_owned(),
            version: "1".to_owned(),
            sha256: sha256.to_owned(),
        };
        let about =
            |plugins: &[MemberPlugin]| About { plugins: plugins.to_vec(), version: "1".to_owned(), ..About::default() };
        let here = [plugin("a", "1"), plugin("b", "2")];
        for (there, differs) in [
            (about(&[plugin("a", "1"), plugin("b", "2")]), false),
            (about(&[plugin("a", "1"), plugin("b", "3")]), true),
            (about(&[plugin("b", "2"), plugin("a", "1")]), true),
            (about(&[plugin("a", "1")]), true),
        ] {
            let mut announced = serde_json::to_value(&there).expect("it is JSON");
            announced["later"] = 5.into();
            let member = |id: &str| Member::new(id.to_owned(), &announced.to_string(), "1", &here).expect("a server");
            assert_eq!((member("2").own, member("2").differs), (false, differs), "{announced}");
            assert_eq!((member("1").own, member("1").differs), (true, false), "{announced}");
        }
        assert_eq!(Member::new("2".to_owned(), About::NOTHING, "1", &here), None);
    }
}
