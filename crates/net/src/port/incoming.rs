//! From the TAP to QEMU's socket.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::counters::Tally;
use crate::frame::{LENGTH, MAX_FRAME};
use crate::tap::Tap;

/// Bytes that wait for QEMU at most, 16 ms of 1 Gbit/s; QEMU does not read while its guest is stopped. The socket holds
/// more before that.
const QUEUE: usize = 2 << 20;

/// Frames read from the TAP before they are sent to QEMU together.
const READS: usize = 64;

/// Frames in QEMU's framing, waiting for room in QEMU's socket.
///
/// ```text
///   0        sent      boundary                            end        QUEUE
///   │ free    │ rest of  │ len,frame │ len,frame │ …        │ free      │
///   │         │ a frame  │           │           │          │           │
/// ```
///
/// A frame that was sent in part must be sent to its end, or QEMU would lose its place in the stream.
pub(super) struct Incoming {
    buf: Box<[u8]>,
    sent: usize,
    boundary: usize,
    end: usize,
    scratch: Box<[u8]>,
    generation: u64,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            buf: vec![0; QUEUE].into_boxed_slice(),
            sent: 0,
            boundary: 0,
            end: 0,
            scratch: vec![0; MAX_FRAME].into_boxed_slice(),
            generation: 0,
        }
    }

    /// Says which QEMU is served; what waited for another one is forgotten.
    pub(super) fn serve(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            (self.sent, self.boundary, self.end) = (0, 0, 0);
        }
    }

    pub(super) fn wants_to_send(&self) -> bool {
        self.sent < self.end
    }

    /// Reads the TAP until it is empty and sends to QEMU what it takes, after `look` has seen it; with no QEMU, drops it.
    ///
    /// # Errors
    /// The TAP cannot be read.
    pub(super) fn pump(
        &mut self,
        tap: &Tap,
        qemu: Option<&OwnedFd>,
        tally: &Tally,
        look: &dyn Fn(&[u8]),
    ) -> io::Result<()> {
        let Some(qemu) = qemu else {
            return self.ignore(tap, tally);
        };
        // A bound, so that a flood from the network does not keep the guest's frames waiting.
        for _ in 0..16 {
            let read = self.fill(tap, tally, look)?;
            self.send(qemu, tally);
            if read < READS {
                break;
            }
        }
        Ok(())
    }

    fn ignore(&mut self, tap: &Tap, tally: &Tally) -> io::Result<()> {
        // What waits is out of date, except the rest of a frame.
        tally.dropped_in_mute(self.frames_waiting());
        self.end = self.boundary;
        for _ in 0..16 * READS {
            match tap.read(&mut self.scratch) {
                Ok(_) => tally.dropped_in_mute(1),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn frames_waiting(&self) -> u64 {
        let (mut at, mut frames) = (self.boundary, 0);
        while at < self.end {
            at += self.length_at(at);
            frames += 1;
        }
        frames
    }

    /// Bytes of the frame at `at`, with its length field.
    fn length_at(&self, at: usize) -> usize {
        self.buf[at..]
            .first_chunk::<LENGTH>()
            .map_or(self.end - at, |length| LENGTH + u32::from_be_bytes(*length) as usize)
    }

    /// Reads up to [`READS`] frames; returns how many there were.
    fn fill(&mut self, tap: &Tap, tally: &Tally, look: &dyn Fn(&[u8])) -> io::Result<usize> {
        for read in 0..READS {
            if self.buf.len() - self.end < LENGTH + MAX_FRAME && self.sent > 0 {
                self.buf.copy_within(self.sent..self.end, 0);
                self.boundary -= self.sent;
                self.end -= self.sent;
                self.sent = 0;
            }
            let full = self.buf.len() - self.end < LENGTH + MAX_FRAME;
            let to = if full { &mut self.scratch[..] } else { &mut self.buf[self.end + LENGTH..][..MAX_FRAME] };
            match tap.read(to) {
                Ok(_) if full => tally.dropped_in(1),
                Ok(n) => {
                    look(&to[..n]);
                    self.buf[self.end..self.end + LENGTH].copy_from_slice(&(n as u32).to_be_bytes());
                    self.end += LENGTH + n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(read),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(READS)
    }

    /// Sends as much as QEMU's socket takes now.
    fn send(&mut self, qemu: &OwnedFd, tally: &Tally) {
        while self.sent < self.end {
            match send(qemu, &self.buf[self.sent..self.end], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // QEMU is gone. The reading side closes the socket when it has read what is left in it.
                Err(_) => {
                    tally.dropped_in_mute(self.frames_waiting());
                    self.sent = self.end;
                    self.boundary = self.end;
                }
            }
        }
        let (mut frames, mut bytes) = (0, 0);
        while self.boundary < self.sent {
            let length = self.length_at(self.boundary);
            self.boundary += length;
            frames += 1;
            bytes += (length - LENGTH) as u64;
        }
        tally.frames_in(frames, bytes);
        if self.sent == self.end {
            (self.sent, self.boundary, self.end) = (0, 0, 0);
        }
    }
}
