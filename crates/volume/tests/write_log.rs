//! The write log: what is in it comes back, whole epochs only, whatever a crash left behind them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ninefold_volume::{Batch, Image, Op, VolumeError, WriteLog};
use proptest::prelude::*;

const SIZE: usize = 8192;

/// An image in memory that fails from some operation on.
#[derive(Debug)]
struct Disk {
    bytes: Mutex<Vec<u8>>,
    left: AtomicU64,
    flushed: AtomicU64,
}

impl Disk {
    fn new() -> Self {
        Self { bytes: Mutex::new(vec![0x5a; SIZE]), left: AtomicU64::new(u64::MAX), flushed: AtomicU64::new(0) }
    }

    fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn step(&self) -> Result<(), VolumeError> {
        let next = |left: u64| left.checked_sub(1);
        let source = std::io::Error::other("broken");
        let failed = |_| VolumeError::Io { what: "cannot write", source };
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).map(drop).map_err(failed)
    }
}

impl Image for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.copy_from_slice(&self.bytes.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.step()?;
        self.bytes.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn zero(&self, at: u64, length: u64, _: bool) -> Result<(), VolumeError> {
        self.step()?;
        self.bytes.lock().unwrap()[at as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn flush(&self) -> Result<(), VolumeError> {
        self.step()?;
        self.flushed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn op() -> impl Strategy<Value = Op> {
    (0..SIZE as u64 - 600, 1..600u64, any::<u8>(), 0..4u8).prop_map(|(at, length, byte, kind)| match kind {
        0 => Op::Zero { at, length, unmap: byte % 2 == 0 },
        _ => Op::Write { at, data: vec![byte; length as usize].into() },
    })
}

fn epochs() -> impl Strategy<Value = Vec<Batch>> {
    let batch = prop::collection::vec(op(), 0..6).prop_map(|ops| ops.into_iter().collect());
    prop::collection::vec(batch, 1..10)
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

/// The image after each number of epochs.
fn states(epochs: &[Batch]) -> Vec<Vec<u8>> {
    let mut states = vec![Disk::new().content()];
    for batch in epochs {
        let mut next = states[states.len() - 1].clone();
        play(&mut next, batch);
        states.push(next);
    }
    states
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Cut anywhere, or with a byte changed anywhere: the epochs before that come back, and none in part.
    #[test]
    fn whole_epochs_come_back(
        epochs in epochs(),
        group in 1..4usize,
        place in any::<prop::sample::Index>(),
        flip in prop::option::of(1..=255u8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = WriteLog::open(&path).unwrap();
        let mut ends = vec![0];
        for some in epochs.chunks(group) {
            for batch in some {
                log.append([batch], &mut || ()).unwrap();
                ends.push(log.len());
            }
        }
        drop(log);
        let mut bytes = std::fs::read(&path).unwrap();
        let place = place.index(bytes.len());
        match flip {
            Some(mask) => bytes[place] ^= mask,
            None => bytes.truncate(place),
        }
        std::fs::write(&path, &bytes).unwrap();
        let whole = ends.iter().filter(|end| **end <= place as u64).count() - 1;
        let disk = Disk::new();
        let mut log = WriteLog::open(&path).unwrap();
        prop_assert_eq!(log.recover(&disk).unwrap(), whole as u64);
        prop_assert!(disk.content() == states(&epochs)[whole]);
        prop_assert!(log.is_empty() && std::fs::read(&path).unwrap().is_empty());
    }

    /// A recovery that fails at any of its steps is done again, by the same process or by the next.
    #[test]
    fn a_recovery_can_be_repeated(epochs in epochs(), after in 0..40u64, reopen in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = WriteLog::open(&path).unwrap();
        log.append(&epochs, &mut || ()).unwrap();
        let disk = Disk::new();
        disk.left.store(after, Ordering::SeqCst);
        let failed = log.recover(&disk).is_err();
        prop_assert_eq!(failed, !log.is_empty(), "what is not in the image stays in the log");
        if reopen {
            log = WriteLog::open(&path).unwrap();
        }
        disk.left.store(u64::MAX, Ordering::SeqCst);
        log.recover(&disk).unwrap();
        prop_assert!(disk.content() == states(&epochs)[epochs.len()]);
        prop_assert_eq!(disk.flushed.load(Ordering::SeqCst), 1, "durable before the log is emptied");
        // It is as new.
        log.append(&epochs[..1], &mut || ()).unwrap();
        let disk = Disk::new();
        prop_assert_eq!(WriteLog::open(&path).unwrap().recover(&disk).unwrap(), 1);
        prop_assert!(disk.content() == states(&epochs)[1]);
    }
}

/// Longer than one record can be.
#[test]
fn a_long_epoch_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut log = WriteLog::open(&path).unwrap();
    // Within the image's bounds, so over and over: 5 MiB in all.
    let long = |byte: u8| -> Batch {
        (0..640).map(|n| Op::Write { at: 0, data: vec![byte ^ n as u8; SIZE].into() }).collect()
    };
    log.append([&long(1)], &mut || ()).unwrap();
    let first = log.len();
    log.append([&long(7)], &mut || ()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.len() > 10 << 20);
    for (length, last) in [(whole.len(), 7), (whole.len() - 1, 1), (first as usize + (3 << 20), 1)] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let disk = Disk::new();
        WriteLog::open(&path).unwrap().recover(&disk).unwrap();
        assert_eq!(disk.content(), vec![last ^ 639usize as u8; SIZE], "{length}");
    }
}

/// However long an epoch is, no single sync of it is: who watches the disk sees that it gets on.
#[test]
fn a_long_epoch_is_synced_in_steps() {
    let mut log = WriteLog::in_memory().unwrap();
    let long: Batch = (0..4096).map(|_| Op::Write { at: 0, data: vec![7; SIZE].into() }).collect();
    let mut steps = 0;
    log.append([&long], &mut || steps += 1).unwrap();
    let (length, step) = (log.len(), ninefold_volume::log::STEP);
    assert!(length > 3 * step, "{length}");
    // One more record may be written before a sync.
    assert!(steps >= length / (step + (2 << 20)) - 1, "{steps} for {length} bytes");
    assert_eq!(log.recover(&Disk::new()).unwrap(), 1);
}

/// What an older log left on the disk is not taken for the newer one's.
#[test]
fn what_an_earlier_log_left_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let write = |byte: u8| -> Batch { [Op::Write { at: 0, data: vec![byte; 16].into() }].into_iter().collect() };
    let mut log = WriteLog::open(&path).unwrap();
    log.append([&write(1), &write(2)], &mut || ()).unwrap();
    let old = std::fs::read(&path).unwrap();
    log.clear().unwrap();
    log.append([&write(3)], &mut || ()).unwrap();
    let new = std::fs::read(&path).unwrap();
    // As if the file had never been cut: the old second epoch follows the new first one.
    std::fs::write(&path, [&new[..], &old[new.len()..]].concat()).unwrap();
    let disk = Disk::new();
    assert_eq!(WriteLog::open(&path).unwrap().recover(&disk).unwrap(), 1);
    assert_eq!(disk.content()[..16], [3; 16]);
}

/// A log that belongs to a larger volume, or is a link to somewhere else.
#[test]
fn a_log_that_is_not_the_images_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let beyond: Batch = [Op::Write { at: SIZE as u64 - 1, data: vec![1; 2].into() }].into_iter().collect();
    let mut log = WriteLog::open(&path).unwrap();
    log.append([&beyond], &mut || ()).unwrap();
    let disk = Disk::new();
    assert!(matches!(log.recover(&disk), Err(VolumeError::Damaged { .. })));
    assert_eq!(disk.content(), Disk::new().content());
    std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
    assert!(WriteLog::open(&dir.path().join("link")).is_err());
}
