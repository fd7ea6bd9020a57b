//! Lines: one JSON object each, a request and its answer. Every request says which version it is of, and every answer is of the version
//! of its request.

use serde_json::{Map, Value};

use crate::answer::{Answer, Reply};
use crate::operation::MAX_TOKEN;
use crate::refusal::Refusal;
use crate::request::Request;

/// The version that is spoken here.
pub const VERSION: u32 = 1;
/// The oldest one that a keeper understands: the one before [`VERSION`], from the second on.
pub const OLDEST: u32 = 1;
/// Longest request, bytes.
pub const MAX_REQUEST: u64 = 64 << 10;
/// Longest answer, bytes.
pub const MAX_ANSWER: u64 = 8 << 20;

/// What every request may say beside its own fields.
pub const ENVELOPE: [&str; 3] = ["version", "id", "token"];

/// What an answer has to repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    pub version: u32,
    /// What the client has called its request, a string or a number: the answer repeats it.
    pub id: Option<Value>,
    /// A request that begins an operation, repeated with the same token, is the same operation.
    pub token: Option<String>,
}

impl Default for Envelope {
    fn default() -> Self {
        Self { version: VERSION, id: None, token: None }
    }
}

/// Reads a line of a client's.
///
/// # Errors
/// It is no request, or of a version that is not spoken. What can be read of the envelope is there all the same.
pub fn read_request(line: &[u8]) -> (Envelope, Result<Request, Refusal>) {
    let mut envelope = Envelope::default();
    let request = read(line, &mut envelope);
    (envelope, request)
}

fn read(line: &[u8], envelope: &mut Envelope) -> Result<Request, Refusal> {
    let bad = |field: Option<&str>, problem: String| Refusal::BadRequest { field: field.map(Into::into), problem };
    let mut given: Map<String, Value> =
        serde_json::from_slice(line).map_err(|e| bad(None, format!("this is no JSON object: {e}")))?;
    match given.remove("id") {
        None => {}
        Some(id @ (Value::String(_) | Value::Number(_))) => envelope.id = Some(id),
        Some(_) => return Err(bad(Some("id"), "it is neither a string nor a number".into())),
    }
    match given.remove("token") {
        None => {}
        Some(Value::String(token)) if (1..=MAX_TOKEN).contains(&token.len()) => envelope.token = Some(token),
        Some(_) => return Err(bad(Some("token"), format!("it is no text of 1 to {MAX_TOKEN} bytes"))),
    }
    let asked = match given.remove("version") {
        None => return Err(bad(Some("version"), "it is missing".into())),
        Some(version) => version.as_u64().ok_or_else(|| bad(Some("version"), "it is no number".into()))?,
    };
    let Some(version) = u32::try_from(asked).ok().filter(|v| (OLDEST..=VERSION).contains(v)) else {
        return Err(Refusal::UnsupportedVersion { asked, spoken: (OLDEST..=VERSION).collect() });
    };
    envelope.version = version;
    if !given.contains_key("request") {
        return Err(bad(Some("request"), "it is missing".into()));
    }
    let given = Value::Object(given);
    let request: Request = serde_json::from_value(given.clone()).map_err(|e| bad(None, e.to_string()))?;
    // A field that is not there when it is written again is none of this request's.
    let known = serde_json::to_value(&request).map_err(|e| bad(None, e.to_string()))?;
    match unknown(&given, &known) {
        Some(field) => Err(bad(Some(&field), "there is no such field".into())),
        None => Ok(request),
    }
}

/// The path of a field that is given and not known.
fn unknown(given: &Value, known: &Value) -> Option<String> {
    let (Value::Object(given), Value::Object(known)) = (given, known) else { return None };
    given.iter().find_map(|(name, value)| match known.get(name) {
        None => Some(name.clone()),
        Some(known) => unknown(value, known).map(|below| format!("{name}.{below}")),
    })
}

/// A request as a line.
///
/// # Errors
/// It cannot be written as JSON: a path that is no UTF-8.
pub fn write_request(request: &Request, token: Option<&str>) -> Result<Vec<u8>, serde_json::Error> {
    let mut value = serde_json::to_value(request)?;
    value["version"] = VERSION.into();
    if let Some(token) = token {
        value["token"] = token.into();
    }
    line(&value)
}

