//! Whole cores through what a VM lives through: events go in, effects are looked at. No thread, no clock, no file.

mod world;

use std::time::Duration;

use ninefold_control::operation::State;
use ninefold_control::{Answer, OperationKind, Refusal, Request};
use ninefold_core::effect::{
    DisksOrder, Effect, GuestIoOrder, LogOrder, ParkingOrder, PrimaryOrder, RecoveryOrder, SessionOrder, VmOrder,
    WitnessRequest, Word,
};
use ninefold_core::event::{Event, Observed, Seen};
use ninefold_model::event::EventKind;
use ninefold_model::spec::VmSpec;
use ninefold_model::status::{LogState, ProtectionState, Role};
use ninefold_model::{Backup, Epoch, HostName, Record, Term};
use ninefold_replica::protocol::{LogRole, LogStanding, Outcome, ProposalId};
use ninefold_replica::target::Target;
use world::{AtWin, Gate, World, spec, with_volumes};

const A: usize = 0;
const B: usize = 1;
const SECOND: Duration = Duration::from_secs(1);

fn plain() -> VmSpec {
    spec(serde_json::json!({}))
}

fn non_volatile() -> VmSpec {
    spec(serde_json::json!({
        "protection": "none", "non_volatile": { "interval_ms": 100, "hold_output": true }
    }))
}

/// Non-volatile and protected, with these volumes. Output waits for the log, or does not.
fn kept(volumes: serde_json::Value, hold_output: bool) -> VmSpec {
    with_volumes(volumes, serde_json::json!({ "non_volatile": { "interval_ms": 100, "hold_output": hold_output } }))
}

/// One volume.
fn disk() -> serde_json::Value {
    serde_json::json!([{ "name": "data", "size": 1 << 20 }])
}

/// A VM with one volume, writes to which are acknowledged when they are on disk.
fn on_disk() -> VmSpec {
    with_volumes(disk(), serde_json::json!({ "acknowledge": { "data": "disk" } }))
}

/// The VM runs on a, which has been asked to boot it.
fn booted(vm: &VmSpec, hosts: usize) -> World {
    let mut world = World::new(hosts, vm);
    world.pass(SECOND);
    assert!(matches!(world.answer(A, Request::Start { force: false }), Ok(Answer::Begun { .. })));
    world
}

/// And b is its backup.
fn protected() -> World {
    protected_as(&plain())
}

fn protected_as(vm: &VmSpec) -> World {
    let mut world = booted(vm, 2);
    world.pass(SECOND);
    assert_eq!(world.status(A).protection, Some(ProtectionState::Protected));
    world
}

/// The newest epoch that the volumes of host `at` were given since its effect number `from`; none if they were given nothing.
/// Everything, if they were let go.
fn given(world: &World, at: usize, from: usize) -> Option<Epoch> {
    let epoch = |effect: &Effect| match effect {
        Effect::Disks(DisksOrder::Commit(epoch)) => Some(*epoch),
        Effect::Disks(DisksOrder::GoThrough) => Some(Epoch(u64::MAX)),
        _ => None,
    };
    world.hosts[at].effects[from..].iter().filter_map(epoch).max()
}

fn told(world: &World, at: usize, is: impl Fn(&EventKind) -> bool) -> bool {
    world.hosts[at].journal.iter().any(is)
}

/// The place of the first effect of this kind from `from` on.
fn place(world: &World, at: usize, from: usize, is: impl Fn(&Effect) -> bool) -> usize {
    let found = world.hosts[at].effects[from..].iter().position(is);
    from + found.unwrap_or_else(|| panic!("no such effect: {:?}", &world.hosts[at].effects[from..]))
}

#[test]
fn a_vm_boots_when_the_witness_grants_it_and_its_output_leaves_at_once() {
    let world = booted(&plain(), 1);
    let host = &world.hosts[A];
    assert_eq!(host.gate, Gate::Open);
    assert_eq!(world.witness.as_ref().map(|r| r.primary.as_str()), Some("a"));
    let asked = place(&world, A, 0, |e| matches!(e, Effect::Ask(WitnessRequest::Propose { .. })));
    let boots = place(&world, A, asked, |e| matches!(e, Effect::Vm(VmOrder::Boot { .. })));
    // Its first frames find the gate open.
    let opens = place(&world, A, boots, |e| matches!(e, Effect::GuestIo(GuestIoOrder::Open { .. })));
    let goes = place(&world, A, boots, |e| matches!(e, Effect::LetGo(_)));
    assert!(opens < goes);
    assert!(told(&world, A, |e| matches!(e, EventKind::Booted { .. })));
}

