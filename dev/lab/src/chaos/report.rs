//! What came of a run. The field names are stable.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fault::Kind;
use super::plan::Subject;

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ChaosReport {
    pub seed: u64,
    /// The time that was asked for, seconds.
    pub seconds: u64,
    /// From the first fault of each VM to its last rest, summed up: without boots. Seconds.
    pub chaos_s: f64,
    /// All of it, seconds.
    pub total_s: f64,
    /// Bursts that were done.
    pub bursts: u64,
    /// Bursts of the script.
    pub bursts_planned: u64,
    /// How often each fault was done.
    pub faults: BTreeMap<Kind, u64>,
    /// VMs that were booted, of each kind.
    pub subjects: BTreeMap<String, u64>,
    /// Take-overs.
    pub failovers: u64,
    /// Times that a VM went on from its log.
    pub recoveries: u64,
    /// Times that a backup was bound.
    pub protected: u64,
    /// Writes that redis acknowledged, and transactions that PostgreSQL did.
    pub acked_writes: u64,
    pub acked_transactions: u64,
    /// Of these, as far as they were verified: lost, or carried out twice.
    pub acked_lost: u64,
    /// Writes and transactions whose VM was lost, legitimately, before they could be read back.
    pub acked_unverified: u64,
    /// The longest time without an answer to a client, milliseconds.
    pub longest_gap_ms: u64,
    /// Frames of hosts that had stood still and were no longer the speaker.
    pub late_frames: u64,
    /// VMs that were lost when nobody held their state any more.
    pub losses_legitimate: u64,
    /// VMs that were then started again from a disk: because a plain start was not refused, and by force where all had to be.
    pub restarts_plain: u64,
    pub restarts_forced: u64,
    /// Guests that did not get over the I/O errors of a disk on which they ran without a backup.
    pub guests_with_errors: u64,
    /// What must not be.
    pub violations: Vec<Violation>,
    /// Disks could be full and hang; and be slow. `false`: this machine cannot do it, and such faults were left out.
    pub disks: bool,
    pub slow_disks: bool,
    /// It was ended before its time.
    pub interrupted: bool,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    pub kind: ViolationKind,
    pub subject: Subject,
    /// After which burst.
    pub burst: u64,
    pub words: String,
    /// The script up to it, what was done, events, logs.
    pub kept: Option<PathBuf>,
}

/// See [`Violation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    /// The VM was lost though somebody held its state.
    VmLost,
    /// Something acknowledged is not there, or is there twice.
    DataLost,
    /// A client's connection broke.
    ConnectionBroken,
    /// Everything is mended, and the VM does not come to rest.
    NoRest,
    /// A host spoke for the VM that was no longer its speaker.
    TwoSpeakers,
    /// A keeper or the witness does not come up.
    NotMended,
    /// A VM that was lost legitimately cannot be started again from a disk that must have all of it.
    NotStarted,
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ViolationKind::VmLost => "the VM is lost, though somebody held its state",
            ViolationKind::DataLost => "something acknowledged is lost",
            ViolationKind::ConnectionBroken => "a client's connection broke",
            ViolationKind::NoRest => "the VM does not come to rest",
            ViolationKind::TwoSpeakers => "two hosts spoke for the VM",
            ViolationKind::NotMended => "a program does not come up again",
            ViolationKind::NotStarted => "the VM cannot be started again from a disk that has all of it",
        })
    }
}

impl ChaosReport {
    /// Whether nothing speaks against it, and something was shown at all.
    pub fn is_clean(&self) -> bool {
        self.failures().is_empty()
    }

    /// What speaks against it, in words.
    pub fn failures(&self) -> Vec<String> {
        let mut all: Vec<_> =
            self.violations.iter().map(|v| format!("after burst {}: {} ({})", v.burst, v.kind, v.words)).collect();
        if self.acked_writes + self.acked_transactions == 0 && !self.interrupted {
            all.push("nothing was acknowledged".into());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_run_that_showed_something_and_no_fault_is_clean() {
        let clean = ChaosReport { acked_writes: 1, ..ChaosReport::default() };
        assert!(clean.is_clean());
        assert!(!ChaosReport::default().is_clean());
        let violation = Violation {
            kind: ViolationKind::VmLost,
            subject: Subject::Redis,
            burst: 3,
            words: "a lives".into(),
            kept: None,
        };
        let bad = ChaosReport { violations: vec![violation], ..clean };
        assert_eq!(bad.failures(), ["after burst 3: the VM is lost, though somebody held its state (a lives)"]);
        let json = serde_json::to_value(&bad).unwrap();
        assert_eq!(serde_json::from_value::<ChaosReport>(json).unwrap(), bad);
    }
}
