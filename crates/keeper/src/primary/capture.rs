//! One checkpoint's buffers and how they are filled. The pause path: nothing here allocates once the buffers have grown
//! to their size, nothing logs, nothing waits for the network.
//!
//! Pages are copied before the pause where that shortens it, in the pause, or behind it: when there is much to copy, the guest's
//! memory is held as it is in the pause ([`Moment`]), and copied while the guest goes on.

use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use ninefold_machine::{
    BlockLayout, DirtySet, Machine, MachineError, Memory, Moment, PAGE_SIZE, PageMap, PageRun, Pages, Tracker,
};
use ninefold_model::Epoch;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_replica::stream::record::MAX_VOLUMES;
use ninefold_volume::Batch;

use crate::devices::disks::Disks;
use crate::devices::guest_io::GuestIo;
use crate::primary::overlay::{self, Part};
use crate::primary::waker::Waker;
use crate::runtime::priority::Processors;

/// Memory that is touched beforehand, so that the first checkpoints do not pay for page faults: 32 MiB.
const PREFAULT: usize = 32 << 20;
/// Room for device state and for what the byte channels say in an epoch.
const STATE_ROOM: usize = 1 << 20;
/// So many pages may be copied before the pause and, where they are written again, in it: 8 MiB. With more they are held.
pub const FEW_PAGES: u64 = 2048;
/// How often it is looked at most for what was written before a pause that copies nothing of it: who writes meanwhile is trapped
/// each time, so that it soon is little.
pub const MOST_LOOKS: u32 = 4;

/// One checkpoint.
#[derive(Debug)]
pub struct Capture {
    pub epoch: Epoch,
    /// Scan and copy once while the guest still runs, so that only what it writes meanwhile is left for the pause.
    pub early: bool,
    /// Leave the guest's memory out: who gets this reads it as it is [held](Join::moment) in the pause. It is scanned all the same.
    pub bare: bool,
    /// The guest's memory may be held and copied behind the pause, if there is much to copy and all of it is trapped.
    pub may_hold: bool,
    /// Pages that are held, and to be [collected](Self::collect).
    held: Option<Moment>,
    dirty: DirtySet,
    late: DirtySet,
    /// What the checkpoint carries; a page once.
    runs: Vec<PageRun>,
    count: u64,
    /// Begins with the contents of the runs, one behind the other: see [`Capture::content`].
    pages: Vec<u8>,
    pub devices: Vec<u8>,
    pub console: Vec<u8>,
    pub agent: Vec<u8>,
    pub addresses: String,
    /// What a backup must know to go on watching the guest's health, if that has changed.
    pub health: Vec<u8>,
    /// What the guest did to its volumes, one batch for each.
    pub volumes: Vec<Arc<Batch>>,
    /// Where the guest was at work.
    pub busy: Processors,
    /// What was measured.
    pub record: CheckpointRecord,
    /// When the guest ran again.
    pub resumed: Instant,
}

impl Capture {
    /// Buffers for a VM with this memory.
    ///
    /// # Errors
    /// This host has no address space for a second copy of the guest's memory.
    pub fn for_layout(layout: &BlockLayout) -> Result<Self, MachineError> {
        let bytes = usize::try_from(layout.bytes()).unwrap_or(usize::MAX);
        let mut pages = vec![0u8; bytes.min(PREFAULT)];
        // Writing other than zeros: fresh zero pages need not be backed by memory.
        pages.chunks_mut(PAGE_SIZE as usize).for_each(|page| page[0] = 1);
        // The rest is address space until it is used. The kernel refuses more of it than this host has memory, which the guest
        // cannot have filled either.
        let most = usize::try_from(physical_memory()).unwrap_or(usize::MAX);
        pages.try_reserve_exact(bytes.min(most).saturating_sub(PREFAULT)).map_err(|e| MachineError::Io {
            what: "making room for a checkpoint",
            source: io::Error::new(io::ErrorKind::OutOfMemory, e),
        })?;
        Ok(Self {
            epoch: Epoch(0),
            early: false,
            bare: false,
            may_hold: false,
            held: None,
            dirty: DirtySet::for_layout(layout),
            late: DirtySet::for_layout(layout),
            runs: Vec::with_capacity(layout.blocks.iter().map(|b| b.pages() as usize).sum()),
            count: 0,
            pages,
            devices: Vec::with_capacity(STATE_ROOM),
            console: Vec::with_capacity(STATE_ROOM),
            agent: Vec::with_capacity(STATE_ROOM),
            addresses: String::with_capacity(1024),
            health: Vec::new(),
            volumes: Vec::with_capacity(usize::from(MAX_VOLUMES)),
            busy: Processors::NONE,
            record: CheckpointRecord::default(),
            resumed: Instant::now(),
        })
    }

