//! A port's counters, readable without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::gate::Gate;
use crate::urgency;

/// What a port has done since it was started. Frames and bytes without QEMU's length fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortCounters {
    /// Guest to network: written to the TAP.
    pub frames_out: u64,
    /// Bytes of these.
    pub bytes_out: u64,
    /// Network to guest: sent to QEMU.
    pub frames_in: u64,
    /// Bytes of these.
    pub bytes_in: u64,
    /// In the gate now.
    pub held: u64,
    /// From the guest, dropped because the gate was full.
    pub dropped_full: u64,
    /// From the guest, dropped because the gate was or became mute.
    pub dropped_mute: u64,
    /// Committed, kept because this host did not know whether the VM was still its own, and dropped when it was not.
    pub stale: u64,
    /// From the guest, not taken by the TAP: shorter than an Ethernet header, or the device is down.
    pub failed_out: u64,
    /// From the network, dropped because QEMU did not take them in time.
    pub dropped_in: u64,
    /// From the network, dropped because the port was mute or had no QEMU.
    pub dropped_in_mute: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    frames_out: AtomicU64,
    bytes_out: AtomicU64,
    frames_in: AtomicU64,
    bytes_in: AtomicU64,
    held: AtomicU64,
    dropped_full: AtomicU64,
    dropped_mute: AtomicU64,
    stale: AtomicU64,
    failed_out: AtomicU64,
    dropped_in: AtomicU64,
    dropped_in_mute: AtomicU64,
    wants_checkpoint: AtomicBool,
    /// Nanoseconds from `base` to the gate's `waiting`, plus one; 0 for none.
    waiting: AtomicU64,
    /// The same for its `urgent`.
    urgent: AtomicU64,
    more_to_come: AtomicBool,
    base: OnceLock<Instant>,
}

impl Tally {
    /// Takes over what the gate says of itself; called with the gate locked.
    pub(super) fn gate(&self, gate: &Gate) {
        let counts = gate.counts();
        self.held.store(gate.len() as u64, Relaxed);
        self.dropped_full.store(counts.dropped_full, Relaxed);
        self.dropped_mute.store(counts.dropped_mute, Relaxed);
        self.stale.store(counts.stale, Relaxed);
        self.wants_checkpoint.store(gate.wants_checkpoint(), Relaxed);
        self.waiting.store(self.encode(gate.waiting()), Relaxed);
        self.urgent.store(self.encode(gate.urgent()), Relaxed);
    }

    fn encode(&self, since: Option<Instant>) -> u64 {
        since.map_or(0, |since| {
            let base = *self.base.get_or_init(|| since);
            since.saturating_duration_since(base).as_nanos() as u64 + 1
        })
    }

    fn decode(&self, since: &AtomicU64) -> Option<Instant> {
        let nanos = since.load(Relaxed).checked_sub(1)?;
        self.base.get().map(|base| *base + Duration::from_nanos(nanos))
    }

    pub(super) fn waiting(&self) -> Option<Instant> {
        self.decode(&self.waiting)
    }

    pub(super) fn urgent(&self) -> Option<Instant> {
        self.decode(&self.urgent)
    }

    pub(super) fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint.load(Relaxed)
    }

    /// A frame from the network for the guest.
    pub(super) fn came(&self, frame: &[u8]) {
        if let Some(more) = urgency::more_to_come(frame) {
            self.more_to_come.store(more, Relaxed);
        }
    }

    pub(super) fn more_to_come(&self) -> bool {
        self.more_to_come.load(Relaxed)
    }

    pub(super) fn frame_out(&self, bytes: usize) {
        self.frames_out.fetch_add(1, Relaxed);
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn failed_out(&self) {
        self.failed_out.fetch_add(1, Relaxed);
    }

    pub(super) fn frames_in(&self, frames: u64, bytes: u64) {
        self.frames_in.fetch_add(frames, Relaxed);
        self.bytes_in.fetch_add(bytes, Relaxed);
    }

    pub(super) fn dropped_in(&self, frames: u64) {
        self.dropped_in.fetch_add(frames, Relaxed);
    }

    pub(super) fn dropped_in_mute(&self, frames: u64) {
        self.dropped_in_mute.fetch_add(frames, Relaxed);
    }

    pub(super) fn read(&self) -> PortCounters {
        PortCounters {
            frames_out: self.frames_out.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            frames_in: self.frames_in.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            held: self.held.load(Relaxed),
            dropped_full: self.dropped_full.load(Relaxed),
            dropped_mute: self.dropped_mute.load(Relaxed),
            stale: self.stale.load(Relaxed),
            failed_out: self.failed_out.load(Relaxed),
            dropped_in: self.dropped_in.load(Relaxed),
            dropped_in_mute: self.dropped_in_mute.load(Relaxed),
        }
    }
}
