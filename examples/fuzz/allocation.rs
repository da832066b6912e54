//! The system's allocator, counting what it gave.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait; every call is handed on unchanged")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

static NOW: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// See the module.
pub(crate) struct Counting;

fn given(bytes: usize) {
    let now = NOW.fetch_add(bytes as isize, Relaxed) + bytes as isize;
    PEAK.fetch_max(now.max(0) as usize, Relaxed);
}

fn taken(bytes: usize) {
    NOW.fetch_sub(bytes as isize, Relaxed);
}

/// Counts from zero again.
pub(crate) fn reset() {
    NOW.store(0, Relaxed);
    PEAK.store(0, Relaxed);
}

/// The most bytes at once since [`reset`], beyond those that were there.
pub(crate) fn peak() -> usize {
    PEAK.load(Relaxed)
}

// SAFETY: every method hands its arguments to the system's allocator and returns what that returned.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        given(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        given(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        taken(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        given(size);
        taken(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}
