//! Several targets of one VM: whenever one joins, it gets every checkpoint whole, as the others do.
//!
//! ```text
//!                                  ┌─► image 1   joins first, leaves early
//!   real QEMU ─► the VM's thread ──┼─► image 2   joins while 1 gets checkpoints
//!                                  ├─► image 3   joins when 1 has gone, and is slow
//!                                  └─► image 4   is about to join when a switchover begins that fails
//! ```
//!
//! A VM that was resumed has targets that hold what it was resumed from, but for some pages: they are sent what differs. So are
//! targets that come back with a checkpoint that they have acknowledged, or with a later one.
//!
//! Images that hold the same epoch are compared, and at the end, the guest standing still, with the guest's memory itself.

mod guest_io;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_keeper::health::dumps::Dumps;
use ninefold_keeper::health::shared::SharedHealth;
use ninefold_keeper::health::watcher::Watcher;
use ninefold_keeper::msg::Msg;
use ninefold_keeper::primary::changed_blocks::ChangedBlocks;
use ninefold_keeper::primary::session::job::{Job, SessionTarget};
use ninefold_keeper::primary::target_state::Held;
use ninefold_keeper::primary::vm::{self, Command, Continued, Surroundings, VmHandle};
use ninefold_keeper::primary::waker::Waker;
use ninefold_machine::{Memory, PAGE_SIZE, PageRun};
use ninefold_model::spec::EpochPolicy;
use ninefold_model::{Epoch, GuestState, Term};
use ninefold_replica::target::{Basis, Target};
use ninefold_testkit::guest;

/// What any step may take; only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(60);
const GENERATION: u64 = 7;
/// A target that must be refused.
const TOO_LATE: u64 = 99;

/// What a target holds.
struct Image {
    blocks: Vec<Vec<u8>>,
    /// Checksums of all blocks at some epochs.
    sums: BTreeMap<u64, u32>,
    epoch: u64,
    first: u64,
    rounds: u32,
    /// Checkpoints that did not get here, or whose acknowledgement did not.
    lost: u32,
    /// Pages of the rounds and of the first checkpoint.
    copied: BTreeSet<(u16, u64)>,
    /// What the console has said, as this target was told.
    console: Vec<u8>,
    /// What it does with the next checkpoints.
    habits: Habits,
}

impl Image {
    fn write(&mut self, runs: &[PageRun], mut content: &[u8]) {
        for run in runs {
            let (now, rest) = content.split_at(run.bytes());
            let at = (run.first * PAGE_SIZE) as usize;
            self.blocks[usize::from(run.block)][at..at + now.len()].copy_from_slice(now);
            content = rest;
        }
    }

    fn sum(&self) -> u32 {
        let mut sum = crc32fast::Hasher::new();
        self.blocks.iter().for_each(|b| sum.update(b));
        sum.finalize()
    }
}

#[derive(Clone)]
struct Shared(Arc<(Mutex<Image>, Condvar)>);

impl Shared {
    fn wait(&self, what: &str, until: impl Fn(&Image) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut image = self.0.0.lock().unwrap();
        while !until(&image) {
            let left = deadline.checked_duration_since(Instant::now()).unwrap_or_else(|| panic!("no {what}"));
            image = self.0.1.wait_timeout(image, left).unwrap().0;
        }
    }
}

fn pages(runs: &[PageRun]) -> impl Iterator<Item = (u16, u64)> {
    runs.iter().flat_map(|r| (r.first..r.first + u64::from(r.count)).map(|page| (r.block, page)))
}

fn empty(memory: &Memory) -> Vec<Vec<u8>> {
    memory.layout().blocks.iter().map(|b| vec![0; (b.pages() * PAGE_SIZE) as usize]).collect()
}

/// Adds a target that acknowledges what it holds after `slow`.
fn add_sink(name: u64, handle: &Arc<VmHandle>, waker: &Waker, memory: &Memory, slow: Duration) -> Shared {
    add_holder(name, handle, waker, empty(memory), None, slow)
}

/// The same with a target whose memory is this, what the VM was resumed from but for the pages of `held`.
fn add_holder(
    name: u64,
    handle: &Arc<VmHandle>,
    waker: &Waker,
    blocks: Vec<Vec<u8>>,
    held: Option<Held>,
    slow: Duration,
) -> Shared {
    add(name, handle, waker, blocks, held, Habits { slow, ..Habits::default() })
}

/// What a target does with checkpoints.
#[derive(Clone, Copy)]
struct Habits {
    /// Before each acknowledgement.
    slow: Duration,
    /// The last that it gets; what comes after is lost on its way.
    gets: u64,
    /// The last whose acknowledgement arrives.
    acknowledges: u64,
}

