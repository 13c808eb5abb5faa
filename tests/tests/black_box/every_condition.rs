//! Every method on every state with every pair of `If-Match` and `If-None-Match` has the status and the effect that RFC
//! 9110 and the reference define.
//!
//! Provoked with all combinations, one key each, on both engines, with the conflict plugin and without. The expected
//! results are computed from the sections of RFC 9110 that are named below, independently of the server.

use vkog_tests::{ENGINES, Setup, Wire, conflict};

/// The request. An empty body is a failure that is detected before anything is processed.
const REQUESTS: [(&str, &str); 10] = [
    ("GET", ""),
    ("HEAD", ""),
    ("POST", "new"),
    ("POST", ""),
    ("PUT", "new"),
    ("PUT", ""),
    ("DELETE", ""),
    ("OPTIONS", ""),
    ("PATCH", ""),
    ("PATCH", "new"),
];

/// The content of a condition.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Names {
    /// No condition.
    Nothing,
    Any,
    /// The revision of the entry, or its last one before the removal.
    Right,
    /// The revision of another entry.
    Wrong,
    /// Both revisions.
    List,
    /// The right revision as a weak tag.
    Weak,
    /// A tag of some other server's, with what is no list in it and no asterisk either.
    Foreign,
    /// The right number in another form, which is another tag.
    Padded,
}

use Names::{Any, Foreign, List, Nothing, Padded, Right, Weak, Wrong};

const NAMES: [Names; 8] = [Nothing, Any, Right, Wrong, List, Weak, Foreign, Padded];

impl Names {
    fn header(self, name: &str, revision: u64, other: u64) -> String {
        let value = match self {
            Nothing => return String::new(),
            Any => "*".to_owned(),
            Right => format!("\"{revision}\""),
            Wrong => format!("\"{other}\""),
            List => format!("\"{other}\" ,, W/\"a,b\",\t\"{revision}\""),
            Weak => format!("W/\"{revision}\""),
            Foreign => format!("\"a,*,b\", \"a, {revision}\""),
            Padded => format!("\"0{revision}\", \"+{revision}\""),
        };
        format!("{name}: {value}\r\n")
    }
}

/// RFC 9110, section 13.1.1: true for `*` on an existing entry, and for a tag that is the entry's by strong comparison.
fn if_match(names: Names, present: bool) -> bool {
    match names {
        Nothing => true,
        Any | Right | List => present,
        Wrong | Weak | Foreign | Padded => false,
    }
}

/// RFC 9110, section 13.1.2: false for `*` on an existing entry, and for a tag that is the entry's by weak comparison.
fn if_none_match(names: Names, present: bool) -> bool {
    match names {
        Nothing | Wrong | Foreign | Padded => true,
        Any | Right | List | Weak => !present,
    }
}

fn expected((method, body): (&str, &str), present: bool, one_of: Names, none_of: Names, conflict: bool) -> u16 {
    // 13.2.1: conditions are ignored by methods that select and change nothing, and where the answer would be a failure that
    // can be seen before the content of the request is processed.
    match method {
        "OPTIONS" => return 204,
        "PATCH" if !body.is_empty() => return 400,
        "POST" | "PUT" if body.is_empty() => return 400,
        "GET" | "HEAD" | "DELETE" | "PATCH" if !present => return 404,
        _ => {}
    }
    // 13.2.2: in this order.
    if !if_match(one_of, present) {
        return 412;
    }
    if !if_none_match(none_of, present) {
        return if ["GET", "HEAD"].contains(&method) { 304 } else { 412 };
    }
    // The contract: conflict keeps create and update apart, but for a PUT that asks for a create in so many words.
    match method {
        "POST" if conflict && present => 409,
        "PUT" if conflict && !present && none_of != Any => 404,
        _ => 200,
    }
}

/// Sends requests with all conditions, and reads the entry before and after.
fn ask_all(wire: &mut Wire, with_conflict: bool) -> usize {
    let other = wire.request("POST", "/k/other", b"other").expect(200).revision();
    let mut asked = 0;
    for request in REQUESTS {
        let (method, body) = request;
        for present in [true, false] {
            for (one_of, none_of) in NAMES.iter().flat_map(|one_of| NAMES.map(|none_of| (*one_of, none_of))) {
                let path = format!("/k/{asked}");
                let revision = wire.request("POST", &path, b"old").expect(200).revision();
                if !present {
                    wire.request("DELETE", &path, b"").expect(200);
                }
                let conditions =
                    one_of.header("If-Match", revision, other) + &none_of.header("If-None-Match", revision, other);
                let length = body.len();
                let reply = wire
                    .send(format!(
                        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{conditions}Content-Length: {length}\r\n\r\n{body}"
                    ))
                    .reply();
                let status = expected(request, present, one_of, none_of, with_conflict);
                let reply = reply.expect(status);
                let wrote = status == 200 && ["POST", "PUT", "PATCH"].contains(&method);
                let tagged = if wrote {
                    assert!(reply.revision() > revision, "not a new revision: {reply}");
                    Some(reply.revision())
                } else {
                    matches!((method, status), ("GET" | "HEAD", 200 | 304)).then_some(revision)
                };
                assert_eq!(reply.header("ETag"), tagged.map(|tag| format!("\"{tag}\"")).as_deref(), "{reply}");
                // A response that cannot have a body has no length (RFC 9110, section 8.6).
                assert_eq!(reply.header("Content-Length").is_some(), ![204, 304].contains(&status), "{reply}");
                if method == "GET" && status == 200 {
                    assert_eq!(reply.text(), "old", "{reply}");
                }
                let found = wire.request("GET", &path, b"");
                match (wrote, present && !(method == "DELETE" && status == 200)) {
                    (true, _) => {
                        let value = if method == "PATCH" { "old" } else { "new" };
                        assert_eq!(found.expect(200).is(value).revision(), reply.revision(), "after {reply}");
                    }
                    (false, true) => assert_eq!(found.expect(200).is("old").revision(), revision, "after {reply}"),
                    (false, false) => drop(found.expect(404)),
                }
                asked += 1;
            }
        }
    }
    asked
}

#[test]
fn every_method_state_and_precondition_follows_the_rfc_on_both_engines() {
    for engine in ENGINES {
        for with_conflict in [false, true] {
            let setup = Setup::new().args(["--http", engine, "--fsync", "never"]);
            let server = if with_conflict { setup.load(conflict()) } else { setup }.start();
            eprintln!("on {engine}, with conflict: {with_conflict}");
            let asked = ask_all(&mut server.wire(), with_conflict);
            assert_eq!(asked, REQUESTS.len() * 2 * NAMES.len() * NAMES.len());
        }
    }
}
