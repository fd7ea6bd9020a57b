//! What a keeper decides for its VM on its host: a pure function of (state, event, time) to effects.
//!
//! ```text
//!   control socket ─┐                                  ┌─► the witness's client
//!   witness ────────┤          time                    ├─► VM's thread (QEMU, checkpoints)
//!   VM's thread ────┼─► Event ─┴─► Core ─► Effect ─────┼─► session (sender, acknowledgements)
//!   session ────────┤               │  ▲               ├─► guest I/O (hold, release, mute), volumes, log
//!   standby ────────┘               ▼  │ Action        └─► connector, journal, metrics
//!                                 Protocol
//! ```
//!
//! [`Core::step`] takes in one event and says what is to be done. It reads no clock, asks nobody, waits for nobody and owns no thread,
//! socket or file: it keeps facts. Whoever drives it, a keeper or a simulator, turns what threads say into events, carries the effects
//! out in their order ([`effect`] says why that matters), and keeps what is no data under the numbers and names that events and effects
//! have for it.
//!
//! * [`event`]: what happens · [`effect`]: what is to be done · [`time`]: two clocks, as values · [`settings`]
//! * `core`, `rules`: the state, events, what the protocol says · `clock`: ticks · `stall`: whether this host has stood still · `requests`, `refusal`, `operations` · `retire`, `naming`: a VM that is no more, or is called otherwise
//! * `primary`, `replica`, `former_backups`: the VM, its sessions, those that may come back · `backup`: the take-over
//! * `prepare`, `log`, `snapshot`, `freeze`: what comes before a proposal; what is on disk
//! * `health` and [`policy`]: the guest's watchdog, images on trial · `standing`: paused, suspended, off
//! * `volumes` and [`disk_watch`]: disks that fail or are slow · [`announce`]

#![forbid(unsafe_code)]

pub mod announce;
mod backup;
mod clock;
mod core;
pub mod disk_watch;
pub mod effect;
pub mod event;
mod former_backups;
mod freeze;
mod guest_state;
mod health;
mod log;
mod naming;
mod operations;
pub mod policy;
mod prepare;
mod primary;
mod refusal;
mod replica;
mod requests;
mod resting;
mod retire;
mod rules;
pub mod settings;
mod snapshot;
mod stall;
pub mod time;
mod volumes;

pub use self::core::{Core, TICK};
pub use self::event::LogFailure;
pub use self::former_backups::KEEP;
#[doc(hidden)]
pub use self::rules::Rules;
pub use self::stall::still_ours;
