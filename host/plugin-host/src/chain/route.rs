//! The routes of a plugin: their checks when the plugin is created, and the search for those at a path.

use std::collections::BTreeMap;
use std::sync::Arc;

use matchit::{Params, Router};
use percent_encoding::percent_decode_str;
use vkog_plugin_api::Permission;
use vkog_plugin_api::abi::RawRoute;

use super::Chain;
use super::member::Member;

/// The methods that a route may have. The host itself responds to OPTIONS, and calls the route of GET for HEAD.
pub const ROUTE_METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// A route that a plugin serves.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// One of [`ROUTE_METHODS`].
    pub method: &'static str,
    /// The path below `/x/PLUGIN`, with its parameters: `/{name}/{*rest}`.
    pub path: &'static str,
    /// The permission that a client needs.
    pub permission: Permission,
    /// A sentence about the route.
    pub summary: &'static str,
    /// The `serve_update` hook serves it, and not `serve`.
    pub updates: bool,
}

/// Why the routes of a plugin cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// The server does not serve the method.
    #[error("{method:?} of {method} {path} is no method of a route; use GET, POST, PUT, PATCH or DELETE")]
    Method {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// The path is malformed.
    #[error(
        "the path of {method} {path} is malformed; begin it with a slash, and use ASCII letters, digits, \
         -._~!$&'()+,;=:@, {{name}} for a segment, and {{*name}} for the rest"
    )]
    Path {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// This version of the server does not know the permission.
    #[error("{method} {path} needs permission {number}, which this server does not have; use a newer server")]
    Permission {
        /// The method.
        method: String,
        /// The path.
        path: String,
        /// The permission as a number.
        number: u32,
    },
    /// The route updates an entry, and its path has no parameter for the key.
    #[error(
        "the path of {method} {path} has no parameter \"key\", which names the entry to update; add {{key}} or {{*key}}"
    )]
    Key {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// Requests to this route would match another one as well.
    #[error("{method} {path} matches the same requests as {other}; remove one of them")]
    Duplicate {
        /// The method.
        method: String,
        /// The path.
        path: String,
        /// The path of the other route.
        other: String,
    },
}

/// The routes of a plugin.
#[derive(Default)]
pub(super) struct RouteTable {
    all: Vec<Route>,
    /// The routes of each path, one for each method.
    by_path: Router<Vec<Route>>,
}

impl RouteTable {
    /// Checks the routes of a module.
    ///
    /// # Errors
    ///
    /// The first route that is malformed, or that matches the same requests as another one.
    pub(super) fn parse(raw: &[RawRoute]) -> Result<Self, RouteError> {
        let all = raw.iter().map(parse).collect::<Result<Vec<Route>, _>>()?;
        let mut paths: BTreeMap<&str, Vec<Route>> = BTreeMap::new();
        for route in &all {
            let same = paths.entry(route.path).or_default();
            if same.iter().any(|other| other.method == route.method) {
                return Err(duplicate(route, route.path));
            }
            same.push(*route);
        }
        let mut by_path = Router::new();
        for (path, routes) in paths {
            let first = routes[0];
            by_path.insert(path, routes).map_err(|error| match error {
                matchit::InsertError::Conflict { with } => duplicate(&first, &with),
                _ => malformed(&first),
            })?;
        }
        Ok(Self { all, by_path })
    }

    pub(super) fn all(&self) -> &[Route] {
        &self.all
    }
}

fn parse(raw: &RawRoute) -> Result<Route, RouteError> {
    let [method, path, summary] = [raw.method, raw.path, raw.summary].map(|text| text.as_str());
    let permission = match raw.permission {
        0 => Permission::None,
        1 => Permission::Read,
        2 => Permission::Write,
        3 => Permission::Admin,
        number => {
            return Err(RouteError::Permission { method: method.to_owned(), path: path.to_owned(), number });
        }
    };
    let updates = raw.flags & RawRoute::UPDATES != 0;
    let route = Route { method, path, permission, summary, updates };
    if !ROUTE_METHODS.contains(&method) {
        return Err(RouteError::Method { method: method.to_owned(), path: path.to_owned() });
    }
    if !is_well_formed(path) {
        return Err(malformed(&route));
    }
    let names_key = || path.split('/').any(|segment| matches!(segment, "{key}" | "{*key}"));
    if updates && !names_key() {
        return Err(RouteError::Key { method: method.to_owned(), path: path.to_owned() });
    }
    Ok(route)
}

