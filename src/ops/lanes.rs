//! Elementwise work of a transformer in single sweeps: rounding, exponentials, activations, norms, rotation, softmax.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use super::threads;
use super::vector::{add_scaled, sum_lanes, vectorised};

/// Numbers worked on at once.
pub(super) const LANES: usize = 16;

/// The nonlinearities of transformer MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of it: `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`.
    GeluTanh,
    /// `x · σ(1.702 x)`
    QuickGelu,
    /// `x · σ(x)`
    Silu,
    /// `max(x, 0)`
    Relu,
}

/// bf16 bits nearest to `x`, ties to even; NaN stays NaN.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// `e^x` within 2 units in the last place, by Cephes' reduction and polynomial; arguments are clamped to `[−87.3, 88.7]`,
/// so the result is neither zero nor infinite. Fused multiply-adds are written out: the processors that lack them
/// compute the same bits, slowly.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.3;
    const HIGHEST: f32 = 88.7;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to whole numbers
    // In this order a comparison is one instruction, and what is not a number stays so.
    let clamped = if LOWEST > x { LOWEST } else { x };
    let clamped = if HIGHEST < clamped { HIGHEST } else { clamped };
    let n = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let power = (n.to_bits() << 23).wrapping_add(127 << 23);
    let n = n - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4f32;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p.mul_add(r, c);
    }
    (p.mul_add(r * r, r) + 1.0) * f32::from_bits(power)
}

/// `1 / x` within 1e-7 for `x` from 1 to 2^126: Newton's iteration from a guess on the exponent, which takes a third of
/// the time of dividing sixteen lanes.
#[inline(always)]
fn reciprocal(x: f32) -> f32 {
    let mut y = f32::from_bits(0x7ef3_11c3u32.wrapping_sub(x.to_bits()));
    for _ in 0..3 {
        y *= (-x).mul_add(y, 2.0);
    }
    y
}

/// `σ(x) = 1 / (1 + e^−x)`
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    // Below −80 the result is as good as zero, and above it the reciprocal's range ends.
    let x = if x < -80.0 { -80.0 } else { x };
    reciprocal(1.0 + exp(-x))
}

/// `erfc(x)` with a relative error below 1.2e-7 (Press et al., Numerical Recipes, 2nd ed., section 6.2).
#[inline(always)]
fn erfc(x: f32) -> f32 {
    let z = x.abs();
    let t = reciprocal(1.0 + 0.5 * z);
    let mut p = 0.170_872_77f32;
    for c in [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = p.mul_add(t, c);
    }
    let tail = t * exp(p - z * z);
    if x < 0.0 { 2.0 - tail } else { tail }
}

/// `a[0], b[0], a[1], b[1], …`, as far as the shorter goes.
#[inline]
pub(super) fn interleave(a: &[u16], b: &[u16], out: &mut [u16; 32]) {
    for (out, (&a, &b)) in out.as_chunks_mut::<2>().0.iter_mut().zip(a.iter().zip(b)) {
        *out = [a, b];
    }
}

/// One value through an activation.
#[inline(always)]
fn act(x: f32, activation: Activation) -> f32 {
    match activation {
        Activation::Gelu => 0.5 * x * erfc(-x * std::f32::consts::FRAC_1_SQRT_2),
        // ½(1 + tanh y) = σ(2y)
        Activation::GeluTanh => x * sigmoid(1.595_769_2 * (x + 0.044_715 * x * x * x)),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Silu => x * sigmoid(x),
        Activation::Relu => x.max(0.0),
    }
}

/// Runs `$body` for a constant activation, so that loops do not branch on it.
macro_rules! for_activation {
    ($activation:expr, $name:ident => $body:expr) => {
        match $activation {
            Activation::Gelu => {
                const $name: Activation = Activation::Gelu;
                $body
            }
            Activation::GeluTanh => {
                const $name: Activation = Activation::GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                const $name: Activation = Activation::QuickGelu;
                $body
            }
            Activation::Silu => {
                const $name: Activation = Activation::Silu;
                $body
            }
            Activation::Relu => {
                const $name: Activation = Activation::Relu;
                $body
            }
        }
    };
}

vectorised! {
    /// Rounds to the nearest bf16, ties to even.
    pub(super) fn round(from: &[f32], to: &mut [u16]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = bf16_bits(from);
        }
    }
}

vectorised! {
    fn is_bf16(x: &[f32]) -> bool {
        x.iter().fold(0, |low, x| low | x.to_bits() & 0xffff) == 0
    }
}

vectorised! {
    fn widen(from: &[u16], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from) << 16);
        }
    }
}

/// The bf16 bits of `x`, if every value has exactly those.
pub fn halved(x: &[f32]) -> Option<Vec<u16>> {
    is_bf16(x).then(|| x.iter().map(|x| (x.to_bits() >> 16) as u16).collect())
}

/// bf16 bits as f32, over all threads.
pub fn widened(bits: &[u16]) -> Vec<f32> {
    let mut out = vec![0.0; bits.len()];
    threads::split_mut(&mut out, LANES, |first, out| widen(&bits[first * LANES..], out));
    out
}

vectorised! {
    /// Applies an activation in place.
    pub fn activate(x: &mut [f32], activation: Activation) {
        for_activation!(activation, A => for x in x.iter_mut() {
            *x = act(*x, A);
        });
    }
}

vectorised! {
    /// `pre = act(pre) ⊙ linear`
    pub fn gate(pre: &mut [f32], linear: &[f32], activation: Activation) {
        for_activation!(activation, A => for (pre, &linear) in pre.iter_mut().zip(linear) {
            *pre = act(*pre, A) * linear;
        });
    }
}

