//! One client of a channel.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use ninefold_listen::{Guest, Origin, Place};
use rustix::event::PollFlags;

/// Bytes that may wait for a client, beyond what its socket holds. A client that falls further behind is disconnected.
const OUTBOX: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    All,
    Later,
    /// It was disconnected because it did not read.
    Slow,
    Gone,
}

pub(super) struct Client {
    stream: Arc<UnixStream>,
    place: Place<Origin, Arc<UnixStream>>,
    outbox: VecDeque<u8>,
    slow: bool,
    connected: bool,
}

impl Client {
    pub(super) fn new(guest: Guest<UnixListener>) -> io::Result<Self> {
        let Guest { stream, place, .. } = guest;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, place, outbox: VecDeque::with_capacity(OUTBOX), slow: false, connected: true })
    }

    pub(super) fn stream(&self) -> Arc<UnixStream> {
        Arc::clone(&self.stream)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    pub(super) fn disconnect(&mut self) {
        self.connected = false;
        self.outbox.clear();
        // The thread may still hold the descriptor; the client is to know at once.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// What to wait for: room for what it has not got yet, and, if `hear`, what it says.
    pub(super) fn events(&self, hear: bool) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, hear);
        events.set(PollFlags::OUT, !self.outbox.is_empty());
        events
    }

    /// Puts bytes into its outbox.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        if self.outbox.len() + bytes.len() > OUTBOX {
            self.send();
        }
        if self.outbox.len() + bytes.len() > OUTBOX {
            self.slow = true;
        } else if self.connected {
            self.outbox.extend(bytes);
        }
    }

    /// Sends what its socket takes.
    pub(super) fn send(&mut self) -> Sent {
        if !self.connected {
            return Sent::Gone;
        }
        if self.slow {
            self.disconnect();
            return Sent::Slow;
        }
        while !self.outbox.is_empty() {
            match (&*self.stream).write(self.outbox.as_slices().0) {
                Ok(n) => {
                    drop(self.outbox.drain(..n));
                    // It was told something: whoever wants its place waits anew.
                    self.place.idle();
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Sent::Later,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.disconnect();
                    return Sent::Gone;
                }
            }
        }
        Sent::All
    }

    /// Reads up to `most` bytes that it says, to the end of `input`.
    pub(super) fn read(&mut self, input: &mut Vec<u8>, most: usize) {
        if !self.connected {
            return;
        }
        let start = input.len();
        input.resize(start + most, 0);
        let read = (&*self.stream).read(&mut input[start..]);
        input.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.disconnect(),
            Ok(_) => self.place.idle(),
            Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => self.disconnect(),
            _ => {}
        }
    }
}
