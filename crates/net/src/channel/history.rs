//! The last bytes that were released.

/// A ring of bytes; allocates nothing after it was made.
pub(super) struct History {
    ring: Box<[u8]>,
    /// Where the next byte goes.
    at: usize,
    len: usize,
}

impl History {
    pub(super) fn new(size: usize) -> Self {
        Self { ring: vec![0; size].into_boxed_slice(), at: 0, len: 0 }
    }

    /// How many bytes it remembers at most.
    pub(super) fn size(&self) -> usize {
        self.ring.len()
    }

    pub(super) fn clear(&mut self) {
        (self.at, self.len) = (0, 0);
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        let size = self.ring.len();
        let bytes = &bytes[bytes.len().saturating_sub(size)..];
        let (to_end, to_begin) = bytes.split_at(bytes.len().min(size - self.at));
        self.ring[self.at..self.at + to_end.len()].copy_from_slice(to_end);
        self.ring[..to_begin.len()].copy_from_slice(to_begin);
        self.at = (self.at + bytes.len()).checked_rem(size).unwrap_or(0);
        self.len = (self.len + bytes.len()).min(size);
    }

    /// The bytes in one or two pieces, oldest first.
    pub(super) fn each(&self, mut sink: impl FnMut(&[u8])) {
        let before = self.len.min(self.at);
        if self.len > before {
            let end = self.ring.len();
            sink(&self.ring[end - (self.len - before)..]);
        }
        if before > 0 {
            sink(&self.ring[self.at - before..self.at]);
        }
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        self.each(|piece| bytes.extend_from_slice(piece));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_end_of_what_was_said(
            size in 0..50usize,
            said in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20),
        ) {
            let mut history = History::new(size);
            let mut all = Vec::new();
            for bytes in said {
                history.append(&bytes);
                all.extend(bytes);
                prop_assert_eq!(history.to_vec(), &all[all.len().saturating_sub(size)..]);
            }
        }
    }
}
