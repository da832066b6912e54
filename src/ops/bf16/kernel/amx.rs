//! The block kernel on AMX tiles (Intel, Sapphire Rapids and later): 1,024 multiply-adds a cycle.
//!
//! The intrinsics are unstable in Rust, inline assembly is not. Linux hands tile registers out on request only.

use std::arch::asm;
use std::sync::OnceLock;

use super::super::{BLOCK, Line};
use super::Operands;

/// Palette 1: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether this process may use tiles: the CPU has them and the kernel has granted them.
pub(super) fn available() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| cfg!(target_os = "linux") && cpu_has_tiles() && request_permission())
}

fn cpu_has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILE: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    if __cpuid(0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    features & TILE != 0 && features & BF16 != 0
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`, which holds for all threads of the process.
fn request_permission() -> bool {
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: this call takes two integers and touches no memory of ours; the instruction overwrites rax, rcx and
    // r11 only, all declared. It runs on Linux only, where the numbers mean what they are named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result == 0
}

/// Runs `work` with the tile registers configured on this thread.
pub(super) fn with_tiles<T>(work: impl FnOnce() -> T) -> T {
    assert!(available(), "tiles were not granted");
    #[expect(unsafe_code, reason = "the tile configuration is a register")]
    // SAFETY: `CONFIG` is 64 readable bytes of a valid palette, and the CPU has tiles.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags));
    }
    let result = work();
    #[expect(unsafe_code, reason = "the tile configuration is a register")]
    // SAFETY: gives the registers back; no tile is live.
    unsafe {
        asm!("tilerelease", options(nostack, nomem, preserves_flags));
    }
    result
}

/// `c = a · [b0 b1]` on a block of 32 × 32, or `c += …` with `accumulate`.
///
/// # Safety
/// Only inside [`with_tiles`]. `operands` must have all 32 rows and two columns of equally many tiles, and `c` must
/// point to 32 rows of 32 floats, `stride` floats apart, that nothing else touches.
#[expect(unsafe_code, reason = "reads and writes through pointers")]
pub(super) unsafe fn block(operands: Operands<'_>, c: *mut f32, stride: usize, accumulate: bool) {
    let Operands { a, stride: a_stride, b: [b0, b1], next: [n0, n1], .. } = operands;
    let k_tiles = b0.len();
    let half = BLOCK / 2;
    // SAFETY: the caller's contract: 32 rows of `k_tiles` lines in `a`, `k_tiles` tiles of 16 lines in each `b`, 32
    // rows of 32 floats at `c`. Every address below is a row of one of them; `k_tiles` is at least one, so the loop
    // ends. A prefetch touches nothing, whatever its address. Tiles are declared as overwritten and live only inside this block.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jz 3f",
            "tileloadd tmm0, [{c0} + {s}]",
            "tileloadd tmm1, [{c0} + {s} + 64]",
            "tileloadd tmm2, [{c1} + {s}]",
            "tileloadd tmm3, [{c1} + {s} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{b0} + {bs}]",
            "tileloadd tmm4, [{a0} + {as_}]",
            "tileloadd tmm7, [{b1} + {bs}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {as_}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a0}, 64",
            "add {a1}, 64",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "prefetcht1 [{n0}]",
            "prefetcht1 [{n0} + 64]",
            "prefetcht1 [{n1}]",
            "prefetcht1 [{n1} + 64]",
            "add {n0}, 128",
            "add {n1}, 128",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {k}",
            "jnz 2b",
            "tilestored [{c0} + {s}], tmm0",
            "tilestored [{c0} + {s} + 64], tmm1",
            "tilestored [{c1} + {s}], tmm2",
            "tilestored [{c1} + {s} + 64], tmm3",
            a0 = inout(reg) a.as_ptr() => _,
            a1 = inout(reg) a.as_ptr().add(half * a_stride) => _,
            as_ = in(reg) a_stride * size_of::<Line>(),
            b0 = inout(reg) b0.as_ptr() => _,
            b1 = inout(reg) b1.as_ptr() => _,
            n0 = inout(reg) n0 => _,
            n1 = inout(reg) n1 => _,
            bs = in(reg) size_of::<Line>(),
            k = inout(reg) k_tiles => _,
            add = in(reg) u32::from(accumulate),
            c0 = in(reg) c,
            c1 = in(reg) c.add(half * stride),
            s = in(reg) stride * size_of::<f32>(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        );
    }
}
