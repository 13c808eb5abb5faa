//! Values are stored encrypted and read as they were, with the key of their time; anything else is refused.
//!
//! Provoked with key files on disk, and with stored values that were changed or moved to another entry.

use std::path::Path;

use tempfile::TempDir;
use vkog_plugin_testing::{Setup, TestHost, plugin};

use super::*;

/// A folder with a key file.
struct Folder(TempDir);

impl Folder {
    fn new(names: &[&str]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder can be made"));
        folder.write("keys", &lines(names), 0o600);
        folder
    }

    /// Writes a file, and returns the settings that name it.
    fn write(&self, name: &str, text: &str, mode: u32) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).expect("it is ours");
        set_mode(&path, mode);
        format!("{{\"key_file\": {:?}}}", path.display().to_string())
    }

    fn setup(&self) -> Setup {
        let keys = self.0.path().join("keys");
        Setup::new().load::<Encrypt>().settings(&format!("{{\"key_file\": {:?}}}", keys.display().to_string()))
    }
}

fn set_mode(_path: &Path, _mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(_path, std::fs::Permissions::from_mode(_mode)).expect("it is ours");
    }
}

/// Lines of a key file: each key is the hash of its name, so that a name always has the same one.
fn lines(names: &[&str]) -> String {
    let digits = |name: &str| -> String {
        let hash = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    names.iter().map(|name| format!("{name} {}\n", digits(name))).collect()
}

/// Stores values under the name of the real plugin, as somebody who changes the files could.
struct Forge;

impl Plugin for Forge {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Forge)
    }
}

impl BeforePut for Forge {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        put.replace_value(put.value());
        Ok(())
    }
}

impl ReadGet for Forge {
    fn read_get(&self, _: &mut Read<'_>) -> Verdict {
        Ok(())
    }
}

/// Stores a value as if the plugin had encrypted it, and reads it with the plugin.
fn read_forged(host: &mut TestHost, folder: &Folder, key: &str, stored: &[u8]) -> vkog_plugin_testing::Reply {
    host.restart_with(Setup::new().load_other(plugin!(Forge, "encrypt")));
    host.put(key, stored).expect(200);
    host.restart_with(folder.setup());
    host.get(key)
}

#[test]
fn a_value_is_stored_encrypted_and_read_as_it_was() {
    let folder = Folder::new(&["2026-a"]);
    let host = folder.setup().start();
    for value in ["secret".to_owned(), "s".to_owned(), "secret ".repeat(20_000)] {
        host.put("k", &value).expect(200);
        let stored = host.stored("k").expect("it was stored");
        assert_eq!(stored.len(), value.len() + 2 + 6 + 12 + 16);
        assert!(stored.starts_with(b"\x01\x062026-a") && !stored.windows(6).any(|part| part == b"secret"));
        host.get("k").expect(200).is(&value);
    }
    host.post("new", "secret").expect(200);
    host.get("new").is("secret");
}

#[test]
fn the_same_value_is_never_stored_twice_in_the_same_form() {
    let folder = Folder::new(&["a"]);
    let host = folder.setup().start();
    host.put("k", "secret").expect(200);
    let first = host.stored("k");
    host.put("k", "secret").expect(200);
    assert_ne!(host.stored("k"), first);
}

#[test]
fn after_a_rotation_new_writes_use_the_new_key_and_old_values_are_read() {
    let folder = Folder::new(&["a"]);
    let mut host = folder.setup().start();
    host.put("old", "1").expect(200);
    let both = folder.write("keys-2", &lines(&["b", "a"]), 0o600);
    host.change_settings("encrypt", &both).expect("the file is a good one");
    host.put("new", "2").expect(200);
    assert!(host.stored("new").is_some_and(|stored| stored.starts_with(b"\x01\x01b")));
    assert_eq!(["old", "new"].map(|key| host.get(key).text()), ["1", "2"]);
    // Values that were not written again need the old key.
    let only_new = folder.write("keys-3", &lines(&["b"]), 0o600);
    host.change_settings("encrypt", &only_new).expect("the file is a good one");
    let lacks = "The value was encrypted with the key \"a\", which the server lacks";
    host.get("old").refused(500, lacks).has("Vkog-Plugin", "encrypt");
    host.keys("").expect_err("a page without the key would look complete").refused(500, "Key \"old\": The value");
    host.get("new").is("2");
}

