//! A replicated volume on two real pools, whatever each of them keeps it in: at every commit both images are, byte for
//! byte, what the guest had written when the epoch ended; a host that comes back is made equal by a resync of what differs.

mod rig;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::batch::{put_write, put_zero};
use ninefold_volume::checksums::{self, BLOCK};
use ninefold_volume::nbd::Handler;
use ninefold_volume::pool::{FileFormat, Import, Kind};
use ninefold_volume::{Batch, Format, Pool, ServedVolume, Tools, VolumeName};
use proptest::prelude::*;

/// Not a multiple of a block, nor of a qcow2 cluster.
const SIZE: usize = (5 << 16) + 512 * 3;
const LIMIT: Duration = Duration::from_secs(60);

/// What a host keeps the volume in.
#[derive(Debug, Clone, Copy)]
enum Kept {
    Raw,
    Qcow2,
    /// A thin clone of a golden image full of something else.
    Clone,
}

fn disk() -> VolumeName {
    "disk".parse().unwrap()
}

struct Host {
    pool: Pool,
    served: Option<ServedVolume>,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new(kept: Kept) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::open(&dir.path().join("pool"), Tools::default()).unwrap();
        match kept {
            Kept::Raw => pool.create(&disk(), SIZE as u64, Format::Raw).unwrap(),
            Kept::Qcow2 => pool.create(&disk(), SIZE as u64, Format::Qcow2).unwrap(),
            Kept::Clone => {
                let source = dir.path().join("golden");
                std::fs::write(&source, [0xc3; SIZE]).unwrap();
                let what = Import { source: &source, file_format: FileFormat::Raw, format: Format::Raw, size: None };
                let mut go_on = |_| ControlFlow::Continue(());
                pool.import(Kind::Golden, &disk(), &what, &mut go_on).unwrap();
                pool.create_from(&disk(), &disk(), None, Format::Qcow2, &mut go_on).unwrap();
            }
        }
        let mut host = Self { pool, served: None, _dir: dir };
        host.open();
        host
    }

    fn open(&mut self) {
        let (image, log) = self.pool.open_logged(&disk()).unwrap();
        self.served = Some(ServedVolume::new(image, log, Acknowledge::Memory).unwrap());
    }

    /// Its keeper ends and starts.
    fn restart(&mut self) {
        self.served = None;
        self.open();
    }

    fn served(&self) -> &ServedVolume {
        self.served.as_ref().unwrap()
    }

    /// What is in the image, once all that is committed is.
    fn image(&self) -> Vec<u8> {
        self.served().settle(LIMIT).unwrap();
        let mut bytes = vec![0; SIZE];
        self.served().read_image(0, &mut bytes).unwrap();
        bytes
    }
}

/// Makes `to` equal to `from`, by the checksums of blocks; how many blocks were sent.
fn resync(from: &ServedVolume, to: &ServedVolume) -> usize {
    from.settle(LIMIT).unwrap();
    to.settle(LIMIT).unwrap();
    let block = |served: &ServedVolume, n: u64| {
        let mut bytes = vec![0; BLOCK.min(SIZE as u64 - n * BLOCK) as usize];
        served.read_image(n * BLOCK, &mut bytes).unwrap();
        bytes
    };
    let all = |served: &ServedVolume| -> Vec<u8> {
        (0..checksums::blocks(SIZE as u64)).flat_map(|n| checksums::sum(&block(served, n))).collect()
    };
    let differing: Vec<u64> = checksums::set_bits(&checksums::differing(&all(to), &all(from))).collect();
    for n in &differing {
        let (content, mut wire) = (block(from, *n), Vec::new());
        match content.iter().all(|&b| b == 0) {
            true => put_zero(&mut wire, n * BLOCK, content.len() as u64, true),
            false => put_write(&mut wire, n * BLOCK, &content),
        }
        to.apply(&Batch::parse(wire, SIZE as u64).unwrap()).unwrap();
    }
    differing.len()
}

fn over_the_wire(batch: &Batch) -> Batch {
    let mut wire = Vec::new();
    let _ = batch.each_piece::<()>(&mut Vec::new(), |piece| {
        wire.extend_from_slice(piece);
        Ok(())
    });
    Batch::parse(wire, SIZE as u64).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        at: usize,
        length: usize,
        byte: u8,
    },
    Zero {
        at: usize,
        length: usize,
        unmap: bool,
    },
    Flush,
    /// An epoch ends, the backup gets it and acknowledges it.
    Commit,
    /// The primary is lost in the middle of an epoch; the backup goes on, and the former primary becomes its backup.
    Failover,
    /// The backup is away for a while, in which the guest goes on.
    BackupAway,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..90_000usize).prop_map(|(at, length)| (at, length.min(SIZE - at)));
    prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write { at, length, byte }),
        2 => (range(), any::<bool>()).prop_map(|((at, length), unmap)| Step::Zero { at, length, unmap }),
        1 => Just(Step::Flush),
        3 => Just(Step::Commit),
        1 => Just(Step::Failover),
        1 => Just(Step::BackupAway),
    ]
}

