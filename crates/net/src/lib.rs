//! What a VM says and hears: the network and byte channels of one VM in its keeper.
//!
//! ```text
//!            socketpair, u32 length + frame           write, one frame
//!   QEMU ───────────────────────────────▶ gate ──────────────────────▶ TAP ── bridge ── network
//!   QEMU ◀─────────────────────────────── queue ◀───────────────────── TAP
//!            one send for many frames                 read, one frame
//!
//!   QEMU ─── socketpair, bytes ──▶ gate ──▶ history, clients on a Unix socket
//!   QEMU ◀────────────────────────────────── clients on a Unix socket
//! ```
//!
//! Everything that leaves passes a [`gate::Gate`], which keeps invariant I1 (output commit): what the guest emitted in
//! an epoch leaves only after the backup has acknowledged that epoch.
//!
//! * [`gate`]: the output gate, a pure data structure
//! * [`port`]: one NIC's relay between QEMU's socket and its TAP
//! * [`channel`]: one console's or guest agent's relay between QEMU's socket and its clients
//! * `twin`: whether another station uses the guest's Ethernet address
//! * [`tap`]: TAP devices and the state of uplinks
//! * [`frame`]: QEMU's framing of Ethernet frames on a byte stream
//! * [`snoop`]: what a frame says about who has an address; [`vlan`]: its VLAN tags
//! * [`addresses`]: which addresses the guest has on a NIC
//! * [`announce`]: tells switches and peers the VM's new place
//! * [`urgency`]: which frames somebody waits for
//! * [`wake`]: how the checkpoint thread hears that output waits

pub mod addresses;
pub mod announce;
pub mod channel;
pub mod frame;
pub mod gate;
mod ifreq;
pub mod port;
pub mod snoop;
mod socket;
pub mod tap;
mod twin;
mod unread;
pub mod urgency;
pub mod vlan;
pub mod wake;

pub use channel::ByteChannel;
pub use gate::{Gate, Mode};
pub use port::NetPort;
pub use socket::socket_pair;
pub use tap::{Tap, uplink_running};
pub use urgency::Urgency;
pub use wake::Wake;
