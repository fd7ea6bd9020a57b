//! The memory proof: at every checkpoint boundary the standby's memory equals the primary's, byte for byte.
//!
//! ```text
//!   real QEMU ──► tracker, Capture ──► PageEncoder, PassWriter ──► bytes ──► RecordReader, CheckpointAssembler ──► real QEMU
//!    primary      (the keeper's own)                                                     Sink (the keeper's own)    standby
//!       └────────────────────────── while the guest stands still: all RAM blocks compared ──────────────────────────┘
//! ```
//!
//! The guests are a Linux with two vCPUs that writes to its memory in several patterns while redis, kernel and console
//! go on as they do, and a boot sector that runs from the first instruction of the firmware on (also on KVM where it
//! opens). Some checkpoints are held in the pause and copied behind it: those are compared with what the memory was in the pause.
//! Sessions break, with checkpoints on their way, and the standby is brought up to date by what was written since; also one
//! whose QEMU was killed with its keeper, of which only the guest's memory is left. At the end the primary is killed and the standby
//! goes on.

mod guest_io;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_keeper::backup::standby::{Sink, layout};
use ninefold_keeper::config::KeeperConfig;
use ninefold_keeper::devices::disks::Disks;
use ninefold_keeper::devices::guest_io::{CONSOLE, GuestIo};
use ninefold_keeper::primary::capture::Capture;
use ninefold_keeper::primary::first_copy;
use ninefold_keeper::run_dir;
use ninefold_machine::{DirtySet, Machine, MachineConfig, Memory, PageMap, PageRun, Ports, Ram, Tracker};
use ninefold_model::spec::{Accel, AccelChoice, Boot};
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::{
    self, CheckpointAssembler, Fed, Mode, PageEncoder, Pass, PassKind, PassWriter, Preamble, RecordReader,
};
use ninefold_testkit::guest;

const TERM: Term = Term(1);
/// Pages compared at once.
const STEP: u32 = 1024;
/// What a boot or an answer of the guest may take; only so that a failure ends.
const LIMIT: Duration = Duration::from_secs(120);

/// A primary, a standby and the stream between them, in one process.
struct Proof {
    what: String,
    primary: Machine,
    standby: Machine,
    standby_ports: Option<Ports>,
    guest_io: GuestIo,
    tracker: Tracker,
    dirty: DirtySet,
    capture: Capture,
    encoder: PageEncoder,
    assembler: CheckpointAssembler,
    sink: Sink,
    epoch: Epoch,
    rounds: u64,
    ours: Vec<u8>,
    /// Pages sent with checkpoints, and bytes that they became.
    pages: u64,
    bytes: u64,
}

impl Proof {
    /// Takes a primary that runs, or is about to, and launches its standby.
    fn new(what: &str, config: &MachineConfig, mut primary: Machine, guest_io: GuestIo) -> Self {
        let (standby, ports) = guest::launch(&guest::standby(config));
        let blocks = layout(&primary).unwrap();
        blocks.same_as(&layout(&standby).unwrap()).unwrap();
        // All counts as clean from here on; the first round carries what is there.
        let tracker = primary.track().unwrap();
        let machine_layout = primary.memory().layout().clone();
        Self {
            what: what.to_owned(),
            sink: Sink {
                memory: Arc::clone(standby.memory()),
                disks: Arc::default(),
                session: Term(1),
                log: None,
                touched: false,
            },
            standby,
            standby_ports: Some(ports),
            guest_io,
            tracker,
            dirty: DirtySet::for_layout(&machine_layout),
            capture: Capture::for_layout(&machine_layout).unwrap(),
            // With a shadow of everything, so that the delta modes have something to start from.
            encoder: PageEncoder::new(&blocks).with_shadow(u64::MAX),
            assembler: CheckpointAssembler::new(TERM.0, TERM, blocks, 1),
            epoch: Epoch(0),
            rounds: 0,
            ours: vec![0; STEP as usize * ninefold_machine::PAGE_SIZE as usize],
            pages: 0,
            bytes: 0,
            primary,
        }
    }

