//! Inner loops over contiguous `f32`s, compiled for AVX-512, AVX2 and the baseline, chosen at run time.
//!
//! The loops are plain Rust that the compiler vectorises; only the instruction set differs between the copies.
//! Sums run over [`LANES`] partial sums and products are rounded before they are added (no fused multiply-add, which
//! memory-bound loops would not feel), so every copy gives the same bits.

#![expect(clippy::inline_always, reason = "a body must be inlined to be compiled for its caller's instruction set")]

use super::sparse::Element;

/// Partial sums of a reduction.
const LANES: usize = 16;

/// Defines a function whose body is compiled once per instruction set, and picks one when called.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }

                match crate::ops::vector::instructions() {
                    #[expect(unsafe_code, reason = "calls code for an instruction set that was detected")]
                    // SAFETY: `instructions` found every enabled feature on this processor.
                    crate::ops::vector::Instructions::Avx512 => return unsafe { avx512($($arg),*) },
                    #[expect(unsafe_code, reason = "calls code for an instruction set that was detected")]
                    // SAFETY: `instructions` found every enabled feature on this processor.
                    crate::ops::vector::Instructions::Avx2 => return unsafe { avx2($($arg),*) },
                    crate::ops::vector::Instructions::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use vectorised;

/// What the processor offers beyond the compilation target.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) enum Instructions {
    Avx512,
    Avx2,
    Baseline,
}

/// The instruction set of this processor; the standard library caches the detection.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn instructions() -> Instructions {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        Instructions::Baseline
    } else if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
        Instructions::Avx512
    } else {
        Instructions::Avx2
    }
}

/// Work whose [`Work::run`] is `#[inline(always)]`, with all that it calls, so that [`widest`] can compile it for
/// several instruction sets.
pub trait Work {
    /// What it gives.
    type Output;

    /// Does it.
    fn run(self) -> Self::Output;
}

/// Runs `work`, compiled for the widest instruction set of this processor.
pub fn widest<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
        fn avx512<W: Work>(work: W) -> W::Output {
            work.run()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<W: Work>(work: W) -> W::Output {
            work.run()
        }
        match instructions() {
            #[expect(unsafe_code, reason = "calls code for an instruction set that was detected")]
            // SAFETY: `instructions` found every enabled feature on this processor.
            Instructions::Avx512 => return unsafe { avx512(work) },
            #[expect(unsafe_code, reason = "calls code for an instruction set that was detected")]
            // SAFETY: `instructions` found every enabled feature on this processor.
            Instructions::Avx2 => return unsafe { avx2(work) },
            Instructions::Baseline => {}
        }
    }
    work.run()
}

/// Adds the lanes pairwise.
#[inline(always)]
pub(super) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `Σ x[i]·y[i]`, inlined into its caller's instruction set.
#[inline(always)]
pub(super) fn dot_inline<T: Element>(x: &[T], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| x.widen() * y).sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += x[i].widen() * y[i];
        }
    }
    sum_lanes(lanes) + rest
}

/// Four dot products with one `y`, so that it is loaded once.
#[inline(always)]
pub(super) fn dot4_inline<T: Element>(x: [&[T]; 4], y: &[f32]) -> [f32; 4] {
    let whole = y.len() - y.len() % LANES;
    let mut lanes = [[0.0f32; LANES]; 4];
    let [a, b, c, d] = x.map(|x| x[..y.len()].chunks_exact(LANES));
    for ((((a, b), c), d), y) in a.zip(b).zip(c).zip(d).zip(y.chunks_exact(LANES)) {
        for i in 0..LANES {
            lanes[0][i] += a[i].widen() * y[i];
            lanes[1][i] += b[i].widen() * y[i];
            lanes[2][i] += c[i].widen() * y[i];
            lanes[3][i] += d[i].widen() * y[i];
        }
    }
    let mut sums = lanes.map(sum_lanes);
    for (sum, x) in sums.iter_mut().zip(x) {
        *sum += x[whole..y.len()].iter().zip(&y[whole..]).map(|(x, y)| x.widen() * y).sum::<f32>();
    }
    sums
}

/// `y += a·x`, inlined into its caller's instruction set.
#[inline(always)]
pub(super) fn add_scaled_inline<T: Element>(y: &mut [f32], a: f32, x: &[T]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x.widen();
    }
}

/// `y += Σ a[i]·x[i]` over four rows, so that `y` is loaded and stored once.
#[inline(always)]
pub(super) fn add_scaled4_inline<T: Element>(y: &mut [f32], a: [f32; 4], x: [&[T]; 4]) {
    let n = y.len();
    let [p, q, r, s] = x.map(|x| &x[..n]);
    for i in 0..n {
        y[i] = y[i] + a[0] * p[i].widen() + a[1] * q[i].widen() + a[2] * r[i].widen() + a[3] * s[i].widen();
    }
}

/// Asks for the line at `at` ahead of its use.
#[inline(always)]
fn fetch_ahead<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "a hint to the processor")]
    // SAFETY: a prefetch touches nothing, whatever its address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks for all lines of `row` ahead of their use.
#[inline(always)]
pub(super) fn fetch_row<T>(row: &[T]) {
    const LINE: usize = 64;
    for at in (0..size_of_val(row)).step_by(LINE) {
        fetch_ahead(row.as_ptr().cast::<u8>().wrapping_add(at));
    }
}

