//! The guard: host memory that a copy reads is read-only from the moment the copy is enqueued until the host has observed
//! that it is over. Whoever recycles it earlier faults, at the line that writes.
//!
//! That fault is a report, and the write goes on. By `guard=die` it ends the process, as any fault would; by `guard=off` there is none.
//! Protection is by pages of the system: a write beside the copied bytes, on one page with them, is let through, and the page
//! is open from then on. What the kernel writes for the host fails with `EFAULT`; what it writes into memory that was
//! registered with a ring before goes unnoticed.

use std::ops::Range;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::checker::checker;
use crate::faults::{Guard, SETTINGS};
use crate::memory::page_bytes;

/// Pages that are read-only for one copy.
pub(crate) struct Guarded(Range<usize>);

impl Guarded {
    /// Protects the pages of `range`, which is registered: memory that was mapped for this, and is no allocator's.
    pub(crate) fn new(range: &Range<usize>) -> Option<Guarded> {
        let guard = SETTINGS.guard;
        if guard == Guard::Off || range.is_empty() {
            return None;
        }
        if guard == Guard::Report {
            install();
        }
        let page = page_bytes();
        let pages = range.start / page * page..range.end.next_multiple_of(page);
        protect(&pages, libc::PROT_READ);
        Some(Guarded(pages))
    }

    pub(crate) fn pages(&self) -> &Range<usize> {
        &self.0
    }

    fn holds(&self, address: usize) -> bool {
        self.0.contains(&address)
    }

    /// Opens those of its pages that none of `still` holds.
    pub(crate) fn lift(&self, still: &[&Guarded]) {
        let page = page_bytes();
        let is_held = |page: &usize| still.iter().any(|guarded| guarded.holds(*page));
        let mut open = self.0.start..self.0.start;
        for at in self.0.clone().step_by(page).chain([self.0.end]) {
            if at == self.0.end || is_held(&at) {
                protect(&open, libc::PROT_READ | libc::PROT_WRITE);
                open = at + page..at + page;
            } else {
                open.end = at + page;
            }
        }
    }
}

/// Says whether memory is mapped there.
fn protect(pages: &Range<usize>, protection: i32) -> bool {
    // SAFETY: host memory that somebody gave to a copy, and must keep mapped until it is over: reading goes on being
    // allowed; writing is what this is there to notice. Where nothing is mapped the call fails, and changes nothing.
    pages.is_empty() || unsafe { libc::mprotect(pages.start as *mut libc::c_void, pages.len(), protection) } == 0
}

/// What was done about such faults before: the runtime's handler for stack overflows.
static BEFORE: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: a zeroed action is a valid one, and is filled in; the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, &action, &mut before);
            BEFORE[0].store(before.sa_sigaction, Ordering::Release);
            BEFORE[1].store(before.sa_flags as usize, Ordering::Release);
        }
    });
}

/// Runs on the thread that wrote. That write is one of host code's to guarded memory, so the thread is neither inside an
/// allocator nor holds the checker: both are free to be used here.
extern "C" fn on_fault(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system gives a valid description of the fault.
    let address = unsafe { (*info).si_addr() } as usize;
    let page = page_bytes();
    let start = address / page * page;
    // One page: the write may run on into the next one, and then faults again.
    if checker().host_wrote(address) && protect(&(start..start + page), libc::PROT_READ | libc::PROT_WRITE) {
        return;
    }
    // Not ours: what was there before shall see to it, when the same instruction faults again.
    // SAFETY: an action that was in force before.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = BEFORE[0].load(Ordering::Acquire);
        action.sa_flags = BEFORE[1].load(Ordering::Acquire) as i32;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
    }
}
