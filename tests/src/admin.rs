//! Administration of a running server: reads `/plugins`, and replaces libraries and settings.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::client::Reply;
use crate::server::{Server, on_etcd, only_ours};
use crate::windows;

/// The admin token in the configurations of the tests.
pub const TOKEN: &str = "s3cret";

/// A configuration with the admin token [`TOKEN`], in which everything else needs no token.
pub fn administered(config: &str) -> String {
    format!("open = true\n[[access.tokens]]\nname = \"operator\"\ntoken = {TOKEN:?}\nright = \"admin\"\n{config}")
}

impl Server {
    /// Returns all plugins, in the order of the chain, without the one that has the stores of all servers.
    #[track_caller]
    pub fn plugins(&self) -> Vec<Value> {
        let reply = self.path("GET", "/plugins").send().expect(200);
        let all: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"));
        let mut plugins = all["plugins"].as_array().unwrap_or_else(|| panic!("no plugins in {reply}")).clone();
        plugins.retain(|plugin| !on_etcd() || plugin["name"] != "etcd");
        plugins
    }

    /// Returns the plugin with this name.
    #[track_caller]
    pub fn plugin(&self, name: &str) -> Value {
        let found = self.plugins().into_iter().find(|plugin| plugin["name"] == name);
        found.unwrap_or_else(|| panic!("no plugin {name}\n{}", self.log()))
    }

    /// Returns a number of one of its hooks: `calls`, `refusals`, `panics` or `overruns`.
    #[track_caller]
    pub fn count(&self, plugin: &str, hook: &str, what: &str) -> u64 {
        let plugin = self.plugin(plugin);
        let hooks = plugin["hooks"].as_array().expect("a list of hooks");
        let found = hooks.iter().find(|found| found["hook"] == hook);
        found.and_then(|hook| hook[what].as_u64()).unwrap_or_else(|| panic!("no {what} of {hook} in {plugin}"))
    }

    /// Requests a reload with the token.
    #[track_caller]
    pub fn reload(&self) -> Reply {
        self.reload_as(Some(&format!("Bearer {TOKEN}")))
    }

    /// Requests a reload with this `Authorization`.
    #[track_caller]
    pub fn reload_as(&self, authorization: Option<&str>) -> Reply {
        // With a body, because the client library sends an unknown one in chunks.
        let request = self.path("POST", "/plugins/reload").body("");
        match authorization {
            Some(authorization) => request.header("Authorization", authorization).send(),
            None => request.send(),
        }
    }

    /// Returns what a reload did with a plugin, by its name or the file name of its library: the outcome, or the load
    /// code.
    #[track_caller]
    pub fn reloaded(&self, plugin: &str) -> String {
        let reply = self.reload();
        let all: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"));
        let all = all["plugins"].as_array().unwrap_or_else(|| panic!("no plugins in {reply}"));
        let failed = all.iter().any(|taken| taken["outcome"] == "failed");
        assert_eq!(reply.status, if failed { 409 } else { 200 }, "the status of {reply}");
        let is_it = |taken: &&Value| {
            let path = windows::told(taken["path"].as_str().unwrap_or_default());
            taken["name"] == plugin || path.file_name().is_some_and(|name| name == plugin)
        };
        let taken = all.iter().find(is_it).unwrap_or_else(|| panic!("no {plugin} in {reply}"));
        let told = if taken["outcome"] == "failed" { &taken["code"] } else { &taken["outcome"] };
        told.as_str().unwrap_or_else(|| panic!("no outcome in {reply}")).to_owned()
    }

    /// Returns the library of a loaded plugin.
    #[track_caller]
    pub fn library_of(&self, plugin: &str) -> PathBuf {
        windows::told(self.plugin(plugin)["path"].as_str().expect("a path"))
    }
}

/// Replaces a library by a copy of another one, or adds the copy, in one step.
pub fn put_in_place(library: &Path, place: &Path) {
    let folder = place.parent().expect("a library is in a folder");
    let copy = folder.join("copy.tmp");
    std::fs::copy(library, &copy).unwrap_or_else(|error| panic!("cannot copy {}: {error}", library.display()));
    only_ours(&copy);
    std::fs::rename(&copy, place).unwrap_or_else(|error| panic!("cannot rename to {}: {error}", place.display()));
}
