//! Picking the few large entries out of rows of pre-activations as tiles go by.
//!
//! A tile of pre-activations is read once, right after it was computed; what stays are the entries above a limit
//! ([`Picked::above`]), or the `k` largest of a row ([`TopK`]).

/// What an entry must exceed to be kept.
#[derive(Debug, Clone, Copy)]
pub enum Limit<'a> {
    /// One number for all.
    Same(f32),
    /// A number a feature, as long as the tile.
    Each(&'a [f32]),
}

impl Limit<'_> {
    fn at(self, i: usize) -> f32 {
        match self {
            Self::Same(limit) => limit,
            Self::Each(limits) => limits[i],
        }
    }
}

/// Entries of one row that were picked, by ascending index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Picked {
    /// Which.
    pub indices: Vec<u32>,
    /// Their values.
    pub values: Vec<f32>,
}

impl Picked {
    /// Appends an entry after all others.
    pub fn push(&mut self, index: u32, value: f32) {
        self.indices.push(index);
        self.values.push(value);
    }

    /// Appends the entries of `pre + bias` above `limit`, numbered from `first`. NaN is above nothing.
    ///
    /// # Panics
    /// When `bias` or the limits are shorter than `pre`: a defect of the caller.
    pub fn above(&mut self, pre: &[f32], bias: &[f32], limit: Limit<'_>, first: u32) {
        assert!(bias.len() >= pre.len(), "a bias for each of {} entries", pre.len());
        if let Limit::Each(limits) = limit {
            assert!(limits.len() >= pre.len(), "a limit for each of {} entries", pre.len());
        }
        #[cfg(target_arch = "x86_64")]
        if let super::vector::Instructions::Avx512 = super::vector::instructions() {
            #[expect(unsafe_code, reason = "calls code for an instruction set that was detected")]
            // SAFETY: AVX-512 was detected; the assertions above hold every read inside its slice.
            return unsafe { above_avx512(pre, bias, limit, first, &mut self.indices, &mut self.values) };
        }
        for (i, (pre, bias)) in pre.iter().zip(bias).enumerate() {
            let value = pre + bias;
            if value > limit.at(i) {
                self.push(first + i as u32, value);
            }
        }
    }

    /// Whether so many more than `k` were picked that reducing them now saves time.
    pub fn overfull(&self, k: usize) -> bool {
        self.values.len() > (SLACK * k).max(LEAST_SLACK)
    }

    /// Keeps the `k` entries of which `size` is largest, of equal ones the first; gives the least size kept, where
    /// any was dropped.
    pub fn keep_largest(&mut self, k: usize, size: impl Fn(f32) -> f32) -> Option<f32> {
        if self.values.len() <= k {
            return None;
        }
        if k == 0 {
            self.clear();
            return Some(f32::INFINITY);
        }
        // Positions ascend with the index, so they break ties as the index would.
        let mut ranked: Vec<u64> = (0u32..).zip(&self.values).map(|(at, value)| rank(size(*value), at)).collect();
        ranked.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
        let least = value_of(ranked[k - 1]);
        ranked.truncate(k);
        ranked.sort_unstable_by_key(|ranked| !(*ranked as u32));
        for (to, ranked) in ranked.iter().enumerate() {
            let from = !(*ranked as u32) as usize;
            self.indices[to] = self.indices[from];
            self.values[to] = self.values[from];
        }
        self.indices.truncate(k);
        self.values.truncate(k);
        Some(least)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.indices.clear();
        self.values.clear();
    }
}

/// [`Picked::above`], 16 entries at a time.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "compression has no portable form that compiles to one instruction")]
#[target_feature(enable = "avx512f")]
unsafe fn above_avx512(
    pre: &[f32],
    bias: &[f32],
    limit: Limit<'_>,
    first: u32,
    indices: &mut Vec<u32>,
    values: &mut Vec<f32>,
) {
    use std::arch::x86_64::{
        __mmask16, _CMP_GT_OQ, _mm512_add_epi32, _mm512_add_ps, _mm512_mask_cmp_ps_mask, _mm512_maskz_compress_epi32,
        _mm512_maskz_compress_ps, _mm512_maskz_loadu_ps, _mm512_set_epi32, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_storeu_epi32, _mm512_storeu_ps,
    };
    const LANES: usize = 16;
    let n = pre.len();
    let start = values.len().min(indices.len());
    indices.truncate(start);
    values.truncate(start);
    // A whole vector is stored each time, of which only the kept entries count.
    indices.reserve(n + LANES);
    values.reserve(n + LANES);
    let mut filled = start;
    let steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for i in (0..n).step_by(LANES) {
        let present: __mmask16 = if n - i >= LANES { !0 } else { (1 << (n - i)) - 1 };
        // SAFETY: masked loads read only entries `i..n`, which all three slices hold. `filled` is at most `start + i`
        // before each store, so a store of 16 ends within the `n + 16` reserved after `start`.
        unsafe {
            let value = _mm512_add_ps(
                _mm512_maskz_loadu_ps(present, pre.as_ptr().add(i)),
                _mm512_maskz_loadu_ps(present, bias.as_ptr().add(i)),
            );
            let limits = match limit {
                Limit::Same(limit) => _mm512_set1_ps(limit),
                Limit::Each(limits) => _mm512_maskz_loadu_ps(present, limits.as_ptr().add(i)),
            };
            let kept = _mm512_mask_cmp_ps_mask::<_CMP_GT_OQ>(present, value, limits);
            if kept != 0 {
                let index = _mm512_add_epi32(steps, _mm512_set1_epi32((first + i as u32) as i32));
                _mm512_storeu_ps(values.as_mut_ptr().add(filled), _mm512_maskz_compress_ps(kept, value));
                _mm512_storeu_epi32(indices.as_mut_ptr().add(filled).cast(), _mm512_maskz_compress_epi32(kept, index));
                filled += kept.count_ones() as usize;
            }
        }
    }
    // SAFETY: `filled` entries of both were written above or lie before `start`.
    unsafe {
        indices.set_len(filled);
        values.set_len(filled);
    }
}

