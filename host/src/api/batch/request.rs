//! Decodes the operations of a batch.
//!
//! One derived definition serves JSON and MessagePack. A value, a condition and the header fields have visitors, because a
//! derived untagged enum buffers any input: an array of 16 MiB instead of a value would take 500 MB.

use std::borrow::Cow;
use std::fmt::{self, Formatter};
use std::io::Cursor;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_untagged::UntaggedEnumVisitor;
use thiserror::Error;

use super::format::Format;
use crate::api::etag;
use crate::api::problem::Problem;
use vkog_engine::{Conditions, Operation, Revisions, Transforms, is_coding, is_identity};
use vkog_plugin_host::{CallStates, GuardOutput, Verb, is_token};
use vkog_store::DEFAULT_CONTENT_TYPE;

/// The maximum number of operations of a batch.
const OPERATIONS_MAX: usize = 1024;
/// The maximum number of revisions in a condition.
const REVISIONS_MAX: usize = 64;
/// The maximum number of header fields of an operation.
const HEADERS_MAX: usize = 100;

/// Decodes the operations of a body. Unescaped values are borrowed from the body.
///
/// # Errors
///
/// The body is not an array of operations, or has too many of them. The problem has the index of the operation that cannot
/// be decoded.
pub(super) fn decode(body: &Bytes, format: Format) -> Result<Vec<Operation>, Problem> {
    let mut decoded = Decoded::default();
    let error = match read(body, format, &mut decoded) {
        Ok(()) => return Ok(decoded.operations),
        Err(error) => error,
    };
    Err(match decoded.current {
        None => Problem::new(400, format!("The batch cannot be read: {error}")),
        Some(index) => Problem::new(400, format!("Operation {index} cannot be read: {error}")).at(index, None),
    })
}

/// Why a body is not a batch.
#[derive(Debug, Error)]
enum BodyError {
    /// The message of the error has its position.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("{} at byte {at}", message(.source))]
    MessagePack { at: u64, source: rmp_serde::decode::Error },
    #[error("data follows the array of operations; remove it")]
    Trailing,
}

fn read(body: &Bytes, format: Format, decoded: &mut Decoded) -> Result<(), BodyError> {
    let operations = Operations { body, decoded };
    match format {
        Format::Json => {
            let mut from = serde_json::Deserializer::from_slice(body);
            operations.deserialize(&mut from)?;
            Ok(from.end()?)
        }
        Format::MessagePack => {
            let mut from = rmp_serde::Deserializer::from_read_ref(body);
            let located = |source| BodyError::MessagePack { at: position(body), source };
            operations.deserialize(&mut from).map_err(located)?;
            match <()>::deserialize(&mut from) {
                Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(()),
                _ => Err(BodyError::Trailing),
            }
        }
    }
}

fn message(error: &rmp_serde::decode::Error) -> String {
    use rmp_serde::decode::Error;
    match error {
        Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => "it ends too early".to_owned(),
        Error::TypeMismatch(marker) => format!("a {marker:?} is not expected"),
        other => other.to_string(),
    }
}

/// Returns the position of the first error in MessagePack. The zero-copy reader does not know it, so a second one reads the
/// body again.
fn position(body: &Bytes) -> u64 {
    let mut from = rmp_serde::Deserializer::new(Cursor::new(body));
    let _ = Operations { body, decoded: &mut Decoded::default() }.deserialize(&mut from);
    from.position()
}

/// The operations so far.
#[derive(Default)]
struct Decoded {
    operations: Vec<Operation>,
    /// The index of the operation that is being decoded.
    current: Option<usize>,
}

/// Decodes the array of operations one by one, to know the index of one that fails and to stop at the maximum.
struct Operations<'b> {
    body: &'b Bytes,
    decoded: &'b mut Decoded,
}

impl<'de> DeserializeSeed<'de> for Operations<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Operations<'_> {
    type Value = ();

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("an array of operations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Decoded { operations, current } = self.decoded;
        let too_many = || A::Error::custom(format!("there are more than {OPERATIONS_MAX} operations; send several"));
        if list.size_hint().is_some_and(|count| count > OPERATIONS_MAX) {
            return Err(too_many());
        }
        loop {
            *current = Some(operations.len());
            let Some(MapOnly(written)) = list.next_element::<MapOnly<Written<'_>>>()? else { break };
            if operations.len() == OPERATIONS_MAX {
                *current = None;
                return Err(too_many());
            }
            operations.push(written.operation(self.body).map_err(A::Error::custom)?);
        }
        *current = None;
        Ok(())
    }
}

