//! Network Block Device: how QEMU reaches a protected disk, and how the keeper reaches an image that QEMU's block layer
//! understands and it does not.
//!
//! Source: the NBD protocol, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Spoken here: fixed
//! newstyle negotiation without TLS, `EXPORT_NAME`, `GO`, `INFO`, `LIST` and `ABORT`, simple replies.
//!
//! ```text
//!   client                                server
//!     |  <------------- greeting, flags --- |
//!     |  --- client flags ----------------> |
//!     |  --- option (INFO, LIST, GO…) ----> |   haggling: Negotiation, pure
//!     |  <------------- option replies ---- |
//!     |  --- request (+ data) ------------> |   transmission: Request and SimpleReply, pure
//!     |  <----- simple reply (+ data) ----- |
//!     |  --- DISC ------------------------> |
//! ```
//!
//! * [`proto`]: the bytes. * [`Negotiation`]: the server's side of the haggling. * [`Server`]: an export on a Unix socket.
//! * [`Client`]: an [`crate::Image`] that another server holds.

mod client;
mod negotiation;
pub mod proto;
mod server;

pub use client::Client;
pub use negotiation::{Access, Export, Negotiation, Step};
pub use server::{Handler, Server};
