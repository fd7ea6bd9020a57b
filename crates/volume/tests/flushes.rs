//! Flushes that fail, and flushes that are answered at once, on a disk with a page cache as Linux has one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Batch, Image, Lost, Op, ServedVolume, VolumeError, WriteLog};

const SIZE: usize = 1 << 16;
/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A cache over a disk. A flush that fails takes everything for written; what is in the cache stays as it was.
#[derive(Debug, Clone)]
struct Disk(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cache: Mutex<Vec<u8>>,
    dirty: Mutex<BTreeSet<usize>>,
    disk: Mutex<Vec<u8>>,
    /// So many flushes fail from now on.
    failing: AtomicU64,
    structures: bool,
}

impl Disk {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(structures: bool) -> Self {
        Self(Arc::new(Inner {
            cache: Mutex::new(vec![0; SIZE]),
            dirty: Mutex::default(),
            disk: Mutex::new(vec![0; SIZE]),
            failing: AtomicU64::new(0),
            structures,
        }))
    }

    fn fail(&self, flushes: u64) {
        self.0.failing.store(flushes, Ordering::SeqCst);
    }

    /// What a loss of power leaves.
    fn disk(&self) -> Vec<u8> {
        self.0.disk.lock().unwrap().clone()
    }
}

impl Image for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        into.copy_from_slice(&self.0.cache.lock().unwrap()[at as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.0.cache.lock().unwrap()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        self.0.dirty.lock().unwrap().extend(at as usize..at as usize + bytes.len());
        Ok(())
    }
    fn zero(&self, at: u64, length: u64, _: bool) -> Result<(), VolumeError> {
        self.write(at, &vec![0; length as usize])
    }
    fn flush(&self) -> Result<(), VolumeError> {
        let dirty = std::mem::take(&mut *self.0.dirty.lock().unwrap());
        let fail = |left: u64| left.checked_sub(1);
        if self.0.failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fail).is_ok() {
            let source = std::io::Error::from_raw_os_error(5);
            return Err(VolumeError::Io { what: "cannot flush the image", source });
        }
        let (cache, mut disk) = (self.0.cache.lock().unwrap(), self.0.disk.lock().unwrap());
        dirty.into_iter().for_each(|at| disk[at] = cache[at]);
        Ok(())
    }
    fn has_structures(&self) -> bool {
        self.0.structures
    }
}

fn serve(disk: &Disk, log: WriteLog) -> ServedVolume {
    ServedVolume::new(Box::new(disk.clone()), log, Acknowledge::Disk).unwrap()
}

/// A keeper's, which may be started anew.
fn noted(disk: &Disk, lost: &Lost) -> ServedVolume {
    let log = WriteLog::in_memory().unwrap();
    ServedVolume::within(Arc::default(), Box::new(disk.clone()), log, Acknowledge::Disk, Some(lost.clone())).unwrap()
}

/// A resync whose flush fails, and the end of its keeper.
fn lose(disk: &Disk, lost: &Lost) {
    let served = noted(disk, lost);
    served.settle_resync().unwrap();
    served.apply(&batch(0, 5)).unwrap();
    served.apply(&batch(8192, 6)).unwrap();
    assert!(!lost.is_there());
    disk.fail(1);
    served.settle_resync().unwrap_err();
    assert!(lost.is_true(), "it is noted when it is told");
    drop(served);
    assert_eq!((disk.disk()[0], disk.disk()[8192]), (0, 0));
}

fn write(served: &ServedVolume, at: u64, byte: u8) {
    Handler::write(served, at, vec![byte; 512], false).unwrap();
}

fn batch(at: u64, byte: u8) -> Batch {
    [Op::Write { at, data: vec![byte; 512].into() }].into_iter().collect()
}

/// A guest writes while it is alone, is protected, flushes (which is answered at once), and writes again: after a loss of power
/// the second write is not there without the first.
#[test]
fn a_flush_of_a_held_volume_covers_what_had_gone_through() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("log"), dir.path().join("copy"));
    let disk = Disk::new();
    let served = serve(&disk, WriteLog::open(&path).unwrap());
    served.go_through();
    write(&served, 0, 1);
    served.hold();
    Handler::flush(&served).unwrap();
    write(&served, 4096, 2);
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    served.wait_durable(Epoch(1), LIMIT).unwrap();
    std::fs::copy(&path, &copy).unwrap();
    let after = Disk::new();
    *after.0.cache.lock().unwrap() = disk.disk();
    WriteLog::open(&copy).unwrap().recover(&after).unwrap();
    let found = after.0.cache.lock().unwrap().clone();
    assert_eq!((found[0], found[4096]), (1, 2), "the epoch is there, and what the guest had flushed before it");
}

