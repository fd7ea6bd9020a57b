//! The output gate: keeps what the guest emitted until its epoch is committed.
//!
//! A pure data structure: no I/O, no clock, no locks. The items in it are Ethernet frames or chunks of a byte channel.
//!
//! ```text
//!            oldest                                                    newest
//!              │  may leave   │ epoch n   │ epoch n+1 │ not yet closed   │
//!   pop ◀──────┤ (allowed)    │ (closed)  │ (closed)  │                  ├◀── push
//!              └──────────────┴───────────┴───────────┴──────────────────┘
//!                             ▲ allow(n) moves this boundary right
//!
//!              set_mode(Held)              set_mode(Mute): drops all that is here
//!      ┌──────┐ ───────────▶ ┌──────┐ ───────────▶ ┌──────┐
//!      │ Open │              │ Held │              │ Mute │  (any mode can follow any other)
//!      └──────┘ ◀─────────── └──────┘ ◀─────────── └──────┘
//!              set_mode(Open): all
//!              that is here may leave
//! ```
//!
//! * **Open**: what is pushed may leave at once.
//! * **Held**: what is pushed may leave when the epoch that it was closed into has been allowed.
//! * **Mute**: what is pushed is dropped and counted.
//!
//! The memory is fixed when the gate is made: one ring of bytes and one of entries. When either is full the newest item
//! is dropped and counted: a network may lose frames, but QEMU must never be pushed back. Nothing is allocated after
//! [`Gate::new`].

use std::collections::VecDeque;
use std::time::Instant;

use ninefold_model::Epoch;

use crate::urgency::Urgency;

/// What the gate does with what is pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It may leave at once.
    Open,
    /// It waits for its epoch.
    Held,
    /// It is dropped.
    Mute,
}

/// The gate's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in all items together; at most 4 GiB. An item is kept in one piece, so that up to one item's length less
    /// may be usable.
    pub bytes: usize,
    /// Number of items.
    pub items: usize,
}

impl Default for Limits {
    /// 32 MiB and 65,536 items: 100 ms of a guest that sends 2.6 Gbit/s.
    fn default() -> Self {
        Self { bytes: 32 << 20, items: 65_536 }
    }
}

/// What became of a pushed item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Push {
    /// It may leave at once: pop it.
    Passed,
    /// It waits. `first`: nothing as urgent waits in the epoch that is not yet closed, so that a checkpoint should be
    /// thought of.
    Held { first: bool },
    /// It was dropped: the gate is full.
    Full,
    /// It was dropped: the gate is mute.
    Mute,
    /// It was empty; nothing to do.
    Empty,
}

/// What went through the gate since it was made, in items.
///
/// `pushed == left + stale + dropped_full + dropped_mute + Gate::len()` at all times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Offered to the gate (empty items are not counted).
    pub pushed: u64,
    /// Left by [`Gate::pop_allowed`].
    pub left: u64,
    /// Dropped because there was no room.
    pub dropped_full: u64,
    /// Dropped because the gate was or became mute, or by [`Gate::discard`].
    pub dropped_mute: u64,
    /// The same, of items that were allowed to leave and had not left yet.
    pub stale: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    at: u32,
    len: u32,
}

/// Everything before sequence number `end`, and after the mark before, belongs to `epoch`.
#[derive(Debug, Clone, Copy)]
struct Mark {
    epoch: Epoch,
    end: u64,
}

/// Closed epochs that may wait at once. If more are closed, the newest two become one, which leaves later.
const MAX_MARKS: usize = 64;

/// The output gate. See the [module](self).
#[derive(Debug)]
pub struct Gate {
    mode: Mode,
    limits: Limits,
    ring: Box<[u8]>,
    /// Where the next item goes in `ring`.
    write: usize,
    entries: VecDeque<Entry>,
    marks: VecDeque<Mark>,
    /// Sequence number of the first of `entries`.
    first: u64,
    /// Items with smaller sequence numbers may leave.
    allowed: u64,
    /// Items with smaller sequence numbers are allowed or belong to a closed epoch.
    closed: u64,
    bytes: usize,
    waiting: Option<Instant>,
    urgent: Option<Instant>,
    counts: Counts,
}

