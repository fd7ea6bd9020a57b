//! What takes longer than an answer: it has an id, says how far it is and how it ended, and some of it can be cancelled.

use ninefold_model::event::EventKind;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use crate::operation_id::{InvalidOperationId, OperationId, OperationKind};
use crate::refusal::Refusal;

/// Longest token, bytes.
pub const MAX_TOKEN: usize = 64;

/// An operation as it is, or as it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    /// What the client that has begun it has called it.
    #[serde(default)]
    pub token: Option<String>,
    #[serde(flatten)]
    pub state: State,
}

impl Operation {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        !matches!(self.state, State::Running { .. })
    }
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum State {
    Running {
        /// Null while it is not known.
        #[serde(default, deserialize_with = "if_known")]
        progress: Option<Progress>,
    },
    /// With the event that tells most of it, in the form that it has among events.
    Done {
        #[serde(default)]
        outcome: Option<Box<EventKind>>,
    },
    /// It came to nothing, or was cancelled: with the code `cancelled`.
    Failed {
        #[serde(deserialize_with = "or_a_failure")]
        error: Refusal,
    },
}

/// Of a later keeper's progress, in a unit that is not known here, nothing is known.
fn if_known<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Progress>, D::Error> {
    let found = Option::<serde_json::Value>::deserialize(from)?;
    Ok(found.and_then(|progress| serde_json::from_value(progress).ok()))
}

/// A code that is not known here is of a later keeper: a failure, of which that is all that is known.
fn or_a_failure<'de, D: Deserializer<'de>>(from: D) -> Result<Refusal, D::Error> {
    let found = serde_json::Value::deserialize(from)?;
    let code = found.get("code").and_then(|code| code.as_str()).ok_or_else(|| D::Error::missing_field("code"))?;
    let unknown = || Refusal::Failed { reason: format!("a code that is not known here: {code} {}", found["details"]) };
    Ok(serde_json::from_value(found.clone()).unwrap_or_else(|_| unknown()))
}

/// How much is done. `total` may grow: a guest that runs writes to what is being copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    pub unit: Unit,
}

/// What progress is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Unit {
    Bytes,
    Milliseconds,
}

#[cfg(test)]
mod tests {
    use ninefold_model::Incarnation;

    use super::*;

    #[test]
    fn an_operation_is_flat() {
        let operation = Operation {
            id: OperationId { incarnation: Incarnation(7), number: 1 },
            kind: OperationKind::Snapshot,
            token: None,
            state: State::Running { progress: Some(Progress { done: 1, total: 2, unit: Unit::Bytes }) },
        };
        let text = serde_json::to_string(&operation).unwrap();
        assert_eq!(
            text,
            r#"{"id":"7-1","kind":"snapshot","token":null,"state":"running","progress":{"done":1,"total":2,"unit":"bytes"}}"#
        );
        assert_eq!(serde_json::from_str::<Operation>(&text).unwrap(), operation);
        let failed = Operation { state: State::Failed { error: Refusal::RunsHere }, ..operation };
        let text = serde_json::to_string(&failed).unwrap();
        assert!(text.ends_with(r#""state":"failed","error":{"code":"runs_here"}}"#), "{text}");
        assert_eq!(serde_json::from_str::<Operation>(&text).unwrap(), failed);
        assert!(failed.has_ended());
    }

    /// What a later keeper says of an operation makes no other one unreadable.
    #[test]
    fn what_is_not_known_of_an_operation_is_no_fault() {
        let read = |text: &str| serde_json::from_str::<Operation>(text);
        let kind = read(r#"{"id":"7-1","kind":"sing","state":"running"}"#).unwrap();
        assert_eq!((kind.kind, kind.has_ended()), (OperationKind::Unknown, false));
        let unit = r#"{"id":"7-1","kind":"dump","state":"running","progress":{"done":1,"total":2,"unit":"songs"}}"#;
        assert_eq!(read(unit).unwrap().state, State::Running { progress: None });
        let code = r#"{"id":"7-1","kind":"dump","state":"failed","error":{"code":"on_fire","details":{"floor":9}}}"#;
        let State::Failed { error: Refusal::Failed { reason } } = read(code).unwrap().state else { panic!() };
        assert!(reason.contains("on_fire") && reason.contains('9'), "{reason}");
        let event = r#"{"id":"7-1","kind":"dump","state":"done","outcome":{"event":"sang","song":"x"}}"#;
        assert_eq!(read(event).unwrap().state, State::Done { outcome: Some(Box::new(EventKind::Unknown)) });
        assert!(read(r#"{"id":"7-1","kind":"dump","state":"failed","error":{}}"#).is_err());
    }
}
