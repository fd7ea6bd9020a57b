//! Keeps one VM on one host: machine, replica and net put together.

pub mod api;
pub mod config;
