//! The volumes of a keeper's VM, in its memory: what the guest does is held, committed or goes through, as `ninefold-volume` does it. What
//! has come to the [disk](crate::disk) is the host's.

use std::collections::VecDeque;

use ninefold_model::Epoch;

use crate::guest::{Node, Writes};

/// Bytes of one write, for what is held in memory.
pub const WEIGHT: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// No VM of this host may write here.
    #[default]
    Closed,
    Through,
    Held,
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    /// It is in memory, until its epoch is committed; or it waits behind what is on its way to the image.
    InMemory,
    /// It is in the image.
    InImage,
    Refused,
}

/// An epoch's writes, or others that wait behind those.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub number: u64,
    pub epoch: Epoch,
    pub writes: Writes,
    pub committed: bool,
    /// A guest's that is alone: an ordinary disk's cache, past the write log.
    pub plain: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Volumes {
    pub mode: Mode,
    alone: bool,
    /// The VM has gone from here, and nothing has been received since.
    left: bool,
    open: Writes,
    pub queue: VecDeque<Sealed>,
    last: u64,
}

impl Volumes {
    /// The guest writes.
    pub fn write(&mut self, block: usize, node: Node) -> Wrote {
        match self.mode {
            Mode::Closed => Wrote::Refused,
            Mode::Through if self.queue.is_empty() && self.open.is_empty() => Wrote::InImage,
            Mode::Through | Mode::Held => {
                self.open.push((block, node));
                Wrote::InMemory
            }
        }
    }

    pub fn hold(&mut self) {
        if self.mode == Mode::Through {
            // What goes behind a backlog is of no epoch.
            self.seal_open(true);
        }
        (self.mode, self.alone) = (Mode::Held, false);
    }

    /// The VM runs here alone.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    fn push(&mut self, epoch: Epoch, writes: Writes, committed: bool, plain: bool) -> u64 {
        self.last += 1;
        self.queue.push_back(Sealed { number: self.last, epoch, writes, committed, plain });
        self.last
    }

    fn seal_open(&mut self, plain: bool) {
        let writes = std::mem::take(&mut self.open);
        if !writes.is_empty() {
            self.push(Epoch(0), writes, true, plain);
        }
    }

    /// An epoch ends: what was written in it.
    pub fn seal(&mut self, epoch: Epoch) -> Writes {
        if self.mode == Mode::Closed {
            return Writes::new();
        }
        self.mode = Mode::Held;
        let writes = std::mem::take(&mut self.open);
        self.push(epoch, writes.clone(), false, false);
        writes
    }

    /// All that is in memory alone, in order.
    pub fn held(&self) -> Writes {
        self.queue.iter().flat_map(|sealed| &sealed.writes).chain(&self.open).copied().collect()
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        let queued: usize = self.queue.iter().map(|sealed| sealed.writes.len()).sum();
        (queued + self.open.len()) * WEIGHT
    }

    /// All epochs up to this one may reach the images.
    pub fn commit(&mut self, epoch: Epoch) {
        self.queue.iter_mut().filter(|sealed| sealed.epoch <= epoch).for_each(|sealed| sealed.committed = true);
    }

    /// Everything may reach the images, from now on at once.
    pub fn go_through(&mut self) {
        self.queue.iter_mut().for_each(|sealed| sealed.committed = true);
        self.seal_open(self.mode == Mode::Through);
        (self.mode, self.alone) = (Mode::Through, true);
    }

    /// What is not committed does not reach them.
    pub fn discard(&mut self) {
        if self.mode == Mode::Through {
            // Nobody else has it.
            self.seal_open(true);
        }
        self.open.clear();
        self.queue.retain(|sealed| sealed.committed);
        (self.mode, self.alone, self.left) = (Mode::Closed, false, true);
    }

    /// Whether nobody rests on what becomes durable here.
    pub fn nobody_rests(&self) -> bool {
        match self.mode {
            Mode::Through => true,
            Mode::Held => false,
            Mode::Closed => self.left,
        }
    }

    /// A backup has an epoch whole.
    pub fn receive(&mut self, epoch: Epoch, writes: Writes) -> u64 {
        self.left = false;
        self.push(epoch, writes, true, false)
    }

    /// The guest is alone, and all that it has done up to now is wanted on the disk. Whether any of it is not on its way yet.
    pub fn hurry(&mut self) -> bool {
        if self.mode == Mode::Through {
            self.seal_open(true);
        }
        !self.queue.is_empty()
    }

    /// The newest of those at the front that may reach the disk.
    pub fn due(&self) -> Option<u64> {
        self.queue.iter().take_while(|sealed| sealed.committed).last().map(|sealed| sealed.number)
    }

    /// Something waits for what is on its way to the disk.
    pub fn waits(&self) -> bool {
        self.due().is_some()
    }

    /// The volumes as a guest reads them over these images.
    pub fn over(&self, images: &[Node]) -> Vec<Node> {
        let mut view = images.to_vec();
        for (block, node) in self.held() {
            view[block] = node;
        }
        view
    }
}
