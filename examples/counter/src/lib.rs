//! Counters: `POST /x/counter/KEY?by=5` adds to the number that an entry holds, in one step, and returns the sum.

#![forbid(unsafe_code)]

use vkog_plugin_api::*;

const TEXT: &str = "text/plain";

struct Counter {
    host: Host,
}

impl Plugin for Counter {
    type Settings = NoSettings;

    fn create(host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        Ok(Counter { host })
    }
}

impl Serve for Counter {
    const ROUTES: &'static [Route] =
        &[Route::new("GET", "/{*key}", Permission::Read, "Return the number of a counter.")];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        let found = self.host.get(request.parameter("key").unwrap_or_default())?;
        let found = found.ok_or_else(|| Refusal::new(404, "Counter not found"))?;
        request.respond(200, TEXT, number(&found.value)?.to_string().as_bytes());
        Ok(())
    }
}

impl ServeUpdate for Counter {
    const ROUTES: &'static [Route] =
        &[Route::new("POST", "/{*key}", Permission::Write, "Add to a counter, by 1 or by the number in the query.")];

    /// Adds to a counter, which begins at 0, and responds with the sum.
    fn serve_update(&self, request: &UpdateRequest<'_>) -> Result<Vec<u8>, Refusal> {
        let by = by(request.query())?;
        let before = request.entry().map_or(Ok(0), |entry| number(entry.value()))?;
        let overflow = || Refusal::new(409, format!("The counter is {before}, and adding {by} would overflow it"));
        let sum = before.checked_add(by).ok_or_else(overflow)?.to_string();
        request.set_value_type(TEXT);
        request.respond(200, TEXT, sum.as_bytes());
        Ok(sum.into_bytes())
    }
}

export_plugin!(Counter);

/// Returns the number of a value.
fn number(value: &[u8]) -> Result<i64, Refusal> {
    let number = std::str::from_utf8(value).ok().and_then(|text| text.trim_ascii().parse().ok());
    number.ok_or_else(|| Refusal::new(409, "The value is not a number from -2^63 to 2^63-1"))
}

/// Returns the number in the parameter `by`, or 1 if the query has none. Other parameters are ignored.
fn by(query: &str) -> Result<i64, Refusal> {
    let mut values = query.split('&').filter_map(|pair| match pair.split_once('=') {
        Some((name, value)) => (name == "by").then_some(value),
        None => (pair == "by").then_some(""),
    });
    match (values.next(), values.next()) {
        (None, _) => Ok(1),
        (Some(value), None) => {
            value.parse().map_err(|_| Refusal::new(400, format!("by is {value:?}; use a whole number such as 5 or -5")))
        }
        (Some(_), Some(_)) => Err(Refusal::new(400, "by is repeated; send it once")),
    }
}

#[cfg(test)]
mod tests {
    use vkog_plugin_testing::Setup;

    use super::*;

    #[test]
    fn a_counter_begins_at_zero_and_returns_each_sum() {
        let host = Setup::new().load::<Counter>().start();
        for (query, sum) in [("", "1"), ("?by=5", "6"), ("?by=-10", "-4"), ("?other=1&by=0", "-4")] {
            let reply = host.route("POST", &format!("/x/counter/visits/2026{query}")).send().expect(200).is(sum);
            reply.has("Content-Type", "text/plain");
            host.route("GET", "/x/counter/visits/2026").send().expect(200).is(sum);
        }
        host.get("visits/2026").expect(200).is("-4").has("Content-Type", "text/plain");
        host.route("GET", "/x/counter/other").send().refused(404, "Counter not found");
    }

    #[test]
    fn a_bad_step_is_refused_and_changes_nothing() {
        let host = Setup::new().load::<Counter>().start();
        host.put("a", "7").expect(200);
        for by in ["by=", "by", "by=five", "by=1.5", "by=0x1", "by=9223372036854775808", "by=%35", "by=1&by=2"] {
            host.route("POST", &format!("/x/counter/a?{by}")).send().refused(400, "by is ");
        }
        host.get("a").is("7");
    }

    #[test]
    fn a_value_that_is_no_number_and_an_overflow_are_refused() {
        let host = Setup::new().load::<Counter>().start();
        host.put("text", "seven").expect(200);
        host.put("max", i64::MAX.to_string()).expect(200);
        host.put("min", i64::MIN.to_string()).expect(200);
        for method in ["GET", "POST"] {
            host.route(method, "/x/counter/text").send().refused(409, "The value is not a number");
        }
        host.route("POST", "/x/counter/max").send().refused(409, "The counter is 9223372036854775807");
        host.route("POST", "/x/counter/min?by=-1").send().refused(409, "The counter is -9223372036854775808");
        host.route("POST", "/x/counter/max?by=-1").send().expect(200).is("9223372036854775806");
        host.get("text").is("seven");
    }
}
