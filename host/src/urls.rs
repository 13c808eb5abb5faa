//! URLs that users give: their schemes, which are case-insensitive, and their credentials, which nothing prints.

/// Returns what follows a scheme such as `http://` or `unix:`, or `None` if the text does not begin with it.
pub fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
    let start = text.get(..scheme.len())?;
    start.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
}

/// Returns a URL without the user and the password that it may have. One for HTTP also loses its query, because the query of a signed
/// URL is a credential.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let is_web = ["http", "https"].iter().any(|web| scheme.eq_ignore_ascii_case(web));
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let host = authority.rsplit('@').next().unwrap_or_default();
    // A slash or a question mark in a password must be encoded. If it is not, what is before it does not end with a port.
    let is_whole = host.rsplit_once(':').is_none_or(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let with_user = if is_whole { authority } else { rest };
    let shown = with_user.rfind('@').map_or(rest, |at| &rest[at + 1..]);
    let end = shown.find(['?', '#']).filter(|_| is_web).unwrap_or(shown.len());
    format!("{scheme}://{}{}", &shown[..end], if end < shown.len() { "?\u{2026}" } else { "" })
}

/// Returns a text in which every URL is without its credentials. A URL ends before white space and quotation marks.
pub fn without_credentials_in(text: &str) -> String {
    let is_end = |char: char| char.is_whitespace() || "\"'`<>".contains(char);
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let start = rest[..at].rfind(|char: char| !char.is_ascii_alphanumeric() && !"+-.".contains(char));
        let start = start.map_or(0, |before| before + rest[before..].chars().next().map_or(1, char::len_utf8));
        let end = rest[at..].find(is_end).map_or(rest.len(), |len| at + len);
        shown += &rest[..start];
        shown += &without_credentials(&rest[start..end]);
        rest = &rest[end..];
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_case_insensitive() {
        for (text, scheme, rest) in [
            ("HTTP://a/B", "http://", Some("a/B")),
            ("http://a", "https://", None),
            ("Unix:/Run", "unix:", Some("/Run")),
            ("http:/", "http://", None),
            ("\u{e9}ttp://", "http://", None),
            ("htt\u{e9}://", "http://", None),
        ] {
            assert_eq!(strip_scheme(text, scheme), rest, "{text}");
        }
    }

    #[test]
    fn a_url_is_shown_without_its_credentials() {
        for (url, shown) in [
            ("https://user:secret@a:1/b", "https://a:1/b"),
            ("HTTPS://secret@a", "HTTPS://a"),
            ("https://user:sec@ret@a/b@c", "https://a/b@c"),
            ("https://user:sec/ret@a/b", "https://a/b"),
            ("https://user:sec?ret@a/b?c", "https://a/b?\u{2026}"),
            ("https://a/b?secret", "https://a/b?\u{2026}"),
            ("https://a/b#secret", "https://a/b?\u{2026}"),
            ("https://user:secret@a?secret@b", "https://a?\u{2026}"),
            ("http://[::1]:80/a", "http://[::1]:80/a"),
            ("http://[::1]/a", "http://[::1]/a"),
            ("etcd://a:2379,b:2379/vkog@x?y", "etcd://a:2379,b:2379/vkog@x?y"),
            ("etcd://user:secret@a:2379,b:2379/vkog", "etcd://a:2379,b:2379/vkog"),
            ("unix:/a@b", "unix:/a@b"),
            ("://secret@", "://"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }

    #[test]
    fn every_url_in_a_text_is_shown_without_its_credentials() {
        for (text, shown) in [
            ("found \"http://a:secret@b/c\", expected d@e", "found \"http://b/c\", expected d@e"),
            ("--url=http://a:secret@b and etcd://secret@c", "--url=http://b and etcd://c"),
            ("\u{201c}http://secret@a\u{201d}", "\u{201c}http://a\u{201d}"),
            ("a ://secret@ b", "a :// b"),
            ("nothing://", "nothing://"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(without_credentials_in(text), shown);
        }
    }
}
