//! Taking a snapshot of the running VM, and starting the VM from one.
//!
//! ```text
//!   the VM's thread ─► one checkpoint ─► this thread ─► POOL/snapshots/NAME.nfsnap
//!                          (memory and volumes are held as they are at it, and copied while the guest goes on)
//! ```
//!
//! The guest stands still for that one checkpoint, which others that get checkpoints share. A start from a snapshot verifies all
//! of it before anything is touched; then a QEMU is launched, memory, volumes and devices are loaded, and the witness is asked
//! as for a boot.

pub mod job;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use ninefold_machine::command_line::{CPU, MACHINE};
use ninefold_machine::version::{NEWEST_TESTED, OLDEST};
use ninefold_machine::{Moment, PAGE_SIZE, Pages, QemuVersion};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::difference::{Bearing, Difference, Of};
use ninefold_model::event::SnapshotFigures;
use ninefold_model::health::{Freeze, Health};
use ninefold_model::spec::{Accel, AccelChoice, Arch, Hardware, VmSpec};
use ninefold_model::status::{SnapshotProgress, SnapshotStep};
use ninefold_model::{Epoch, SnapshotName, Term};
use ninefold_replica::stream::Hello;
use ninefold_snapshot::file::{BLOCK, Head, Parent, Platform, Snapshot, Written};
use ninefold_snapshot::log::Found;
use ninefold_snapshot::store::Store;
use ninefold_volume::PointInTime;

use self::job::{Job, SnapshotTarget};
use crate::backup::loaded::{Loaded, Wanted, wanted};
use crate::backup::parking::Former;
use crate::backup::standby;
use crate::config::KeeperConfig;
use crate::devices::disks::Disks;
use crate::devices::guest_io::{CONSOLE, HEALTH};
use crate::durable::booted;
use crate::durable::generation::Generation;
use crate::durable::log::place as log_place;
use crate::durable::mixture::Cause;
use crate::durable::recovery::Place;
use crate::durable::unfinished::Unfinished;
use crate::error::{KeeperError, report};
use crate::health::shared;
use crate::msg::{Msg, SnapshotEvent};
use crate::primary::capture::{Join, Taken, micros, physical_memory};
use crate::primary::freeze::Freezing;
use crate::primary::target::translate;
use crate::primary::waker::Waker;
use crate::runtime::launch::launch;

/// What may wait for the thread.
const JOBS: usize = 8;
/// How often it is told how far it is.
const TELL: Duration = Duration::from_millis(100);

/// Where this host keeps snapshots.
pub fn place(config: &KeeperConfig) -> PathBuf {
    config.host.pool.join("snapshots")
}

/// What a state saved by this host depends on.
pub fn platform(arch: Arch, accel: Accel, qemu: QemuVersion) -> Platform {
    let qemu = [qemu.major, qemu.minor, qemu.micro];
    Platform { arch, accel, machine: MACHINE.into(), cpu: CPU.into(), qemu }
}

/// What is to be taken.
#[derive(Debug)]
pub struct Order {
    pub name: SnapshotName,
    pub parent: Option<SnapshotName>,
    pub hello: Hello,
    pub platform: Platform,
    pub freezing: Freezing,
}

/// Starts a thread that takes a snapshot, once the VM's thread copies the VM to it. When what this answers is dropped the snapshot is given
/// up, however far it is, and nothing of it is left.
///
/// # Errors
/// No more threads.
pub fn take(
    id: u64,
    order: Order,
    place: PathBuf,
    disks: Arc<Disks>,
    waker: Waker,
    core: Sender<Msg>,
) -> Result<Wanted, KeeperError> {
    let (ours, is_wanted) = wanted();
    let run = move || {
        let tell = |news| {
            let _ = core.send(Msg::Snapshot { id, news });
        };
        let wanted = || if is_wanted() { Ok(()) } else { Err("it is not wanted any more".to_owned()) };
        match taken(order, &place, &disks, &waker, &tell, &wanted) {
            Ok((figures, freeze)) => tell(SnapshotEvent::Taken(figures, freeze)),
            Err(reason) => tell(SnapshotEvent::Failed(reason)),
        }
    };
    thread::Builder::new().name("snapshot".into()).spawn(run).map_err(KeeperError::Thread)?;
    Ok(ours)
}

