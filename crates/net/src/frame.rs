//! QEMU's framing of Ethernet frames on a byte stream.
//!
//! `-netdev stream` (and `socket`) puts the length of each frame before it as a 32-bit big-endian number (QEMU,
//! `net/stream.c` and `net_fill_rstate` in `net/net.c`).

/// Longest frame on the stream, bytes: QEMU's `NET_BUFSIZE` (`include/net/net.h`: 4096 + 65536).
pub const MAX_FRAME: usize = 4096 + 65536;

/// An Ethernet header: two addresses and the type.
pub const ETHERNET_HEADER: usize = 14;

/// The length before each frame.
pub const LENGTH: usize = 4;

/// Bytes asked for in one read of the stream.
const READ_SIZE: usize = 128 << 10;

/// The stream cannot be followed any further: where the next frame begins is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {length} bytes on QEMU's network socket; at most {MAX_FRAME} are possible")]
pub struct FrameTooLong {
    /// The length claimed.
    pub length: u32,
}

/// Splits a byte stream into frames. Its memory is fixed.
#[derive(Debug)]
pub struct Splitter {
    buf: Box<[u8]>,
    filled: usize,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Splitter {
    /// At the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { buf: vec![0; READ_SIZE + LENGTH + MAX_FRAME].into_boxed_slice(), filled: 0 }
    }

    /// Forgets what came: a new stream begins.
    pub fn reset(&mut self) {
        self.filled = 0;
    }

    /// Where to read the next bytes of the stream to; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        let end = (self.filled + READ_SIZE).min(self.buf.len());
        &mut self.buf[self.filled..end]
    }

    /// `n` bytes were read to [`Splitter::space`]. Hands every whole frame to `sink`, without its length; frames shorter
    /// than an Ethernet header too.
    ///
    /// # Errors
    /// The stream claims a frame longer than [`MAX_FRAME`]. Frames before it were handed out.
    pub fn advance(&mut self, n: usize, mut sink: impl FnMut(&[u8])) -> Result<(), FrameTooLong> {
        self.filled = (self.filled + n).min(self.buf.len());
        let mut rest = &self.buf[..self.filled];
        let outcome = loop {
            let Some((length, after)) = rest.split_first_chunk::<LENGTH>() else {
                break Ok(());
            };
            let length = u32::from_be_bytes(*length);
            if length as usize > MAX_FRAME {
                break Err(FrameTooLong { length });
            }
            let Some((frame, after)) = after.split_at_checked(length as usize) else {
                break Ok(());
            };
            sink(frame);
            rest = after;
        };
        let (from, left) = (self.filled - rest.len(), rest.len());
        self.buf.copy_within(from..self.filled, 0);
        self.filled = left;
        outcome
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|f| [&(f.len() as u32).to_be_bytes()[..], f].concat()).collect()
    }

    fn feed(splitter: &mut Splitter, mut bytes: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, FrameTooLong> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let space = splitter.space();
            let n = piece.min(space.len()).min(bytes.len());
            space[..n].copy_from_slice(&bytes[..n]);
            splitter.advance(n, |f| frames.push(f.to_vec()))?;
            bytes = &bytes[n..];
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..40),
            piece in 1..2000usize,
        ) {
            prop_assert_eq!(feed(&mut Splitter::new(), &stream(&frames), piece).unwrap(), frames);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..4000), piece in 1..500usize) {
            let _ = feed(&mut Splitter::new(), &bytes, piece);
        }
    }

    #[test]
    fn the_longest_frame_fits_and_a_longer_one_is_refused() {
        let frames = vec![vec![7; MAX_FRAME]; 5];
        for piece in [1000, MAX_FRAME, usize::MAX] {
            assert_eq!(feed(&mut Splitter::new(), &stream(&frames), piece).unwrap(), frames);
        }
        let long = (MAX_FRAME as u32 + 1).to_be_bytes();
        let refused = feed(&mut Splitter::new(), &long, 4).unwrap_err();
        assert_eq!(refused.length as usize, MAX_FRAME + 1);
    }
}
