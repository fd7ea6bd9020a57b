//! What a primary with two backups says to whom, step by step. That it is safe is shown by `model.rs`.

use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::{ProtectionState, Role};
use ninefold_model::{Backup, Epoch, HostName, Record, Term};
use ninefold_replica::protocol::{Action, Input, Outcome, Phase, ProposalId, Protocol, Refused, Wanted};

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

fn backup(name: &str, session: Term) -> Backup {
    Backup { host: host(name), session }
}

const TWO: Wanted = Wanted { protection: Protection::FaultTolerant, backups: 2 };

/// A host, and what it has last asked of the witness.
struct Host {
    protocol: Protocol,
    asked: Option<(ProposalId, Record)>,
}

impl Host {
    fn new(name: &str) -> Self {
        Self { protocol: Protocol::new(host(name), TWO), asked: None }
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        let mut out = self.only(input);
        // It keeps no log: there is nothing to prepare.
        while let Some(at) = out.iter().position(|a| matches!(a, Action::Prepare { .. })) {
            let Action::Prepare { id, .. } = out.remove(at) else { unreachable!() };
            out.splice(at..at, self.only(Input::Prepared { id }));
        }
        out
    }

    /// The same without preparing anything.
    fn only(&mut self, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        self.protocol.handle(input, &mut out);
        for action in &out {
            if let Action::Propose { id, new, .. } = action {
                self.asked = Some((*id, new.clone()));
            }
        }
        out
    }

    /// What was asked for is won: answers the record and what follows.
    fn win(&mut self) -> (Record, Vec<Action>) {
        let (id, record) = self.asked.take().expect("nothing was asked");
        (record, self.tell(Input::Answer { id, outcome: Outcome::Won }))
    }

    fn lose(&mut self, held: Record) -> Vec<Action> {
        let (id, _) = self.asked.take().expect("nothing was asked");
        self.tell(Input::Answer { id, outcome: Outcome::Lost(Some(held)) })
    }

    /// `peer` is synced and bound; `epoch` is its first checkpoint, which all others acknowledge as well.
    fn bind(&mut self, peer: &str, epoch: u64) -> Term {
        let mut out = self.tell(Input::PeerAvailable { peer: host(peer) });
        if self.asked.is_some() {
            out.extend(self.win().1);
        }
        let opened =
            out.iter().find_map(|a| if let Action::OpenSession { session, .. } = a { Some(*session) } else { None });
        let session = opened.expect("a session is opened");
        self.tell(Input::FirstCheckpoint { session, epoch: Epoch(epoch) });
        for s in self.protocol.sessions().to_vec() {
            self.tell(Input::Acked { session: s.name, epoch: Epoch(epoch) });
        }
        self.win();
        assert_eq!(self.protocol.phase(session), Some(Phase::Bound));
        session
    }

    fn lost(&mut self, session: Term) -> Vec<Action> {
        self.tell(Input::SessionLost { session, reason: "silent".into() })
    }
}

/// Host a runs the VM, b and c are bound; both hold epoch 2.
fn protected_twice() -> (Host, Term, Term) {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    let b = a.bind("b", 1);
    let c = a.bind("c", 2);
    assert_eq!((b, c), (Term(1), Term(2)), "each binding brings a term, so that none has to be taken for its own sake");
    assert!(!a.protocol.wants_peer());
    (a, b, c)
}

fn released(out: &[Action]) -> Option<Epoch> {
    out.iter().rev().find_map(|a| if let Action::Release { epoch } = a { Some(*epoch) } else { None })
}

#[test]
fn output_leaves_when_the_slowest_has_acknowledged() {
    let (mut a, b, c) = protected_twice();
    assert_eq!(released(&a.tell(Input::Acked { session: b, epoch: Epoch(3) })), None);
    assert_eq!(released(&a.tell(Input::Acked { session: b, epoch: Epoch(4) })), None);
    assert_eq!(released(&a.tell(Input::Acked { session: c, epoch: Epoch(3) })), Some(Epoch(3)));
    assert_eq!(released(&a.tell(Input::Acked { session: c, epoch: Epoch(3) })), None);
    // An acknowledgement from before the session's first checkpoint can only be a mistake.
    assert_eq!(a.tell(Input::Acked { session: c, epoch: Epoch(1) }), []);
}

#[test]
fn a_second_backup_delays_output_only_from_its_first_checkpoint_on() {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    let b = a.bind("b", 1);
    a.tell(Input::PeerAvailable { peer: host("c") });
    let c = a.protocol.sessions()[1].name;
    assert_eq!(a.protocol.phase(c), Some(Phase::Syncing));
    assert_eq!(released(&a.tell(Input::Acked { session: b, epoch: Epoch(5) })), Some(Epoch(5)));
    // Epoch 7 is its first: what was said in epoch 6 is in it.
    a.tell(Input::FirstCheckpoint { session: c, epoch: Epoch(7) });
    assert_eq!(released(&a.tell(Input::Acked { session: b, epoch: Epoch(7) })), Some(Epoch(6)));
    assert_eq!(released(&a.tell(Input::Acked { session: c, epoch: Epoch(7) })), Some(Epoch(7)));
    let (record, out) = a.win();
    assert_eq!(record.backups, [backup("b", b), backup("c", c)]);
    // Both hear of it: so each knows the record to claim from.
    let told: Vec<_> = out.iter().filter(|a| matches!(a, Action::SendBound { .. })).collect();
    assert_eq!(told.len(), 2);
    assert!(out.contains(&Action::SendBound { session: b, record: record.clone(), first: false }));
    assert!(out.contains(&Action::SendBound { session: c, record, first: true }));
}

