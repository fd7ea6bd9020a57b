//! What people and programs see of a keeper: the control socket, events, operations, metrics.

pub mod http;
pub(crate) mod journal;
pub(crate) mod metrics;
pub(crate) mod operations;
pub(crate) mod preflight;
pub(crate) mod server;
