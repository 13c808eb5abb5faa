//! Texts of others on a terminal: without characters that could control it, or hide or reorder what it shows.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// Returns a text for standard output, with escapes if that is a terminal.
pub(super) fn shown(text: &str) -> String {
    if io::stdout().is_terminal() { escaped(text, "") } else { text.to_owned() }
}

/// Returns a text with escapes, except for the characters of `plain`.
pub(crate) fn escaped(text: &str, plain: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_unsafe(char) && !plain.contains(char) {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Whether a character controls a terminal, or is invisible, or changes the direction of the text after it. Joiners are part of
/// many scripts.
fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// A writer for a terminal. It keeps line breaks and tabs, and writes escapes for other unsafe characters and for bytes that are
/// not text.
pub(super) struct Escaping<W> {
    terminal: W,
    /// The start of a character whose end is not written yet.
    partial: Vec<u8>,
}

impl<W: Write> Escaping<W> {
    pub(super) fn new(terminal: W) -> Self {
        Self { terminal, partial: Vec::new() }
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pending = std::mem::take(&mut self.partial);
        pending.extend_from_slice(bytes);
        let mut shown = String::with_capacity(pending.len());
        let mut rest = &pending[..];
        while !rest.is_empty() {
            let (text, wrong, after) = match str::from_utf8(rest) {
                Ok(text) => (text, 0, rest.len()),
                Err(error) => {
                    let text = str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default();
                    match error.error_len() {
                        Some(len) => (text, len, text.len() + len),
                        None => {
                            self.partial.extend_from_slice(&rest[text.len()..]);
                            (text, 0, rest.len())
                        }
                    }
                }
            };
            shown.push_str(&escaped(text, "\n\t"));
            for byte in &rest[text.len()..text.len() + wrong] {
                let _ = write!(shown, "\\x{byte:02x}");
            }
            rest = &rest[after..];
        }
        self.terminal.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    /// Also writes the start of a character without its end.
    fn flush(&mut self) -> io::Result<()> {
        for byte in std::mem::take(&mut self.partial) {
            write!(self.terminal, "\\x{byte:02x}")?;
        }
        self.terminal.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_control_hide_or_reorder_anything() {
        let key = "a\u{1b}[2J\u{202e}b\n\u{200b}\u{9b}1m\u{e0041}";
        assert_eq!(escaped(key, ""), "a\\u{1b}[2J\\u{202e}b\\n\\u{200b}\\u{9b}1m\\u{e0041}");
        let family = "\u{e9} \u{1f468}\u{200d}\u{1f469} \\n";
        assert_eq!(escaped(family, ""), family);
    }

    #[test]
    fn a_value_is_escaped_however_it_is_divided() {
        let value = b"\xe2\x82\xac\t1\r\n\x07\xff\xe2\x80\xae\xf0\x9f\xa6\x80\xe2\x82";
        let expected = "\u{20ac}\t1\\r\n\\u{7}\\xff\\u{202e}\u{1f980}\\xe2\\x82";
        for size in 1..=value.len() {
            let mut out = Escaping::new(Vec::new());
            for piece in value.chunks(size) {
                out.write_all(piece).expect("memory");
            }
            out.flush().expect("memory");
            assert_eq!(String::from_utf8_lossy(&out.terminal), expected, "{size}");
        }
    }
}
