//! A host's disk with its images of the VM's volumes, and what a keeper knows of it: what survives the keeper, and what survives a loss of power.
//!
//! ```text
//!   guest, alone ──► cache ──flush──► disk          a flush that fails: the kernel forgets what it had to write out
//!   committed epochs, received ones ──write log───► disk, and cache
//! ```

use std::collections::BTreeSet;

use ninefold_core::disk_watch::Failure;

use crate::guest::{Node, Writes};

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Disk {
    /// What a loss of power leaves.
    pub durable: Vec<Node>,
    /// The images as they are read.
    pub cached: Vec<Node>,
    /// Written past the log, and not flushed.
    pub unsynced: BTreeSet<usize>,
    /// What a flush that failed has lost: it is read, and is not on the disk. It is noted there that this is so.
    pub lost: BTreeSet<usize>,
    /// The images are of no one moment, and it is noted.
    pub mixture: bool,
    /// It is noted that they may be behind what clients were told.
    pub behind: bool,
    /// By so many faults nothing can be written, or it has no room; and it does not answer.
    pub fails: u32,
    pub full: u32,
    pub hangs: u32,
}

impl Disk {
    pub fn new(blocks: usize) -> Self {
        Self { durable: vec![0; blocks], cached: vec![0; blocks], ..Self::default() }
    }

    pub fn write(&mut self, block: usize, node: Node) {
        self.cached[block] = node;
        self.unsynced.insert(block);
        // Written again, it is written out again.
        self.lost.remove(&block);
    }

    pub fn sync(&mut self) {
        for block in std::mem::take(&mut self.unsynced) {
            self.durable[block] = self.cached[block];
        }
    }

    pub fn loses_power(&mut self) {
        self.cached.clone_from(&self.durable);
        self.unsynced.clear();
        self.lost.clear();
    }

    /// All that is read is on the disk.
    pub fn rests(&self) -> bool {
        self.unsynced.is_empty() && self.lost.is_empty()
    }
}

/// Who waits for a flush.
#[derive(Debug)]
pub enum Flush {
    /// The gate: all that the guest has done until now.
    Gate,
    /// The guest, with what was on its volumes when it asked.
    Guest { generation: u64, disk: Writes },
    /// A session that begins, or what rests on a resync.
    Backup,
}

/// Of a keeper: the thread that writes, and what it knows.
#[derive(Debug, Default)]
pub struct Applier {
    /// Since when it waits for the disk.
    pub busy: Option<u64>,
    /// It writes up to this.
    pub upto: u64,
    pub alarm: u64,
    /// When it looks next.
    pub next: u64,
    /// All batches up to this one survive.
    pub logged: u64,
    pub failure: Option<Failure>,
    pub flushes: Vec<(bool, Flush)>,
    /// The gate's flush is owed.
    pub owes: bool,
    /// The images are whole when this batch is durable.
    pub whole: Option<u64>,
    pub note: Behind,
}

/// What is known of the note that the images may be behind.
#[derive(Debug, Default)]
pub struct Behind {
    pub wanted: bool,
    /// Since when nobody is told what the images do not get by themselves, and whether it has ended for good.
    pub over: Option<(u64, bool)>,
    /// An earlier keeper has left it.
    pub left: bool,
}
