//! The log of a backup goes on from session to session, in one thread and in the next keeper's, on a real directory.

mod hello;

use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::time::Duration;

use ninefold_keeper::backup::acknowledge::Acknowledger;
use ninefold_keeper::devices::disks::Disks;
use ninefold_keeper::durable::log::job::{Job, Left, Opening, Received};
use ninefold_keeper::durable::log::{self, Beginning, LogHandle, Settings};
use ninefold_keeper::msg::Msg;
use ninefold_keeper::primary::waker::Waker;
use ninefold_model::{Epoch, Term};
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::Reign;
use ninefold_replica::stream::{
    CheckpointAssembler, Fed, Hello, PAGE_SIZE, PageEncoder, PageRun, PageSink, Pass, PassKind, PassWriter, Preamble,
    RecordReader,
};
use ninefold_snapshot::log::{Found, LogError};

/// Only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
const PAGES: usize = 64;
const REIGN: Reign = Reign { term: Term(3), generation: 1 };

/// A guest's memory, with one word in each page.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Memory(Vec<u8>);

impl Memory {
    fn new() -> Self {
        Self(vec![0; PAGES * PAGE_SIZE])
    }

    /// Writes to these pages; answers them as they come to a backup.
    fn write(&mut self, pages: &[usize], byte: u8) -> Vec<(u64, Vec<u8>)> {
        let page = |page: &usize| {
            let content = &mut self.0[page * PAGE_SIZE..][..PAGE_SIZE];
            content[..8].fill(byte);
            (*page as u64, content.to_vec())
        };
        pages.iter().map(page).collect()
    }
}

impl PageSink for Memory {
    fn write(&mut self, _: u16, first: u64, data: &[u8]) -> io::Result<()> {
        self.0[first as usize * PAGE_SIZE..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, _: u16, _: u64, _: &mut [u8; PAGE_SIZE]) -> io::Result<()> {
        Err(io::Error::other("no patch was written"))
    }
}

fn hello(session: u64) -> Hello {
    Hello { reign: Some(REIGN), ..hello::hello(session, (PAGES * PAGE_SIZE) as u64) }
}

struct Thread {
    handle: LogHandle,
    disks: Arc<Disks>,
    core: Sender<Msg>,
    heard: Receiver<Msg>,
    /// That of the session.
    acknowledger: RefCell<Option<(u64, Acknowledger)>>,
}

impl Thread {
    fn start(dir: &Path) -> Self {
        let (core, heard) = channel();
        let disks = Arc::new(Disks::default());
        let waker = Waker::new().unwrap();
        let settings = Settings { place: dir.join("log"), disks: Arc::clone(&disks), waker, core: core.clone() };
        Self {
            handle: log::start(1, Term(5), Beginning::Awaited, settings).unwrap(),
            disks,
            core,
            heard,
            acknowledger: RefCell::default(),
        }
    }

    fn job(&self, job: Job) {
        self.handle.jobs.send(job).unwrap();
    }

    /// Whether the log goes on.
    fn session(&self, session: u64, left: Option<Left>) -> bool {
        self.disks.enter(Term(session)).unwrap();
        let (reply, answer) = sync_channel(1);
        let (disks, core) = (Arc::clone(&self.disks), self.core.clone());
        let acknowledger = Acknowledger::start(Term(session), disks, Box::new(|_| {}), core).unwrap();
        *self.acknowledger.borrow_mut() = Some((session, acknowledger.clone()));
        self.job(Job::Session(Box::new(Opening { hello: hello(session), left, reply, acknowledger })));
        answer.recv_timeout(LIMIT).unwrap()
    }

    fn round(&self, session: u64, pages: Vec<(u64, Vec<u8>)>) {
        let session = Term(session);
        pages.into_iter().for_each(|(first, bytes)| self.job(Job::Copy { session, block: 0, first, bytes }));
        self.job(Job::Settle(session));
    }

    fn gives(&self, session: u64, epoch: u64, pages: &[(u64, Vec<u8>)]) {
        if let Some((_, acknowledger)) = self.acknowledger.borrow().as_ref().filter(|(its, _)| *its == session) {
            acknowledger.comes().unwrap();
        }
        self.job(Job::Received(Box::new(received(session, epoch, pages))));
    }