/// Entries that are gathered before they are reduced to the `k` largest, as a multiple of `k`.
const SLACK: usize = 4;
/// The least number of entries that are gathered before they are reduced.
const LEAST_SLACK: usize = 256;

/// The `k` largest entries of one row above a floor, while its tiles go by; of equal ones the lower index wins.
#[derive(Debug, Clone)]
pub struct TopK {
    k: usize,
    floor: f32,
    limit: f32,
    picked: Picked,
}

impl TopK {
    /// Nothing seen yet. Entries at or below `floor` never count.
    pub fn new(k: usize, floor: f32) -> Self {
        Self { k, floor, limit: floor, picked: Picked::default() }
    }

    /// Forgets the row.
    pub fn clear(&mut self) {
        self.limit = self.floor;
        self.picked.clear();
    }

    /// Takes the tile `pre + bias` of indices from `first` on; tiles come in order of index.
    pub fn offer(&mut self, pre: &[f32], bias: &[f32], first: u32) {
        self.picked.above(pre, bias, Limit::Same(self.limit), first);
        if self.picked.overfull(self.k) {
            self.reduce();
        }
    }

    /// The entries kept.
    pub fn finish(&mut self) -> &Picked {
        self.reduce();
        &self.picked
    }

    fn reduce(&mut self) {
        if let Some(least) = self.picked.keep_largest(self.k, |value| value) {
            self.limit = least;
        }
    }
}

/// A number that orders as `value` does, and among equal values against `position`.
pub fn rank(value: f32, position: u32) -> u64 {
    let bits = value.to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!position)
}

/// The value that [`rank`] was given.
pub fn value_of(rank: u64) -> f32 {
    let ordered = (rank >> 32) as u32;
    f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ops::gemm::tests::numbers;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_kept_lies_above_the_limit_and_nothing_else_does(n in 0usize..80, same in -1.0f32..1.0, each in any::<bool>()) {
            let (pre, bias, limits) = (numbers(n, "pre"), numbers(n, "bias"), numbers(n, "limits"));
            let limit = if each { Limit::Each(&limits) } else { Limit::Same(same) };
            let mut picked = Picked { indices: vec![7], values: vec![7.0] };
            picked.above(&pre, &bias, limit, 100);
            let naive: Vec<(u32, f32)> = (0..n)
                .map(|i| (100 + i as u32, pre[i] + bias[i]))
                .filter(|(i, v)| *v > limit.at(*i as usize - 100))
                .collect();
            let got: Vec<(u32, f32)> = picked.indices.into_iter().zip(picked.values).skip(1).collect();
            prop_assert_eq!(got, naive);
        }

        #[test]
        fn the_k_largest_are_those_of_a_whole_sort(n in 0usize..1500, k in 0usize..70, signed in any::<bool>()) {
            // Rounded, so that many entries are equal.
            let pre: Vec<f32> = numbers(n, "pre").iter().map(|x| (x * 20.0).round()).collect();
            let bias = vec![0.0; n];
            let floor = if signed { f32::NEG_INFINITY } else { 0.0 };
            let mut top = TopK::new(k, floor);
            for row in 0..2 {
                top.clear();
                for first in (0..n).step_by(100) {
                    let end = (first + 100).min(n);
                    top.offer(&pre[first..end], &bias[first..end], first as u32);
                }
                let mut order: Vec<u32> = (0..n as u32).filter(|&i| pre[i as usize] > floor).collect();
                order.sort_by(|a, b| pre[*b as usize].total_cmp(&pre[*a as usize]).then(a.cmp(b)));
                order.truncate(k);
                order.sort_unstable();
                let Picked { indices, values } = top.finish();
                prop_assert_eq!(indices, &order, "row {}", row);
                prop_assert!(indices.iter().zip(values).all(|(i, v)| pre[*i as usize] == *v));
            }
        }
    }

    #[test]
    fn ranks_order_as_values_do_and_give_them_back() {
        let values = [f32::NEG_INFINITY, -2.5, -0.5, 0.0, 1e-30, 0.5, 7.0, f32::INFINITY];
        for pair in values.windows(2) {
            assert!(rank(pair[0], 0) < rank(pair[1], 5));
        }
        assert!(rank(1.0, 3) > rank(1.0, 4));
        assert!(values.iter().all(|v| value_of(rank(*v, 9)) == *v));
    }

    #[test]
    fn nan_is_never_kept() {
        let mut picked = Picked::default();
        picked.above(&[f32::NAN; 20], &[0.0; 20], Limit::Same(f32::NEG_INFINITY), 0);
        assert_eq!(picked, Picked::default());
    }
}
