//! The kernels that compute one block of a product, and the choice between them.

use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::{BLOCK, Line, Tile};

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// Rows up to which AVX-512 beats tiles that stay mostly empty.
const FEW_ROWS: usize = 4;

/// What a block kernel multiplies: `k_tiles` lines of each of 32 rows, `stride` lines apart and readable even past the
/// `rows` that matter, with two columns of as many tiles.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) a: &'a [Line],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) b: [&'a [Tile]; 2],
    /// Where to fetch the tiles of the next panel from, ahead of their use; never read.
    pub(super) next: [*const Line; 2],
}

/// Lines of each column of tiles that one `k` of a block fetches ahead: with 8 blocks of rows, all of the next panel.
const AHEAD: usize = 2;

/// The part of the next panel that block `block` of rows fetches.
pub(super) fn ahead(next: [&[Tile]; 2], block: usize) -> [*const Line; 2] {
    next.map(|tiles| tiles.as_ptr().cast::<Line>().wrapping_add(block * tiles.len() * AHEAD))
}

/// A way to multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Intel's tiles.
    Amx,
    /// `vdpbf16ps`.
    Avx512,
    /// Widening to f32 and the `gemm` crate.
    Portable,
}

impl Kernel {
    /// All that this machine has, fastest first.
    pub fn available() -> Vec<Self> {
        let mut kernels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if avx512::available() {
            if amx::available() {
                kernels.push(Self::Amx);
            }
            kernels.push(Self::Avx512);
        }
        kernels.push(Self::Portable);
        kernels
    }

    /// The fastest one of this machine.
    pub fn best() -> Self {
        static BEST: OnceLock<Kernel> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// Whether it beats products in f32.
    pub fn is_native(self) -> bool {
        self != Self::Portable
    }

    pub(super) fn for_rows(self, rows: usize) -> Self {
        if self == Self::Amx && rows <= FEW_ROWS { Self::Avx512 } else { self }
    }
}

/// One block of at most 32 × 32 into the corner of `out`.
pub(super) fn block(
    kernel: Kernel,
    operands: Operands<'_>,
    out: &mut [MaybeUninit<f32>],
    stride: usize,
    width: usize,
    add: bool,
) {
    let height = operands.rows;
    if width == BLOCK && (height == BLOCK || kernel == Kernel::Avx512) {
        return run(kernel, operands, out, stride, add);
    }
    // Blocks at the edge go through a whole one.
    let mut whole = [[MaybeUninit::new(0.0f32); BLOCK]; BLOCK];
    if add {
        for (whole, out) in whole.iter_mut().zip(out.chunks(stride)).take(height) {
            whole[..width].copy_from_slice(&out[..width]);
        }
    }
    run(kernel, operands, whole.as_flattened_mut(), BLOCK, add);
    for (whole, out) in whole.iter().zip(out.chunks_mut(stride)).take(height) {
        out[..width].copy_from_slice(&whole[..width]);
    }
}

/// Runs a block kernel: 32 columns of `operands.rows` rows, with AMX always 32 rows.
pub(super) fn run(kernel: Kernel, operands: Operands<'_>, out: &mut [MaybeUninit<f32>], stride: usize, add: bool) {
    let k_tiles = operands.b[0].len();
    let rows = if kernel == Kernel::Amx { BLOCK } else { operands.rows };
    assert!(rows > 0 && operands.b[1].len() == k_tiles, "two columns of tiles");
    assert!((rows - 1) * operands.stride + k_tiles <= operands.a.len(), "rows of the left side");
    assert!((rows - 1) * stride + BLOCK <= out.len(), "a block inside its matrix");
    match kernel {
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "kernels work on pointers")]
        // SAFETY: the assertions above hold all that the kernel reads and writes inside the three slices; `panel` and
        // `gated_with` run inside `on_tiles`, and a kernel is only chosen where it is available.
        Kernel::Amx => unsafe { amx::block(operands, out.as_mut_ptr().cast(), stride, add) },
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "kernels work on pointers")]
        // SAFETY: as above.
        Kernel::Avx512 => unsafe { avx512::block(operands, out.as_mut_ptr().cast(), stride, add) },
        _ => unreachable!("{kernel:?} has no block kernel"),
    }
}

/// Sets the kernel's registers up for `work`; checks that the machine has it.
pub(super) fn on_tiles(kernel: Kernel, work: impl FnOnce()) {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Amx => amx::with_tiles(work),
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => {
            assert!(avx512::available(), "this CPU has no AVX-512 BF16");
            work();
        }
        _ => unreachable!("{kernel:?} has no block kernel"),
    }
}