#[test]
fn a_lost_backup_holds_output_up_until_the_witness_has_spoken_and_no_longer() {
    let (mut a, b, c) = protected_twice();
    a.tell(Input::Acked { session: c, epoch: Epoch(4) });
    let out = a.lost(b);
    assert!(out.iter().any(|a| matches!(a, Action::Emit(EventKind::BackupLost { .. }))));
    assert_eq!(released(&out), None);
    // The VM would survive the loss of its host all the same.
    assert_eq!(a.protocol.protection(), Some(ProtectionState::Protected));
    assert_eq!(a.tell(Input::Acked { session: b, epoch: Epoch(4) }), [], "it may be taking over");
    assert_eq!(a.asked.as_ref().unwrap().1.backups, [backup("c", c)]);
    // It cannot come back before.
    assert!(a.protocol.wants_peer());
    assert_eq!(a.tell(Input::PeerAvailable { peer: host("b") }), []);
    let (_, out) = a.win();
    assert_eq!(released(&out), Some(Epoch(4)));
    assert!(!out.contains(&Action::OpenGate));
    assert!(a.tell(Input::PeerAvailable { peer: host("b") }).iter().any(|a| matches!(a, Action::OpenSession { .. })));
}

#[test]
fn a_primary_that_stood_still_goes_on_with_its_sessions_when_the_witness_confirms_it() {
    let (mut a, b, c) = protected_twice();
    let before = a.protocol.term();
    let out = a.tell(Input::Doubt);
    assert!(matches!(&out[..], [Action::Propose { .. }]), "{out:?}");
    // What had arrived meanwhile is read, and proves nothing.
    assert_eq!(a.tell(Input::Acked { session: b, epoch: Epoch(4) }), []);
    assert_eq!(a.tell(Input::Acked { session: c, epoch: Epoch(3) }), []);
    assert_eq!(a.protocol.protection(), Some(ProtectionState::Protected), "both hold all that was ever released");
    let (record, out) = a.win();
    assert_eq!(
        record,
        Record { term: before.next(), primary: host("a"), backups: vec![backup("b", b), backup("c", c)] }
    );
    assert_eq!(released(&out), Some(Epoch(3)));
    // So that each knows the record to claim from; it was bound before.
    for session in [b, c] {
        assert!(out.contains(&Action::SendBound { session, record: record.clone(), first: false }));
    }
    assert!(!a.protocol.doubts());
    assert_eq!(released(&a.tell(Input::Acked { session: c, epoch: Epoch(4) })), Some(Epoch(4)));
}

#[test]
fn a_primary_that_stood_still_and_was_replaced_says_nothing_more() {
    let (mut a, b, c) = protected_twice();
    a.tell(Input::Doubt);
    for session in [b, c] {
        assert_eq!(a.tell(Input::Acked { session, epoch: Epoch(3) }), []);
    }
    let out = a.lose(Record { term: Term(9), primary: host("b"), backups: vec![] });
    assert_eq!(released(&out), None);
    assert_eq!(out[0], Action::StandDown);
}

#[test]
fn a_lost_backup_may_be_taking_over_whatever_it_has_acknowledged() {
    let (mut a, b, c) = protected_twice();
    a.tell(Input::Acked { session: b, epoch: Epoch(4) });
    a.lost(b);
    assert_eq!(a.tell(Input::Acked { session: c, epoch: Epoch(4) }), []);
    assert_eq!(released(&a.win().1), Some(Epoch(4)));
}

/// What the witness answered may have been true before, and not be any more.
#[test]
fn an_answer_to_what_was_asked_before_a_stall_confirms_nothing() {
    let (mut a, b, c) = protected_twice();
    a.lost(c);
    a.tell(Input::Doubt);
    assert_eq!(a.tell(Input::Acked { session: b, epoch: Epoch(3) }), []);
    let (record, out) = a.win();
    assert_eq!(record.backups, [backup("b", b)]);
    assert_eq!(released(&out), None);
    // It asks anew; and once more if it stood still meanwhile.
    a.tell(Input::Doubt);
    assert_eq!(released(&a.win().1), None);
    assert_eq!(released(&a.win().1), Some(Epoch(3)));
}

#[test]
fn a_primary_that_stood_still_goes_on_without_the_witness_when_all_backups_have_answered_since() {
    let (mut a, b, c) = protected_twice();
    a.tell(Input::Doubt);
    for session in [b, c] {
        a.tell(Input::Acked { session, epoch: Epoch(3) });
    }
    assert_eq!(released(&a.tell(Input::Sure { session: b })), None);
    a.tell(Input::Doubt);
    assert_eq!(released(&a.tell(Input::Sure { session: c })), None, "b has answered before the second stall");
    assert_eq!(released(&a.tell(Input::Sure { session: b })), Some(Epoch(3)));
    // One that is lost may be taking over: only the witness can tell.
    a.tell(Input::Doubt);
    a.lost(b);
    a.tell(Input::Acked { session: c, epoch: Epoch(4) });
    assert_eq!(released(&a.tell(Input::Sure { session: c })), None);
    assert!(a.protocol.doubts());
}

#[test]
fn who_cannot_be_replaced_has_no_doubts() {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    assert_eq!(a.tell(Input::Doubt), []);
    a.tell(Input::PeerAvailable { peer: host("b") });
    let b = a.protocol.sessions()[0].name;
    a.tell(Input::FirstCheckpoint { session: b, epoch: Epoch(1) });
    assert_eq!(a.tell(Input::Doubt), [], "nobody was asked to bind b");
    assert!(!a.protocol.doubts());
}

#[test]
fn two_that_are_lost_while_the_witness_is_slow_go_together() {
    let (mut a, b, c) = protected_twice();
    a.lost(b);
    a.lost(c);
    assert_eq!(a.protocol.protection(), Some(ProtectionState::Waiting));
    let (first, out) = a.win();
    assert_eq!(first.backups, [backup("c", c)], "asked for before the second was lost");
    assert_eq!(released(&out), None);
    let (second, out) = a.win();
    assert!(second.is_alone());
    assert!(out.contains(&Action::OpenGate));
    assert!(a.protocol.speaks_freely());
}

