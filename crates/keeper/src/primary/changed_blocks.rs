//! Which blocks of the volumes are written while they are watched.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ninefold_volume::Batch;
use ninefold_volume::checksums::{self, BLOCK, set_bits};
use ninefold_volume::served::Mark;

use crate::devices::disks::Disks;

/// The blocks of one volume that the backup may have otherwise. A bit for each: 2 MiB for 1 TiB.
#[derive(Debug)]
pub struct Blocks {
    count: u64,
    bits: Mutex<Vec<u8>>,
}

impl Blocks {
    /// None yet, of a volume of so many bytes.
    pub(crate) fn of(size: u64) -> Self {
        let count = checksums::blocks(size);
        let bytes = usize::try_from(count.div_ceil(8)).unwrap_or(usize::MAX);
        Self { count, bits: Mutex::new(vec![0; bytes]) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many blocks are in it.
    pub(crate) fn len(&self) -> u64 {
        self.lock().iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Puts in the blocks from `first` up to the one before `end`. Those that the volume does not have are ignored.
    pub(crate) fn put(&self, first: u64, end: u64) {
        let mut bits = self.lock();
        let end = end.min(self.count);
        let mut at = first;
        while at < end {
            let byte = (at / 8) as usize;
            if at.is_multiple_of(8) && end - at >= 8 {
                let whole = ((end - at) / 8) as usize;
                bits[byte..byte + whole].fill(!0);
                at += whole as u64 * 8;
            } else {
                bits[byte] |= 1 << (at % 8);
                at += 1;
            }
        }
    }

    /// Puts in those of another set of the same volume.
    pub(crate) fn put_all(&self, others: &Blocks) {
        let others = others.lock().clone();
        self.lock().iter_mut().zip(others).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// Takes all out, in order.
    pub(crate) fn take(&self) -> Vec<u64> {
        let mut bits = self.lock();
        let empty = vec![0; bits.len()];
        let taken = std::mem::replace(&mut *bits, empty);
        drop(bits);
        set_bits(&taken).collect()
    }
}

impl Mark for Blocks {
    fn after(&self, at: u64, length: u64) {
        if length > 0 {
            self.put(at / BLOCK, (at + length).div_ceil(BLOCK));
        }
    }
}

/// Blocks of every volume that are written, or that are still to be sent. Shared; what is written is noted until the last owner
/// has gone.
#[derive(Debug, Clone, Default)]
pub struct ChangedBlocks(Option<Arc<Marks>>);

#[derive(Debug)]
struct Marks {
    disks: Arc<Disks>,
    blocks: Vec<Arc<Blocks>>,
}

impl ChangedBlocks {
    /// What is written to the volumes from now on.
    pub fn written(disks: Arc<Disks>) -> Self {
        let blocks: Vec<_> = disks.iter().map(|d| Arc::new(Blocks::of(d.served.size()))).collect();
        for (disk, blocks) in disks.iter().zip(&blocks) {
            disk.served.add_mark(Arc::clone(blocks) as Arc<dyn Mark>);
        }
        Self(Some(Arc::new(Marks { disks, blocks })))
    }

    pub(crate) fn blocks(&self) -> &[Arc<Blocks>] {
        self.0.as_ref().map_or(&[], |marks| &marks.blocks)
    }

    /// What a target that joins is to get of each volume: blocks that are left, and what the guest did in epochs that may not be
    /// in the image yet, oldest first. To be called while the guest is stopped.
    pub fn join(&self, disks: &Disks) -> (Vec<Vec<u64>>, Vec<Vec<Arc<Batch>>>) {
        // In this order: what reaches the image in between is in both.
        let queued = disks.queued();
        (self.blocks().iter().map(|b| b.take()).collect(), queued)
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        for (disk, blocks) in self.disks.iter().zip(&self.blocks) {
            disk.served.remove_mark(&(Arc::clone(blocks) as Arc<dyn Mark>));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_in_order_and_marked_whole() {
        let blocks = Blocks::of(100 * BLOCK - 1);
        blocks.after(BLOCK - 1, 2);
        blocks.after(10 * BLOCK, BLOCK);
        blocks.after(5, 0);
        blocks.after(99 * BLOCK, 5 * BLOCK);
        assert_eq!((blocks.len(), blocks.take()), (4, vec![0, 1, 10, 99]));
        assert_eq!((blocks.len(), blocks.take()), (0, vec![]));
        let more = Blocks::of(100 * BLOCK);
        more.put(3, 41);
        blocks.put(40, 42);
        blocks.put_all(&more);
        assert_eq!(blocks.take(), (3..42).collect::<Vec<_>>());
        assert_eq!(more.len(), 38);
    }
}
