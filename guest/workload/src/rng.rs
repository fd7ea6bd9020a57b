//! A small seeded generator (xorshift64*, Vigna 2016): cheap under emulation, and the same everywhere.

/// Never zero inside, so it never sticks.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// Different seeds give unrelated sequences, also when the seeds are neighbours.
    pub fn new(seed: u64) -> Self {
        // One splitmix64 step spreads the seed.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`, which must not be 0. The bias is far below what a workload notices.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_sequence_and_in_range() {
        let (mut a, mut b, mut c) = (Rng::new(7), Rng::new(7), Rng::new(8));
        let mut differ = 0;
        for _ in 0..1000 {
            let x = a.next();
            assert_eq!(x, b.next());
            differ += u32::from(x != c.next());
            assert!(a.below(13) < 13 && b.below(13) < 13);
        }
        assert!(differ > 990);
    }
}
