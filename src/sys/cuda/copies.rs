//! Copies to the device: listed first, joined where they touch, then issued together.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::driver::{Driver, ManyCopies};
use super::{DeviceMemory, Entered};
use crate::error::{Error, Kind, Result};
use crate::sys::map::Map;
use crate::sys::stream::RawStream;

/// The longest single copy. One copy keeps its engine to itself: 4 MiB take 75 µs on PCIe 5, 300 µs on PCIe 3, for which a small copy of
/// the framework's may have to wait. Cutting costs a call of some 2 µs for each 4 MiB: 3 % of one thread at full rate.
pub(crate) const COPY_BYTES_MAX: usize = 4 << 20;

/// Copies that are listed at most: a list that is full is issued. It bounds the list's memory at 24 KiB, and what one call has
/// the driver do before it returns.
pub(crate) const COPIES_MAX: usize = 1024;

/// From so many copies on they are issued by one call. Fewer cost less than 20 µs one by one, by a call that is a
/// decade older; nothing that is seen in a batch's time.
pub(crate) const TOGETHER_MIN: usize = 8;

/// Copies into one allocation that have not been issued yet.
pub(crate) struct Copies {
    sources: Vec<Source>,
    // Three lists of one length, as the driver wants them. Destinations are offsets until they are issued.
    to: Vec<CUdeviceptr>,
    from: Vec<CUdeviceptr>,
    bytes: Vec<usize>,
    /// Where the furthest copy ends.
    end: u64,
    /// Each begins behind the ends of those before it: none overlaps another, and it does not matter which is first.
    ascending: bool,
    /// All are from page-locked memory.
    pinned: bool,
}

/// Memory that copies may be listed from.
struct Source {
    map: Arc<Map>,
    pinned: bool,
}

impl Copies {
    /// No copies, and no memory to copy from yet.
    pub(crate) fn new() -> Copies {
        let list = || Vec::with_capacity(COPIES_MAX);
        let bytes = Vec::with_capacity(COPIES_MAX);
        Copies { sources: Vec::new(), to: list(), from: list(), bytes, end: 0, ascending: true, pinned: true }
    }

    /// Lets copies be listed from `map`, which is kept until [`Copies::end`]; `pinned` if a [`super::Registration`] pins it.
    pub(crate) fn allow(&mut self, map: Arc<Map>, pinned: bool) {
        self.sources.push(Source { map, pinned });
    }

    /// Whether there is memory to list copies from.
    pub(crate) fn is_open(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Whether `from` lies in memory that copies may be listed from.
    pub(crate) fn can_read(&self, from: &[u8]) -> bool {
        self.source(from).is_some()
    }

    /// Lists copies of `from` to offset `to`, joined with the one before where both follow in both memories. Says how many bytes were
    /// taken: fewer than there are when the list is full, and is to be issued before the rest.
    ///
    /// Until an event recorded after the issue has passed the caller must not let the bytes be written to, or the
    /// device gets other bytes than it was meant to.
    ///
    /// # Errors
    /// `Config` for bytes outside the memory that was allowed.
    pub(crate) fn add(&mut self, from: &[u8], to: usize) -> Result<usize> {
        let Some(pinned) = self.source(from).map(|source| source.pinned) else {
            return Err(Error::new(Kind::Config, "a copy from memory that is not the engine's"));
        };
        self.pinned &= pinned;
        let (start, to) = (from.as_ptr() as u64, to as u64);
        let mut taken = self.join(start, to, from.len());
        while taken < from.len() && self.bytes.len() < COPIES_MAX {
            let bytes = COPY_BYTES_MAX.min(from.len() - taken);
            let to = to + taken as u64;
            self.ascending &= to >= self.end;
            self.to.push(to);
            self.from.push(start + taken as u64);
            self.bytes.push(bytes);
            taken += bytes;
            self.end = self.end.max(to + bytes as u64);
        }
        Ok(taken)
    }

    /// Whether there is nothing to issue.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Forgets what was not issued, and lets go of the memory that was allowed.
    pub(crate) fn end(&mut self) {
        self.clear();
        self.sources.clear();
    }

    fn clear(&mut self) {
        self.to.clear();
        self.from.clear();
        self.bytes.clear();
        (self.end, self.ascending, self.pinned) = (0, true, true);
    }

    /// Makes the last copy longer, if these bytes follow it in both memories; by how much. Mappings of ours do not touch (each has
    /// some bytes to spare behind it), so that no copy is of two of them.
    fn join(&mut self, from: u64, to: u64, bytes: usize) -> usize {
        let (Some(last), Some(last_from), Some(last_to)) = (self.bytes.last_mut(), self.from.last(), self.to.last())
        else {
            return 0;
        };
        if last_from + *last as u64 != from || last_to + *last as u64 != to {
            return 0;
        }
        let joined = bytes.min(COPY_BYTES_MAX.saturating_sub(*last));
        *last += joined;
        self.end = self.end.max(to + joined as u64);
        joined
    }

    fn source(&self, from: &[u8]) -> Option<&Source> {
        let address = from.as_ptr() as usize;
        let holds = |map: &Map| address >= map.address() && address + from.len() <= map.address() + map.bytes();
        self.sources.iter().find(|source| holds(&source.map))
    }
}

/// The driver's call for many copies at once: for as long as it does what it says.
pub(crate) struct Together {
    call: Option<ManyCopies>,
    refusal: Option<Error>,
}

impl Together {
    /// The newest form that `driver` has.
    pub(crate) fn new(driver: &Driver) -> Together {
        Together { call: driver.many_copies(), refusal: None }
    }

