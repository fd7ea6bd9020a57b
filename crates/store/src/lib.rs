//! The witness: a durable, linearizable register per VM.
//!
//! * [`witness`]: the trait that keepers use
//! * [`client`]: the client of the witness server

pub mod client;
pub mod witness;

pub use client::{Timeouts, WitnessClient};
pub use witness::{Swap, Witness, WitnessError};
