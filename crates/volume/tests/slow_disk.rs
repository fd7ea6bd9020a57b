//! A served volume on a disk that is slow, or that hangs without an error: what waits for it, and what does not.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;
use ninefold_volume::budget::{HARD, SOFT};
use ninefold_volume::log::STEP;
use ninefold_volume::nbd::Handler;
use ninefold_volume::{Batch, Budget, Image, Op, ServedVolume, VolumeError, WriteLog};

/// What is looked at; beyond that the image is zeros.
const SIZE: usize = 4096;
/// Far longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// An image in memory whose operations hang until they are let go on, and that tells what of it is durable.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    size: u64,
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What hangs: `read`, `write`, `flush`.
    hangs: BTreeSet<&'static str>,
    /// How many hang.
    hanging: usize,
    /// So many are let go on nevertheless.
    passes: usize,
}

impl Default for State {
    fn default() -> Self {
        let (now, durable) = (vec![0; SIZE], vec![0; SIZE]);
        Self { size: SIZE as u64, now, durable, hangs: BTreeSet::new(), hanging: 0, passes: 0 }
    }
}

impl Disk {
    fn hang(&self, what: &'static str) {
        self.0.state.lock().unwrap().hangs.insert(what);
    }

    fn go_on(&self) {
        self.0.state.lock().unwrap().hangs.clear();
        self.0.changed.notify_all();
    }

    /// Lets one that hangs go on, and waits until another does.
    fn pass(&self) {
        let mut state = self.0.state.lock().unwrap();
        state.passes = 1;
        self.0.changed.notify_all();
        state = self.0.changed.wait_timeout_while(state, LIMIT, |s| s.passes > 0 || s.hanging == 0).unwrap().0;
        assert!(state.passes == 0 && state.hanging > 0, "nothing goes on");
    }

    /// Until something hangs.
    fn wait_hanging(&self) {
        let state = self.0.state.lock().unwrap();
        let waited = self.0.changed.wait_timeout_while(state, LIMIT, |s| s.hanging == 0).unwrap();
        assert!(!waited.1.timed_out(), "nothing hangs");
    }

    fn step(&self, what: &'static str) {
        let mut state = self.0.state.lock().unwrap();
        state.hanging += 1;
        self.0.changed.notify_all();
        state = self.0.changed.wait_while(state, |s| s.hangs.contains(what) && s.passes == 0).unwrap();
        state.passes = state.passes.saturating_sub(1);
        state.hanging -= 1;
    }

    fn now(&self, at: usize) -> u8 {
        self.0.state.lock().unwrap().now[at]
    }

    fn durable(&self, at: usize) -> u8 {
        self.0.state.lock().unwrap().durable[at]
    }
}