#[test]
fn a_bad_key_file_at_a_reload_keeps_the_old_keys() {
    let folder = Folder::new(&["a"]);
    let mut host = folder.setup().start();
    host.put("k", "1").expect(200);
    let bad = folder.write("bad", "a 00\n", 0o600);
    let error = host.change_settings("encrypt", &bad).expect_err("the file is malformed").to_string();
    assert!(error.contains("line 1: expected a name and 64 hexadecimal digits"), "{error}");
    host.get("k").is("1");
}

#[test]
fn a_value_that_was_changed_or_moved_to_another_entry_is_refused() {
    let folder = Folder::new(&["a", "b"]);
    let mut host = folder.setup().start();
    host.put("k", "secret").expect(200);
    let stored = host.stored("k").expect("it was stored");
    let changed = "The stored value was changed, or it belongs to another key";
    read_forged(&mut host, &folder, "k", &stored).expect(200).is("secret");
    read_forged(&mut host, &folder, "other", &stored).refused(500, changed);
    for at in 0..stored.len() {
        let mut bytes = stored.clone();
        bytes[at] ^= 1;
        let reply = read_forged(&mut host, &folder, "k", &bytes).expect(500);
        // The length or the name of the key.
        assert!([1, 2].contains(&at) || reply.text().starts_with(changed), "byte {at}: {reply}");
        if at > 0 {
            read_forged(&mut host, &folder, "k", &stored[..at]).expect(500);
        }
    }
    // With the name of a key that exists.
    let mut renamed = stored;
    renamed[2] = b'b';
    read_forged(&mut host, &folder, "k", &renamed).refused(500, changed);
}

#[cfg(unix)]
#[test]
fn a_key_file_that_others_can_access_stops_the_start() {
    let folder = Folder::new(&["a"]);
    for (mode, is_refused) in
        [(0o644, true), (0o640, true), (0o604, true), (0o620, true), (0o600, false), (0o400, false)]
    {
        let settings = folder.write("other", &lines(&["a"]), 0o600);
        set_mode(&folder.0.path().join("other"), mode);
        let started = Setup::new().load::<Encrypt>().settings(&settings).try_start();
        let error = started.err().map(|error| error.to_string());
        let fact = format!("is accessible to other users (mode {mode:03o}); run chmod 600 on it");
        assert_eq!(error.is_some_and(|error| error.ends_with(&fact)), is_refused, "{mode:o}");
        let _ = std::fs::remove_file(folder.0.path().join("other"));
    }
}

#[test]
fn a_missing_or_malformed_key_file_stops_the_start() {
    let folder = Folder::new(&["a"]);
    let error = |settings: &str| {
        let started = Setup::new().load::<Encrypt>().settings(settings).try_start();
        started.err().expect("the file is refused").to_string()
    };
    let missing = error("{\"key_file\": \"missing\"}");
    assert!(missing.contains("does not start: key_file: cannot read \"missing\": "), "{missing}");
    let malformed = error(&folder.write("bad", "# no key\n", 0o600));
    assert!(malformed.ends_with("bad: no key; add a line with a name and 64 hexadecimal digits"), "{malformed}");
    let binary = folder.0.path().join("binary");
    std::fs::write(&binary, b"\xff").expect("it is ours");
    set_mode(&binary, 0o600);
    let binary = error(&format!("{{\"key_file\": {:?}}}", binary.display().to_string()));
    assert!(binary.contains("binary: not a text"), "{binary}");
    assert!(error("{}").contains("missing field `key_file`"));
}