    /// Why it is not used any more.
    pub(crate) fn refusal(&self) -> Option<&Error> {
        self.refusal.as_ref()
    }
}

/// What holds for all copies of a call: `CUmemcpyAttributes` of `cuda.h`. Ours, because the bindings have it in some versions only.
#[repr(C)]
struct Attributes {
    source_access_order: c_uint,
    /// Type and number of a location; both are looked at for managed and pageable memory only.
    source_hint: [c_int; 2],
    destination_hint: [c_int; 2],
    flags: c_uint,
}

const _: () = assert!(size_of::<Attributes>() == 24 && align_of::<Attributes>() == 4);

impl Attributes {
    const OURS: Attributes = Attributes {
        // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM: pages are kept until an event behind the copies has passed, not just for the call.
        source_access_order: 1,
        source_hint: [0; 2],
        destination_hint: [0; 2],
        // CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE: the copy engines' work, please, and not the multiprocessors'.
        flags: 1,
    };
}

impl DeviceMemory {
    /// Issues what is listed in `copies`, in `stream`, and empties the list. `stream` is none of the default ones, and not
    /// being captured.
    ///
    /// Many copies go to the driver in one call. Should it refuse, they are issued one by one, all of them: those that it took
    /// write the same bytes twice. If that works the call was at fault, and it is not tried again.
    ///
    /// # Errors
    /// `Config` for a copy that passes the end of this memory; `Device`. The list is empty then, too.
    pub(crate) fn issue(
        &self,
        entered: &Entered<'_>,
        stream: &RawStream,
        copies: &mut Copies,
        together: &mut Together,
    ) -> Result<()> {
        let issued = self.issue_listed(entered, stream, copies, together);
        copies.clear();
        issued
    }

    fn issue_listed(
        &self,
        entered: &Entered<'_>,
        stream: &RawStream,
        copies: &mut Copies,
        together: &mut Together,
    ) -> Result<()> {
        if copies.end > self.bytes() as u64 {
            let what = format!("copies to offset {} pass the end of a slot of {}", copies.end, self.bytes());
            return Err(Error::new(Kind::Config, what));
        }
        copies.to.iter_mut().for_each(|to| *to += self.pointer());
        let Some(call) = together.call.filter(|_| copies.suits_one_call()) else {
            return copies.one_by_one(entered, stream);
        };
        let Err(refusal) = copies.at_once(entered, stream, call) else { return Ok(()) };
        copies.one_by_one(entered, stream)?;
        (together.call, together.refusal) = (None, Some(refusal));
        Ok(())
    }
}

impl Copies {
    /// The copies of one call may be carried out in any order, and their sources be read after it has returned.
    fn suits_one_call(&self) -> bool {
        self.bytes.len() >= TOGETHER_MIN && self.ascending && self.pinned
    }

    fn one_by_one(&self, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        for ((to, from), bytes) in self.to.iter().zip(&self.from).zip(&self.bytes) {
            // SAFETY: destinations were held against their allocation by `issue_listed`. Sources lie in mappings that `sources`
            // keeps: pageable ones are read before the call returns, and pinned ones stay so until they are unregistered,
            // so that the device never reads a page that the system has taken back.
            let code = unsafe {
                (entered.calls().cuMemcpyHtoDAsync_v2)(
                    *to,
                    std::ptr::with_exposed_provenance(*from as usize),
                    *bytes,
                    stream.handle() as CUstream,
                )
            };
            entered.check(code, "copying to the device")?;
        }
        Ok(())
    }

