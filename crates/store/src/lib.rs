//! The witness: a durable, linearizable register per VM.
//!
//! * [`witness`]: the trait that keepers use
//! * [`client`]: the client of the witness server
//! * [`server`]: the server; its process is `ninefold-witness`
//! * [`register`]: the rules, pure
//! * [`registers`]: all registers on disk
//! * [`old`]: records of the version before
//! * [`wire`]: the messages between client and server (docs/witness.md)

pub mod client;
pub mod old;
pub mod register;
pub mod registers;
pub mod server;
pub mod wire;
pub mod witness;

pub use client::{Timeouts, WitnessClient};
pub use registers::Registers;
pub use server::{Limits, Server, ServerHandle};
pub use witness::{Swap, Witness, WitnessError};