    /// One round of the initial copy, while the guest runs.
    fn sync_round(&mut self, mode: Mode) {
        let runs = if self.rounds == 0 {
            first_copy::runs(self.primary.memory()).unwrap()
        } else {
            self.dirty.clear();
            self.tracker.scan(&mut self.dirty).unwrap();
            self.dirty.runs().to_vec()
        };
        self.rounds += 1;
        let mut content = vec![0; runs.iter().map(PageRun::bytes).sum()];
        self.primary.memory().read_runs(&runs, &mut content).unwrap();
        let pass = Pass { session: TERM.0, kind: PassKind::Sync, epoch: Epoch(self.rounds) };
        self.encoder.set_mode(mode);
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        let mut writer = PassWriter::begin(&mut wire, &mut scratch, pass, TERM).unwrap();
        writer.pages(&mut self.encoder, &translate(&runs), &content).unwrap();
        writer.end().unwrap();
        self.receive(wire);
    }

    /// One checkpoint: taken, sent, applied, and compared while the guest stands still.
    fn checkpoint(&mut self, mode: Mode) {
        self.checkpoint_with(mode, None);
    }

    /// Takes checkpoints until all memory is trapped, which it becomes in pauses.
    fn trap_all(&mut self) {
        self.tracker.trap_all(true);
        while self.tracker.can_hold() && !self.tracker.traps_all() {
            self.take(None, false);
            self.send(Mode::Raw);
            self.resume();
        }
    }

    /// The same with one whose pages are held in the pause, and copied when the guest has run for a while. Answers whether they were.
    fn checkpoint_held(&mut self, mode: Mode) -> bool {
        let mut missing = PageMap::for_layout(self.primary.memory().layout());
        self.take(Some(&mut missing), true);
        let held = self.capture.holds();
        let mut expected = Vec::new();
        let ours = self.primary.memory();
        for run in ours.all_runs(STEP) {
            let at = expected.len();
            expected.resize(at + run.bytes(), 0);
            ours.read_run(run, &mut expected[at..]).unwrap();
        }
        self.resume();
        // What it writes meanwhile is in no page of the checkpoint.
        std::thread::sleep(Duration::from_millis(20));
        self.capture.collect().unwrap();
        self.send(mode);
        let theirs = self.standby.memory();
        let mut expected = expected.as_slice();
        for run in theirs.all_runs(STEP) {
            let (content, rest) = expected.split_at(run.bytes());
            expected = rest;
            let differs = theirs.first_difference(run, content).unwrap();
            assert_eq!(differs, None, "{}: epoch {}, held: {held}, block {}", self.what, self.epoch, run.block);
        }
        held
    }

    fn checkpoint_with(&mut self, mode: Mode, missing: Option<&mut PageMap>) {
        self.take(missing, false);
        self.send(mode);
        self.compare(&format!("{}: epoch {}, {mode:?}", self.what, self.epoch));
    }

    fn take(&mut self, missing: Option<&mut PageMap>, may_hold: bool) {
        let next = self.epoch.next();
        self.capture.clear();
        self.capture.may_hold = may_hold;
        // Four copy once before the pause, the next four do not: each in every mode.
        self.capture.early = (next.0 / 4).is_multiple_of(2);
        self.capture
            .take(
                next,
                Duration::ZERO,
                &mut self.primary,
                &mut self.tracker,
                &self.guest_io,
                &Disks::default(),
                missing,
            )
            .unwrap();
        self.epoch = next;
    }

