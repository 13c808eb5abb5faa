//! `/batch`: several operations in one request, as MessagePack or as JSON; all of them are done, or none is.

mod answer;

use std::borrow::Cow;
use std::fmt::{self, Formatter};
use std::io::Cursor;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};

use super::access::{Access, Scope};
use super::problem::{Manner, Problem};
use super::{LARGE, entry};
use crate::config::{BATCH_MIN, Right};
use crate::http::{RequestHead, Response};
use vkog_engine::{Batch, BatchFailure, Conditions, Engine, ExtraHeaders, Operation, Outcome, Revisions};
use vkog_plugin_host::Verb;
use vkog_runtime::ThreadPool;
use vkog_store::DEFAULT_CONTENT_TYPE;

/// The most operations of one batch.
const OPERATIONS_MAX: usize = 1024;
/// The most revisions that one condition names.
const REVISIONS_MAX: usize = 64;
/// The most header fields that one operation has of its own.
const HEADERS_MAX: usize = 100;

/// How operations and answers are written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    MessagePack,
}

impl Format {
    /// That of a request's body.
    pub(super) fn of(head: &RequestHead) -> Result<Self, Problem> {
        let known = head.headers.get("content-type").and_then(|name| str::from_utf8(name).ok()).and_then(Self::named);
        let fact = "A batch is application/msgpack or application/json; say which in Content-Type";
        known.ok_or_else(|| Problem::new(415, fact))
    }

    /// That of the answer: what the client names first, or what it sent.
    pub(super) fn of_answer(self, head: &RequestHead) -> Self {
        let accept = head.headers.get("accept").and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
        accept.split(',').find_map(Self::named).unwrap_or(self)
    }

    fn named(media_type: &str) -> Option<Self> {
        let name = media_type.split(';').next().unwrap_or_default().trim();
        let is = |known: &&str| name.eq_ignore_ascii_case(known);
        if ["application/json", "application/problem+json"].iter().any(is) {
            Some(Self::Json)
        } else if ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"].iter().any(is) {
            Some(Self::MessagePack)
        } else {
            None
        }
    }

    pub(super) fn manner(self) -> Manner {
        match self {
            Self::Json => Manner::Document,
            Self::MessagePack => Manner::Packed,
        }
    }
}

/// The longest body that is read, in bytes.
pub(super) fn body_max(value_max: u64) -> u64 {
    value_max.max(BATCH_MIN)
}

/// The problem of a body that is longer.
pub(super) fn too_large(length: Option<u64>, value_max: u64) -> Problem {
    let most = body_max(value_max);
    let length = length.map(|length| format!("{length} bytes, ")).unwrap_or_default();
    Problem::new(413, format!("Batch too large: {length}{most} is the most; send several"))
}

/// A batch that was admitted.
pub(super) struct Admitted {
    pub(super) sent: Format,
    pub(super) answer: Format,
    pub(super) query: String,
    pub(super) arrived: u64,
}

/// What batches need of the server.
pub(super) struct Server {
    pub(super) engine: Arc<Engine>,
    pub(super) access: Arc<Access>,
    pub(super) value_max: u64,
    pub(super) large: Arc<ThreadPool>,
}

impl Server {
    /// Does what a batch asks for. A large one is read and answered on threads of its own.
    pub(super) fn serve(
        self,
        head: Arc<RequestHead>,
        admitted: Admitted,
        body: Vec<u8>,
        reply_with: impl FnOnce(Response) + Send + 'static,
    ) {
        if body.len() <= LARGE {
            return self.run(head, admitted, body, reply_with);
        }
        let large = Arc::clone(&self.large);
        large.run(move || self.run(head, admitted, body, reply_with));
    }

    fn run(
        self,
        head: Arc<RequestHead>,
        Admitted { sent, answer, query, arrived }: Admitted,
        body: Vec<u8>,
        reply_with: impl FnOnce(Response) + Send + 'static,
    ) {
        let Self { engine, access, value_max, large } = self;
        let manner = answer.manner();
        let operations = match decode(&body.into(), sent).and_then(|operations| checked(operations, value_max)) {
            Ok(operations) => operations,
            Err(problem) => return reply_with(problem.reply(manner)),
        };
        let asked = operations.iter().map(|operation| {
            let right = if operation.verb == Verb::Get { Right::Read } else { Right::Write };
            (right, Scope::Key(&operation.key))
        });
        if let Err((index, refusal)) = access.check_all(&head, asked) {
            let key = operations.into_iter().nth(index).map(|operation| operation.key);
            return reply_with(Problem::of(refusal).at(index, key).reply(manner));
        }
        let values_max = usize::try_from(body_max(value_max)).unwrap_or(usize::MAX);
        let batch = Batch { operations, query, arrived, values_max, origin: head };
        engine.run_batch(batch, move |outcome| match outcome {
            Ok(done) if values_len(&done) > LARGE => large.run(move || reply_with(answer::streamed(done, answer))),
            Ok(done) => reply_with(answer::whole(&done, answer)),
            Err(failure) => reply_with(refused(failure, answer)),
        });
    }
}

