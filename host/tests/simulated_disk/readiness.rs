//! A server whose store cannot be written is alive and not ready. Provoked with a failing sync of the log.

use std::io::ErrorKind;
use std::sync::Arc;

use vkog::any_store::Engine;
use vkog::api::{Api, Authorizer};
use vkog::http::{Headers, Method, RequestHead, Service};
use vkog_plugin_host::{HostContext, Registry, system_clock};

use crate::client::{ALWAYS, open, refused};
use crate::disk::{Call, Fault, SimulatedDisk};

#[test]
fn a_server_that_cannot_write_its_store_is_not_ready() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    let plugins = Registry::new(Vec::new(), Vec::new(), Arc::new(HostContext::new(1000, system_clock)));
    let engine = Engine::new(store.into(), plugins).expect("no plugin to fail");
    let access = Arc::new(Authorizer::new(vkog::config::Auth { open: true, ..Default::default() }));
    let api = Api::new(Arc::clone(&engine), 1000, access, Arc::new(|| Ok(Vec::new())));
    let ask = |path: &str| {
        let head = Arc::new(RequestHead::new(Method::Get, path.to_owned(), Headers::default(), None));
        let reply = api.admit(head).err().expect("the reply needs no body");
        (reply.status, String::from_utf8_lossy(reply.body.as_ref()).into_owned())
    };
    assert_eq!(ask("/readyz"), (200, "Ok".to_owned()));
    disk.fault(Call::Sync, ".log", Fault::Fails(ErrorKind::Other), 1);
    refused(engine.store().local().expect("it is in files"), "key", "refused");
    let (status, text) = ask("/readyz");
    assert!(status == 503 && text.contains("is read-only"), "{status} {text}");
    assert_eq!(ask("/livez").0, 200);
}
