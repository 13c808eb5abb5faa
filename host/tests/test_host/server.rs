//! The server's HTTP interface and a local store, in this process and without sockets.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::channel;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use vkog::any_store::Engine;
use vkog::api::{Api, Authorizer};
use vkog::config;
use vkog::http::{Headers, Method, RequestHead, Responder, Response, Service};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{__hooks, Verb};
use vkog_plugin_host::{FailurePolicy, HostContext, Member, Registry, system_clock};
use vkog_store::{Fsync, LocalDisk, LocalStore, Options};

use crate::plugins::{Bookkeeper, Clerk, Quota, Transform, Veil};
use crate::{Op, Seen};

/// The headers that plugins add.
const ADDED: [&str; 3] = ["X-Asked", "X-Reason", "X-Writes"];

pub(crate) struct Server {
    api: Api,
    engine: Arc<Engine>,
    /// The revision before that of the first write.
    first: u64,
    _folder: TempDir,
}

/// The index, the status, the text and the plugin of a batch that failed.
pub(crate) type Failed = (Option<usize>, (u16, String, Option<String>));

macro_rules! members {
    ($context:expr, $($plugin:ident $name:literal),*) => {
        vec![$({
            let module = module::<$plugin>($name, "0.0.0", true, &__hooks!($plugin), &[]);
            // SAFETY: the module is part of this program.
            let member = unsafe { Member::create(module, "{}", $context, FailurePolicy::default()) };
            Arc::new(member.expect("it needs no settings"))
        }),*]
    };
}

impl Server {
    /// Starts a server, and writes a value under a key.
    pub(crate) fn start(key: &str, value: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let options = Options { fsync: Fsync::Never, ..Options::default() };
        let store = LocalStore::open(LocalDisk, &folder.path().join("store"), options, &|_, _, _| {});
        let context = Arc::new(HostContext::new(128 << 20, system_clock));
        let members = members!(
            &context, Quota "quota", Bookkeeper "bookkeeper", Transform "transform", Veil "veil", Clerk "clerk"
        );
        let registry = Registry::linked(members, Vec::new(), context);
        let engine = Engine::new(store.expect("a new store opens").into(), registry).expect("all plugins start");
        let auth = Arc::new(Authorizer::new(config::Auth { open: true, ..config::Auth::default() }));
        let api = Api::new(Arc::clone(&engine), 16 << 20, auth, Arc::new(|| Ok(Vec::new())));
        let mut server = Self { first: 0, api, engine, _folder: folder };
        let written = server.send(Method::Put, format!("/k/{key}"), &[], value.as_bytes());
        assert_eq!(written.status, 200);
        server.first = server.revision() - 1;
        server
    }

    pub(crate) fn revision(&self) -> u64 {
        self.engine.revision()
    }

    pub(crate) fn distance(&self, revision: u64) -> u64 {
        revision.wrapping_sub(self.first)
    }

    pub(crate) fn metric(&self, plugin: &str, name: &str) -> i64 {
        let metrics = self.engine.plugins().context().metrics(plugin);
        metrics.iter().find(|(own, _)| own == name).map(|(_, metric)| metric.value()).expect("it is published")
    }

    fn send(&self, method: Method, target: String, fields: &[(&str, &str)], body: &[u8]) -> Response {
        let mut headers = Headers::default();
        headers.push("host", b"127.0.0.1:3110");
        fields.iter().for_each(|(name, value)| headers.push(name, value.as_bytes()));
        let head = Arc::new(RequestHead::new(method, target, headers, None));
        let admitted = match self.api.admit(head) {
            Ok(admitted) => admitted,
            Err(response) => return response,
        };
        let (send, response) = channel();
        self.api.serve(admitted, body.to_vec(), Responder::new(move |response| _ = send.send(response)));
        response.recv().expect("a response")
    }

