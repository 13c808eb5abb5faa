//! Entity tags: the revision of an entry in quotation marks, and the conditional requests that name some (RFC 9110).

use super::problem::Problem;
use crate::http::RequestHead;
use vkog_engine::{Conditions, Revisions};

/// Parses `If-Match` and `If-None-Match`.
///
/// # Errors
///
/// A condition is malformed. Ignoring it could run an operation that the client wanted to prevent.
pub(super) fn conditions(head: &RequestHead) -> Result<Conditions, Problem> {
    // A weak tag never matches strongly (RFC 9110, section 8.8.3.2), and this server sends none.
    let condition = |name, weak| {
        let fault = || Problem::new(400, format!("{name} is not * or a list of entity tags such as \"7\""));
        revisions(head, name, weak).map_err(|NotTags| fault())
    };
    Ok(Conditions { if_match: condition("If-Match", false)?, if_none_match: condition("If-None-Match", true)? })
}

/// A header field that is neither `*` nor a list of entity tags.
#[derive(Debug)]
struct NotTags;

fn revisions(head: &RequestHead, name: &str, weak: bool) -> Result<Option<Revisions>, NotTags> {
    let mut values = head.headers.all(name).peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let (mut revisions, mut tags, mut any) = (Vec::new(), 0, 0);
    for value in values {
        let value = String::from_utf8_lossy(value.trim_ascii());
        if value == "*" {
            any += 1;
            continue;
        }
        // A quoted `*` is a mistake of the client: no entry has this tag.
        if value == "\"*\"" {
            return Err(NotTags);
        }
        // A tag can contain commas and asterisks; it ends at its closing quotation mark.
        let mut rest = value.trim_start_matches(BETWEEN_TAGS);
        while !rest.is_empty() {
            let (is_weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |strong| (true, strong));
            let (tag, after) = quoted.strip_prefix('"').and_then(|tag| tag.split_once('"')).ok_or(NotTags)?;
            tags += 1;
            revisions.extend(opaque(tag).filter(|_| weak || !is_weak));
            rest = after.trim_start_matches([' ', '\t']);
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(NotTags);
            }
            rest = rest.trim_start_matches(BETWEEN_TAGS);
        }
    }
    match (any, tags) {
        (1, 0) => Ok(Some(Revisions::Any)),
        (0, 1..) => Ok(Some(Revisions::These(revisions))),
        _ => Err(NotTags),
    }
}

/// The characters between the elements of a list (RFC 9110, section 5.6.1.2).
const BETWEEN_TAGS: [char; 3] = [',', ' ', '\t'];

/// Returns the revision of a strong entity tag.
pub(super) fn revision(tag: &str) -> Option<u64> {
    opaque(tag.strip_prefix('"')?.strip_suffix('"')?)
}

/// Returns the revision between the quotation marks. A tag of another server has no revision, and "07" is not "7".
fn opaque(tag: &str) -> Option<u64> {
    tag.parse().ok().filter(|revision: &u64| revision.to_string() == tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    fn conditions_of(name: &str, values: &[&str]) -> Result<Conditions, u16> {
        let mut headers = Headers::default();
        values.iter().for_each(|value| headers.push(name, value.as_bytes()));
        let head = RequestHead::new(Method::Put, "/k/a".to_owned(), headers, None);
        conditions(&head).map_err(|problem| problem.status())
    }

    #[test]
    fn a_condition_is_an_asterisk_or_a_list_of_entity_tags() {
        use Revisions::{Any, These};
        for (values, expected) in [
            (&[][..], None),
            (&["*"], Some(Any)),
            (&["\"7\""], Some(These(vec![7]))),
            (&["\"7\",\"8\""], Some(These(vec![7, 8]))),
            (&[" ,\t, \"7\" \t, ,\"8\" ,"], Some(These(vec![7, 8]))),
            (&["\"7\"", "\"8\""], Some(These(vec![7, 8]))),
            // Tags of another server.
            (&["\"\", \"a,*\", \"07\", \"+7\", \"18446744073709551616\""], Some(These(vec![]))),
        ] {
            let all = |if_match, if_none_match| Ok(Conditions { if_match, if_none_match });
            assert_eq!(conditions_of("If-Match", values), all(expected.clone(), None), "{values:?}");
            assert_eq!(conditions_of("If-None-Match", values), all(None, expected), "{values:?}");
        }
    }

    #[test]
    fn a_weak_tag_matches_only_where_weak_comparison_is_used() {
        let values = ["W/\"7\", \"8\""];
        let (strong, weak) = (Some(Revisions::These(vec![8])), Some(Revisions::These(vec![7, 8])));
        let if_match = conditions_of("If-Match", &values).expect("valid");
        assert_eq!(if_match, Conditions { if_match: strong, if_none_match: None });
        let if_none_match = conditions_of("If-None-Match", &values).expect("valid");
        assert_eq!(if_none_match, Conditions { if_match: None, if_none_match: weak });
    }

    #[test]
    fn a_malformed_condition_is_refused() {
        for values in [
            &[""][..],
            &[","],
            &["7"],
            &["\"7"],
            &["\"7\"\"8\""],
            &["\"7\" \"8\""],
            &["\"7\";"],
            &["W/7"],
            &["w/\"7\""],
            &["\"*\""],
            &["\"7\"", "\"*\""],
            &["*", "*"],
            &["*", "\"7\""],
            &["*, \"7\""],
        ] {
            assert_eq!(conditions_of("If-Match", values), Err(400), "{values:?}");
            assert_eq!(conditions_of("If-None-Match", values), Err(400), "{values:?}");
        }
    }

    #[test]
    fn a_revision_is_written_as_one_strong_tag() {
        assert_eq!(revision("\"7\""), Some(7));
        for other in ["7", "\"7", "7\"", "W/\"7\"", "\"07\"", "\"\"", "*", "\""] {
            assert_eq!(revision(other), None, "{other}");
        }
    }
}