impl Image for Disk {
    fn size(&self) -> u64 {
        self.0.state.lock().unwrap().size
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        self.step("read");
        into.copy_from_slice(&self.0.state.lock().unwrap().now[at as usize..][..into.len()]);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.step("write");
        if bytes.len() <= SIZE {
            self.0.state.lock().unwrap().now[at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        Ok(())
    }

    fn zero(&self, at: u64, length: u64, _: bool) -> Result<(), VolumeError> {
        self.write(at, &vec![0; length as usize])
    }

    fn write_out(
        &self,
        pieces: &mut dyn Iterator<Item = Range<u64>>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), VolumeError> {
        for _ in pieces {
            self.step("write-out");
            progress();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let now = self.0.state.lock().unwrap().now.clone();
        self.step("flush");
        self.0.state.lock().unwrap().durable = now;
        Ok(())
    }
}

fn serve(disk: &Disk, budget: &Arc<Budget>, acknowledge: Acknowledge) -> Arc<ServedVolume> {
    let log = WriteLog::in_memory().unwrap();
    let served = ServedVolume::within(Arc::clone(budget), Box::new(disk.clone()), log, acknowledge, None).unwrap();
    served.go_through();
    Arc::new(served)
}

/// A guest that is alone.
fn alone() -> (Disk, Arc<ServedVolume>) {
    let disk = Disk::default();
    let served = serve(&disk, &Arc::default(), Acknowledge::Memory);
    (disk, served)
}

/// One whose backup holds two epochs, of which nothing has reached this host's image, and is then lost.
fn with_backlog() -> (Disk, Arc<ServedVolume>) {
    let (disk, served) = alone();
    served.hold();
    disk.hang("write");
    for epoch in 1..=2u8 {
        write(&served, 0, epoch);
        served.seal(Epoch(epoch.into()));
        served.commit(Epoch(epoch.into()));
    }
    served.go_through();
    (disk, served)
}

fn write(served: &ServedVolume, at: u64, byte: u8) {
    Handler::write(served, at, vec![byte; 16], false).unwrap();
}

fn read(served: &ServedVolume, at: u64) -> u8 {
    let mut content = [0; 16];
    served.read(at, &mut content).unwrap();
    content[0]
}

/// Something of the guest's that may have to wait.
fn beside(
    served: &Arc<ServedVolume>,
    what: impl FnOnce(&ServedVolume) -> Result<(), VolumeError> + Send + 'static,
) -> (JoinHandle<()>, Receiver<Result<(), VolumeError>>) {
    let (its, (tell, done)) = (Arc::clone(served), mpsc::channel());
    (thread::spawn(move || tell.send(what(&its)).unwrap()), done)
}

/// QEMU's `stop`, and the guest's own flush before it, wait for no disk once the volume is held: what they would tell of is
/// held, too.
#[test]
fn a_flush_that_is_under_way_is_let_go_when_the_volume_is_held() {
    let (disk, served) = alone();
    write(&served, 0, 1);
    disk.hang("flush");
    let (thread, flushed) = beside(&served, Handler::flush);
    disk.wait_hanging();
    assert!(flushed.try_recv().is_err(), "alone, a flush is a flush");
    served.hold();
    flushed.recv_timeout(LIMIT).expect("it is let go").unwrap();
    Handler::flush(&*served).unwrap();
    assert_eq!(disk.durable(0), 0);
    disk.go_on();
    thread.join().unwrap();
}

/// The backup is lost while much is on its way to a disk that does not get on: the next write does not wait for all of that.
#[test]
fn a_write_does_not_wait_for_what_is_on_its_way() {
    let (disk, served) = with_backlog();
    write(&served, 0, 3);
    write(&served, 100, 4);
    assert_eq!((read(&served, 0), read(&served, 100)), (3, 4), "the guest reads what it wrote");
    assert_eq!(disk.now(0), 0, "none of it is in the image");
    disk.go_on();
    served.settle(LIMIT).unwrap();
    assert_eq!((disk.now(0), disk.now(100)), (3, 4), "in order");
    assert_eq!((disk.durable(0), disk.durable(100)), (3, 4));
    assert_eq!(served.held(), 0);
    // From here on it goes through again.
    write(&served, 0, 5);
    assert_eq!(disk.now(0), 5);
}

/// Alone, what is flushed is durable when that is answered, whatever was on its way before.
#[test]
fn a_flush_of_a_guest_that_is_alone_waits_for_what_is_on_its_way() {
    let (disk, served) = with_backlog();
    write(&served, 0, 3);
    let (thread, flushed) = beside(&served, Handler::flush);
    disk.wait_hanging();
    assert!(flushed.try_recv().is_err());
    disk.go_on();
    flushed.recv_timeout(LIMIT).unwrap().unwrap();
    assert_eq!(disk.durable(0), 3);
    thread.join().unwrap();
}

/// The backup is lost: what the guest's flushes were answered for from memory is durable before anybody is told of it.
#[test]
fn what_was_answered_from_memory_can_be_waited_for() {
    let (disk, served) = alone();
    write(&served, 0, 1);
    served.hold();
    Handler::flush(&*served).unwrap();
    write(&served, 100, 2);
    served.seal(Epoch(1));
    write(&served, 200, 3);
    Handler::flush(&*served).unwrap();
    disk.hang("flush");
    served.go_through();
    let ticket = served.flush_soon().expect("none of it is on the disk");
    disk.wait_hanging();
    assert!(served.flushed(ticket).is_none());
    disk.go_on();
    let (tell, done) = mpsc::channel();
    let its = Arc::clone(&served);
    let looker = thread::spawn(move || {
        while its.flushed(ticket).is_none() {
            thread::yield_now();
        }
        tell.send(its.flushed(ticket)).unwrap();
    });
    done.recv_timeout(LIMIT).unwrap().unwrap().unwrap();
    looker.join().unwrap();
    // In the image, or in the log over it.
    assert_eq!(disk.durable(0), 1);
    served.settle(LIMIT).unwrap();
    assert_eq!((disk.durable(100), disk.durable(200)), (2, 3));
    assert_eq!(served.flush_soon(), None, "there is nothing to wait for");
}

/// A volume may be held while the guest runs. A write that is under way then does not land on what comes after it.
#[test]
fn a_write_that_is_under_way_lands_before_what_comes_after_it() {
    let (disk, served) = alone();
    disk.hang("write");
    let (thread, written) = beside(&served, |served| Handler::write(served, 0, vec![1; 16], false));
    disk.wait_hanging();
    assert!(!served.is_calm(false), "a pause would have to wait for it");
    served.hold();
    write(&served, 0, 2);
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    assert_eq!(read(&served, 0), 2);
    assert!(served.settle(Duration::from_millis(20)).is_err(), "the applier waits");
    disk.go_on();
    written.recv_timeout(LIMIT).unwrap().unwrap();
    assert!(served.is_calm(false));
    served.settle(LIMIT).unwrap();
    assert_eq!(disk.now(0), 2);
    thread.join().unwrap();
}

/// Before a pause no write goes to the disk any more, and whoever waits for that hears of it.
#[test]
fn before_a_pause_no_write_is_under_way_to_the_disk() {
    let (disk, served) = alone();
    let (tell, calm) = mpsc::channel();
    served.on_calm(Some(Box::new(move || tell.send(()).unwrap_or_default())));
    disk.hang("write");
    let (thread, _written) = beside(&served, |served| Handler::write(served, 0, vec![1; 16], false));
    disk.wait_hanging();
    served.brace(true);
    write(&served, 0, 2);
    assert!(!served.is_calm(false) && calm.try_recv().is_err());
    disk.go_on();
    calm.recv_timeout(LIMIT).unwrap();
    thread.join().unwrap();
    assert!(served.is_calm(false));
    disk.hang("write");
    write(&served, 0, 3);
    assert!(served.is_calm(false), "it is in memory");
    disk.go_on();
    served.settle(LIMIT).unwrap();
    assert_eq!((disk.now(0), disk.durable(0)), (3, 3));
    served.brace(false);
    write(&served, 0, 4);
    assert_eq!(disk.now(0), 4);
}

/// For a pause in which writes go on to go through, what is not durable is synced before.
#[test]
fn what_went_through_is_synced_before_a_pause() {
    let (disk, served) = alone();
    for at in 0..=(1 << 20) / SIZE as u64 {
        Handler::write(&*served, 0, vec![1 + (at % 9) as u8; SIZE], false).unwrap();
    }
    served.brace(true);
    assert!(served.is_calm(false) && !served.is_calm(true), "a flush would take its time");
    disk.hang("flush");
    served.sync_soon();
    disk.wait_hanging();
    assert!(!served.is_calm(true));
    let (tell, calm) = mpsc::channel();
    served.on_calm(Some(Box::new(move || tell.send(()).unwrap_or_default())));
    disk.go_on();
    calm.recv_timeout(LIMIT).unwrap();
    assert!(served.is_calm(true));
    assert_eq!(disk.durable(0), disk.now(0));
}

/// An epoch that is said to be durable rests on what went through before it: that is durable first, without any flush of QEMU's.
#[test]
fn what_went_through_is_durable_before_what_comes_after_it() {
    let (disk, served) = alone();
    write(&served, 0, 1);
    served.hold();
    // Answered at once.
    Handler::flush(&*served).unwrap();
    assert_eq!(disk.durable(0), 0);
    write(&served, 100, 2);
    served.seal(Epoch(1));
    served.commit(Epoch(1));
    served.wait_durable(Epoch(1), LIMIT).unwrap();
    assert_eq!(disk.durable(0), 1);
}

#[test]
fn a_disk_that_does_not_answer_is_found_out() {
    type Act = fn(&ServedVolume) -> Result<(), VolumeError>;
    let cases: [(&str, Act); 3] = [
        ("read", |served| served.read(0, &mut [0])),
        ("write", |served| Handler::write(served, 0, vec![1], false)),
        ("flush", |served| Handler::write(served, 0, vec![1], true)),
    ];
    for (what, act) in cases {
        let (disk, served) = alone();
        assert_eq!(served.stalled(), None);
        disk.hang(what);
        let (thread, done) = beside(&served, act);
        disk.wait_hanging();
        while served.stalled().is_none_or(|time| time.is_zero()) {
            thread::yield_now();
        }
        disk.go_on();
        done.recv_timeout(LIMIT).unwrap().unwrap();
        thread.join().unwrap();
        // The applier says it is done a moment after whoever waited for it.
        while served.stalled().is_some() {
            thread::yield_now();
        }
    }
}

/// What is held has a bound, over all volumes together. At the bound the guest's writes wait, and go on when there is room.
#[test]
fn what_is_held_has_a_bound() {
    const PIECE: usize = 32 << 20;
    let budget = Arc::new(Budget::default());
    let disks = [Disk::default(), Disk::default()];
    disks.iter().for_each(|disk| disk.0.state.lock().unwrap().size = 1 << 30);
    let volumes = disks.each_ref().map(|disk| serve(disk, &budget, Acknowledge::Memory));
    volumes.iter().for_each(|volume| volume.hold());
    let its = volumes.each_ref().map(Arc::clone);
    let (tell, answered) = mpsc::channel();
    // Pages of zeros take no memory until somebody writes to them.
    let guest = thread::spawn(move || {
        for n in 0..2 * HARD / PIECE {
            Handler::write(&*its[n % 2], 0, vec![0; PIECE], false).unwrap();
            tell.send(()).unwrap();
        }
    });
    while budget.waiting() == 0 {
        thread::yield_now();
    }
    assert!(budget.is_full() && budget.held() < HARD + 2 * PIECE && budget.held() > SOFT);
    let before = answered.try_iter().count();
    assert!(before < 2 * HARD / PIECE);
    // The witness has been heard: all of it may reach the images, and the guest goes on.
    volumes.iter().for_each(|volume| volume.go_through());
    for _ in before..2 * HARD / PIECE {
        answered.recv_timeout(LIMIT).unwrap();
    }
    guest.join().unwrap();
    volumes.iter().for_each(|volume| volume.settle(LIMIT).unwrap());
    assert_eq!(budget.held(), 0);
}

/// A VM that has ended here leaves no write behind that waits for room.
#[test]
fn the_end_of_the_vm_ends_what_waits() {
    let budget = Arc::new(Budget::default());
    let disk = Disk::default();
    disk.0.state.lock().unwrap().size = 1 << 30;
    let served = serve(&disk, &budget, Acknowledge::Memory);
    served.hold();
    let (thread, done) = beside(&served, |served| {
        (0..=HARD / (32 << 20)).try_for_each(|_| Handler::write(served, 0, vec![0; 32 << 20], false))
    });
    while budget.waiting() == 0 {
        thread::yield_now();
    }
    served.discard();
    assert!(done.recv_timeout(LIMIT).unwrap().is_err(), "the next one is refused");
    thread.join().unwrap();
    assert_eq!(budget.held(), 0);
}

/// A sound disk may need long for all that is to be flushed. As long as it gets on it does not hang, whoever waits for it.
#[test]
fn a_disk_that_gets_on_does_not_hang() {
    const SIZE: u64 = 64 << 20;
    let (disk, served) = alone();
    disk.0.state.lock().unwrap().size = SIZE;
    // One of another size than the image had when it was opened.
    let served = {
        drop(served);
        serve(&disk, &Arc::default(), Acknowledge::Memory)
    };
    disk.hang("write-out");
    let ticket = served.flush_soon().unwrap();
    disk.wait_hanging();
    let mut hung_on = Vec::new();
    for _ in 1..SIZE / STEP {
        let hung = served.stalled().unwrap();
        while served.stalled().unwrap() < hung + Duration::from_millis(20) {
            thread::yield_now();
        }
        let before = Instant::now();
        disk.pass();
        // Since it got on, which was after that.
        let stalled = served.stalled().unwrap();
        hung_on.extend((stalled > before.elapsed()).then_some(stalled));
    }
    disk.go_on();
    while served.flushed(ticket).is_none() {
        thread::yield_now();
    }
    served.flushed(ticket).unwrap().unwrap();
    assert!(hung_on.is_empty(), "{hung_on:?}");
}

/// A backup whose disk takes its time acknowledges late, and says so when it takes too long; what came is not lost by that.
#[test]
fn a_backup_acknowledges_what_its_disk_has() {
    let disk = Disk::default();
    let log = WriteLog::in_memory().unwrap();
    let served = ServedVolume::new(Box::new(disk.clone()), log, Acknowledge::Disk).unwrap();
    disk.hang("flush");
    let batch: Batch = [Op::Write { at: 0, data: vec![7; 16].into() }].into_iter().collect();
    served.receive(Epoch(1), batch);
    disk.wait_hanging();
    let late = served.wait_acknowledge(Epoch(1), Duration::from_millis(1)).map_err(|e| e.to_string());
    disk.go_on();
    served.wait_acknowledge(Epoch(1), LIMIT).unwrap();
    assert!(late.is_err(), "it acknowledges what its disk does not have");
    served.settle(LIMIT).unwrap();
    assert_eq!(disk.durable(0), 7);
}
