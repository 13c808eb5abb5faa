//! The configuration file, which is TOML. Mistakes are reported with their line and key.

use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};
use vkog_plugin_host::{Settings, Table};

use super::Options;
use super::auth::Auth;
use super::cors::{self, CorsOrigin};
use super::error::{AuthError, ConfigError, CorsError, FileError, Mistake, ProxyError};
use super::origin::Proxy;
use crate::suggest::similar;

/// The tables of the file. Other keys at the top level are options.
const TABLES: [&str; 4] = ["access", "cors", "plugins", "proxy"];

/// A configuration file.
#[derive(Debug, Default)]
pub struct File {
    pub(super) options: Options,
    pub(super) settings: Settings,
    pub(super) order: Vec<String>,
    pub(super) auth: Auth,
    pub(super) proxy: Proxy,
}

impl File {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not TOML, or has an unknown key or a wrong value.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|source| ConfigError::Malformed { path: path.to_owned(), source })
    }

    /// Reads a configuration file, if there is one.
    ///
    /// # Errors
    ///
    /// Those of [`File::read`].
    pub fn read_if_given(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map(Self::read).transpose().map(Option::unwrap_or_default)
    }

    /// Parses the text of a configuration file.
    pub(super) fn parse(text: &str) -> Result<Self, FileError> {
        let mut root = DeTable::parse(text).map_err(|error| syntax(text, error))?;
        let document = Document { text, root: root.get_ref().clone() };
        let [access, cors, plugins, proxy] = TABLES.map(|name| root.get_mut().remove(name));
        let (settings, order) = plugins.map(|plugins| document.plugins(plugins)).transpose()?.unwrap_or_default();
        let auth = access.map(|access| document.access(access)).transpose()?.unwrap_or_default();
        let proxy = proxy.map(|proxy| document.proxy(proxy)).transpose()?.unwrap_or_default();
        let cors_origins = cors.map(|cors| document.cors(cors)).transpose()?;
        let options = Options::deserialize(Deserializer::from(root)).map_err(|error| document.value(error))?;
        let options = Options { cors_origins, ..options };
        Ok(Self { options, settings, order, auth, proxy })
    }
}

/// A parsed file: finds the line and the key of a mistake.
struct Document<'a> {
    text: &'a str,
    root: DeTable<'a>,
}

impl Document<'_> {
    fn access(&self, table: Spanned<DeValue<'_>>) -> Result<Auth, FileError> {
        let span = table.span();
        Auth::parse(ValueDeserializer::from(table)).map_err(|error| match error {
            AuthError::Malformed(error) => self.value(error),
            error => self.mistake(Some(span), error.into()),
        })
    }

    fn proxy(&self, table: Spanned<DeValue<'_>>) -> Result<Proxy, FileError> {
        let span = table.span();
        Proxy::parse(ValueDeserializer::from(table)).map_err(|error| match error {
            ProxyError::Malformed(error) => self.value(error),
            error => self.mistake(Some(span), error.into()),
        })
    }

    fn cors(&self, table: Spanned<DeValue<'_>>) -> Result<Vec<CorsOrigin>, FileError> {
        cors::parse(ValueDeserializer::from(table)).map_err(|CorsError::Malformed(error)| self.value(error))
    }

    /// Returns the settings of each plugin, and the plugins that run first.
    fn plugins(&self, table: Spanned<DeValue<'_>>) -> Result<(Settings, Vec<String>), FileError> {
        let (mut settings, mut order) = (Settings::new(), Vec::new());
        for (name, table) in self.table(table)? {
            if name.get_ref() == "order" {
                order =
                    read(table).map_err(|error: toml::de::Error| self.mistake(error.span(), Mistake::Order(error)))?;
                continue;
            }
            let table = self.table(table)?;
            let spans: Vec<_> = table.iter().map(|(key, value)| (key.get_ref().to_string(), value.span())).collect();
            let values = table.into_iter().map(|(key, value)| {
                let value = read(value).map_err(|error| self.value(error))?;
                Ok((key.into_inner().into_owned(), value))
            });
            let table = Table::new(values.collect::<Result<_, FileError>>()?).map_err(|error| {
                let span = spans.into_iter().find(|(key, _)| key == error.key).map(|(_, span)| span);
                self.mistake(span, Mistake::Plugin(error))
            })?;
            settings.insert(name.into_inner().into_owned(), table);
        }
        Ok((settings, order))
    }

    fn table<'i>(&self, value: Spanned<DeValue<'i>>) -> Result<DeTable<'i>, FileError> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Ok(table),
            _ => Err(self.mistake(Some(span), Mistake::NotATable)),
        }
    }

    /// Returns the error of a value that cannot be used, or of a key that does not exist.
    fn value(&self, error: toml::de::Error) -> FileError {
        let span = error.span();
        let mistake = match unknown_key(error.message()) {
            Some((unknown, mut known)) => {
                if known.iter().any(|key| key == "file") {
                    known.extend(TABLES.map(str::to_owned));
                }
                let similar = similar(unknown, known.iter().map(String::as_str)).map(str::to_owned);
                Mistake::UnknownKey { similar, known }
            }
            None => Mistake::Value(error),
        };
        self.mistake(span, mistake)
    }

    fn mistake(&self, span: Option<Range<usize>>, source: Mistake) -> FileError {
        let line = span.as_ref().map(|span| line(self.text, span.start));
        let key = span.and_then(|span| key_at(&self.root, span.start));
        FileError { line, key, source }
    }
}

