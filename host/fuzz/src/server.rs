//! The whole program behind the engines, without plugins, around a store in its own folder.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};

use vkog::api::{Api, Authorizer};
use vkog::config;
use vkog::http::{Headers, Method, RequestHead, Responder, Response, Service};
use vkog::any_store::Engine;
use vkog_store::{Fsync, LocalDisk, Options, LocalStore};
use vkog_plugin_host::{HostContext, Registry, system_clock};

/// The longest value, in bytes.
pub const VALUE_MAX: u64 = 1 << 20;

/// A folder in memory, if the system has one: a fuzzer writes millions of files.
pub static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    made.expect("a temporary folder can be made")
});

/// A server without a socket.
pub fn start() -> Arc<Api> {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let path = FOLDER.path().join(format!("server-{}", STARTED.fetch_add(1, Ordering::Relaxed)));
    let options = Options { fsync: Fsync::Never, ..Options::default() };
    let store = LocalStore::open(LocalDisk, &path, options, &|_, _, _| {}).expect("an empty store opens");
    // The folder stays open without a name, like the server.
    std::fs::remove_file(path.with_extension("log")).expect("a store has a log");
    let port = Arc::new(HostContext::new(VALUE_MAX, system_clock));
    let engine = Engine::new(store.into(), Registry::linked(Vec::new(), Vec::new(), port)).expect("no plugin refuses to start");
    let auth = config::Auth { open: true, ..config::Auth::default() };
    let reload = Arc::new(|| Ok(Vec::new()));
    Arc::new(Api::new(engine, VALUE_MAX, Arc::new(Authorizer::new(auth)), reload))
}

/// Runs with a server that is replaced from time to time, so that its store does not grow without limit.
pub fn with(run: impl FnOnce(&Arc<Api>)) {
    thread_local! {
        static SERVER: RefCell<(u32, Option<Arc<Api>>)> = const { RefCell::new((0, None)) };
    }
    SERVER.with_borrow_mut(|(uses, api)| {
        *uses += 1;
        if *uses % 1024 == 0 {
            *api = None;
        }
        run(api.get_or_insert_with(start));
    });
}

/// Sends a request, as an engine does.
pub fn ask(api: &Api, method: Method, target: &str, headers: Headers, body: &[u8]) -> Response {
    let head = Arc::new(RequestHead::new(method, target.to_owned(), headers, None));
    let admitted = match api.admit(head) {
        Ok(admitted) => admitted,
        Err(reply) => return reply,
    };
    let (tell, told) = channel();
    api.serve(admitted, body.to_vec(), Responder::new(move |reply| drop(tell.send(reply))));
    told.recv().expect("every request gets a response")
}

/// Holds a reply against what every reply is.
pub fn check(reply: &Response) {
    let body = reply.body.as_ref();
    assert!(
        matches!(reply.status, 200..=299 | 304 | 400..=499),
        "{}: {:?}",
        reply.status,
        String::from_utf8_lossy(body)
    );
    for (name, value) in &reply.headers {
        assert!(!name.is_empty() && !value.contains(['\r', '\n', '\0']), "{name}: {value}");
    }
    let is_text = reply.headers.iter().any(|(name, value)| name == "Content-Type" && value.starts_with("text/plain"));
    if reply.status >= 400 && is_text {
        let text = str::from_utf8(body).expect("an error is text");
        assert!(text.len() > 1 && text.find('\n') == Some(text.len() - 1), "one line: {text:?}");
    }
}
