//! A served volume against a model: what the guest reads, what reaches the image and when.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::nbd::Handler;
use ninefold_volume::served::Mark;
use ninefold_volume::{Batch, Image, Op, ServedVolume, VolumeError, WriteLog};
use proptest::prelude::*;

const SIZE: usize = 4096;
/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// An image in memory that can fail, and that tells what of it is durable.
#[derive(Debug, Clone)]
struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    now: Mutex<Vec<u8>>,
    /// Written since the last flush. A flush that fails forgets it, as the kernel may.
    dirty: Mutex<BTreeSet<usize>>,
    durable: Mutex<Vec<u8>>,
    /// Writes and flushes until one fails; all after it fail too, until this is set anew.
    left: AtomicU64,
    full: AtomicBool,
}

impl Disk {
    fn new() -> Self {
        Self(Arc::new(Inner {
            now: Mutex::new(vec![0; SIZE]),
            dirty: Mutex::default(),
            durable: Mutex::new(vec![0; SIZE]),
            left: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
        }))
    }

    fn content(&self) -> Vec<u8> {
        self.0.now.lock().unwrap().clone()
    }

    fn step(&self) -> Result<(), VolumeError> {
        let left = self.0.left.load(Ordering::SeqCst);
        if left == 0 {
            self.0.full.store(true, Ordering::SeqCst);
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(VolumeError::Io { what: "cannot write", source });
        }
        self.0.left.store(left - 1, Ordering::SeqCst);
        Ok(())
    }
}

impl Image for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.copy_from_slice(&self.0.now.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.step()?;
        self.0.now.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        self.0.dirty.lock().unwrap().extend(at as usize..at as usize + bytes.len());
        Ok(())
    }

    fn zero(&self, at: u64, length: u64, _: bool) -> Result<(), VolumeError> {
        self.step()?;
        self.0.now.lock().unwrap()[at as usize..][..length as usize].fill(0);
        self.0.dirty.lock().unwrap().extend(at as usize..(at + length) as usize);
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let dirty = std::mem::take(&mut *self.0.dirty.lock().unwrap());
        self.step()?;
        let (now, mut durable) = (self.content(), self.0.durable.lock().unwrap());
        dirty.into_iter().for_each(|at| durable[at] = now[at]);
        Ok(())
    }
}

fn serve(disk: &Disk, acknowledge: Acknowledge) -> ServedVolume {
    let served = ServedVolume::new(Box::new(disk.clone()), WriteLog::in_memory().unwrap(), acknowledge).unwrap();
    assert!(Handler::write(&served, 0, vec![0], false).is_err(), "closed until the VM runs here");
    served.go_through();
    served
}

fn all(served: &ServedVolume) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    served.read(0, &mut bytes).unwrap();
    bytes
}

/// What a backup gets of a batch.
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
    },
    Flush,
    /// A checkpoint; the backup gets it.
    Checkpoint,
    /// The oldest checkpoint that is on its way is acknowledged.
    Acknowledge,
    /// The backup is lost, the primary goes on alone.
    Alone,
    /// A backup with an equal image is there again.
    Protected,
    /// The primary is lost, the backup takes over; a fresh backup has a copy of its image.
    Failover,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..600usize).prop_map(|(at, length)| (at, length.min(SIZE - at)));
    prop_oneof![
        8 => (range(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write { at, length, byte }),
        2 => range().prop_map(|(at, length)| Step::Zero { at, length }),
        1 => Just(Step::Flush),
        4 => Just(Step::Checkpoint),
        4 => Just(Step::Acknowledge),
        1 => Just(Step::Alone),
        1 => Just(Step::Protected),
        1 => Just(Step::Failover),
    ]
}

