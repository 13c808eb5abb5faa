//! Content codings, such as gzip. The engine keeps the coding of a value with its entry and returns it with the value. It never
//! decodes a value: plugins see it as it was sent.

use super::ExtraHeaders;
use vkog_plugin_host::{Origin, find_details, insert_details, is_token};
use vkog_store::Entry;

/// Its name among the details of an entry. No plugin can have this name.
const NAME: &str = ":content-encoding";
/// The maximum length of a list of codings, in bytes.
const LENGTH_MAX: usize = 64;

/// Whether this is a list of content codings (RFC 9110, section 8.4) that can be stored with an entry. `aws-chunked` is not: it
/// frames the body for one request.
pub fn is_coding(list: &[u8]) -> bool {
    let is_kept = |coding: &[u8]| is_token(coding) && !coding.eq_ignore_ascii_case(b"aws-chunked");
    let is_printable = list.iter().all(|byte| (b' '..=b'~').contains(byte));
    list.len() <= LENGTH_MAX && is_printable && codings(list).all(is_kept)
}

/// Whether a list of content codings names none but `identity`, which changes nothing.
pub fn is_identity(list: &[u8]) -> bool {
    codings(list).all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

fn codings(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Returns the content coding of an entry's value, if it has one.
pub fn content_coding(entry: &Entry) -> Option<&str> {
    let details = entry.details();
    if details.is_empty() {
        return None;
    }
    let coding = find_details(details, NAME);
    str::from_utf8(coding).ok().filter(|_| is_coding(coding))
}

/// Whether a request declares a coding of its value.
#[inline]
pub(super) fn is_coded(origin: &dyn Origin) -> bool {
    declared(origin).is_some()
}

fn declared(origin: &dyn Origin) -> Option<&[u8]> {
    origin.header("content-encoding").filter(|coding| is_coding(coding) && !is_identity(coding))
}

/// Adds the coding of a value, which its request declares, to the details of its entry.
pub(super) fn keep(origin: &dyn Origin, details: Vec<u8>) -> Vec<u8> {
    match declared(origin) {
        Some(coding) => insert_details(&details, NAME, coding),
        None => details,
    }
}

/// Adds the coding of a value to the header fields that accompany it.
#[inline]
pub(super) fn announce(entry: &Entry, headers: &mut ExtraHeaders) {
    if let Some(coding) = content_coding(entry) {
        headers.push(("Content-Encoding".to_owned(), coding.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coding_is_a_list_of_tokens() {
        for good in ["gzip", "br", "deflate, gzip", "x-custom", "identity"] {
            assert!(is_coding(good.as_bytes()), "{good}");
        }
        for bad in ["", ",", "gzip,", "gzip;q=1", "a b", "\u{e9}", "gzip\n", "AWS-chunked, gzip", &"a".repeat(65)] {
            assert!(!is_coding(bad.as_bytes()), "{bad}");
        }
    }
}
