//! The block kernel on `vdpbf16ps` (AVX-512 BF16: Zen 4, Cooper Lake, Sapphire Rapids): 32 multiply-adds a cycle.

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::super::{Line, TILE};
use super::Operands;

/// Rows a pass keeps in registers: 8 rows × 2 tiles are 16 accumulators of the 32 registers.
const ROWS: usize = 8;

/// Whether the CPU has the instruction.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f")
}

/// `c = a · [b0 b1]` on the operands' rows and 32 columns, or `c += …` with `accumulate`.
///
/// # Safety
/// Only where [`available`]. `operands` must have their rows and two columns of equally many tiles, and `c` must point
/// to as many rows of 32 floats, `stride` floats apart, that nothing else touches.
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "reads and writes through pointers")]
pub(super) unsafe fn block(operands: Operands<'_>, c: *mut f32, stride: usize, accumulate: bool) {
    let mut first = 0;
    while first < operands.rows {
        let left = (operands.rows - first).min(ROWS);
        let part = Operands { a: &operands.a[first * operands.stride..], ..operands };
        // SAFETY: rows `first..first + left` of the caller's operands and output.
        unsafe {
            let c = c.add(first * stride);
            match left {
                1 => pass_one(part, c, accumulate),
                2 => pass::<2>(part, c, stride, accumulate),
                3 => pass::<3>(part, c, stride, accumulate),
                4 => pass::<4>(part, c, stride, accumulate),
                5 => pass::<5>(part, c, stride, accumulate),
                6 => pass::<6>(part, c, stride, accumulate),
                7 => pass::<7>(part, c, stride, accumulate),
                _ => pass::<8>(part, c, stride, accumulate),
            }
        }
        first += left;
    }
}

/// `R` rows.
///
/// # Safety
/// As [`block`] with `R` rows.
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "reads and writes through pointers")]
unsafe fn pass<const R: usize>(operands: Operands<'_>, c: *mut f32, stride: usize, accumulate: bool) {
    let Operands { a, stride: a_stride, b: [b0, b1], .. } = operands;
    let pairs_of_k = b0.len() * TILE;
    let (a, b0, b1) = (a.as_ptr(), b0.as_ptr().cast::<Line>(), b1.as_ptr().cast::<Line>());
    // SAFETY: the caller's contract. A line is 16 pairs of bf16; `p` runs over the pairs of a row and, in step, over
    // the lines of the tiles, so both stay inside the lines of a row and the tiles of each `b`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        if accumulate {
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = [_mm512_loadu_ps(c.add(r * stride)), _mm512_loadu_ps(c.add(r * stride + 16))];
            }
        }
        for p in 0..pairs_of_k {
            let right = [pairs(b0.add(p)), pairs(b1.add(p))];
            for (r, sum) in sums.iter_mut().enumerate() {
                let pair = a.add(r * a_stride).cast::<i32>().add(p).read();
                let left = as_bf16(_mm512_set1_epi32(pair));
                sum[0] = _mm512_dpbf16_ps(sum[0], left, right[0]);
                sum[1] = _mm512_dpbf16_ps(sum[1], left, right[1]);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(c.add(r * stride), sum[0]);
            _mm512_storeu_ps(c.add(r * stride + 16), sum[1]);
        }
    }
}

/// One row: with a single sum a column each product would wait for the one before it, so pairs of `k` take turns at
/// four.
///
/// # Safety
/// As [`block`] with one row.
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "reads and writes through pointers")]
unsafe fn pass_one(operands: Operands<'_>, c: *mut f32, accumulate: bool) {
    const TURNS: usize = 4;
    // A page: the processor's own fetching ahead stops at each.
    const AHEAD: usize = 64;
    let Operands { a, b: [b0, b1], .. } = operands;
    let pairs_of_k = b0.len() * TILE;
    let (a, b0, b1) = (a.as_ptr().cast::<i32>(), b0.as_ptr().cast::<Line>(), b1.as_ptr().cast::<Line>());
    // SAFETY: as in `pass`; the number of pairs is a multiple of a tile's 16 lines, and so of the turns. A prefetch
    // touches nothing, whatever its address.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; TURNS];
        if accumulate {
            sums[0] = [_mm512_loadu_ps(c), _mm512_loadu_ps(c.add(16))];
        }
        for p in (0..pairs_of_k).step_by(TURNS) {
            for (turn, sum) in sums.iter_mut().enumerate() {
                _mm_prefetch::<_MM_HINT_T0>(b0.wrapping_add(p + turn + AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(b1.wrapping_add(p + turn + AHEAD).cast());
                let left = as_bf16(_mm512_set1_epi32(a.add(p + turn).read()));
                sum[0] = _mm512_dpbf16_ps(sum[0], left, pairs(b0.add(p + turn)));
                sum[1] = _mm512_dpbf16_ps(sum[1], left, pairs(b1.add(p + turn)));
            }
        }
        let total = |side: usize| {
            _mm512_add_ps(_mm512_add_ps(sums[0][side], sums[1][side]), _mm512_add_ps(sums[2][side], sums[3][side]))
        };
        _mm512_storeu_ps(c, total(0));
        _mm512_storeu_ps(c.add(16), total(1));
    }
}

/// # Safety
/// `line` must be readable.
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "reads through a pointer")]
unsafe fn pairs(line: *const Line) -> __m512bh {
    // SAFETY: a line is 64 bytes.
    as_bf16(unsafe { _mm512_loadu_si512(line.cast()) })
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(x: __m512i) -> __m512bh {
    #[expect(unsafe_code, reason = "std has no conversion between these two types")]
    // SAFETY: both are 64 bytes in which every bit pattern is valid.
    unsafe {
        std::mem::transmute(x)
    }
}
