//! The configuration of each round: the keys of `encrypt`, the level of `compress`, the order, the limit of `bytes`. It also
//! determines how long a stored value is.

use std::fs;

use vkog_tests::{Setup, TOKEN, only_ours};

/// A text in every value that clients send. It must be in no file.
pub(super) const MARKER: &str = "plain-text-";
/// Shorter values are not compressed, in bytes.
const MINIMUM_SIZE: usize = 64;
/// The fields that `index` indexes.
pub(super) const FIELDS: [&[&str]; 3] = [&["city"], &["city", "age"], &["age"]];

/// The settings that change from round to round.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) number: u64,
    /// A number of [`FIELDS`].
    pub(super) fields: usize,
}

impl Round {
    pub(super) fn fields(self) -> &'static [&'static str] {
        FIELDS[self.fields]
    }

    /// The limit of `bytes`: some writes exceed it, and after a change to the lower one the store may.
    pub(super) fn limit(self) -> u64 {
        [40_000, 30_000][self.number as usize / 3 % 2]
    }

    fn level(self) -> u64 {
        1 + self.number % 5
    }

    fn order(self) -> &'static str {
        ["", "order = [\"index\", \"encrypt\"]", "order = [\"index\", \"compress\"]"][self.number as usize % 3]
    }

    /// Writes the configuration and its key file.
    pub(super) fn write(self, setup: &Setup) -> String {
        // The new key is the first, and those of all rounds before follow.
        let line = |number: u64| format!("k{number} {}\n", format!("{:04x}", number + 1).repeat(16));
        let keys = format!("keys-{}", self.number);
        let path = setup.folder().join(&keys);
        fs::write(&path, (0..=self.number).rev().map(line).collect::<String>()).expect("it can be written");
        only_ours(&path);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
        let token = |name: &str, token: &str, rest: &str| {
            format!("[[access.tokens]]\nname = {name:?}\ntoken = {token:?}\n{rest}\n")
        };
        let text = [
            token("operator", TOKEN, "right = \"admin\""),
            token("ann", "ann-secret", "right = \"write\"\nprefix = \"ann/\""),
            token("bob", "bob-secret", "right = \"write\""),
            format!("[plugins]\n{}\n", self.order()),
            format!("[plugins.compress]\nlevel = {}\nminimum_size = {MINIMUM_SIZE}\n", self.level()),
            format!("[plugins.encrypt]\nkey_file = {keys:?}\n"),
            format!("[plugins.index]\nfields = {:?}\nprefixes = [\"ann/\", \"bob/\"]\n", self.fields()),
            format!("[plugins.bytes]\nmax_size = {}\n", self.limit()),
            "[plugins.tenant]\nothers = \"whole\"\n[plugins.tenant.tokens]\nann = \"ann/\"\nbob = \"bob/\"\n"
                .to_owned(),
        ]
        .concat();
        setup.write_config(&text);
        text
    }
}

/// Returns the length of a value as the configuration of a round stores it.
pub(super) fn stored_len(value: &[u8], is_coded: bool, round: u64) -> u64 {
    let round = Round { number: round, fields: 0 };
    let is_compressed = !round.order().contains("encrypt") && !is_coded && value.len() >= MINIMUM_SIZE;
    let compressed =
        is_compressed.then(|| zstd::bulk::compress(value, round.level() as i32).expect("it fits into memory"));
    let len = compressed.map_or(value.len(), |compressed| compressed.len().min(value.len()));
    (len + 2 + key_name(round.number).len() + 12 + 16) as u64
}

fn key_name(round: u64) -> String {
    format!("k{round}")
}

/// Returns the round whose key has encrypted a stored value.
pub(super) fn round_of(stored: &[u8]) -> Option<u64> {
    let (&[1, length], rest) = stored.split_first_chunk()? else { return None };
    let name = str::from_utf8(rest.get(..length.into())?).ok()?;
    name.strip_prefix('k')?.parse().ok()
}