#[test]
fn output_is_held_from_the_first_checkpoint_on_and_leaves_when_it_is_acknowledged() {
    let mut world = protected();
    let host = &world.hosts[A];
    let holds = place(&world, A, 0, |e| matches!(e, Effect::GuestIo(GuestIoOrder::Hold { .. })));
    let disks = place(&world, A, holds, |e| matches!(e, Effect::Disks(DisksOrder::Hold)));
    let goes = place(&world, A, holds, |e| matches!(e, Effect::LetGo(_)));
    assert!(holds < goes && disks < goes, "the checkpoint is taken before output and volumes are held");
    assert_eq!(host.gate, Gate::Held);
    assert!(host.released > Epoch(50), "{:?}", host.released);
    assert!(told(&world, A, |e| matches!(e, EventKind::Protected { .. })));
    assert!(told(&world, B, |e| matches!(e, EventKind::BackupReady { .. })));
    assert_eq!(world.witness.as_ref().map(|r| r.backups.len()), Some(1));
    // Nothing leaves that the backup has not.
    world.cut();
    let released = world.hosts[A].released;
    world.pass(Duration::from_millis(100));
    assert_eq!(world.hosts[A].released, released);
}

#[test]
fn a_backup_takes_over_when_its_primary_is_gone() {
    let mut world = protected();
    world.kill(A);
    world.pass(SECOND);
    let status = world.status(B);
    assert_eq!((status.role, status.protection), (Role::Primary, Some(ProtectionState::Unprotected)));
    let host = &world.hosts[B];
    assert!(host.runs.is_some() && host.gate == Gate::Open);
    assert!(told(&world, B, |e| matches!(e, EventKind::TookOver { .. })));
    assert_eq!(world.witness.as_ref().map(|r| r.primary.as_str()), Some("b"));
    // The guest does not run before the witness has granted the VM, nor does anything leave before it runs.
    let claims = place(&world, B, 0, |e| matches!(e, Effect::Ask(WitnessRequest::Propose { .. })));
    let starts = place(&world, B, 0, |e| matches!(e, Effect::Vm(VmOrder::Start { .. })));
    let opens = place(&world, B, 0, |e| matches!(e, Effect::GuestIo(GuestIoOrder::Open { .. })));
    assert!(claims < starts && starts < opens);
}

/// A backup that hears nothing any more suspects its primary; the primary, which cannot tell whether it has been replaced, lets nothing go
/// meanwhile.
#[test]
fn of_two_hosts_that_do_not_hear_each_other_one_speaks() {
    let mut world = protected();
    let term = world.status(A).term;
    world.cut();
    world.pass(SECOND * 2);
    let speaks = |at: usize| world.hosts[at].gate == Gate::Open && world.hosts[at].runs.is_some();
    assert!(speaks(A) != speaks(B), "a: {}, b: {}", speaks(A), speaks(B));
    let record = world.witness.clone().unwrap();
    assert!(record.term > term && record.backups.is_empty());
    assert_eq!(record.primary.as_str(), if speaks(A) { "a" } else { "b" });
}

/// A primary that has stood still for so long that it may have been replaced releases nothing before it has asked.
#[test]
fn a_primary_that_has_stood_still_asks_before_it_lets_anything_go() {
    let mut world = protected();
    world.hosts[A].cut_from_witness = true;
    world.pass_without(A, Duration::from_millis(200));
    let released = world.hosts[A].released;
    world.cut = true;
    world.tell(A, Event::Tick(Observed { uplink: true, ..Observed::default() }));
    world.settle();
    assert!(told(&world, A, |e| matches!(e, EventKind::StoodStill { .. })));
    let session = world.hosts[A].sessions[0];
    let epoch = Epoch(released.0 + 1);
    world.tell(A, Event::Acked { session, epoch, sent: None });
    world.settle();
    assert_eq!(world.hosts[A].released, released, "it may have been replaced");
}

#[test]
fn a_switchover_moves_the_vm_with_its_last_checkpoint() {
    let mut world = protected();
    assert!(matches!(world.answer(A, Request::Switchover), Ok(Answer::Begun { .. })));
    world.pass(SECOND);
    assert_eq!(world.witness.as_ref().map(|r| r.primary.as_str()), Some("b"));
    assert!(world.hosts[B].runs.is_some() && world.hosts[A].runs.is_none());
    // The former primary is the backup now.
    assert_eq!(world.status(B).protection, Some(ProtectionState::Protected));
    let muted = place(&world, A, 0, |e| matches!(e, Effect::Vm(VmOrder::TakeFinal)));
    let muted = place(&world, A, muted, |e| matches!(e, Effect::GuestIo(GuestIoOrder::Mute)));
    let ended = place(&world, A, muted, |e| matches!(e, Effect::Vm(VmOrder::End { .. })));
    assert!(muted < ended, "it is muted before the rest is taken down");
}

#[test]
fn an_unprotected_vm_speaks_at_once_when_the_witness_has_released_its_backup() {
    let mut world = protected();
    world.hosts[A].cut_from_witness = true;
    assert!(matches!(world.answer(A, Request::Unprotect), Ok(Answer::Done)));
    assert_eq!(world.hosts[A].gate, Gate::Held, "the backup may still take over");
    let mut world = protected();
    assert!(matches!(world.answer(A, Request::Unprotect), Ok(Answer::Done)));
    world.pass(SECOND);
    assert_eq!(world.hosts[A].gate, Gate::Open);
    assert_eq!(world.status(A).protection, Some(ProtectionState::Off));
    assert!(world.hosts[A].sessions.is_empty());
    assert_eq!(world.witness.as_ref().map(|r| r.backups.len()), Some(0));
}