    /// Brings what was taken to the standby.
    fn send(&mut self, mode: Mode) {
        let next = self.epoch;
        let pass = Pass { session: TERM.0, kind: PassKind::Checkpoint, epoch: next };
        self.encoder.set_mode(mode);
        let (mut wire, mut scratch) = (Vec::new(), Vec::new());
        let mut writer = PassWriter::begin(&mut wire, &mut scratch, pass, TERM).unwrap();
        writer.pages(&mut self.encoder, &translate(self.capture.runs()), self.capture.content()).unwrap();
        writer.device_state(&self.capture.devices).unwrap();
        writer.channel_output(CONSOLE, &self.capture.console).unwrap();
        writer.end().unwrap();
        self.pages += self.capture.record.dirty_pages;
        self.bytes += wire.len() as u64;
        self.receive(wire);
        assert_eq!(self.assembler.whole(), next);
        self.guest_io.release(next, &|| true);
    }

    fn resume(&mut self) {
        self.capture.resume(&mut self.primary).unwrap();
    }

    fn receive(&mut self, wire: Vec<u8>) {
        let bytes: Vec<u8> = Preamble::OURS.to_bytes().into_iter().chain(wire).collect();
        let mut records = RecordReader::new(bytes.as_slice());
        records.preamble().unwrap();
        let mut whole = false;
        while let Some(frame) = records.next_record().unwrap() {
            match self.assembler.feed(&frame, &mut self.sink).unwrap() {
                Fed::Whole(_) => {
                    self.assembler.commit(&mut self.sink).unwrap();
                    whole = true;
                }
                Fed::Synced(_) => whole = true,
                _ => {}
            }
        }
        assert!(whole, "{}: a pass that never became whole", self.what);
    }

    /// Every byte of every RAM block.
    fn compare(&mut self, when: &str) {
        let (ours, theirs) = (self.primary.memory(), self.standby.memory());
        for run in ours.all_runs(STEP) {
            let content = &mut self.ours[..run.bytes()];
            ours.read_run(run, content).unwrap();
            if let Some(page) = theirs.first_difference(run, content).unwrap() {
                let name = &ours.layout().blocks[usize::from(run.block)].name;
                panic!("{when}: the standby's '{name}' differs in page {page:#x}");
            }
        }
    }

    /// A session breaks while two checkpoints are on their way, and another begins with what was written since. If the backup's
    /// `killed`, only the guest's memory is left of its standby.
    fn rebind(&mut self, killed: Option<&MachineConfig>) {
        let mut missing = PageMap::for_layout(self.primary.memory().layout());
        for _ in 0..2 {
            let next = self.epoch.next();
            self.capture.clear();
            self.capture
                .take(
                    next,
                    Duration::ZERO,
                    &mut self.primary,
                    &mut self.tracker,
                    &self.guest_io,
                    &Disks::default(),
                    None,
                )
                .unwrap();
            missing.insert(self.capture.runs());
            self.epoch = next;
            self.resume();
        }
        let blocks = layout(&self.primary).unwrap();
        if let Some(config) = killed {
            let left = self.standby.memory().ram().as_fd().try_clone_to_owned().unwrap();
            self.standby.kill();
            let ram = Ram::adopt(left, config.spec.hardware.memory_mib << 20).unwrap();
            let (standby, ports) = guest::launch_with(&guest::standby(config), ram);
            (self.standby, self.standby_ports) = (standby, Some(ports));
            self.sink.memory = Arc::clone(self.standby.memory());
            let own = self.primary.memory().all_runs(STEP).filter(|run| run.block > 0);
            missing.insert(&own.collect::<Vec<_>>());
        }
        self.encoder = PageEncoder::new(&blocks).with_shadow(u64::MAX);
        self.assembler = CheckpointAssembler::new(TERM.0, TERM, blocks, 1);
        self.checkpoint_with(Mode::Raw, Some(&mut missing));
        self.resume();
    }

    /// The primary dies and the standby goes on.
    fn fail_over(&mut self) -> &Memory {
        self.primary.kill();
        self.guest_io.detach();
        let state = self.assembler.checkpoint().unwrap().device_state.to_vec();
        self.standby.load(&state).unwrap();
        self.standby.check_layout().unwrap();
        self.guest_io.attach(self.standby_ports.take().unwrap()).unwrap();
        self.guest_io.pass(&|| ());
        self.standby.start().unwrap();
        self.standby.memory()
    }
}

