//! Counts what is allocated, thread by thread: for tests that say how little that is.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

/// Threads are told apart by the beginnings of their names.
const THREADS: [&str; 6] = ["farfeed-pump", "farfeed-copy", "farfeed-net", "farfeed-ring", "farfeed-file", "consumer"];
/// The place of all others.
const OTHERS: usize = THREADS.len();
/// A thread whose name has not been looked at, or has said nothing yet: it is given soon after the thread begins.
const UNKNOWN: usize = usize::MAX;

static COUNTS: [[AtomicU64; 2]; OTHERS + 1] = [const { [const { AtomicU64::new(0) }; 2] }; OTHERS + 1];

thread_local! {
    static PLACE: Cell<usize> = const { Cell::new(UNKNOWN) };
}

/// The system's allocator, counting: `#[global_allocator] static ALLOCATOR: Counting = Counting;`.
pub struct Counting;

/// What was allocated so far, and never what was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Times that memory was asked for, or more of it.
    pub times: u64,
    /// Bytes that were asked for.
    pub bytes: u64,
}

impl Counting {
    /// By threads whose names begin in this way: one of the library's kinds, or "consumer"; anything else stands for all other threads.
    pub fn allocated(thread: &str) -> Allocated {
        let place = THREADS.iter().position(|name| *name == thread).unwrap_or(OTHERS);
        let [times, bytes] = COUNTS[place].each_ref().map(|count| count.load(Ordering::Relaxed));
        Allocated { times, bytes }
    }
}

// SAFETY: every call is the system allocator's, with the caller's own arguments; counting touches no memory of its.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(old, layout) }
    }
}

fn count(bytes: usize) {
    let place = PLACE.try_with(|place| {
        if place.get() == UNKNOWN {
            place.set(place_by_name().unwrap_or(UNKNOWN));
        }
        place.get()
    });
    let [times, sum] = &COUNTS[place.unwrap_or(OTHERS).min(OTHERS)];
    times.fetch_add(1, Ordering::Relaxed);
    sum.fetch_add(bytes as u64, Ordering::Relaxed);
}

fn place_by_name() -> Option<usize> {
    let mut name = [0u8; 16];
    // SAFETY: room for the sixteen bytes that the kernel writes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    THREADS.iter().position(|beginning| name.starts_with(beginning.as_bytes()))
}
