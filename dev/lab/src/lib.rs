//! Hosts in network namespaces on one machine: for the demo, the integration tests, fault injection and benchmarks.
//!
//! A lab has hosts `a` and `b` for VMs, a witness's host `w`, a `client`, a public and a replication network. It is
//! real as far as one machine allows: each host has its own network stack, processes that are frozen and killed at
//! once, and cables that can be cut. Whatever a lab makes goes away with it, also when its owner is killed.
//!
//! * [`lab`]: up, down, attach; processes of a host. [`config`]: what to make. [`topology`]: names and addresses
//! * [`faults`]: kill, freeze, cut, and their opposites. [`power`]: the loss of power. [`disks`]: which forget what was not
//!   synced then
//! * [`guest`]: what runs in the VM. [`guest_clock`]: what time it is there
//! * [`boot`]: the witness, keepers and the VM. [`watch`]: their events, as they come
//! * [`observer`]: who spoke for the VM on the public network
//! * [`ledger`]: clients that check every acknowledged write or transaction
//! * [`pinger`]: round trips
//! * [`chaos`]: random faults, several at once, and a judge
//! * [mod@bench]: protected against unprotected, measured
//! * [`status`]: how a lab is at the moment
//! * [`demo`]: the main job from beginning to end, with its report
//! * [`netns`], [`link`], [`processes`]: namespaces, interfaces and control groups. `view`: hosts that do not see each other's files
//! * [`record`]: a lab's files. `teardown`: how it goes away. [`traces`]: what is left of it

pub mod bench;
pub mod boot;
pub mod chaos;
pub mod config;
pub mod demo;
pub mod disks;
pub mod error;
pub mod faults;
pub mod guest;
pub mod guest_clock;
pub mod lab;
pub mod ledger;
pub mod link;
pub mod netns;
pub mod observer;
pub mod pinger;
pub mod power;
pub mod processes;
pub mod programs;
pub mod record;
pub mod status;
mod teardown;
pub mod topology;
pub mod traces;
mod view;
mod vm_dir;
pub mod watch;

pub use boot::{BootedVm, VmOptions};
pub use config::{LabConfig, LabSecurity};
pub use error::LabError;
pub use faults::Cut;
pub use guest::Guest;
pub use lab::Lab;
pub use ledger::{Ledger, LedgerOptions, LedgerReport, SqlLedger};
pub use observer::{Observer, Report, Takeover};
pub use pinger::Pinger;
pub use status::LabStatus;
pub use topology::Network;
pub use watch::EventWatch;