fn taken(
    order: Order,
    place: &Path,
    disks: &Disks,
    waker: &Waker,
    tell: &dyn Fn(SnapshotEvent),
    wanted: &dyn Fn() -> Result<(), String>,
) -> Result<(SnapshotFigures, Option<Freeze>), String> {
    let begun = Instant::now();
    let store = Store::open(place).map_err(|e| report(&e))?;
    let parent = order.parent.as_ref().map(|name| store.get(name)).transpose().map_err(|e| report(&e))?;
    let of = parent.as_ref().map(|p| Parent { name: p.head().name.clone(), root: p.root() });
    let sizes = order.hello.spec.hardware.volumes.iter().map(|v| v.size).collect();
    let head = Head::new(order.name.clone(), order.platform.clone(), sizes, of);
    let (writer, staged) = store.create(&order.hello, &head, parent).map_err(|e| report(&e))?.split();
    let frozen = disks
        .iter()
        .map(|disk| PointInTime::new(Arc::clone(&disk.served), place).map(Arc::new))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| report(&e))?;
    let (jobs, work) = sync_channel(JOBS);
    tell(SnapshotEvent::Ready(SnapshotTarget { jobs, frozen: frozen.clone() }));
    let Finished { written, pause_us, waited, freeze } = write(writer, &work, &frozen, order, waker, tell, wanted)?;
    drop(frozen);
    wanted()?;
    staged.publish().map_err(|e| report(&e))?;
    let figures = SnapshotFigures {
        pause_us,
        waited_us: micros(waited),
        took_ms: micros(begun.elapsed()) / 1000,
        bytes: written.bytes,
        pages: written.pages,
        pages_in_parent: written.pages_in_parent,
        blocks: written.blocks,
        blocks_in_parent: written.blocks_in_parent,
    };
    Ok((figures, freeze))
}

/// A file that is written, and how its content came about.
struct Finished {
    written: Written,
    /// Microseconds.
    pause_us: u64,
    /// How long the guest's writes waited.
    waited: Duration,
    freeze: Option<Freeze>,
}

type Writer = ninefold_snapshot::file::Writer<std::io::BufWriter<File>>;

fn write(
    mut writer: Writer,
    work: &Receiver<Job>,
    frozen: &[Arc<PointInTime>],
    mut order: Order,
    waker: &Waker,
    tell: &dyn Fn(SnapshotEvent),
    wanted: &dyn Fn() -> Result<(), String>,
) -> Result<Finished, String> {
    let term = order.hello.term;
    let mut runs = Vec::new();
    let (taken, join) = loop {
        match work.recv().map_err(|_| "the VM's thread copies no more".to_owned())? {
            // Where memory cannot be held it comes before.
            Job::Round { pieces } => {
                writer.begin_round(term).map_err(|e| report(&e))?;
                while let Ok(piece) = pieces.recv() {
                    waker.ring();
                    translate(&piece.runs, &mut runs);
                    writer.pages(&runs, &piece.bytes).map_err(|e| report(&e))?;
                }
                writer.end_round().map_err(|e| report(&e))?;
            }
            Job::Prepared { go } => {
                order.freezing.freeze()?;
                go.store(true, Ordering::Release);
                waker.ring();
            }
            Job::Checkpoint { taken, join } => break (taken, join),
        }
    };
    let Order { name, hello, freezing, .. } = order;
    // Others than this thread wait for the guest to be thawed.
    let freeze = freezing.was_taken(taken.resumed)?;
    let pause_us = taken.record.pause_us;
    steps(&taken.record);
    let Join { console, moment, .. } = *join;
    let mut waited = Duration::ZERO;
    let health = shared::with_freeze(&taken.health, freeze.as_ref());
    let output = [console, taken.agent.clone(), taken.addresses.clone().into_bytes(), health];
    if let Some(moment) = moment {
        let devices = taken.devices.clone();
        let others = other_blocks(&taken);
        // Others wait for its buffers.
        drop(taken);
        writer.begin_round(term).map_err(|e| report(&e))?;
        let read = held(&mut writer, &moment, &name, &hello, tell, wanted);
        waited = moment.waited();
        // The guest is no longer trapped, and the VM's thread is to know.
        drop(moment);
        waker.ring();
        read?;
        writer.end_round().map_err(|e| report(&e))?;
        writer.begin_checkpoint(term, &devices, &output).map_err(|e| report(&e))?;
        translate(&others.runs, &mut runs);
        writer.pages(&runs, &others.bytes).map_err(|e| report(&e))?;
    } else {
        writer.begin_checkpoint(term, &taken.devices, &output).map_err(|e| report(&e))?;
        translate(taken.runs(), &mut runs);
        writer.pages(&runs, taken.content()).map_err(|e| report(&e))?;
        drop(taken);
    }
    let mut writer = writer.volumes().map_err(|e| report(&e))?;
    let total: u64 = frozen.iter().map(|f| f.size()).sum();
    let (mut done, mut content) = (0, Vec::new());
    for (volume, frozen) in (0u16..).zip(frozen) {
        for block in 0..frozen.size().div_ceil(BLOCK as u64) {
            wanted()?;
            frozen.block(block, &mut content).map_err(|e| report(&e))?;
            writer.block(volume, block, &content).map_err(|e| report(&e))?;
            done += content.len() as u64;
            if block % 64 == 0 {
                let (name, doing) = (name.clone(), SnapshotStep::Volumes);
                let waited_us = micros(waited);
                tell(SnapshotEvent::Progress(SnapshotProgress { name, doing, done, total, waited_us }));
            }
        }
    }
    let (_, written) = writer.finish().map_err(|e| report(&e))?;
    Ok(Finished { written, pause_us, waited, freeze })
}