fn malformed(route: &Route) -> RouteError {
    RouteError::Path { method: route.method.to_owned(), path: route.path.to_owned() }
}

fn duplicate(route: &Route, other: &str) -> RouteError {
    RouteError::Duplicate { method: route.method.to_owned(), path: route.path.to_owned(), other: other.to_owned() }
}

fn is_well_formed(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else { return false };
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_literal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte);
    let mut names = Vec::new();
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let Some(name) = segment.strip_prefix('{').and_then(|name| name.strip_suffix('}')) else {
            if segment.bytes().all(is_literal) {
                continue;
            }
            return false;
        };
        let is_last = segments.peek().is_none();
        let name = name.strip_prefix('*').filter(|_| is_last).unwrap_or(name);
        if !is_name(name) || names.contains(&name) {
            return false;
        }
        names.push(name);
    }
    true
}

/// The routes at the path of a request.
pub struct PathRoutes<'a> {
    /// The plugin.
    pub member: &'a Arc<Member>,
    /// The path behind `/x/PLUGIN`, as the client sent it.
    pub path: &'a str,
    routes: &'a [Route],
    parameters: Params<'a, 'a>,
}

/// A parameter of a path is not percent-encoded UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} in the path is not percent-encoded UTF-8; encode it as UTF-8, and write % as %25")]
pub struct BadParameter {
    /// The name of the parameter.
    pub name: String,
}

impl<'a> PathRoutes<'a> {
    /// Returns the route of a method. HEAD has that of GET.
    pub fn route(&self, method: &str) -> Option<&'a Route> {
        let method = if method == "HEAD" { "GET" } else { method };
        self.routes.iter().find(|route| route.method == method)
    }

    /// Returns the methods of this path, as the header field `Allow` lists them.
    pub fn allow(&self) -> String {
        let mut methods = Vec::new();
        for method in ROUTE_METHODS.into_iter().filter(|method| self.route(method).is_some()) {
            methods.push(method);
            if method == "GET" {
                methods.push("HEAD");
            }
        }
        methods.push("OPTIONS");
        methods.join(", ")
    }

    /// Returns the names and the values of the parameters, decoded once.
    ///
    /// # Errors
    ///
    /// The first parameter that cannot be decoded.
    pub fn parameters(&self) -> Result<Vec<(String, String)>, BadParameter> {
        let decoded = self.parameters.iter().map(|(name, value)| {
            let text = has_valid_escapes(value).then(|| percent_decode_str(value).decode_utf8().ok()).flatten();
            let text = text.ok_or_else(|| BadParameter { name: name.to_owned() })?;
            Ok((name.to_owned(), text.into_owned()))
        });
        decoded.collect()
    }
}

/// Whether two hexadecimal digits follow each `%`.
fn has_valid_escapes(encoded: &str) -> bool {
    let is_hex = |hex: &[u8]| hex.iter().all(u8::is_ascii_hexdigit);
    encoded.match_indices('%').all(|(at, _)| encoded.as_bytes().get(at + 1..at + 3).is_some_and(is_hex))
}

