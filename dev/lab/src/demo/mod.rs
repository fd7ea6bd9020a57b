//! The main job, shown from beginning to end: a VM outlives its host, time and again, and its client notices nothing
//! but a short pause.
//!
//! ```text
//!  lab up ─► boot on a ─► protected by b ─► client writes, its connections stay ──┐
//!   ┌─────────────────────────────────────────────────────────────────────────────┘
//!   └─► fault at the primary ─► take-over ─► answers again ─► repair ─► protected again ─► next fault …
//!                                                                            └─► every write checked ─► lab down
//! ```
//!
//! Twice: [`redis`] in memory, then a [`database`] on a replicated volume, which at the end loses its power with both of
//! its hosts.
//!
//! Nothing is printed here: an [`Audience`] hears of each [`Step`], and a [`DemoReport`] comes back.
//!
//! * [`boot`]: booting a lab's VM with word of how far it is (also for `ninefold-lab up`)
//! * `act`: what both acts share · [`redis`], [`database`]: the acts · `power`: the loss of power
//! * [`fault`]: what is done to the primary
//! * [`measure`]: checkpoints of keepers that come and go
//! * [`report`]: what came of it
//! * [mod@run]: both, one after the other

mod act;
pub mod boot;
pub mod database;
pub mod fault;
pub mod measure;
mod power;
pub mod redis;
pub mod report;
pub mod run;

pub use boot::{BootPhase, BootProgress};
pub use fault::Fault;
pub use report::{ActReport, DatabaseReport, DemoReport, PauseReport};
pub use run::{DemoOptions, run};

use std::time::Duration;

use ninefold_model::event::FailoverPhases;
use ninefold_model::status::VmStatus;

use crate::guest::Guest;

/// The two halves of a demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Redis,
    Database,
}

/// What happens in a demo, as it happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// An act begins.
    Act(Act),
    /// The hosts and networks are there. `disks`: and disks that forget what was not synced.
    LabUp { lab: String, tls: bool, disks: bool, took: Duration },
    /// Said many times while the VM boots and is copied.
    Booting(BootProgress),
    /// The VM runs and a backup may take over. `sync` is how long the first copy took.
    Protected { status: Box<VmStatus>, guest: Guest, boot: Duration, sync: Duration },
    /// The client writes.
    Writing { acked: u64 },
    /// About to be done to the primary.
    Fault { number: u32, of: u32, fault: Fault, primary: String, backup: String },
    /// The backup has taken over and the client has answers again.
    TookOver { by: String, phases: FailoverPhases, gap: Duration, acked: u64 },
    /// The lost host or process comes back.
    Restarted { host: String, fault: Fault },
    /// The VM has a backup again. `since` is counted from the fault, or from the return of the power.
    Reprotected { primary: String, backup: String, since: Duration, sync: Duration, volume_bytes: u64 },
    /// Both hosts and the witness are without power.
    PowerLost { acked: u64, under_way: u64, unsynced_dropped: bool },
    /// The power is back; keepers and witness run.
    PowerOn { took: Duration },
    /// The first transaction since then has been acknowledged. `by_itself`: nobody had to start the VM.
    Recovered { host: String, by_itself: bool, recovery: Duration },
    /// Every write has been looked up.
    Verified { act: Act, acked: u64, lost: u64, resets: u64 },
    /// Everything is gone again.
    LabDown { took: Duration },
}

/// Who watches a demo.
pub trait Audience {
    /// Called from the demo's own thread, which waits until it returns.
    fn hear(&mut self, step: Step);
}

impl<F: FnMut(Step)> Audience for F {
    fn hear(&mut self, step: Step) {
        self(step);
    }
}
