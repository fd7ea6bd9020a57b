//! What happens to a VM: each action disturbs, awaits the answer that the design promises, and repairs.

use std::time::Instant;

use ninefold_control::Request;
use ninefold_lab::{Cut, Network};
use ninefold_model::event::EventKind;
use ninefold_model::status::{ProtectionState, Role};

use super::{Scenario, wait_until};

/// Writes that show that the VM goes on in the middle of an action.
const WRITES: u64 = 100;

/// See the [module](self). "Primary" and "backup" are those at the time of the action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    KillQemu,
    KillKeeper,
    KillHost,
    /// The primary's host freezes, is replaced, and thaws.
    FreezePrimary,
    /// The replication link of the primary: to the backup and to the witness.
    CutReplicationOfPrimary(Cut),
    CutReplicationOfBackup(Cut),
    /// Without its uplink, the primary hands the VM over.
    CutPublicOfPrimary,
    CutPublicOfBackup,
    CutAllOfPrimary(Cut),
    KillBackupQemu,
    KillBackupKeeper,
    KillBackupHost,
    FreezeBackup,
    /// The witness is away, and nothing else happens.
    WitnessAway(Away),
    /// The primary dies while the witness is away.
    WitnessAwayAndPrimaryDies(Away),
    /// The backup dies while the witness is away.
    WitnessAwayAndBackupDies(Away),
    /// The witness is killed and started from its disk.
    WitnessRestarts,
    Switchover,
    /// A switchover to a host that has just frozen: the VM goes on where it was.
    SwitchoverToFrozen,
    /// SIGTERM for the primary's keeper.
    TerminateKeeper,
    /// Protection is switched off and on.
    UnprotectAndProtect,
}

/// How the witness goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    Killed,
    Frozen,
    CutOff,
}

impl Action {
    /// One of each.
    pub const ALL: [Action; 30] = [
        Action::KillQemu,
        Action::KillKeeper,
        Action::KillHost,
        Action::FreezePrimary,
        Action::CutReplicationOfPrimary(Cut::Carrier),
        Action::CutReplicationOfPrimary(Cut::Blackhole),
        Action::CutReplicationOfBackup(Cut::Carrier),
        Action::CutReplicationOfBackup(Cut::Blackhole),
        Action::CutPublicOfPrimary,
        Action::CutPublicOfBackup,
        Action::CutAllOfPrimary(Cut::Carrier),
        Action::CutAllOfPrimary(Cut::Blackhole),
        Action::KillBackupQemu,
        Action::KillBackupKeeper,
        Action::KillBackupHost,
        Action::FreezeBackup,
        Action::WitnessAway(Away::Killed),
        Action::WitnessAway(Away::Frozen),
        Action::WitnessAway(Away::CutOff),
        Action::WitnessAwayAndPrimaryDies(Away::Killed),
        Action::WitnessAwayAndPrimaryDies(Away::Frozen),
        Action::WitnessAwayAndPrimaryDies(Away::CutOff),
        Action::WitnessAwayAndBackupDies(Away::Killed),
        Action::WitnessAwayAndBackupDies(Away::Frozen),
        Action::WitnessAwayAndBackupDies(Away::CutOff),
        Action::WitnessRestarts,
        Action::Switchover,
        Action::SwitchoverToFrozen,
        Action::TerminateKeeper,
        Action::UnprotectAndProtect,
    ];
}

fn took_over(kind: &EventKind) -> bool {
    matches!(kind, EventKind::TookOver { .. })
}

fn unprotected(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Unprotected { .. })
}

fn stood_down(kind: &EventKind) -> bool {
    matches!(kind, EventKind::StoodDown { .. })
}