/// A struct that must be written as a map. Derived code also accepts an array of its fields.
struct MapOnly<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for MapOnly<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = T;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("an operation, which is a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        from.deserialize_map(Map(PhantomData)).map(MapOnly)
    }
}

/// An operation as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Option<Value<'a>>,
    /// A binary value in JSON, which has only text.
    base64: Option<String>,
    content_type: Option<String>,
    if_match: Option<Condition>,
    if_none_match: Option<Condition>,
    headers: Option<Headers>,
}

/// Why an operation is invalid although its fields have the right types.
#[derive(Debug, Error)]
enum OperationError {
    #[error("op is {0:?}; use get, post, put, patch or delete")]
    UnknownOp(String),
    #[error("the operation has both value and base64; use one of them")]
    TwoValues,
    #[error("base64 cannot be decoded: {0}; send standard base64 with padding")]
    Base64(#[from] base64::DecodeError),
    #[error("a {0} takes neither value nor content_type; remove them")]
    UnexpectedValue(String),
    #[error("{0:?} is not a header of ASCII text; use visible ASCII characters")]
    NotAHeader(String),
    #[error("{0} is not allowed in headers; use content_type, if_match or if_none_match")]
    OwnHeader(String),
    #[error("Content-Range is not supported; send the whole value")]
    Part,
    #[error("Content-Encoding must be one list of codings such as gzip, without aws-chunked")]
    Coding,
}

impl Written<'_> {
    fn operation(self, body: &Bytes) -> Result<Operation, OperationError> {
        let Written { op, key, value, base64, content_type, if_match, if_none_match, headers } = self;
        let touches = op == "patch";
        let verb = match &*op {
            "get" => Verb::Get,
            "post" => Verb::Post,
            "put" | "patch" => Verb::Put,
            "delete" => Verb::Delete,
            _ => return Err(OperationError::UnknownOp(op.into_owned())),
        };
        let value = match (value, base64) {
            (None, None) => Bytes::new(),
            (Some(_), Some(_)) => return Err(OperationError::TwoValues),
            (Some(Value(Cow::Borrowed(value))), _) => body.slice_ref(value),
            (Some(Value(Cow::Owned(value))), _) => value.into(),
            (None, Some(text)) => BASE64.decode(text)?.into(),
        };
        let takes_a_value = matches!(verb, Verb::Post | Verb::Put) && !touches;
        if !takes_a_value && (!value.is_empty() || content_type.is_some()) {
            return Err(OperationError::UnexpectedValue(op.into_owned()));
        }
        let mut headers = headers.map_or(Ok(Vec::new()), Headers::checked)?;
        // Plugins see a condition as a header field.
        for (name, condition) in [("If-Match", &if_match), ("If-None-Match", &if_none_match)] {
            headers.extend(condition.as_ref().map(|condition| (name.into(), condition.field())));
        }
        let content_type = match content_type {
            Some(content_type) if !content_type.is_empty() => {
                headers.push(("Content-Type".into(), content_type.clone()));
                Cow::Owned(content_type)
            }
            _ => Cow::Borrowed(DEFAULT_CONTENT_TYPE),
        };
        let revisions = |condition: Option<Condition>| condition.map(|Condition(revisions)| revisions);
        let conditions = Conditions { if_match: revisions(if_match), if_none_match: revisions(if_none_match) };
        Ok(Operation {
            verb,
            key: key.into_owned(),
            touches,
            value,
            content_type,
            conditions,
            headers,
            hidden: false,
            transforms: Transforms::default(),
            states: CallStates::default(),
            guarded: GuardOutput::default(),
        })
    }
}

/// A value: text or bytes, borrowed from the body where nothing is escaped.
///
/// Its visitor is written by hand, because `UntaggedEnumVisitor` allocates a closure for each type. Decoding a batch of 64
/// values takes 35 % (JSON) to 54 % (MessagePack) longer with it, by `cargo bench -p vkog --bench batches`.
struct Value<'a>(Cow<'a, [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrBytes;

        impl<'de> Visitor<'de> for TextOrBytes {
            type Value = Value<'de>;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a value, which is text or bytes")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value(Cow::Borrowed(text.as_bytes())))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
                Ok(Value(Cow::Owned(text.into())))
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Value<'de>, E> {
                Ok(Value(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value<'de>, E> {
                Ok(Value(Cow::Owned(bytes.into())))
            }
        }
        from.deserialize_any(TextOrBytes)
    }
}