/// A resync whose flush fails: it is not believed when the next one succeeds, what it wrote is known not to be equal whatever a
/// read says, and it counts when it has been written again.
#[test]
fn what_a_failed_flush_of_a_resync_lost_is_written_again() {
    let disk = Disk::new();
    let served = serve(&disk, WriteLog::in_memory().unwrap());
    served.settle_resync().unwrap();
    served.apply(&batch(0, 5)).unwrap();
    served.apply(&batch(8192, 6)).unwrap();
    disk.fail(1);
    served.settle_resync().unwrap_err();
    // The next session.
    served.settle(LIMIT).unwrap();
    assert!(served.is_lost(0, 1) && served.is_lost(8192, 512) && !served.is_lost(512, 4096));
    let mut bits = [0; 2];
    served.put_lost(0, &mut bits);
    assert_eq!(bits, [1, 0], "it differs");
    served.settle_resync().unwrap_err();
    assert!(served.failure().is_some(), "it is told as long as it is so");
    served.apply(&batch(0, 5)).unwrap();
    served.settle_resync().unwrap_err();
    served.apply(&batch(8192, 6)).unwrap();
    served.settle_resync().unwrap();
    assert!(!served.is_lost(0, SIZE as u64) && served.failure().is_none());
    assert_eq!((disk.disk()[0], disk.disk()[8192]), (5, 6));
}

/// The same for a restore or a recovery, which write to the image while it is no VM's.
#[test]
fn what_a_failed_flush_of_a_restore_lost_is_written_again() {
    let disk = Disk::new();
    let served = serve(&disk, WriteLog::in_memory().unwrap());
    let image = served.image_of_nobody();
    image.flush().unwrap();
    image.write(0, &[7; 512]).unwrap();
    disk.fail(1);
    image.flush().unwrap_err();
    image.flush().unwrap_err();
    image.write(0, &[7; 512]).unwrap();
    image.flush().unwrap();
    assert_eq!(disk.disk()[0], 7);
}

/// A guest that is alone hears of it at each flush, until it has written that again.
#[test]
fn a_failed_flush_of_a_guest_is_not_forgotten() {
    let disk = Disk::new();
    let served = serve(&disk, WriteLog::in_memory().unwrap());
    served.go_through();
    Handler::flush(&served).unwrap();
    write(&served, 0, 1);
    disk.fail(1);
    Handler::flush(&served).unwrap_err();
    Handler::flush(&served).unwrap_err();
    assert!(Handler::write(&served, 4096, vec![2; 512], true).is_err(), "nor is anything else durable by itself");
    write(&served, 0, 3);
    Handler::flush(&served).unwrap();
    assert_eq!((disk.disk()[0], disk.disk()[4096]), (3, 2));
}

/// Whoever's flush fails: what is on its way through the log is written into the image again before the log is emptied.
#[test]
fn a_flush_that_somebody_else_saw_fail_is_not_forgotten_by_the_log() {
    let disk = Disk::new();
    let served = serve(&disk, WriteLog::in_memory().unwrap());
    served.sync_image().unwrap();
    served.hold();
    write(&served, 0, 1);
    served.seal(Epoch(1));
    // In the image, and not durable there: the log is not emptied while this is held.
    let dirty = loop {
        served.commit(Epoch(1));
        let dirty = disk.0.dirty.lock().unwrap();
        if !dirty.is_empty() {
            break dirty;
        }
        drop(dirty);
        std::thread::yield_now();
    };
    disk.fail(1);
    drop(dirty);
    // The applier may be first: then this one succeeds.
    let _ = served.sync_image();
    assert_eq!(disk.0.failing.load(Ordering::SeqCst), 0);
    served.settle(LIMIT).unwrap();
    assert_eq!(disk.disk()[0], 1);
}

