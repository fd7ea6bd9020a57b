//! Requests that take longer than their answer: how they begin, get on and end.

mod world;

use std::time::Duration;

use ninefold_control::operation::State;
use ninefold_control::{Answer, FreezeChoice, OperationId, OperationKind, Refusal, Request, Work};
use ninefold_core::effect::{Effect, GuestOrder, VmOrder};
use ninefold_core::event::{Event, NotAsked};
use ninefold_model::event::EventKind;
use ninefold_model::health::HealthySign;
use ninefold_model::spec::{Boot, Protection};
use ninefold_model::status::Role;
use ninefold_model::{Incarnation, Record, Term, Tombstone};
use serde_json::json;
use world::{Gate, World, spec};

const A: usize = 0;
const B: usize = 1;
const SECOND: Duration = Duration::from_secs(1);

fn hosts(count: usize) -> World {
    let mut world = World::new(count, &spec(json!({})));
    world.pass(SECOND);
    world
}

fn start() -> Request {
    Request::Start { force: false }
}

fn state(world: &World, number: u64) -> State {
    world.hosts[A].operations[&number].state.clone()
}

/// The refusal with which it has ended.
fn error(world: &World, number: u64) -> Refusal {
    match state(world, number) {
        State::Failed { error } => error,
        other => panic!("{other:?}"),
    }
}

/// The event with which it has ended.
fn outcome(world: &World, number: u64) -> EventKind {
    match state(world, number) {
        State::Done { outcome: Some(event) } => *event,
        other => panic!("{other:?}"),
    }
}

fn id(number: u64) -> OperationId {
    OperationId { incarnation: Incarnation(1), number }
}

#[test]
fn each_operation_ends_with_the_event_that_tells_most_of_it() {
    let mut world = hosts(2);
    let started = world.begin(A, start());
    assert!(matches!(outcome(&world, started), EventKind::Booted { .. }));
    let protect = world.begin(A, Request::Protect);
    world.pass(SECOND);
    assert!(matches!(outcome(&world, protect), EventKind::Protected { .. }));
    // Nothing tells of what is so already.
    let again = world.begin(A, Request::Protect);
    assert_eq!(state(&world, again), State::Done { outcome: None });
    let switchover = world.begin(A, Request::Switchover);
    world.pass(SECOND);
    let EventKind::SwitchoverStarted { to, .. } = outcome(&world, switchover) else { panic!() };
    assert_eq!(to.as_str(), "b");
    assert_ne!(world.status(A).role, Role::Primary);
    // What is refused is no operation.
    let refused = world.answer(A, Request::Switchover);
    assert!(matches!(refused, Err(Refusal::NotRunningHere { host: Some(_) })), "{refused:?}");
    assert_eq!(world.hosts[A].operations.len(), 4);
}

/// A client that has not heard the answer asks again.
#[test]
fn a_request_that_is_repeated_with_its_token_is_the_same_operation() {
    let mut world = hosts(1);
    let mut ask = |request, token| {
        let id = world.ask_with(A, request, Some(token));
        world.hosts[A].replies[&id].clone()
    };
    let Ok(Answer::Begun { operation: first }) = ask(start(), "one") else { panic!() };
    let Ok(Answer::Begun { operation: again }) = ask(start(), "one") else { panic!() };
    assert_eq!((first.id, again.id), (id(1), id(1)));
    assert!(again.has_ended() && again.token.as_deref() == Some("one"));
    // Another one is another start, and refused as it would have been.
    assert!(matches!(ask(start(), "two"), Err(Refusal::RunsHere)));
    let used = Refusal::TokenUsed { operation: Some(id(1)), kind: OperationKind::Start };
    assert_eq!(ask(Request::Protect, "one"), Err(used.clone()));
    // The same with other parameters is another request, too.
    assert_eq!(ask(Request::Start { force: true }, "one"), Err(used));
}

