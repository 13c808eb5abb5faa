//! Read: before, lock, guard, after.

use super::{Answer, Ops, Request, seen};

pub(super) fn get(ops: &Ops, request: &Request) -> Answer {
    let subject = request.subject();
    match ops.chain.before(&subject) {
        Err(refusal) => return Answer::Refused(refusal),
        Ok(prepared) if prepared.hidden => return Answer::Absent,
        Ok(_) => {}
    }
    let read = ops.store.read(&request.key, |entry| {
        if ops.chain.is_unguarded(request.verb) {
            return Ok(Some(entry.clone()));
        }
        let passed = ops.chain.guard(&subject, Some(seen(entry)))?;
        Ok((!passed.hidden).then(|| entry.clone()))
    });
    match read {
        None | Some(Ok(None)) => Answer::Absent,
        Some(Err(refusal)) => Answer::Refused(refusal),
        Some(Ok(Some(entry))) => {
            ops.chain.after(&subject, Some(seen(&entry)), Some(seen(&entry)));
            Answer::Found(entry)
        }
    }
}