impl Default for Habits {
    fn default() -> Self {
        Self { slow: Duration::ZERO, gets: u64::MAX, acknowledges: u64::MAX }
    }
}

fn add(
    name: u64,
    handle: &Arc<VmHandle>,
    waker: &Waker,
    blocks: Vec<Vec<u8>>,
    held: Option<Held>,
    habits: Habits,
) -> Shared {
    let image = Image {
        blocks,
        sums: BTreeMap::new(),
        epoch: 0,
        first: 0,
        rounds: 0,
        lost: 0,
        copied: BTreeSet::new(),
        console: Vec::new(),
        habits,
    };
    let shared = Shared(Arc::new((Mutex::new(image), Condvar::new())));
    let (jobs, work) = sync_channel(8);
    let target = Box::new(SessionTarget { session: Term(name), jobs });
    handle.send(Command::AddSink { target, rounds: 0, rest: ChangedBlocks::default(), held });
    let (ours, handle, waker) = (shared.clone(), Arc::clone(handle), waker.clone());
    thread::spawn(move || collect(name, &work, &ours, &handle, &waker));
    shared
}

/// What the VM was resumed from, but for these pages.
fn resumed(differs: Vec<PageRun>) -> Option<Held> {
    Some(Held { basis: Basis::Resumed, differs })
}

fn collect(name: u64, work: &Receiver<Job>, shared: &Shared, handle: &VmHandle, waker: &Waker) {
    for job in work {
        match job {
            Job::Round { pieces, .. } => {
                for piece in pieces {
                    waker.ring();
                    let mut image = shared.0.0.lock().unwrap();
                    image.write(&piece.runs, &piece.bytes);
                    image.copied.extend(pages(&piece.runs));
                }
                shared.0.0.lock().unwrap().rounds += 1;
            }
            Job::Checkpoint { taken, join } => {
                let mut image = shared.0.0.lock().unwrap();
                let habits = image.habits;
                image.lost += u32::from(taken.epoch.0 > habits.acknowledges);
                if taken.epoch.0 > habits.gets {
                    shared.0.1.notify_all();
                    continue;
                }
                assert_eq!(join.is_some(), image.epoch == 0, "the first checkpoint, and no other, lets it join");
                assert!(image.epoch == 0 || taken.epoch.0 == image.epoch + 1, "every checkpoint, in order");
                image.write(taken.runs(), taken.content());
                image.console.extend(join.as_ref().map_or(&taken.console, |j| &j.console));
                image.epoch = taken.epoch.0;
                if image.first == 0 {
                    image.first = image.epoch;
                    image.copied.extend(pages(taken.runs()));
                }
                if image.epoch.is_multiple_of(4) {
                    let sum = image.sum();
                    let epoch = image.epoch;
                    image.sums.insert(epoch, sum);
                }
                drop(image);
                thread::sleep(habits.slow);
                if taken.epoch.0 <= habits.acknowledges {
                    handle.send(Command::Acked { target: Target::Session(Term(name)), epoch: taken.epoch });
                }
                shared.0.1.notify_all();
            }
            _ => panic!("what a target is not given here"),
        }
    }
}