    /// Waits until a checkpoint is durable.
    fn holds(&self, session: u64, epoch: u64, is_first: bool) {
        let Msg::Held { session: s, epoch: e, first } = self.heard.recv_timeout(LIMIT).unwrap() else {
            panic!("not held");
        };
        assert_eq!((s, e, first), (Term(session), Epoch(epoch), is_first));
    }

    /// With which checkpoint the log ends, once all is done that was given.
    fn end(&self) -> Option<(Term, Epoch)> {
        let (reply, answer) = sync_channel(1);
        self.job(Job::Drain(reply));
        answer.recv_timeout(LIMIT).unwrap()
    }
}

/// As a backup receives it.
fn received(session: u64, epoch: u64, pages: &[(u64, Vec<u8>)]) -> Received {
    let layout = hello(session).layout;
    let (mut wire, mut scratch) = (Preamble::OURS.to_bytes().to_vec(), Vec::new());
    let pass = Pass { session, kind: PassKind::Checkpoint, epoch: Epoch(epoch) };
    let mut writer = PassWriter::begin(&mut wire, &mut scratch, pass, Term(session)).unwrap();
    let runs: Vec<_> = pages.iter().map(|(first, _)| PageRun { block: 0, first: *first, count: 1 }).collect();
    let bytes: Vec<u8> = pages.iter().flat_map(|(_, bytes)| bytes).copied().collect();
    writer.pages(&mut PageEncoder::new(&layout), &runs, &bytes).unwrap();
    writer.device_state(&[epoch as u8]).unwrap();
    writer.end().unwrap();
    let mut assembler = CheckpointAssembler::new(session, Term(session), layout, 1);
    let mut records = RecordReader::new(wire.as_slice());
    records.preamble().unwrap();
    let (mut nowhere, mut whole) = (Memory::new(), false);
    while let Some(frame) = records.next_record().unwrap() {
        whole |= matches!(assembler.feed(&frame, &mut nowhere).unwrap(), Fed::Whole(_));
    }
    assert!(whole);
    Received::of(Term(session), &mut assembler, &Disks::default()).unwrap().unwrap()
}

/// What is gone on from: session, checkpoint and memory.
fn read(dir: &Path) -> Option<(Term, Epoch, Memory)> {
    let found = match Found::look(log::place::open(&dir.join("log")).unwrap()) {
        Err(LogError::None) => return None,
        found => found.unwrap(),
    };
    let at = found.last().at;
    let role = LogRole::Backup { session: at.session, primary: "a".parse().unwrap() };
    assert_eq!(*found.standing(), LogStanding::new(role));
    let mut memory = Memory::new();
    let held = found.recover().unwrap().load(&|_| true, &mut memory, &mut |_, _| Ok(())).unwrap();
    assert_eq!(held.device_state, [at.epoch.0 as u8]);
    Some((at.session, at.epoch, memory))
}

/// A log of session 5 that ends with checkpoint 9.
fn begun(dir: &Path) -> (Thread, Memory) {
    let (thread, mut guest) = (Thread::start(dir), Memory::new());
    assert!(!thread.session(5, None));
    thread.round(5, guest.write(&(0..40).collect::<Vec<_>>(), 1));
    for epoch in 8..=9 {
        thread.gives(5, epoch, &guest.write(&[epoch as usize, 20], epoch as u8));
        thread.holds(5, epoch, epoch == 8);
    }
    (thread, guest)
}

fn here() -> Option<Left> {
    Some(Left::Here { session: Term(5), epoch: Epoch(9) })
}

fn on_disk(reign: Reign, since: u64) -> Option<Left> {
    Some(Left::OnDisk { reign, epochs: Epoch(since)..=Epoch(since + 3) })
}

#[test]
fn a_log_goes_on_in_the_next_session() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, mut guest) = begun(dir.path());
    assert_eq!(thread.end(), Some((Term(5), Epoch(9))));
    assert!(thread.session(7, here()));
    // Nothing came in it: there is still what there was.
    assert!(thread.session(8, here()));
    thread.round(8, guest.write(&[1, 20, 50], 10));
    thread.round(8, guest.write(&[1, 51], 11));
    // What a former session's thread had still to say.
    thread.gives(5, 10, &Memory::new().write(&[3], 99));
    assert_eq!(thread.end(), None);
    thread.gives(8, 14, &guest.write(&[2, 50], 12));
    thread.holds(8, 14, true);
    thread.gives(8, 15, &guest.write(&[4], 13));
    thread.holds(8, 15, false);
    assert_eq!(thread.end(), Some((Term(8), Epoch(15))));
    drop(thread);
    assert_eq!(read(dir.path()), Some((Term(8), Epoch(15), guest)));
}