#[test]
fn a_backup_claims_from_whichever_record_binds_it() {
    let (a, b, c) = protected_twice();
    let record = Record { term: Term(3), primary: host("a"), backups: vec![backup("b", b), backup("c", c)] };
    drop(a);
    let mut b = Host::new("b");
    b.tell(Input::Offer { from: host("a"), session: Term(1) });
    b.tell(Input::CheckpointHeld { session: Term(1), epoch: Epoch(1), first: true });
    b.tell(Input::CheckpointHeld { session: Term(1), epoch: Epoch(2), first: false });
    b.tell(Input::PrimaryLost { session: Term(1), reason: "silent".into() });
    // It was told nothing, and claims from what never was: the witness shows it the record.
    assert_eq!(b.asked.as_ref().unwrap().1.term, Term(2));
    b.lose(record.clone());
    let (won, out) = b.win();
    assert_eq!(won, record.alone(host("b")));
    assert!(out.contains(&Action::ResumeFrom { epoch: Epoch(2) }));

    let mut c = Host::new("c");
    c.tell(Input::Offer { from: host("a"), session: Term(2) });
    c.tell(Input::CheckpointHeld { session: Term(2), epoch: Epoch(2), first: true });
    c.tell(Input::BoundNotice { session: Term(2), record: record.clone() });
    // Not its session, not its primary, older than known: none of these is to be claimed from.
    for other in [
        record.bound(vec![backup("c", Term(3))]),
        Record { primary: host("d"), ..record.bound(vec![backup("c", Term(2))]) },
        Record { term: Term(2), ..record.clone() },
    ] {
        c.tell(Input::BoundNotice { session: Term(2), record: other });
    }
    c.tell(Input::PrimaryLost { session: Term(2), reason: "silent".into() });
    assert_eq!(c.asked.as_ref().unwrap().1, record.alone(host("c")));
    // The other was faster.
    let out = c.lose(won);
    assert!(matches!(out[..], [Action::Emit(EventKind::ClaimLost { .. })]), "{out:?}");
    assert!(c.protocol.is_spare() && c.protocol.role() == Role::Standby);
}

#[test]
fn a_switchover_goes_to_the_host_that_was_named_when_all_hold_the_last_checkpoint() {
    let (mut a, b, c) = protected_twice();
    let ask = |to: Option<&str>| Input::Switchover { to: to.map(host), reason: "asked for".into() };
    assert!(matches!(a.tell(ask(Some("d")))[..], [Action::Refuse(_)]));
    assert!(a.tell(ask(Some("c"))).contains(&Action::TakeFinalCheckpoint));
    assert!(matches!(a.tell(ask(None))[..], [Action::Refuse(_)]));
    assert!(!a.protocol.wants_peer());
    a.tell(Input::FinalTaken { epoch: Epoch(3) });
    assert_eq!(a.tell(Input::Acked { session: c, epoch: Epoch(3) }), []);
    let out = a.tell(Input::Acked { session: b, epoch: Epoch(3) });
    let relinquish = Action::SendRelinquish { session: c, reason: "asked for".into() };
    assert_eq!(out, [Action::Release { epoch: Epoch(3) }, relinquish]);
}

#[test]
fn a_switchover_that_fails_undoes_itself() {
    let (mut a, _, c) = protected_twice();
    a.tell(Input::Switchover { to: Some(host("c")), reason: String::new() });
    a.tell(Input::FinalTaken { epoch: Epoch(3) });
    assert!(!a.lost(c).contains(&Action::GoOn), "it may have the VM");
    let (record, out) = a.win();
    assert_eq!(record.backups.len(), 1);
    assert!(out.contains(&Action::GoOn));
    // The other backup is still there to be asked.
    assert!(a.tell(Input::Switchover { to: None, reason: String::new() }).contains(&Action::TakeFinalCheckpoint));
}

#[test]
fn a_stop_releases_all_backups_first() {
    let (mut a, b, c) = protected_twice();
    let out = a.tell(Input::Stop { reason: "enough".into() });
    assert!(!out.iter().any(|a| matches!(a, Action::CloseSession { .. } | Action::StandDown)));
    assert!(a.asked.as_ref().unwrap().1.is_alone());
    assert_eq!(released(&a.tell(Input::Acked { session: b, epoch: Epoch(3) })), None);
    assert_eq!(released(&a.tell(Input::Acked { session: c, epoch: Epoch(3) })), Some(Epoch(3)));
    let (_, out) = a.win();
    for session in [b, c] {
        assert!(out.contains(&Action::CloseSession { session }));
    }
    assert_eq!(out[2..], [Action::StandDown, Action::Emit(EventKind::Stopped { reason: "enough".into() })]);
}

#[test]
fn a_primary_is_alone_when_no_backup_can_take_over_any_more() {
    let (mut a, b, c) = protected_twice();
    assert!(!a.protocol.is_alone() && !a.protocol.nobody_may_claim());
    a.tell(Input::Part { reason: "QEMU is launched anew".into() });
    // The sessions live on until the witness has spoken: a backup that is cut off would have cause to claim.
    assert!(!a.protocol.nobody_may_claim());
    assert!(!a.protocol.is_alone() && a.protocol.phase(b) == Some(Phase::Unbinding));
    assert_eq!(a.protocol.protection(), Some(ProtectionState::Protected));
    let (record, out) = a.win();
    assert!(record.is_alone());
    assert!(out.contains(&Action::CloseSession { session: b }) && out.contains(&Action::CloseSession { session: c }));
    let unprotected = |a: &Action| matches!(a, Action::Emit(EventKind::Unprotected { .. }));
    assert!(out.contains(&Action::OpenGate) && out.iter().any(unprotected), "{out:?}");
    assert!(a.protocol.is_alone() && a.protocol.wants_peer());
    // One that is only being synced goes at once.
    a.tell(Input::PeerAvailable { peer: host("b") });
    assert!(!a.protocol.is_alone() && a.protocol.nobody_may_claim());
    a.tell(Input::Part { reason: "again".into() });
    assert!(a.protocol.is_alone());
    // A backup was faster: it is not ours to launch anew.
    a.bind("b", 3);
    a.tell(Input::Part { reason: "once more".into() });
    let taken = a.protocol.term();
    a.lose(Record { term: taken.next(), primary: host("b"), backups: Vec::new() });
    assert!(!a.protocol.is_alone() && a.protocol.role() == Role::Standby && a.protocol.term() < taken);
}

#[test]
fn when_fewer_are_wanted_the_newest_goes() {
    let (mut a, b, c) = protected_twice();
    a.tell(Input::Want(Wanted { backups: 1, ..TWO }));
    assert_eq!(a.protocol.phase(c), Some(Phase::Unbinding));
    let (record, out) = a.win();
    assert_eq!(record.backups, [backup("b", b)]);
    assert!(out.contains(&Action::CloseSession { session: c }));
    assert!(!out.contains(&Action::OpenGate));
    assert!(!a.protocol.wants_peer());
    // And with none the gate opens.
    a.tell(Input::Want(Wanted { protection: Protection::None, ..TWO }));
    assert!(a.win().1.contains(&Action::OpenGate));
    assert_eq!(a.protocol.protection(), Some(ProtectionState::Off));
}

