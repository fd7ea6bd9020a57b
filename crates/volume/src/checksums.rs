//! Checksums of blocks, by which two hosts find out where their images differ.
//!
//! SHA-256, its first half: a guest's users choose what is in its blocks, and must not be able to make two that a
//! resync takes for equal.

use ring::digest::{SHA256, digest};

/// Bytes of a block.
pub const BLOCK: u64 = 64 << 10;
/// Bytes of a checksum.
pub const SUM: usize = 16;

/// The checksum of a block. One that is all zeros has a sum of zeros: most of a new volume needs no hashing.
pub fn sum(block: &[u8]) -> [u8; SUM] {
    let mut sum = [0; SUM];
    if block.iter().any(|&b| b != 0) {
        sum.copy_from_slice(&digest(&SHA256, block).as_ref()[..SUM]);
    }
    sum
}

/// How many blocks a volume of `size` bytes has.
pub fn blocks(size: u64) -> u64 {
    size.div_ceil(BLOCK)
}

/// The bits of the blocks whose sums differ from `ours`, lowest first. Blocks of which either side has no sum differ.
pub fn differing(ours: &[u8], theirs: &[u8]) -> Vec<u8> {
    let count = ours.len().max(theirs.len()).div_ceil(SUM);
    let mut bits = vec![0; count.div_ceil(8)];
    for block in 0..count {
        let of = |sums: &[u8]| sums.get(block * SUM..(block + 1) * SUM).map(<[u8]>::to_vec);
        if of(ours) != of(theirs) || of(ours).is_none() {
            bits[block / 8] |= 1 << (block % 8);
        }
    }
    bits
}

/// The numbers of the bits that are set.
pub fn set_bits(bits: &[u8]) -> impl Iterator<Item = u64> {
    bits.iter()
        .enumerate()
        .flat_map(|(at, byte)| (0..8).filter(move |n| byte >> n & 1 != 0).map(move |n| at as u64 * 8 + n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exactly_the_blocks_that_differ_are_named(blocks in prop::collection::vec((0..3u8, 0..3u8), 0..70)) {
            let sums = |of: fn(&(u8, u8)) -> u8| -> Vec<u8> { blocks.iter().flat_map(|b| sum(&[of(b); 512])).collect() };
            let named: Vec<u64> = set_bits(&differing(&sums(|b| b.0), &sums(|b| b.1))).collect();
            let wanted: Vec<u64> = (0..).zip(&blocks).filter(|(_, (a, b))| a != b).map(|(n, _)| n).collect();
            prop_assert_eq!(named, wanted);
        }

        #[test]
        fn what_a_side_has_no_sum_of_differs(ours in 0..40usize, theirs in 0..40usize) {
            let bits = differing(&vec![1; ours * SUM], &vec![1; theirs * SUM]);
            let missing: Vec<u64> = (ours.min(theirs) as u64..ours.max(theirs) as u64).collect();
            prop_assert_eq!(set_bits(&bits).collect::<Vec<_>>(), missing);
        }
    }

    #[test]
    fn zeros_are_known_without_hashing() {
        assert_eq!(sum(&[0; 4096]), [0; SUM]);
        assert_ne!(sum(&[1; 4096]), [0; SUM]);
    }
}