/// A condition: a revision, several, or `*` for any.
struct Condition(Revisions);

impl Condition {
    /// Returns the value of the header field with the same meaning.
    fn field(&self) -> String {
        match &self.0 {
            Revisions::Any => "*".to_owned(),
            Revisions::These(revisions) => {
                revisions.iter().map(|revision| format!("\"{revision}\"")).collect::<Vec<_>>().join(", ")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a revision or its entity tag, an array of these, or \"*\"";
        let one = |revision| Condition(Revisions::These(vec![revision]));
        UntaggedEnumVisitor::new()
            .expecting(EXPECTED)
            .u64(move |number| revision(number).map(one))
            .f64(move |number| whole(number).map(one))
            .string(|text| match text {
                "*" => Ok(Condition(Revisions::Any)),
                tag => of_tag(tag, EXPECTED).map(one),
            })
            .seq(|list| list.deserialize().map(|RevisionList(revisions)| Condition(Revisions::These(revisions))))
            .deserialize(from)
    }
}

/// The revisions of a condition, up to the maximum number.
struct RevisionList(Vec<u64>);

impl<'de> Deserialize<'de> for RevisionList {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = RevisionList;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("an array of revisions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RevisionList, A::Error> {
                let mut revisions = Vec::new();
                while let Some(Revision(revision)) = list.next_element()? {
                    if revisions.len() == REVISIONS_MAX {
                        return Err(A::Error::custom(format!("there are more than {REVISIONS_MAX} revisions")));
                    }
                    revisions.push(revision);
                }
                Ok(RevisionList(revisions))
            }
        }
        from.deserialize_seq(List)
    }
}

/// A revision in a list.
struct Revision(u64);

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a revision or its entity tag";
        UntaggedEnumVisitor::new()
            .expecting(EXPECTED)
            .string(|tag| of_tag(tag, EXPECTED).map(Revision))
            .u64(|number| revision(number).map(Revision))
            .f64(|number| whole(number).map(Revision))
            .deserialize(from)
    }
}

/// Checks a revision. 0 stands inside the server for an entry that an operation before this one writes.
fn revision(number: u64) -> Result<u64, serde_untagged::de::Error> {
    if number == 0 { Err(serde_untagged::de::Error::custom("0 is no revision")) } else { Ok(number) }
}

/// Returns the revision of an entity tag, in the form of the header `ETag`: with its quotation marks.
fn of_tag(tag: &str, expected: &'static str) -> Result<u64, serde_untagged::de::Error> {
    let of_tag =
        etag::revision(tag).ok_or_else(|| serde_untagged::de::Error::invalid_value(Unexpected::Str(tag), &expected));
    of_tag.and_then(revision)
}

/// Checks a revision that is written as a floating-point number: in JSON 7.0 is 7. An integer of more than 64 bits is also read
/// as such a number.
fn whole(number: f64) -> Result<u64, serde_untagged::de::Error> {
    const TOO_LARGE: f64 = u64::MAX as f64;
    if number.fract() == 0.0 && (0.0..TOO_LARGE).contains(&number) {
        revision(number as u64)
    } else {
        Err(serde_untagged::de::Error::custom(format!("{number} is no revision")))
    }
}

/// The header fields of an operation, up to the maximum number.
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

impl Headers {
    /// Returns the fields, after checking that an operation may have each of them.
    fn checked(self) -> Result<Vec<(Cow<'static, str>, String)>, OperationError> {
        let mut fields = Vec::with_capacity(self.0.len());
        let mut is_coded = false;
        for (name, value) in self.0 {
            let is_visible = |byte: u8| (b' '..=b'~').contains(&byte);
            if !is_token(name.as_bytes()) || !value.bytes().all(is_visible) {
                return Err(OperationError::NotAHeader(name));
            }
            if Operation::OWN.iter().any(|own| own.eq_ignore_ascii_case(&name)) {
                return Err(OperationError::OwnHeader(name));
            }
            if name.eq_ignore_ascii_case("content-range") {
                return Err(OperationError::Part);
            }
            if name.eq_ignore_ascii_case("content-encoding") {
                let coding = value.as_bytes();
                // As over HTTP: of two fields, only one would be stored.
                if std::mem::replace(&mut is_coded, true) || !is_identity(coding) && !is_coding(coding) {
                    return Err(OperationError::Coding);
                }
            }
            fields.push((name.into(), value));
        }
        Ok(fields)
    }
}
