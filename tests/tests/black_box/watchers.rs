//! Many watchers receive each change once and in order, with the values that each requested, and a PUT gets its
//! response meanwhile.
//!
//! Provoked with hundreds of watchers on hyper whose changes come faster than they are delivered, with different
//! permissions and parameters, and with a plugin that hides keys from some.

use vkog_tests::{Setup, Watching, exclusive, raise_descriptors};

/// Returns the received revisions and values.
#[track_caller]
fn seen(watching: &mut Watching, count: usize) -> Vec<(u64, String)> {
    let events = watching.events(count);
    let told = |event: &vkog_tests::Event| event.data["value"].as_str().unwrap_or("none").to_owned();
    events.iter().map(|event| (event.id.expect("every event has one"), told(event))).collect()
}

#[test]
fn hundreds_of_watchers_each_receive_their_changes_once_and_in_order() {
    const CHANGES: usize = 200;
    let _alone = exclusive();
    raise_descriptors();
    let server = Setup::new().args(["--http", "hyper", "--fsync", "never"]).start();
    let before = server.revision();
    let mut plain: Vec<_> = (0..150).map(|_| server.watch("", "")).collect();
    let mut valued: Vec<_> = (0..150).map(|_| server.watch("values", "")).collect();
    let mut others: Vec<_> = (0..50).map(|_| server.watch("prefix=b/&values", "")).collect();
    let mut wire = server.wire();
    let mut put = |change| {
        let key = if change % 10 == 0 { "/k/b/k" } else { "/k/a/k" };
        let value = format!("v{change}");
        (wire.request("PUT", key, value.as_bytes()).expect(200).revision(), value)
    };
    let all: Vec<_> = (0..CHANGES).map(&mut put).collect();
    let bare: Vec<_> = all.iter().map(|(revision, _)| (*revision, "none".to_owned())).collect();
    let some: Vec<_> = all.iter().step_by(10).cloned().collect();
    plain.iter_mut().for_each(|watching| assert_eq!(seen(watching, CHANGES), bare));
    valued.iter_mut().for_each(|watching| assert_eq!(seen(watching, CHANGES), all));
    others.iter_mut().for_each(|watching| assert_eq!(seen(watching, CHANGES / 10), some));
    // They wait again, and receive a removal as any other change.
    server.delete("b/k").expect(200);
    // The only revision in this range, unless the store is shared: other changes take revisions there.
    let possible = all[CHANGES - 1].0 + 1..=server.revision();
    let removed = plain[0].event().and_then(|event| event.id).expect("there is one more");
    assert!(possible.contains(&removed), "{removed} is not in {possible:?}");
    for watching in plain[1..].iter_mut().chain(&mut valued).chain(&mut others) {
        let event = watching.event().expect("there is one more");
        assert_eq!((event.id, event.name.as_str(), event.key()), (Some(removed), "delete", "b/k"));
    }
    // The end reaches waiting watchers and those that have just received an event.
    let mut late = server.watch(&format!("since={before}"), "");
    assert_eq!(seen(&mut late, CHANGES).len(), CHANGES);
    server.stop().expect(0);
    for watching in plain.iter_mut().chain(&mut valued).chain(&mut others) {
        assert_eq!(watching.event(), None);
    }
}

#[test]
fn a_watcher_receives_a_long_history_while_others_are_served() {
    const CHANGES: usize = 1500;
    let server = Setup::new().args(["--http", "hyper", "--fsync", "never"]).start();
    let before = server.revision();
    let mut idle: Vec<_> = (0..20).map(|_| server.watch("prefix=z", "")).collect();
    let mut wire = server.wire();
    let mut put = |change| {
        let value = format!("{change:0>500}");
        (wire.request("PUT", "/k/k", value.as_bytes()).expect(200).revision(), value)
    };
    let expected: Vec<_> = (0..CHANGES).map(&mut put).collect();
    let mut late: Vec<_> = (0..5).map(|_| server.watch(&format!("since={before}&values"), "")).collect();
    late.iter_mut().for_each(|watching| assert_eq!(seen(watching, CHANGES), expected));
    server.put("z", "v").expect(200);
    idle.iter_mut().for_each(|watching| assert_eq!(watching.event().expect("there is one").key(), "z"));
}
