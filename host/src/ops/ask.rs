//! What plugins ask of the store: the way of a client's request, in the chain of whoever asks.

use std::borrow::Cow;
use std::sync::Arc;

use arc_swap::Guard;
use crossbeam_channel::bounded;

use super::{Added, Answer, CONTENT_TYPE_MAX, Conditions, KEY_MAX, Ops, Request, Revisions, seen};
use vkog_plugin_host::{Answered, Asked, Asking, Origin, Refusal, Seen, Services, Verb};
use vkog_runtime::Mailbox;
use vkog_store::{DEFAULT_CONTENT_TYPE, Store as _, owned_content_type};

/// The plugin that asks, and what its request carries.
struct Asker {
    plugin: &'static str,
    headers: Vec<(String, Vec<u8>)>,
}

impl Origin for Asker {
    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.headers.iter();
        fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.get(index).map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    fn client(&self) -> &str {
        ""
    }

    fn asker(&self) -> &str {
        self.plugin
    }
}

impl Services for Ops {
    fn ask(self: Arc<Self>, asked: &Asked<'_>, answer: &mut dyn FnMut(Answered<'_>)) {
        let request = match request(&self, asked) {
            Ok(request) => request,
            Err((status, message)) => return answer(Answered::Refused(Cow::Owned(by_host(status, message)))),
        };
        // This thread waits here, so that it must not be the one to be told.
        let _detached = Mailbox::detach();
        let (tell, told) = bounded(1);
        let chain = asked.from.chain.clone().unwrap_or_else(|| self.plugins.wait_for_chain());
        self.run_in(Guard::from_inner(chain), request, move |answer, _: Added| {
            let _ = tell.send(answer);
        });
        // Nobody answers only if what should have panicked, and that was logged.
        give(told.recv().ok(), answer);
    }

    fn ask_each(self: Arc<Self>, asked: &[Asked<'_>], answer: &mut dyn FnMut(Answered<'_>)) {
        let Some(first) = asked.first() else { return };
        let _detached = Mailbox::detach();
        let chain = first.from.chain.clone().unwrap_or_else(|| self.plugins.wait_for_chain());
        let (tell, told) = bounded(asked.len());
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(asked.len());
        // All begin before the first is waited for, so that the log is synced once for as many as have come by then.
        for (index, asked) in asked.iter().enumerate() {
            answers.push(match request(&self, asked) {
                Err((status, message)) => Some(Answer::Refused(by_host(status, message))),
                Ok(request) => {
                    let tell = tell.clone();
                    self.run_in(Guard::from_inner(Arc::clone(&chain)), request, move |answer, _: Added| {
                        let _ = tell.send((index, answer));
                    });
                    None
                }
            });
        }
        drop(tell);
        for (index, answer) in told {
            answers[index] = Some(answer);
        }
        answers.into_iter().for_each(|told| give(told, answer));
    }

    fn for_each(self: Arc<Self>, prefix: &str, from: &Asking, each: &mut dyn FnMut(&str, Seen<'_>) -> bool) {
        for entry in self.store.with_prefix(prefix) {
            let asked = Asked {
                verb: Verb::Get,
                key: entry.key(),
                value: &[],
                content_type: "",
                query: "",
                headers: Vec::new(),
                if_revision: None,
                from: from.clone(),
            };
            let mut goes_on = true;
            Arc::clone(&self).ask(&asked, &mut |answered| {
                if let Answered::Found(seen) = answered {
                    goes_on = each(entry.key(), seen);
                }
            });
            if !goes_on {
                return;
            }
        }
    }

    fn quarantined(&self) {
        self.plugins.quarantine();
    }
}

/// Gives a plugin what became of what it asked for.
fn give(told: Option<Answer>, answer: &mut dyn FnMut(Answered<'_>)) {
    answer(match told {
        None => Answered::Refused(Cow::Owned(by_host(500, "the host failed; its log says more".to_owned()))),
        Some(Answer::Found(entry)) => return answer(Answered::Found(seen(&entry))),
        Some(Answer::Written(revision) | Answer::Removed(revision)) => Answered::Done(revision),
        Some(Answer::Absent) => Answered::Absent,
        Some(Answer::Unexpected(_)) => {
            let message = "the entry does not have the revision that was named".to_owned();
            Answered::Refused(Cow::Owned(by_host(412, message)))
        }
        Some(Answer::Refused(refusal)) => Answered::Refused(Cow::Owned(refusal)),
        Some(Answer::Failed(error)) => {
            let status = if error.is_full() { 507 } else { 503 };
            let words = if error.is_certain() { "Not kept" } else { "Outcome unknown" };
            Answered::Refused(Cow::Owned(by_host(status, format!("{words}: {error}"))))
        }
    });
}

/// What was asked, as a request; or the status and the message with which it is refused.
fn request(ops: &Ops, asked: &Asked<'_>) -> Result<Request, (u16, String)> {
    let (key_len, type_len) = (asked.key.len(), asked.content_type.len());
    if key_len == 0 {
        return Err((400, "Key cannot be empty".to_owned()));
    }
    if key_len > KEY_MAX {
        return Err((414, format!("Key too long: {key_len} bytes, {KEY_MAX} is the most")));
    }
    if type_len > CONTENT_TYPE_MAX || !asked.content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err((400, format!("A media type is ASCII text of at most {CONTENT_TYPE_MAX} bytes")));
    }
    if asked.value.is_empty() && matches!(asked.verb, Verb::Post | Verb::Put) {
        return Err((400, "No content provided".to_owned()));
    }
    let content_type = if asked.content_type.is_empty() { DEFAULT_CONTENT_TYPE } else { asked.content_type };
    let headers = asked.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    Ok(Request {
        verb: asked.verb,
        key: asked.key.to_owned(),
        value: asked.value.to_vec(),
        content_type: owned_content_type(content_type),
        query: asked.query.to_owned(),
        conditions: Conditions {
            one_of: asked.if_revision.map(|revision| Revisions::These(vec![revision])),
            none_of: None,
        },
        arrived: ops.revision(),
        depth: asked.from.depth,
        origin: Arc::new(Asker { plugin: asked.from.plugin, headers }),
    })
}

/// What the host itself refuses.
pub(crate) fn by_host(status: u16, message: String) -> Refusal {
    Refusal { plugin: String::new(), status, message, headers: Vec::new() }
}