/// Deserializes a value.
fn read<T: DeserializeOwned>(value: Spanned<DeValue<'_>>) -> Result<T, toml::de::Error> {
    T::deserialize(ValueDeserializer::from(value))
}

/// Returns the error of a text that is not TOML.
fn syntax(text: &str, error: toml::de::Error) -> FileError {
    let span = error.span();
    // The parser names the key only by its position.
    let key = span.clone().filter(|_| error.message() == "duplicate key").and_then(|span| text.get(span));
    let key = key.map(str::to_owned);
    FileError { line: span.map(|span| line(text, span.start)), key, source: Mistake::Value(error) }
}

/// Returns the line of a position, counted from 1.
fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Returns the key at a position, with the tables around it.
fn key_at(table: &DeTable<'_>, at: usize) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = key.get_ref();
        let inner = match value.get_ref() {
            DeValue::Table(table) => key_at(table, at),
            DeValue::Array(items) => {
                items.iter().find_map(|item| item.get_ref().as_table().and_then(|it| key_at(it, at)))
            }
            _ => None,
        };
        match inner {
            Some(inner) => Some(format!("{name}.{inner}")),
            None => (key.span().contains(&at) || value.span().contains(&at)).then(|| name.to_string()),
        }
    })
}

/// Returns the key that a deserializer does not know, and those that it knows, from its message: it has no other form.
fn unknown_key(message: &str) -> Option<(&str, Vec<String>)> {
    let mut names = message.strip_prefix("unknown field `")?.split('`');
    let unknown = names.next()?;
    Some((unknown, names.skip(1).step_by(2).map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_reported_with_its_line_and_key() {
        for (text, expected) in [
            ("\nlisten = 3110", ":2: listen: expected an address such as \"127.0.0.1:3110\", or a list of them"),
            (
                "max-size = \"much\"",
                ":1: max-size: not a size; write bytes, or a number with KiB, MiB, GiB, KB, MB or GB",
            ),
            ("open = 1", ":1: open: expected a boolean, found integer `1`"),
            ("log-format = \"xml\"", ":1: log-format: expected `text` or `json`, found `xml`"),
            ("file = \"a\"\n\nfile = \"b\"", ":3: file: duplicate key"),
            ("a = 1\nb = = 2", ":2: "),
            (
                "[plugins]\nbytes = 5",
                ":2: plugins.bytes: expected a table; write a table [plugins.NAME] for each plugin",
            ),
            ("[plugins]\norder = 5", ":2: plugins.order: expected a sequence, found integer `5`; write the names"),
            ("[plugins.a]\nx = 1\nrequired = 5", ":3: plugins.a.required: expected a boolean, found integer `5`"),
            ("open = true\n[access]\n", ":2: access: no token is configured"),
            ("[proxy]\ntrusted = 5", ":2: proxy.trusted: expected a sequence, found integer `5`"),
            ("[[access.tokens]]\nname = \"a\"\nright = \"all\"", ":3: access.tokens.right: expected one of `read`"),
        ] {
            let error = File::parse(text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_reported_with_a_similar_or_with_all_known_ones() {
        for (text, expected) in [
            ("max_size = 5", ":1: max_size: unknown key; did you mean `max-size`?"),
            ("open = true\nmax-sise = 5", ":2: max-sise: unknown key; did you mean `max-size`?"),
            ("[acess]\nremote_admin = true", ":1: acess: unknown key; did you mean `access`?"),
            ("[access]\nremote-admin = true", ":2: access.remote-admin: unknown key; did you mean `remote_admin`?"),
            ("[access]\ntokns = []", ":2: access.tokns: unknown key; did you mean `tokens`?"),
            (
                "[[access.tokens]]\ntoken-sha256 = \"a\"",
                ":2: access.tokens.token-sha256: unknown key; did you mean `token_sha256`?",
            ),
            ("[proxy]\ncolour = 1", ":2: proxy.colour: unknown key; expected one of `trusted`, `header`"),
        ] {
            let error = File::parse(text).expect_err(text).to_string();
            assert_eq!(error, expected);
        }
        let error = File::parse("zzz = 1").expect_err("there is no such key").to_string();
        for key in ["`file`", "`max-size`", "`log-format`", "`access`", "`plugins`", "`proxy`"] {
            assert!(error.contains(key), "{key} in {error}");
        }
    }
}
