//! A snapshot of a guest that writes all of its memory faster than it can be copied: alone, and while a backup gets checkpoints.
//!
//! The guest stands still for no longer than in a checkpoint, each page is in the file once, and what is in it is one moment: a
//! QEMU that is loaded with it goes on.

mod guest_io;
mod hello;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread;
use std::time::Duration;

use guest::sweep::{self, Place};
use ninefold_keeper::backup::standby::{Fresh, layout};
use ninefold_keeper::health::dumps::Dumps;
use ninefold_keeper::health::shared::SharedHealth;
use ninefold_keeper::health::watcher::Watcher;
use ninefold_keeper::msg::{Msg, SnapshotEvent};
use ninefold_keeper::primary::changed_blocks::ChangedBlocks;
use ninefold_keeper::primary::freeze::Freezing;
use ninefold_keeper::primary::session::job::{Job, SessionTarget};
use ninefold_keeper::primary::snapshot::{self, Order};
use ninefold_keeper::primary::vm::{self, Command, Surroundings, VmHandle};
use ninefold_keeper::primary::waker::Waker;
use ninefold_machine::{MachineConfig, Mechanism, QemuVersion};
use ninefold_model::event::SnapshotFigures;
use ninefold_model::spec::{Accel, Arch, EpochPolicy};
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::Hello;
use ninefold_replica::target::Target;
use ninefold_snapshot::store::Store;
use ninefold_testkit::guest;

/// What any step may take; only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(120);
const GENERATION: u64 = 7;
const SESSION: Term = Term(1);
const BACKUP: Target = Target::Session(SESSION);