/// A client that has lost its connection may ask again before the first answer is there.
#[test]
fn a_request_that_is_repeated_before_it_is_answered_is_one_request() {
    let mut world = World::new(1, &spec(json!({ "protection": "none", "non_volatile": { "hold_output": true } })));
    world.pass(SECOND);
    world.begin(A, start());
    world.pass(SECOND);
    // A start waits for the log of the life before to be removed.
    world.log_hangs = true;
    world.begin(A, Request::Stop);
    let (first, again) = (world.ask_with(A, start(), Some("one")), world.ask_with(A, start(), Some("one")));
    let other = world.ask_with(A, Request::Start { force: true }, Some("one"));
    let used = Refusal::TokenUsed { operation: None, kind: OperationKind::Start };
    assert_eq!(world.hosts[A].replies.get(&other), Some(&Err(used)));
    assert!(!world.hosts[A].replies.contains_key(&first) && !world.hosts[A].replies.contains_key(&again));
    world.pass(SECOND * 3);
    let replies = &world.hosts[A].replies;
    assert!(matches!(&replies[&first], Ok(Answer::Begun { .. })) && replies[&first] == replies[&again]);
}

fn cancel(world: &mut World, number: u64) -> State {
    match world.answer(A, Request::Cancel { operation: id(number) }) {
        Ok(Answer::Operation { operation }) => operation.state,
        other => panic!("{other:?}"),
    }
}

fn launches(world: &World) -> usize {
    world.hosts[A].effects.iter().filter(|e| matches!(e, Effect::Vm(VmOrder::Boot { .. }))).count()
}

const CANCELLED: State = State::Failed { error: Refusal::Cancelled };

/// However far it has come, the VM is nowhere after that, and can be started again.
#[test]
fn a_start_that_is_cancelled_leaves_no_vm() {
    // Its QEMU is being launched.
    let mut world = hosts(1);
    world.launch_hangs = true;
    let started = world.begin(A, start());
    assert!(matches!(state(&world, started), State::Running { .. }));
    assert_eq!(world.answer(A, start()), Err(Refusal::Busy { with: Work::Start }));
    assert_eq!(cancel(&mut world, started), CANCELLED);
    assert_eq!(world.status(A).role, Role::Standby);
    world.launch_hangs = false;
    let again = world.begin(A, start());
    assert!(matches!(outcome(&world, again), EventKind::Booted { .. }));
    // The guest runs: that is not undone.
    assert!(matches!(cancel(&mut world, again), State::Done { .. }));
    assert_eq!(world.status(A).role, Role::Primary);

    // The witness has not been asked for more than what it holds.
    let mut world = hosts(1);
    world.hosts[A].cut_from_witness = true;
    let started = world.begin(A, Request::Start { force: true });
    assert!(matches!(cancel(&mut world, started), State::Running { .. }));
    // Its answer is not taken for another's, which may not be by force.
    assert_eq!(world.answer(A, start()), Err(Refusal::Busy { with: Work::Start }));
    world.tell(A, Event::StartFrom { found: None, force: true, behind: None });
    world.settle();
    assert_eq!(state(&world, started), CANCELLED);
    assert_eq!((world.status(A).role, launches(&world)), (Role::Standby, 0), "nothing is started");

    // It has been asked for the VM, and may grant it: that is waited for.
    let started = world.begin(A, start());
    world.tell(A, Event::StartFrom { found: None, force: false, behind: None });
    world.settle();
    assert!(matches!(cancel(&mut world, started), State::Running { .. }));
    assert!(matches!(cancel(&mut world, started), State::Running { .. }), "once more changes nothing");
    world.pass(SECOND);
    world.hosts[A].cut_from_witness = false;
    world.pass(SECOND);
    assert_eq!((state(&world, started), world.status(A).role), (CANCELLED, Role::Standby));
    assert_eq!(launches(&world), 0, "no guest has run");
    assert!(world.witness.as_ref().is_some_and(|record| record.is_alone() && record.primary.as_str() == "a"));
    let again = world.begin(A, start());
    assert!(matches!(outcome(&world, again), EventKind::Booted { .. }));
}

/// By force it may have been taken from another host by then: to give that up would leave the VM nowhere.
#[test]
fn a_forced_start_that_has_asked_for_the_vm_is_not_cancelled() {
    let mut world = hosts(1);
    world.launch_hangs = true;
    let started = world.begin(A, Request::Start { force: true });
    let refusal = Refusal::NotCancellable { operation: id(started), kind: OperationKind::Start };
    assert_eq!(world.answer(A, Request::Cancel { operation: id(started) }), Err(refusal));
    assert!(matches!(state(&world, started), State::Running { .. }));
}

