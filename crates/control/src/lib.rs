//! The control API: what a program may ask of a keeper over its Unix socket, and what it hears.
//!
//! ```text
//!   {"version":1,"id":7,"request":"start","force":false}        one JSON object a line
//!   {"version":1,"id":7,"answer":"done"}                        one line back
//!   {"version":1,"id":7,"error":{"code":"not_running_here","details":{"host":"b"}}}
//! ```
//!
//! What takes longer than an answer is an operation: it has an id, says how far it is and how it ended.
//!
//! Any client may use this crate; it needs nothing of a keeper's insides.
//!
//! * [`request`]: what one may ask · [`answer`]: what comes back · [`refusal`]: why something is not done, as a code and data
//! * [`operation`]: what takes longer than an answer
//! * [`wire`]: lines, versions, fields that nobody knows
//! * [`client`]: a blocking client
//!
//! Status and events are nouns of [`ninefold_model`].

pub mod answer;
pub mod client;
pub mod operation;
mod operation_id;
pub mod refusal;
pub mod request;
pub mod wire;

pub use answer::{Answer, Gap, GapCause, LogReport, Reply};
pub use client::{Client, ClientError, EventsPage};
pub use operation::{Operation, OperationId, OperationKind};
pub use refusal::{Mixture, Refusal, Work};
pub use request::{FreezeChoice, Request};
