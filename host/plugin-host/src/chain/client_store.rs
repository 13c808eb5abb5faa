//! The store as the client of a route may use it: with the client's permissions, and below the client's key prefix.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use vkog_plugin_api::abi::Verb;

use super::Refusal;
use super::call::EntryView;
use super::store_access::{CallScope, KeyRange, PluginRequest, PluginResponse, StoreAccess};

/// The client of a route. The store calls of the `serve` hook have its permissions.
pub trait RouteClient: Send + Sync {
    /// Checks whether the client may run this operation on a key, as it is stored.
    ///
    /// # Errors
    ///
    /// It may not.
    fn may(&self, verb: Verb, key: &str) -> Result<(), Refusal>;

    /// Whether the client may read a key. Unlike [`may`](Self::may), this logs nothing: a scan leaves out what it may not.
    fn may_read(&self, key: &str) -> bool;

    /// Returns the prefix of all keys of the client, which neither the client nor the route sees.
    fn key_prefix(&self) -> &str {
        ""
    }
}

thread_local! {
    /// The client of the `serve` hook that this thread runs.
    static CLIENT: RefCell<Option<Arc<dyn RouteClient>>> = const { RefCell::new(None) };
}

/// Restores the previous client when it is dropped.
pub(super) struct ClientGuard(Option<Arc<dyn RouteClient>>);

/// Sets the client of the `serve` hook that this thread is about to run.
pub(super) fn enter(client: Arc<dyn RouteClient>) -> ClientGuard {
    ClientGuard(CLIENT.replace(Some(client)))
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        CLIENT.replace(self.0.take());
    }
}

/// Returns the store as the client of this thread's `serve` hook may use it.
pub(super) fn restricted(store: Arc<dyn StoreAccess>) -> Arc<dyn StoreAccess> {
    match CLIENT.with_borrow(Clone::clone) {
        Some(client) => Arc::new(ClientStore { store, client }),
        None => store,
    }
}

/// A store that checks the permissions of a client.
struct ClientStore {
    store: Arc<dyn StoreAccess>,
    client: Arc<dyn RouteClient>,
}

impl ClientStore {
    /// Returns a key as it is stored.
    fn whole<'a>(&self, key: &'a str) -> Cow<'a, str> {
        match self.client.key_prefix() {
            "" => Cow::Borrowed(key),
            prefix => Cow::Owned(format!("{prefix}{key}")),
        }
    }
}

impl StoreAccess for ClientStore {
    fn request(self: Arc<Self>, request: &PluginRequest<'_>, answer: &mut dyn FnMut(PluginResponse<'_>)) {
        let key = self.whole(request.key);
        match self.client.may(request.verb, &key) {
            Ok(()) => Arc::clone(&self.store).request(&PluginRequest { key: &key, ..request.clone() }, answer),
            Err(refusal) => answer(PluginResponse::Refused(Cow::Owned(refusal))),
        }
    }

    fn request_each(self: Arc<Self>, requests: &[PluginRequest<'_>], answer: &mut dyn FnMut(PluginResponse<'_>)) {
        let keys: Vec<_> = requests.iter().map(|request| self.whole(request.key)).collect();
        let allowed: Vec<_> =
            requests.iter().zip(&keys).map(|(request, key)| self.client.may(request.verb, key)).collect();
        if allowed.iter().all(Result::is_ok) {
            let whole = requests.iter().zip(&keys);
            let requests: Vec<_> = whole.map(|(request, key)| PluginRequest { key, ..request.clone() }).collect();
            return Arc::clone(&self.store).request_each(&requests, answer);
        }
        // One after the other: a refused request is rare.
        requests.iter().for_each(|request| Arc::clone(&self).request(request, answer));
    }

    fn batch(
        self: Arc<Self>,
        requests: &[PluginRequest<'_>],
        answer: &mut dyn FnMut(PluginResponse<'_>),
    ) -> Option<usize> {
        let keys: Vec<_> = requests.iter().map(|request| self.whole(request.key)).collect();
        let whole = || requests.iter().zip(&keys);
        for (index, (request, key)) in whole().enumerate() {
            if let Err(refusal) = self.client.may(request.verb, key) {
                answer(PluginResponse::Refused(Cow::Owned(refusal)));
                return Some(index);
            }
        }
        let requests: Vec<_> = whole().map(|(request, key)| PluginRequest { key, ..request.clone() }).collect();
        Arc::clone(&self.store).batch(&requests, answer)
    }

    fn update(
        self: Arc<Self>,
        request: &PluginRequest<'_>,
        value_of: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
        answer: &mut dyn FnMut(PluginResponse<'_>),
    ) {
        let key = self.whole(request.key);
        // The function gets the value.
        match self.client.may(Verb::Get, &key).and_then(|()| self.client.may(Verb::Put, &key)) {
            Ok(()) => Arc::clone(&self.store).update(&PluginRequest { key: &key, ..request.clone() }, value_of, answer),
            Err(refusal) => answer(PluginResponse::Refused(Cow::Owned(refusal))),
        }
    }

    fn for_each(
        self: Arc<Self>,
        prefix: &str,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, EntryView<'_>) -> bool,
    ) -> Result<(), Refusal> {
        let own = self.client.key_prefix();
        let client = Arc::clone(&self.client);
        Arc::clone(&self.store).for_each(&self.whole(prefix), scope, &mut |key, entry| {
            !client.may_read(key) || each(key.strip_prefix(own).unwrap_or(key), entry)
        })
    }

    fn for_each_from(
        self: Arc<Self>,
        range: KeyRange<'_>,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, Result<EntryView<'_>, Refusal>) -> bool,
    ) -> Result<(), Refusal> {
        let KeyRange { prefix, from, limit: mut left } = range;
        if left == 0 {
            return Ok(());
        }
        let own = self.client.key_prefix();
        // The limit counts what the client may read.
        let range = KeyRange { prefix: &self.whole(prefix), from: &self.whole(from), limit: u64::MAX };
        let client = Arc::clone(&self.client);
        Arc::clone(&self.store).for_each_from(range, scope, &mut |key, entry| {
            if !client.may_read(key) {
                return true;
            }
            left -= u64::from(entry.is_ok());
            each(key.strip_prefix(own).unwrap_or(key), entry) && left > 0
        })
    }

    fn sample(self: Arc<Self>, count: usize, scope: &CallScope, each: &mut dyn FnMut(&str, EntryView<'_>) -> bool) {
        let own = self.client.key_prefix();
        let client = Arc::clone(&self.client);
        Arc::clone(&self.store).sample(count, scope, &mut |key, entry| match key.strip_prefix(own) {
            Some(seen) if client.may_read(key) => each(seen, entry),
            _ => true,
        });
    }

    fn on_quarantine(&self) {
        self.store.on_quarantine();
    }

    fn leads(&self) -> bool {
        self.store.leads()
    }
}