struct Pair {
    primary: Host,
    backup: Host,
    epoch: u64,
    /// As the guest sees it, and as the last commit left it.
    truth: Vec<u8>,
    committed: Vec<u8>,
}

impl Pair {
    fn new(kept: [Kept; 2]) -> Self {
        let [primary, backup] = kept.map(Host::new);
        primary.served().go_through();
        let truth = primary.image();
        let mut pair = Self { primary, backup, epoch: 0, committed: truth.clone(), truth };
        pair.protect();
        pair
    }

    fn protect(&mut self) {
        resync(self.primary.served(), self.backup.served());
        self.epoch = 0;
        self.primary.served().hold();
        self.committed.clone_from(&self.truth);
        self.equal();
    }

    fn equal(&self) {
        for host in [&self.primary, &self.backup] {
            assert!(host.image() == self.committed, "an image is what was committed, and nothing else");
        }
    }

    fn guest(&mut self, step: &Step) {
        let guest: &dyn Handler = self.primary.served.as_ref().unwrap();
        match *step {
            Step::Write { at, length, byte } => {
                let bytes: Vec<u8> = (0..length).map(|i| (i / 7) as u8 ^ byte).collect();
                guest.write(at as u64, bytes.clone(), byte % 5 == 0).unwrap();
                self.truth[at..at + length].copy_from_slice(&bytes);
            }
            Step::Zero { at, length, unmap } => {
                guest.zero(at as u64, length as u64, unmap, false).unwrap();
                self.truth[at..at + length].fill(0);
            }
            _ => guest.flush().unwrap(),
        }
    }

    fn commit(&mut self) {
        self.epoch += 1;
        let epoch = Epoch(self.epoch);
        let batch = self.primary.served().seal(epoch);
        self.backup.served().receive(epoch, over_the_wire(&batch));
        self.primary.served().commit(epoch);
        self.committed.clone_from(&self.truth);
        self.equal();
    }

    fn failover(&mut self) {
        self.primary.served().discard();
        std::mem::swap(&mut self.primary, &mut self.backup);
        self.primary.served().go_through();
        self.truth.clone_from(&self.committed);
        assert!(self.backup.image() == self.committed, "a former primary has nothing to undo");
        self.backup.restart();
        self.protect();
    }

    fn backup_away(&mut self) {
        self.primary.served().go_through();
        self.backup.restart();
        self.guest(&Step::Write { at: 70_000, length: 3000, byte: self.epoch as u8 });
        self.guest(&Step::Zero { at: 200_000, length: 9000, unmap: true });
        let before = checksums::blocks(SIZE as u64) as usize;
        assert!(resync(self.primary.served(), self.backup.served()) <= before);
        assert_eq!(resync(self.primary.served(), self.backup.served()), 0, "the second time nothing differs");
        self.protect();
    }
}

fn replicates(kept: [Kept; 2], steps: Vec<Step>) {
    let mut pair = Pair::new(kept);
    for step in steps {
        match step {
            Step::Commit => pair.commit(),
            Step::Failover => pair.failover(),
            Step::BackupAway => pair.backup_away(),
            step => pair.guest(&step),
        }
    }
    pair.commit();
    for host in [&mut pair.primary, &mut pair.backup] {
        host.served = None;
        sound(&host.pool);
    }
}

/// By QEMU's own word, and as its tools read it.
fn sound(pool: &Pool) {
    let info = pool.info(Kind::Volume, &disk()).unwrap();
    if info.record.format == Format::Qcow2 {
        rig::run("qemu-img", &["check", "-q", "-f", "qcow2", path(&info.path)]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn raw_and_raw(steps in prop::collection::vec(step(), 1..40)) {
        replicates([Kept::Raw, Kept::Raw], steps);
    }
}

proptest! {
    // Each opens storage daemons.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn qcow2_and_qcow2(steps in prop::collection::vec(step(), 1..40)) {
        replicates([Kept::Qcow2, Kept::Qcow2], steps);
    }

    #[test]
    fn raw_and_a_thin_clone(steps in prop::collection::vec(step(), 1..40)) {
        replicates([Kept::Raw, Kept::Clone], steps);
    }

    #[test]
    fn a_thin_clone_and_qcow2(steps in prop::collection::vec(step(), 1..40)) {
        replicates([Kept::Clone, Kept::Qcow2], steps);
    }
}
