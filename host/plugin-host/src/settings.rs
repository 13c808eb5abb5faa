//! The table of a plugin in the configuration, and the keys in it that belong to the host.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::chain::FailurePolicy;
use crate::error::{LoadError, LoadFault};
use crate::sha256::Sha256;

/// The tables of all plugins, by plugin name.
pub type Settings = BTreeMap<String, Table>;

/// The table of a plugin in the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The keys of the host.
    pub host: HostSettings,
    /// The keys of the plugin.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// The settings of the host for a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Whether the server refuses to start if the plugin cannot be loaded.
    pub required: bool,
    /// Whether the table requires the plugin: it has `required = true`, or a pin and no `required = false`. The
    /// server does not start without such a plugin, also if there is no library at all.
    pub is_expected: bool,
    /// The pinned hash of the library.
    pub sha256: Option<Sha256>,
    /// The failure policy of the plugin.
    pub failure_policy: FailurePolicy,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self { required: true, is_expected: false, sha256: None, failure_policy: FailurePolicy::default() }
    }
}

/// A key of the host in the table of a plugin has a wrong value.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {source}")]
pub struct SettingError {
    /// The key.
    pub key: &'static str,
    /// The reason.
    source: serde_json::Error,
}

impl Table {
    /// Separates the keys of the host from those of the plugin.
    ///
    /// # Errors
    ///
    /// A key of the host has a wrong value.
    pub fn new(mut settings: serde_json::Map<String, serde_json::Value>) -> Result<Self, SettingError> {
        let required: Option<bool> = take(&mut settings, "required")?;
        let sha256: Option<Sha256> = take(&mut settings, "sha256")?;
        let host = HostSettings {
            required: required.unwrap_or(true),
            is_expected: required.unwrap_or(sha256.is_some()),
            sha256,
            failure_policy: FailurePolicy {
                on_failure: take(&mut settings, "on_failure")?.unwrap_or_default(),
                budget: take::<Budget>(&mut settings, "budget")?.map(|budget| budget.0),
            },
        };
        Ok(Self { host, settings })
    }

    /// Returns the keys of the plugin as a JSON object.
    pub(crate) fn settings_json(&self) -> String {
        serde_json::Value::Object(self.settings.clone()).to_string()
    }
}

/// A duration such as `50ms`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Budget(Duration);

impl TryFrom<String> for Budget {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match humantime::parse_duration(&text) {
            Ok(budget) if !budget.is_zero() => Ok(Self(budget)),
            _ => Err("not a duration; write one such as 50ms or 1s"),
        }
    }
}

fn take<T: DeserializeOwned>(
    settings: &mut serde_json::Map<String, serde_json::Value>,
    key: &'static str,
) -> Result<Option<T>, SettingError> {
    let value = settings.remove(key).map(serde_json::from_value).transpose();
    value.map_err(|source| SettingError { key, source })
}

/// Checks the library against the pins of the plugins that its file name stands for. This happens before the library is opened,
/// because opening runs its initialisers, and only its module has the true name.
pub(crate) fn check_file_name(settings: &Settings, path: &Path, sha256: Sha256) -> Result<(), LoadFault> {
    called_after(settings, path).try_for_each(|(name, table)| check_pin(name, table, sha256))
}

/// Whether a plugin that the file name stands for is pinned, so that its library can have one content only.
pub fn is_pinned(settings: &Settings, path: &Path) -> bool {
    called_after(settings, path).any(|(_, table)| table.host.sha256.is_some())
}

/// Checks the library against the pin of the plugin that it contains.
pub(crate) fn check_name(settings: &Settings, name: &str, sha256: Sha256) -> Result<(), LoadFault> {
    settings.get(name).map_or(Ok(()), |table| check_pin(name, table, sha256))
}

fn check_pin(name: &str, table: &Table, found: Sha256) -> Result<(), LoadFault> {
    match table.host.sha256 {
        Some(pinned) if pinned != found => Err(LoadFault::WrongSha256 { name: name.to_owned(), pinned, found }),
        _ => Ok(()),
    }
}

/// Whether the server refuses to start because this library cannot be loaded. If the name of its plugin is unknown, the file
/// name stands for it.
pub fn is_required(settings: &Settings, error: &LoadError) -> bool {
    match error.fault.plugin().and_then(|name| settings.get(name)) {
        Some(table) => table.host.required,
        None => called_after(settings, &error.path).all(|(_, table)| table.host.required),
    }
}

/// Whether a file of the plugin folder is a library of another kind, which nothing in the configuration takes for a plugin.
pub fn is_no_plugin(settings: &Settings, path: &Path, fault: &LoadFault) -> bool {
    matches!(fault, LoadFault::NoPlugin) && called_after(settings, path).next().is_none()
}

/// Returns the tables of the plugins whose libraries could have this file name.
fn called_after<'a>(settings: &'a Settings, path: &Path) -> impl Iterator<Item = (&'a str, &'a Table)> {
    let tables = settings.iter().map(|(name, table)| (name.as_str(), table));
    tables.filter(move |(name, _)| is_called_after(path, name))
}