/// Says in the log how long each step of the pause took: the one pause that a snapshot has is in no statistics.
fn steps(record: &CheckpointRecord) {
    let CheckpointRecord { pause_us, stop_us, save_us, scan_us, copy_us, cont_us, again_pages, .. } = *record;
    tracing::info!(pause_us, stop_us, save_us, scan_us, copy_us, cont_us, again_pages, "the pause of the snapshot");
}

/// Writes the guest's memory as it was at the moment.
fn held(
    writer: &mut Writer,
    moment: &Moment,
    name: &SnapshotName,
    hello: &Hello,
    tell: &dyn Fn(SnapshotEvent),
    wanted: &dyn Fn() -> Result<(), String>,
) -> Result<(), String> {
    let total = hello.layout.pages(0).unwrap_or(0) * PAGE_SIZE;
    let (mut pages, mut runs, mut told) = (Pages::default(), Vec::new(), Instant::now());
    let mut done = 0;
    while moment.next(&mut pages).map_err(|e| report(&e))? {
        wanted()?;
        translate(&pages.runs, &mut runs);
        writer.pages(&runs, &pages.bytes).map_err(|e| report(&e))?;
        done += pages.bytes.len() as u64;
        if told.elapsed() >= TELL {
            told = Instant::now();
            let (name, doing) = (name.clone(), SnapshotStep::Memory);
            let waited_us = micros(moment.waited());
            tell(SnapshotEvent::Progress(SnapshotProgress { name, doing, done, total, waited_us }));
        }
    }
    Ok(())
}

/// What a checkpoint has of other blocks than the guest's memory.
fn other_blocks(taken: &Taken) -> Pages {
    let mut others = Pages::default();
    let mut rest = taken.content();
    for run in taken.runs() {
        let (content, after) = rest.split_at(run.bytes());
        rest = after;
        if run.block != 0 {
            others.runs.push(*run);
            others.bytes.extend_from_slice(content);
        }
    }
    others
}

/// How the guest's file systems are in a snapshot; none: they were not to be frozen for it.
pub fn freeze_of(snapshot: &Snapshot) -> Option<Freeze> {
    let said = snapshot.state().output.get(usize::from(HEALTH))?;
    shared::heard(said)?.freeze
}