/// `act(pre)`, times `linear` where there is one, over all threads.
pub fn activated(pre: &[f32], linear: Option<&[f32]>, activation: Activation) -> Vec<f32> {
    let mut out = pre.to_vec();
    threads::split_mut(&mut out, LANES, |first, out| match linear {
        Some(linear) => gate(out, &linear[first * LANES..], activation),
        None => activate(out, activation),
    });
    out
}

vectorised! {
    /// `act(left half) ⊙ right half` of each row, rounded to bf16.
    pub(super) fn gate_block(rows: &[[f32; 2 * LANES]; 32], activation: Activation) -> [[u16; LANES]; 32] {
        let mut out = [[0; LANES]; 32];
        for_activation!(activation, A => for (out, row) in out.iter_mut().zip(rows) {
            for j in 0..LANES {
                out[j] = bf16_bits(act(row[j], A) * row[LANES + j]);
            }
        });
        out
    }
}

/// Sums over 16 lanes, then over the lanes in a fixed tree.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    sum_lanes(lanes)
}

/// What a norm does to a row besides its statistics.
#[derive(Debug, Clone, Copy)]
pub struct NormRow<'a> {
    /// Subtract the mean first.
    pub centre: bool,
    /// Added under the root.
    pub eps: f32,
    /// Multiplied after division, `[d]`.
    pub gain: Option<&'a [f32]>,
    /// Added last, `[d]`.
    pub bias: Option<&'a [f32]>,
}

vectorised! {
    /// LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) of one row.
    pub fn norm(x: &[f32], out: &mut [f32], norm: NormRow<'_>) {
        let n = x.len() as f32;
        let mean = if norm.centre { sum(x, |x| x) / n } else { 0.0 };
        let variance = sum(x, |x| (x - mean) * (x - mean)) / n;
        let scale = 1.0 / (variance + norm.eps).sqrt();
        for (out, &x) in out.iter_mut().zip(x) {
            *out = (x - mean) * scale;
        }
        if let Some(gain) = norm.gain {
            for (out, &gain) in out.iter_mut().zip(gain) {
                *out *= gain;
            }
        }
        if let Some(bias) = norm.bias {
            for (out, &bias) in out.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
}

/// `x + y`, over all threads.
pub fn sum_of(x: &[f32], y: &[f32]) -> Vec<f32> {
    if threads::alone() {
        return x.iter().zip(y).map(|(x, y)| x + y).collect();
    }
    let mut out = x.to_vec();
    threads::split_mut(&mut out, LANES, |first, out| add_scaled(out, 1.0, &y[first * LANES..]));
    out
}

/// [`norm`] of every row of `x`, over all threads.
pub fn norms(x: &[f32], width: usize, row: NormRow<'_>) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    if width > 0 {
        threads::split_mut(&mut out, width, |first, out| {
            for (x, out) in x[first * width..].chunks_exact(width).zip(out.chunks_exact_mut(width)) {
                norm(x, out, row);
            }
        });
    }
    out
}

vectorised! {
    /// Rotates the first `2 · cos.len()` values of each head of a row, their halves against each other (Su et al. 2021).
    pub fn rotate(row: &mut [f32], d_head: usize, cos: &[f32], sin: &[f32]) {
        let half = cos.len();
        for head in row.chunks_exact_mut(d_head) {
            let (first, rest) = head.split_at_mut(half);
            for (((a, b), &cos), &sin) in first.iter_mut().zip(rest).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// [`rotate`] of every row of `x` by the tables of its position, over all threads: rows are `width` wide, the tables
/// have a row of `half` angles for each position, and `x` repeats those positions once a sequence.
pub fn rotated(x: &[f32], width: usize, d_head: usize, half: usize, cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let mut out = x.to_vec();
    if width > 0 && half > 0 {
        let positions = cos.len() / half;
        threads::split_mut(&mut out, width, |first, out| {
            for (i, row) in out.chunks_exact_mut(width).enumerate() {
                let at = (first + i) % positions * half;
                rotate(row, d_head, &cos[at..at + half], &sin[at..at + half]);
            }
        });
    }
    out
}

vectorised! {
    /// `scores = cap · tanh(scores / cap)`
    pub fn soft_cap(scores: &mut [f32], cap: f32) {
        let stretch = 2.0 / cap;
        for x in scores.iter_mut() {
            // tanh y = 2σ(2y) − 1
            *x = cap * (2.0 * sigmoid(*x * stretch) - 1.0);
        }
    }
}

vectorised! {
    /// `e^(x − max)` in place; returns the sum of the results.
    pub fn exponentials(scores: &mut [f32]) -> f32 {
        let (whole, rest) = scores.as_chunks_mut::<LANES>();
        // The rest goes through all lanes too: fifteen scores one by one would take as long as a row of them.
        let mut last = [f32::NEG_INFINITY; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let mut lanes = last;
        for chunk in &*whole {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
            }
            half /= 2;
        }
        let max = lanes[0];
        let mut sums = [0.0f32; LANES];
        for chunk in whole {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = exp(*x - max);
                *sum += *x;
            }
        }
        for x in &mut last {
            *x = exp(*x - max);
        }
        for (i, (sum, &x)) in sums.iter_mut().zip(&last).enumerate() {
            *sum += if i < rest.len() { x } else { 0.0 };
        }
        rest.copy_from_slice(&last[..rest.len()]);
        sum_lanes(sums)
    }
}

vectorised! {
    /// Multiplies in place.
    pub fn scale(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
