//! What a plugin's table of the configuration says to the host, and not to the plugin: the keys that are the host's own.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::Conduct;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{LoadError, LoadFault};
use crate::sha256::Sha256;

/// The tables of the configuration, by plugin name.
pub type Settings = BTreeMap<String, Table>;

/// A plugin's table of the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What is the host's.
    pub terms: Terms,
    /// What is the plugin's.
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// On which terms a plugin is taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether the host stays away when the plugin cannot be loaded.
    pub required: bool,
    /// What its library has to be, to the byte.
    pub sha256: Option<Sha256>,
    /// How it is treated.
    pub conduct: Conduct,
}

impl Default for Terms {
    fn default() -> Self {
        Self { required: true, sha256: None, conduct: Conduct::default() }
    }
}

impl Table {
    /// Takes the host's keys out of a table as it was written.
    ///
    /// # Errors
    ///
    /// A key of the host's has a wrong value.
    pub fn new(mut settings: serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let terms = Terms {
            required: take(&mut settings, "required")?.unwrap_or(true),
            sha256: take(&mut settings, "sha256")?,
            conduct: Conduct {
                on_failure: take(&mut settings, "on_failure")?.unwrap_or_default(),
                budget: take::<Budget>(&mut settings, "budget")?.map(|budget| budget.0),
            },
        };
        Ok(Self { terms, settings })
    }

    /// The plugin's part, as it is handed over.
    pub(crate) fn settings_json(&self) -> String {
        serde_json::Value::Object(self.settings.clone()).to_string()
    }
}

/// A duration as people write it.
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
    key: &str,
) -> Result<Option<T>, String> {
    let value = settings.remove(key).map(serde_json::from_value).transpose();
    value.map_err(|error| format!("{key}: {error}"))
}

/// Checks the pins of the plugins that this library is called after. Before it is opened, because a library's
/// initialisers run when it is, and only its module tells the true name.
pub(crate) fn check_file_name(settings: &Settings, path: &Path, sha256: Sha256) -> Result<(), LoadFault> {
    called_after(settings, path).try_for_each(|(name, table)| check_pin(name, table, sha256))
}

/// Whether a plugin that this library is called after is pinned, so that [`check_file_name`] passes one content alone.
pub(crate) fn is_pinned(settings: &Settings, path: &Path) -> bool {
    called_after(settings, path).any(|(_, table)| table.terms.sha256.is_some())
}

/// Checks the pin of the plugin that a library turned out to have.
pub(crate) fn check_name(settings: &Settings, name: &str, sha256: Sha256) -> Result<(), LoadFault> {
    settings.get(name).map_or(Ok(()), |table| check_pin(name, table, sha256))
}

fn check_pin(name: &str, table: &Table, found: Sha256) -> Result<(), LoadFault> {
    match table.terms.sha256 {
        Some(pinned) if pinned != found => Err(LoadFault::WrongSha256 { name: name.to_owned(), pinned, found }),
        _ => Ok(()),
    }
}

/// Whether the host may not start without the library that could not be loaded: a plugin whose name is not known yet is
/// the one that its file is called after.
pub fn is_required(settings: &Settings, error: &LoadError) -> bool {
    match error.fault.plugin().and_then(|name| settings.get(name)) {
        Some(table) => table.terms.required,
        None => called_after(settings, &error.path).all(|(_, table)| table.terms.required),
    }
}

/// The tables of the plugins whose libraries would have this file name: `libvkog_NAME.so`, `libNAME.so`.
fn called_after<'a>(settings: &'a Settings, path: &Path) -> impl Iterator<Item = (&'a str, &'a Table)> {
    let normal = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let stem = normal(&path.file_stem().unwrap_or_default().to_string_lossy());
    // A file may be called without the prefix, and what is called with another one's is checked the same.
    let plain = stem.strip_prefix("lib").unwrap_or(&stem).to_owned();
    let short = plain.strip_prefix("vkog_").unwrap_or(&plain).to_owned();
    let tables = settings.iter().map(|(name, table)| (name.as_str(), table));
    tables.filter(move |(name, _)| [&stem, &plain, &short].contains(&&normal(name)))
}

#[cfg(test)]
mod tests {
    use crate::OnFailure;

    use super::*;

    fn table(text: &str) -> Result<Table, String> {
        Table::new(toml::from_str(text).expect("valid TOML"))
    }

    #[test]
    fn the_hosts_keys_are_taken_out_and_the_plugins_are_left() {
        let pin = "0123456789abcdef".repeat(4);
        let written = format!(
            "required = false\nsha256 = \"{pin}\"\non_failure = \"skip\"\nbudget = \"50ms\"\nlimit = 5\nwhere = \"here\"\n"
        );
        let Table { terms, settings } = table(&written).expect("valid");
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["limit", "where"]);
        let pinned = terms.sha256.map(|sha256| sha256.to_string());
        let budget = Some(Duration::from_millis(50));
        assert_eq!(
            (terms.required, pinned, terms.conduct),
            (false, Some(pin), Conduct { on_failure: OnFailure::Skip, budget })
        );
        assert_eq!(table("limit = 5").expect("valid").terms, Terms::default());
    }

    #[test]
    fn a_wrong_value_of_the_hosts_key_is_told_with_the_key() {
        for (written, words) in [
            ("required = \"no\"", ["required: ", "boolean"]),
            ("sha256 = \"abc\"", ["sha256: ", "64 hexadecimal digits"]),
            ("sha256 = \"é23456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"", ["sha256: ", "64 hex"]),
            ("on_failure = \"ignore\"", ["on_failure: ", "`refuse`, `skip`, `keep`"]),
            ("budget = \"0s\"", ["budget: ", "50ms"]),
            ("budget = 5", ["budget: ", "string"]),
        ] {
            let error = table(written).expect_err(written);
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn a_file_is_called_after_a_plugin_as_cargo_would_call_it() {
        let settings: Settings =
            ["json-only", "vkog-x", "other"].map(|name| (name.to_owned(), Table::default())).into();
        let names = |file: &str| called_after(&settings, Path::new(file)).map(|(name, _)| name).collect::<Vec<_>>();
        for file in ["libvkog_json_only.so", "/p/libjson_only.so", "json-only.so", "vkog_JSON_only.dll"] {
            assert_eq!(names(file), ["json-only"], "{file}");
        }
        assert_eq!(names("libvkog_x.so"), ["vkog-x"]);
        assert_eq!(names("libjson_only_too.so"), [""; 0]);
    }
}