fn translate(runs: &[PageRun]) -> Vec<stream::PageRun> {
    runs.iter().map(|r| stream::PageRun { block: r.block, first: r.first, count: r.count }).collect()
}

/// The root shell on the guest's console.
struct Shell {
    console: UnixStream,
    heard: String,
    asked: u32,
}

impl Shell {
    fn new(dir: &Path) -> Self {
        let console = UnixStream::connect(KeeperConfig::console_socket(dir)).unwrap();
        console.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self { console, heard: String::new(), asked: 0 }
    }

    /// Reads until `text` comes; answers what came before it. `meanwhile` is called again and again.
    fn until(&mut self, text: &str, mut meanwhile: impl FnMut()) -> String {
        let deadline = Instant::now() + LIMIT;
        let mut bytes = [0; 4096];
        loop {
            if let Some(at) = self.heard.find(text) {
                let before = self.heard[..at].to_owned();
                self.heard.drain(..at + text.len());
                return before;
            }
            assert!(Instant::now() < deadline, "the console does not say '{text}': {}", self.heard);
            match self.console.read(&mut bytes) {
                Ok(0) => panic!("the console is closed"),
                Ok(n) => self.heard.push_str(&String::from_utf8_lossy(&bytes[..n])),
                // Silence: the output may wait for a checkpoint.
                Err(_) => meanwhile(),
            }
        }
    }

    fn write(&mut self, line: &str) {
        writeln!(self.console, "{line}").unwrap();
    }

    /// Asks the workload server, while the guest runs freely; answers what it says.
    fn ask(&mut self, command: &str, meanwhile: impl FnMut()) -> String {
        self.asked += 1;
        // The shell's echo of this line has no number behind `end-`.
        self.write(&format!("n={}; echo '{command}' | nc -w 5 127.0.0.1 7000; echo end-$n.", self.asked));
        self.until(&format!("end-{}.", self.asked), meanwhile)
    }
}

fn linux_config(qemu: &Path) -> MachineConfig {
    let guest_dir = guest::cache().join("guest/current");
    let mut config = guest::config(qemu, Accel::Tcg, 2, Path::new(""));
    config.spec.hardware.memory_mib = 256;
    config.spec.hardware.accel = AccelChoice::Tcg;
    config.spec.hardware.nics.clear();
    config.boot = Boot::Linux {
        kernel: guest_dir.join("vmlinuz"),
        initrd: Some(guest_dir.join("initrd.img")),
        cmdline: "console=ttyS0 quiet nf.name=proof".into(),
    };
    config
}

/// How a checkpoint follows the one before: the guest runs for so many milliseconds.
const RUNS_MS: [u64; 5] = [0, 2, 10, 25, 60];