    /// Empties the buffers; they keep their room.
    pub fn clear(&mut self) {
        self.early = false;
        self.bare = false;
        self.may_hold = false;
        self.held = None;
        self.dirty.clear();
        self.late.clear();
        self.runs.clear();
        self.count = 0;
        self.devices.clear();
        self.console.clear();
        self.agent.clear();
        self.addresses.clear();
        self.health.clear();
        self.volumes.clear();
        self.record = CheckpointRecord::default();
    }

    /// Stops the guest and takes `epoch`, with the pages of `missing` too, whether they were written or not: those are then
    /// copied before the pause, or held in it. The guest is still paused when this returns; [`Capture::resume`] and
    /// [`Capture::collect`] follow.
    ///
    /// # Errors
    /// QEMU has ended, refuses a step or does not answer in time, or what the guest writes cannot be followed or copied. The
    /// guest may be left paused.
    #[expect(clippy::too_many_arguments, reason = "all that a VM is made of")]
    pub fn take(
        &mut self,
        epoch: Epoch,
        ran: Duration,
        machine: &mut Machine,
        tracker: &mut Tracker,
        guest_io: &GuestIo,
        disks: &Disks,
        missing: Option<&mut PageMap>,
    ) -> Result<(), MachineError> {
        self.epoch = epoch;
        self.early |= missing.is_some();
        if self.early {
            tracker.scan(&mut self.dirty)?;
            if let Some(missing) = missing {
                missing.insert(self.dirty.runs());
                let hold = self.may_hold && tracker.traps_all() && missing.pages() > FEW_PAGES;
                if hold {
                    self.settle(tracker, missing)?;
                }
                missing.drain_into(&mut self.dirty);
                if hold {
                    let moment = Moment::of_pages(machine.memory().ram());
                    moment.include(self.dirty.runs());
                    self.held = Some(moment);
                }
            }
            self.copy_all(machine.memory())?;
            self.record.early_pages = self.count;
        }
        guest_io.hold_input();
        guest_io.make_room();
        // QEMU waits for the requests that are under way: none of them is to be kept waiting.
        disks.pausing(true);
        let begun = machine.begin_pause();
        disks.pausing(false);
        begun?;
        let stopped = Instant::now();
        tracker.scan_stopped(if self.early { &mut self.late } else { &mut self.dirty })?;
        let scanned = Instant::now();
        if let Some(moment) = &self.held {
            moment.include(self.late.runs());
            if !tracker.hold(moment) {
                // There is nothing left but to copy them now.
                self.held = None;
                self.runs.clear();
                self.copy_all(machine.memory())?;
            }
        }
        if self.early {
            self.copy_late(machine.memory())?;
        } else {
            self.copy_all(machine.memory())?;
        }
        guest_io.drain_and_close(epoch);
        disks.seal(epoch, &mut self.volumes);
        guest_io.epoch_bytes(epoch, &mut self.console, &mut self.agent);
        let copied = Instant::now();
        self.record.state_bytes = machine.finish_save()?;
        machine.state_into(&mut self.devices)?;
        self.record.epoch = epoch.0;
        self.record.run_us = micros(ran);
        self.record.scan_us = micros(scanned - stopped);
        self.record.copy_us = micros(copied - scanned);
        self.record.dirty_pages = self.count;
        self.record.again_pages = if self.early { self.late.pages() } else { 0 };
        Ok(())
    }