/// An answer as a line.
///
/// # Errors
/// As [`write_request`].
pub fn write_answer(envelope: &Envelope, reply: &Reply) -> Result<Vec<u8>, serde_json::Error> {
    let mut value = match reply {
        Ok(answer) => serde_json::to_value(answer)?,
        Err(refusal) => serde_json::json!({ "error": refusal }),
    };
    value["version"] = envelope.version.into();
    if let Some(id) = &envelope.id {
        value["id"] = id.clone();
    }
    line(&value)
}

fn line(value: &Value) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// What a keeper has answered, as a client reads it.
#[derive(Debug)]
pub enum Read {
    Reply(Reply),
    /// A refusal with a code that is not known here, or with details that are not: of a later keeper.
    Unknown {
        code: String,
        details: Value,
    },
}

/// Reads an answer.
///
/// # Errors
/// It makes no sense.
pub fn read_answer(line: &[u8]) -> Result<Read, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(line)?;
    let Some(error) = value.get_mut("error").map(Value::take) else {
        return Ok(Read::Reply(Ok(serde_json::from_value::<Answer>(value)?)));
    };
    Ok(match serde_json::from_value::<Refusal>(error.clone()) {
        Ok(refusal) => Read::Reply(Err(refusal)),
        Err(_) => Read::Unknown {
            code: error.get("code").and_then(Value::as_str).unwrap_or_default().to_owned(),
            details: error.get("details").cloned().unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{Operation, OperationId, OperationKind, State};

    fn refused(line: &str) -> (Envelope, Refusal) {
        let (envelope, request) = read_request(line.as_bytes());
        (envelope, request.unwrap_err())
    }

    fn field(line: &str) -> Option<String> {
        match refused(line).1 {
            Refusal::BadRequest { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_request_is_read_with_its_envelope() {
        let (envelope, request) = read_request(br#"{"version":1,"id":"x","request":"start"}"#);
        assert_eq!(request, Ok(Request::Start { force: false }));
        assert_eq!(envelope, Envelope { version: 1, id: Some("x".into()), token: None });
        let (_, request) = read_request(&write_request(&Request::Stop, None).unwrap());
        assert_eq!(request, Ok(Request::Stop));
    }

    #[test]
    fn what_is_not_known_is_named() {
        assert_eq!(field(r#"{"version":1,"request":"start","forse":true}"#).as_deref(), Some("forse"));
        assert_eq!(field(r#"{"version":1,"request":"stop","force":true}"#).as_deref(), Some("force"));
        let below = r#"{"version":1,"request":"trial","within_ms":1,"sign":"asked","image":{"linux":{"kernel":"/k","initrd":null,"kernle":1}}}"#;
        // A part that does not allow it says so itself, in its own words.
        assert!(refused(below).1.to_string().contains("kernle"));
        let position = r#"{"version":1,"request":"events","after":{"incarnation":1,"seq":2,"sec":3}}"#;
        assert!(refused(position).1.to_string().contains("sec"));
        assert_eq!(field(r#"{"request":"status"}"#).as_deref(), Some("version"));
        assert_eq!(field(r#"{"version":"1","request":"status"}"#).as_deref(), Some("version"));
        assert_eq!(field(r#"{"version":1}"#).as_deref(), Some("request"));
        assert_eq!(field(r#"{"version":1,"id":[],"request":"status"}"#).as_deref(), Some("id"));
        assert_eq!(field(r#"{"version":1,"token":"","request":"dump"}"#).as_deref(), Some("token"));
        let (envelope, _) = read_request(&write_request(&Request::Dump, Some("mine")).unwrap());
        assert_eq!(envelope.token.as_deref(), Some("mine"));
        assert!(refused(r#"{"version":1,"request":"explode"}"#).1.to_string().contains("explode"));
        assert!(refused(r#"{"version":1,"request":"restore"}"#).1.to_string().contains("name"));
        for nothing in ["", "[]", "nonsense", "{\"version\":1", "null"] {
            assert!(matches!(refused(nothing).1, Refusal::BadRequest { field: None, .. }), "{nothing}");
        }
    }

    /// The current version and the one before it are spoken, no other; the answer says which.
    #[test]
    fn a_version_that_is_not_spoken_is_refused_with_those_that_are() {
        const { assert!(VERSION.wrapping_sub(OLDEST) <= 1) };
        for version in OLDEST..=VERSION {
            let (envelope, request) = read_request(format!(r#"{{"version":{version},"request":"status"}}"#).as_bytes());
            assert_eq!((envelope.version, request), (version, Ok(Request::Status)));
        }
        for asked in [0, u64::from(VERSION) + 1, 1 << 40] {
            let (envelope, refusal) = refused(&format!(r#"{{"version":{asked},"id":3,"request":"what","ever":1}}"#));
            assert_eq!(refusal, Refusal::UnsupportedVersion { asked, spoken: (OLDEST..=VERSION).collect() });
            assert_eq!(envelope, Envelope { version: VERSION, id: Some(3.into()), token: None });
        }
    }

    #[test]
    fn an_answer_repeats_the_envelope() {
        let envelope = Envelope { version: 1, id: Some(7.into()), token: None };
        let text = |reply: &Reply| String::from_utf8(write_answer(&envelope, reply).unwrap()).unwrap();
        let done = text(&Ok(Answer::Done));
        assert_eq!(done, "{\"answer\":\"done\",\"id\":7,\"version\":1}\n");
        assert!(matches!(read_answer(done.as_bytes()), Ok(Read::Reply(Ok(Answer::Done)))));
        // An operation that has failed is no refusal.
        let failed = Operation {
            id: OperationId { incarnation: ninefold_model::Incarnation(7), number: 1 },
            kind: OperationKind::Dump,
            token: None,
            state: State::Failed { error: Refusal::GuestOff },
        };
        let told = Ok(Answer::Operation { operation: Box::new(failed) });
        let Ok(Read::Reply(heard)) = read_answer(text(&told).as_bytes()) else { panic!() };
        assert_eq!(heard, told);
        let refused = text(&Err(Refusal::RunsHere));
        assert_eq!(refused, "{\"error\":{\"code\":\"runs_here\"},\"id\":7,\"version\":1}\n");
        assert!(matches!(read_answer(refused.as_bytes()), Ok(Read::Reply(Err(Refusal::RunsHere)))));
        let later = br#"{"version":1,"error":{"code":"on_fire","details":{"floor":9}}}"#;
        let Ok(Read::Unknown { code, details }) = read_answer(later) else { panic!() };
        assert_eq!((code.as_str(), &details["floor"]), ("on_fire", &9.into()));
        assert!(read_answer(b"nonsense").is_err() && read_answer(b"{}").is_err());
        // What a later keeper tells beside what is known hides nothing of that.
        let events = br#"{"answer":"events","version":1,"new":1,"gap":{"after":{"incarnation":1,"seq":1},"cause":"flood","incarnation":2},
            "events":[{"event":"sang","song":"x","host":"a","incarnation":2,"seq":1,"unix_us":1,"monotonic_us":1},
            {"event":"paused","by":"me","host":"a","incarnation":2,"seq":2,"unix_us":1,"monotonic_us":1}],
            "next":{"incarnation":2,"seq":2}}"#;
        let Ok(Read::Reply(Ok(Answer::Events { gap: Some(gap), events, next }))) = read_answer(events) else {
            panic!()
        };
        assert_eq!((gap.cause, next.seq), (crate::GapCause::Unknown, 2));
        let kinds: Vec<_> = events.into_iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [ninefold_model::event::EventKind::Unknown, ninefold_model::event::EventKind::Paused]);
    }

    /// The fields of a request lie beside the envelope's, and each is written out.
    #[test]
    fn no_field_of_a_request_hides_one_of_the_envelope() {
        let source = include_str!("request.rs");
        let (_, requests) = source.split_once("pub enum Request {").unwrap();
        let (requests, _) = requests.split_once("\n}").unwrap();
        assert!(requests.contains("wait_ms: u64"));
        for name in ENVELOPE.iter().chain(&["request"]) {
            assert!(!requests.contains(&format!(" {name}: ")), "'{name}' is a field of a request");
        }
        assert!(
            !requests.contains("skip_serializing"),
            "a field that is left out cannot be told from one that is not known"
        );
    }
}