/// Without its witness a protected VM goes on; what needs the witness is refused, or waits.
#[test]
fn a_vm_goes_on_without_its_witness_as_long_as_its_hosts_hear_each_other() {
    let mut world = protected();
    world.hosts.iter_mut().for_each(|host| host.cut_from_witness = true);
    let released = world.hosts[A].released;
    world.pass(SECOND);
    assert!(world.hosts[A].released > released);
    assert!(!world.status(A).witness_reachable);
    assert!(matches!(world.answer(A, Request::Switchover), Err(Refusal::WitnessSilent { .. })));
    // Its backup is gone: it holds its output until it may go on alone.
    world.kill(B);
    world.pass(SECOND);
    assert_eq!(world.hosts[A].gate, Gate::Held);
}

#[test]
fn output_waits_for_the_log_and_what_is_proposed_is_noted_before() {
    let mut world = booted(&non_volatile(), 1);
    world.pass(SECOND);
    assert_eq!(world.status(A).log.map(|log| log.state), Some(LogState::On));
    assert_eq!(world.hosts[A].gate, Gate::Held);
    assert!(world.hosts[A].released > Epoch(50));
    assert!(told(&world, A, |e| matches!(e, EventKind::NonVolatile { .. })));
}

/// A log whose disk hangs is invalidated at the witness before output leaves without it.
#[test]
fn a_log_that_hangs_is_invalidated_before_output_goes_on() {
    let mut world = booted(&non_volatile(), 1);
    world.pass(SECOND);
    let (term, released) = (world.status(A).term, world.hosts[A].released);
    let from = world.hosts[A].effects.len();
    world.log_hangs = true;
    world.pass(SECOND * 5);
    assert_eq!(world.hosts[A].released, released);
    world.pass(SECOND * 8);
    assert!(told(&world, A, |e| matches!(e, EventKind::LogLost { .. })));
    assert!(world.witness.as_ref().unwrap().term > term, "the log is of an older term now");
    let proposed = place(&world, A, from, |e| matches!(e, Effect::Ask(WitnessRequest::Propose { .. })));
    let opened = place(&world, A, from, |e| matches!(e, Effect::GuestIo(GuestIoOrder::Open { .. })));
    assert!(proposed < opened);
}

/// Who has a VM stopped hears of it when its log cannot be gone on from any more.
#[test]
fn a_vm_is_said_to_have_stopped_when_its_log_is_gone() {
    let mut world = booted(&non_volatile(), 1);
    world.pass(SECOND);
    world.log_hangs = true;
    let stop = world.begin(A, Request::Stop);
    assert!(world.hosts[A].effects.iter().any(|e| matches!(e, Effect::Log { order: LogOrder::Remove, .. })));
    let stopped = |world: &World| told(world, A, |e| matches!(e, EventKind::Stopped { .. }));
    assert!(!stopped(&world) && !world.hosts[A].operations[&stop].has_ended());
    // Nor is the VM started meanwhile.
    let start = world.ask(A, Request::Start { force: false });
    world.pass(SECOND);
    assert!(world.hosts[A].runs.is_none() && !world.hosts[A].replies.contains_key(&start));
    // But a disk that does not answer is not waited for without end.
    world.pass(SECOND * 2);
    assert!(stopped(&world) && matches!(world.hosts[A].operations[&stop].state, State::Done { .. }));
    assert!(world.hosts[A].runs.is_some());
}

/// A standby that was parked has the volumes open and the memory of a whole VM: the QEMU that is launched waits until that is gone, for which it
/// has to find it.
#[test]
fn what_is_parked_is_left_to_the_launch_that_waits_for_its_end() {
    let mut world = protected();
    assert!(matches!(world.answer(A, Request::Stop), Ok(Answer::Begun { .. })));
    world.pass(SECOND);
    let from = world.hosts[B].effects.len();
    assert!(matches!(world.answer(B, Request::Start { force: true }), Ok(Answer::Begun { .. })));
    let boots = place(&world, B, from, |e| matches!(e, Effect::Vm(VmOrder::Boot { .. })));
    let clears = |e: &Effect| matches!(e, Effect::Parking(ParkingOrder::Clear));
    assert!(!world.hosts[B].effects[from..boots].iter().any(clears));
}

/// A thread that the core does not want any more is not let go on, and what it says is ignored.
#[test]
fn a_late_word_of_a_former_thread_is_ignored() {
    let mut world = booted(&plain(), 1);
    assert!(matches!(world.answer(A, Request::Stop), Ok(Answer::Begun { .. })));
    assert!(matches!(world.answer(A, Request::Start { force: false }), Ok(Answer::Begun { .. })));
    let generation = world.hosts[A].runs.unwrap();
    world.tell(A, Event::VmLost { generation: generation - 1, reason: "late".into() });
    world.settle();
    assert_eq!(world.status(A).role, Role::Primary);
    let id = ninefold_core::event::RequestId(900);
    world.tell(A, Event::Request { id, request: Request::Stop, token: None, seen: Seen::default() });
    world.settle();
    assert_eq!(world.hosts[A].gate, Gate::Mute);
}

