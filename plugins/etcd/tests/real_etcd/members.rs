//! Members, the leader, and the connection to a cluster that cannot be reached.

use vkog_etcd::Settings;
use vkog_tests::{Etcd, free_port, wait_until};

use crate::proxy::{Mode, Proxy};
use crate::recorder::Host;

#[test]
fn hosts_know_each_other_and_one_of_them_leads() {
    let Some(etcd) = Etcd::start(1) else { return };
    let mut hosts: Vec<Host> = (0..3).map(|_| Host::open(&etcd.store("vkog"), &Settings::default())).collect();
    let leaders = |hosts: &[Host]| hosts.iter().filter(|host| host.store.status().leads).count();
    hosts[1].store.announce(r#"{"name":"second"}"#);
    while !hosts.is_empty() {
        let count = hosts.len();
        wait_until("each host knows all others", || {
            hosts.iter().all(|host| host.store.status().members.len() == count)
        });
        wait_until("one host leads", || leaders(&hosts) == 1);
        let mut ids: Vec<String> = hosts.iter().map(|host| host.store.status().id).collect();
        ids.sort();
        let members = hosts[0].store.status().members;
        assert_eq!(members.iter().map(|member| member.id.clone()).collect::<Vec<_>>(), ids);
        if count == 3 {
            let second = hosts[1].store.status().id;
            wait_until("the announcement arrives", || {
                let members = hosts[2].store.status().members;
                members.iter().any(|member| member.id == second && member.about == r#"{"name":"second"}"#)
            });
        }
        // The close ends the leadership at once.
        let leader = hosts.iter().position(|host| host.store.status().leads).expect("one leads");
        hosts.remove(leader);
    }
    assert_eq!(etcd.etcdctl(&["get", "--prefix", "vkog/", "--keys-only"]).trim(), "");
}

#[test]
fn a_command_writes_but_is_no_member_and_never_leads() {
    let Some(etcd) = Etcd::start(1) else { return };
    let command = Host::command(&etcd.store("vkog"));
    command.wait_for_connection();
    command.put("a", 0, b"x");
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    wait_until("the host leads", || host.store.status().leads);
    wait_until("the command knows the host", || command.store.status().members.len() == 1);
    assert_eq!(host.store.status().members.len(), 1);
    drop(host);
    command.put("b", 0, b"x");
    command.store.close();
    assert_eq!(etcd.etcdctl(&["get", "--prefix", "vkog/", "--keys-only"]).split_whitespace().count(), 3);
}

#[test]
fn values_of_somebody_else_are_neither_members_nor_the_leader() {
    let Some(etcd) = Etcd::start(1) else { return };
    etcd.etcdctl(&["put", "vkog/leader", "somebody"]);
    etcd.etcdctl(&["put", "vkog/hosts/somebody", "{}"]);
    let host = Host::open(&etcd.store("vkog"), &Settings::default());
    let leads = || host.store.status().leads;
    wait_until("the host leads", leads);
    etcd.etcdctl(&["put", "vkog/hosts/another", "{}"]);
    etcd.etcdctl(&["put", "vkog/leader", "another"]);
    let id = host.store.status().id;
    etcd.etcdctl(&["del", &format!("vkog/hosts/{id}")]);
    wait_until("the host leads again", || etcd.etcdctl(&["get", "--print-value-only", "vkog/leader"]).trim() == id);
    wait_until("the host knows that", leads);
    wait_until("the host is the only member", || {
        let members = host.store.status().members;
        members.len() == 1 && members[0].id == id
    });
}

#[test]
fn a_busy_host_stays_a_member() {
    let Some(etcd) = Etcd::start(1) else { return };
    let settings = Settings { lease_ttl: 3, ..Settings::default() };
    let host = Host::open(&etcd.store("vkog"), &settings);
    let other = Host::open(&etcd.store("vkog"), &settings);
    host.put("first", 0, b"x");
    host.recorder.lock().is_busy = true;
    // Each outcome is reported by another thread, and each of them waits.
    let ids: Vec<u64> = (0..4)
        .map(|index| {
            let id = host.send(&[(&format!("k{index}"), 0, Some(b"x"))]);
            host.outcome(id);
            id
        })
        .collect();
    let lease = etcd.lease(&[&format!("vkog/hosts/{}", host.store.status().id)]);
    let granted = "granted with TTL(3s), remaining(";
    // The lease is renewed twice meanwhile: what remains of it grows.
    for _ in 0..2 {
        let remaining = || {
            let text = etcd.etcdctl(&["lease", "timetolive", &lease]);
            text.split(granted).nth(1).and_then(|rest| rest.split('s').next()?.parse::<i64>().ok())
        };
        let mut last = remaining().expect("the lease is alive");
        wait_until("the lease is renewed", || {
            let now = remaining().expect("the lease is alive");
            now > std::mem::replace(&mut last, now)
        });
    }
    assert_eq!(other.store.status().members.len(), 2);
    host.recorder.report(|reported| reported.is_busy = false);
    ids.into_iter().for_each(|id| assert!(host.committed(id) > 0));
}

#[test]
fn another_host_leads_when_the_leader_is_cut_off() {
    let Some(etcd) = Etcd::start(1) else { return };
    let settings = Settings { lease_ttl: 3, ..Settings::default() };
    let proxy = Proxy::start(&etcd);
    let first = Host::open(&proxy.url(), &settings);
    wait_until("the first leads", || first.store.status().leads);
    let second = Host::open(&etcd.store("vkog"), &settings);
    assert!(!second.store.status().leads);
    proxy.set(Mode::LoseAll);
    wait_until("the second leads", || {
        let leads = second.store.status().leads;
        // At no time both lead.
        assert!(!(leads && first.store.status().leads));
        leads
    });
    assert_eq!(second.store.status().members.len(), 1);
    proxy.set(Mode::Pass);
    first.wait_for_connection();
    wait_until("the first is a member again", || second.store.status().members.len() == 2);
    assert!(!first.store.status().leads);
    first.put("a", 0, b"x");
}

#[test]
fn a_store_opens_before_etcd_is_there() {
    let Some(mut etcd) = Etcd::start(1) else { return };
    etcd.kill(0);
    let host = Host::begin(&etcd.store("vkog"), &Settings::default());
    let reason = host.wait_for_disconnection();
    assert!(
        reason == format!("no connection to http://{}: Connection refused (os error 111)", etcd.addresses()[0]),
        "{reason}"
    );
    assert!(!host.store.status().connected);
    etcd.run(0);
    host.wait_for_connection();
    host.put("a", 0, b"x");
    let status = host.store.status();
    assert!(status.connected && status.engine == "etcd" && !status.engine_version.is_empty() && status.size > 0);
}

#[test]
fn an_endpoint_that_is_not_there_is_skipped() {
    let Some(etcd) = Etcd::start(1) else { return };
    let url = format!("etcd://127.0.0.1:{},{}/vkog", free_port(), etcd.addresses()[0]);
    let host = Host::open(&url, &Settings::default());
    host.put("a", 0, b"x");
}

#[test]
fn stores_with_different_prefixes_share_nothing() {
    let Some(etcd) = Etcd::start(1) else { return };
    // A prefix may be below another one, also if it is between the names of that one's keys.
    let prefixes = ["vkog", "vkog/test", "vkog/i", "vkog2", "k"];
    let hosts = prefixes.map(|prefix| Host::open(&etcd.store(prefix), &Settings::default()));
    for (host, prefix) in hosts.iter().zip(prefixes) {
        host.put(prefix, 0, b"x");
    }
    // Those that load the entries, and not only follow the changes.
    let later = prefixes.map(|prefix| Host::open(&etcd.store(prefix), &Settings::default()));
    for (host, prefix) in hosts.iter().chain(&later).zip(prefixes.iter().cycle()) {
        let entries = host.entries();
        assert_eq!(entries.keys().collect::<Vec<_>>(), [prefix]);
        wait_until("it has the two members of its store", || host.store.status().members.len() == 2);
    }
}