/// Starts a thread that loads a snapshot into a QEMU, after `former` has ended.
///
/// # Errors
/// No more threads.
pub fn load(
    id: u64,
    name: SnapshotName,
    clone: bool,
    config: Arc<KeeperConfig>,
    into: Place,
    former: Former,
    core: Sender<Msg>,
) -> Result<Wanted, KeeperError> {
    let (ours, is_wanted) = wanted();
    let run = move || {
        drop(former);
        let tell = |news| {
            let _ = core.send(Msg::Snapshot { id, news });
        };
        match loaded(&name, clone, &config, &into, &tell, &is_wanted) {
            Ok(loaded) => tell(SnapshotEvent::Loaded(Box::new(loaded))),
            Err(reason) => tell(SnapshotEvent::NotLoaded(reason)),
        }
    };
    thread::Builder::new().name("snapshot".into()).spawn(run).map_err(KeeperError::Thread)?;
    Ok(ours)
}

/// How a VM begins from a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// It goes on where the other was, with its memory.
    Memory,
    /// It boots from the other's disks: a guest that goes on keeps the Ethernet addresses that it has in its memory.
    Disks,
}

/// How `ours` can begin from a snapshot of `theirs`.
///
/// # Errors
/// It cannot be what the snapshot is of: each field that is in the way, with both values.
fn beginning(theirs: &VmSpec, ours: &VmSpec, clone: bool) -> Result<Start, String> {
    let (theirs, ours) = (&theirs.hardware, &ours.hardware);
    let macs = |hardware: &Hardware| hardware.nics.iter().map(|n| n.mac).collect::<Vec<_>>();
    let (their_macs, our_macs) = (macs(theirs), macs(ours));
    let own = clone && their_macs != our_macs;
    if own && let Some(shared) = our_macs.iter().find(|mac| their_macs.contains(mac)) {
        return Err(format!(
            "the clone has the Ethernet address {shared} of the snapshot's VM, and others of its own: give it all of them, and it goes on \
             where the other was, or none, and it boots from its disks"
        ));
    }
    let start = if own { Start::Disks } else { Start::Memory };
    let found = theirs.compatible(ours);
    let bars: Vec<_> = found.iter().filter(|d| start.needs(d)).map(ToString::to_string).collect();
    if !bars.is_empty() {
        return Err(format!("the VM is not as in the snapshot ({})", bars.join("; ")));
    }
    if own && ours.volumes.is_empty() {
        return Err("a clone with Ethernet addresses of its own boots from its disks, and it has none".into());
    }
    Ok(start)
}

impl Start {
    /// Whether a VM that begins so has to be as in the snapshot in what the difference is about. Its volumes may have other names: what is in
    /// them is put back.
    fn needs(self, difference: &Difference) -> bool {
        let barred = difference.bearing == Bearing::CannotFollow;
        match self {
            Start::Memory => barred && difference.of() != Of::VolumeName,
            Start::Disks => barred && matches!(difference.of(), Of::Arch | Of::Volume),
        }
    }
}

/// The machine that begins: one that goes on where the other was is what that was booted with, whatever the file says by now. What it
/// is called, where its files and bridges are, and who a clone is, is as this host's file says.
fn machine_of(theirs: &VmSpec, ours: &VmSpec, from: Start) -> VmSpec {
    let mut spec = match from {
        Start::Disks => ours.clone(),
        Start::Memory => theirs.as_booted(ours),
    };
    for (volume, ours) in spec.hardware.volumes.iter_mut().zip(&ours.hardware.volumes) {
        volume.name.clone_from(&ours.name);
    }
    if theirs.id != ours.id {
        spec.hardware.uuid = ours.hardware.uuid;
    }
    spec
}

/// Whether this host's VM can be what the snapshot is of, and how it begins.
/// Whether the VM of a snapshot is this one, or this one is to be another that is made of it.
fn whose(theirs: &VmSpec, ours: &VmSpec, clone: bool) -> Result<(), String> {
    match (theirs.id == ours.id, clone) {
        (true, false) | (false, true) => Ok(()),
        (false, false) => Err(format!(
            "it is a snapshot of {}: `ninefold vm restore --clone` makes {} of it",
            theirs.label(),
            ours.label()
        )),
        // Two VMs of one id would be one to the witness and to everybody else.
        (true, true) => Err(format!(
            "it is a snapshot of this very VM, {}: restore it without --clone, or give the clone an id of its own (`ninefold vm new-id`)",
            ours.label()
        )),
    }
}