/// A primary, its backup, and what must be true of them.
struct Pair {
    primary: (Disk, ServedVolume),
    backup: Option<(Disk, ServedVolume)>,
    epoch: u64,
    /// Checkpoints on their way: number, the volume as it was.
    on_its_way: Vec<(u64, Vec<u8>)>,
    /// As the guest sees it.
    truth: Vec<u8>,
    /// As the last acknowledged checkpoint left it.
    committed: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let disk = Disk::new();
        let served = serve(&disk, Acknowledge::Memory);
        let zeros = vec![0; SIZE];
        Self {
            primary: (disk, served),
            backup: None,
            epoch: 0,
            on_its_way: Vec::new(),
            truth: zeros.clone(),
            committed: zeros,
        }
    }

    /// A backup whose image is the primary's, which is what a resync ends with.
    fn protect(&mut self) {
        if self.backup.is_some() {
            return;
        }
        let (disk, served) = &self.primary;
        served.settle(LIMIT).unwrap();
        let copy = Disk::new();
        *copy.0.now.lock().unwrap() = disk.content();
        *copy.0.durable.lock().unwrap() = disk.content();
        assert_eq!(disk.content(), self.truth, "alone, the image is what the guest wrote");
        served.hold();
        let backup = serve(&copy, Acknowledge::Memory);
        self.backup = Some((copy, backup));
        self.epoch = 0;
        self.on_its_way.clear();
        self.committed.clone_from(&self.truth);
    }

    fn checkpoint(&mut self) {
        let Some((_, backup)) = &self.backup else { return };
        self.epoch += 1;
        let batch = self.primary.1.seal(Epoch(self.epoch));
        backup.receive(Epoch(self.epoch), over_the_wire(&batch));
        self.on_its_way.push((self.epoch, self.truth.clone()));
    }

    fn acknowledge(&mut self) {
        if self.on_its_way.is_empty() || self.backup.is_none() {
            return;
        }
        let (epoch, truth) = self.on_its_way.remove(0);
        self.primary.1.commit(Epoch(epoch));
        self.primary.1.settle(LIMIT).unwrap();
        assert_eq!(self.primary.0.content(), truth, "the image holds what is committed and nothing else");
        assert_eq!(*self.primary.0.0.durable.lock().unwrap(), truth);
        self.committed = truth;
    }

    fn alone(&mut self) {
        self.backup = None;
        self.on_its_way.clear();
        self.primary.1.go_through();
    }

    fn failover(&mut self) {
        let Some((disk, served)) = self.backup.take() else { return };
        // A backup goes on from the last checkpoint that it holds whole, acknowledged or not.
        if let Some((_, last)) = self.on_its_way.last() {
            self.committed.clone_from(last);
        }
        self.on_its_way.clear();
        let former = &self.primary;
        former.1.discard();
        former.1.settle(LIMIT).unwrap();
        assert!(Handler::write(&former.1, 0, vec![9], false).is_err(), "a former primary's QEMU writes no more");
        served.go_through();
        self.truth.clone_from(&self.committed);
        self.primary = (disk, served);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn images_hold_what_is_committed(steps in prop::collection::vec(step(), 1..60)) {
        let mut pair = Pair::new();
        for step in steps {
            let guest: &dyn Handler = &pair.primary.1;
            match step {
                Step::Write { at, length, byte } => {
                    let bytes: Vec<u8> = (0..length).map(|i| (i as u8) ^ byte).collect();
                    guest.write(at as u64, bytes.clone(), byte % 7 == 0).unwrap();
                    pair.truth[at..at + length].copy_from_slice(&bytes);
                }
                Step::Zero { at, length } => {
                    guest.zero(at as u64, length as u64, length % 2 == 0, false).unwrap();
                    pair.truth[at..at + length].fill(0);
                }
                Step::Flush => guest.flush().unwrap(),
                Step::Checkpoint => pair.checkpoint(),
                Step::Acknowledge => pair.acknowledge(),
                Step::Alone => pair.alone(),
                Step::Protected => pair.protect(),
                Step::Failover => pair.failover(),
            }
            prop_assert_eq!(all(&pair.primary.1), &pair.truth[..], "the guest reads what it wrote");
        }
    }
}

/// The newest epoch that was told as durable.
fn told(durable: &mpsc::Receiver<Epoch>) -> Option<Epoch> {
    durable.try_iter().last()
}

