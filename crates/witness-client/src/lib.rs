//! How a keeper asks the witness. The witness itself, which keeps the records on disk, is the crate `ninefold-witness`; whoever only asks
//! links with this one and with no database.
//!
//! * [`witness`]: the trait that keepers use, whichever keeps the records
//! * [`client`]: the client of the witness server
//! * [`wire`]: the messages between client and server (docs/witness.md)

pub mod client;
pub mod wire;
pub mod witness;

pub use client::{Timeouts, WitnessClient};
pub use witness::{Retirement, Swap, Witness, WitnessError};