#[test]
fn both_hear_of_the_death_of_the_machine() {
    let (mut a, b, c) = protected_twice();
    let out = a.tell(Input::MachineLost { reason: "killed".into() });
    let relinquish = |session| Action::SendRelinquish { session, reason: "killed".into() };
    assert_eq!(out[..3], [relinquish(b), relinquish(c), Action::StandDown]);
}

/// A VM is stopped, or goes on without its backups, and its QEMU dies while the witness's answer is on its way. The backups are told, and one of
/// them may be first; if none is, nobody has the VM, and that is said.
#[test]
fn what_becomes_of_a_vm_whose_qemu_dies_while_its_backups_are_released() {
    let record = |a: &Host| {
        let backups = a.protocol.sessions().iter().map(|s| backup(s.backup.as_str(), s.name)).collect();
        Record { term: a.protocol.term(), primary: host("a"), backups }
    };
    for stops in [true, false] {
        let gone = || {
            let (mut a, b, c) = protected_twice();
            let before = record(&a);
            let reason = String::from("enough");
            a.tell(if stops { Input::Stop { reason } } else { Input::Part { reason } });
            let out = a.tell(Input::MachineLost { reason: "killed".into() });
            let relinquish = |session| Action::SendRelinquish { session, reason: "killed".into() };
            assert_eq!(out[..3], [relinquish(b), relinquish(c), Action::StandDown]);
            let (id, new) = a.asked.clone().unwrap();
            let again = Action::AskAgain { id, expected: Some(before.clone()), new: new.clone() };
            match &out[3..] {
                [Action::Emit(EventKind::StoodDown { .. })] => assert!(!stops),
                [Action::Emit(EventKind::StoodDown { .. }), last] => assert!(stops && *last == again),
                _ => panic!("{out:?}"),
            }
            (a, before, new)
        };
        let end = [if stops {
            Action::Emit(EventKind::Stopped { reason: "enough".into() })
        } else {
            Action::Emit(EventKind::Lost { reason: "killed".into() })
        }];
        let (mut a, ..) = gone();
        assert_eq!(a.win().1, end);
        assert!(!a.protocol.is_gone());
        let (mut a, _, new) = gone();
        assert_eq!(a.tell(Input::Observed(new)), end, "the answer was lost, and it is read");
        // What proves nothing changes nothing. To stop the VM is asked for again; what has not arrived otherwise must not.
        let (mut a, before, new) = gone();
        let id = a.asked.clone().unwrap().0;
        let again = stops.then(|| Action::AskAgain { id, expected: Some(before.clone()), new: new.clone() });
        for outcome in worthless(Record::boot(host("c"))) {
            assert_eq!(a.tell(Input::Answer { id, outcome }), again.clone().into_iter().collect::<Vec<_>>());
        }
        assert_eq!(a.tell(Input::Observed(Record::boot(host("a")))), []);
        // Nor is it known yet that it was not granted: it may be on its way, and may wait for the witness's disk.
        assert_eq!(a.tell(Input::Observed(before.clone())), []);
        assert!(a.protocol.is_gone());
        let refused = if stops { Refused::Stopping } else { Refused::Held { record: before.clone(), me: host("a") } };
        assert_eq!(a.protocol.may_start(Some(&before), false), Err(refused));
        assert_eq!(a.protocol.may_start(Some(&new), false).is_ok(), !stops);
        assert_eq!(a.tell(Input::Observed(new)), end);
        // Another has it.
        let (mut a, _, new) = gone();
        assert_eq!(a.lose(Record { primary: host("b"), ..new }), []);
        assert!(!a.protocol.is_gone());
        // One of them runs it, as it shows.
        let (mut a, ..) = gone();
        let session = Term(40);
        assert_eq!(a.tell(Input::Offer { from: host("b"), session }), [Action::AcceptSession { session }]);
    }
}

/// The same when there is nobody who could be told.
#[test]
fn a_vm_that_is_stopped_has_stopped_also_if_its_qemu_dies_meanwhile() {
    let gone = || {
        let mut a = Host::new("a");
        a.tell(Input::Start { found: None, force: false });
        a.win();
        let before = Record::boot(host("a"));
        a.tell(Input::LogLost { noted: false });
        assert_eq!(a.tell(Input::Stop { reason: "enough".into() }), []);
        a.tell(Input::MachineLost { reason: "killed".into() });
        (a, before)
    };
    assert_eq!(gone().0.win().1, [Action::Emit(EventKind::Stopped { reason: "enough".into() })]);
    let (mut a, before) = gone();
    assert_eq!(a.tell(Input::Observed(before)), [], "it may be granted yet, and is asked for until it is");
    assert_eq!(a.win().1, [Action::Emit(EventKind::Stopped { reason: "enough".into() })]);
}

/// The same when something else was asked for before: that comes first.
#[test]
fn a_vm_whose_qemu_dies_before_its_stop_is_asked_for_is_stopped_all_the_same() {
    let enough = || Input::Stop { reason: "enough".into() };
    let killed = || Input::MachineLost { reason: "killed".into() };
    let stopped = [Action::Emit(EventKind::Stopped { reason: "enough".into() })];
    // A backup is being bound, and the answer has not come.
    let binding = || {
        let mut a = Host::new("a");
        a.tell(Input::Start { found: None, force: false });
        a.win();
        a.tell(Input::PeerAvailable { peer: host("b") });
        let session = a.protocol.sessions()[0].name;
        a.tell(Input::FirstCheckpoint { session, epoch: Epoch(1) });
        a
    };
    let mut a = binding();
    let session = a.protocol.sessions()[0].name;
    a.tell(Input::Acked { session, epoch: Epoch(1) });
    a.tell(enough());
    a.tell(killed());
    assert!(a.protocol.is_gone() && a.protocol.is_stopping());
    let (bound, out) = a.win();
    assert_eq!(bound.backups.len(), 1);
    assert!(matches!(&out[..], [Action::Propose { new, .. }] if new.is_alone()), "{out:?}");
    assert_eq!(a.win().1, stopped);
    // It was not sent yet: nothing but the stop is.
    let mut a = binding();
    a.only(Input::Acked { session, epoch: Epoch(1) });
    a.only(enough());
    let out = a.tell(killed());
    assert!(matches!(out.last(), Some(Action::Propose { new, .. }) if new.is_alone()), "{out:?}");
    assert_eq!(a.win().1, stopped);
    // A log has failed since, which knows of what was asked for, and would be believed.
    let (mut a, ..) = protected_twice();
    a.tell(Input::LogFirst { epoch: Epoch(5) });
    a.tell(enough());
    a.tell(Input::LogLost { noted: false });
    a.tell(killed());
    let (known, out) = a.win();
    assert!(matches!(&out[..], [Action::Propose { new, .. }] if *new == known.bound(Vec::new())), "{out:?}");
    assert_eq!(a.win().1, stopped);
}