/// Who starts a VM that ends before its guest runs hears of it, and whoever starts it after that is not told to wait for the first.
#[test]
fn a_vm_that_ends_while_it_is_launched_can_be_started_again() {
    let ends = |end: fn(&mut World)| {
        let mut world = World::new(1, &plain());
        world.launch_hangs = true;
        world.pass(SECOND);
        let start = world.begin(A, Request::Start { force: false });
        assert!(!world.hosts[A].operations[&start].has_ended(), "its QEMU is not there");
        end(&mut world);
        let ended = &world.hosts[A].operations[&start].state;
        assert!(matches!(ended, State::Failed { error: Refusal::VmEnded { .. } }), "{ended:?}");
        world.launch_hangs = false;
        let again = world.answer(A, Request::Start { force: true });
        assert!(matches!(again, Ok(Answer::Begun { .. })), "{again:?}");
    };
    ends(|world| assert!(matches!(world.answer(A, Request::Stop), Ok(Answer::Begun { .. }))));
    // An operator has started it elsewhere.
    ends(|world| {
        let record = world.witness.clone().unwrap().alone("b".parse().unwrap());
        world.witness = Some(record.clone());
        world.tell(A, Event::WitnessHolds(Some(record)));
        world.settle();
    });
}

/// What a backup says in the moment in which it begins to claim is of what it had read before its primary fell silent for it, whatever has come
/// since: a primary relies on that for as long as a backup has patience.
#[test]
fn a_backup_that_begins_to_claim_answers_nothing_that_came_later() {
    let mut world = protected();
    let (session, _) = world.hosts[B].backup.unwrap();
    world.pass_without(B, Duration::from_millis(100));
    let from = world.hosts[B].effects.len();
    let silence = Duration::from_millis(400);
    let seen =
        Observed { uplink: true, primary_silence: Some((session, silence)), primary_echo: 7, ..Observed::default() };
    world.tell(B, Event::Tick(seen));
    world.settle();
    let told =
        |e: &Effect| matches!(e, Effect::Primary { order: PrimaryOrder::Say(Word::Heartbeat { echo_us: 7, .. }), .. });
    let beats = place(&world, B, from, told);
    let cuts = place(&world, B, from, |e| matches!(e, Effect::Primary { order: PrimaryOrder::Cut, .. }));
    assert!(beats < cuts);
}

/// A backup loads the first checkpoint once before it acknowledges it, which takes a slow machine longer than a checkpoint may be
/// unacknowledged. It is at work; when that is done, its disks have as long as ever.
#[test]
fn a_backup_that_loads_its_first_checkpoint_is_waited_for() {
    let closed = |world: &World| {
        let closes = |e: &Effect| matches!(e, Effect::Session { order: SessionOrder::Close(_), .. });
        world.hosts[A].effects.iter().any(closes)
    };
    let mut world = booted(&plain(), 2);
    world.loads = true;
    world.pass(SECOND * 8);
    assert!(!closed(&world), "it was given up");
    world.has_loaded(B, true);
    world.pass(SECOND);
    assert_eq!(world.status(A).protection, Some(ProtectionState::Protected));
    assert!(!closed(&world));
    // Not without end.
    let mut world = booted(&plain(), 2);
    world.loads = true;
    world.pass(SECOND * 33);
    assert!(closed(&world));
    // Nor is its disk waited for as long as that.
    let mut world = booted(&plain(), 2);
    world.loads = true;
    world.pass(SECOND * 8);
    world.has_loaded(B, false);
    world.pass(SECOND * 2);
    assert!(!closed(&world));
    world.pass(SECOND * 2);
    assert!(closed(&world));
}

/// What a backup holds cannot be acknowledged, since its disk hangs or fails. A primary that is there is told so, and goes on alone.
#[test]
fn a_backup_whose_disk_fails_is_none_for_a_primary_that_is_there() {
    let mut world = protected_as(&on_disk());
    let session = world.hosts[A].sessions[0];
    world.tell(B, Event::CannotAcknowledge { session, reason: "I/O error".into() });
    world.pass(Duration::from_millis(100));
    let refuses = |e: &Effect| matches!(e, Effect::Primary { order: PrimaryOrder::Say(Word::Refuse { .. }), .. });
    assert!(world.hosts[B].effects.iter().any(refuses));
    assert!(!world.hosts[A].sessions.contains(&session) && world.hosts[A].runs.is_some());
    assert!(told(&world, A, |e| matches!(e, EventKind::Unprotected { .. })));
}

