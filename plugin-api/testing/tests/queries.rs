//! A plugin reads a parameter of the query as the server reads its own: decoded once as form data, and refused if it is repeated or
//! malformed.
//!
//! Provoked with a plugin that returns the parameter `p`, in a hook of an operation, in a route and before a request.

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

/// Shows the parameter `p`.
struct Shows;

impl Plugin for Shows {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Shows)
    }
}

impl BeforeRequest for Shows {
    fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
        match request.query_parameter("token")?.as_deref() {
            Some("wrong one") => Err(Refusal::new(401, "wrong one")),
            _ => Ok(()),
        }
    }
}

impl BeforePut for Shows {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        let shown = format!("{:?}", put.query_parameter("p")?);
        put.replace_value(shown.as_bytes());
        Ok(())
    }
}

impl Serve for Shows {
    const ROUTES: &'static [Route] = &[Route::new("GET", "/", Permission::None, "Show a parameter.")];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        request.respond(200, "text/plain", format!("{:?}", request.query_parameter("p")?).as_bytes());
        Ok(())
    }
}

fn start() -> TestHost {
    Setup::new().load_other(plugin!(Shows, "shows")).start()
}

#[test]
fn a_parameter_is_decoded_as_form_data() {
    let host = start();
    for (query, value) in [
        ("", "None"),
        ("q=1", "None"),
        ("pp=1&ap=2", "None"),
        ("p", "Some(\"\")"),
        ("p=", "Some(\"\")"),
        ("p=a=b", "Some(\"a=b\")"),
        ("a=1&&p=2&b", "Some(\"2\")"),
        ("p=a+b%2Bc%2c", "Some(\"a b+c,\")"),
        ("p=%C3%BC%25", "Some(\"ü%\")"),
        ("%70=named", "Some(\"named\")"),
        ("%=1&p=2", "Some(\"2\")"),
    ] {
        host.request(Verb::Put, "k").body("1").query(query).send().expect(200);
        host.get("k").is(value);
        host.route("GET", &format!("/x/shows/?{query}")).send().expect(200).is(value);
    }
}

#[test]
fn a_repeated_or_malformed_parameter_is_refused() {
    let host = start();
    for (query, message) in [
        ("p=1&p=1", "The parameter p is repeated; send it once"),
        ("p&%70", "The parameter p is repeated; send it once"),
        ("p=a%", "p is not percent-encoded correctly at byte 1; write % as %25"),
        ("p=ab%4", "p is not percent-encoded correctly at byte 2; write % as %25"),
        ("p=%+1", "p is not percent-encoded correctly at byte 0; write % as %25"),
        ("p=+%g1", "p is not percent-encoded correctly at byte 1; write % as %25"),
        ("p=%ff", "p is not UTF-8; encode it as UTF-8"),
    ] {
        host.request(Verb::Put, "k").body("1").query(query).send().refused(400, message);
        host.route("GET", &format!("/x/shows/?{query}")).send().refused(400, message);
    }
}

#[test]
fn a_parameter_is_read_before_a_request() {
    let host = start();
    host.route("GET", "/x/shows/?token=wrong+one").send().refused(401, "wrong one");
    host.route("GET", "/x/shows/?token=right").send().expect(200);
}