impl Scenario {
    /// Does it, and checks that the VM has come to rest as it should.
    pub fn act(&mut self, action: Action) {
        let mark = self.events.mark();
        let begun = Instant::now();
        eprintln!("  {action:?}: {} → {}", self.primary, self.backup);
        let settled = match action {
            Action::KillQemu => self.replaced(mark, |s| s.lab.kill_qemu(&s.primary).unwrap(), |_, _| ()),
            Action::KillKeeper => self.replaced(
                mark,
                |s| s.lab.kill_keeper(&s.primary).unwrap(),
                |s, old| s.lab.start_keeper(old).unwrap(),
            ),
            Action::KillHost => {
                self.replaced(mark, |s| s.lab.kill_host(&s.primary).unwrap(), |s, old| s.lab.restart_host(old).unwrap())
            }
            Action::FreezePrimary => self.freeze_primary(mark),
            Action::CutReplicationOfPrimary(how) => self.isolate_primary(mark, &[Network::Replication], how),
            Action::CutAllOfPrimary(how) => self.isolate_primary(mark, &Network::ALL, how),
            Action::CutReplicationOfBackup(how) => self.lose_backup(
                mark,
                |s| s.lab.cut(&s.backup, Network::Replication, how).unwrap(),
                |s| s.lab.heal(&s.backup, Network::Replication).unwrap(),
            ),
            Action::KillBackupQemu => {
                self.lose_backup(mark, |s| s.lab.kill_qemu(&s.backup).unwrap(), |_| ());
                true
            }
            Action::KillBackupKeeper => self.lose_backup(
                mark,
                |s| s.lab.kill_keeper(&s.backup).unwrap(),
                |s| s.lab.start_keeper(&s.backup).unwrap(),
            ),
            Action::KillBackupHost => self.lose_backup(
                mark,
                |s| s.lab.kill_host(&s.backup).unwrap(),
                |s| s.lab.restart_host(&s.backup).unwrap(),
            ),
            Action::FreezeBackup => {
                self.lose_backup(mark, |s| s.lab.freeze(&s.backup).unwrap(), |s| s.lab.thaw(&s.backup).unwrap())
            }
            Action::CutPublicOfPrimary => self.cut_public_of_primary(mark),
            Action::CutPublicOfBackup => self.cut_public_of_backup(mark),
            Action::WitnessAway(how) => self.witness_away(mark, how),
            Action::WitnessAwayAndPrimaryDies(how) => self.witness_away_and_primary_dies(mark, how),
            Action::WitnessAwayAndBackupDies(how) => self.witness_away_and_backup_dies(mark, how),
            Action::WitnessRestarts => {
                self.lab.kill_witness().unwrap();
                self.lab.start_witness().unwrap();
                self.unchanged()
            }
            Action::Switchover => self.replaced(
                mark,
                |s| {
                    s.lab.ask(&s.primary, &Request::Switchover).unwrap();
                    s.expect(mark, &s.primary, "switchover", |k| matches!(k, EventKind::SwitchoverStarted { .. }));
                },
                |_, _| (),
            ),
            Action::SwitchoverToFrozen => self.lose_backup(
                mark,
                |s| {
                    s.lab.freeze(&s.backup).unwrap();
                    s.lab.ask(&s.primary, &Request::Switchover).unwrap();
                    s.expect(mark, &s.primary, "switchover", |k| matches!(k, EventKind::SwitchoverStarted { .. }));
                },
                |s| s.lab.thaw(&s.backup).unwrap(),
            ),
            Action::TerminateKeeper => self.replaced(
                mark,
                |s| s.lab.stop_keeper(&s.primary).unwrap(),
                |s, old| s.lab.start_keeper(old).unwrap(),
            ),
            Action::UnprotectAndProtect => self.lose_backup(
                mark,
                |s| s.lab.ask(&s.primary, &Request::Unprotect).unwrap(),
                |s| {
                    let status = s.lab.keeper(&s.primary).unwrap().status().unwrap();
                    assert_eq!(status.protection, Some(ProtectionState::Off), "{status:?}");
                    s.lab.ask(&s.primary, &Request::Protect).unwrap();
                },
            ),
        };
        if settled {
            self.settle(mark);
        } else {
            self.check_roles();
            self.check_rest();
        }
        let gap = self.ledger().gap_since(begun);
        eprintln!(
            "    at rest after {:.2} s, longest silence {} ms, {} writes",
            begun.elapsed().as_secs_f64(),
            gap.as_millis(),
            self.ledger().acked()
        );
    }

    /// The backup takes the VM over. Answers that the VM has to be protected anew.
    fn replaced(&mut self, mark: usize, disturb: impl Fn(&Self), repair: impl Fn(&Self, &str)) -> bool {
        disturb(self);
        self.expect(mark, &self.backup, "took over", took_over);
        self.expect_writes(WRITES);
        repair(self, &self.primary);
        self.swap_roles();
        true
    }

    /// A frozen host is replaced; thawed, it says nothing more, stands down and becomes the backup.
    fn freeze_primary(&mut self, mark: usize) -> bool {
        self.thawed += 1;
        self.replaced(mark, |s| s.lab.freeze(&s.primary).unwrap(), |s, old| s.lab.thaw(old).unwrap());
        self.expect(mark, &self.backup, "stood down", stood_down);
        true
    }

    /// A primary that can reach neither backup nor witness is replaced. It stays mute, and stands down once it can ask.
    fn isolate_primary(&mut self, mark: usize, networks: &[Network], how: Cut) -> bool {
        for network in networks {
            self.lab.cut(&self.primary, *network, how).unwrap();
        }
        self.expect(mark, &self.backup, "took over", took_over);
        self.expect_writes(WRITES);
        self.expect(mark, &self.primary, "witness unreachable", |k| matches!(k, EventKind::WitnessUnreachable { .. }));
        let status = self.lab.keeper(&self.primary).unwrap().status().unwrap();
        assert_eq!((status.role, status.protection), (Role::Primary, Some(ProtectionState::Waiting)), "{status:?}");
        self.check_speakers();
        for network in networks {
            self.lab.heal(&self.primary, *network).unwrap();
        }
        self.expect(mark, &self.primary, "stood down", stood_down);
        self.swap_roles();
        true
    }