/// Whether the library of a plugin could have this file name: `libvkog_NAME.so`, `libNAME.so`.
pub fn is_called_after(path: &Path, name: &str) -> bool {
    let normal = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let (name, stem) = (normal(name), normal(&path.file_stem().unwrap_or_default().to_string_lossy()));
    // The prefix is optional, and the prefixes of other systems are accepted, too.
    let plain = stem.strip_prefix("lib").unwrap_or(&stem);
    let short = plain.strip_prefix("vkog_").unwrap_or(plain);
    [&stem, plain, short].contains(&&*name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::OnFailure;

    fn table(text: &str) -> Result<Table, SettingError> {
        Table::new(toml::from_str(text).expect("valid TOML"))
    }

    #[test]
    fn the_keys_of_the_host_are_separated_from_those_of_the_plugin() {
        let pin = "0123456789abcdef".repeat(4);
        let written = format!(
            "required = false\nsha256 = \"{pin}\"\non_failure = \"skip\"\nbudget = \"50ms\"\nlimit = 5\nwhere = \"here\"\n"
        );
        let Table { host, settings } = table(&written).expect("valid");
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["limit", "where"]);
        let pinned = host.sha256.map(|sha256| sha256.to_string());
        let budget = Some(Duration::from_millis(50));
        assert_eq!(
            (host.required, pinned, host.failure_policy),
            (false, Some(pin), FailurePolicy { on_failure: OnFailure::Skip, budget })
        );
        assert_eq!(table("limit = 5").expect("valid").host, HostSettings::default());
    }

    #[test]
    fn a_wrong_value_of_a_key_of_the_host_is_an_error_that_names_the_key() {
        for (written, words) in [
            ("required = \"no\"", ["required: ", "boolean"]),
            ("sha256 = \"abc\"", ["sha256: ", "64 hexadecimal digits"]),
            ("sha256 = \"é23456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"", ["sha256: ", "64 hex"]),
            ("on_failure = \"ignore\"", ["on_failure: ", "`refuse`, `skip`, `keep`"]),
            ("budget = \"0s\"", ["budget: ", "50ms"]),
            ("budget = 5", ["budget: ", "string"]),
        ] {
            let error = table(written).expect_err(written).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn a_file_name_identifies_the_plugin_as_cargo_names_it() {
        let settings: Settings =
            ["json-only", "vkog-x", "other"].map(|name| (name.to_owned(), Table::default())).into();
        let names = |file: &str| called_after(&settings, Path::new(file)).map(|(name, _)| name).collect::<Vec<_>>();
        for file in ["libvkog_json_only.so", "/p/libjson_only.so", "json-only.so", "vkog_JSON_only.dll"] {
            assert_eq!(names(file), ["json-only"], "{file}");
        }
        assert_eq!(names("libvkog_x.so"), ["vkog-x"]);
        assert_eq!(names("libjson_only_too.so"), [""; 0]);
    }
    #[test]
    fn a_pin_admits_one_content_under_the_names_of_its_plugin() {
        let (one, other) = (Sha256::of(b"one"), Sha256::of(b"other"));
        let settings: Settings = [
            ("pinned".to_owned(), table(&format!("sha256 = \"{one}\"")).expect("valid")),
            ("free".to_owned(), Table::default()),
        ]
        .into();
        for (file, name, pinned) in [("libvkog_pinned.so", "pinned", true), ("libvkog_free.so", "free", false)] {
            let path = Path::new(file);
            assert_eq!(is_pinned(&settings, path), pinned, "{file}");
            assert!(check_file_name(&settings, path, one).is_ok() && check_name(&settings, name, one).is_ok());
            assert_eq!(check_file_name(&settings, path, other).is_err(), pinned, "{file}");
            assert_eq!(check_name(&settings, name, other).is_err(), pinned, "{name}");
        }
        assert!(check_name(&settings, "unknown", other).is_ok());
    }

    #[test]
    fn a_plugin_is_required_unless_its_table_says_otherwise() {
        let optional = table("required = false").expect("valid");
        let settings: Settings = [("a".to_owned(), optional), ("b".to_owned(), Table::default())].into();
        let error = |file: &str, fault| LoadError { path: file.into(), fault };
        let unnamed = || LoadFault::TooLarge { len: 1 };
        let named = |name: &str| LoadFault::PanicAbort { name: name.to_owned() };
        for (error, required) in [
            (error("libvkog_a.so", unnamed()), false),
            (error("libvkog_b.so", unnamed()), true),
            (error("libvkog_c.so", unnamed()), true),
            // The name of the plugin takes precedence over that of the file.
            (error("libvkog_b.so", named("a")), false),
            (error("libvkog_a.so", named("b")), true),
        ] {
            assert_eq!(is_required(&settings, &error), required, "{error:?}");
        }
    }

    #[test]
    fn a_plugin_gets_its_own_keys_as_json() {
        let table = table("required = false\nlimit = 5").expect("valid");
        assert_eq!(table.settings_json(), "{\"limit\":5}");
    }
}
