//! How kernels share out their work: contiguous pieces over rayon's threads, or the calling thread alone.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` with every kernel on the calling thread, for callers that have already shared out larger pieces.
pub fn on_this_thread<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _restore = Restore(ALONE.replace(true));
    work()
}

/// Runs `work` on one of rayon's own threads, from where sharing out a piece takes no sleep of the caller.
pub fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1 {
        return work();
    }
    rayon::scope(|_| work())
}

/// Whether kernels must stay on the calling thread.
pub(super) fn alone() -> bool {
    ALONE.get() || rayon::current_num_threads() == 1
}

/// `0..n` in contiguous pieces of whole `unit`s, one a thread.
pub(super) fn pieces(n: usize, unit: usize) -> Vec<Range<usize>> {
    let size = piece(n, unit);
    (0..n).step_by(size).map(|start| start..(start + size).min(n)).collect()
}

/// As [`pieces`] where each of `n` costs reading `bytes`; one piece where waking a thread would take longer.
pub(super) fn pieces_of(n: usize, unit: usize, bytes: usize) -> Vec<Range<usize>> {
    const WORTH_A_THREAD: usize = 512 << 10;
    if n * bytes < 2 * WORTH_A_THREAD {
        std::iter::once(0..n).filter(|all| !all.is_empty()).collect()
    } else {
        pieces(n, unit)
    }
}

/// Calls `f` with the number of the first unit and a contiguous piece of `data`, one a thread.
pub(super) fn split_mut<T: Send>(data: &mut [T], unit: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let size = piece(data.len(), unit);
    if size >= data.len() {
        return f(0, data);
    }
    data.par_chunks_mut(size).enumerate().for_each(|(i, piece)| f(i * (size / unit), piece));
}

/// Calls `f` with each piece, in order of the pieces.
pub(super) fn map<R: Send>(pieces: Vec<Range<usize>>, f: impl Fn(Range<usize>) -> R + Sync + Send) -> Vec<R> {
    if alone() || pieces.len() < 2 {
        return pieces.into_iter().map(f).collect();
    }
    pieces.into_par_iter().map(f).collect()
}

fn piece(n: usize, unit: usize) -> usize {
    let threads = if alone() { 1 } else { rayon::current_num_threads() };
    n.div_ceil(unit).div_ceil(threads).max(1) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_everything_once() {
        for n in [0, 1, 31, 32, 33, 100, 576] {
            let covered: Vec<usize> = pieces(n, 32).into_iter().flatten().collect();
            assert_eq!(covered, (0..n).collect::<Vec<_>>());
            let mut data = vec![0usize; n];
            split_mut(&mut data, 32, |first, piece| {
                piece.iter_mut().enumerate().for_each(|(i, x)| *x += first * 32 + i);
            });
            assert_eq!(data, covered);
        }
    }

    #[test]
    fn a_thread_that_works_alone_does_so_until_the_end_even_of_a_panic() {
        let inside = on_this_thread(alone);
        assert!(inside);
        let _ = std::panic::catch_unwind(|| on_this_thread(|| panic!("as planned")));
        assert!(!ALONE.get());
    }
}
