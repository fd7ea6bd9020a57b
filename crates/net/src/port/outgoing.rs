//! From QEMU's socket into the gate, and out of the gate in batches.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;

use super::counters::Tally;
use crate::frame::{MAX_FRAME, Splitter};
use crate::gate::{Gate, Push};
use crate::urgency::Urgency;

/// Frames written between two checks of whether the VM is still ours.
pub const BATCH_FRAMES: usize = 64;

/// Bytes written between two such checks, unless one frame alone is longer.
pub(super) const BATCH_BYTES: usize = 256 << 10;

/// QEMU's socket and the gate behind it.
pub(super) struct Outgoing {
    qemu: Option<Arc<OwnedFd>>,
    generation: u64,
    splitter: Splitter,
    pub(super) gate: Gate,
}

/// What one read brought.
pub(super) struct Read {
    /// There may be more.
    pub(super) more: bool,
    /// The checkpoint thread should know.
    pub(super) wake: bool,
}

impl Outgoing {
    pub(super) fn new(gate: Gate) -> Self {
        Self { qemu: None, generation: 0, splitter: Splitter::new(), gate }
    }

    pub(super) fn attach(&mut self, qemu: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&qemu, true)?;
        self.detach();
        self.qemu = Some(Arc::new(qemu));
        Ok(())
    }

    pub(super) fn detach(&mut self) {
        self.qemu = None;
        self.generation += 1;
        self.splitter.reset();
    }

    pub(super) fn qemu(&self) -> Option<Arc<OwnedFd>> {
        self.qemu.clone()
    }

    /// Changes with every socket.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Reads QEMU's socket once. When it has ended or makes no sense, it is closed.
    pub(super) fn read(&mut self, now: Instant, tally: &Tally) -> Read {
        let Some(qemu) = &self.qemu else {
            return Read { more: false, wake: false };
        };
        let n = match rustix::io::read(qemu, self.splitter.space()) {
            Ok(n) if n > 0 => n,
            Err(Errno::AGAIN) => {
                return Read { more: false, wake: false };
            }
            Err(Errno::INTR) => {
                return Read { more: true, wake: false };
            }
            Ok(_) => {
                self.detach();
                return Read { more: false, wake: false };
            }
            Err(e) => {
                tracing::warn!(error = %e, "QEMU's network socket failed");
                self.detach();
                return Read { more: false, wake: false };
            }
        };
        let gate = &mut self.gate;
        let wanted = gate.wants_checkpoint();
        let mut first_held = false;
        let outcome = self.splitter.advance(n, |frame| {
            if let Push::Held { first: true } = gate.push(frame, Urgency::of_frame(frame), now) {
                first_held = true;
            }
        });
        tally.gate(gate);
        let wake = first_held || gate.wants_checkpoint() && !wanted;
        if let Err(e) = outcome {
            tracing::error!(error = %e, "QEMU's network socket is closed");
            self.detach();
            return Read { more: false, wake };
        }
        Read { more: true, wake }
    }
}

/// Frames on their way out of the gate. Its memory is fixed.
pub(super) struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::with_capacity(BATCH_BYTES.max(MAX_FRAME)), ends: Vec::with_capacity(BATCH_FRAMES) }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    pub(super) fn push(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let frame = &self.bytes[start..end];
            start = end;
            frame
        })
    }
}
