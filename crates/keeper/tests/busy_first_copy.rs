//! The first copy of a guest that writes all of its memory faster than it can be copied, and the checkpoints that follow.
//!
//! The copy ends, the guest does not stand still for what is left to copy, and what a backup holds after each checkpoint is one
//! moment: a QEMU that is loaded with it goes on.

mod guest_io;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use guest::sweep::{self, Place};
use ninefold_keeper::health::dumps::Dumps;
use ninefold_keeper::health::shared::SharedHealth;
use ninefold_keeper::health::watcher::Watcher;
use ninefold_keeper::msg::Msg;
use ninefold_keeper::primary::changed_blocks::ChangedBlocks;
use ninefold_keeper::primary::session::job::{Job, SessionTarget};
use ninefold_keeper::primary::vm::{self, Command, Surroundings, VmHandle};
use ninefold_keeper::primary::waker::Waker;
use ninefold_machine::{Mechanism, Memory, PageRun};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::spec::{Accel, EpochPolicy};
use ninefold_model::{Epoch, Term};
use ninefold_replica::target::Target;
use ninefold_testkit::guest;

/// What any step may take; only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(120);
const GENERATION: u64 = 7;
const SESSION: Term = Term(1);
const BACKUP: Target = Target::Session(SESSION);
/// Checkpoints that the backup gets, the first among them.
const CHECKPOINTS: usize = 8;

