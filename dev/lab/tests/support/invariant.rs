//! What must hold whenever the VM has come to rest.

use std::time::{Duration, Instant};

use ninefold_lab::observer::Late;
use ninefold_lab::processes::Process;
use ninefold_lab::programs::{KEEPER, QEMU};
use ninefold_model::event::EventKind;
use ninefold_model::status::{ProtectionState, Role};

use super::{Scenario, wait_until};

/// What a thawed host may at most still finish: frames that were committed before it froze.
const LATE_FRAMES: u64 = 64;
/// Writes that prove that the VM serves its client.
const WRITES: u64 = 50;

impl Scenario {
    /// Waits until the VM is protected again by the hosts that it should be, and checks everything that must then hold.
    pub fn settle(&mut self, mark: usize) -> Duration {
        let begun = Instant::now();
        let backup = self.backup.clone();
        self.expect(
            mark,
            &self.primary,
            "protected",
            |k| matches!(k, EventKind::Protected { backup: b, .. } if b.as_str() == backup),
        );
        let took = begun.elapsed();
        self.check_roles();
        self.expect_writes(WRITES);
        self.check_rest();
        took
    }

    /// What holds whether something had to be awaited or not.
    pub fn check_rest(&mut self) {
        assert_eq!(self.ledger().resets(), 0, "the client's connection broke");
        // A host that has just come back may still be looking for the witness; what the next fault does to it could not be
        // told then.
        for host in [&self.primary, &self.backup] {
            let keeper = self.lab.keeper(host).unwrap();
            wait_until("the witness to answer both hosts", || keeper.status().is_ok_and(|s| s.witness_reachable));
        }
        self.check_speakers();
        self.check_processes();
        let lost: Vec<_> = self.events.all().into_iter().filter(|e| matches!(e.kind, EventKind::Lost { .. })).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    /// One primary, one backup, bound to each other.
    pub fn check_roles(&self) {
        let primary = self.lab.keeper(&self.primary).unwrap().status().unwrap();
        let backup = self.lab.keeper(&self.backup).unwrap().status().unwrap();
        assert_eq!((primary.role, backup.role), (Role::Primary, Role::Backup), "{primary:?} {backup:?}");
        assert_eq!(primary.protection, Some(ProtectionState::Protected), "{primary:?}");
        assert_eq!(primary.peer.as_ref().map(|p| p.as_str()), Some(self.backup.as_str()));
        assert_eq!(backup.peer.as_ref().map(|p| p.as_str()), Some(self.primary.as_str()));
    }

    /// Each host has one keeper and one QEMU: nothing of an earlier role is left.
    pub fn check_processes(&self) {
        for host in ["a", "b"] {
            let processes = self.lab.processes(host).unwrap();
            let count = |all: &[Process], name| all.iter().filter(|p| p.program.starts_with(name)).count();
            wait_until("end of what is left of an earlier role", || {
                let all = processes.list().unwrap();
                (count(&all, KEEPER), count(&all, QEMU)) == (1, 1)
            });
        }
    }

    /// No two hosts have spoken for the VM in overlap, those frames aside that a thawed host had begun to release.
    pub fn check_speakers(&self) -> Vec<Late> {
        let report = self.observer.report();
        assert_eq!(report.missed, 0, "the observer has lost frames");
        let late = report.overlaps(&self.events.takeovers());
        let frames: u64 = late.iter().map(|l| l.frames).sum();
        assert!(frames <= LATE_FRAMES * self.thawed as u64, "two hosts spoke in overlap: {late:?}");
        if frames > 0 {
            eprintln!("    {frames} late frames of {} thawed hosts: {late:?}", self.thawed);
        }
        late
    }
}
