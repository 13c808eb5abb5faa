//! The server, its clients and the expected content. Runs rounds of operations, disturbs the server, and compares.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::channel;
use std::thread;

use serde_json::{Value, json};
use vkog_tests::{Client, Event, Server, Setup, TOKEN, Watching};

use super::account::numbers;
use super::batch::value_of;
use super::config::{Round, stored_len};
use super::files::{self, Image, contains_no_plain_text};
use super::list::listed;
use super::random::Random;
use super::session::{Lost, Session, parsed};
use super::tenant::{Effect, Rounds, Tenant, state};

/// A disturbance of the server while its clients are busy.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// A reload with a new key, another level and order, and perhaps another limit.
    Rotation,
    Snapshot,
    Image,
    Kill,
}

/// A change as a watcher sees it: the name of the event, the key, and the size of the value.
type Seen = (String, String, Option<u64>);

pub(super) struct World {
    setup: Setup,
    /// None while the server is down.
    server: Option<Server>,
    pub(super) round: Round,
    tenants: Vec<Tenant>,
    /// The watch of each client, then one of the operator for all keys.
    watches: Vec<Watching>,
    random: Random,
    images: usize,
    /// The number of log lines that report a complete index.
    builds: usize,
    starts: usize,
    pub(super) done: Done,
}

/// The number of operations, disturbances and comparisons.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) operations: usize,
    pub(super) rotations: usize,
    pub(super) kills: usize,
    pub(super) lost: usize,
    pub(super) applied: usize,
    pub(super) images: usize,
    pub(super) torn: usize,
    pub(super) opened: usize,
    pub(super) backups: usize,
    pub(super) events: usize,
    pub(super) rebuilds: usize,
}

impl World {
    pub(super) fn new(setup: Setup, seed: u64) -> Self {
        let tenants = vec![
            Tenant::new("ann-secret", "ann/", ""),
            Tenant::new("bob-secret", "bob/", ""),
            Tenant::new(TOKEN, "", "own/"),
        ];
        let mut world = Self {
            setup,
            server: None,
            round: Round { number: 0, fields: 0 },
            tenants,
            watches: Vec::new(),
            random: Random::new(seed),
            images: 0,
            builds: 0,
            starts: 0,
            done: Done::default(),
        };
        world.start();
        world
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("the server runs")
    }

    fn start(&mut self) {
        self.starts += 1;
        let setup = self.setup.clone().config(self.round.write(&self.setup));
        let setup = setup.env("VKOG_HTTP", ["hyper", "tiny"][self.starts % 2]);
        let server = setup.env("VKOG_FSYNC", if self.syncs() { "always" } else { "never" }).start();
        self.server = Some(server);
        self.builds = 0;
        self.wait_for_index();
        let watch =
            |token: &str, query: &str| self.server().watch(query, &format!("Authorization: Bearer {token}\r\n"));
        let own = self.tenants.iter().map(|tenant| watch(tenant.token, &format!("values&prefix={}", tenant.folder)));
        self.watches = own.chain([watch(TOKEN, "")]).collect();
    }

    /// Whether the server syncs each write, so that a kill finds some that have no reply yet.
    fn syncs(&self) -> bool {
        self.starts.is_multiple_of(3)
    }

    /// Waits until the plugin has built its index once more.
    fn wait_for_index(&mut self) {
        self.builds += 1;
        let is_complete = |log: &str| log.matches("the index is complete").count() >= self.builds;
        assert!(self.server().logged(is_complete), "no index:\n{}", self.server().log());
    }

    /// Loads the configuration of the next round.
    fn rotate(&mut self, fields: usize) {
        self.round = Round { number: self.round.number + 1, fields };
        self.round.write(&self.setup);
        self.server().reload().expect(200);
        self.done.rotations += 1;
    }

