//! What lies over an image: the newest content of bytes that were written and have not reached it yet.
//!
//! A map of extents that do not overlap. Each belongs to the batch that wrote it, so that a batch which has been applied
//! takes away what is still its own and nothing newer.

use std::collections::BTreeMap;

use crate::batch::{Batch, Data, Op};

#[derive(Debug, Clone)]
struct Extent {
    end: u64,
    content: Content,
    /// Of the batch that wrote it.
    number: u64,
}

#[derive(Debug, Clone)]
enum Content {
    Data(Data),
    Zero,
}

impl Content {
    /// The content from `skip` bytes on.
    fn from(&self, skip: u64, length: u64) -> Self {
        match self {
            Content::Data(data) => Content::Data(data.part(skip as usize, length as usize)),
            Content::Zero => Content::Zero,
        }
    }
}

/// A piece of an answer to a read.
#[derive(Debug)]
pub struct Piece {
    /// Where in the answer it goes.
    pub at: usize,
    pub length: usize,
    /// `None`: zeros.
    pub data: Option<Data>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Overlay {
    extents: BTreeMap<u64, Extent>,
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Puts an operation of batch `number` on top of all before.
    pub fn put(&mut self, op: &Op, number: u64) {
        let (start, end) = op.range();
        if start >= end {
            return;
        }
        self.clear(start, end, |_| true);
        let content = match op {
            Op::Write { data, .. } => Content::Data(data.clone()),
            Op::Zero { .. } => Content::Zero,
        };
        self.extents.insert(start, Extent { end, content, number });
    }

    /// Batch `number` and all before it are in the image: what they wrote and nothing newer has covered goes.
    pub fn remove(&mut self, batch: &Batch, number: u64) {
        for op in batch.ops() {
            let (start, end) = op.range();
            self.clear(start, end, |extent| extent.number <= number);
        }
    }

    /// Takes the bytes from `start` to `end` out of the extents that `which` names.
    fn clear(&mut self, start: u64, end: u64, which: impl Fn(&Extent) -> bool) {
        // The one before `start` may reach into the range.
        let first = self.extents.range(..start).next_back().filter(|(_, e)| e.end > start).map_or(start, |(&at, _)| at);
        let mut next = first;
        while next < end
            && let Some((&at, extent)) = self.extents.range(next..end).next()
        {
            next = extent.end;
            if !which(extent) {
                continue;
            }
            let Some(extent) = self.extents.remove(&at) else { break };
            if at < start {
                let content = extent.content.from(0, start - at);
                self.extents.insert(at, Extent { end: start, content, number: extent.number });
            }
            if extent.end > end {
                let content = extent.content.from(end - at, extent.end - end);
                self.extents.insert(end, Extent { end: extent.end, content, number: extent.number });
            }
        }
    }

    /// What of the `length` bytes from `at` on is here, in order. All else is in the image.
    pub fn pieces(&self, at: u64, length: usize) -> Vec<Piece> {
        let end = at + length as u64;
        if length == 0 {
            return Vec::new();
        }
        let first = self.extents.range(..=at).next_back().filter(|(_, e)| e.end > at).map_or(at, |(&start, _)| start);
        self.extents
            .range(first..end)
            .map(|(&start, extent)| {
                let (from, to) = (start.max(at), extent.end.min(end));
                let data = match extent.content.from(from - start, to - from) {
                    Content::Data(data) => Some(data),
                    Content::Zero => None,
                };
                Piece { at: (from - at) as usize, length: (to - from) as usize, data }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 300;

    fn op() -> impl Strategy<Value = Op> {
        (0..SIZE as u64, 1..80u64, any::<u8>(), any::<bool>()).prop_map(|(at, length, byte, zero)| {
            let length = length.min(SIZE as u64 - at);
            if zero {
                Op::Zero { at, length, unmap: false }
            } else {
                Op::Write { at, data: (0..length as u8).map(|i| i.wrapping_mul(7) ^ byte).collect::<Vec<_>>().into() }
            }
        })
    }

    fn play(image: &mut [u8], op: &Op) {
        let (start, end) = op.range();
        let place = &mut image[start as usize..end as usize];
        match op {
            Op::Write { data, .. } => place.copy_from_slice(data.as_ref()),
            Op::Zero { .. } => place.fill(0),
        }
    }

    fn seen(image: &[u8], overlay: &Overlay, at: usize, length: usize) -> Vec<u8> {
        let mut answer = image[at..at + length].to_vec();
        let mut last = 0;
        for piece in overlay.pieces(at as u64, length) {
            assert!(piece.at >= last && piece.length > 0, "in order, none empty");
            last = piece.at + piece.length;
            match piece.data {
                Some(data) => answer[piece.at..last].copy_from_slice(data.as_ref()),
                None => answer[piece.at..last].fill(0),
            }
        }
        answer
    }

    proptest! {
        /// Batches are written one after the other and applied later, some of them, in order: at any time image and
        /// overlay together are what was written.
        #[test]
        fn image_and_overlay_are_what_was_written(
            batches in prop::collection::vec((prop::collection::vec(op(), 0..6), any::<bool>()), 1..12),
            at in 0..SIZE,
            length in 0..SIZE,
        ) {
            let mut truth = vec![0x55; SIZE];
            let mut image = truth.clone();
            let mut overlay = Overlay::default();
            let mut waiting: Vec<(u64, Batch)> = Vec::new();
            let length = length.min(SIZE - at);
            for (number, (ops, apply)) in (1u64..).zip(batches) {
                for op in &ops {
                    play(&mut truth, op);
                    overlay.put(op, number);
                }
                waiting.push((number, ops.into_iter().collect()));
                if apply {
                    let (number, batch) = waiting.remove(0);
                    batch.ops().iter().for_each(|op| play(&mut image, op));
                    overlay.remove(&batch, number);
                }
                prop_assert_eq!(seen(&image, &overlay, at, length), &truth[at..at + length]);
                prop_assert_eq!(seen(&image, &overlay, 0, SIZE), &truth[..]);
            }
            for (number, batch) in waiting {
                batch.ops().iter().for_each(|op| play(&mut image, op));
                overlay.remove(&batch, number);
            }
            prop_assert!(overlay.is_empty());
            prop_assert_eq!(image, truth);
        }
    }
}