    pub(crate) fn operation(&self, op: &Op) -> Seen {
        let method = match op.verb {
            Verb::Get => Method::Get,
            Verb::Post => Method::Post,
            Verb::Put => Method::Put,
            Verb::Delete => Method::Delete,
        };
        let tag = op.if_revision.map(|distance| format!("\"{}\"", self.first + distance));
        let mut fields: Vec<(&str, &str)> = op.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        fields.extend(tag.as_ref().map(|tag| ("If-Match", tag.as_str())));
        fields.extend((!op.content_type.is_empty()).then_some(("Content-Type", op.content_type)));
        let response = self.send(method, format!("/k/{}", op.key), &fields, op.value.as_bytes());
        let found = response.status == 200 && op.verb == Verb::Get;
        let kept = |name: &str| ADDED.contains(&name) || name == "Vkog-Plugin" || found && name == "Content-Type";
        let headers = response.headers.iter().filter(|(name, _)| kept(name));
        let mut headers: Vec<_> = headers.map(|(name, value)| (name.to_string(), value.to_string())).collect();
        headers.sort();
        let tag = response.etag().map(|tag| String::from_utf8_lossy(&tag).trim_matches('"').to_owned());
        let revision = tag.and_then(|tag| tag.parse().ok()).map(|revision| self.distance(revision));
        let body = String::from_utf8_lossy(response.body.as_ref()).into_owned();
        let body = if found { body } else { body.trim_end_matches('\n').to_owned() };
        Seen { status: response.status, body, revision, headers }
    }

    pub(crate) fn batch(&self, ops: &[Op]) -> Result<Vec<Seen>, Failed> {
        let operations: Vec<Value> = ops.iter().map(|op| self.written(op)).collect();
        let body = Value::from(operations).to_string();
        let fields = [("Content-Type", "application/json")];
        let response = self.send(Method::Post, "/batch".to_owned(), &fields, body.as_bytes());
        let body: Value = serde_json::from_slice(response.body.as_ref()).expect("JSON");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if response.status != 200 {
            let index = body["index"].as_u64().map(|index| index as usize);
            return Err((index, (response.status, text(&body["title"]).unwrap_or_default(), text(&body["plugin"]))));
        }
        let seen = |done: &Value| {
            let added = done["headers"].as_object().cloned().unwrap_or_default().into_iter();
            let mut headers: Vec<_> = added.map(|(name, value)| (name, text(&value).unwrap_or_default())).collect();
            headers.extend(text(&done["content_type"]).map(|name| ("Content-Type".to_owned(), name)));
            headers.sort();
            Seen {
                status: done["status"].as_u64().unwrap_or(0) as u16,
                body: text(&done["value"]).unwrap_or_default(),
                revision: done["revision"].as_u64().map(|revision| self.distance(revision)),
                headers,
            }
        };
        Ok(body.as_array().expect("an array").iter().map(seen).collect())
    }

    /// An operation as an element of a batch.
    fn written(&self, op: &Op) -> Value {
        let verb = op.verb.method().to_ascii_lowercase();
        let mut written = json!({"op": verb, "key": op.key});
        if matches!(op.verb, Verb::Post | Verb::Put) {
            written["value"] = op.value.as_str().into();
        }
        if !op.content_type.is_empty() {
            written["content_type"] = op.content_type.into();
        }
        if let Some(distance) = op.if_revision {
            written["if_match"] = (self.first + distance).into();
        }
        if !op.headers.is_empty() {
            let headers = op.headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into()));
            written["headers"] = Value::Object(headers.collect::<Map<_, _>>());
        }
        written
    }

    fn json(&self, target: String) -> Value {
        let response = self.send(Method::Get, target, &[], b"");
        serde_json::from_slice(response.body.as_ref()).expect("JSON")
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let page = self.json(format!("/keys?prefix={prefix}"));
        let keys = page["keys"].as_array().expect("keys").iter();
        keys.map(|key| key["key"].as_str().unwrap_or_default().to_owned()).collect()
    }

    pub(crate) fn count(&self, prefix: &str) -> u64 {
        self.json(format!("/keys?count&prefix={prefix}"))["count"].as_u64().expect("a number")
    }
}