/// What was wanted before is wanted again: who has given up to wait has not unprotected what somebody else wants protected.
#[test]
fn a_protect_that_is_cancelled_leaves_what_was_wanted_before() {
    let mut world = hosts(1);
    world.begin(A, start());
    let wanted = |world: &mut World| world.status(A).wanted;
    let protect = world.begin(A, Request::Protect);
    assert_eq!(cancel(&mut world, protect), CANCELLED);
    assert_eq!(wanted(&mut world), Protection::FaultTolerant, "so it was configured");
    let _ = world.answer(A, Request::Unprotect);
    let protect = world.begin(A, Request::Protect);
    assert_eq!(wanted(&mut world), Protection::FaultTolerant);
    assert_eq!(cancel(&mut world, protect), CANCELLED);
    assert_eq!(wanted(&mut world), Protection::None);
    // Two want it, and one of them waits no longer.
    let protect = world.begin(A, Request::Protect);
    assert_eq!(world.begin(A, Request::Protect), protect);
    assert_eq!(cancel(&mut world, protect), CANCELLED);
    assert_eq!(wanted(&mut world), Protection::FaultTolerant);
}

/// Until its loading begins nothing is touched.
#[test]
fn a_restore_is_cancelled_before_its_loading_begins_or_not_at_all() {
    let restore = || Request::Restore { name: "s".parse().unwrap(), force: false, clone: false };
    let mut world = hosts(1);
    world.hosts[A].cut_from_witness = true;
    let early = world.begin(A, restore());
    assert!(matches!(cancel(&mut world, early), State::Running { .. }), "the witness's answer is waited for");
    world.tell(A, Event::StartFrom { found: None, force: false, behind: None });
    world.settle();
    assert_eq!(state(&world, early), CANCELLED);
    world.hosts[A].cut_from_witness = false;
    let late = world.begin(A, restore());
    let refusal = Refusal::NotCancellable { operation: id(late), kind: OperationKind::Restore };
    assert_eq!(world.answer(A, Request::Cancel { operation: id(late) }), Err(refusal));
}

#[test]
fn a_shutdown_that_is_cancelled_ends_nothing() {
    let mut world = hosts(1);
    world.begin(A, start());
    let shutdown = || Request::Shutdown { within_ms: 3000, end: true, asked: false };
    let first = world.begin(A, shutdown());
    world.pass(SECOND * 2);
    let State::Running { progress: Some(progress) } = state(&world, first) else { panic!() };
    assert_eq!((progress.done, progress.total), (2000, 3000));
    // The time counts for who asks last.
    let second = world.begin(A, shutdown());
    assert_eq!(error(&world, first), Refusal::Cancelled);
    assert!(matches!(world.answer(A, Request::Cancel { operation: id(second) }), Ok(Answer::Operation { .. })));
    world.pass(SECOND * 5);
    assert_eq!((error(&world, second), world.status(A).role), (Refusal::Cancelled, Role::Primary));
    // What has ended is as it ended.
    assert!(matches!(world.answer(A, Request::Cancel { operation: id(first) }), Ok(Answer::Operation { .. })));
    let third = world.begin(A, shutdown());
    world.pass(SECOND * 5);
    assert!(matches!(outcome(&world, third), EventKind::Stopped { .. }));
}

#[test]
fn what_an_operation_waits_for_may_be_given_up() {
    let mut world = hosts(1);
    world.begin(A, start());
    let protect = world.begin(A, Request::Protect);
    world.pass(SECOND);
    assert!(matches!(state(&world, protect), State::Running { .. }), "there is no other host");
    let _ = world.answer(A, Request::Unprotect);
    assert_eq!(error(&world, protect), Refusal::Cancelled);
    let none = Request::Cancel { operation: id(99) };
    assert_eq!(world.answer(A, none), Err(Refusal::UnknownOperation { operation: id(99) }));
    let protect = world.begin(A, Request::Protect);
    let _ = world.answer(A, Request::Stop);
    assert!(matches!(error(&world, protect), Refusal::VmEnded { .. }));
}