    /// The primary loses its backup, says so, goes on, and is protected again when there is one.
    fn lose_backup(&mut self, mark: usize, disturb: impl Fn(&Self), repair: impl Fn(&Self)) -> bool {
        disturb(self);
        self.expect(mark, &self.primary, "unprotected", unprotected);
        self.expect_writes(WRITES);
        repair(self);
        true
    }

    fn cut_public_of_primary(&mut self, mark: usize) -> bool {
        self.lab.cut(&self.primary, Network::Public, Cut::Carrier).unwrap();
        self.expect(mark, &self.primary, "switchover", |k| matches!(k, EventKind::SwitchoverStarted { .. }));
        self.expect(mark, &self.backup, "took over", took_over);
        self.expect_writes(WRITES);
        self.lab.heal(&self.primary, Network::Public).unwrap();
        self.swap_roles();
        true
    }

    fn cut_public_of_backup(&mut self, mark: usize) -> bool {
        self.lab.cut(&self.backup, Network::Public, Cut::Carrier).unwrap();
        self.expect_writes(10 * WRITES);
        self.nothing_since(mark);
        self.lab.heal(&self.backup, Network::Public).unwrap();
        self.unchanged()
    }

    fn send_witness_away(&self, how: Away) {
        let mark = self.events.mark();
        match how {
            Away::Killed => self.lab.kill_witness().unwrap(),
            Away::Frozen => self.lab.freeze("w").unwrap(),
            Away::CutOff => self.lab.cut("w", Network::Replication, Cut::Blackhole).unwrap(),
        }
        for host in [&self.primary, &self.backup] {
            self.expect(mark, host, "witness unreachable", |k| matches!(k, EventKind::WitnessUnreachable { .. }));
        }
    }

    fn bring_witness_back(&self, how: Away) {
        match how {
            Away::Killed => self.lab.start_witness().unwrap(),
            Away::Frozen => self.lab.thaw("w").unwrap(),
            Away::CutOff => self.lab.heal("w", Network::Replication).unwrap(),
        }
    }

    fn await_witness_back(&self, mark: usize) {
        for host in [&self.primary, &self.backup] {
            self.expect(mark, host, "witness reachable", |k| matches!(k, EventKind::WitnessReachable));
        }
    }

    /// Both hosts are well: they do not need a witness.
    fn witness_away(&mut self, mark: usize, how: Away) -> bool {
        self.send_witness_away(how);
        self.expect_writes(5 * WRITES);
        self.nothing_since(mark);
        self.bring_witness_back(how);
        self.await_witness_back(mark);
        self.nothing_since(mark);
        self.unchanged()
    }

    /// The backup must not take over before it is allowed to: the VM stands still, and goes on when the witness is back.
    fn witness_away_and_primary_dies(&mut self, mark: usize, how: Away) -> bool {
        self.send_witness_away(how);
        self.lab.kill_host(&self.primary).unwrap();
        self.expect(mark, &self.backup, "primary lost", |k| matches!(k, EventKind::PrimaryLost { .. }));
        self.stands_still();
        let since = &self.events.all()[mark..];
        assert!(!since.iter().any(|e| took_over(&e.kind)), "took over without the witness: {since:?}");
        self.bring_witness_back(how);
        self.expect(mark, &self.backup, "took over", took_over);
        self.expect_writes(WRITES);
        self.lab.restart_host(&self.primary).unwrap();
        self.swap_roles();
        true
    }

    /// The primary must not release anything alone before it is allowed to.
    fn witness_away_and_backup_dies(&mut self, mark: usize, how: Away) -> bool {
        self.send_witness_away(how);
        self.lab.kill_host(&self.backup).unwrap();
        let keeper = self.lab.keeper(&self.primary).unwrap();
        wait_until("word that the VM waits", || keeper.status().unwrap().protection == Some(ProtectionState::Waiting));
        self.stands_still();
        self.bring_witness_back(how);
        self.lose_backup(mark, |_| (), |s| s.lab.restart_host(&s.backup).unwrap())
    }

    /// No write is acknowledged any more. That something does not happen can only be shown by giving it time.
    fn stands_still(&self) {
        let ledger = self.ledger();
        let before = ledger.acked();
        let patience = std::time::Duration::from_millis(700);
        assert!(!ledger.wait_acks(1, Instant::now() + patience), "{} writes while nobody may answer", {
            ledger.acked() - before
        });
    }

    /// Nobody has changed anything since `mark`.
    fn nothing_since(&self, mark: usize) {
        let since = &self.events.all()[mark..];
        // A machine that is busy may let a host stand still; it goes on.
        let calm = |k: &EventKind| {
            matches!(
                k,
                EventKind::WitnessUnreachable { .. } | EventKind::WitnessReachable | EventKind::StoodStill { .. }
            )
        };
        assert!(since.iter().all(|e| calm(&e.kind)), "{since:?}");
    }

    /// Answers that nothing has to be awaited: the VM was protected all the time.
    fn unchanged(&self) -> bool {
        self.expect_writes(WRITES);
        false
    }
}