#[test]
fn a_log_that_is_behind_is_none() {
    for rounds in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let (thread, mut guest) = begun(dir.path());
        assert!(thread.session(7, here()));
        (0..rounds).for_each(|_| thread.round(7, guest.write(&[1, 2], 10)));
        assert_eq!(thread.end(), None);
        // Nor can it be gone on with once something has come.
        assert_eq!(thread.session(8, here()), rounds == 0);
        drop(thread);
        assert_eq!(read(dir.path()), None);
    }
}

#[test]
fn a_log_that_is_not_what_is_left_begins_anew() {
    for left in [
        None,
        Some(Left::Here { session: Term(5), epoch: Epoch(8) }),
        Some(Left::Here { session: Term(4), epoch: Epoch(9) }),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (thread, _) = begun(dir.path());
        assert!(!thread.session(7, left));
        let mut guest = Memory::new();
        thread.round(7, guest.write(&[0, 1], 2));
        thread.gives(7, 1, &guest.write(&[5], 3));
        thread.holds(7, 1, true);
        drop(thread);
        assert_eq!(read(dir.path()), Some((Term(7), Epoch(1), guest)));
    }
}

#[test]
fn the_next_keeper_goes_on_with_a_log_of_the_same_reign() {
    let other = Reign { generation: 2, ..REIGN };
    for (left, goes_on) in [
        (on_disk(REIGN, 9), true),
        (on_disk(REIGN, 6), true),
        (on_disk(REIGN, 10), false),
        (on_disk(REIGN, 5), false),
        (on_disk(other, 8), false),
        (here(), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (thread, mut guest) = begun(dir.path());
        drop(thread);
        let thread = Thread::start(dir.path());
        assert_eq!(thread.session(7, left.clone()), goes_on, "{left:?}");
        if !goes_on {
            guest = Memory::new();
        }
        thread.round(7, guest.write(&[1, 20, 50], 10));
        thread.gives(7, 12, &guest.write(&[2], 11));
        thread.holds(7, 12, true);
        drop(thread);
        assert_eq!(read(dir.path()), Some((Term(7), Epoch(12), guest)), "{left:?}");
    }
}

/// What is in the log and could not be put on the volumes ends the session: its standby must not go on without that. The log is whole, and
/// can be gone on from.
#[test]
fn a_checkpoint_that_the_volumes_do_not_take_ends_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let (thread, mut guest) = begun(dir.path());
    // The volumes take nothing of this session any more.
    thread.disks.enter(Term(6)).unwrap();
    thread.gives(5, 10, &guest.write(&[10], 10));
    let Msg::LoadFailed { session: Term(5), reason } = thread.heard.recv_timeout(LIMIT).unwrap() else {
        panic!("the session goes on")
    };
    assert!(reason.contains("not on the volumes"), "{reason}");
    assert_eq!(thread.end(), None, "the VM must not go on from here");
    // Nor is there a hole in what it holds.
    thread.gives(5, 11, &Memory::new().write(&[11], 11));
    assert_eq!(thread.end(), None);
    assert!(thread.heard.try_recv().is_err(), "it is acknowledged");
    assert!(!thread.session(7, Some(Left::Here { session: Term(5), epoch: Epoch(10) })));
    drop(thread);
    let dir = tempfile::tempdir().unwrap();
    let (thread, mut guest) = begun(dir.path());
    thread.disks.enter(Term(6)).unwrap();
    thread.gives(5, 10, &guest.write(&[10], 10));
    thread.gives(5, 11, &Memory::new().write(&[11], 11));
    drop(thread);
    assert_eq!(read(dir.path()), Some((Term(5), Epoch(10), guest)));
}
