//! Settings: reads a plugin's table of the configuration into the plugin's own type.

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::Value;

/// The error of [`Plugin::create`](crate::Plugin::create): any error, or a text.
///
/// ```
/// # use vkog_plugin_api::*;
/// fn check(limit: u64) -> Result<(), CreateError> {
///     if limit == 0 { Err("limit is 0; set 1 or more".into()) } else { Ok(()) }
/// }
/// ```
pub type CreateError = Box<dyn std::error::Error + Send + Sync>;

/// The settings of a plugin without settings. Every key in its table is an error.
///
/// ```
/// # use vkog_plugin_api::*;
/// struct Quiet;
/// impl Plugin for Quiet {
///     type Settings = NoSettings;
///     fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
///         Ok(Quiet)
///     }
/// }
/// ```
#[derive(Deserialize, Debug, Default, Clone, Copy, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// A type that can be the settings of a plugin: every owned type that implements serde's `Deserialize`. It is a
/// separate trait so that the compiler's error names the right derive, with the `serde` that this crate re-exports.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be read from a plugin's table of the configuration",
    note = "derive it: `#[derive(vkog_plugin_api::serde::Deserialize)]` with `#[serde(crate = \"vkog_plugin_api::serde\")]`"
)]
pub trait FromTable: Sized {
    #[doc(hidden)]
    fn from_table(json: &str) -> Result<Self, serde_json::Error>;
}

// Neither a supertrait nor serde's `DeserializeOwned`, because the compiler's error would then explain that trait.
#[diagnostic::do_not_recommend]
impl<T: for<'de> Deserialize<'de>> FromTable for T {
    fn from_table(json: &str) -> Result<Self, serde_json::Error> {
        read(json)
    }
}

/// Reads settings from a JSON object. An unknown key is an error that lists the known keys, also without
/// `deny_unknown_fields`.
fn read<T: DeserializeOwned>(json: &str) -> Result<T, serde_json::Error> {
    T::deserialize(Strict(serde_json::from_str(json)?))
}

/// The keys of a table, with their values. The error of a value begins with its key.
struct Keys {
    entries: serde_json::map::IntoIter,
    /// The key that was read last, and its value.
    current: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Keys {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.current = Some((key.clone(), value));
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        let Some((key, value)) = self.current.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(Strict(value)).map_err(|error| de::Error::custom(format_args!("{key}: {error}")))
    }
}

/// A JSON value that refuses unknown keys when a struct is read from it. It compares them with the field names that
/// serde passes to the deserializer.
struct Strict(Value);

impl<'de> Deserializer<'de> for Strict {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let Value::Object(map) = self.0 else {
            return self.0.deserialize_any(visitor);
        };
        if let Some(unknown) = map.keys().find(|key| !fields.contains(&key.as_str())) {
            let known = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
            return Err(de::Error::custom(format_args!("unknown key \"{unknown}\"; known keys: {known}")));
        }
        visitor.visit_map(Keys { entries: map.into_iter(), current: None })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, serde_json::Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Quota {
        limit: u64,
        #[serde(default)]
        prefix: Option<Prefix>,
        #[serde(default)]
        mode: Mode,
    }

    #[derive(Deserialize, Debug, PartialEq)]
    struct Prefix {
        text: String,
    }

    #[derive(Deserialize, Debug, PartialEq, Default)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Open,
        Closed,
    }

    /// Returns the error for settings that cannot be read.
    fn error_of<T: DeserializeOwned>(json: &str) -> String {
        read::<T>(json).err().expect("these are not valid").to_string()
    }

    #[test]
    fn a_table_becomes_the_plugins_own_type() {
        let quota: Quota =
            read(r#"{"limit": 5, "prefix": {"text": "a/"}, "mode": "closed"}"#).expect("these are valid");
        assert_eq!(quota, Quota { limit: 5, prefix: Some(Prefix { text: "a/".into() }), mode: Mode::Closed });
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_known_ones_are_listed() {
        let error = error_of::<Quota>(r#"{"limit": 5, "limt": 6}"#);
        assert_eq!(error, "unknown key \"limt\"; known keys: limit, prefix, mode");
        let error = error_of::<Quota>(r#"{"limit": 5, "prefix": {"txt": "a/"}}"#);
        assert_eq!(error, "prefix: unknown key \"txt\"; known keys: text");
        let error = error_of::<NoSettings>(r#"{"limit": 5}"#);
        assert_eq!(error, "unknown key \"limit\"; known keys: none");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key_and_the_expected_type() {
        for (json, expected) in [
            (r#"{"limit": "five"}"#, "limit: invalid type: string \"five\", expected u64"),
            (r#"{"limit": -1}"#, "limit: invalid value: integer `-1`, expected u64"),
            (r#"{"limit": 5, "mode": "shut"}"#, "mode: unknown variant `shut`, expected `open` or `closed`"),
            (r#"{"limit": 5, "prefix": {"text": 7}}"#, "prefix: text: invalid type: integer `7`, expected a string"),
            ("{}", "missing field `limit`"),
        ] {
            assert_eq!(error_of::<Quota>(json), expected);
        }
    }
}