fn check(snapshot: &Snapshot, clone: bool, config: &KeeperConfig) -> Result<Start, String> {
    let (hello, ours) = (snapshot.hello(), &config.vm);
    whose(&hello.spec, ours, clone)?;
    let from = beginning(&hello.spec, ours, clone)?;
    if from == Start::Disks {
        // Nothing of the state of a machine is used.
        return Ok(from);
    }
    booted::fits(&hello.spec, &ours.hardware, physical_memory())?;
    let qemu = QemuVersion::of_program(&config.host.qemu).map_err(|e| report(&e))?;
    // A saved state is of one accelerator. Whether that works here is otherwise for QEMU to say.
    let accel = match ours.hardware.accel {
        AccelChoice::Kvm => Accel::Kvm,
        AccelChoice::Tcg => Accel::Tcg,
        AccelChoice::Auto if Path::new("/dev/kvm").exists() => hello.accel,
        AccelChoice::Auto => Accel::Tcg,
    };
    let here = platform(ours.hardware.arch, accel, qemu);
    let range = |v: QemuVersion| [v.major, v.minor];
    snapshot.head().platform.check(&here, range(OLDEST), range(NEWEST_TESTED)).map_err(|e| report(&e))?;
    Ok(from)
}

fn loaded(
    name: &SnapshotName,
    clone: bool,
    config: &KeeperConfig,
    into: &Place,
    tell: &dyn Fn(SnapshotEvent),
    wanted: &dyn Fn() -> bool,
) -> Result<Loaded, String> {
    let begun = Instant::now();
    let unused = into.disks.unused();
    let store = Store::open(&place(config)).map_err(|e| report(&e))?;
    let snapshot = store.get(name).map_err(|e| report(&e))?;
    let from = check(&snapshot, clone, config)?;
    let progress = |doing: SnapshotStep| {
        move |done: u64, total: u64| {
            tell(SnapshotEvent::Progress(SnapshotProgress { name: name.clone(), doing, done, total, waited_us: 0 }));
            if wanted() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        }
    };
    snapshot.verify(&mut progress(SnapshotStep::Verifying)).map_err(|e| report(&e))?;
    let mut hello = snapshot.hello().clone();
    let state = snapshot.state();
    let said = |channel: u8| state.output.get(usize::from(channel)).map_or(&[][..], Vec::as_slice);
    hello.health = match from {
        Start::Memory => shared::heard(said(HEALTH)).unwrap_or(hello.health),
        Start::Disks => Health::default(),
    };
    into.images.keep(hello.health.committed.as_ref()).map_err(|e| report(&e))?;
    hello.spec = machine_of(&hello.spec, &config.vm, from);
    // The guest is to know that it has been put back, or is a copy.
    hello.generation = Some(Generation::of(config).renew().map_err(|e| format!("the VM's generation id: {e}"))?);
    let mut loading = None;
    if from == Start::Memory {
        let (machine, ports, _) = standby::launch(config, &hello, into.disks.sockets())?;
        let mut memory = standby::Fresh(Arc::clone(machine.memory()));
        snapshot.load(&|block| block == 0, &mut memory, &mut progress(SnapshotStep::Memory)).map_err(|e| report(&e))?;
        loading = Some((machine, ports));
    }
    into.disks.settle()?;
    let still = || if wanted() { unused.check() } else { Err("it is not wanted any more".to_owned()) };
    still()?;
    // Nobody is to go on from a log on volumes that are not those of the log any more.
    remove_log(config)?;
    still()?;
    // From here on the volumes are a mixture, until all of them are done.
    let unfinished = Unfinished::begin(config, name)?;
    into.disks.mixture().begin(Cause::Restore)?;
    for (volume, disk) in (0u16..).zip(into.disks.iter()) {
        ninefold_fault::point("restore.volume").map_err(|e| e.to_string())?;
        snapshot
            .restore_volume(volume, &unused.image(disk), &mut progress(SnapshotStep::Volumes))
            .map_err(|e| format!("volume {}: {}", disk.spec.name, report(&e)))?;
    }
    into.disks.mixture().end_now()?;
    unfinished.end()?;
    still()?;
    into.guest_io.forget();
    into.guest_io.forget_addresses();
    let (machine, ports) = match loading {
        Some((mut machine, ports)) => {
            into.guest_io.heard(said(CONSOLE));
            machine.load(&state.device_state).map_err(|e| report(&e))?;
            (machine, ports)
        }
        None => {
            let (machine, ports, _) = launch(config, config.boot()?, into.disks.sockets())?;
            (machine, ports)
        }
    };
    let load_us = micros(begun.elapsed());
    let (epoch, health, spec) = (Epoch(0), hello.health, hello.spec);
    let (tracker, history, logged, stopped) = (None, None, false, None);
    Ok(Loaded { machine, ports, spec, epoch, health, load_us, tracker, history, logged, stopped })
}

