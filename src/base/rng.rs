//! Named seeded random streams: each use of chance draws from its own stream, so adding one never shifts another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The stream called `name` under `seed`. The same pair always gives the same numbers, on every platform.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// A pseudo-random permutation of `0..n` that needs no memory: a four-round Feistel network on the smallest
/// even-bit domain that covers `n`, walked until it lands inside (Black and Rogaway 2002, "Ciphers with
/// arbitrary finite domains"). Any position can be asked for at once, which is what makes resuming exact.
#[derive(Debug, Clone)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// The permutation of `0..n` that `seed` and `name` choose.
    pub fn new(n: u64, seed: u64, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(name.as_bytes());
        let digest = *hasher.finalize().as_bytes();
        let keys = std::array::from_fn(|i| {
            digest[8 * i..8 * i + 8].iter().rev().fold(0, |key, byte| (key << 8) | u64::from(*byte))
        });
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where position `i < n` goes.
    pub fn at(&self, i: u64) -> u64 {
        debug_assert!(i < self.n);
        let mask = (1u64 << self.half_bits) - 1;
        let mut x = i;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for key in self.keys {
                (left, right) = (right, left ^ (mix(right ^ key) & mask));
            }
            x = (left << self.half_bits) | right;
            if x < self.n {
                return x;
            }
        }
    }
}

/// The finaliser of `SplitMix64` (Steele, Lea and Flood 2014): a number without visible relation to `z`.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_visits_every_position_once() {
        for n in [1, 2, 3, 17, 1000, 4096] {
            let permutation = Permutation::new(n, 7, "order");
            let mut seen: Vec<u64> = (0..n).map(|i| permutation.at(i)).collect();
            assert!(n < 17 || seen != (0..n).collect::<Vec<_>>(), "the order is shuffled");
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
    }
}
