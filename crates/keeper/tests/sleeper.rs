//! A guest that is suspended, in a QEMU older than 9.0, and wakes where it is to stand still: it is whole, and nobody gives it up.

mod guest_io;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use guest::{await_count, word};
use ninefold_keeper::health::dumps::Dumps;
use ninefold_keeper::health::shared::SharedHealth;
use ninefold_keeper::health::watcher::Watcher;
use ninefold_keeper::msg::Msg;
use ninefold_keeper::primary::changed_blocks::ChangedBlocks;
use ninefold_keeper::primary::session::job::{Job, SessionTarget};
use ninefold_keeper::primary::vm::{self, Command, Surroundings, VmHandle};
use ninefold_keeper::primary::waker::Waker;
use ninefold_machine::{EventKind, Machine, Ports};
use ninefold_model::spec::{Accel, Boot, EpochPolicy};
use ninefold_model::{Activity, Epoch, GuestState, Term};
use ninefold_replica::target::Target;
use ninefold_testkit::{guest, sleeper};
use rustix::event::{PollFd, PollFlags, poll};
use sleeper::COUNTER;

/// What any step may take; only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
const GENERATION: u64 = 7;
const SESSION: Term = Term(1);
const BACKUP: Target = Target::Session(SESSION);

/// Gets the VM as a backup does, at once; tells the epochs.
fn backup(work: Receiver<Job>, handle: Arc<VmHandle>, waker: Waker, epochs: Sender<Epoch>) {
    for job in work {
        match job {
            Job::Round { pieces, .. } => pieces.iter().for_each(|_| waker.ring()),
            Job::Checkpoint { taken, .. } => {
                let epoch = taken.epoch;
                drop(taken);
                handle.send(Command::Acked { target: BACKUP, epoch });
                let _ = epochs.send(epoch);
            }
            _ => panic!("what a target is not given here"),
        }
    }
}

/// Waits for what the core is told. Output is held at once, and the VM is not lost.
fn told<T>(inbox: &Receiver<Msg>, wanted: impl Fn(&Msg) -> Option<T>) -> T {
    loop {
        let msg = inbox.recv_timeout(LIMIT).expect("the core is told");
        if let Some(found) = wanted(&msg) {
            return found;
        }
        match msg {
            Msg::FirstCheckpoint { held, .. } => held.send(()).unwrap(),
            Msg::CannotReplicate { target, reason, .. } => panic!("{target}: {reason}"),
            Msg::VmLost { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

/// Has the guest suspend itself when it is up.
fn suspend(machine: &mut Machine, ports: &Ports) {
    machine.start().unwrap();
    await_count(machine.memory(), COUNTER, 10);
    rustix::io::write(&ports.console, b"s").unwrap();
    let deadline = Instant::now() + LIMIT;
    while !machine.is_suspended() {
        assert!(Instant::now() < deadline, "it does not suspend itself");
        let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(machine.qmp_fd(), PollFlags::IN)], Some(&limit)).unwrap();
        machine.poll_events().unwrap();
    }
    while machine.next_event().is_some_and(|event| event.kind != EventKind::Suspend) {}
}

#[test]
fn a_guest_that_wakes_in_a_switchover_that_fails_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let old = |qemu: &std::path::PathBuf| {
        let mut config = guest::config(qemu, Accel::Tcg, 1, std::path::Path::new("unused"));
        config.boot = Boot::BootSector { image: sleeper::image(dir.path()) };
        config.spec.hardware.nics.clear();
        let (machine, ports) = guest::launch(&config);
        (machine.version().major < 9).then_some((config, machine, ports))
    };
    let Some((config, mut machine, ports)) = guest::qemus().iter().find_map(old) else {
        eprintln!("skipped: no QEMU older than 9.0 is here");
        return;
    };
    suspend(&mut machine, &ports);
    let guest_io = Arc::new(guest_io::open(dir.path(), &config.spec));
    guest_io.attach(ports).unwrap();
    let memory = Arc::clone(machine.memory());
    let waker = Waker::new().unwrap();
    let (tell, inbox) = channel();
    let watcher = Watcher::new(GENERATION, Dumps::new(dir.path(), "vm"), SharedHealth::default(), tell.clone());
    let surroundings = Surroundings { guest_io, disks: Arc::default(), waker: waker.clone(), core: tell };
    let standing = GuestState { activity: Activity::Suspended, paused: false };
    let policy = EpochPolicy::Fixed { ms: 5 };
    let obtain = Box::new(move || Ok(machine));
    let handle = Arc::new(vm::start(watcher, obtain, policy, standing, None, Epoch(0), surroundings).unwrap());

    let ((jobs, work), (seen, epochs)) = (sync_channel(8), channel());
    let (theirs, rings) = (Arc::clone(&handle), waker.clone());
    thread::spawn(move || backup(work, theirs, rings, seen));
    let rest = ChangedBlocks::default();
    let target = Box::new(SessionTarget { session: SESSION, jobs });
    handle.send(Command::AddSink { target, rounds: 0, rest, held: None });
    told(&inbox, |msg| match msg {
        Msg::FirstCheckpoint { held, .. } => held.send(()).ok(),
        _ => None,
    });
    epochs.recv_timeout(LIMIT).unwrap();

    // The witness is slow: the guest is woken while it is to stand still.
    handle.send(Command::TakeFinal);
    let last = told(&inbox, |msg| match msg {
        Msg::FinalTaken { epoch, .. } => Some(*epoch),
        _ => None,
    });
    handle.send(Command::Wake);
    told(&inbox, |msg| matches!(msg, Msg::Stands { standing, .. } if standing.runs()).then_some(()));
    handle.send(Command::GoOn);
    while epochs.recv_timeout(LIMIT).unwrap() <= last {}
    await_count(&memory, COUNTER, word(&memory, COUNTER) + 10);
    while let Ok(msg) = inbox.try_recv() {
        assert!(!matches!(msg, Msg::VmLost { .. } | Msg::CannotReplicate { .. }), "it is given up");
    }
    handle.send(Command::Kill);
}
