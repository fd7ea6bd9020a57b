//! Mutually authenticated connections between hosts: blocking, full duplex, fast enough for checkpoints.
//!
//! * [`identity`]: who this host is (certificates) and whom it trusts, or that it speaks plain text
//! * [`authority`]: makes a certificate authority, issues host certificates, revokes them
//! * [`connect()`], [`Listener`]: how a [`Link`] comes to be
//! * [`link`]: the connection itself, its two halves and its handle
//! * [`clock`]: the clock behind [`LinkHandle::last_received`], and when to use which
//!
//! ```text
//!   connecting host                                     accepting host
//!        |  TCP                                               |
//!        |------------------------------------------------->  |  Listener::accept
//!        |  TLS 1.3, both sides show a certificate of         |
//!        |  the same authority; the server's must name        |
//!        |  the host that the client expects                  |  Incoming::handshake
//!        |<------------------------------------------------>  |
//!        |  hello {version, host}                             |
//!        |------------------------------------------------->  |
//!        |                            hello {version, host}   |
//!        |<-------------------------------------------------  |
//!      Link                                                 Link
//! ```
//!
//! The connecting side's TLS handshake ends before its own certificate has been judged (RFC 8446, section 2), so only
//! the accepting side's hello tells that both sides agree: [`connect()`] returns after it. With
//! [`Security::PlainText`] the TLS step is left out and the hello is all there is.

pub mod authority;
pub mod clock;
pub mod connect;
mod crypto;
mod dates;
mod der;
pub mod error;
mod handshake;
mod hello;
pub mod identity;
pub mod link;
pub mod listener;
mod revocation;
mod socket;

pub use authority::{Authority, AuthorityError, Validity};
pub use connect::connect;
pub use crypto::Cipher;
pub use dates::UtcTime;
pub use error::{Result, TransportError};
pub use identity::refresh::{Notice, State};
pub use identity::{Identity, Security};
pub use link::{Link, LinkHandle, LinkReader, LinkWriter};
pub use listener::{Incoming, Listener, ListenerHandle};
pub use revocation::ListState;
