//! The keys of index entries. An area is a key prefix with a separate index, for clients that see only the keys behind it. The last area
//! has no prefix. The index entry of a key is in the area of the key.

use vkog_plugin_api::{CreateError, Refusal};

use crate::terms::Terms;

/// The prefix of the keys of index entries, behind that of their area.
pub(crate) const PREFIX: &str = "index/";
/// The maximum length of a key, in bytes.
const KEY_MAX: usize = 1024;
/// The maximum size of the terms of an entry, which are its details, in bytes.
const TERMS_MAX: usize = 4096;

/// The prefixes of the areas. None begins with another one, except the empty one at the end.
pub(crate) struct Areas(Vec<String>);

impl Areas {
    /// # Errors
    ///
    /// A prefix is empty or begins with another one.
    pub(crate) fn new(mut prefixes: Vec<String>) -> Result<Self, CreateError> {
        for (at, prefix) in prefixes.iter().enumerate() {
            let mut others = prefixes.iter().enumerate().filter(|(other, _)| *other != at);
            if prefix.is_empty() || others.any(|(_, other)| other.starts_with(prefix)) {
                let fact = "is empty, or another one begins with it";
                return Err(format!("prefixes has {prefix:?}, which {fact}; remove it, or end it with a slash").into());
            }
        }
        prefixes.push(String::new());
        Ok(Self(prefixes))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Splits a key behind the prefix of its area.
    fn split<'a>(&self, key: &'a str) -> (&'a str, &'a str) {
        let area = self.iter().find(|prefix| key.starts_with(prefix)).unwrap_or_default();
        key.split_at(area.len())
    }

    /// Whether this is the key of an index entry.
    pub(crate) fn is_index(&self, key: &str) -> bool {
        self.split(key).1.starts_with(PREFIX)
    }

    /// Returns the key of the index entry of a term and a key.
    pub(crate) fn index_key(&self, term: &str, key: &str) -> String {
        let (area, rest) = self.split(key);
        format!("{area}{PREFIX}{term}/{rest}")
    }

    /// Returns the term and the key of an index entry.
    pub(crate) fn parse<'a>(&self, index_key: &'a str) -> Option<(&'a str, String)> {
        let (area, rest) = self.split(index_key);
        let rest = rest.strip_prefix(PREFIX)?;
        let field = rest.find('/')?;
        let end = field + 1 + rest[field + 1..].find('/')?;
        Some((&rest[..end], format!("{area}{}", &rest[end + 1..])))
    }

    /// Checks that the terms can be stored for an entry with this key.
    ///
    /// # Errors
    ///
    /// The key of an index entry or all terms together would be too long.
    pub(crate) fn check(&self, terms: &Terms, key: &str) -> Result<(), Refusal> {
        if let Some(term) = terms.iter().find(|term| self.index_key(term, key).len() > KEY_MAX) {
            let field = term.split('/').next().unwrap_or_default();
            return Err(Refusal::new(422, format!("The field {field:?} is too long for an index")));
        }
        if terms.size() > TERMS_MAX {
            return Err(Refusal::new(422, format!("The indexed fields are over {TERMS_MAX} bytes")));
        }
        Ok(())
    }
}
