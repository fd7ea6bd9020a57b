//! The main job, shown from beginning to end: a VM outlives its host, time and again, and its client notices nothing
//! but a short pause.
//!
//! ```text
//!  lab up ─► boot on a ─► protected by b ─► client writes on one TCP connection ─┐
//!   ┌────────────────────────────────────────────────────────────────────────────┘
//!   └─► fault at the primary ─► take-over ─► answers again ─► repair ─► protected again ─► next fault …
//!                                                                            └─► every write checked ─► lab down
//! ```
//!
//! Nothing is printed here: an [`Audience`] hears of each [`Step`], and a [`DemoReport`] comes back.
//!
//! * [`boot`]: booting a lab's VM with word of how far it is (also for `ninefold lab up`)
//! * [`fault`]: what is done to the primary
//! * [`measure`]: checkpoints of keepers that come and go
//! * [`report`]: what came of it
//! * [`run`]: the sequence itself

pub mod boot;
pub mod fault;
pub mod measure;
pub mod report;
pub mod run;

pub use boot::{BootPhase, BootProgress};
pub use fault::Fault;
pub use report::{DemoReport, PauseReport};
pub use run::{DemoOptions, run};

use std::time::Duration;

use ninefold_model::event::FailoverPhases;
use ninefold_model::status::VmStatus;

/// What happens in a demo, as it happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// The hosts and networks are there.
    LabUp { lab: String, tls: bool, took: Duration },
    /// Said many times while the VM boots and is copied.
    Booting(BootProgress),
    /// The VM runs and a backup may take over. `sync` is how long the first copy took.
    Protected { status: Box<VmStatus>, boot: Duration, sync: Duration },
    /// The client writes.
    Writing { acked: u64 },
    /// About to be done to the primary.
    Fault { number: u32, of: u32, fault: Fault, primary: String, backup: String },
    /// The backup has taken over and the client has answers again.
    TookOver { number: u32, by: String, phases: FailoverPhases, gap: Duration, acked: u64 },
    /// The lost host or process comes back.
    Restarted { number: u32, host: String, fault: Fault },
    /// The VM has a backup again.
    Reprotected { number: u32, primary: String, backup: String, since_fault: Duration, sync: Duration },
    /// Every write has been looked up.
    Verified { acked: u64, lost: u64, resets: u64 },
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