impl Chain {
    /// Finds the routes at a path, which is what a request has behind `/x/`: the name of the plugin and the path of the route.
    pub fn routes_at<'a>(&'a self, path: &'a str) -> Option<PathRoutes<'a>> {
        let (name, path) = path.split_at(path.find('/')?);
        let member = self.members.iter().find(|member| member.name() == name)?;
        let found = member.route_table().by_path.at(path).ok()?;
        Some(PathRoutes { member, path, routes: found.value, parameters: found.params })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(method: &'static str, path: &'static str, permission: u32) -> RawRoute {
        RawRoute {
            method: method.into(),
            path: path.into(),
            summary: "".into(),
            permission,
            flags: 0,
            reserved: [0; 2],
        }
    }

    #[test]
    fn a_route_that_updates_an_entry_without_a_key_is_refused() {
        let updating = |path| RawRoute { flags: RawRoute::UPDATES, ..raw("POST", path, 2) };
        for path in ["/", "/{keys}", "/key", "/{a}/{*b}"] {
            assert!(matches!(error(&[updating(path)]), Some(RouteError::Key { .. })), "{path}");
        }
        for path in ["/{key}", "/{*key}", "/{key}/a"] {
            assert_eq!(error(&[updating(path)]), None, "{path}");
            assert_eq!(error(&[raw("POST", path, 2)]), None, "{path}");
        }
    }

    fn error(routes: &[RawRoute]) -> Option<RouteError> {
        RouteTable::parse(routes).err()
    }

    #[test]
    fn malformed_routes_are_refused_with_their_reason() {
        for method in ["get", "HEAD", "OPTIONS", "TRACE", "", "G ET"] {
            assert!(matches!(error(&[raw(method, "/", 0)]), Some(RouteError::Method { .. })), "{method}");
        }
        for path in
            ["", "a", "/a b", "/é", "/%20", "/{}", "/{a", "/a}", "/{*a}/b", "/{a}b", "/{a}/{a}", "/a?b", "/{a b}"]
        {
            assert!(matches!(error(&[raw("GET", path, 0)]), Some(RouteError::Path { .. })), "{path}");
        }
        assert!(matches!(error(&[raw("GET", "/", 4)]), Some(RouteError::Permission { number: 4, .. })));
    }

    #[test]
    fn two_routes_for_the_same_requests_are_refused() {
        for [first, second] in [["/a", "/a"], ["/{a}", "/{b}"], ["/a/{*b}", "/a/{*c}"]] {
            let found = error(&[raw("GET", first, 0), raw("GET", second, 0)]);
            assert!(matches!(found, Some(RouteError::Duplicate { .. })), "{first} {second}: {found:?}");
        }
        // OpenAPI has one path for both, whatever their methods are.
        for [first, second] in [["/{a}", "/{*a}"], ["/{*a}", "/{b}"], ["/x/{a}/{b}", "/x/{a}/{*c}"]] {
            for method in ["GET", "PUT"] {
                let found = error(&[raw("GET", first, 0), raw(method, second, 0)]);
                assert!(matches!(found, Some(RouteError::Duplicate { .. })), "{first} {method} {second}: {found:?}");
            }
        }
        assert_eq!(error(&[raw("GET", "/a", 0), raw("PUT", "/a", 0), raw("GET", "/{a}", 0), raw("GET", "/", 0)]), None);
    }

    #[test]
    fn a_path_finds_its_route_and_its_parameters() {
        let routes = [raw("GET", "/", 0), raw("GET", "/a/{b}", 0), raw("GET", "/c/{*d}", 0), raw("GET", "/a/x", 0)];
        let table = RouteTable::parse(&routes).expect("they are valid");
        for (path, expected) in [
            ("/", Some(("/", ""))),
            ("/a/1", Some(("/a/{b}", "1"))),
            ("/a/x", Some(("/a/x", ""))),
            ("/a/1/2", None),
            ("/a/1%2F2", Some(("/a/{b}", "1%2F2"))),
            ("/c/1/2", Some(("/c/{*d}", "1/2"))),
            ("/c//1", Some(("/c/{*d}", "/1"))),
            ("/c/", None),
            ("/c", None),
            ("", None),
        ] {
            let found = table.by_path.at(path).ok();
            let found =
                found.map(|found| (found.value[0].path, found.params.iter().next().map_or("", |(_, value)| value)));
            assert_eq!(found, expected, "{path}");
        }
    }
}
