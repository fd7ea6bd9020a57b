//! A QEMU into which a checkpoint is loaded: from a primary's stream, a log or a snapshot.

use std::sync::Arc;
use std::time::Instant;

use ninefold_machine::{Machine, Ports, Tracker};
use ninefold_model::Epoch;
use ninefold_model::health::Health;
use ninefold_model::spec::{ClockGap, VmSpec};
use ninefold_replica::continuation::History;

/// A standby QEMU with the last checkpoint loaded, waiting for `cont`.
#[derive(Debug)]
pub struct Loaded {
    pub machine: Machine,
    pub ports: Ports,
    /// The VM as it was booted, with the files and devices of this host.
    pub spec: VmSpec,
    pub epoch: Epoch,
    /// The guest's health as of the checkpoint.
    pub health: Health,
    /// From the end of the stream until the devices were loaded.
    pub load_us: u64,
    /// Whatever is written since the checkpoint is tracked: this host's log ends with it, or other backups hold it, too.
    pub tracker: Option<Tracker>,
    /// Of the checkpoints that other backups hold, too.
    pub history: Option<History>,
    /// This host's log ends with the checkpoint, and whatever is written since is tracked.
    pub logged: bool,
    /// When it stood still, by this host's clock and at the latest, and what becomes of the time since. Nothing of what comes from
    /// a disk: hours may lie between.
    pub stopped: Option<(Instant, ClockGap)>,
}

/// Whether a snapshot that is being taken, or a snapshot or log that is being loaded, is wanted still: it is until this is dropped.
#[derive(Debug)]
pub struct Wanted(#[expect(dead_code, reason = "it counts as long as it is there")] Arc<()>);

/// Both ends: what is dropped when it is wanted no more, and who asks.
pub fn wanted() -> (Wanted, impl Fn() -> bool) {
    let ours = Arc::new(());
    let theirs = Arc::downgrade(&ours);
    (Wanted(ours), move || theirs.strong_count() > 0)
}