/// However many ask for protection while there is no backup, it is one operation, and leaves room for others.
#[test]
fn who_asks_for_what_is_waited_for_already_waits_with_the_first() {
    let mut world = hosts(1);
    world.begin(A, start());
    let first = world.begin(A, Request::Protect);
    for _ in 0..100 {
        let Ok(Answer::Begun { operation }) = world.answer(A, Request::Protect) else { panic!() };
        assert_eq!(operation.id, id(first));
    }
    let shutdown = Request::Shutdown { within_ms: 3000, end: true, asked: false };
    let shutdown = world.begin(A, shutdown);
    assert!(matches!(state(&world, shutdown), State::Running { .. }));
    let _ = world.answer(A, Request::Unprotect);
    assert_eq!(error(&world, first), Refusal::Cancelled);
}

#[test]
fn a_token_of_who_waits_with_another_names_the_same_operation() {
    let mut world = hosts(1);
    world.begin(A, start());
    let first = world.begin(A, Request::Protect);
    let mut ask = |request| {
        let request = world.ask_with(A, request, Some("mine"));
        world.hosts[A].replies[&request].clone()
    };
    for _ in 0..2 {
        let Ok(Answer::Begun { operation }) = ask(Request::Protect) else { panic!() };
        assert_eq!(operation.id, id(first));
    }
    let used = Refusal::TokenUsed { operation: Some(id(first)), kind: OperationKind::Protect };
    assert_eq!(ask(Request::Dump), Err(used));
    let _ = world.answer(A, Request::Unprotect);
    // It is remembered how it has ended.
    let request = world.ask_with(A, Request::Protect, Some("mine"));
    assert!(matches!(&world.hosts[A].replies[&request], Ok(Answer::Begun { operation }) if operation.has_ended()));
}

/// A trial of this image: another one than any of the former trials'.
fn trial(image: &str) -> Request {
    let image = Boot::BootSector { image: image.into() };
    Request::Trial { image, within_ms: 10_000, sign: HealthySign::Asked }
}

fn dump(generation: u64) -> Event {
    let outcome = EventKind::Dumped { path: "/d".into(), bytes: 1, took_ms: 1 };
    Event::Dumped { generation, outcome }
}

/// What was asked of a guest whose QEMU is launched anew does not happen any more, and nobody waits for it.
#[test]
fn what_was_asked_of_a_former_guest_ends_with_it() {
    let mut world = hosts(1);
    world.begin(A, start());
    let shutdown = world.begin(A, Request::Shutdown { within_ms: 60_000, end: true, asked: false });
    let dumped = world.begin(A, Request::Dump);
    let name = "s".parse().unwrap();
    let snapshot = world.begin(A, Request::Snapshot { name, parent: None, freeze: FreezeChoice::Never });
    let (former, _) = (world.hosts[A].runs.unwrap(), world.begin(A, trial("/one")));
    for operation in [shutdown, dumped, snapshot] {
        assert!(matches!(error(&world, operation), Refusal::Relaunched { .. }), "{operation}");
    }
    // Nor does a late word of the former one's end what is asked of the present one.
    let later = world.begin(A, Request::Dump);
    world.tell(A, dump(former));
    world.settle();
    assert!(matches!(state(&world, later), State::Running { .. }));
    world.tell(A, dump(former + 1));
    world.settle();
    assert!(matches!(outcome(&world, later), EventKind::Dumped { .. }));
}