/// How many bytes of values an answer has.
fn values_len(done: &[(Outcome, ExtraHeaders)]) -> usize {
    let len = |(answer, _): &(Outcome, ExtraHeaders)| {
        if let Outcome::Found(entry) = answer { entry.value().len() } else { 0 }
    };
    done.iter().map(len).sum()
}

/// The reply to a batch of which nothing was done.
fn refused(BatchFailure { at, outcome }: BatchFailure, format: Format) -> Response {
    let problem = entry::problem(outcome);
    let problem = if let Some((index, key)) = at { problem.at(index, Some(key)) } else { problem };
    problem.reply(format.manner())
}

/// What is wrong with an operation that could be read, if anything is.
fn checked(operations: Vec<Operation>, value_max: u64) -> Result<Vec<Operation>, Problem> {
    for (index, operation) in operations.iter().enumerate() {
        let len = operation.value.len() as u64;
        let fits = match operation.check() {
            Err(invalid) => Err(invalid.into()),
            Ok(()) if len > value_max => Err(entry::too_large(Some(len), value_max)),
            Ok(()) => Ok(()),
        };
        fits.map_err(|problem: Problem| problem.at(index, Some(operation.key.clone())))?;
    }
    Ok(operations)
}

fn decode(body: &Bytes, format: Format) -> Result<Vec<Operation>, Problem> {
    let mut read = Read { operations: Vec::new(), reading: None };
    let list = List { body, read: &mut read };
    let fault = match format {
        Format::Json => {
            let mut from = serde_json::Deserializer::from_slice(body);
            // Its message says where.
            list.deserialize(&mut from).and_then(|()| from.end()).map_err(|error| error.to_string())
        }
        Format::MessagePack => {
            let mut from = rmp_serde::Deserializer::from_read_ref(body);
            list.deserialize(&mut from).map_err(|error| format!("{} at byte {}", said(&error), place(body))).and_then(
                |()| match <()>::deserialize(&mut from) {
                    Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(()),
                    _ => Err("something follows the array of operations".to_owned()),
                },
            )
        }
    };
    match (fault, read.reading) {
        (Ok(()), _) => Ok(read.operations),
        (Err(fault), None) => Err(Problem::new(400, format!("The batch cannot be read: {fault}"))),
        (Err(fault), Some(index)) => {
            Err(Problem::new(400, format!("Operation {index} cannot be read: {fault}")).at(index, None))
        }
    }
}

fn said(error: &rmp_serde::decode::Error) -> String {
    use rmp_serde::decode::Error;
    match error {
        Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => "it ends too early".to_owned(),
        Error::TypeMismatch(marker) => format!("a {marker:?} is not expected"),
        other => other.to_string(),
    }
}

/// Where reading MessagePack fails: the reader that copies nothing does not know it, and so it is read once more.
fn place(body: &Bytes) -> u64 {
    let mut from = rmp_serde::Deserializer::new(Cursor::new(body));
    let _ = List { body, read: &mut Read { operations: Vec::new(), reading: None } }.deserialize(&mut from);
    from.position()
}

/// How far a batch has been read.
struct Read {
    operations: Vec<Operation>,
    /// The operation that is being read.
    reading: Option<usize>,
}

/// Reads the array of operations. Values stay where they are in the body, as far as they stand there as they are.
struct List<'b> {
    body: &'b Bytes,
    read: &'b mut Read,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("an array of operations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Read { operations, reading } = self.read;
        let too_many = || A::Error::custom(format!("there are more than {OPERATIONS_MAX} operations; send several"));
        if list.size_hint().is_some_and(|count| count > OPERATIONS_MAX) {
            return Err(too_many());
        }
        loop {
            *reading = Some(operations.len());
            let Some(Fields(fields)) = list.next_element()? else { break };
            if operations.len() == OPERATIONS_MAX {
                *reading = None;
                return Err(too_many());
            }
            operations.push(fields.operation(self.body).map_err(A::Error::custom)?);
        }
        *reading = None;
        Ok(())
    }
}

/// The fields of an operation, in a map: an array of them is none.
struct Fields<'de>(Named<'de>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Option<Octets<'a>>,
    /// A value that is no text, where the format has only text.
    base64: Option<String>,
    content_type: Option<String>,
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
    headers: Option<Headers>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("an operation, which is a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fields<'de>, A::Error> {
                Named::deserialize(MapAccessDeserializer::new(map)).map(Fields)
            }
        }
        from.deserialize_map(Map)
    }
}