vectorised! {
    /// The dot products of `y` with every row of `rows`, four at a time.
    pub fn dots(rows: &[f32], y: &[f32], out: &mut [f32]) {
        let k = y.len();
        let (fours, rest) = out.as_chunks_mut::<4>();
        let (rows_of_fours, rows_of_rest) = rows.split_at(fours.len() * 4 * k);
        for (out, rows) in fours.iter_mut().zip(rows_of_fours.chunks_exact(4 * k)) {
            let (ab, cd) = rows.split_at(2 * k);
            let ((a, b), (c, d)) = (ab.split_at(k), cd.split_at(k));
            *out = dot4_inline([a, b, c, d], y);
        }
        for (out, row) in rest.iter_mut().zip(rows_of_rest.chunks_exact(k)) {
            *out = dot4_inline([row; 4], y)[0];
        }
    }
}

vectorised! {
    /// [`dots`] with rows of bf16 bits, in the same order of sums. The next four rows are fetched meanwhile, since the
    /// processor does not see four interleaved streams coming.
    pub(super) fn dots_of_bf16(rows: &[u16], y: &[f32], out: &mut [f32]) {
        let k = y.len();
        let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let (ys, y_rest) = y.as_chunks::<LANES>();
        for (out, rows) in out.chunks_mut(4).zip(rows.chunks(4 * k)) {
            let mut lanes = [[0.0f32; LANES]; 4];
            let last = rows.len() / k - 1;
            let rows: [(&[[u16; LANES]], &[u16]); 4] =
                std::array::from_fn(|r| rows[r.min(last) * k..(r.min(last) + 1) * k].as_chunks::<LANES>());
            let [a, b, c, d] = rows.map(|(whole, _)| whole);
            for (((((i, a), b), c), d), y) in a.iter().enumerate().zip(b).zip(c).zip(d).zip(ys) {
                if i % 2 == 0 {
                    for row in [a, b, c, d] {
                        fetch_ahead(row.as_ptr().wrapping_add(4 * k));
                    }
                }
                for i in 0..LANES {
                    lanes[0][i] += widen(a[i]) * y[i];
                    lanes[1][i] += widen(b[i]) * y[i];
                    lanes[2][i] += widen(c[i]) * y[i];
                    lanes[3][i] += widen(d[i]) * y[i];
                }
            }
            for ((out, lanes), (_, rest)) in out.iter_mut().zip(lanes).zip(rows) {
                *out = sum_lanes(lanes) + rest.iter().zip(y_rest).map(|(&bits, y)| widen(bits) * y).sum::<f32>();
            }
        }
    }
}

vectorised! {
    /// `Σ x[i]·y[i]` over the shorter length.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 {
        let n = x.len().min(y.len());
        dot_inline(&x[..n], &y[..n])
    }
}

vectorised! {
    /// `y += a·x`.
    pub fn add_scaled(y: &mut [f32], a: f32, x: &[f32]) {
        add_scaled_inline(y, a, x);
    }
}

/// `Σ x[i]²`.
pub fn squared_norm(x: &[f32]) -> f32 {
    dot(x, x)
}

/// The scalars of one Adam update (Kingma and Ba 2015), bias corrections included, as PyTorch applies them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Multiplies every gradient: the clipping factor.
    pub gradient_scale: f32,
    /// β₁.
    pub beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// Learning rate over `1 − β₁ᵗ`.
    pub step_size: f32,
    /// `1 / √(1 − β₂ᵗ)`.
    pub root_correction: f32,
    /// ε, added to the corrected root.
    pub epsilon: f32,
}

vectorised! {
    /// One Adam update of `w` with first moments `m`, second moments `v` and gradient `g`, in one pass.
    pub fn adam(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], step: AdamStep) {
        let AdamStep { gradient_scale, beta1, beta2, step_size, root_correction, epsilon } = step;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * gradient_scale;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *w -= step_size * *m / (v.sqrt() * root_correction + epsilon);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gemm::tests::numbers;

    #[test]
    fn vector_loops_equal_plain_ones_at_every_length() {
        for n in [0, 1, 15, 16, 17, 33, 100] {
            let (x, y) = (numbers(n, "x"), numbers(n, "y"));
            let plain: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            assert!((f64::from(dot(&x, &y)) - plain).abs() < 1e-5);
            assert_eq!(dot4_inline([&x, &y, &x, &y], &y).map(|d| (d * 1e4).round())[0], (dot(&x, &y) * 1e4).round());
            let mut sum = y.clone();
            add_scaled(&mut sum, 0.5, &x);
            for i in 0..n {
                assert!((sum[i] - (y[i] + 0.5 * x[i])).abs() < 1e-6);
            }
            let mut four = y.clone();
            add_scaled4_inline(&mut four, [0.5, 0.25, -1.0, 2.0], [&x, &y, &x, &y]);
            for i in 0..n {
                assert!((four[i] - (y[i] - 0.5 * x[i] + 2.25 * y[i])).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn adam_moves_by_the_learning_rate_on_its_first_step() {
        let (mut w, mut m, mut v) = (vec![1.0f32, 1.0, 1.0], vec![0.0; 3], vec![0.0; 3]);
        let step = AdamStep {
            gradient_scale: 1.0,
            beta1: 0.9,
            beta2: 0.999,
            step_size: 0.01 / (1.0 - 0.9),
            root_correction: 1.0 / (1.0f32 - 0.999).sqrt(),
            epsilon: 1e-8,
        };
        adam(&mut w, &mut m, &mut v, &[3.0, -0.2, 0.0], step);
        assert!((w[0] - 0.99).abs() < 1e-5 && (w[1] - 1.01).abs() < 1e-5 && w[2] == 1.0, "{w:?}");
    }
}