/// The first trial's image is still being put on record when the second begins: each ends as it ended itself.
#[test]
fn trials_in_a_row_end_each_with_its_own_outcome() {
    let commit = |world: &mut World, image: &str| {
        let number = world.begin(A, trial(image));
        assert!(matches!(world.answer(A, Request::CommitImage), Ok(Answer::Done)));
        let kept = world.hosts[A].effects.iter().rev().find_map(|effect| match effect {
            Effect::Guest(GuestOrder::KeepImage { trial, image, before, reason, .. }) => {
                Some((*trial, image.clone(), before.clone(), reason.clone()))
            }
            _ => None,
        });
        (number, kept.unwrap())
    };
    for failure in [None, Some("no room".to_owned())] {
        let mut world = hosts(1);
        world.begin(A, start());
        let (first, (trial_number, image, before, reason)) = commit(&mut world, "/one");
        let late = Request::Cancel { operation: id(first) };
        let over = Refusal::NotCancellable { operation: id(first), kind: OperationKind::Trial };
        assert_eq!(world.answer(A, late), Err(over), "it is over");
        let second = world.begin(A, trial("/two"));
        let kept = Event::ImageKept { trial: trial_number, image, before, reason, failure: failure.clone() };
        world.tell(A, kept);
        world.settle();
        match failure {
            None => assert!(matches!(outcome(&world, first), EventKind::ImageCommitted { .. })),
            Some(_) => {
                assert!(matches!(error(&world, first), Refusal::FellBack { reason } if reason.contains("no room")))
            }
        }
        assert!(matches!(state(&world, second), State::Running { .. }));
        assert!(matches!(world.answer(A, Request::FallBack), Ok(Answer::Done)));
        assert!(matches!(error(&world, second), Refusal::FellBack { .. }));
    }
}

/// Nobody waits for protection where it cannot come.
#[test]
fn protection_is_asked_of_the_host_that_runs_the_vm() {
    let mut world = hosts(2);
    world.begin(A, start());
    world.pass(SECOND);
    for request in [Request::Protect, Request::Unprotect] {
        let refused = world.answer(B, request);
        assert!(
            matches!(&refused, Err(Refusal::NotRunningHere { host: Some(host) }) if host.as_str() == "a"),
            "{refused:?}"
        );
    }
    assert_eq!(world.status(B).wanted, Protection::FaultTolerant);
    let mut alone = hosts(1);
    assert_eq!(alone.answer(A, Request::Protect), Err(Refusal::NotRunningHere { host: None }));
    // A host with no session knows it from the witness.
    let record = Record { term: Term(3), primary: "b".parse().unwrap(), backups: Vec::new() };
    alone.tell(A, Event::WitnessHolds(Some(record.clone())));
    assert_eq!(alone.answer(A, Request::Pause), Err(Refusal::NotRunningHere { host: Some(record.primary.clone()) }));
    // That it had the VM itself sends nobody to it again.
    alone.tell(A, Event::WitnessHolds(Some(record.alone("a".parse().unwrap()))));
    assert_eq!(alone.answer(A, Request::Pause), Err(Refusal::NotRunningHere { host: None }));
}

#[test]
fn what_waits_for_a_first_boot_ends_when_that_fails() {
    let mut world = hosts(1);
    world.launch_hangs = true;
    let (started, protect) = (world.begin(A, start()), world.begin(A, Request::Protect));
    world.tell(A, Event::VmLost { generation: 1, reason: "no such machine".into() });
    world.settle();
    assert!(matches!(error(&world, started), Refusal::StartFailed { .. }));
    assert!(matches!(error(&world, protect), Refusal::VmEnded { .. }));
}

/// A protected VM ends when the witness has agreed: else its backup would take over.
#[test]
fn a_stop_is_done_when_the_vm_has_stopped() {
    let mut world = hosts(2);
    world.begin(A, start());
    world.pass(SECOND);
    world.hosts[A].cut_from_witness = true;
    let stop = world.begin(A, Request::Stop);
    world.pass(SECOND);
    assert!(matches!(state(&world, stop), State::Running { .. }));
    assert_eq!(world.status(A).role, Role::Primary);
    // Whoever asks for it again waits with the first.
    assert_eq!(world.begin(A, Request::Stop), stop);
    world.hosts[A].cut_from_witness = false;
    world.pass(SECOND);
    assert!(matches!(outcome(&world, stop), EventKind::Stopped { .. }));
}

