//! Encrypts values when they are written, and decrypts them when they are read. Decides the stored form; `keys.rs` reads the
//! keys. Keys of entries, media types and details are not encrypted.

#![forbid(unsafe_code)]

mod keys;

use std::path::PathBuf;

use ring::aead::{Aad, NONCE_LEN, Nonce};
use ring::rand::{SecureRandom, SystemRandom};
use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use keys::Keys;

/// The first byte of a stored value. It is followed by the length of the key's name, that name, the nonce, the encrypted value
/// and its tag.
const FORMAT: u8 = 1;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    key_file: PathBuf,
}

struct Encrypt {
    keys: Keys,
    random: SystemRandom,
}

impl Plugin for Encrypt {
    type Settings = Settings;
    const STAGE: Stage = Stage::Transform;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        // A reload creates the plugin again if the keys have changed.
        host.depend_on(&settings.key_file);
        Ok(Encrypt { keys: Keys::read(&settings.key_file)?, random: SystemRandom::new() })
    }
}

impl BeforePost for Encrypt {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        post.replace_value(&self.encrypted(post.key(), post.value())?);
        Ok(())
    }
}

impl BeforePut for Encrypt {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        put.replace_value(&self.encrypted(put.key(), put.value())?);
        Ok(())
    }
}

impl ReadGet for Encrypt {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        read.replace_value(&self.decrypted(read.key(), read.value())?);
        Ok(())
    }
}

export_plugin!(Encrypt, required: [read_get]);

impl Encrypt {
    fn encrypted(&self, entry: &str, value: &[u8]) -> Result<Vec<u8>, Refusal> {
        let failed = |_| Refusal::new(500, "The value cannot be encrypted");
        let (name, key) = self.keys.first();
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let mut sealed = value.to_vec();
        let context = Aad::from(context(name, entry));
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), context, &mut sealed).map_err(failed)?;
        Ok([&[FORMAT, name.len() as u8], name.as_bytes(), &nonce, &sealed].concat())
    }

    fn decrypted(&self, entry: &str, stored: &[u8]) -> Result<Vec<u8>, Refusal> {
        let damaged = || Refusal::new(500, "The stored value was changed, or it belongs to another key");
        let (name, nonce, sealed) = parts(stored).ok_or_else(damaged)?;
        let Some(key) = self.keys.named(name) else {
            return Err(Refusal::new(
                500,
                format!("The value was encrypted with the key {name:?}, which the server lacks"),
            ));
        };
        let mut value = sealed.to_vec();
        let opened =
            key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(context(name, entry)), &mut value);
        let len = opened.map_err(|_| damaged())?.len();
        value.truncate(len);
        Ok(value)
    }
}

/// Returns the data that the tag protects besides the value, so that values which were swapped in the files are refused.
fn context(name: &str, entry: &str) -> Vec<u8> {
    [&[FORMAT, name.len() as u8], name.as_bytes(), entry.as_bytes()].concat()
}

/// Splits a stored value into the name of its key, the nonce, and the encrypted value with its tag.
fn parts(stored: &[u8]) -> Option<(&str, [u8; NONCE_LEN], &[u8])> {
    let (&[format, length], rest) = stored.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(length.into())?;
    let (nonce, sealed) = rest.split_first_chunk()?;
    (format == FORMAT).then_some((str::from_utf8(name).ok()?, *nonce, sealed))
}

#[cfg(test)]
mod tests;