/// Stands in for the core: output is held at once; what becomes of a snapshot is passed on.
fn core(inbox: Receiver<Msg>, news: Sender<SnapshotEvent>) {
    for msg in inbox {
        match msg {
            Msg::FirstCheckpoint { held, .. } => held.send(()).unwrap(),
            Msg::Snapshot { news: SnapshotEvent::Progress(_), .. } => {}
            Msg::Snapshot { news: heard, .. } => news.send(heard).unwrap(),
            Msg::CannotReplicate { target, reason, .. } => panic!("{target}: {reason}"),
            Msg::VmLost { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    }
}

/// Gets the VM as a backup does, at once; tells how long the guest stood still for each checkpoint.
fn backup(work: Receiver<Job>, handle: Arc<VmHandle>, waker: Waker, pauses: Sender<u64>) {
    for job in work {
        match job {
            Job::Round { pieces, .. } => pieces.iter().for_each(|_| waker.ring()),
            Job::Checkpoint { taken, .. } => {
                let (epoch, pause) = (taken.epoch, taken.record.pause_us);
                drop(taken);
                handle.send(Command::Acked { target: BACKUP, epoch });
                let _ = pauses.send(pause);
            }
            _ => panic!("what a target is not given here"),
        }
    }
}

/// A VM and where its snapshots go.
struct Vm {
    config: MachineConfig,
    hello: Hello,
    qemu: QemuVersion,
    handle: Arc<VmHandle>,
    waker: Waker,
    tell: Sender<Msg>,
    news: Receiver<SnapshotEvent>,
    place: std::path::PathBuf,
}

impl Vm {
    fn news(&self) -> SnapshotEvent {
        self.news.recv_timeout(LIMIT).expect("what becomes of the snapshot")
    }

    fn snapshot(&self, name: &str) -> SnapshotFigures {
        let platform = snapshot::platform(Arch::X86_64, self.config.accel, self.qemu);
        let (hello, freezing) = (self.hello.clone(), Freezing::Never);
        let order = Order { name: name.parse().unwrap(), parent: None, hello, platform, freezing };
        let _wanted =
            snapshot::take(1, order, self.place.clone(), Arc::default(), self.waker.clone(), self.tell.clone())
                .unwrap();
        let SnapshotEvent::Ready(target) = self.news() else { panic!("it is not ready") };
        let (target, rest) = (Box::new(target), ChangedBlocks::default());
        self.handle.send(Command::AddSink { target, rounds: 0, rest, held: None });
        let news = self.news();
        let SnapshotEvent::Taken(figures, _) = news else { panic!("{news:?}") };
        println!("{name}: {figures:?}");
        figures
    }

    /// Whether what is in the file is one moment, of memory and devices, from which the guest goes on; and whether all of it is in
    /// there once. Where the guest is in it.
    fn is_whole(&self, name: &str, figures: SnapshotFigures) -> Place {
        let store = Store::open(&self.place).unwrap();
        let mut told = |_, _| std::ops::ControlFlow::Continue(());
        let copy = self.place.join(format!("copy-of-{name}"));
        let name = name.parse().unwrap();
        // What is exported is written anew, each content once.
        store.export(&name, &copy, &mut told).unwrap();
        let once = std::fs::metadata(&copy).unwrap().len();
        assert!(figures.bytes <= once + once / 20 + (1 << 20), "{} bytes, {once} with each page once", figures.bytes);
        assert!(figures.pages <= self.hello.layout.total_pages());

        let snapshot = store.get(&name).unwrap();
        snapshot.verify(&mut told).unwrap();
        let (mut machine, _ports) = guest::launch(&guest::standby(&self.config));
        let memory = Arc::clone(machine.memory());
        snapshot.load(&|block| block == 0, &mut Fresh(Arc::clone(&memory)), &mut told).unwrap();
        let sweep = sweep::is_of_one_moment(&memory);
        machine.load(&snapshot.state().device_state).unwrap();
        // Before it runs: after a sweep nothing would show any more.
        let line = serde_json::json!({"command-line": "info registers"});
        let registers: String = machine.command("human-monitor-command", Some(line)).unwrap();
        let place = Place::of(&memory, &registers);
        assert!(place.is_one(), "{place:x?}");
        machine.start().unwrap();
        sweep::await_sweeps(&memory, 2);
        machine.stop().unwrap();
        assert!(sweep::is_of_one_moment(&memory) >= sweep + 2);
        place
    }
}

#[test]
fn a_guest_that_writes_everywhere_is_in_its_snapshot_once_and_as_it_was() {
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
    let hello = Hello {
        spec: config.spec.clone(),
        layout: layout(&machine).unwrap(),
        ..hello::hello(GENERATION, memory.ram().bytes())
    };
    let qemu = machine.version();
    let waker = Waker::new().unwrap();
    let ((tell, inbox), (pass, news)) = (channel(), channel());
    thread::spawn(move || core(inbox, pass));
    let watcher = Watcher::new(GENERATION, Dumps::new(dir.path(), "vm"), SharedHealth::default(), tell.clone());
    let surroundings = Surroundings { guest_io, disks: Arc::default(), waker: waker.clone(), core: tell.clone() };
    let obtain = Box::new(move || Ok(machine));
    let handle =
        vm::start(watcher, obtain, EpochPolicy::Fixed { ms: 25 }, Default::default(), None, Epoch(0), surroundings)
            .unwrap();
    let place = dir.path().join("snapshots");
    let vm = Vm { config, hello, qemu, handle: Arc::new(handle), waker, tell, news, place };
    sweep::await_sweeps(&memory, 3);

    let alone = vm.snapshot("alone");
    sweep::await_sweeps(&memory, 3);

    // All regions are hot, and have to be trapped first.
    let ((jobs, work), (tell, pauses)) = (sync_channel(8), channel());
    let (handle, waker) = (Arc::clone(&vm.handle), vm.waker.clone());
    thread::spawn(move || backup(work, handle, waker, tell));
    let rest = ChangedBlocks::default();
    let target = Box::new(SessionTarget { session: SESSION, jobs });
    vm.handle.send(Command::AddSink { target, rounds: 0, rest, held: None });
    let checkpoints: Vec<u64> = (0..20).map(|_| pauses.recv_timeout(LIMIT).unwrap()).collect();
    let protected = vm.snapshot("protected");
    vm.handle.send(Command::Kill);

    println!("pauses of checkpoints: {checkpoints:?} us");
    // The first is the one with which the backup joins.
    let mut usual = checkpoints[1..].to_vec();
    usual.sort_unstable();
    // Copying all of the memory takes several times as long.
    let bound = 4 * usual[usual.len() * 9 / 10] + 50_000;
    let places = [("alone", alone), ("protected", protected)].map(|(name, figures)| {
        assert!(figures.pause_us <= bound, "{name}: {} us, checkpoints {usual:?} us", figures.pause_us);
        vm.is_whole(name, figures)
    });
    let mixture = Place { processor: places[1].processor, ..places[0] };
    assert!(!mixture.is_one(), "what is looked for shows: {mixture:x?}");
}