#[test]
fn a_linux_guest_that_dirties_memory_hard() {
    let dir = tempfile::tempdir().unwrap();
    let config = linux_config(Path::new("qemu-system-x86_64"));
    let (mut primary, ports) = guest::launch(&config);
    let guest_io = guest_io::open(dir.path(), &config.spec);
    guest_io.attach(ports).unwrap();
    guest_io.pass(&|| ());
    let mut shell = Shell::new(&run_dir::of(dir.path(), config.spec.id));
    primary.start().unwrap();
    shell.until("ninefold-guest: ready", || ());
    shell.write("");
    let answer = shell.ask("checksum mib=8", || ());
    assert!(answer.contains("\"ok\":true"), "{answer}");
    let patterns = ["sequential", "random", "stride", "same-value", "hot"];
    let start = |pattern: &str| format!("dirty pattern={pattern} mib=48 threads=2 mbps=400");
    shell.ask(&start(patterns[0]), || ());

    let mut proof = Proof::new("Linux, 2 vCPUs", &config, primary, guest_io);
    for round in 0..4 {
        proof.sync_round(Mode::ALL[round % 4]);
    }
    proof.guest_io.hold(&|| ());
    let mut holds = Vec::new();
    for (i, pattern) in patterns.into_iter().enumerate() {
        if i > 0 {
            // Its answer waits for checkpoints: they go on.
            let mut turn = 0;
            let answer = shell.ask(&start(pattern), || {
                proof.checkpoint(Mode::ALL[turn % 4]);
                proof.resume();
                turn += 1;
            });
            assert!(answer.contains("\"ok\":true"), "{pattern}: {answer}");
        }
        let (pages, bytes, begun) = (proof.pages, proof.bytes, Instant::now());
        for n in 0..32 {
            // An epoch is a length of time.
            std::thread::sleep(Duration::from_millis(RUNS_MS[n % RUNS_MS.len()]));
            proof.checkpoint(Mode::ALL[n % Mode::ALL.len()]);
            proof.resume();
        }
        proof.rebind((i % 2 == 1).then_some(&config));
        let mut held = 0;
        proof.trap_all();
        for (n, runs) in RUNS_MS.into_iter().enumerate() {
            // It is trapped now, and slower.
            std::thread::sleep(Duration::from_millis(4 * runs));
            held += u32::from(proof.checkpoint_held(Mode::ALL[n % Mode::ALL.len()]));
        }
        proof.tracker.trap_all(false);
        holds.push(held);
        let (pages, bytes) = (proof.pages - pages, (proof.bytes - bytes) >> 20);
        println!("{pattern}: 32 checkpoints, {pages} pages, {bytes} MiB sent, {:.1?}", begun.elapsed());
        assert!(pages > 3200, "{pattern}: the guest has hardly dirtied anything ({pages} pages)");
    }

    println!("checkpoints of {} that were held: {holds:?}", RUNS_MS.len());
    assert!(!proof.tracker.can_hold() || holds.iter().sum::<u32>() >= 8, "{holds:?}");
    // The last one; then the standby goes on, and its memory is as its guest left it.
    proof.checkpoint(Mode::Lz4);
    proof.fail_over();
    let progress = shell.ask("progress", || ());
    assert!(progress.contains("\"checksum_errors\":0"), "{progress}");
    shell.write("echo alive-$((6*7)).");
    shell.until("alive-42.", || ());
    proof.standby.quit();
}

#[test]
fn a_boot_sector_from_the_first_instruction_on() {
    for accel in guest::accels() {
        let dir = tempfile::tempdir().unwrap();
        let image = guest::boot_sector(dir.path());
        let mut config = guest::config(Path::new("qemu-system-x86_64"), accel, 2, &image);
        config.spec.hardware.nics.clear();
        let (primary, ports) = guest::launch(&config);
        let guest_io = guest_io::open(dir.path(), &config.spec);
        guest_io.attach(ports).unwrap();
        let mut proof = Proof::new(&format!("boot sector, {accel}"), &config, primary, guest_io);
        proof.sync_round(Mode::Raw);
        proof.primary.start().unwrap();
        proof.guest_io.hold(&|| ());
        for n in 0..40 {
            proof.checkpoint(Mode::ALL[n % 4]);
            proof.resume();
        }
        let memory = Arc::clone(proof.primary.memory());
        guest::await_boot(&memory, 2);
        for killed in [None, Some(&config), None] {
            guest::await_count(&memory, guest::COUNTER, 20);
            proof.rebind(killed);
        }
        for n in 0..60 {
            guest::await_count(&memory, guest::COUNTER, 20 + 40 * (n % 7));
            proof.checkpoint(Mode::ALL[n as usize % 4]);
            proof.resume();
        }
        proof.checkpoint(Mode::DeltaLz4);
        let count = guest::word(&memory, guest::COUNTER);
        println!("{}: {} pages in {} checkpoints", proof.what, proof.pages, proof.epoch);
        let standby = proof.fail_over();
        guest::await_count(standby, guest::COUNTER, 10);
        assert!(guest::word(standby, guest::COUNTER).wrapping_sub(count) >= 10);
        proof.standby.quit();
    }
}