/// Stands in for the core: output is held at once.
fn core(inbox: Receiver<Msg>) {
    for msg in inbox {
        match msg {
            Msg::FirstCheckpoint { held, .. } => held.send(()).unwrap(),
            Msg::CannotReplicate { target, reason, .. } => panic!("{target}: {reason}"),
            Msg::VmLost { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

/// A checkpoint as the backup has it.
struct Held {
    /// Pages of the rounds before it, and how many rounds there were.
    rounds: Vec<u64>,
    record: CheckpointRecord,
    devices: Vec<u8>,
}

/// Puts pages into the backup's memory.
fn put(memory: &Memory, runs: &[PageRun], mut content: &[u8]) {
    for run in runs {
        let (now, rest) = content.split_at(run.bytes());
        memory.write_run(*run, now).unwrap();
        content = rest;
    }
}

/// The backup: what it holds after each checkpoint is of one moment.
fn backup(work: Receiver<Job>, handle: Arc<VmHandle>, waker: Waker, memory: Arc<Memory>, tell: Sender<Held>) {
    let (mut rounds, mut count) = (Vec::new(), 0);
    for job in work {
        match job {
            // It is loaded with what it holds.
            _ if count == CHECKPOINTS => {}
            Job::Round { pieces, .. } => {
                rounds.push(0);
                for piece in pieces {
                    waker.ring();
                    put(&memory, &piece.runs, &piece.bytes);
                    rounds.iter_mut().last().into_iter().for_each(|r| *r += (piece.bytes.len() / 4096) as u64);
                }
            }
            Job::Checkpoint { taken, .. } => {
                put(&memory, taken.runs(), taken.content());
                sweep::is_of_one_moment(&memory);
                let (epoch, record, devices) = (taken.epoch, taken.record, taken.devices.clone());
                drop(taken);
                count += 1;
                tell.send(Held { rounds: std::mem::take(&mut rounds), record, devices }).unwrap();
                handle.send(Command::Acked { target: BACKUP, epoch });
            }
            _ => panic!("what a target is not given here"),
        }
    }
}

#[test]
fn what_is_left_of_a_copy_that_gets_no_further_is_held_and_the_guest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = guest::config(Path::new("qemu-system-x86_64"), Accel::Tcg, 1, &sweep::boot_sector(dir.path()));
    config.spec.hardware.nics.clear();
    config.spec.hardware.memory_mib = sweep::MEMORY_MIB;
    let (machine, ports) = guest::launch(&config);
    if machine.mechanism() != Some(Mechanism::PagemapScan) {
        eprintln!("skipped: this kernel has no PAGEMAP_SCAN");
        return;
    }
    let guest_io = Arc::new(guest_io::open(dir.path(), &config.spec));
    guest_io.attach(ports).unwrap();
    let memory = Arc::clone(machine.memory());
    let (mut standby, _ports) = guest::launch(&guest::standby(&config));
    let copy = Arc::clone(standby.memory());
    let waker = Waker::new().unwrap();
    let (tell, inbox) = channel();
    thread::spawn(move || core(inbox));
    let watcher = Watcher::new(GENERATION, Dumps::new(dir.path(), "vm"), SharedHealth::default(), tell.clone());
    let surroundings = Surroundings { guest_io, disks: Arc::default(), waker: waker.clone(), core: tell };
    let obtain = Box::new(move || Ok(machine));
    let policy = EpochPolicy::Fixed { ms: 25 };
    let handle = vm::start(watcher, obtain, policy, Default::default(), None, Epoch(0), surroundings).unwrap();
    let handle = Arc::new(handle);
    sweep::await_sweeps(&memory, 3);

    let ((jobs, work), (tell, held)) = (sync_channel(8), channel());
    let theirs = Arc::clone(&handle);
    thread::spawn(move || backup(work, theirs, waker, copy, tell));
    let rest = ChangedBlocks::default();
    let target = Box::new(SessionTarget { session: SESSION, jobs });
    handle.send(Command::AddSink { target, rounds: 0, rest, held: None });
    let all: Vec<Held> = (0..CHECKPOINTS).map(|_| held.recv_timeout(LIMIT).expect("a checkpoint")).collect();
    handle.send(Command::Kill);

    for checkpoint in &all {
        let CheckpointRecord { dirty_pages, held_pages, again_pages, pause_us, copy_us, scan_us, .. } =
            checkpoint.record;
        println!(
            "rounds {:?}, then {dirty_pages} pages, {held_pages} of them held, {again_pages} written late; pause {pause_us} us, \
             scan {scan_us} us, copy {copy_us} us",
            checkpoint.rounds
        );
    }
    let pages = memory.layout().blocks[0].pages();
    let first = &all[0];
    assert_eq!(first.rounds.len(), 2, "as the second was no smaller than the first, no third follows");
    let CheckpointRecord { dirty_pages, held_pages, .. } = first.record;
    assert!(held_pages > pages / 16 && dirty_pages - held_pages < 1024, "{:?}", first.record);
    // One that follows another of very many pages is held, too, unless it has few.
    for two in all.windows(2) {
        let CheckpointRecord { dirty_pages, held_pages, .. } = two[1].record;
        assert!(two[0].record.dirty_pages < 32_768 || held_pages > 0 || dirty_pages <= 2048, "{:?}", two[1].record);
    }
    // To copy that in the pause would take longer than the whole pause.
    let mut copied = vec![0; memory.all_runs(256).filter(|run| run.block == 0).map(|run| run.bytes()).sum()];
    let runs: Vec<_> = memory.all_runs(256).filter(|run| run.block == 0).collect();
    let begun = Instant::now();
    memory.read_runs(&runs, &mut copied).unwrap();
    let copying = begun.elapsed();
    println!("all of the memory is copied in {copying:?}");
    assert!(u128::from(first.record.pause_us) < copying.as_micros(), "{} us", first.record.pause_us);

    // The guest goes on from the last.
    let before = sweep::is_of_one_moment(standby.memory());
    let memory = Arc::clone(standby.memory());
    standby.load(&all[CHECKPOINTS - 1].devices).unwrap();
    let line = serde_json::json!({"command-line": "info registers"});
    let registers: String = standby.command("human-monitor-command", Some(line)).unwrap();
    let place = Place::of(&memory, &registers);
    assert!(place.is_one(), "{place:x?}");
    standby.start().unwrap();
    sweep::await_sweeps(&memory, 2);
    standby.stop().unwrap();
    assert!(sweep::is_of_one_moment(&memory) >= before + 2);
    standby.kill();
}