#[test]
fn a_record_names_no_more_backups_than_it_may() {
    let mut a = Host::new("a");
    a.tell(Input::Want(Wanted { backups: 9, ..TWO }));
    a.tell(Input::Start { found: None, force: false });
    a.win();
    for (peer, epoch) in ["b", "c", "d", "e"].into_iter().zip(1..) {
        a.bind(peer, epoch);
    }
    assert!(!a.protocol.wants_peer());
    assert_eq!(a.tell(Input::PeerAvailable { peer: host("f") }), []);
    // One is lost and replaced: the record that drops it and the one that takes the new one in make sense.
    let lost = a.protocol.sessions()[1].name;
    a.lost(lost);
    let (record, _) = a.win();
    record.check().unwrap();
    a.bind("f", 5);
    assert_eq!(a.protocol.sessions().len(), 4);
}

/// Two logs fail one after the other, and the second may speak of what was asked for when the first was to be invalidated: that
/// answer is not enough.
#[test]
fn a_second_log_is_invalidated_by_a_later_record() {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    a.tell(Input::LogLost { noted: false });
    assert!(a.protocol.invalidates());
    a.tell(Input::LogLost { noted: false });
    let (first, out) = a.win();
    assert!(a.protocol.invalidates() && matches!(&out[..], [Action::Propose { .. }]), "{out:?}");
    let (second, out) = a.win();
    assert!(second.term > first.term && !a.protocol.invalidates() && out.is_empty(), "{out:?}");
}

/// Another log is begun where the first was: there is nothing to invalidate any more, and what is held may go.
#[test]
fn a_log_that_is_gone_need_not_be_invalidated() {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    a.tell(Input::LogFirst { epoch: Epoch(1) });
    a.tell(Input::LogHolds { epoch: Epoch(1) });
    let out = a.tell(Input::LogLost { noted: false });
    assert!(matches!(&out[..], [Action::Propose { .. }]) && !a.protocol.speaks_freely(), "{out:?}");
    let out = a.tell(Input::LogLost { noted: true });
    assert_eq!(out, [Action::OpenGate]);
    assert!(!a.protocol.invalidates());
    let (_, out) = a.win();
    assert!(out.is_empty() && a.asked.is_none(), "{out:?}");
}

/// A VM that is stopped while its log is still believed would come back by itself.
#[test]
fn a_vm_is_stopped_when_its_log_is_invalidated() {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    a.tell(Input::LogLost { noted: false });
    let out = a.tell(Input::Stop { reason: "asked".into() });
    assert_eq!(out, []);
    let (_, out) = a.win();
    assert!(matches!(&out[..], [Action::StandDown, Action::Emit(EventKind::Stopped { .. })]), "{out:?}");
}

/// A log that output does not wait for has failed and could not even note that it is behind: the witness's record becomes one
/// of which it does not know, and nothing is held meanwhile.
#[test]
fn a_log_that_output_does_not_wait_for_is_invalidated() {
    let mut a = Host::new("a");
    a.tell(Input::Start { found: None, force: false });
    a.win();
    let out = a.tell(Input::LogLost { noted: true });
    assert!(out.is_empty() && a.asked.is_none(), "{out:?}");
    let out = a.tell(Input::LogLost { noted: false });
    assert!(matches!(&out[..], [Action::Propose { .. }]), "{out:?}");
    assert!(a.protocol.speaks_freely());
    let (record, out) = a.win();
    assert!(record.is_alone() && a.protocol.term() == record.term);
    assert!(out.is_empty() && a.asked.is_none() && a.protocol.speaks_freely(), "{out:?}");

    // The same while a backup is bound: what it has acknowledged is released, no more and no less.
    a.bind("b", 1);
    let out = a.tell(Input::LogLost { noted: false });
    assert!(matches!(&out[..], [Action::Propose { .. }]), "{out:?}");
    let session = a.protocol.sessions()[0].name;
    let out = a.tell(Input::Acked { session, epoch: Epoch(2) });
    assert_eq!(out, [Action::Release { epoch: Epoch(2) }]);
    let (record, _) = a.win();
    assert_eq!(record.backups, [backup("b", session)]);
    assert!(a.asked.is_none());
}

/// Answers of a witness that is not the one that it was, or will not do what it is asked.
fn worthless(older: Record) -> [Outcome; 3] {
    [Outcome::Lost(None), Outcome::Lost(Some(older)), Outcome::Refused("it keeps too many VMs".into())]
}