/// What is refused later than at once has the code that it would have had at once.
#[test]
fn a_restore_fails_with_the_code_of_its_cause() {
    let restore = || Request::Restore { name: "s".parse().unwrap(), force: false, clone: false };
    let mut world = hosts(1);
    // Not for the witness to answer.
    world.hosts[A].cut_from_witness = true;
    let mut fails = |why: Event| {
        let operation = world.begin(A, restore());
        world.tell(A, why);
        world.settle();
        error(&world, operation)
    };
    let not_asked = |why| Event::NotAsked(why);
    let silent = fails(not_asked(NotAsked::Silent("no route".into())));
    assert_eq!(silent, Refusal::WitnessSilent { reason: "no route".into() });
    let refuses = fails(not_asked(NotAsked::Refuses("who are you?".into())));
    assert!(matches!(refuses, Refusal::WitnessDoubted { reason } if reason.contains("who are you?")));
    assert_eq!(fails(not_asked(NotAsked::Superseded)), Refusal::Busy { with: Work::Start });
    let record = Record { term: Term(7), primary: "b".parse().unwrap(), backups: Vec::new() };
    let held = fails(Event::StartFrom { found: Some(record.clone()), force: false, behind: None });
    assert_eq!(held, Refusal::HeldElsewhere { record: record.clone(), host: Some("b".parse().unwrap()) });
}

/// The same of a recovery, of which no snapshot's event tells.
#[test]
fn a_recovery_fails_with_the_code_of_its_cause() {
    let mut world = World::new(1, &spec(json!({ "protection": "none", "non_volatile": { "hold_output": true } })));
    world.pass(SECOND);
    world.hosts[A].cut_from_witness = true;
    let operation = world.begin(A, Request::Recover { force: true });
    world.tell(A, Event::NotAsked(NotAsked::Silent("no route".into())));
    world.settle();
    assert_eq!(error(&world, operation), Refusal::WitnessSilent { reason: "no route".into() });
}

/// A witness that answers what cannot be is not said to be silent.
#[test]
fn who_needs_a_witness_that_is_doubted_is_told_so() {
    let mut world = hosts(2);
    world.begin(A, start());
    world.pass(SECOND);
    for _ in 0..2 {
        world.tell(A, Event::WitnessHolds(None));
        world.settle();
    }
    let refused = world.answer(A, Request::Switchover);
    assert!(matches!(refused, Err(Refusal::WitnessDoubted { .. })), "{refused:?}");
    world.tell(A, Event::Witness { error: Some("no route".into()) });
    world.settle();
    assert_eq!(world.answer(A, Request::Switchover), Err(Refusal::WitnessSilent { reason: "no route".into() }));
}

/// A start that finds that the VM has begun to live elsewhere says so.
#[test]
fn a_start_ends_when_another_host_makes_this_one_its_backup() {
    let mut world = hosts(2);
    world.begin(A, start());
    world.hosts[B].cut_from_witness = true;
    let started = world.begin(B, start());
    world.pass(SECOND);
    let ended = world.hosts[B].operations[&started].state.clone();
    let State::Failed { error: Refusal::RunsElsewhere { host } } = ended else { panic!("{ended:?}") };
    assert_eq!(host, Some("a".parse().unwrap()));
}

fn retire(force: bool) -> Request {
    Request::Retire { force }
}

/// Only when it does not run, and by the host that had it, or by force. Then it is no more, and no start brings it back.
#[test]
fn a_vm_that_has_stopped_is_retired_for_good() {
    let mut world = hosts(2);
    let never = world.begin(A, retire(true));
    assert_eq!(error(&world, never), Refusal::NoRecord);
    world.begin(A, start());
    assert_eq!(world.answer(A, retire(true)), Err(Refusal::RunsHere));
    world.answer(A, Request::Stop).unwrap();
    world.pass(SECOND);
    let elsewhere = world.begin(B, retire(false));
    let record = world.witness.clone().unwrap();
    let refused = world.hosts[B].operations[&elsewhere].state.clone();
    assert_eq!(refused, State::Failed { error: Refusal::HeldElsewhere { record, host: Some("a".parse().unwrap()) } });
    assert_eq!(world.tombstone, None);

    let retired = world.begin(A, retire(false));
    let tombstone = world.tombstone.unwrap();
    let event = EventKind::Retired { term: tombstone.term, at_s: tombstone.at_s };
    assert_eq!(outcome(&world, retired), event);
    assert_eq!(world.status(A).retired, Some(tombstone));
    // Whoever has not heard the answer asks again.
    let again = world.begin(A, retire(false));
    assert_eq!(outcome(&world, again), event);
    for force in [false, true] {
        let started = world.begin(A, Request::Start { force });
        assert_eq!(error(&world, started), Refusal::Retired { term: tombstone.term, at_s: tombstone.at_s });
    }
    let told = world.hosts[A].journal.iter().filter(|e| **e == event).count();
    assert_eq!(told, 1, "it is said once");
}