/// A keeper that is started anew finds in the cache what the former one wrote in a resync, and takes it for equal: an epoch that
/// rests on it is not on the disk before it.
#[test]
fn what_an_earlier_process_left_in_the_cache_is_made_durable() {
    let disk = Disk::new();
    let before = serve(&disk, WriteLog::in_memory().unwrap());
    before.apply(&batch(0, 5)).unwrap();
    drop(before);
    assert_eq!(disk.disk()[0], 0, "only the process has ended");
    let served = serve(&disk, WriteLog::in_memory().unwrap());
    served.settle(LIMIT).unwrap();
    let mut found = [0];
    served.read_image(0, &mut found).unwrap();
    assert_eq!(found, [5], "it compares as equal");
    served.receive(Epoch(1), batch(8192, 6));
    served.wait_acknowledge(Epoch(1), LIMIT).unwrap();
    assert_eq!(disk.disk()[0], 5);
}

/// A guest that is alone loses a write at 0 to a flush that fails. Then it is protected, and an epoch with a write at 4096 is
/// committed, which the applier has found that it cannot take into the log.
fn protected_on_a_disk_that_has_lost_something() -> (Disk, ServedVolume) {
    let disk = Disk::new();
    let served = serve(&disk, WriteLog::in_memory().unwrap());
    served.go_through();
    Handler::flush(&served).unwrap();
    write(&served, 0, 1);
    disk.fail(1);
    Handler::flush(&served).unwrap_err();
    served.hold();
    write(&served, 4096, 2);
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    let begun = std::time::Instant::now();
    while served.stuck().is_none() {
        assert!(begun.elapsed() < LIMIT, "what was lost does not hold up the log");
        std::thread::yield_now();
    }
    (disk, served)
}

/// A primary whose disk has lost something before it was protected: it hands the VM over, and is no dead end then. What was
/// committed goes into the image, and a resync mends it.
#[test]
fn a_host_that_has_lost_something_can_be_resynced_when_the_vm_has_gone() {
    let (disk, served) = protected_on_a_disk_that_has_lost_something();
    served.discard();
    served.settle(LIMIT).unwrap();
    assert!(served.is_lost(0, 1) && !served.is_lost(4096, 512));
    served.apply(&batch(0, 1)).unwrap();
    served.settle_resync().unwrap();
    assert_eq!((disk.disk()[0], disk.disk()[4096]), (1, 2));
}

/// The same if the VM stays, alone: its guest can write again what was lost.
#[test]
fn a_guest_that_stays_can_write_again_what_was_lost() {
    let (disk, served) = protected_on_a_disk_that_has_lost_something();
    served.go_through();
    // What was answered from memory is owed as long as something is lost.
    let owed = served.flush_soon().expect("the disk does not have it");
    write(&served, 0, 3);
    Handler::flush(&served).unwrap();
    assert_eq!((disk.disk()[0], disk.disk()[4096]), (3, 2));
    assert!(served.flushed(owed).is_some() && served.flush_soon().is_none());
}

/// The next process finds in the cache what the disk does not have. It believes none of it, until a resync has written all of it again.
#[test]
fn what_an_earlier_process_lost_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lost) = (Disk::new(), Lost::at(dir.path().join("lost")));
    lose(&disk, &lost);
    let served = noted(&disk, &lost);
    let mut found = [0];
    served.read_image(0, &mut found).unwrap();
    assert_eq!(found, [5], "it would compare as equal");
    let mut bits = [0];
    served.put_lost(0, &mut bits);
    assert_eq!(bits, [1], "and differs");
    served.settle_resync().unwrap_err();
    served.apply(&batch(0, 5)).unwrap();
    served.settle_resync().unwrap_err();
    assert!(lost.is_true(), "as long as anything is lost");
    let all: Batch = [Op::Write { at: 0, data: disk.0.cache.lock().unwrap().clone().into() }].into_iter().collect();
    served.apply(&all).unwrap();
    served.settle_resync().unwrap();
    assert!(!lost.is_there() && !served.is_lost(0, SIZE as u64));
    assert_eq!(disk.disk(), *disk.0.cache.lock().unwrap());
    // The next one has no reason not to.
    drop(served);
    assert!(!noted(&disk, &lost).is_lost(0, SIZE as u64));
}