/// A primary that is alone asks for another term, so that it can open a session. Whatever a witness answers that has lost its
/// register or refuses, the VM goes on as it is, and the question is put again; a newer record that names another ends it.
#[test]
fn only_a_newer_record_that_names_another_ends_a_vm() {
    let (mut a, b, c) = protected_twice();
    a.lost(b);
    a.lost(c);
    while a.asked.is_some() {
        a.win();
    }
    let own = Record { term: a.protocol.term(), primary: host("a"), backups: Vec::new() };
    a.tell(Input::PeerAvailable { peer: host("b") });
    let opened = a.protocol.sessions()[0].name;
    a.lost(opened);
    a.tell(Input::PeerAvailable { peer: host("b") });
    let (id, new) = a.asked.clone().expect("it needs a term");
    let older = Record { term: Term(1), primary: host("b"), backups: Vec::new() };
    for outcome in worthless(older.clone()) {
        assert!(a.protocol.disbelieves_answer(&outcome).is_some(), "{outcome:?}");
        let again = Action::AskAgain { id, expected: Some(own.clone()), new: new.clone() };
        assert_eq!(a.tell(Input::Answer { id, outcome }), [again]);
        assert!(a.protocol.speaks_freely() && a.protocol.role() == Role::Primary);
    }
    // Nor does what is only read.
    assert_eq!(a.tell(Input::Observed(older)), []);
    // A record that names this host is not another's, whoever has written it.
    let strange = Record { backups: vec![backup("c", Term(2))], ..new.clone() };
    assert!(a.protocol.disbelieves(Some(&strange)).is_some() && a.protocol.disbelieves(Some(&own)).is_none());
    assert!(matches!(
        a.tell(Input::Answer { id, outcome: Outcome::Lost(Some(strange)) })[..],
        [Action::AskAgain { .. }]
    ));
    let another = Record { primary: host("b"), ..new };
    assert!(a.protocol.disbelieves(Some(&another)).is_none());
    assert!(a.tell(Input::Answer { id, outcome: Outcome::Lost(Some(another)) }).contains(&Action::StandDown));
}

/// The same while a backup was lost and may have the VM: output waits, and the answer that counts is waited for.
#[test]
fn a_primary_waits_for_an_answer_that_proves_something() {
    let (mut a, b, _) = protected_twice();
    a.lost(b);
    let (id, _) = a.asked.clone().unwrap();
    for outcome in worthless(Record::boot(host("c"))) {
        assert!(matches!(a.tell(Input::Answer { id, outcome })[..], [Action::AskAgain { .. }]));
        assert!(!a.protocol.speaks_freely());
    }
    assert_eq!(a.win().1.iter().filter(|a| matches!(a, Action::StandDown)).count(), 0);
}

fn claiming() -> Host {
    let mut b = Host::new("b");
    b.tell(Input::Offer { from: host("a"), session: Term(4) });
    b.tell(Input::CheckpointHeld { session: Term(4), epoch: Epoch(1), first: true });
    b.tell(Input::PrimaryLost { session: Term(4), reason: "silent".into() });
    b
}

#[test]
fn a_backup_that_claims_waits_for_an_answer_that_proves_something() {
    let mut b = claiming();
    let (id, new) = b.asked.clone().unwrap();
    for outcome in worthless(Record { term: Term(3), primary: host("a"), backups: Vec::new() }) {
        let out = b.tell(Input::Answer { id, outcome });
        assert!(matches!(&out[..], [Action::AskAgain { new: again, .. }] if *again == new), "{out:?}");
    }
    assert!(b.win().1.contains(&Action::ResumeFrom { epoch: Epoch(1) }));
    // A record that can be believed and does not bind this host is an answer.
    let mut b = claiming();
    assert!(b.lose(Record { term: Term(4), primary: host("a"), backups: Vec::new() }).contains(&Action::StandDown));
}

/// Nothing waits yet where a VM is to be booted; one that is loaded does.
#[test]
fn a_start_says_what_the_witness_answers() {
    for (found, from) in [(None, "it refuses"), (Some(Record::boot(host("a"))), "it has no record")] {
        let mut a = Host::new("a");
        a.tell(Input::Start { found: found.clone(), force: false });
        let (id, _) = a.asked.clone().unwrap();
        let outcome = if found.is_none() { Outcome::Refused("full".into()) } else { Outcome::Lost(None) };
        let out = a.tell(Input::Answer { id, outcome });
        assert!(matches!(&out[..], [Action::Refuse(Refused::Doubted { reason })] if reason.contains(from)), "{out:?}");
        assert_eq!((a.protocol.role(), a.protocol.awaits_witness()), (Role::Standby, false));
    }
    let mut a = Host::new("a");
    a.tell(Input::StartLoaded { found: Some(Record::boot(host("a"))), force: false });
    let (id, _) = a.asked.clone().unwrap();
    assert!(matches!(a.tell(Input::Answer { id, outcome: Outcome::Lost(None) })[..], [Action::AskAgain { .. }]));
    assert!(a.win().1.contains(&Action::ResumeFrom { epoch: Epoch(0) }));
    // A VM of which the witness has no record, and wants none: nothing has been changed by asking, and nothing will be.
    let mut a = Host::new("a");
    a.tell(Input::StartLoaded { found: None, force: false });
    let (id, _) = a.asked.clone().unwrap();
    let out = a.tell(Input::Answer { id, outcome: Outcome::Refused("full".into()) });
    assert!(matches!(&out[..], [Action::StandDown, Action::Emit(EventKind::StoodDown { .. })]), "{out:?}");
    assert_eq!((a.protocol.role(), a.protocol.awaits_witness()), (Role::Standby, false));
}

/// A host that did not have the VM last names the one that did, and who may still have it.
#[test]
fn a_plain_start_is_refused_with_the_name_of_who_had_it_last() {
    let a = Host::new("a");
    let said = |found: &Record| a.protocol.may_start(Some(found), false).unwrap_err().to_string();
    let alone = Record { term: Term(6), primary: host("b"), backups: Vec::new() };
    assert_eq!(
        said(&alone),
        "the witness says that b was the last to run it: it runs there still, or it has ended there (term 6)"
    );
    a.protocol.may_start(Some(&alone), true).unwrap();
    let bound = Record { backups: vec![backup("c", Term(4)), backup("d", Term(5))], ..alone };
    assert_eq!(said(&bound), "the witness says that b runs it or c or d may take it over (term 6)");
    let ours = Record::boot(host("a"));
    a.protocol.may_start(Some(&ours), false).unwrap();
}

