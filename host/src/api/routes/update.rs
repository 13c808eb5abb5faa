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
use crate::api::{entry, etag};
use crate::config::Permission;
use crate::http::{Budget, Response};
use vkog_engine::{Conditions, Outcome, host_refusal};
use vkog_plugin_host::{Chain, EntryView, Member, NewValue, Refusal, RouteExchange, RouteHead};

impl Call {
    /// Calls a route that updates an entry. Does not block.
    pub(in crate::api) fn update(self, budget: &'static Budget, respond: impl FnOnce(Response) + Send + 'static) {
        let engine = Arc::clone(&self.engine);
        engine.plugins().when_available(move |chain| {
            let chain = Guard::into_inner(chain);
            match self.prepared(&chain) {
                Ok(Prepared { member, key, arguments, conditions }) => {
                    let (engine, head) = (Arc::clone(&self.engine), Arc::clone(&self.head));
                    let own = Arc::clone(&member);
                    let value_of = move |chain: &Arc<Chain>, entry: Option<EntryView<'_>>| {
                        let (value, response) = self.new_value(chain, &own, &arguments, entry, budget)?;
                        // The write names the revision of this entry, so the conditions hold for the entry that it replaces.
                        let failed = conditions.check(entry.map(|entry| entry.revision)).err();
                        match failed.and_then(|failed| Outcome::PreconditionFailed(failed).failure()) {
                            Some((status, text)) => Err(host_refusal(status, text)),
                            None => Ok((value, response)),
                        }
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

    /// Checks the request, and that the client may read and write the entry.
    fn prepared(&self, chain: &Chain) -> Result<Prepared, Response> {
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
        let conditions = etag::conditions(&self.head).map_err(|problem| problem.reply(format()))?;
        Ok(Prepared { member: Arc::clone(found.member), key, arguments, conditions })
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

/// A request that can be run.
struct Prepared {
    member: Arc<Member>,
    /// The key of the entry.
    key: String,
    /// The arguments of the hook.
    arguments: Arguments,
    conditions: Conditions,
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