impl Named<'_> {
    fn operation(self, body: &Bytes) -> Result<Operation, String> {
        let Named { op, key, value, base64, content_type, if_match, if_none_match, headers } = self;
        let verb = match &*op {
            "get" => Verb::Get,
            "post" => Verb::Post,
            "put" => Verb::Put,
            "delete" => Verb::Delete,
            _ => return Err(format!("op is {op:?}; give get, post, put or delete")),
        };
        let value = match (value, base64) {
            (None, None) => Bytes::new(),
            (Some(_), Some(_)) => return Err("value and base64 are given both".to_owned()),
            (Some(Octets(Cow::Borrowed(value))), _) => body.slice_ref(value),
            (Some(Octets(Cow::Owned(value))), _) => value.into(),
            (None, Some(text)) => {
                BASE64.decode(text).map_err(|error| format!("base64 cannot be decoded: {error}"))?.into()
            }
        };
        if matches!(verb, Verb::Get | Verb::Delete) && (!value.is_empty() || content_type.is_some()) {
            return Err(format!("a {op} has neither value nor content_type"));
        }
        let mut fields = Vec::new();
        for (name, value) in headers.map_or_else(Vec::new, |headers| headers.0) {
            let sent = |byte: u8| (b' '..=b'~').contains(&byte);
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(token) || !value.bytes().all(sent) {
                return Err(format!("{name:?} is no header field of ASCII text"));
            }
            if Operation::OWN.iter().any(|own| own.eq_ignore_ascii_case(&name)) {
                return Err(format!("{name} is not given in headers; there are content_type, if_match, if_none_match"));
            }
            let is_encoded = name.eq_ignore_ascii_case("content-encoding") && !entry::is_identity(value.as_bytes());
            if is_encoded || name.eq_ignore_ascii_case("content-range") {
                return Err(format!("{name} is not supported; give the whole value as it is to be read"));
            }
            fields.push((name.into(), value));
        }
        // What plugins see of a condition is a header field.
        for (name, tags) in [("If-Match", &if_match), ("If-None-Match", &if_none_match)] {
            fields.extend(tags.as_ref().map(|tags| (name.into(), tags.text())));
        }
        let content_type = match content_type {
            Some(content_type) if !content_type.is_empty() => {
                fields.push(("Content-Type".into(), content_type.clone()));
                Cow::Owned(content_type)
            }
            _ => Cow::Borrowed(DEFAULT_CONTENT_TYPE),
        };
        let conditions =
            Conditions { if_match: if_match.map(|tags| tags.0), if_none_match: if_none_match.map(|tags| tags.0) };
        Ok(Operation { verb, key: key.into_owned(), value, content_type, conditions, headers: fields, hidden: false })
    }
}

/// A value: text or bytes.
struct Octets<'de>(Cow<'de, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Octets<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Octets<'de>;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a value, which is text or bytes")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Octets<'de>, E> {
                Ok(Octets(Cow::Borrowed(text.as_bytes())))
            }

            fn visit_str<E>(self, text: &str) -> Result<Octets<'de>, E> {
                Ok(Octets(Cow::Owned(text.into())))
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Octets<'de>, E> {
                Ok(Octets(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Octets<'de>, E> {
                Ok(Octets(Cow::Owned(bytes.into())))
            }
        }
        from.deserialize_any(Any)
    }
}

/// What a condition names: a revision, several, or `*` for any.
struct Tags(Revisions);

impl Tags {
    /// As it stands in a header field.
    fn text(&self) -> String {
        match &self.0 {
            Revisions::Any => "*".to_owned(),
            Revisions::These(revisions) => {
                revisions.iter().map(|revision| format!("\"{revision}\"")).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Tags;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a revision, an array of revisions, or \"*\"")
            }

            fn visit_u64<E: serde::de::Error>(self, revision: u64) -> Result<Tags, E> {
                Ok(Tags(Revisions::These(vec![Number::Whole(revision).revision()?])))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Tags, E> {
                Ok(Tags(Revisions::These(vec![Number::Float(number).revision()?])))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Tags, E> {
                if text == "*" { Ok(Tags(Revisions::Any)) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tags, A::Error> {
                let mut revisions = Vec::new();
                while let Some(number) = list.next_element::<Number>()? {
                    if revisions.len() == REVISIONS_MAX {
                        return Err(A::Error::custom(format!("there are more than {REVISIONS_MAX} revisions")));
                    }
                    revisions.push(number.revision()?);
                }
                Ok(Tags(Revisions::These(revisions)))
            }
        }
        from.deserialize_any(Any)
    }
}

/// A number of either kind.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Float(f64),
}

impl Number {
    fn revision<E: serde::de::Error>(self) -> Result<u64, E> {
        match self {
            // An entry that an operation before this one writes has no revision yet, which is 0 inside.
            Self::Whole(0) => Err(E::custom("0 is no revision")),
            Self::Whole(revision) => Ok(revision),
            // In JSON 7.0 is 7.
            Self::Float(number) if number as u64 as f64 == number => Self::Whole(number as u64).revision(),
            Self::Float(number) => Err(E::custom(format!("{number} is no revision"))),
        }
    }
}

/// Header fields, few enough.
struct Headers(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Map;

        impl<'de> Visitor<'de> for Map {
            type Value = Headers;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a map of header fields, which are text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() == HEADERS_MAX {
                        return Err(A::Error::custom(format!("there are more than {HEADERS_MAX} header fields")));
                    }
                    fields.push(field);
                }
                Ok(Headers(fields))
            }
        }
        from.deserialize_map(Map)
    }
}