/// For a VM that is alone nobody writes all of it: what is read is made what the disk has.
#[test]
fn what_an_earlier_process_lost_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lost) = (Disk::new(), Lost::at(dir.path().join("lost")));
    lose(&disk, &lost);
    // Zeros may be lost as well.
    disk.0.disk.lock().unwrap()[1024] = 9;
    let served = noted(&disk, &lost);
    disk.fail(1);
    served.write_again().unwrap_err();
    assert!(served.is_lost(0, SIZE as u64) && lost.is_true());
    served.write_again().unwrap();
    assert!(!served.is_lost(0, SIZE as u64) && !lost.is_there());
    let found = disk.disk();
    assert_eq!((found[0], found[1024], found[8192]), (5, 0, 6));
    served.go_through();
    Handler::flush(&served).unwrap();
}

/// After a restart of the host there is nothing in a cache but what the disk has.
#[test]
fn another_kernel_reads_what_the_disk_has() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lost) = (Disk::new(), Lost::at(dir.path().join("lost")));
    lose(&disk, &lost);
    *disk.0.cache.lock().unwrap() = disk.disk();
    std::fs::write(lost.path(), "01234567-89ab-cdef-0123-456789abcdef").unwrap();
    let served = noted(&disk, &lost);
    assert!(!served.is_lost(0, SIZE as u64));
    // But what this one loses is noted as this one's.
    served.apply(&batch(0, 5)).unwrap();
    disk.fail(1);
    served.settle_resync().unwrap_err();
    assert!(lost.is_true());
    // This kernel's cache is gone, too.
    drop(served);
    std::fs::write(lost.path(), "01234567-89ab-cdef-0123-456789abcdef").unwrap();
    noted(&disk, &lost).settle_resync().unwrap();
    assert!(!lost.is_there());
}

/// What lies in an image's own structures is not written again with the volume's bytes.
#[test]
fn structures_are_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lost) = (Disk::with(true), Lost::at(dir.path().join("lost")));
    lose(&disk, &lost);
    let served = noted(&disk, &lost);
    served.write_again().unwrap_err();
    let all: Batch = [Op::Write { at: 0, data: vec![1; SIZE].into() }].into_iter().collect();
    served.apply(&all).unwrap();
    served.settle_resync().unwrap_err();
    assert!(lost.is_true());
}

/// A note that cannot be written is written when that can be done; until then the process knows, and tells.
#[test]
fn a_note_that_cannot_be_written_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("away");
    let (disk, lost) = (Disk::new(), Lost::at(folder.join("lost")));
    let served = noted(&disk, &lost);
    served.apply(&batch(0, 5)).unwrap();
    disk.fail(1);
    served.settle_resync().unwrap_err();
    assert!(!lost.is_there());
    std::fs::create_dir(&folder).unwrap();
    served.settle_resync().unwrap_err();
    assert!(lost.is_true());
}

/// The first flush of an image after a crash is that of what its log holds, and may be the one that tells what was lost before.
#[test]
fn a_flush_that_fails_while_a_log_is_played_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lost) = (Disk::new(), Lost::at(dir.path().join("lost")));
    let mut log = WriteLog::in_memory().unwrap();
    log.append([&batch(4096, 1)], &mut || ()).unwrap();
    Image::write(&disk, 0, &[5; 512]).unwrap();
    disk.fail(1);
    log.recover(&lost.over(&disk)).unwrap_err();
    assert!(lost.is_true());
    log.recover(&lost.over(&disk)).unwrap();
    assert_eq!((disk.disk()[0], disk.disk()[4096]), (0, 1), "the log does not know of the rest");
    assert!(noted(&disk, &lost).is_lost(0, 512));
}

/// A write that was under way while a flush failed may be lost when everything else has been written again.
#[test]
fn a_note_stays_while_something_may_yet_be_lost() {
    let mut known = ninefold_volume::unsynced::Unsynced::unknown(512);
    let slow = known.begin(0, 512);
    known.flush_begins();
    known.flushed();
    known.flush_begins();
    assert!(known.is_at_stake());
    known.flush_failed();
    assert!(!known.is_safe());
    known.done(&slow, true);
    assert!(known.is_lost() && !known.is_safe());
    let again = known.begin(0, 512);
    known.done(&again, true);
    known.flush_begins();
    known.flushed();
    assert!(known.is_safe());
}
