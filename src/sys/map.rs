//! Anonymous memory in huge pages, cut into chunks that each have one owner.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::numa;
use super::process::Birthplace;
use crate::error::{Error, Kind, Result};

/// Size and alignment of a transparent huge page on x86-64 and on arm64 with 4 KiB base pages.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// An anonymous private mapping, aligned to [`HUGE_PAGE_BYTES`] and zeroed.
pub(crate) struct Map {
    start: NonNull<u8>,
    bytes: usize,
    mapped_start: NonNull<u8>,
    mapped_bytes: usize,
    /// In a child of this process something else may lie where memory was that a fork does not copy.
    born: Birthplace,
}

// SAFETY: a `Map` only hands out its address; access goes through `Chunk`s, which never overlap.
unsafe impl Send for Map {}
// SAFETY: as above: no method reads or writes the memory.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `bytes`, rounded up to whole huge pages, and touches all of it so that no page fault is left for later. Of memory of the NUMA
    /// node `node`, if one is named, as far as that has any and the kernel does so.
    pub(crate) fn near(bytes: usize, node: Option<u32>) -> Result<Self> {
        let mut map = Map::own(bytes)?;
        if let Some(node) = node {
            // Advice: memory of another node is slower, not wrong.
            let _ = numa::prefer(map.address(), map.bytes, node);
        }
        map.touch();
        Ok(map)
    }

    /// As [`Map::near`], but left to [`Map::populate`], or to the first who writes to it.
    pub(crate) fn own(bytes: usize) -> Result<Self> {
        let map = Map::lazy(bytes)?;
        // Advice: a kernel without it costs a forked child's memory, not correctness.
        // SAFETY: the range lies inside the mapping made above.
        let _ = unsafe { madvise(map.start.as_ptr().cast(), map.bytes, Advice::LinuxDontFork) };
        Ok(map)
    }

    /// Maps `bytes`, rounded up to whole huge pages, that take memory only where they are written to, and that a forked
    /// child sees as it sees any other memory.
    pub(crate) fn lazy(bytes: usize) -> Result<Self> {
        let bytes = bytes.max(1).next_multiple_of(HUGE_PAGE_BYTES);
        let mapped_bytes = bytes + HUGE_PAGE_BYTES;
        // SAFETY: an anonymous mapping at an address the kernel chooses replaces nothing that exists.
        let mapped = unsafe {
            mmap_anonymous(std::ptr::null_mut(), mapped_bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .map_err(|errno| {
            Error::new(Kind::Io, format!("mapping {bytes} bytes of host memory"))
                .source(errno)
                .advice("lower host_memory, or raise the memory limit of this process")
        })?;
        let mapped_start =
            NonNull::new(mapped.cast::<u8>()).ok_or_else(|| Error::new(Kind::Io, "mmap returned null"))?;
        let skip = mapped_start.align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skip` < HUGE_PAGE_BYTES, and the mapping is that much longer than `bytes`.
        let start = unsafe { mapped_start.add(skip) };
        let map = Map { start, bytes, mapped_start, mapped_bytes, born: Birthplace::here() };
        // Advice: a kernel without it costs speed (4 KiB pages), not correctness.
        // SAFETY: the range lies inside the mapping made above.
        let _ = unsafe { madvise(map.start.as_ptr().cast(), bytes, Advice::LinuxHugepage) };
        Ok(map)
    }

    /// Writes one byte per base page from a few threads: first touch is what makes memory resident.
    pub(crate) fn touch(&mut self) {
        const BASE_PAGE_BYTES: usize = 4096;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        let span = (self.bytes / threads).next_multiple_of(HUGE_PAGE_BYTES).max(HUGE_PAGE_BYTES);
        let map = &*self;
        std::thread::scope(|scope| {
            for from in (0..map.bytes).step_by(span) {
                let to = (from + span).min(map.bytes);
                scope.spawn(move || {
                    for offset in (from..to).step_by(BASE_PAGE_BYTES) {
                        // SAFETY: `offset` < `bytes`; `&mut self` says that nobody else has a chunk of this mapping, and threads have
                        // disjoint spans.
                        unsafe { map.start.as_ptr().add(offset).write_volatile(0) };
                    }
                });
            }
        });
    }

    /// Makes the huge page at `offset` resident, whoever writes to it meanwhile: its bytes stay what they are. Says whether
    /// the kernel did so; one before 5.14 cannot.
    pub(crate) fn populate(&self, offset: usize) -> bool {
        let Some(left) = self.bytes.checked_sub(offset) else { return false };
        // SAFETY: the range lies inside the mapping, which `self` keeps. The advice faults pages in for writing and changes no byte, so
        // it conflicts with no access of a chunk's owner.
        let done = unsafe {
            madvise(self.start.as_ptr().add(offset).cast(), left.min(HUGE_PAGE_BYTES), Advice::LinuxPopulateWrite)
        };
        done.is_ok()
    }

    /// Cuts the mapping into chunks of `chunk_bytes`; together they own it. A remainder at the end stays unused.
    pub(crate) fn into_chunks(self, chunk_bytes: usize) -> Vec<Chunk> {
        let map = Arc::new(self);
        (0..map.bytes / chunk_bytes)
            .map(|index| {
                // SAFETY: (index + 1) * chunk_bytes <= map.bytes, so the chunk lies inside the mapping.
                let start = unsafe { map.start.add(index * chunk_bytes) };
                Chunk { start, bytes: chunk_bytes, map: Arc::clone(&map) }
            })
            .collect()
    }

    /// Address of the first byte, for registration with a driver or a ring.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }

    /// Bytes that chunks may be cut from.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if !self.born.is_here() {
            return;
        }
        // SAFETY: the mapping was made by `lazy` in this process, and every chunk holds an `Arc` of it, so none is left.
        // A failure can only mean that the range is not mapped, which leaks nothing.
        let _ = unsafe { munmap(self.mapped_start.as_ptr().cast(), self.mapped_bytes) };
    }
}

/// A piece of a [`Map`] with exactly one owner: whoever has the chunk may write it, and nobody else may look.
pub(crate) struct Chunk {
    start: NonNull<u8>,
    bytes: usize,
    /// Keeps the mapping.
    map: Arc<Map>,
}

impl Chunk {
    /// The mapping that it was cut from: nothing in it can be read or written this way.
    pub(crate) fn map(&self) -> Arc<Map> {
        Arc::clone(&self.map)
    }
}

// SAFETY: a chunk owns its range exclusively (chunks of a map never overlap), so it may move between threads.
unsafe impl Send for Chunk {}
// SAFETY: `&Chunk` allows reading only.
unsafe impl Sync for Chunk {}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is mapped, initialised (zeroed by the kernel), and writable only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access to the range.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_aligned_zeroed_and_disjoint() {
        let map = Map::near(HUGE_PAGE_BYTES + 1, None).unwrap();
        assert_eq!(map.bytes(), 2 * HUGE_PAGE_BYTES);
        assert_eq!(map.address() % HUGE_PAGE_BYTES, 0);
        let mut chunks = map.into_chunks(HUGE_PAGE_BYTES / 2);
        assert_eq!(chunks.len(), 4);
        for (index, chunk) in chunks.iter_mut().enumerate() {
            assert!(chunk.iter().all(|byte| *byte == 0));
            chunk.fill(index as u8 + 1);
        }
        for (index, chunk) in chunks.iter().enumerate() {
            assert!(chunk.iter().all(|byte| *byte == index as u8 + 1));
        }
    }

    #[test]
    fn populating_changes_no_byte() {
        let mut chunks = Map::own(2 * HUGE_PAGE_BYTES).unwrap().into_chunks(HUGE_PAGE_BYTES);
        chunks[1].fill(7);
        let map = chunks[0].map();
        let done = [0, HUGE_PAGE_BYTES].map(|offset| map.populate(offset));
        assert_eq!(done[0], done[1]);
        assert!(!map.populate(2 * HUGE_PAGE_BYTES + 1), "past the end");
        assert!(chunks[0].iter().all(|byte| *byte == 0) && chunks[1].iter().all(|byte| *byte == 7));
    }

    /// Where the mapping was there is a hole in a forked child, in which the next mapping may lie.
    #[test]
    fn a_forked_child_unmaps_nothing() {
        let mut theirs = Some(Map::near(1, None).unwrap());
        let answer = farfeed_driver_double::in_a_child(std::time::Duration::from_secs(20), || {
            let map = theirs.take().unwrap();
            let (address, length) = (map.start.as_ptr(), map.bytes);
            // SAFETY: at the address of a mapping that this process does not have; the kernel refuses to replace another.
            let own = unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
                rustix::mm::mmap_anonymous(address.cast(), length, ProtFlags::READ | ProtFlags::WRITE, flags)
            };
            let Ok(own) = own else { return "the fork copied it".into() };
            drop(map);
            // SAFETY: as above: nobody unmaps it.
            unsafe { own.cast::<u8>().write_volatile(7) };
            "still there".into()
        });
        assert_eq!(answer.as_deref(), Ok("still there"));
    }

    #[test]
    fn a_chunk_outlives_its_siblings() {
        let mut chunks = Map::near(1, None).unwrap().into_chunks(HUGE_PAGE_BYTES / 2);
        let mut last = chunks.pop().unwrap();
        drop(chunks);
        last.fill(7);
        assert_eq!(last[last.len() - 1], 7);
    }
}
