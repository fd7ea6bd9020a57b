//! The witness: a durable, linearizable register for each VM. Whoever asks it uses the crate `ninefold-witness-client`, which has the
//! messages, too.
//!
//! * [`register`]: the rules, pure
//! * [`registers`]: all registers on disk · [`tombstones`]: what is left of VMs that were retired
//! * [`server`]: the server; its process is `ninefold-witness`

pub mod register;
pub mod registers;
pub mod server;
pub mod tombstones;

pub use registers::Registers;
pub use server::{Limits, Server, ServerHandle};