    /// One client after the other runs operations, so that the refusals of `bytes` can be foretold.
    pub(super) fn alone(&mut self, steps: usize) {
        let client = self.server().client();
        for _ in 0..steps {
            let at = self.random.below(self.tenants.len());
            let held: Vec<u64> = self.tenants.iter().map(Tenant::held).collect();
            let others = held.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, held)| held).sum();
            let mut session = Session {
                client: &client,
                tenant: &mut self.tenants[at],
                random: &mut self.random,
                rounds: [self.round.number; 2],
                round: self.round,
                others: Some(others),
            };
            session.operation().unwrap_or_else(|lost| panic!("{}", lost.error));
        }
        self.done.operations += steps;
        if self.random.percent(50) {
            self.rotate(self.round.fields);
        }
    }

    /// All clients run operations at the same time, while the server is disturbed.
    pub(super) fn together(&mut self, steps: usize, disturbances: &[Disturbance]) {
        let rotations = disturbances.iter().filter(|kind| **kind == Disturbance::Rotation).count() as u64;
        let rounds = [self.round.number, self.round.number + rotations];
        let (round, mut tenants) = (self.round, std::mem::take(&mut self.tenants));
        tenants.iter_mut().for_each(Tenant::begin_round);
        let acknowledged: Vec<_> = tenants.iter().map(|tenant| tenant.acknowledged.clone()).collect();
        let count = || acknowledged.iter().map(|count| count.load(SeqCst)).collect::<Vec<_>>();
        let mut images = Vec::new();
        let ends: Vec<Option<Lost>> = thread::scope(|scope| {
            let (send, progress) = channel();
            let threads = tenants.iter_mut().map(|tenant| {
                let (client, send) = (self.server().client(), send.clone());
                let mut random = Random::new(self.random.below(1 << 30) as u64);
                scope.spawn(move || {
                    (0..steps).find_map(|_| {
                        let (client, tenant, random) = (&client, &mut *tenant, &mut random);
                        let lost = Session { client, tenant, random, rounds, round, others: None }.operation().err();
                        let _ = send.send(());
                        lost
                    })
                })
            });
            let threads: Vec<_> = threads.collect();
            drop(send);
            for disturbance in disturbances {
                let until = self.random.below(3 * steps / disturbances.len());
                self.done.operations += progress.iter().take(until).count();
                match disturbance {
                    Disturbance::Rotation => self.rotate(round.fields),
                    Disturbance::Snapshot => self.snapshot(),
                    Disturbance::Image => images.extend(self.image(&count)),
                    Disturbance::Kill => self.server = None,
                }
            }
            self.done.operations += progress.iter().count();
            threads.into_iter().map(|thread| thread.join().expect("no client fails")).collect()
        });
        self.tenants = tenants;
        if self.server.is_none() {
            images.push(self.recover(ends, rounds));
        } else if let Some(lost) = ends.iter().flatten().next() {
            panic!("{}", lost.error);
        }
        for image in &mut images {
            self.check_image(image);
        }
    }

    fn snapshot(&self) {
        if cfg!(unix) {
            self.server().signal("USR1");
        }
    }

    /// Copies the files while the server is stopped for a moment.
    #[cfg(target_os = "linux")]
    fn image(&mut self, count: &dyn Fn() -> Vec<usize>) -> Option<Image> {
        self.images += 1;
        let before = count();
        let is_synced = self.syncs();
        let paused = self.server().pause();
        let store = files::copy(&self.setup.store_file(), self.images);
        drop(paused);
        // A reply may be on its way, and the next request may have been executed.
        Some(Image { store, is_synced, before, after: count().into_iter().map(|count| count + 2).collect() })
    }

    #[cfg(not(target_os = "linux"))]
    fn image(&mut self, _: &dyn Fn() -> Vec<usize>) -> Option<Image> {
        None
    }

    /// Starts the server again after a kill, and finds out whether the operations without a reply are in the store.
    fn recover(&mut self, ends: Vec<Option<Lost>>, rounds: Rounds) -> Image {
        self.done.kills += 1;
        self.images += 1;
        let store = files::copy(&self.setup.store_file(), self.images);
        let before: Vec<usize> = self.tenants.iter().map(|tenant| tenant.journal.len()).collect();
        let mut watches = std::mem::take(&mut self.watches);
        let is_synced = self.syncs();
        self.start();
        let client = self.server().client();
        for (tenant, lost) in self.tenants.iter_mut().zip(ends) {
            let Some(Lost { effects, .. }) = lost else { continue };
            let found = tenant.listing(&client);
            self.done.lost += usize::from(!effects.is_empty());
            if let Some(effects) = applied(tenant, effects, &found) {
                self.done.applied += 1;
                tenant.apply(effects, rounds, self.round.fields());
            }
        }
        // The streams broke off somewhere.
        let seen: Vec<Vec<Event>> = watches.iter_mut().map(Watching::remaining).collect();
        self.check_events(&seen, false);
        let after = self.tenants.iter().map(|tenant| tenant.journal.len()).collect();
        Image { store, is_synced, before, after }
    }

    fn check_image(&mut self, image: &mut Image) {
        let mut moments = image.check(&self.setup, &self.tenants, self.round.fields());
        self.done.images += 1;
        if image.tear(1 + self.random.below(500)) {
            moments = image.check(&self.setup, &self.tenants, self.round.fields());
            self.done.torn += 1;
        }
        if self.random.percent(20) {
            self.done.opened += 1;
            let setup = self.setup.clone().config(self.round.write(&self.setup)).store(&image.store);
            let server = setup.start();
            assert!(server.logged(|log| log.contains("the index is complete")), "no index:\n{}", server.log());
            for (tenant, moment) in self.tenants.iter().zip(moments) {
                let mut then = Tenant::new(tenant.token, tenant.prefix, tenant.folder);
                then.entries = tenant.entries_after(moment);
                then.verify(&server, self.round.fields());
            }
            server.stop().expect(0);
        }
        std::fs::remove_dir_all(image.store.parent().expect("a file is in a folder")).expect("it is ours");
    }

    /// Compares the store, its files, the account of `bytes`, the index and the watches with the model.
    pub(super) fn settle(&mut self) {
        let stored = files::export_of(self.server());
        files::compare(&mut self.tenants, &stored);
        let server = self.server();
        self.check_account(server);
        for tenant in &self.tenants {
            tenant.verify(server, self.round.fields());
        }
        let all = self
            .tenants
            .iter()
            .flat_map(|tenant| tenant.entries.iter().map(|(key, entry)| (format!("{}{key}", tenant.prefix), entry)));
        let all: BTreeMap<String, _> = all.collect();
        let reply = self.tenants[2].request(server, "GET", "/keys").send().expect(200);
        let expected: Vec<Value> = all.iter().map(|(key, entry)| listed(key, entry)).collect();
        assert_eq!(parsed(&reply)["keys"], json!(expected), "{reply}");
        let counts: Vec<usize> = self.tenants.iter().map(|tenant| tenant.changes.len()).collect();
        let counts = counts.iter().copied().chain([counts.iter().sum()]);
        let seen: Vec<Vec<Event>> =
            self.watches.iter_mut().zip(counts).map(|(watch, count)| watch.events(count)).collect();
        self.check_events(&seen, true);
        contains_no_plain_text(self.setup.folder());
    }

    /// Compares the number of bytes that `bytes` reports when it refuses a value with the sum of what is stored.
    fn check_account(&self, server: &Server) {
        let noise = Random::new(7).bytes(60_000);
        let reply = self.tenants[2].request(server, "PUT", "/k/own/never").body(&noise).send();
        let reply = reply.refused(413, "Max size exceeded").has("Vkog-Plugin", "bytes");
        let held: u64 = self.tenants.iter().map(Tenant::held).sum();
        let needs = "own/never".len() as u64 + stored_len(&noise, false, self.round.number);
        assert_eq!(numbers(&reply.text()), Some([needs, self.round.limit().saturating_sub(held)]), "{held}: {reply}");
    }

    /// Compares the events of all watches with the changes, of which some may be missing at the end.
    fn check_events(&mut self, seen: &[Vec<Event>], is_whole: bool) {
        let (of_all, own) = seen.split_last().expect("there is a watch for all keys");
        for (tenant, events) in self.tenants.iter().zip(own) {
            assert!(events.len() <= tenant.changes.len(), "{}: {events:?}", tenant.token);
            let received: Vec<_> = events.iter().map(|event| (event.id, event.key())).collect();
            let expected: Vec<_> = tenant.changes.iter().map(|effect| (effect.revision(), &effect.key)).collect();
            let context = || format!("{}: {received:?}\ninstead of {expected:?}", tenant.token);
            events.iter().zip(&tenant.changes).for_each(|(event, effect)| check_event(event, effect, &context));
            self.done.events += events.len();
            let of_tenant = of_all.iter().filter_map(|event| {
                let key = event.key().strip_prefix(tenant.prefix).filter(|key| key.starts_with(tenant.folder))?;
                Some((event.name.clone(), key.to_owned(), event.data["size"].as_u64()))
            });
            let of_tenant: Vec<Seen> = of_tenant.collect();
            let changes = tenant.changes.iter().take(of_tenant.len());
            let changes: Vec<Seen> = changes.map(Effect::seen).collect();
            assert_eq!(of_tenant, changes, "what the operator sees of {}", tenant.token);
        }
        assert!(of_all.is_sorted_by(|one, next| one.id < next.id), "not in order: {of_all:?}");
        if is_whole {
            let mut ids: Vec<_> = own.iter().flatten().map(|event| event.id).collect();
            ids.sort_unstable();
            assert_eq!(of_all.iter().map(|event| event.id).collect::<Vec<_>>(), ids);
        }
        self.tenants.iter_mut().for_each(|tenant| tenant.changes.clear());
    }

    /// Loads another list of fields, for which the plugin `index` writes entries again, if there is room for that. The server may be
    /// killed in the middle.
    pub(super) fn change_fields(&mut self) {
        let (from, is_killed) = (self.round, self.random.percent(30));
        let to = Round { number: from.number + 1, fields: (from.fields + 1) % super::config::FIELDS.len() };
        let (held, needs) = self
            .tenants
            .iter()
            .fold((0, 0), |(held, needs), tenant| (held + tenant.held(), needs + tenant.rebuild_cost(from, to)));
        if held + needs > to.limit() {
            return;
        }
        self.done.rebuilds += 1;
        self.rotate(to.fields);
        if is_killed {
            self.server = None;
            self.done.kills += 1;
            self.start();
        } else {
            self.wait_for_index();
        }
        let client = self.server().client();
        for tenant in &mut self.tenants {
            let mut written = tenant.fields_changed(from, to);
            let found = tenant.listing(&client);
            written.sort_by_key(|key| found[key].0);
            for key in written {
                let entry = tenant.entries.get_mut(&key).expect("it was written");
                assert!(found[&key].0 > entry.revision, "{key} was not written again");
                entry.revision = found[&key].0;
                if !is_killed {
                    tenant.changes.push(Effect { after: Some(entry.clone()), key });
                }
            }
        }
    }

    /// Makes a backup, restores it, and compares the restored store.
    pub(super) fn back_up(&mut self) {
        self.images += 1;
        self.done.backups += 1;
        self.tenants.iter_mut().for_each(Tenant::begin_round);
        let folder = self.setup.folder().join(format!("image-{}", self.images));
        std::fs::create_dir(&folder).expect("a folder can be made");
        vkog_tests::only_ours(&folder);
        let backup = folder.join("full.backup").display().to_string();
        let store = folder.join("store.vkog");
        let url = format!("http://{}", self.server().address());
        self.setup.run(["backup", "--url", &url, "--token", TOKEN, &backup]).expect(0);
        self.setup.run(["restore", &backup, "-f", &store.display().to_string()]).expect(0);
        self.check_image(&mut Image { store, is_synced: true, before: vec![0; 3], after: vec![0; 3] });
    }

    /// Stops the server and starts it again, with the other engine.
    pub(super) fn restart(&mut self) {
        let server = self.server.take().expect("the server runs");
        server.stop().expect(0);
        for watch in &mut self.watches {
            assert_eq!(watch.event(), None, "an event that belongs to no change");
        }
        contains_no_plain_text(self.setup.folder());
        self.start();
    }
}

