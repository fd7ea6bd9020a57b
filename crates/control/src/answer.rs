//! What a keeper answers.

use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::{Event, Position};
use ninefold_model::status::VmStatus;
use ninefold_model::{Epoch, HostName, Incarnation, Term};
use serde::{Deserialize, Serialize};

use crate::operation::Operation;
use crate::refusal::Refusal;

/// What comes back: an answer, or why there is none.
pub type Reply = Result<Answer, Refusal>;

/// An answer to a request that is carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Answer {
    Done,
    Status {
        status: Box<VmStatus>,
    },
    Events {
        /// What is missing between the position that was named and the first of these, if anything may be.
        #[serde(default)]
        gap: Option<Gap>,
        events: Vec<Event>,
        /// From where on to ask next.
        next: Position,
    },
    /// What was asked for is being done.
    Begun {
        operation: Box<Operation>,
    },
    Operation {
        operation: Box<Operation>,
    },
    Operations {
        operations: Vec<Operation>,
    },
    Log {
        report: Box<LogReport>,
    },
    Checkpoints {
        checkpoints: Vec<CheckpointRecord>,
    },
}

/// Events may be missing between a position and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Gap {
    /// The position that was named.
    pub after: Position,
    pub cause: GapCause,
    /// The life of the keeper that answers.
    pub incarnation: Incarnation,
}

/// Why events may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum GapCause {
    /// The keeper was started anew. What its former life said after the position is lost with it.
    Restart,
    /// There were more events than are kept.
    Forgotten,
    /// One that a later keeper has told, and of which nothing is known here.
    #[serde(other)]
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown,
}

/// What a log of checkpoints on disk would be gone back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogReport {
    pub host: HostName,
    /// The host that ran the VM then.
    pub primary: HostName,
    /// The newest term that the last whole checkpoint is known to be of, and its epoch.
    pub term: Term,
    pub epoch: Epoch,
    /// When that was taken, by the clock of the host that wrote the log, milliseconds since 1970; 0: not known.
    pub time_ms: u64,
    /// What is wrong with what comes after it.
    pub damage: Option<String>,
    /// Checkpoints after it that were durable in this log, as far as it can be read.
    pub lost_checkpoints: u64,
    /// From it to the last moment of which the log knows, milliseconds. What the VM did after that is not counted.
    pub lost_ms: u64,
    /// Why another state is, or may be, newer; `None`: all that anybody was told up to the log's end is in it.
    pub newer: Option<String>,
    /// Why the VM cannot go on from it, not even with `force`.
    pub refused: Option<String>,
}
