//! Device memory: a file in memory, mapped twice. The address that the host is told allows no access at all, so that whoever
//! dereferences it faults; streams use the other one. It begins at a multiple of 256 and no more, which is all that a driver promises.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

/// What is mapped in front of an allocation.
const LEAD: usize = 256;

/// One allocation. Its address is never given out again; its pages go back to the system with the last use.
pub(crate) struct Memory {
    outside: usize,
    inside: usize,
    bytes: usize,
    mapped: usize,
}

impl Memory {
    /// `bytes` of 0xDB; `None` when the system has no memory.
    pub(crate) fn new(bytes: usize) -> Option<Arc<Memory>> {
        let mapped = bytes.checked_add(LEAD)?.checked_next_multiple_of(page_bytes())?;
        // SAFETY: a zero-terminated name.
        let file = unsafe { libc::memfd_create(c"driver double".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return None;
        }
        // SAFETY: a file of ours; new mappings of it, anywhere. The file is closed once, after its last use.
        let (sized, outside, inside) = unsafe {
            let sized = libc::ftruncate(file, mapped as libc::off_t) == 0;
            let map = |protection| libc::mmap(std::ptr::null_mut(), mapped, protection, libc::MAP_SHARED, file, 0);
            let mappings = (map(libc::PROT_NONE), map(libc::PROT_READ | libc::PROT_WRITE));
            libc::close(file);
            (sized, mappings.0, mappings.1)
        };
        if !sized || outside == libc::MAP_FAILED || inside == libc::MAP_FAILED {
            return None;
        }
        let memory = Memory { outside: outside as usize, inside: inside as usize, bytes, mapped };
        memory.poison(0xDB);
        Some(Arc::new(memory))
    }

    /// What the host is told.
    pub(crate) fn range(&self) -> Range<usize> {
        self.outside + LEAD..self.outside + LEAD + self.bytes
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn holds(&self, range: &Range<usize>) -> bool {
        let all = self.range();
        all.start <= range.start && range.end <= all.end
    }

    pub(crate) fn poison(&self, value: u8) {
        // SAFETY: a live mapping of at least that many bytes; nothing holds a reference into it: it is what a device writes to.
        unsafe { std::ptr::write_bytes((self.inside + LEAD) as *mut u8, value, self.bytes) };
    }

    /// Where streams find `range`, which this memory holds.
    pub(crate) fn inside(&self, range: &Range<usize>) -> *mut u8 {
        assert!(self.holds(range), "memory of another allocation");
        (range.start - self.outside + self.inside) as *mut u8
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mappings of this value, which nobody uses any more. The outer address stays taken, by a mapping without
        // memory behind it, so that a stale pointer never means somebody else's memory.
        unsafe {
            libc::munmap(self.inside as *mut libc::c_void, self.mapped);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            libc::mmap(self.outside as *mut libc::c_void, self.mapped, libc::PROT_NONE, flags, -1, 0);
        }
    }
}

/// Bytes of a page of this system.
pub(crate) fn page_bytes() -> usize {
    static BYTES: LazyLock<usize> = LazyLock::new(|| {
        // SAFETY: reads a constant of the system.
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
    });
    *BYTES
}