#[test]
fn a_failing_image_loses_nothing_and_is_written_later() {
    // Every operation in turn is the one that fails first.
    for k in 0..10 {
        let disk = Disk::new();
        let served = serve(&disk, Acknowledge::Disk);
        served.sync_image().unwrap();
        let (tell, durable) = mpsc::channel();
        served.on_durable(Some(Box::new(move |epoch| tell.send(epoch).unwrap())));
        served.hold();
        disk.0.left.store(k, Ordering::SeqCst);
        for epoch in 1..=4u64 {
            Handler::write(&served, epoch * 100, vec![epoch as u8; 50], false).unwrap();
            Handler::zero(&served, epoch * 100 + 60, 10, true, true).unwrap();
            served.seal(Epoch(epoch));
            served.commit(Epoch(epoch));
        }
        let wanted = all(&served);
        served.wait_durable(Epoch(4), LIMIT).unwrap();
        assert_eq!(told(&durable), Some(Epoch(4)), "durable in the log, whatever the image does");
        if served.settle(Duration::from_millis(50)).is_err() {
            assert!(disk.0.full.load(Ordering::SeqCst));
            assert_eq!(all(&served), wanted, "reads stay right");
            let failure = served.stuck().unwrap();
            assert!(failure.out_of_space && failure.reason.starts_with("cannot write: "), "{failure:?}");
            assert_eq!(served.failure(), Some(failure));
            // A backup does not say that it has what its disk does not take, and says so at once.
            let refused = served.wait_acknowledge(Epoch(4), LIMIT).unwrap_err();
            assert!(
                std::error::Error::source(&refused).unwrap().to_string().starts_with("cannot write: "),
                "{refused:?}"
            );
        }
        // There is room again.
        disk.0.left.store(u64::MAX, Ordering::SeqCst);
        served.settle(LIMIT).unwrap();
        served.wait_acknowledge(Epoch(4), LIMIT).unwrap();
        assert_eq!((served.failure(), served.held()), (None, 0));
        assert_eq!(*disk.0.durable.lock().unwrap(), wanted);
    }
}

#[test]
fn an_image_that_fails_unprotected_fails_the_guest() {
    let disk = Disk::new();
    let served = serve(&disk, Acknowledge::Memory);
    disk.0.left.store(0, Ordering::SeqCst);
    assert!(Handler::write(&served, 0, vec![1; 10], false).is_err());
    disk.0.left.store(1, Ordering::SeqCst);
    assert!(Handler::write(&served, 0, vec![1; 10], true).is_err(), "written, not durable");
    assert!(served.failure().unwrap().out_of_space, "what the guest was refused is told");
    assert_eq!(served.stuck(), None, "nothing waits for the disk");
    assert!(Handler::write(&served, SIZE as u64 - 1, vec![1; 2], false).is_err(), "over the end");
}

#[test]
fn writes_are_marked_before_they_reach_the_image() {
    struct Before(Disk, Mutex<Vec<(u64, u64)>>);
    impl Mark for Before {
        fn before(&self, at: u64, length: u64) {
            let now = self.0.content();
            assert!(now[at as usize..(at + length) as usize].iter().all(|&b| b == 0), "too late");
            self.1.lock().unwrap().push((at, length));
        }
    }
    let disk = Disk::new();
    let served = serve(&disk, Acknowledge::Memory);
    let mark = Arc::new(Before(disk.clone(), Mutex::default()));
    served.add_mark(Arc::clone(&mark) as Arc<dyn Mark>);
    Handler::write(&served, 0, vec![1; 10], false).unwrap();
    served.hold();
    Handler::write(&served, 100, vec![1; 10], false).unwrap();
    assert_eq!(*mark.1.lock().unwrap(), [(0, 10)], "held: the image is as it was");
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    served.settle(LIMIT).unwrap();
    assert_eq!(*mark.1.lock().unwrap(), [(0, 10), (100, 10)]);
    drop(served);
}

/// Who copies the image reads what it takes for stale; a write that is under way meanwhile lands after that. It must be told of
/// again, also to one who was not there when it began.
#[test]
fn writes_that_are_under_way_are_marked_when_they_have_landed() {
    #[derive(Default)]
    struct Stale(Mutex<Vec<u64>>);
    impl Mark for Stale {
        fn after(&self, at: u64, _: u64) {
            self.0.lock().unwrap().push(at);
        }
    }
    let add = |served: &ServedVolume| {
        let stale = Arc::new(Stale::default());
        served.add_mark(Arc::clone(&stale) as Arc<dyn Mark>);
        stale
    };
    let disk = Disk::new();
    let served = serve(&disk, Acknowledge::Memory);
    for held in [false, true] {
        let early = add(&served);
        // Nothing gets past this: the write hangs in the image.
        let gate = disk.0.now.lock().unwrap();
        let before = disk.0.left.load(Ordering::SeqCst);
        let late = std::thread::scope(|scope| {
            if held {
                served.hold();
                Handler::write(&served, 7, vec![1; 10], false).unwrap();
                served.seal(Epoch(1));
                served.commit(Epoch(1));
            } else {
                scope.spawn(|| Handler::write(&served, 7, vec![1; 10], false).unwrap());
            }
            while disk.0.left.load(Ordering::SeqCst) == before {
                std::thread::yield_now();
            }
            let late = add(&served);
            assert_eq!(*early.0.lock().unwrap(), [0; 0], "it has not landed");
            drop(gate);
            late
        });
        if held {
            served.settle(LIMIT).unwrap();
        }
        for stale in [early, late] {
            assert_eq!(*stale.0.lock().unwrap(), [7], "held: {held}");
            served.remove_mark(&(stale as Arc<dyn Mark>));
        }
    }
}

