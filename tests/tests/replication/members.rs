//! Members of etcd that hosts must not use, and those that end at their start.

use std::panic::catch_unwind;

use vkog_tests::{Etcd, Setup, etcd_plugin};

#[test]
fn a_host_does_not_use_a_member_of_another_cluster() {
    let (Some(mut own), Some(other)) = (Etcd::start(1), Etcd::start(1)) else { return };
    let members = [own.addresses(), other.addresses()].concat();
    let setup = Setup::new().load(etcd_plugin()).shared_store(format!("etcd://{}/vkog", members.join(",")));
    let server = setup.start();
    server.wait_until_ready();
    server.put("a", "1").expect(200);
    own.kill(0);
    server.logs(&["is a member of cluster", "name members of one cluster"]);
    assert_eq!(server.put("a", "2").status, 503);
    assert_eq!(other.etcdctl(&["get", "vkog/", "--prefix", "--keys-only"]).trim(), "");
    own.run(0);
    server.wait_until_ready();
    assert_eq!(server.get("a").expect(200).text(), "1");
}

#[test]
fn a_member_that_ends_at_its_start_fails_the_test_with_its_log() {
    match catch_unwind(|| Etcd::start_with(1, &["--unknown"])) {
        Ok(etcd) => assert!(etcd.is_none(), "etcd does not know the argument"),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().expect("it is formatted");
            assert!(message.starts_with("member-0 has ended:") && message.contains("-unknown"), "{message}");
        }
    }
}