    /// Takes what has been written meanwhile, until there is little, so that little is left for the pause.
    fn settle(&mut self, tracker: &mut Tracker, missing: &mut PageMap) -> Result<(), MachineError> {
        for _ in 1..MOST_LOOKS {
            if self.dirty.pages() <= FEW_PAGES {
                break;
            }
            self.dirty.clear();
            tracker.scan(&mut self.dirty)?;
            missing.insert(self.dirty.runs());
        }
        Ok(())
    }

    /// Copies the pages that were held while the guest runs. Nothing to do if none were.
    ///
    /// # Errors
    /// The guest's writes are not followed any more.
    pub fn collect(&mut self) -> Result<(), MachineError> {
        let Some(moment) = self.held.take() else { return Ok(()) };
        let (mut pages, before) = (Pages::default(), self.count);
        while moment.next(&mut pages)? {
            let at = bytes(self.count);
            self.count += pages.bytes.len() as u64 / PAGE_SIZE;
            reach(&mut self.pages, self.count);
            self.pages[at..bytes(self.count)].copy_from_slice(&pages.bytes);
            self.runs.extend_from_slice(&pages.runs);
            // Who answers trapped writes has the same priority, and perhaps no other processor.
            thread::yield_now();
        }
        self.record.dirty_pages = self.count;
        self.record.held_pages = self.count - before;
        Ok(())
    }

    /// Whether pages are held that are still to be copied.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Whether the guest's memory is not copied before the pause or in it.
    fn leaves_memory_out(&self) -> bool {
        self.bare || self.held.is_some()
    }

    /// Copies the pages of the one scan there is.
    fn copy_all(&mut self, memory: &Memory) -> Result<(), MachineError> {
        let dirty = wanted(self.leaves_memory_out(), self.dirty.runs());
        self.count = dirty.iter().map(|run| u64::from(run.count)).sum();
        self.runs.extend_from_slice(dirty);
        reach(&mut self.pages, self.count);
        memory.read_runs(&self.runs, &mut self.pages[..bytes(self.count)])?;
        Ok(())
    }

    /// Copies what was written since the early scan: over the early copy where there is one, else behind it.
    fn copy_late(&mut self, memory: &Memory) -> Result<(), MachineError> {
        let bare = self.leaves_memory_out();
        let Self { dirty, late, runs, count, pages, .. } = self;
        lay_over(wanted(bare, dirty.runs()), wanted(bare, late.runs()), runs, count, |at, run| {
            reach(pages, at + u64::from(run.count));
            memory.read_run(run, &mut pages[bytes(at)..][..run.bytes()])
        })
    }

    /// All pages that the guest has written, in two scans: in the checkpoint or left out.
    pub fn written(&self) -> [&[PageRun]; 2] {
        [self.dirty.runs(), self.late.runs()]
    }

    /// What the checkpoint carries; a page is in it once.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// The contents of the runs, one behind the other.
    pub fn content(&self) -> &[u8] {
        &self.pages[..bytes(self.count)]
    }

    /// Lets the guest run again.
    ///
    /// # Errors
    /// The save is not finished, or QEMU has ended, refuses to go on, or does not answer in time.
    pub fn resume(&mut self, machine: &mut Machine) -> Result<(), MachineError> {
        machine.resume()?;
        self.resumed = Instant::now();
        self.note(machine);
        Ok(())
    }

    /// Ends the pause of a guest that is not to run on.
    ///
    /// # Errors
    /// The save is not finished, or QEMU has ended or does not say in time how the guest stands.
    pub fn stay(&mut self, machine: &mut Machine) -> Result<(), MachineError> {
        machine.stay()?;
        self.resumed = Instant::now();
        self.note(machine);
        Ok(())
    }

    /// Takes over the machine's step times.
    fn note(&mut self, machine: &Machine) {
        let times = machine.times();
        self.record.stop_us = times.stop_us;
        self.record.save_us = times.save_us;
        self.record.cont_us = times.cont_us;
        self.record.pause_us = times.pause_us;
    }
}

/// Makes the buffer reach over `count` pages. It only ever grows, within its capacity as long as a page is counted once: what is in it
/// need not be cleared.
fn reach(pages: &mut Vec<u8>, count: u64) {
    if pages.len() < bytes(count) {
        pages.resize(bytes(count), 0);
    }
}

