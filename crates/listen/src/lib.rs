//! Listening sockets that no client can take away from the others, whatever it does: connects and says nothing, sends a
//! byte a minute, does not read its answers, connects faster than it is closed.
//!
//! ```text
//!   kernel's queue ──▶ Acceptor ──▶ Register: is there a place? ──▶ Guest, served by a thread of its own
//!                        │                │ full: whose place is it to be?
//!        no descriptors: │                ├─▶ that of an idle one is taken: its connection is shut
//!        closed at once  ▼                └─▶ nobody's: the newcomer is turned away
//! ```
//!
//! * [`places`]: who may come in when a port is full, a pure data structure
//! * [`register`]: the connections that are there, and the places they hold
//! * [`acceptor`]: a listening socket that survives the lack of descriptors
//! * [`within`]: reading and writing before a deadline, however slowly the bytes come
//! * [`descriptors`]: how many descriptors this process may have, and one that is kept for bad times

pub mod acceptor;
pub mod descriptors;
pub mod places;
pub mod register;
pub mod within;

pub use acceptor::{Acceptor, Guest, Listens, Origin, Tried};
pub use descriptors::Spare;
pub use places::{Acquaintance, Bounds, Full};
pub use register::{Connection, Place, Register};
pub use within::Within;
