//! Sees what leaves the hosts and what each of them holds, and says what must never be.
//!
//! * **I1** what leaves is held by every backup that the witness's record binds;
//! * **I2, B4** a host goes on from what has all that ever left, with the memory and the volumes as the guest left them;
//! * **volumes** nobody boots from volumes that are of no one moment; who starts the VM without force finds on them all that clients were told, and
//!   where an acknowledgement means the disk who starts it on a bound backup does, forced or not, and of what a host has said while it was alone who starts it there;
//! * **I3** only the host that the witness names says anything, but for what was committed and leaves at most a moment after it was replaced;
//!   one that stood still and was replaced meanwhile says nothing;
//! * **I4** a VM that calls itself protected has a backup that lives;
//! * **L** a VM that is whole on a living host is not lost, nor booted anew; one that is non-volatile, and whose logs have not failed, is in the log
//!   of a host that may go on from it under the witness's record, whatever happens to processes and power;
//! * and when all faults have passed it runs on one host, and is protected again.

use std::collections::{BTreeMap, BTreeSet};

use ninefold_model::status::{ProtectionState, Role};
use ninefold_model::{Epoch, Term};

use crate::guest::Node;

/// How a run has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    Harm(Harm),
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Harm {
    /// `I1` and so on.
    pub rule: &'static str,
    pub at_us: u64,
    pub words: String,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Judge {
    pub verdict: Option<Verdict>,
    /// The guest has begun, with this step.
    pub(crate) life: Option<Node>,
    /// The latest step of which the world has heard.
    pub(crate) spoken: Node,
    /// The guest's state in each session's checkpoints.
    pub(crate) taken: BTreeMap<(Term, Epoch), Node>,
    /// The newest checkpoint that each backup has acknowledged.
    pub(crate) acked: BTreeMap<(usize, Term), Node>,
    /// Why nobody holds the VM any more.
    pub(crate) lost: Option<String>,
    pub(crate) stopped: bool,
    /// What clients were last told is on each block of the volumes.
    pub(crate) promised: Vec<Node>,
    /// The same of what this host was the last to say while the witness named it alone.
    pub(crate) promised_alone: Option<(usize, Vec<Node>)>,
    /// The last start that somebody asked for: whether the witness names that host as a backup, and whether it was forced.
    pub(crate) start: Option<(bool, bool)>,
    /// Where somebody has started it by force, whatever the witness says.
    pub(crate) forced: BTreeSet<usize>,
    /// A disk has failed, been full or hung: what is noted there may not have been.
    pub(crate) disk_failed: bool,
    /// This host runs the VM on a disk that fails, since then.
    pub(crate) on_failing: Option<(usize, u64)>,
    /// The VM is non-volatile: output waits for a log, and a loss of power ends nothing.
    pub(crate) durable: bool,
    pub(crate) changed: u64,
    pub(crate) roles: BTreeMap<usize, (Role, Option<ProtectionState>, Term)>,
    pub(crate) unbacked: BTreeMap<usize, u64>,
    pub(crate) healed: Option<u64>,
    pub(crate) good: Option<u64>,
    pub(crate) asked: u64,
    pub(crate) tries: u32,
    pub protect_again: bool,
    /// Take-overs, and lives: for the figures.
    pub takeovers: u32,
    pub lives: u32,
}

impl Judge {
    pub(crate) fn harm(&mut self, at_us: u64, rule: &'static str, words: String) {
        if self.verdict.is_none() {
            self.verdict = Some(Verdict::Harm(Harm { rule, at_us, words }));
        }
    }

    pub(crate) fn vm_stopped(&mut self) {
        (self.stopped, self.durable) = (true, false);
    }

    /// A keeper's process is gone: it says nothing any more.
    pub(crate) fn ended(&mut self, host: usize) {
        self.roles.remove(&host);
    }

    pub(crate) fn takes(&mut self, session: Term, epoch: Epoch, at: Node) {
        self.taken.insert((session, epoch), at);
    }
}