/// It is all that is left of the VM once the primary is gone, whether that is known yet or not: it is not given up.
#[test]
fn a_backup_whose_disk_fails_goes_on_with_the_vm_when_its_primary_is_gone() {
    for known in [false, true] {
        let mut world = protected_as(&on_disk());
        let session = world.hosts[A].sessions[0];
        // Its power goes: nobody ends its connections.
        world.cut();
        world.hosts[A].alive = false;
        if known {
            world.hosts[B].cut_from_witness = true;
            world.pass(SECOND);
            assert!(told(&world, B, |e| matches!(e, EventKind::PrimaryLost { .. })));
        }
        world.tell(B, Event::CannotAcknowledge { session, reason: "it takes too long".into() });
        world.hosts[B].cut_from_witness = false;
        world.pass(SECOND);
        assert!(world.hosts[B].runs.is_some(), "known: {known}");
        assert_eq!(world.witness.as_ref().map(|r| r.primary.as_str()), Some("b"));
        assert!(!told(&world, B, |e| matches!(e, EventKind::Lost { .. })));
    }
}

/// What the primary said before it lost its power, and nobody has read yet, is no sign of its life.
#[test]
fn what_lies_unread_gives_up_no_backup() {
    let mut world = protected_as(&on_disk());
    let session = world.hosts[A].sessions[0];
    world.cut();
    world.hosts[A].alive = false;
    world.unread = true;
    world.tell(B, Event::CannotAcknowledge { session, reason: "I/O error".into() });
    world.pass(Duration::from_millis(100));
    world.unread = false;
    world.pass(SECOND);
    assert!(world.hosts[B].runs.is_some());
}

/// The log of a host that has just won the VM fails, and cannot note it: with a loss of power now it would be gone on from, without what
/// was let go since. So nothing is, before the witness holds a record of which it does not know. What output does not wait for the log the
/// volumes do all the same.
#[test]
fn what_a_winner_says_waits_until_its_failed_log_is_invalidated() {
    for hold_output in [true, false] {
        let mut world = protected_as(&kept(serde_json::json!([]), hold_output));
        let from = world.hosts[B].effects.len();
        world.at_win = Some(AtWin::LogFails);
        world.kill(A);
        world.pass(SECOND * 5);
        let record = world.witness.clone().unwrap();
        assert!(record.primary.as_str() == "b" && world.hosts[B].runs.is_some(), "the guest goes on");
        let host = &world.hosts[B];
        assert!(!hold_output || (host.gate != Gate::Open && host.released == Epoch(0)), "{:?}", host.released);
        assert!(given(&world, B, from).is_none_or(|epoch| epoch == Epoch(0)), "{hold_output}");
        world.hosts[B].cut_from_witness = false;
        world.pass(SECOND);
        assert!(world.witness.as_ref().unwrap().term > record.term, "the log is of an older term now");
        assert_eq!(world.hosts[B].gate, Gate::Open);
        assert_eq!(given(&world, B, from), Some(Epoch(u64::MAX)));
    }
}

/// The same with volumes: they lack what the log did not take, and no guest runs on them. What is on the disk may be gone on from.
#[test]
fn no_guest_runs_on_volumes_that_lack_what_a_failed_log_did_not_take() {
    let mut world = protected_as(&kept(disk(), true));
    let from = world.hosts[B].effects.len();
    world.at_win = Some(AtWin::LogFails);
    world.kill(A);
    world.pass(SECOND * 5);
    assert_eq!(world.witness.as_ref().map(|r| r.primary.as_str()), Some("b"));
    let runs = |e: &Effect| matches!(e, Effect::Vm(VmOrder::Start { .. } | VmOrder::Run { .. } | VmOrder::Boot { .. }));
    assert!(!world.hosts[B].effects[from..].iter().any(runs) && world.hosts[B].runs.is_none());
    assert!(given(&world, B, from).is_none_or(|epoch| epoch == Epoch(0)));
    assert_ne!(world.hosts[B].gate, Gate::Open);
    place(&world, B, from, |e| matches!(e, Effect::Recovery { order: RecoveryOrder::Look, .. }));
}