/// A backup that still waits for its disk before it asks is of no use to a primary that has gone on without it, and no hindrance.
#[test]
fn a_claim_that_was_not_sent_ends_when_nothing_can_come_of_it() {
    let mut b = Host::new("b");
    b.tell(Input::Offer { from: host("a"), session: Term(4) });
    b.tell(Input::CheckpointHeld { session: Term(4), epoch: Epoch(1), first: true });
    let told = Record { term: Term(5), primary: host("a"), backups: vec![backup("b", Term(4))] };
    b.tell(Input::BoundNotice { session: Term(4), record: told.clone() });
    b.only(Input::PrimaryLost { session: Term(4), reason: "silent".into() });
    assert_eq!(b.only(Input::Observed(told)), [], "it may still claim");
    let alone = Record { term: Term(6), primary: host("a"), backups: Vec::new() };
    assert_eq!(b.only(Input::Observed(alone.clone()))[0], Action::StandDown);
    assert!(
        b.only(Input::Offer { from: host("a"), session: Term(6) })
            .contains(&Action::AcceptSession { session: Term(6) })
    );
    // One that was sent waits for its answer, whatever is read meanwhile.
    let mut b = claiming();
    assert_eq!(b.only(Input::Observed(Record { term: Term(60), ..alone })), []);
}

/// What is being noted in the log when a host gives up is not proposed when the note is there.
#[test]
fn who_has_given_up_proposes_nothing() {
    let mut b = Host::new("b");
    b.tell(Input::Offer { from: host("a"), session: Term(4) });
    b.tell(Input::CheckpointHeld { session: Term(4), epoch: Epoch(1), first: true });
    let out = b.only(Input::PrimaryLost { session: Term(4), reason: "silent".into() });
    let Some(&Action::Prepare { id, .. }) = out.iter().find(|a| matches!(a, Action::Prepare { .. })) else {
        panic!("{out:?}")
    };
    assert!(b.asked.is_none() && !b.protocol.may_have_won(), "{out:?}");
    b.protocol.abandon();
    assert_eq!(b.only(Input::Prepared { id }), []);
    // It is asked for once.
    let mut b = claiming();
    let (id, _) = b.asked.clone().unwrap();
    assert!(b.protocol.may_have_won());
    assert_eq!(b.only(Input::Prepared { id }), []);
}

/// Host `name` holds a checkpoint of session `session`, bound with another by this record of host a's, and has asked for the VM.
fn claims_beside(name: &str, session: u64) -> (Host, Record) {
    let backups = vec![backup("b", Term(4)), backup("c", Term(5))];
    let told = Record { term: Term(6), primary: host("a"), backups };
    let mut h = Host::new(name);
    let session = Term(session);
    h.tell(Input::Offer { from: host("a"), session });
    h.tell(Input::CheckpointHeld { session, epoch: Epoch(1), first: true });
    h.tell(Input::BoundNotice { session, record: told.clone() });
    h.tell(Input::PrimaryLost { session, reason: "silent".into() });
    (h, told)
}

fn cannot() -> Input {
    Input::CannotResume { reason: "it is refused".into() }
}

/// Host b, with the record by which it gives the VM back.
fn gives_back() -> (Host, Record) {
    let (mut b, told) = claims_beside("b", 4);
    let (won, out) = b.win();
    assert!(won == told.alone(host("b")) && out.contains(&Action::ResumeFrom { epoch: Epoch(1) }), "{out:?}");
    b.tell(cannot());
    let given = Record { backups: vec![backup("c", Term(5))], ..won.alone(host("b")) };
    assert_eq!(b.asked.as_ref().map(|(_, new)| new), Some(&given));
    (b, given)
}

#[test]
fn a_winner_that_cannot_resume_gives_the_vm_back() {
    let (mut b, given) = gives_back();
    assert_eq!((b.protocol.role(), b.protocol.protection()), (Role::Primary, Some(ProtectionState::Unprotected)));
    assert!(b.protocol.may_have_won(), "the others wait for its word");
    let offer = Input::Offer { from: host("c"), session: Term(20) };
    assert!(matches!(b.tell(offer)[..], [Action::RefuseSession { .. }]));
    let (_, out) = b.win();
    let said = EventKind::GaveBack { term: given.term, backups: vec![host("c")], reason: "it is refused".into() };
    assert_eq!(out, [Action::StandDown, Action::Emit(said)]);
    assert_eq!(b.protocol.role(), Role::Standby);
    // Somebody has started the VM elsewhere meanwhile.
    let (mut b, given) = gives_back();
    assert_eq!(b.lose(given.alone(host("d")))[0], Action::StandDown);
}

#[test]
fn who_was_second_goes_on_with_what_is_given_back() {
    let (mut c, told) = claims_beside("c", 5);
    let won = told.alone(host("b"));
    assert!(matches!(c.lose(won.clone())[..], [Action::Emit(EventKind::ClaimLost { .. })]));
    assert!(c.protocol.is_spare());
    for older in [told.clone(), won.clone()] {
        assert_eq!(c.tell(Input::Observed(older)), []);
    }
    let mut given = won.alone(host("b"));
    given.backups = vec![backup("c", Term(5))];
    c.tell(Input::Observed(given.clone()));
    assert_eq!(c.asked.as_ref().map(|(_, new)| new), Some(&given.alone(host("c"))));
    assert!(c.win().1.contains(&Action::ResumeFrom { epoch: Epoch(1) }));
    // One that hears of it only then claims from what it is shown.
    let (mut c, _) = claims_beside("c", 5);
    c.lose(given.clone());
    assert!(c.win().1.contains(&Action::ResumeFrom { epoch: Epoch(1) }));
    // And it has nobody left to give it to.
    let reason = "it is refused".to_owned();
    assert_eq!(c.tell(cannot()), [Action::Emit(EventKind::Lost { reason }), Action::StandDown]);
}

#[test]
fn a_spare_serves_whoever_runs_the_vm() {
    let spare = || {
        let (mut c, told) = claims_beside("c", 5);
        let won = told.alone(host("b"));
        c.lose(won.clone());
        (c, won)
    };
    let (mut c, won) = spare();
    let session = won.term;
    let out = c.tell(Input::Offer { from: host("b"), session });
    assert_eq!(out, [Action::StandDown, Action::AcceptSession { session }]);
    // It has bound another, or the same host in another session: what is held here is of no use but to a session.
    for other in [backup("d", session), backup("c", session)] {
        let (mut c, won) = spare();
        let bound = won.bound(vec![other]);
        let out = c.tell(Input::Observed(bound));
        assert!(matches!(out[..], [Action::StandDown, Action::Emit(EventKind::StoodDown { .. })]), "{out:?}");
        assert!(!c.protocol.is_spare());
    }
    // It may only have lost it to a further one.
    let (mut c, won) = spare();
    assert_eq!(c.tell(Input::Observed(won.alone(host("d")))), []);
    assert!(c.protocol.is_spare());
    assert!(c.protocol.may_start(None, true).is_err(), "what it holds has to go first");
}

