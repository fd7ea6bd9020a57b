//! Blocks of a volume, as two hosts compare and send them.

use ninefold_replica::stream::PageRun;
use ninefold_volume::batch::{Batch, Op, put_write, put_zero};
use ninefold_volume::checksums::{self, BLOCK, SUM};
use ninefold_volume::{ServedVolume, VolumeError};

/// Appends the content of blocks to `out`, as operations; zeros as such.
pub fn encode(served: &ServedVolume, blocks: &[u64], out: &mut Vec<u8>) -> Result<(), VolumeError> {
    let mut buffer = [0; BLOCK as usize];
    for block in blocks {
        let at = block * BLOCK;
        let length = BLOCK.min(served.size() - at);
        let content = &mut buffer[..length as usize];
        served.read_image(at, content)?;
        if content.iter().all(|&b| b == 0) {
            put_zero(out, at, length, true);
        } else {
            put_write(out, at, content);
        }
    }
    Ok(())
}

/// The checksums of `count` blocks from `first` on, as they are in the image now; as many as the volume has.
pub fn checksums(served: &ServedVolume, first: u64, count: u64) -> Result<Vec<u8>, VolumeError> {
    let end = first.saturating_add(count).min(checksums::blocks(served.size()));
    let mut buffer = vec![0; BLOCK as usize];
    let mut all = Vec::with_capacity((end.saturating_sub(first)) as usize * SUM);
    for block in first..end {
        let at = block * BLOCK;
        let content = &mut buffer[..BLOCK.min(served.size() - at) as usize];
        served.read_image(at, content)?;
        all.extend_from_slice(&checksums::sum(content));
    }
    Ok(all)
}

/// The blocks that a checkpoint's operations on each volume touch.
pub fn touched(batches: &[Batch]) -> Vec<PageRun> {
    let blocks = |(volume, batch): (u16, &Batch)| {
        let run = move |op: &Op| {
            let (at, end) = op.range();
            let (first, behind) = (at / BLOCK, end.div_ceil(BLOCK));
            // A volume of 256 TiB has fewer.
            PageRun { block: volume, first, count: u32::try_from(behind.saturating_sub(first)).unwrap_or(u32::MAX) }
        };
        batch.ops().iter().map(run).collect::<Vec<_>>()
    };
    (0u16..).zip(batches).flat_map(blocks).collect()
}