/// Gives `copy` each part of the late scan with its place, a page's number: that of the early scan's copy, whose pages are counted in
/// `count`, or behind all that there is, as a further one of `runs`.
fn lay_over<E>(
    early: &[PageRun],
    late: &[PageRun],
    runs: &mut Vec<PageRun>,
    count: &mut u64,
    mut copy: impl FnMut(u64, PageRun) -> Result<(), E>,
) -> Result<(), E> {
    overlay::split(early, late, |part| match part {
        Part::Again { at, run } => copy(at, run),
        Part::New(run) => {
            let at = *count;
            runs.push(run);
            *count += u64::from(run.count);
            copy(at, run)
        }
    })
}

/// Of the runs of one scan, those that a checkpoint carries: the guest's memory is the first block.
fn wanted(bare: bool, runs: &[PageRun]) -> &[PageRun] {
    if bare { &runs[runs.partition_point(|run| run.block == 0)..] } else { runs }
}

/// What a target gets beside its first checkpoint, for which it was not there before.
#[derive(Debug, Default)]
pub struct Join {
    /// Blocks of each volume that it is to be brought up to date with.
    pub rest: Vec<Vec<u64>>,
    /// What the guest did to each volume in epochs up to this one and what may not be in the image yet, oldest first.
    pub queued: Vec<Vec<Arc<Batch>>>,
    /// What the console has said lately, this epoch included.
    pub console: Vec<u8>,
    /// The guest's memory as it is with this checkpoint, for one that keeps nothing of what it was sent before.
    pub moment: Option<Moment>,
}

/// A checkpoint on its way to all targets. Goes back to the VM's thread when the last of them has done with it.
#[derive(Debug)]
pub struct Taken {
    capture: Option<Box<Capture>>,
    home: Sender<Box<Capture>>,
    waker: Waker,
}

impl Taken {
    pub fn new(capture: Box<Capture>, home: Sender<Box<Capture>>, waker: Waker) -> Self {
        Self { capture: Some(capture), home, waker }
    }
}

impl Deref for Taken {
    type Target = Capture;

    fn deref(&self) -> &Capture {
        self.capture.as_ref().expect("it leaves only when it is dropped")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(capture) = self.capture.take() {
            let _ = self.home.send(capture);
            self.waker.ring();
        }
    }
}

/// Bytes of memory that this host has.
pub fn physical_memory() -> u64 {
    let host = rustix::system::sysinfo();
    host.totalram * u64::from(host.mem_unit)
}

/// The size of so many pages.
fn bytes(pages: u64) -> usize {
    pages as usize * PAGE_SIZE as usize
}

/// Whole microseconds.
pub fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Memory that is copied early, and written again all over before the pause, needs no more room than it has: in the pause nothing
    /// is allocated, and the buffer has no room for a page twice.
    #[test]
    fn what_is_written_again_needs_no_more_room() {
        let run = |block, first, count| PageRun { block, first, count };
        let early = [run(0, 0, 90), run(1, 0, 4)];
        let late = [run(0, 10, 90), run(1, 2, 3)];
        let (mut runs, mut count) = (early.to_vec(), 94);
        // As large as the memory, of which each page is in it once.
        let mut pages = Vec::with_capacity(bytes(105));
        reach(&mut pages, count);
        let place = pages.as_ptr();
        let mut copied = Vec::new();
        let done: Result<(), Infallible> = lay_over(&early, &late, &mut runs, &mut count, |at, run| {
            reach(&mut pages, at + u64::from(run.count));
            copied.push((at, run));
            Ok(())
        });
        done.unwrap();
        assert_eq!(copied, [(10, run(0, 10, 80)), (94, run(0, 90, 10)), (92, run(1, 2, 2)), (104, run(1, 4, 1))]);
        assert_eq!(runs[2..], [run(0, 90, 10), run(1, 4, 1)]);
        assert_eq!((count, pages.len(), pages.as_ptr()), (105, bytes(105), place), "it was not moved");
    }
}
