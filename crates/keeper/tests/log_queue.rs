//! The thread of a log and what it is told, on a real directory.

mod hello;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::Duration;

use hello::hello;
use ninefold_keeper::devices::disks::Disks;
use ninefold_keeper::durable::log::job::Job;
use ninefold_keeper::durable::log::{self, Beginning, LogHandle, Settings};
use ninefold_keeper::msg::Msg;
use ninefold_keeper::primary::waker::Waker;
use ninefold_model::{Record, Term};
use ninefold_replica::protocol::{LogRole, LogStanding};

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
const ID: u64 = 7;

fn begin(dir: &std::path::Path) -> (LogHandle, Receiver<Msg>, LogStanding) {
    let (core, heard) = channel();
    let standing = LogStanding::new(LogRole::Primary { record: Record::boot("a".parse().unwrap()) });
    let beginning = Beginning::New { hello: Box::new(hello(5, 1 << 20)), standing: standing.clone() };
    let settings =
        Settings { place: dir.join("log"), disks: Arc::new(Disks::default()), waker: Waker::new().unwrap(), core };
    (log::start(ID, Term(5), beginning, settings).unwrap(), heard, standing)
}

/// What is to be noted is noted, however much waits for the thread already.
#[test]
fn a_note_is_not_lost_when_the_queue_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, heard, standing) = begin(dir.path());
    assert!(matches!(heard.recv_timeout(LIMIT).unwrap(), Msg::LogBegun { id: ID }));
    // It waits for the end of this round.
    let (pieces, taken) = sync_channel(1);
    handle.jobs.send(Job::Round { pieces: taken }).unwrap();
    while handle.jobs.try_send(Job::Settle(Term(5))).is_ok() {}
    for ticket in 1..=3 {
        handle.stand(ticket, standing.clone());
    }
    drop(pieces);
    assert!(matches!(heard.recv_timeout(LIMIT).unwrap(), Msg::Stood { id: ID, ticket: 3 }), "the newest says it all");
}

/// And one that comes when there is room is not noted later than one that waits.
#[test]
fn a_note_is_noted_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, heard, standing) = begin(dir.path());
    assert!(matches!(heard.recv_timeout(LIMIT).unwrap(), Msg::LogBegun { id: ID }));
    for ticket in 1..=200 {
        handle.stand(ticket, standing.clone());
        let Msg::Stood { ticket: noted, .. } = heard.recv_timeout(LIMIT).unwrap() else { panic!("no note") };
        assert_eq!(noted, ticket);
    }
}

/// However often something is noted, checkpoints find room; and a log is removed though its thread has much to do.
#[test]
fn what_is_told_takes_no_room_from_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, heard, standing) = begin(dir.path());
    assert!(matches!(heard.recv_timeout(LIMIT).unwrap(), Msg::LogBegun { id: ID }));
    let (pieces, taken) = sync_channel(1);
    handle.jobs.send(Job::Round { pieces: taken }).unwrap();
    for ticket in 1..=1000 {
        handle.stand(ticket, standing.clone());
    }
    handle.jobs.try_send(Job::Settle(Term(5))).expect("there is room");
    while handle.jobs.try_send(Job::Settle(Term(5))).is_ok() {}
    let (done, removed) = sync_channel(1);
    handle.remove(done);
    drop(pieces);
    removed.recv_timeout(LIMIT).expect("the log is removed");
}
