//! `If-Match` and `If-None-Match` are decided in one step with the operation.
//!
//! Provoked with every verb on a present and an absent key, and with 16 clients that increment one key by
//! compare-and-set.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use vkog_tests::{Server, Setup, conflict};

use super::ENGINE;

fn ask(server: &Server, method: &str, header: (&str, &str), body: &str) -> u16 {
    let mut request = server.key(method, "k").header(header.0, header.1);
    if !body.is_empty() {
        request = request.body(body);
    }
    request.send().status
}

#[test]
fn a_write_succeeds_only_for_the_revision_that_it_names() {
    let server = Setup::on(ENGINE).load(conflict()).start();
    let first = server.post("k", "v1").expect(200).revision();
    let tag = format!("\"{first}\"");
    assert_eq!(ask(&server, "PUT", ("If-Match", "\"12345\""), "v2"), 412);
    assert_eq!(ask(&server, "PUT", ("If-Match", "\"some other's tag\""), "v2"), 412);
    assert_eq!(ask(&server, "DELETE", ("If-Match", "\"12345\""), ""), 412);
    server.get("k").expect(200).is("v1");
    assert_eq!(ask(&server, "PUT", ("If-Match", &format!("\"9\", {tag}")), "v2"), 200);
    assert_eq!(ask(&server, "PUT", ("If-Match", &tag), "v3"), 412);
    assert_eq!(ask(&server, "PUT", ("If-Match", "*"), "v3"), 200);
    assert_eq!(ask(&server, "DELETE", ("If-Match", "*"), ""), 200);
    assert_eq!(ask(&server, "PUT", ("If-Match", "*"), "v4"), 412);
}

#[test]
fn a_put_with_if_none_match_creates_also_with_conflict() {
    let server = Setup::on(ENGINE).load(conflict()).start();
    assert_eq!(ask(&server, "PUT", ("If-None-Match", "*"), "v1"), 200);
    assert_eq!(ask(&server, "PUT", ("If-None-Match", "*"), "v2"), 412);
    assert_eq!(ask(&server, "POST", ("If-None-Match", "*"), "v2"), 412);
    // A quoted asterisk is probably a mistake for `*`, and would permit the write.
    assert_eq!(ask(&server, "PUT", ("If-None-Match", "\"*\""), "v2"), 400);
    server.get("k").expect(200).is("v1");
}

#[test]
fn a_get_of_a_revision_that_the_client_has_is_304() {
    let server = Setup::on(ENGINE).start();
    let revision = server.post("k", "v1").expect(200).revision();
    let tag = format!("\"{revision}\"");
    let reply = server.key("GET", "k").header("If-None-Match", format!("W/{tag}")).send().expect(304);
    assert_eq!((reply.header("ETag"), reply.body.len()), (Some(tag.as_str()), 0));
    assert_eq!(ask(&server, "HEAD", ("If-None-Match", &tag), ""), 304);
    assert_eq!(ask(&server, "GET", ("If-None-Match", "\"12345\""), ""), 200);
    assert_eq!(ask(&server, "GET", ("If-Match", "\"12345\""), ""), 412);
    assert_eq!(ask(&server, "GET", ("If-Match", &tag), ""), 200);
}

#[test]
fn a_thousand_increments_by_compare_and_set_end_at_a_thousand() {
    const CLIENTS: usize = 16;
    let (left, retries) = (AtomicI64::new(1000), AtomicI64::new(0));
    let server = Setup::on(ENGINE).load(conflict()).start();
    server.post("k", "0").expect(200);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (client, left, retries) = (server.client(), &left, &retries);
            scope.spawn(move || {
                while left.fetch_sub(1, Ordering::Relaxed) > 0 {
                    loop {
                        let read = client.get("k").expect(200);
                        let next = read.text().parse::<u64>().expect("a number") + 1;
                        let tag = format!("\"{}\"", read.revision());
                        let wrote = client.key("PUT", "k").header("If-Match", tag).body(next.to_string()).send();
                        match wrote.status {
                            200 => break,
                            412 => drop(retries.fetch_add(1, Ordering::Relaxed)),
                            _ => panic!("{wrote}"),
                        }
                    }
                }
            });
        }
    });
    server.get("k").expect(200).is("1000");
    assert!(retries.into_inner() > 0, "no client was ever too late: they did not run at once");
}

#[test]
fn a_revision_in_json_is_an_integer_of_64_bits_in_any_notation() {
    let server = Setup::on(ENGINE).start();
    server.post("k", "v").expect(200);
    let put = |number: &str| {
        let body = r#"[{"op":"put","key":"k","value":"v","if_match":NUMBER,"if_none_match":[NUMBER]}]"#;
        let request = server.path("POST", "/batch").header("Content-Type", "application/json");
        request.body(body.replace("NUMBER", number)).send()
    };
    // The last two differ by 0.5 from the next number of 64 bits with a fraction.
    for number in ["1", "1.0", "1e3", "10.0e-1", "18446744073709551615", "3842231413764438.0", "4503599627370495.0"] {
        put(number).expect(412);
    }
    for number in ["0", "-0.0", "-1", "0.5", "1.5", "3842231413764438.5", "18446744073709551616", "1e300", "-1e3"] {
        put(number).expect(400);
    }
}