/// A backup that reads of another's claim before it has noticed anything is as good as one that has.
#[test]
fn a_backup_that_is_overtaken_asks_as_well() {
    let (mut c, told) = claims_beside("c", 5);
    c.protocol.abandon();
    let session = Term(9);
    c.tell(Input::Offer { from: host("a"), session });
    let won = Record { term: Term(20), ..told.alone(host("b")) };
    assert!(!c.protocol.is_overtaken(&won), "it holds nothing");
    c.tell(Input::CheckpointHeld { session, epoch: Epoch(1), first: true });
    assert!(c.protocol.is_overtaken(&won));
    assert_eq!(c.tell(Input::Observed(won.clone())), [], "the shell ends the session");
    let bound = won.bound(vec![backup("d", Term(20))]);
    assert!(!c.protocol.is_overtaken(&bound));
    assert_eq!(c.tell(Input::Observed(bound))[0], Action::StandDown);
}

/// The standby dies while the witness is asked: if the VM is won all the same, the others have it.
#[test]
fn a_claim_whose_standby_has_died_is_given_back_when_it_is_won() {
    let (mut b, told) = claims_beside("b", 4);
    assert_eq!(b.tell(cannot()), []);
    assert!(b.protocol.may_have_won());
    let (_, out) = b.win();
    assert!(!out.iter().any(|a| matches!(a, Action::ResumeFrom { .. })), "{out:?}");
    assert_eq!(b.asked.as_ref().map(|(_, new)| &new.backups[..]), Some(&[backup("c", Term(5))][..]));
    // If it is lost, it asks for nothing more, whatever it might.
    let (mut b, _) = claims_beside("b", 4);
    b.tell(cannot());
    assert_eq!(b.lose(told.bound(told.backups.clone()))[0], Action::StandDown);
    // Before it was asked, nothing is.
    let mut b = Host::new("b");
    b.tell(Input::Offer { from: host("a"), session: Term(4) });
    b.tell(Input::CheckpointHeld { session: Term(4), epoch: Epoch(1), first: true });
    b.only(Input::PrimaryLost { session: Term(4), reason: "silent".into() });
    assert_eq!(b.only(cannot()), [Action::StandDown]);
}

#[test]
fn who_has_run_the_vm_gives_nothing_back() {
    let (mut b, _) = claims_beside("b", 4);
    b.win();
    b.tell(Input::Resumed);
    let out = b.tell(cannot());
    assert!(matches!(out[..], [Action::StandDown, Action::Emit(EventKind::Lost { .. })]), "{out:?}");
    assert!(b.asked.is_none());
    // What was loaded from a log or a snapshot is still there.
    let mut a = Host::new("a");
    a.tell(Input::StartLoaded { found: None, force: false });
    a.win();
    assert!(matches!(a.tell(cannot())[..], [Action::Emit(EventKind::Lost { .. }), Action::StandDown]));
}

/// What was asked for before the guest ran, on behalf of the log, is answered first.
#[test]
fn a_log_is_invalidated_before_the_vm_is_given_back() {
    let (mut b, _) = claims_beside("b", 4);
    b.win();
    b.tell(Input::LogFirst { epoch: Epoch(1) });
    b.tell(Input::LogLost { noted: false });
    b.tell(cannot());
    let (invalidated, out) = b.win();
    assert!(invalidated.is_alone() && !out.contains(&Action::StandDown), "{out:?}");
    let (given, out) = b.win();
    assert_eq!(given.backups, [backup("c", Term(5))]);
    assert_eq!(out[0], Action::StandDown);
}

/// Whatever its host was at: what is here ends at once, and nothing is asked any more. A primary that waits for the binding of a backup is the
/// one that would be mute for ever.
#[test]
fn a_vm_that_was_retired_ends_wherever_it_is() {
    let retired = || Input::Retired { term: Term(9) };
    let mut binding = Host::new("a");
    binding.tell(Input::Start { found: None, force: false });
    binding.win();
    binding.tell(Input::PeerAvailable { peer: host("b") });
    let session = binding.protocol.sessions()[0].name;
    binding.tell(Input::FirstCheckpoint { session, epoch: Epoch(1) });
    binding.tell(Input::Acked { session, epoch: Epoch(1) });
    let mut starting = Host::new("a");
    starting.tell(Input::StartLoaded { found: None, force: false });
    let mut backup = Host::new("b");
    backup.tell(Input::Offer { from: host("a"), session: Term(1) });
    let (bound, ..) = protected_twice();
    for mut at in [binding, bound, starting, backup, claiming(), gives_back().0] {
        let id = at.asked.as_ref().map(|(id, _)| *id);
        let out = at.tell(retired());
        let ended = EventKind::StoodDown { term: Term(9), reason: "the VM was retired".into() };
        assert_eq!(out, [Action::StandDown, Action::Emit(ended)]);
        assert_eq!(at.protocol.role(), Role::Standby);
        assert!(id.is_none_or(|id| !at.protocol.awaits(id)));
        assert_eq!(at.tell(retired()), [], "once");
    }
}

/// By its primary, which does not run it and has bound nobody; by any other host, and while a backup may take it over, only by force.
#[test]
fn who_may_retire_a_vm() {
    let boot = Record::boot(host("a"));
    let bound = boot.bound(vec![backup("b", Term(1))]);
    let (a, c) = (Host::new("a"), Host::new("c"));
    assert_eq!(a.protocol.may_retire(&boot, false), Ok(false));
    for (at, record, forced) in [(&a, &bound, false), (&c, &boot, true), (&c, &bound, true)] {
        let held = Refused::Held { record: record.clone(), me: host(if forced { "c" } else { "a" }) };
        assert_eq!(at.protocol.may_retire(record, false), Err(held));
        assert_eq!(at.protocol.may_retire(record, true), Ok(forced));
    }
    let (running, ..) = protected_twice();
    assert_eq!(running.protocol.may_retire(&bound, true), Err(Refused::Here));
}
