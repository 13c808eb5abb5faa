//! Routes that update an entry. The response waits until the write is durable, and no thread waits for it: such a request costs
//! about as much as a PUT.

use std::sync::Arc;

use arc_swap::Guard;
use parking_lot::Mutex;

use super::super::auth::Scope;
use super::super::prefix::{seen_outcome, whole_key};
use super::super::problem::{ErrorFormat, Problem};
use super::exchange::whole;
use super::{Arguments, Call};
use crate::api::entry;
use crate::config::Permission;
use crate::http::{Budget, Response};
use vkog_engine::Outcome;
use vkog_plugin_host::{Chain, EntryView, Member, NewValue, Refusal, RouteExchange, RouteHead};

impl Call {
    /// Calls a route that updates an entry. Does not block.
    pub(in crate::api) fn update(self, budget: &'static Budget, respond: impl FnOnce(Response) + Send + 'static) {
        let engine = Arc::clone(&self.engine);
        engine.plugins().when_available(move |chain| {
            let chain = Guard::into_inner(chain);
            match self.prepared(&chain) {
                Ok((member, key, arguments)) => {
                    let (engine, head) = (Arc::clone(&self.engine), Arc::clone(&self.head));
                    let own = Arc::clone(&member);
                    let value_of = move |chain: &Arc<Chain>, entry: Option<EntryView<'_>>| {
                        self.new_value(chain, &own, &arguments, entry, budget)
                    };
                    let on_done = move |done: Result<Response, Outcome>| {
                        let problem = |outcome| entry::problem(seen_outcome(&head, outcome));
                        respond(done.unwrap_or_else(|outcome| problem(outcome).reply(ErrorFormat::of(&head))));
                    };
                    engine.update_entry(chain, &member, key, value_of, on_done);
                }
                Err(response) => respond(response),
            }
        });
    }

    /// Returns the plugin, the key of the entry, which the client may read and write, and the arguments of the hook.
    fn prepared(&self, chain: &Chain) -> Result<(Arc<Member>, String, Arguments), Response> {
        let format = || ErrorFormat::of(&self.head);
        let found = self.found(chain)?;
        let refuse = |refusal| Problem::of(refusal).reply(format());
        let arguments = Arguments::of(self, &found).map_err(refuse)?;
        let key = arguments.parameters.iter().find(|(name, _)| name == "key");
        let key = key.map(|(_, key)| key.clone()).unwrap_or_default();
        let key = whole_key(&self.head, key).map_err(|problem| problem.reply(format()))?;
        let checks = [Permission::Read, Permission::Write].map(|permission| (permission, Scope::Key(&key)));
        let checked = self.auth.rules().check_all(&self.head, checks);
        checked.map_err(|(_, refusal)| refuse(refusal))?;
        Ok((Arc::clone(found.member), key, arguments))
    }

    /// Calls the plugin with the current entry. Returns the new value and the response.
    fn new_value(
        &self,
        chain: &Arc<Chain>,
        member: &Member,
        arguments: &Arguments,
        entry: Option<EntryView<'_>>,
        budget: &'static Budget,
    ) -> Result<(NewValue, Response), Refusal> {
        let held = Held { budget, format: ErrorFormat::of(&self.head), response: Mutex::default() };
        let value = chain.serve_update(member, &self.route_call(arguments, &held), entry)?;
        Ok((value, held.response.into_inner().unwrap_or_else(Response::internal_error)))
    }
}

/// Takes the response of a hook.
struct Held {
    budget: &'static Budget,
    format: ErrorFormat,
    response: Mutex<Option<Response>>,
}

impl RouteExchange for Held {
    fn respond(&self, head: RouteHead, body: &[u8], more: bool) -> bool {
        let mut response = self.response.lock();
        if more || response.is_some() {
            return false;
        }
        *response = Some(whole(head, body, self.budget, self.format));
        true
    }

    fn send(&self, _: &[u8]) -> bool {
        false
    }
}
