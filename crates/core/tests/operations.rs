//! Requests that take longer than their answer: how they begin, get on and end.

mod world;

use std::time::Duration;

use ninefold_control::operation::State;
use ninefold_control::{Answer, OperationId, OperationKind, Refusal, Request, Work};
use ninefold_model::Incarnation;
use ninefold_model::event::EventKind;
use ninefold_model::status::Role;
use serde_json::json;
use world::{World, spec};

const A: usize = 0;
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
    let used = Refusal::TokenUsed { operation: id(1), kind: OperationKind::Start };
    assert_eq!(ask(Request::Protect, "one"), Err(used));
}

#[test]
fn a_start_cannot_be_cancelled() {
    let mut world = hosts(1);
    world.launch_hangs = true;
    let started = world.begin(A, start());
    assert!(matches!(state(&world, started), State::Running { .. }));
    let refusal = Refusal::NotCancellable { operation: id(started), kind: OperationKind::Start };
    assert_eq!(world.answer(A, Request::Cancel { operation: id(started) }), Err(refusal));
    assert_eq!(world.answer(A, start()), Err(Refusal::Busy { with: Work::Start }));
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