impl Effect {
    /// The revision of a write, if it is known.
    pub(super) fn revision(&self) -> Option<u64> {
        self.after.as_ref().map(|entry| entry.revision).filter(|revision| *revision > 0)
    }

    fn seen(&self) -> Seen {
        let name = if self.after.is_some() { "put" } else { "delete" };
        (name.to_owned(), self.key.clone(), self.after.as_ref().map(|entry| entry.value.len() as u64))
    }
}

fn check_event(event: &Event, effect: &Effect, context: &dyn Fn() -> String) {
    let seen: Seen = (event.name.clone(), event.key().to_owned(), event.data["size"].as_u64());
    assert_eq!(seen, effect.seen(), "{event:?} of {}", context());
    assert_eq!(event.id, event.data["revision"].as_u64());
    let value = value_of(&event.data, "value_base64");
    let Some(entry) = &effect.after else { return assert_eq!(value, None) };
    assert!(effect.revision().is_none_or(|revision| Some(revision) == event.id), "{event:?}: {:?}", entry.revision);
    assert_eq!(event.data["content_type"], entry.content_type, "{event:?}");
    let expected = Some(&*entry.value).filter(|value| value.len() <= 64 << 10);
    assert_eq!(value.as_deref(), expected, "{event:?}");
}

impl Tenant {
    /// Returns the revision and the size of each key that the server lists.
    fn listing(&self, client: &Client) -> BTreeMap<String, (u64, u64)> {
        let reply = self.request(client, "GET", &format!("/keys?prefix={}", self.folder)).send().expect(200);
        let all = parsed(&reply);
        let number = |entry: &Value, name: &str| entry[name].as_u64().unwrap_or_else(|| panic!("no {name}: {reply}"));
        let entry = |entry: &Value| {
            let key = entry["key"].as_str().expect("an entry has a key").to_owned();
            (key, (number(entry, "revision"), number(entry, "size")))
        };
        all["keys"].as_array().expect("a list").iter().map(entry).collect()
    }
}

/// Returns the effects of an operation without a reply with their revisions, if the store has them: all, or none.
fn applied(tenant: &Tenant, mut effects: Vec<Effect>, found: &BTreeMap<String, (u64, u64)>) -> Option<Vec<Effect>> {
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for (at, effect) in effects.iter().enumerate() {
        last.insert(effect.key.clone(), at);
    }
    let mut decided: Option<bool> = None;
    for (key, at) in last {
        let (before, now) =
            (tenant.entries.get(&key).map(|entry| entry.revision), found.get(&key).map(|(revision, _)| *revision));
        let is_applied = match &mut effects[at].after {
            None if before.is_none() => continue,
            None => now.is_none(),
            Some(after) => {
                after.revision = now.unwrap_or(0);
                now != before
            }
        };
        assert!(
            decided.is_none_or(|decided| decided == is_applied),
            "a part of {effects:?} is stored: {:?}",
            state(&tenant.entries)
        );
        decided = Some(is_applied);
    }
    decided.filter(|is_applied| *is_applied).map(|_| effects)
}