/// Stands in for the core: output is held at once; the rest is passed on.
fn core(inbox: Receiver<Msg>, seen: Sender<Epoch>, refused: Sender<u64>) {
    for msg in inbox {
        match msg {
            Msg::FirstCheckpoint { held, .. } => held.send(()).unwrap(),
            Msg::FinalTaken { generation: GENERATION, epoch } => seen.send(epoch).unwrap(),
            Msg::BaseForgotten { target: Target::Session(Term(TOO_LATE)), .. } => refused.send(TOO_LATE).unwrap(),
            Msg::CannotReplicate { target, reason, .. } => panic!("{target}: {reason}"),
            Msg::VmLost { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

fn same_sums(a: &Shared, b: &Shared) -> usize {
    let (a, b) = (a.0.0.lock().unwrap(), b.0.0.lock().unwrap());
    let common: Vec<_> = a.sums.iter().filter_map(|(e, sum)| b.sums.get(e).map(|other| (e, sum, other))).collect();
    for (epoch, sum, other) in &common {
        assert_eq!(sum, other, "epoch {epoch} is not the same at both");
    }
    common.len()
}

/// The guest stands still after this epoch.
fn are_equal(images: &[&Shared], memory: &Memory, last: Epoch) {
    for image in images {
        image.wait("the last checkpoint", |i| i.epoch == last.0);
        let mut content = vec![0; 256 * PAGE_SIZE as usize];
        for run in memory.all_runs(256) {
            let content = &mut content[..run.bytes()];
            memory.read_run(run, content).unwrap();
            let image = image.0.0.lock().unwrap();
            let at = (run.first * PAGE_SIZE) as usize;
            let same = image.blocks[usize::from(run.block)][at..at + content.len()] == *content;
            assert!(same, "block {} differs in pages {}..", run.block, run.first);
        }
    }
}

#[test]
fn every_sink_holds_every_checkpoint_whole() {
    let dir = tempfile::tempdir().unwrap();
    let boot = guest::boot_sector(dir.path());
    let accel = guest::accels()[0];
    let mut config = guest::config(Path::new("qemu-system-x86_64"), accel, 2, &boot);
    config.spec.hardware.nics.clear();
    let (machine, mut ports) = guest::launch(&config);
    let guest_io = Arc::new(guest_io::open(dir.path(), &config.spec));
    // The guest's own console says nothing; this one what the test likes.
    let (said, console) = ninefold_net::socket_pair().unwrap();
    let mut said = UnixStream::from(said);
    let _its = std::mem::replace(&mut ports.console, console);
    guest_io.attach(ports).unwrap();
    let memory = Arc::clone(machine.memory());
    let waker = Waker::new().unwrap();
    let (tell, inbox) = channel();
    let (seen, final_taken) = channel();
    thread::spawn(move || core(inbox, seen, channel().0));
    let policy = EpochPolicy::Fixed { ms: 5 };
    let watcher = Watcher::new(GENERATION, Dumps::new(dir.path(), "vm"), SharedHealth::default(), tell.clone());
    let obtain = Box::new(move || Ok(machine));
    let surroundings =
        Surroundings { guest_io: Arc::clone(&guest_io), disks: Arc::default(), waker: waker.clone(), core: tell };
    let handle = vm::start(watcher, obtain, policy, GuestState::default(), None, Epoch(0), surroundings).unwrap();
    let handle = Arc::new(handle);
    guest::await_boot(&memory, 2);

    // Nobody releases anything here: whoever joins must be told what waits for the others.
    guest_io.hold(&|| ());
    said.write_all(b"before the first, ").unwrap();
    let one = add_sink(1, &handle, &waker, &memory, Duration::ZERO);
    one.wait("checkpoints at the first", |i| i.epoch >= 20);
    said.write_all(b"before the second, ").unwrap();
    one.wait("that", |i| i.console == b"before the first, before the second, ");
    let two = add_sink(2, &handle, &waker, &memory, Duration::ZERO);
    two.wait("checkpoints at the second", |i| i.sums.len() >= 8);
    one.wait("as many at the first", |i| i.sums.len() >= 13);
    assert!(same_sums(&one, &two) >= 5, "the first two share epochs");
    handle.send(Command::RemoveSink { target: Target::Session(Term(1)), comes_back: false });

    // It holds up the others' checkpoints, and loses nothing by it.
    let three = add_sink(3, &handle, &waker, &memory, Duration::from_millis(40));
    three.wait("checkpoints at the third", |i| i.sums.len() >= 6);
    {
        let (two, three) = (two.0.0.lock().unwrap(), three.0.0.lock().unwrap());
        assert!(
            two.epoch.saturating_sub(three.epoch) <= 2,
            "{} at the second, {} at the slow third",
            two.epoch,
            three.epoch
        );
        println!(
            "{accel}: targets joined at epochs {}, {}, {}; the last epoch is {}; {} rounds of the third's copy",
            one.0.0.lock().unwrap().first,
            two.first,
            three.first,
            two.epoch,
            three.rounds
        );
        assert!(three.first > two.first && two.first > 20 && three.rounds >= 2);
    }

    // Another is ready to join, and waits for the slow one, when the last checkpoint before a switchover is taken. It has no
    // part in that, and joins when nothing has come of the switchover.
    said.write_all(b"before the fourth, ").unwrap();
    let four = add_sink(4, &handle, &waker, &memory, Duration::ZERO);
    four.wait("a copy", |i| i.rounds >= 2);
    handle.send(Command::TakeFinal);
    let switchover = final_taken.recv_timeout(LIMIT).unwrap();
    three.wait("the last checkpoint before the switchover", |i| i.epoch == switchover.0);
    handle.send(Command::GoOn);
    four.wait("checkpoints at the fourth", |i| i.sums.len() >= 2);
    said.write_all(b"at the end").unwrap();

    handle.send(Command::TakeFinal);
    let last = final_taken.recv_timeout(LIMIT).unwrap();
    are_equal(&[&two, &three, &four], &memory, last);
    assert!(same_sums(&two, &three) >= 5, "the last two share epochs");
    let all = b"before the first, before the second, before the fourth, at the end";
    for (name, target_state) in [("second", &two), ("third", &three), ("fourth", &four)] {
        let image = target_state.0.0.lock().unwrap();
        assert_eq!(String::from_utf8_lossy(&image.console), String::from_utf8_lossy(all), "at the {name}");
    }
}

/// What a target holds that was there when the tracker began.
fn content(memory: &Memory) -> Vec<Vec<u8>> {
    let mut blocks = empty(memory);
    for run in memory.all_runs(256) {
        let at = (run.first * PAGE_SIZE) as usize;
        memory.read_run(run, &mut blocks[usize::from(run.block)][at..at + run.bytes()]).unwrap();
    }
    blocks
}

#[test]
fn a_sink_that_holds_what_the_vm_was_resumed_from_is_sent_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let boot = guest::boot_sector(dir.path());
    let mut config = guest::config(Path::new("qemu-system-x86_64"), guest::accels()[0], 2, &boot);
    config.spec.hardware.nics.clear();
    let (mut machine, ports) = guest::launch(&config);
    let guest_io = Arc::new(guest_io::open(dir.path(), &config.spec));
    guest_io.attach(ports).unwrap();
    let memory = Arc::clone(machine.memory());
    // Until here all are equal. The guest has not run: all that it does comes after.
    let tracker = machine.track().unwrap();
    let origin = content(&memory);
    let waker = Waker::new().unwrap();
    let (tell, inbox) = channel();
    let ((seen, final_taken), (refused, refusals)) = (channel(), channel());
    thread::spawn(move || core(inbox, seen, refused));
    let watcher = Watcher::new(GENERATION, Dumps::new(dir.path(), "vm"), SharedHealth::default(), tell.clone());
    let surroundings = Surroundings { guest_io, disks: Arc::default(), waker: waker.clone(), core: tell };
    let continued = Continued { tracker, log: None, former_backups: true };
    let obtain = Box::new(move || Ok(machine));
    let handle = vm::start(
        watcher,
        obtain,
        EpochPolicy::Fixed { ms: 5 },
        GuestState::default(),
        Some(continued),
        Epoch(0),
        surroundings,
    )
    .unwrap();
    let handle = Arc::new(handle);
    guest::await_boot(&memory, 2);

    // The first differs in nothing. A scan for it must not hide from the others what it finds.
    let one = add_holder(1, &handle, &waker, origin.clone(), resumed(Vec::new()), Duration::ZERO);
    one.wait("checkpoints at the first", |i| i.epoch >= 20);
    // One that knows nothing of it joins as ever, in between.
    let two = add_sink(2, &handle, &waker, &memory, Duration::ZERO);
    two.wait("checkpoints at the second", |i| i.sums.len() >= 2);
    // The third has held other pages in three places, at the end of the memory too.
    let mut other = origin;
    let last = memory.layout().blocks[0].pages() - 1;
    let differs = vec![
        PageRun { block: 0, first: 5000, count: 3 },
        PageRun { block: 0, first: last, count: 1 },
        PageRun { block: 1, first: 0, count: 1 },
    ];
    for run in &differs {
        let at = (run.first * PAGE_SIZE) as usize;
        other[usize::from(run.block)][at..at + run.bytes()].fill(0x5a);
    }
    let three = add_holder(3, &handle, &waker, other, resumed(differs), Duration::ZERO);
    three.wait("checkpoints at the third", |i| i.sums.len() >= 3);

    // Nobody else comes; one that does has to be copied to anew.
    handle.send(Command::ForgetSurvivors);
    let _late = add_holder(TOO_LATE, &handle, &waker, empty(&memory), resumed(Vec::new()), Duration::ZERO);
    assert_eq!(refusals.recv_timeout(LIMIT).unwrap(), TOO_LATE);

    handle.send(Command::TakeFinal);
    let last = final_taken.recv_timeout(LIMIT).unwrap();
    are_equal(&[&one, &two, &three], &memory, last);
    assert!(same_sums(&one, &two) >= 2 && same_sums(&one, &three) >= 2);
    // The blocks that hold firmware are among what only the second is sent.
    let copied = [&one, &two, &three].map(|i| i.0.0.lock().unwrap().copied.len());
    println!("pages before the first checkpoint was whole: {copied:?}");
    assert!(copied[0] < copied[1] / 2 && copied[2] < copied[1] / 2, "{copied:?}");
}

#[test]
fn a_sink_that_comes_back_is_sent_what_was_written_since() {
    let dir = tempfile::tempdir().unwrap();
    let boot = guest::boot_sector(dir.path());
    let mut config = guest::config(Path::new("qemu-system-x86_64"), guest::accels()[0], 2, &boot);
    config.spec.hardware.nics.clear();
    let (machine, ports) = guest::launch(&config);
    let guest_io = Arc::new(guest_io::open(dir.path(), &config.spec));
    guest_io.attach(ports).unwrap();
    let memory = Arc::clone(machine.memory());
    let waker = Waker::new().unwrap();
    let (tell, inbox) = channel();
    let ((seen, final_taken), (refused, refusals)) = (channel(), channel());
    thread::spawn(move || core(inbox, seen, refused));
    let watcher = Watcher::new(GENERATION, Dumps::new(dir.path(), "vm"), SharedHealth::default(), tell.clone());
    let surroundings = Surroundings { guest_io, disks: Arc::default(), waker: waker.clone(), core: tell };
    let obtain = Box::new(move || Ok(machine));
    let handle =
        vm::start(watcher, obtain, EpochPolicy::Fixed { ms: 5 }, GuestState::default(), None, Epoch(0), surroundings)
            .unwrap();
    let handle = Arc::new(handle);
    guest::await_boot(&memory, 2);
    let whole = Duration::ZERO;
    let left = |name, differs| Some(Held { basis: Basis::Left(Term(name)), differs });
    // A target goes when two checkpoints are on their way to it, or acknowledgements of them on their way back.
    let goes = |target_state: &Shared, name| {
        target_state.wait("two lost checkpoints", |i| i.lost == 2);
        handle.send(Command::RemoveSink { target: Target::Session(Term(name)), comes_back: true });
        let held = target_state.0.0.lock().unwrap().blocks.clone();
        // The guest goes on.
        let deadline = Instant::now() + LIMIT;
        while content(&memory) == held {
            assert!(Instant::now() < deadline, "the guest writes nothing");
        }
        held
    };

    // Nobody else is there meanwhile.
    let lost = Habits { gets: 20, acknowledges: 20, ..Habits::default() };
    let one = add(1, &handle, &waker, empty(&memory), None, lost);
    let held = goes(&one, 1);
    // It comes back with what it has acknowledged.
    let two = add_holder(2, &handle, &waker, held, left(1, Vec::new()), whole);
    two.wait("checkpoints again", |i| i.epoch >= 25);
    let three = add_sink(3, &handle, &waker, &memory, whole);
    three.wait("checkpoints at the third", |i| i.sums.len() >= 2);
    // It goes again: with one more than was heard of.
    {
        let mut image = two.0.0.lock().unwrap();
        image.habits = Habits { acknowledges: image.epoch + 1, gets: image.epoch + 2, ..image.habits };
    }
    let held = goes(&two, 2);
    // Another is, and it goes on while this one is away. What it says that it has not, it is sent, too.
    three.wait("more at the third", |i| i.sums.len() >= 10);
    let block = PageRun { block: 1, first: 0, count: 1 };
    let mut other = held;
    other[1][..block.bytes()].fill(0x5a);
    let four = add_holder(4, &handle, &waker, other, left(2, vec![block]), whole);
    four.wait("checkpoints at the fourth", |i| i.sums.len() >= 2);

    // Who has come back is not expected any more; nor is one that has acknowledged nothing.
    handle.send(Command::ForgetLeft(Term(2)));
    let nothing = add(5, &handle, &waker, empty(&memory), None, Habits { acknowledges: 0, ..Habits::default() });
    nothing.wait("a first checkpoint", |i| i.epoch > 0);
    handle.send(Command::RemoveSink { target: Target::Session(Term(5)), comes_back: true });
    for gone in [2, 5] {
        let _late = add_holder(TOO_LATE, &handle, &waker, empty(&memory), left(gone, Vec::new()), whole);
        assert_eq!(refusals.recv_timeout(LIMIT).unwrap(), TOO_LATE);
    }
    handle.send(Command::TakeFinal);
    let last = final_taken.recv_timeout(LIMIT).unwrap();
    are_equal(&[&three, &four], &memory, last);
    assert!(same_sums(&two, &three) >= 1 && same_sums(&three, &four) >= 2);
    // The blocks that hold firmware, which nobody writes, are among what only a whole copy brings; but for the page asked for.
    let firmware =
        |target_state: &Shared| target_state.0.0.lock().unwrap().copied.iter().filter(|(block, _)| *block > 0).count();
    let copied = [&one, &two, &three, &four].map(firmware);
    println!("pages of other blocks before the first checkpoint was whole: {copied:?}");
    assert!(copied[1] < copied[0] / 4 && copied[3] < copied[2] / 4, "{copied:?}");
}