/// A primary's log fails and cannot note it: neither volumes nor clients that wait for the log get what it has not, though a backup has all
/// of it, until the witness holds a record of which the log does not know.
#[test]
fn a_failed_log_holds_output_and_volumes_until_it_is_invalidated() {
    for hold_output in [true, false] {
        let mut world = protected_as(&kept(disk(), hold_output));
        let term = world.status(A).term;
        let (_, durable) = world.hosts[A].log.expect("a log");
        let (from, released) = (world.hosts[A].effects.len(), world.hosts[A].released);
        assert!(durable > Epoch(50) && released >= Epoch(50));
        world.log_fails(A);
        world.pass(SECOND * 5);
        assert!(told(&world, A, |e| matches!(e, EventKind::LogLost { .. })));
        assert!(!hold_output || world.hosts[A].released <= durable, "{:?}", world.hosts[A].released);
        assert!(given(&world, A, from).is_none_or(|epoch| epoch <= durable), "{hold_output}");
        assert_eq!(world.witness.as_ref().map(|r| r.term), Some(term));
        world.hosts[A].cut_from_witness = false;
        world.pass(SECOND);
        let record = world.witness.clone().unwrap();
        assert!(record.term > term && record.backups.len() == 1, "the same backup, another term");
        assert!(world.hosts[A].released > Epoch(durable.0 + 100), "what the backup has may go");
        assert!(given(&world, A, from).is_some_and(|epoch| epoch > Epoch(durable.0 + 100)));
    }
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// Host a's record: b is bound in session 1, or nobody is.
fn record(term: u64, bound: bool) -> Record {
    let backup = Backup { host: host("b"), session: Term(1) };
    Record { term: Term(term), primary: host("a"), backups: bound.then_some(backup).into_iter().collect() }
}

/// b has come back after a loss of power with a log whose last checkpoint is of this term. It received session 1 of a.
fn came_back(term: u64) -> World {
    let vm = spec(serde_json::json!({ "non_volatile": { "interval_ms": 100, "hold_output": true } }));
    let mut world = World::new(2, &vm);
    world.kill(A);
    let role = LogRole::Backup { session: Term(1), primary: host("a") };
    world.hosts[B].found = Some((LogStanding::new(role), Term(term)));
    world
}

/// The witness is read, and shows this.
fn shows(world: &mut World, record: &Record) {
    world.witness = Some(record.clone());
    world.tell(B, Event::WitnessHolds(world.witness.clone()));
    world.pass(Duration::from_millis(50));
    world.tell(B, Event::WitnessHolds(world.witness.clone()));
    world.settle();
}

fn loads(world: &World) -> bool {
    let load = |e: &Effect| matches!(e, Effect::Recovery { order: RecoveryOrder::Load, .. });
    world.hosts[B].effects.iter().any(load)
}

/// A record that is older than the one under which the log was written says nothing, although the log's role knows of no newer.
#[test]
fn a_log_knows_the_term_of_its_last_checkpoint() {
    let mut world = came_back(2);
    world.pass(Duration::from_millis(50));
    shows(&mut world, &record(1, false));
    assert!(!loads(&world));
    assert!(told(&world, B, |e| matches!(e, EventKind::WitnessDoubted { .. })));
    shows(&mut world, &record(2, true));
    assert!(loads(&world));
}

/// Where a log cannot tell that a record is old, it is left alone, and looked at again when the witness shows another that it speaks of.
#[test]
fn a_log_that_was_left_alone_is_looked_at_again() {
    let mut world = came_back(1);
    world.pass(Duration::from_millis(50));
    shows(&mut world, &record(1, false));
    assert!(!loads(&world) && !told(&world, B, |e| matches!(e, EventKind::WitnessDoubted { .. })));
    shows(&mut world, &record(2, true));
    assert!(loads(&world));
}

/// A non-volatile VM runs on a and b is its backup; this is asked of a, and its QEMU dies while the witness's answer is on its way. With what a
/// has proposed.
fn dies_while(asked: Request) -> (World, ProposalId, Record) {
    let vm = spec(serde_json::json!({ "non_volatile": { "interval_ms": 100, "hold_output": true } }));
    let mut world = booted(&vm, 2);
    world.pass(SECOND * 2);
    let status = world.status(A);
    assert_eq!(status.protection, Some(ProtectionState::Protected));
    assert_eq!(status.log.map(|log| log.state), Some(LogState::On));
    world.hosts[A].cut_from_witness = true;
    let from = world.hosts[A].effects.len();
    world.ask(A, asked);
    let asked = place(&world, A, from, |e| matches!(e, Effect::Ask(WitnessRequest::Propose { .. })));
    let Effect::Ask(WitnessRequest::Propose { id, new, .. }) = world.hosts[A].effects[asked].clone() else {
        unreachable!()
    };
    // The backup would take over, and is gone by then.
    world.hosts[B].alive = false;
    let generation = world.hosts[A].runs.unwrap();
    world.tell(A, Event::VmLost { generation, reason: "killed".into() });
    world.pass(Duration::from_millis(100));
    assert!(told(&world, A, |e| matches!(e, EventKind::StoodDown { .. })));
    assert!(!told(&world, A, |e| matches!(e, EventKind::Stopped { .. } | EventKind::Lost { .. })));
    (world, id, new)
}

fn has_stopped(world: &World) -> bool {
    let removed = |e: &Effect| matches!(e, Effect::Log { order: LogOrder::Remove, .. });
    let stopped = told(world, A, |e| matches!(e, EventKind::Stopped { .. }));
    assert_eq!(stopped, world.hosts[A].effects.iter().any(removed));
    stopped
}

/// A VM is stopped, and its QEMU dies while the witness's answer is on its way: it has stopped when that has come, and its log goes. What the
/// witness is read to hold before says nothing: what it was asked for may wait there for its disk.
#[test]
fn a_vm_has_stopped_although_its_qemu_dies_before_that_is_known() {
    let (mut world, id, _) = dies_while(Request::Stop);
    assert!(matches!(world.answer(A, Request::Start { force: false }), Err(Refusal::Busy { .. })));
    world.tell(A, Event::WitnessHolds(world.witness.clone()));
    world.pass(SECOND * 40);
    assert!(!has_stopped(&world) && !told(&world, A, |e| matches!(e, EventKind::Lost { .. })));
    let looks = |e: &Effect| matches!(e, Effect::Recovery { order: RecoveryOrder::Look, .. });
    let looked = world.hosts[A].effects.iter().filter(|e| looks(e)).count();
    world.tell(A, Event::WitnessAnswer { id, outcome: Outcome::Won });
    world.pass(SECOND * 40);
    assert!(has_stopped(&world));
    let stop = world.hosts[A].operations.values().find(|o| o.kind == OperationKind::Stop).unwrap();
    let is_stopped = |event: &EventKind| matches!(event, EventKind::Stopped { .. });
    assert!(matches!(&stop.state, State::Done { outcome: Some(event) } if is_stopped(event)), "{stop:?}");
    assert_eq!(world.hosts[A].effects.iter().filter(|e| looks(e)).count(), looked, "nothing is gone on from");
    // It is asked for until the witness answers.
    let (mut world, ..) = dies_while(Request::Stop);
    world.hosts[A].cut_from_witness = false;
    world.pass(SECOND);
    assert!(has_stopped(&world));
}

/// A keeper that is told to end while it waits for that ends when it has heard it, or after a while.
#[test]
fn a_keeper_does_not_end_before_its_vm_has_stopped() {
    for answers in [true, false] {
        let (mut world, id, _) = dies_while(Request::Stop);
        world.tell(A, Event::Quit);
        world.pass(SECOND * 5);
        assert!(!world.hosts[A].core.is_done() && !has_stopped(&world));
        if answers {
            world.tell(A, Event::WitnessAnswer { id, outcome: Outcome::Won });
        }
        world.pass(if answers { SECOND } else { SECOND * 6 });
        assert!(world.hosts[A].core.is_done());
        assert_eq!(has_stopped(&world), answers);
    }
    // Nor one whose QEMU is there still, and whose backup is lost.
    let vm = spec(serde_json::json!({ "non_volatile": { "interval_ms": 100, "hold_output": true } }));
    let mut world = booted(&vm, 2);
    world.pass(SECOND * 2);
    world.hosts[A].cut_from_witness = true;
    world.kill(B);
    world.ask(A, Request::Stop);
    world.tell(A, Event::Quit);
    world.pass(SECOND);
    assert!(!world.hosts[A].core.is_done());
    world.hosts[A].cut_from_witness = false;
    world.pass(SECOND);
    assert!(world.hosts[A].core.is_done() && has_stopped(&world));
}

/// Who starts the VM by force waits for nothing.
#[test]
fn a_forced_start_ends_the_wait_for_a_stop() {
    for granted in [true, false] {
        let (mut world, _, new) = dies_while(Request::Stop);
        world.hosts[A].cut_from_witness = false;
        if granted {
            world.witness = Some(new);
        }
        let start = world.begin(A, Request::Start { force: true });
        world.pass(SECOND);
        assert!(world.hosts[A].runs.is_some() && !told(&world, A, |e| matches!(e, EventKind::Stopped { .. })));
        assert!(matches!(world.hosts[A].operations[&start].state, State::Done { .. }));
        let stop = world.hosts[A].operations.values().find(|o| o.kind == OperationKind::Stop).unwrap();
        assert!(matches!(stop.state, State::Failed { error: Refusal::Cancelled }), "{stop:?}");
    }
}

/// A VM was to go on without its backup when its QEMU died. That the witness holds what it held is no answer: what it was asked for comes, and
/// nobody has the VM then. If nothing comes, this host may go on from its log.
#[test]
fn a_vm_is_lost_when_its_backup_is_released_after_its_qemu_has_died() {
    let (mut world, _, new) = dies_while(Request::Unprotect);
    let holds = |world: &mut World, record: Option<Record>| {
        world.tell(A, Event::WitnessHolds(record));
        world.settle();
    };
    let before = world.witness.clone();
    holds(&mut world, before);
    holds(&mut world, Some(new));
    assert!(told(&world, A, |e| matches!(e, EventKind::Lost { .. })));

    let (mut world, ..) = dies_while(Request::Unprotect);
    let from = world.hosts[A].effects.len();
    let before = world.witness.clone();
    for _ in 0..35 {
        holds(&mut world, before.clone());
        world.pass(SECOND);
    }
    place(&world, A, from, |e| matches!(e, Effect::Recovery { order: RecoveryOrder::Look, .. }));
}

/// What a guest said last before it powered itself off leaves before its VM ends: when what that tells of is on the disks.
#[test]
fn a_guest_that_powers_off_is_heard_out() {
    // Its backup is lost, and what it owed to that is owed to its own disks.
    let mut world = protected_as(&on_disk());
    world.owes = true;
    world.kill(B);
    world.pass(SECOND);
    assert_ne!(world.hosts[A].gate, Gate::Open);
    let generation = world.hosts[A].runs.unwrap();
    world.tell(A, Event::VmShutdown { generation });
    world.pass(SECOND);
    assert!(!told(&world, A, |e| matches!(e, EventKind::Stopped { .. })));
    assert_eq!(world.hosts[A].gate, Gate::Held, "what is held is dropped");
    let from = world.hosts[A].effects.len();
    world.owes = false;
    world.pass(SECOND);
    assert!(told(&world, A, |e| matches!(e, EventKind::Stopped { .. })));
    let opens = place(&world, A, from, |e| matches!(e, Effect::GuestIo(GuestIoOrder::TryOpen { .. })));
    place(&world, A, opens, |e| matches!(e, Effect::GuestIo(GuestIoOrder::Mute)));
    // The host could not tell whose the VM is, and has kept it.
    let mut world = booted(&non_volatile(), 1);
    world.pass(SECOND);
    world.keeps = true;
    let (generation, epoch) = (world.hosts[A].runs.unwrap(), world.hosts[A].released);
    world.tell(A, Event::VmShutdown { generation });
    world.tell(A, Event::FinalTaken { generation, epoch });
    world.pass(SECOND);
    assert!(!told(&world, A, |e| matches!(e, EventKind::Stopped { .. })));
    world.keeps = false;
    world.pass(SECOND);
    assert!(told(&world, A, |e| matches!(e, EventKind::Stopped { .. })));
    assert!(world.hosts[A].released > epoch);
}

/// A new primary announces its place with what it releases. What could not be announced is announced with the next release, also when that was
/// ordered before this was known.
#[test]
fn an_announcement_that_is_due_outlives_two_releases_at_once() {
    let mut world = booted(&plain(), 3);
    world.pass(SECOND);
    world.kill(A);
    world.pass(Duration::from_millis(1200));
    assert_eq!(world.status(B).protection, Some(ProtectionState::Protected));
    let session = world.hosts[B].sessions[0];
    let held = world.hosts[B].released;
    // The next announcement comes due while the host stands still.
    world.hosts[B].cut_from_witness = true;
    world.pass_without(B, SECOND);
    world.keeps_announcements = true;
    world.tell(B, Event::Tick(Observed { uplink: true, ..Observed::default() }));
    world.tell(B, Event::Acked { session, epoch: Epoch(held.0 + 1), sent: None });
    world.settle();
    assert_eq!(world.hosts[B].released, held, "it is in doubt");
    let from = world.hosts[B].effects.len();
    world.now = world.now.later(Duration::from_millis(1));
    world.tell(B, Event::Acked { session, epoch: Epoch(held.0 + 2), sent: Some(world.now.boottime) });
    world.settle();
    let announces = |world: &World, from: usize| {
        let release = |e: &Effect| match e {
            Effect::GuestIo(GuestIoOrder::Release { announce, .. }) => Some(*announce),
            _ => None,
        };
        world.hosts[B].effects[from..].iter().filter_map(release).collect::<Vec<_>>()
    };
    assert_eq!(announces(&world, from), [true, false], "it goes on, with both");
    let from = world.hosts[B].effects.len();
    world.tell(B, Event::Acked { session, epoch: Epoch(held.0 + 3), sent: Some(world.now.boottime) });
    world.settle();
    assert_eq!(announces(&world, from), [true]);
}

/// A backup whose first checkpoint cannot be loaded holds output up for half a minute each time: it is not asked again for twice as long, then four
/// times, but by a person. Other hosts are.
#[test]
fn a_backup_that_held_output_up_for_nothing_is_left_alone_for_longer() {
    let opened = |world: &World| {
        let opens = |e: &&Effect| matches!(e, Effect::Session { order: SessionOrder::Open { .. }, .. });
        world.hosts[A].effects.iter().filter(opens).count()
    };
    let mut world = booted(&plain(), 2);
    world.loads = true;
    world.pass(SECOND * 33);
    assert_eq!((opened(&world), world.hosts[A].gate), (1, Gate::Open));
    world.pass(SECOND * 55);
    assert_eq!(opened(&world), 1);
    let why = world.status(A).no_backup.unwrap();
    assert!(why.contains("b: it held output up for 30 s and failed"), "{why}");
    world.pass(SECOND * 36);
    assert_eq!((opened(&world), world.hosts[A].gate), (2, Gate::Open));
    world.pass(SECOND * 110);
    assert_eq!((opened(&world), world.hosts[A].gate), (2, Gate::Open));
    world.loads = false;
    world.begin(A, Request::Protect);
    world.pass(SECOND);
    assert_eq!(world.status(A).protection, Some(ProtectionState::Protected));
    // Another host is asked at once.
    let mut world = booted(&plain(), 3);
    world.loads = true;
    world.pass(SECOND * 32);
    world.loads = false;
    world.pass(SECOND);
    assert_eq!(world.status(A).backups.first().map(|b| b.host.to_string()), Some("c".into()));
}

/// What a VM that was lost says late is not taken for the present one's word.
#[test]
fn a_late_word_about_a_former_log_is_ignored() {
    let mut world = booted(&non_volatile(), 1);
    world.pass(SECOND);
    let generation = world.hosts[A].runs.unwrap();
    let fails = |generation| Event::CannotReplicate { generation, target: Target::Log, reason: "late".into() };
    world.tell(A, fails(generation - 1));
    world.settle();
    assert_eq!(world.status(A).log.map(|log| log.state), Some(LogState::On));
    world.tell(A, fails(generation));
    world.settle();
    assert_ne!(world.status(A).log.map(|log| log.state), Some(LogState::On));
}