/// A host that nobody could reach ran it all the same, and waits to be allowed to go on without its backup: both are told, and neither asks for ever.
#[test]
fn a_vm_that_is_retired_while_it_runs_ends_everywhere() {
    let mut world = hosts(2);
    world.begin(A, start());
    let protect = world.begin(A, Request::Protect);
    world.pass(SECOND);
    world.cut = true;
    let term = world.witness.take().unwrap().term.next();
    let tombstone = Tombstone { term, at_s: 7 };
    world.tombstone = Some(tombstone);
    // The primary asks to release its backup, and the backup reads the record.
    world.pass(SECOND * 5);
    world.tell(B, Event::WitnessRetired(tombstone));
    world.settle();
    for host in 0..2 {
        let status = world.status(host);
        assert_eq!((status.role, status.retired), (Role::Standby, Some(tombstone)), "{host}");
        assert!(status.witness_reachable, "{host}");
        let told = |kind: &&EventKind| matches!(kind, EventKind::Retired { .. });
        assert_eq!(world.hosts[host].journal.iter().filter(told).count(), 1, "{host}");
        assert_eq!(world.hosts[host].gate, Gate::Mute, "{host}");
    }
    assert!(world.hosts[A].runs.is_none());
    assert!(matches!(outcome(&world, protect), EventKind::Protected { .. }), "it was, before");
}

/// No answer: nothing is known, and who asks again is told how it is.
#[test]
fn a_retirement_without_the_witness_fails() {
    let mut world = hosts(1);
    world.hosts[A].cut_from_witness = true;
    let first = world.begin(A, retire(false));
    assert!(matches!(state(&world, first), State::Running { .. }));
    assert_eq!(world.answer(A, start()), Err(Refusal::Busy { with: Work::Retire }));
    let silent = Refusal::WitnessSilent { reason: "no answer".into() };
    world.tell(A, Event::RetireFailed(silent.clone()));
    world.pass(SECOND);
    assert_eq!(error(&world, first), silent);
    let started = world.begin(A, start());
    assert!(matches!(state(&world, started), State::Running { .. }));
}

/// All of its hosts hear of it, and say so once; who asks for the name that it has is done.
#[test]
fn a_vm_is_renamed_on_all_of_its_hosts() {
    let mut world = hosts(2);
    let rename = |name: &str| Request::Rename { name: name.parse().unwrap() };
    let never = world.begin(A, rename("web"));
    assert_eq!(error(&world, never), Refusal::NoRecord);
    world.begin(A, start());
    let same = world.begin(A, rename("db"));
    assert_eq!(state(&world, same), State::Done { outcome: None });
    let renamed = world.begin(A, rename("web"));
    let event = EventKind::Renamed { from: "db".parse().unwrap(), to: "web".parse().unwrap() };
    assert_eq!(outcome(&world, renamed), event);
    for host in 0..2 {
        assert_eq!(world.status(host).vm.as_str(), "web");
        assert_eq!(world.hosts[host].journal.iter().filter(|e| **e == event).count(), 1, "{host}");
    }
    // A host on which another VM has the name keeps the old one, and says so.
    world.name_taken = true;
    let taken = world.begin(A, rename("mail"));
    assert_eq!(error(&world, taken), Refusal::Failed { reason: "another VM has it".into() });
    assert_eq!(world.status(A).vm.as_str(), "web");
    assert!(world.hosts[A].journal.iter().any(|e| matches!(e, EventKind::NotRenamed { .. })));
    // What the witness was not asked for ends, and another can be wanted then.
    world.hosts[A].cut_from_witness = true;
    let waits = world.begin(A, rename("post"));
    assert_eq!(world.answer(A, rename("mail")), Err(Refusal::Busy { with: Work::Rename }));
    world.tell(A, Event::RenameFailed(Refusal::Busy { with: Work::Witness }));
    world.settle();
    assert_eq!(error(&world, waits), Refusal::Busy { with: Work::Witness });
}