#[test]
fn what_was_committed_is_in_the_image_when_the_volume_is_closed() {
    let disk = Disk::new();
    let served = serve(&disk, Acknowledge::Memory);
    served.hold();
    Handler::write(&served, 0, vec![1; 10], false).unwrap();
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    Handler::write(&served, 0, vec![2; 10], false).unwrap();
    served.seal(Epoch(2));
    Handler::write(&served, 0, vec![3; 10], false).unwrap();
    drop(served);
    assert_eq!(disk.0.durable.lock().unwrap()[..10], [1; 10]);
}

/// A resync writes into the image itself: nothing that is on its way there may be written over it later.
#[test]
fn a_resync_waits_for_what_is_on_its_way() {
    let disk = Disk::new();
    let served = serve(&disk, Acknowledge::Disk);
    served.discard();
    let write = |byte: u8| -> Batch { [Op::Write { at: 0, data: vec![byte; 4].into() }].into_iter().collect() };
    served.receive(Epoch(1), write(1));
    served.wait_durable(Epoch(1), LIMIT).unwrap();
    assert!(served.apply(&write(2)).is_err(), "it is in the log still");
    served.settle(LIMIT).unwrap();
    served.apply(&write(2)).unwrap();
    assert_eq!(disk.content()[..4], [2; 4]);
}

/// A power cut in the middle: of what was written into the image since its last flush some sectors are there and some
/// not. With its log the image is the volume as the last epoch in there left it.
mod power_cut {
    use super::*;

    const SECTOR: usize = 64;

    fn op() -> impl Strategy<Value = Op> {
        (0..SIZE as u64 - 300, 1..300u64, any::<u8>(), 0..4u8).prop_map(|(at, length, byte, kind)| match kind {
            0 => Op::Zero { at, length, unmap: byte % 2 == 0 },
            _ => Op::Write { at, data: vec![byte; length as usize].into() },
        })
    }

    fn play(image: &mut [u8], batch: &Batch) {
        for op in batch.ops() {
            let (start, end) = op.range();
            let place = &mut image[start as usize..end as usize];
            match op {
                Op::Write { data, .. } => place.copy_from_slice(data.as_ref()),
                Op::Zero { .. } => place.fill(0),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn leaves_an_image_as_an_epoch_left_it(
            epochs in prop::collection::vec(prop::collection::vec(op(), 0..8), 1..12),
            cut in 0..60u64,
            kept in prop::collection::vec(any::<bool>(), SIZE / SECTOR),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let disk = Disk::new();
            let served = ServedVolume::new(Box::new(disk.clone()), WriteLog::open(&path).unwrap(), Acknowledge::Disk).unwrap();
            served.sync_image().unwrap();
            // The image's power goes in the middle of what is to come.
            disk.0.left.store(cut, Ordering::SeqCst);
            let mut states = vec![vec![0; SIZE]];
            for (n, ops) in epochs.into_iter().enumerate() {
                let batch: Batch = ops.into_iter().collect();
                let mut state = states.last().unwrap().clone();
                play(&mut state, &batch);
                states.push(state);
                served.receive(Epoch(n as u64 + 1), batch);
                if n % 3 == 2 {
                    served.wait_durable(Epoch(n as u64 + 1), LIMIT).unwrap();
                }
            }
            served.wait_durable(Epoch(u64::MAX), LIMIT).unwrap();
            if disk.0.full.load(Ordering::SeqCst) {
                drop(served);
                let (mut image, now) = (disk.0.durable.lock().unwrap().clone(), disk.content());
                for n in (0..kept.len()).filter(|n| kept[*n]) {
                    image[n * SECTOR..][..SECTOR].copy_from_slice(&now[n * SECTOR..][..SECTOR]);
                }
                let after = Disk::new();
                *after.0.now.lock().unwrap() = image;
                let mut log = WriteLog::open(&path).unwrap();
                log.recover(&after).unwrap();
                prop_assert!(log.is_empty());
                prop_assert!(after.content() == *states.last().unwrap(), "all epochs were durable");
            } else {
                // Not reached: no cut then.
                disk.0.left.store(u64::MAX, Ordering::SeqCst);
                served.settle(LIMIT).unwrap();
                prop_assert!(*disk.0.durable.lock().unwrap() == *states.last().unwrap());
            }
        }
    }
}