/// Removes the log of the VM's former life, if there is one. Durable when this returns.
fn remove_log(config: &KeeperConfig) -> Result<(), String> {
    let place = log_place::place(config);
    if !place.exists() {
        return Ok(());
    }
    let storage = log_place::open_if_free(&place)?;
    Found::remove(&*storage).map_err(|e| report(&e))
}

/// The name of a session's stream in a snapshot: its term.
pub fn hello(hello: Hello, term: Term) -> Hello {
    Hello { session: term.0, term, ..hello }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use ninefold_machine::BlockLayout;
    use ninefold_model::Epoch;
    use ninefold_model::VmId;
    use ninefold_model::spec::{BootKind, Nic, VolumeSpec};

    use super::*;
    use crate::primary::capture::Capture;
    use crate::primary::target::ReplicationTarget;

    fn vm(macs: &[u8], volumes: &[u64]) -> VmSpec {
        let json = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "vm", "hardware": { "memory_mib": 64, "boot": "volume" }
        });
        let mac = |last: &u8| format!("52:54:00:00:00:{last:02x}").parse().unwrap();
        let disk = |(n, size): (usize, &u64)| VolumeSpec::new(format!("v{n}").parse().unwrap(), *size);
        let mut vm: VmSpec = serde_json::from_value(json).unwrap();
        vm.hardware.nics = macs.iter().map(|last| Nic { mac: mac(last) }).collect();
        vm.hardware.volumes = volumes.iter().enumerate().map(disk).collect();
        vm
    }

    /// The same VM with another machine.
    fn with(vm: &VmSpec, change: impl FnOnce(&mut Hardware)) -> VmSpec {
        let mut vm = vm.clone();
        change(&mut vm.hardware);
        vm
    }

    /// What it is called says nothing: another VM may have had this one's name.
    #[test]
    fn a_snapshot_is_of_the_vm_that_has_its_id() {
        let theirs = vm(&[1], &[512]);
        let renamed = VmSpec { name: "renamed".parse().unwrap(), ..theirs.clone() };
        let another = VmSpec { id: VmId::random(7), ..theirs.clone() };
        assert_eq!(whose(&theirs, &renamed, false), Ok(()));
        assert_eq!(whose(&theirs, &another, true), Ok(()));
        let said = whose(&theirs, &another, false).unwrap_err();
        assert!(
            said.contains(&theirs.label()) && said.contains(&another.label()) && said.contains("--clone"),
            "{said}"
        );
        assert!(whose(&theirs, &renamed, true).unwrap_err().contains("new-id"));
    }

    #[test]
    fn a_clone_goes_on_with_the_same_ethernet_addresses_and_boots_with_its_own() {
        let theirs = vm(&[1, 2], &[512]);
        assert_eq!(beginning(&theirs, &vm(&[1, 2], &[512]), true), Ok(Start::Memory));
        assert_eq!(beginning(&theirs, &vm(&[3, 4], &[512]), true), Ok(Start::Disks));
        assert_eq!(beginning(&theirs, &vm(&[3], &[512]), true), Ok(Start::Disks));
        // A booted guest may find another machine, but not other disks.
        let larger = with(&theirs, |h| (h.memory_mib, h.vcpus) = (65, 2));
        assert_eq!(beginning(&theirs, &larger, false), Ok(Start::Memory), "it goes on as it was booted");
        let began = machine_of(&theirs, &larger, Start::Memory);
        assert_eq!((began.hardware.memory_mib, began.hardware.vcpus), (64, 1));
        let clone = VmSpec { id: VmId::random(7), name: "copy".parse().unwrap(), ..larger };
        let began = machine_of(&theirs, &clone, Start::Memory);
        assert_eq!((began.hardware.memory_mib, began.uuid(), began.name.as_str()), (64, clone.uuid(), "copy"));
        assert_eq!(machine_of(&theirs, &clone, Start::Disks).hardware.memory_mib, 65);
        assert_eq!(beginning(&theirs, &with(&vm(&[3], &[512]), |h| h.memory_mib = 65), true), Ok(Start::Disks));
        let refused = |ours: &VmSpec, clone, why: &str| {
            let reason = beginning(&theirs, ours, clone).unwrap_err();
            assert!(reason.contains(why), "{reason}");
        };
        refused(&vm(&[1, 4], &[512]), true, "52:54:00:00:00:01");
        refused(&vm(&[2, 1], &[512]), true, "52:54:00:00:00:02");
        refused(&vm(&[3, 4], &[1024]), true, "hardware.volumes[0].size: 512 and not 1024");
        refused(&vm(&[3, 4], &[512]), false, "hardware.nics[0].mac: 52:54:00:00:00:01 and not 52:54:00:00:00:03");
        // Its disks may have other names, in the same pool they must. A guest that boots looks at nothing else.
        let renamed = with(&theirs, |h| h.volumes[0].name = "other".parse().unwrap());
        assert_eq!(beginning(&theirs, &renamed, true), Ok(Start::Memory));
        let began = machine_of(&theirs, &renamed, Start::Memory);
        assert_eq!(began.hardware.volumes[0].name.as_str(), "other");
        let sector = |vm: &VmSpec| with(vm, |h| h.boot = BootKind::BootSector);
        refused(&sector(&theirs), false, "hardware.boot: volume and not boot_sector");
        assert_eq!(beginning(&theirs, &sector(&vm(&[3], &[512])), true), Ok(Start::Disks));
        let diskless = beginning(&vm(&[1], &[]), &vm(&[2], &[]), true).unwrap_err();
        assert!(diskless.contains("it has none"), "{diskless}");
    }

    /// Whoever cancels a snapshot, however far it is, finds no file of it later.
    #[test]
    fn a_snapshot_that_is_not_wanted_any_more_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        for is_wanted in [true, false] {
            let place = dir.path().join(is_wanted.to_string());
            let (core, heard) = channel();
            let platform = platform(Arch::X86_64, Accel::Tcg, QemuVersion { major: 10, minor: 0, micro: 0 });
            let name: SnapshotName = "monday".parse().unwrap();
            let hello = crate::hello::hello(1, 4096);
            let order = Order { name: name.clone(), parent: None, hello, platform, freezing: Freezing::Never };
            let wanted = take(1, order, place.clone(), Arc::default(), Waker::new().unwrap(), core).unwrap();
            let news = || match heard.recv_timeout(Duration::from_secs(60)).unwrap() {
                Msg::Snapshot { news, .. } => news,
                _ => panic!("something else"),
            };
            let SnapshotEvent::Ready(target) = news() else { panic!("it is not ready") };
            let kept = is_wanted.then_some(wanted);
            let mut capture = Box::new(Capture::for_layout(&BlockLayout { blocks: Vec::new() }).unwrap());
            (capture.epoch, capture.devices) = (Epoch(1), vec![1]);
            let taken = Arc::new(Taken::new(capture, channel().0, Waker::new().unwrap()));
            let join = Join { rest: Vec::new(), queued: Vec::new(), console: Vec::new(), moment: None };
            target.checkpoint(taken, Some(Box::new(join))).unwrap();
            match news() {
                SnapshotEvent::Taken(..) => assert!(is_wanted),
                SnapshotEvent::Failed(reason) => assert!(!is_wanted && reason.contains("not wanted"), "{reason}"),
                other => panic!("{other:?}"),
            }
            assert_eq!(Store::open(&place).unwrap().get(&name).is_ok(), is_wanted);
            drop(kept);
        }
    }
}
