//! One checkpoint's buffers and how they are filled. The pause path: nothing here allocates once the buffers have grown
//! to their size, nothing logs, nothing waits for the network.

use std::time::{Duration, Instant};

use ninefold_machine::{BlockLayout, DirtySet, Machine, MachineError, Memory, PAGE_SIZE, Tracker};
use ninefold_model::Epoch;
use ninefold_model::control::CheckpointRecord;

use crate::outlets::Outlets;

/// Memory that is touched beforehand, so that the first checkpoints do not pay for page faults: 32 MiB.
const PREFAULT: usize = 32 << 20;
/// Room for device state and for what the byte channels say in an epoch.
const STATE_ROOM: usize = 1 << 20;

/// One checkpoint.
#[derive(Debug)]
pub struct Capture {
    pub epoch: Epoch,
    /// The guest stays paused after it.
    pub last: bool,
    pub dirty: DirtySet,
    /// Begins with the contents of the dirty runs, one behind the other: see [`Capture::content`].
    pages: Vec<u8>,
    pub devices: Vec<u8>,
    pub console: Vec<u8>,
    pub agent: Vec<u8>,
    pub addresses: String,
    /// What was measured.
    pub record: CheckpointRecord,
    /// When the guest ran again.
    pub resumed: Instant,
}

impl Capture {
    /// Buffers for a VM with this memory.
    pub fn for_layout(layout: &BlockLayout) -> Self {
        let bytes = usize::try_from(layout.bytes()).unwrap_or(usize::MAX);
        let mut pages = vec![0u8; bytes.min(PREFAULT)];
        // Writing other than zeros: fresh zero pages need not be backed by memory.
        pages.chunks_mut(PAGE_SIZE as usize).for_each(|page| page[0] = 1);
        // The rest is address space until it is used.
        pages.reserve_exact(bytes - bytes.min(PREFAULT));
        Self {
            epoch: Epoch(0),
            last: false,
            dirty: DirtySet::for_layout(layout),
            pages,
            devices: Vec::with_capacity(STATE_ROOM),
            console: Vec::with_capacity(STATE_ROOM),
            agent: Vec::with_capacity(STATE_ROOM),
            addresses: String::with_capacity(1024),
            record: CheckpointRecord::default(),
            resumed: Instant::now(),
        }
    }

    /// Empties the buffers; they keep their room.
    pub fn clear(&mut self) {
        self.last = false;
        self.dirty.clear();
        self.devices.clear();
        self.console.clear();
        self.agent.clear();
        self.addresses.clear();
        self.record = CheckpointRecord::default();
    }

    /// Stops the guest and takes `epoch`. The guest is still paused when this returns; [`Capture::resume`] follows.
    pub fn take(
        &mut self,
        epoch: Epoch,
        ran: Duration,
        machine: &mut Machine,
        tracker: &mut Tracker,
        outlets: &Outlets,
    ) -> Result<(), MachineError> {
        self.epoch = epoch;
        machine.begin_pause()?;
        let stopped = Instant::now();
        tracker.scan(&mut self.dirty)?;
        let scanned = Instant::now();
        self.copy(machine.memory())?;
        outlets.drain_and_close(epoch);
        outlets.epoch_bytes(epoch, &mut self.console, &mut self.agent);
        let copied = Instant::now();
        self.record.state_bytes = machine.finish_save()?;
        machine.state_into(&mut self.devices)?;
        self.record.epoch = epoch.0;
        self.record.run_us = micros(ran);
        self.record.scan_us = micros(scanned - stopped);
        self.record.copy_us = micros(copied - scanned);
        self.record.dirty_pages = self.dirty.pages();
        Ok(())
    }

    /// Copies the dirty pages. The buffer only ever grows, within its capacity: what is in it need not be cleared.
    pub fn copy(&mut self, memory: &Memory) -> Result<(), MachineError> {
        let bytes = self.bytes();
        if self.pages.len() < bytes {
            self.pages.resize(bytes, 0);
        }
        memory.read_runs(self.dirty.runs(), &mut self.pages[..bytes])?;
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.dirty.pages() as usize * PAGE_SIZE as usize
    }

    /// The contents of the dirty runs, one behind the other.
    pub fn content(&self) -> &[u8] {
        &self.pages[..self.bytes()]
    }

    /// Lets the guest run again.
    pub fn resume(&mut self, machine: &mut Machine) -> Result<(), MachineError> {
        machine.resume()?;
        self.resumed = Instant::now();
        self.note(machine);
        Ok(())
    }

    /// Takes over the machine's step times.
    pub fn note(&mut self, machine: &Machine) {
        let times = machine.times();
        self.record.stop_us = times.stop_us;
        self.record.save_us = times.save_us;
        self.record.cont_us = times.cont_us;
        self.record.pause_us = times.pause_us;
    }
}

/// Whole microseconds.
pub fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
