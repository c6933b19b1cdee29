//! Memory of a key's derivation in huge pages. scrypt touches 32 MiB for each lane for the first time: in pages of 4 KiB that is
//! a quarter of the time it takes to open a repository. glibc does the same when it is told so in the environment
//! (`glibc.malloc.hugetlb`), which a program cannot do for itself.
#![allow(
    unsafe_code,
    reason = "an allocator is unsafe by its nature; this one passes everything on to the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};

use rustix::mm::{Advice, madvise};

/// A huge page on x86-64, and on arm64 with pages of 4 KiB. Where they have another size only the speed differs.
const HUGE: usize = 2 << 20;
/// A lane of the least that restic makes. What is smaller may never be filled, and would take more memory.
const LARGE: usize = 16 * HUGE;

#[derive(Debug)]
pub(crate) struct HugePages;

// SAFETY: memory comes from the system's allocator and goes back to it, with the same layout.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let start = unsafe { System.alloc(layout) };
        advise(start, layout.size());
        start
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let start = unsafe { System.alloc_zeroed(layout) };
        advise(start, layout.size());
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.realloc(start, layout, size) }
    }
}

/// Asks for huge pages where whole ones fit. A kernel that has none refuses, and nothing is lost.
fn advise(start: *mut u8, size: usize) {
    if start.is_null() || size < LARGE {
        return;
    }
    let skipped = start.align_offset(HUGE);
    let length = size.saturating_sub(skipped) / HUGE * HUGE;
    // SAFETY: the range lies within what was just allocated, and this advice changes no byte of it.
    let _ = unsafe {
        madvise(
            start.wrapping_add(skipped).cast(),
            length,
            Advice::LinuxHugepage,
        )
    };
}