impl Gate {
    /// An empty gate. Limits beyond what a gate can address are reduced (4 GiB, and at least one item of one byte).
    #[must_use]
    pub fn new(mode: Mode, limits: Limits) -> Self {
        let limits =
            Limits { bytes: limits.bytes.clamp(1, u32::MAX as usize), items: limits.items.clamp(1, u32::MAX as usize) };
        Self {
            mode,
            limits,
            ring: vec![0; limits.bytes].into_boxed_slice(),
            write: 0,
            entries: VecDeque::with_capacity(limits.items),
            marks: VecDeque::with_capacity(MAX_MARKS),
            first: 0,
            allowed: 0,
            closed: 0,
            bytes: 0,
            waiting: None,
            urgent: None,
            counts: Counts::default(),
        }
    }

    /// The mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Items in the gate.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is in the gate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the items in the gate.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The counters.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// When the oldest item of the epoch that is not yet closed came; `None` if nothing waits in it.
    #[must_use]
    pub fn waiting(&self) -> Option<Instant> {
        self.waiting
    }

    /// When the oldest urgent item of the epoch that is not yet closed came; `None` if none waits in it.
    #[must_use]
    pub fn urgent(&self) -> Option<Instant> {
        self.urgent
    }

    /// Whether the gate is at least half full, in bytes or in items: time for a checkpoint, before items are lost.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.bytes >= self.limits.bytes.div_ceil(2) || self.entries.len() >= self.limits.items.div_ceil(2)
    }

    /// The longest item that would find room now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.entries.len() >= self.limits.items {
            return 0;
        }
        let (tail, gap) = self.free();
        tail.max(gap)
    }

    /// Free bytes at the place of writing, and at the ring's beginning (0 if that is not to be reached by wrapping).
    fn free(&self) -> (usize, usize) {
        let end = self.ring.len();
        match self.entries.front() {
            None => (end, 0),
            Some(oldest) if self.write > oldest.at as usize => (end - self.write, oldest.at as usize),
            Some(oldest) => (oldest.at as usize - self.write, 0),
        }
    }

    /// Offers an item that came at `now`.
    pub fn push(&mut self, item: &[u8], urgency: Urgency, now: Instant) -> Push {
        if item.is_empty() {
            return Push::Empty;
        }
        self.counts.pushed += 1;
        if self.mode == Mode::Mute {
            self.counts.dropped_mute += 1;
            return Push::Mute;
        }
        if self.room() < item.len() {
            self.counts.dropped_full += 1;
            return Push::Full;
        }
        if self.entries.is_empty() {
            // Start over at the beginning: a gate that is emptied often stays in the cache.
            self.write = 0;
        } else if self.free().0 < item.len() {
            self.write = 0;
        }
        let at = self.write;
        self.ring[at..at + item.len()].copy_from_slice(item);
        self.write += item.len();
        self.bytes += item.len();
        // Both fit: `limits.bytes` is at most `u32::MAX`.
        self.entries.push_back(Entry { at: at as u32, len: item.len() as u32 });
        if self.mode == Mode::Open {
            self.allow_all();
            return Push::Passed;
        }
        let mut first = self.waiting.is_none();
        self.waiting.get_or_insert(now);
        if urgency == Urgency::Urgent {
            first |= self.urgent.is_none();
            self.urgent.get_or_insert(now);
        }
        Push::Held { first }
    }

    /// Sequence number of the next item to be pushed.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn allow_all(&mut self) {
        self.marks.clear();
        self.allowed = self.end();
        self.closed = self.allowed;
        self.waiting = None;
        self.urgent = None;
    }

    /// All that was pushed and belongs to no epoch yet belongs to `epoch`. Epochs grow from call to call; they may begin
    /// anew after the gate was open or mute. (If one does not grow, its items leave with the larger one before it.)
    pub fn close_epoch(&mut self, epoch: Epoch) {
        self.waiting = None;
        self.urgent = None;
        let end = self.end();
        if end == self.closed {
            return;
        }
        self.closed = end;
        let mark = Mark { epoch, end };
        let full = self.marks.len() == MAX_MARKS;
        match self.marks.back_mut() {
            // Leaving later than allowed is safe, earlier is not: the larger epoch counts for both.
            Some(last) if last.epoch >= epoch => last.end = end,
            Some(last) if full => *last = mark,
            _ => self.marks.push_back(mark),
        }
    }

    /// The backup holds every epoch up to and with `epoch`: their items may leave, by [`Gate::pop_allowed`].
    pub fn allow(&mut self, epoch: Epoch) {
        while let Some(mark) = self.marks.front().filter(|m| m.epoch <= epoch) {
            self.allowed = mark.end;
            self.marks.pop_front();
        }
    }

    /// Takes out up to `max_items` allowed items, oldest first, while they sum up to `max_bytes` or less (but at least
    /// one). Returns how many.
    pub fn pop_allowed(&mut self, max_items: usize, max_bytes: usize, mut sink: impl FnMut(&[u8])) -> usize {
        let mut bytes = 0;
        let mut items = 0;
        while items < max_items && self.first < self.allowed {
            let Some(entry) = self.entries.front().copied() else {
                break;
            };
            let (at, len) = (entry.at as usize, entry.len as usize);
            if items > 0 && bytes + len > max_bytes {
                break;
            }
            sink(&self.ring[at..at + len]);
            self.drop_front(len);
            bytes += len;
            items += 1;
        }
        self.counts.left += items as u64;
        items
    }

    /// Items that may leave now.
    #[must_use]
    pub fn may_leave(&self) -> usize {
        (self.allowed - self.first) as usize
    }

    fn drop_front(&mut self, len: usize) {
        self.entries.pop_front();
        self.first += 1;
        self.bytes -= len;
    }

    /// [`Gate::allow`], and takes out all that may leave. Returns how many items left.
    pub fn release_up_to(&mut self, epoch: Epoch, sink: impl FnMut(&[u8])) -> usize {
        self.allow(epoch);
        self.pop_allowed(usize::MAX, usize::MAX, sink)
    }

    /// Drops all that is in the gate; counted as mute, or as stale what might have left. Returns how many items.
    pub fn discard(&mut self) -> usize {
        let items = self.entries.len();
        let stale = self.may_leave();
        self.counts.stale += stale as u64;
        self.counts.dropped_mute += (items - stale) as u64;
        self.first = self.end();
        self.entries.clear();
        self.bytes = 0;
        self.allow_all();
        items
    }

    /// Changes the mode. To Open: all that is here may leave, in order. To Mute: all that is here is dropped. To Held:
    /// what was allowed stays allowed.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        match mode {
            Mode::Open => self.allow_all(),
            Mode::Held => {}
            Mode::Mute => {
                self.discard();
            }
        }
    }

    /// All items up to and with this closed epoch that have not left, oldest first: those that may leave, too.
    pub fn each_up_to(&self, epoch: Epoch, mut sink: impl FnMut(&[u8])) {
        let marks = self.marks.iter().take_while(|m| m.epoch <= epoch);
        let end = marks.last().map_or(self.allowed, |m| m.end);
        for entry in self.entries.range(..(end - self.first) as usize) {
            sink(&self.ring[entry.at as usize..][..entry.len as usize]);
        }
    }

    /// The items of a closed epoch that have not been allowed yet, oldest first.
    pub fn each_in(&self, epoch: Epoch, mut sink: impl FnMut(&[u8])) {
        let mut start = self.allowed;
        for mark in &self.marks {
            if mark.epoch == epoch {
                let range = (start - self.first) as usize..(mark.end - self.first) as usize;
                for entry in self.entries.range(range) {
                    sink(&self.ring[entry.at as usize..][..entry.len as usize]);
                }
                return;
            }
            start = mark.end;
        }
    }
}