    fn at_once(&mut self, entered: &Entered<'_>, stream: &RawStream, call: ManyCopies) -> Result<()> {
        let count = self.bytes.len();
        let (to, from, bytes) = (self.to.as_mut_ptr(), self.from.as_mut_ptr(), self.bytes.as_mut_ptr());
        let mut attributes = Attributes::OURS;
        let attributes = std::ptr::from_mut(&mut attributes).cast();
        // The attributes hold from the first copy on.
        let (mut first, mut failed) = (0, usize::MAX);
        let stream = stream.handle() as CUstream;
        // SAFETY: three lists of `count` entries, one set of attributes and the index at which it begins, all of which the driver
        // reads before it returns. Destinations and sources are those of `one_by_one`, and all pinned.
        let code = unsafe {
            match call {
                ManyCopies::Second(call) => call(to, from, bytes, count, attributes, &mut first, 1, stream),
                ManyCopies::First(call) => call(to, from, bytes, count, attributes, &mut first, 1, &mut failed, stream),
            }
        };
        entered.check(code, "copying to the device by one call")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::map::Chunk;

    const MAPPED: usize = 16 << 20;

    fn mapped() -> Chunk {
        Map::lazy(MAPPED).unwrap().into_chunks(MAPPED).pop().unwrap()
    }

    /// Lists pieces (from, bytes, to); gives destinations and lengths.
    fn listed(pieces: &[(usize, usize, usize)]) -> (Vec<(u64, usize)>, bool) {
        let memory = mapped();
        let mut copies = Copies::new();
        copies.allow(memory.map(), true);
        for (from, bytes, to) in pieces {
            assert_eq!(copies.add(&memory[*from..from + bytes], *to).unwrap(), *bytes);
        }
        (copies.to.into_iter().zip(copies.bytes).collect(), copies.ascending)
    }

    #[test]
    fn neighbours_on_both_sides_become_one_copy() {
        assert_eq!(listed(&[(0, 10, 0), (10, 30, 10), (40, 60, 40)]), (vec![(0, 100)], true));
        let gap = listed(&[(0, 10, 0), (10, 30, 11), (40, 60, 41)]);
        assert_eq!(gap, (vec![(0, 10), (11, 90)], true), "a gap in the destination");
        let gap = listed(&[(0, 10, 0), (40, 60, 10), (10, 30, 70)]);
        assert_eq!(gap, (vec![(0, 10), (10, 60), (70, 30)], true), "a gap in the source");
        assert_eq!(
            listed(&[(0, 0, 7), (0, 10, 0), (10, 0, 3), (10, 30, 10)]).0,
            [(0, 40)],
            "empty pieces copy nothing"
        );
        assert_eq!(listed(&[]), (vec![], true));
    }

    #[test]
    fn long_runs_are_cut() {
        const MAX: usize = COPY_BYTES_MAX;
        let whole = listed(&[(0, 2 * MAX + 5, 100)]).0;
        assert_eq!(whole, [(100, MAX), (100 + MAX as u64, MAX), (100 + 2 * MAX as u64, 5)]);
        // In pieces as well, wherever these end.
        let pieces: Vec<_> = (0..9).map(|piece| (piece * MAX / 3, MAX / 3, piece * MAX / 3)).collect();
        let cut: Vec<usize> = listed(&pieces).0.into_iter().map(|(_, bytes)| bytes).collect();
        assert!(cut.iter().all(|bytes| *bytes <= MAX) && cut.iter().sum::<usize>() == 9 * (MAX / 3), "{cut:?}");
        assert!(cut.len() <= 6, "{cut:?}");
    }

    #[test]
    fn copies_that_could_overlap_are_told_apart() {
        assert!(listed(&[(0, 10, 0), (50, 10, 10), (20, 10, 30)]).1);
        assert!(!listed(&[(0, 10, 100), (50, 10, 0)]).1, "backwards");
        assert!(!listed(&[(0, 10, 0), (50, 10, 9)]).1, "an overlap");
    }

    #[test]
    fn a_list_has_an_end_and_begins_anew() {
        let memory = mapped();
        let mut copies = Copies::new();
        copies.allow(memory.map(), false);
        for copy in 0..COPIES_MAX {
            assert_eq!(copies.add(&memory[..7], copy * 10).unwrap(), 7);
        }
        assert_eq!(copies.add(&memory[..7], 10 * COPIES_MAX).unwrap(), 0);
        assert_eq!(copies.add(&memory[7..9], 10 * COPIES_MAX - 3).unwrap(), 2, "the last one can still grow");
        assert!(!copies.suits_one_call(), "from pageable memory");
        let place = copies.to.as_ptr();
        copies.clear();
        assert!(copies.is_empty() && copies.pinned && copies.end == 0);
        assert_eq!(copies.add(&memory[..7], 0).unwrap(), 7);
        assert_eq!(copies.to.as_ptr(), place, "its memory is used again");
        copies.end();
        assert!(copies.is_empty() && !copies.is_open() && !copies.can_read(&memory[..1]));
    }

    #[test]
    fn only_memory_that_is_kept_is_copied_from() {
        let (memory, other) = (mapped(), mapped());
        let mut copies = Copies::new();
        copies.allow(memory.map(), true);
        assert!(copies.can_read(&memory[5..]) && !copies.can_read(&other[5..6]) && !copies.can_read(&[1, 2]));
        assert_eq!(copies.add(&other[..1], 0).unwrap_err().kind(), Kind::Config);
    }
}
