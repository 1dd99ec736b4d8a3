//! Where a read lands: a run of pages, filled front to back, then read until the last copy has gone.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::page::{Filling, Page, Ready};

/// The pages that one request fills, in order, and how far it got.
///
/// Bytes `0..filled()` are good whatever happened to the request: a retry goes on from there.
#[derive(Debug)]
pub struct Landing {
    pages: Vec<Page<Filling>>,
    page_bytes: usize,
    /// Bytes in front of the payload that an aligned read brought along.
    lead: usize,
    len: usize,
    /// `len` of the landing that this was shortened from: what must fit into the pages in the end.
    whole: usize,
    filled: usize,
    progress: Arc<AtomicU64>,
}

impl Landing {
    /// A landing for `len` bytes. `pages` are all of one size and hold at least that much.
    pub fn new(pages: Vec<Page<Filling>>, len: usize) -> Self {
        let page_bytes = pages.first().map_or(0, |page| page.len());
        debug_assert!(pages.len() * page_bytes >= len);
        Landing { pages, page_bytes, lead: 0, len, whole: len, filled: 0, progress: Arc::default() }
    }

    /// Bytes wanted.
    #[expect(clippy::len_without_is_empty, reason = "an empty landing is never made")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that have landed, from the front.
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> usize {
        self.len - self.filled
    }

    /// A counter of bytes landed, readable while the request runs: what progress time-outs watch.
    pub fn progress(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.progress)
    }

    /// The next bytes to fill, up to the end of their page; empty when all have landed.
    pub fn spare(&mut self) -> &mut [u8] {
        let Some((page, from, to)) = self.spare_in(0) else { return &mut [] };
        &mut self.pages[page][from..to]
    }

    /// The next bytes to fill as slices for a vectored read; returns how many slices were pushed.
    pub fn spare_vectored<'a, const N: usize>(&'a mut self, slices: &mut [Option<IoSliceMut<'a>>; N]) -> usize {
        if self.remaining() == 0 || self.page_bytes == 0 {
            return 0;
        }
        let (mut at, end) = (self.lead + self.filled, self.lead + self.len);
        let first = at / self.page_bytes;
        let mut count = 0;
        for page in self.pages[first..].iter_mut().take(N) {
            if at >= end {
                break;
            }
            let from = at % self.page_bytes;
            let to = (from + end - at).min(self.page_bytes);
            at += to - from;
            slices[count] = Some(IoSliceMut::new(&mut page[from..to]));
            count += 1;
        }
        count
    }

    /// `count` more bytes have landed at the front of what [`Landing::spare`] gave.
    pub fn advance(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.len);
        self.progress.store(self.filled as u64, Ordering::Relaxed);
    }

    /// Copies `bytes` to the next free place; returns how many fitted. The only copy in user space, for what
    /// came along with a response header.
    pub fn push(&mut self, mut bytes: &[u8]) -> usize {
        let mut copied = 0;
        while !bytes.is_empty() && self.remaining() > 0 {
            let spare = self.spare();
            let count = spare.len().min(bytes.len());
            spare[..count].copy_from_slice(&bytes[..count]);
            self.advance(count);
            copied += count;
            bytes = &bytes[count..];
        }
        copied
    }

    /// Forgets what has landed, to begin again.
    pub fn restart(&mut self) {
        self.filled = 0;
        self.progress.store(0, Ordering::Relaxed);
    }

    /// Takes the pages out, for an owner that outlives this read: the kernel. Until they are put back the
    /// landing is without pages.
    pub fn take_pages(&mut self) -> Vec<Page<Filling>> {
        std::mem::take(&mut self.pages)
    }

    /// Puts the pages back; payload starts `lead` bytes into the first one.
    pub fn put_pages(&mut self, pages: Vec<Page<Filling>>, lead: usize) {
        debug_assert!(pages.len() * self.page_bytes >= lead + self.whole);
        self.pages = pages;
        self.lead = lead;
    }

    /// Moves the pages into a landing that ends `len` bytes after what has landed: a read that is cut short on
    /// purpose. [`Landing::rejoin`] brings them back; until then this landing is without pages.
    pub fn shorten(&mut self, len: usize) -> Landing {
        Landing {
            pages: self.take_pages(),
            page_bytes: self.page_bytes,
            lead: self.lead,
            len: self.len.min(self.filled.saturating_add(len)),
            whole: self.whole,
            filled: self.filled,
            progress: Arc::clone(&self.progress),
        }
    }

    /// Takes back what [`Landing::shorten`] gave, with what has landed in it.
    pub fn rejoin(&mut self, part: Landing) {
        debug_assert!(part.page_bytes == self.page_bytes && part.len <= self.len);
        self.pages = part.pages;
        self.lead = part.lead;
        self.filled = part.filled;
    }

    /// Bytes in the first page in front of the payload.
    pub fn lead(&self) -> usize {
        self.lead
    }

    /// The largest lead that leaves room for the payload; `None` when even without one the pages are too few: they
    /// were taken, and not put back.
    pub fn lead_max(&self) -> Option<usize> {
        (self.pages.len() * self.page_bytes).checked_sub(self.whole)
    }

    /// Bytes in a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Pages held.
    pub fn page_count(&self) -> usize {
        self.pages.len()
    }

    /// All bytes are here. `None` if some are not, or the pages were not put back: they are freed then.
    pub fn landed(self) -> Option<Landed> {
        if self.remaining() > 0 || self.pages.len() * self.page_bytes < self.lead + self.len {
            return None;
        }
        let pages = self.pages.into_iter().map(Page::ready).collect();
        let inner = LandedInner {
            pages,
            page_bytes: self.page_bytes,
            lead: self.lead,
            len: self.len,
            holds: AtomicUsize::new(0),
        };
        Some(Landed(Arc::new(inner)))
    }

    fn spare_in(&self, skip: usize) -> Option<(usize, usize, usize)> {
        let at = self.lead + self.filled + skip;
        let end = self.lead + self.len;
        if at >= end || self.page_bytes == 0 {
            return None;
        }
        let (page, from) = (at / self.page_bytes, at % self.page_bytes);
        Some((page, from, (from + end - at).min(self.page_bytes)))
    }
}

/// Bytes that have landed and will not change. Clones share the pages; the last one dropped frees them.
#[derive(Clone, Debug)]
pub struct Landed(Arc<LandedInner>);

#[derive(Debug)]
struct LandedInner {
    pages: Vec<Page<Ready>>,
    page_bytes: usize,
    lead: usize,
    len: usize,
    holds: AtomicUsize,
}

impl Drop for LandedInner {
    /// Frees the pages from the last to the first: what is freed last goes out first, and the next read's pages follow each other in
    /// memory again, so that they can be copied at once.
    fn drop(&mut self) {
        while let Some(page) = self.pages.pop() {
            drop(page);
        }
    }
}

impl Landed {
    /// Bytes here.
    #[expect(clippy::len_without_is_empty, reason = "an empty landing is never made")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Pages held.
    pub fn page_count(&self) -> usize {
        self.0.pages.len()
    }

    /// The bytes `at..at + len` as slices, one per page they touch.
    ///
    /// # Panics
    /// Never for ranges inside `len()`; beyond it the iterator ends early.
    pub fn slices(&self, at: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        let inner = &*self.0;
        let end = (at + len).min(inner.len) + inner.lead;
        let mut at = at + inner.lead;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (page, from) = (at / inner.page_bytes, at % inner.page_bytes);
            let to = (from + end - at).min(inner.page_bytes);
            at += to - from;
            Some(&inner.pages[page][from..to])
        })
    }

    /// Holds the pages for a copy in flight.
    pub fn hold(&self) -> CopyHold {
        if self.0.holds.fetch_add(1, Ordering::AcqRel) == 0 {
            self.0.pages.iter().for_each(Page::begin_copy);
        }
        CopyHold(self.clone())
    }
}

/// Keeps pages until a copy out of them is complete, whatever else is dropped meanwhile.
#[derive(Debug)]
pub struct CopyHold(Landed);

impl CopyHold {
    /// What is held.
    pub fn landed(&self) -> &Landed {
        &self.0
    }
}

impl Drop for CopyHold {
    fn drop(&mut self) {
        let inner = &*self.0.0;
        if inner.holds.fetch_sub(1, Ordering::AcqRel) == 1 {
            inner.pages.iter().for_each(Page::end_copy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slab;

    fn slab() -> Slab {
        Slab::new(4 * 4096, 4096).unwrap()
    }

    #[test]
    fn fills_across_pages_and_reads_back() {
        let slab = slab();
        let mut landing = Landing::new(slab.take(3).unwrap(), 10_000);
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(landing.push(&bytes[..5000]), 5000);
        let mut slices = [const { None }; 4];
        assert_eq!(landing.spare_vectored(&mut slices), 2);
        let mut rest = &bytes[5000..];
        for slice in slices.iter_mut().flatten() {
            let count = slice.len();
            slice.copy_from_slice(&rest[..count]);
            rest = &rest[count..];
        }
        assert!(rest.is_empty());
        landing.advance(5000);
        assert_eq!(landing.progress().load(Ordering::Relaxed), 10_000);
        let landed = landing.landed().unwrap();
        assert_eq!(landed.slices(0, 10_000).collect::<Vec<_>>().concat(), bytes);
        assert_eq!(landed.slices(4000, 200).map(<[u8]>::len).collect::<Vec<_>>(), [96, 104]);
        assert_eq!(slab.usage().ready, 3);
    }

    #[test]
    fn an_unfinished_landing_frees_its_pages() {
        let slab = slab();
        let mut landing = Landing::new(slab.take(1).unwrap(), 100);
        landing.push(&[1; 99]);
        assert!(landing.landed().is_none());
        assert_eq!(slab.usage().free, 4);
    }

    #[test]
    fn a_shortened_landing_comes_back_with_what_landed() {
        let slab = slab();
        let mut landing = Landing::new(slab.take(2).unwrap(), 6000);
        landing.push(&[1; 10]);
        let mut part = landing.shorten(5000);
        assert_eq!((landing.page_count(), part.remaining()), (0, 5000));
        assert_eq!((landing.lead_max(), part.lead_max()), (None, Some(2192)));
        part.push(&[2; 4990]);
        assert_eq!(landing.progress().load(Ordering::Relaxed), 5000);
        landing.rejoin(part);
        assert_eq!((landing.filled(), landing.page_count()), (5000, 2));
        landing.push(&[3; 2000]);
        let all = landing.landed().unwrap().slices(0, 6000).collect::<Vec<_>>().concat();
        assert_eq!((all[9], all[10], all[4999], all[5000], all.len()), (1, 2, 2, 3, 6000));
    }

    #[test]
    fn a_hold_outlives_the_landed_bytes() {
        let slab = slab();
        let mut landing = Landing::new(slab.take(1).unwrap(), 3);
        landing.push(b"abc");
        let landed = landing.landed().unwrap();
        let (first, second) = (landed.hold(), landed.hold());
        drop(landed);
        drop(first);
        assert_eq!((slab.usage().free, slab.usage().copying), (3, 1));
        assert_eq!(second.landed().slices(0, 3).next().unwrap(), b"abc");
        drop(second);
        let usage = slab.usage();
        assert_eq!((usage.free, usage.ready, usage.copying), (4, 0, 0));
    }

    #[test]
    fn pages_follow_each_other_however_often_they_were_used() {
        let slab = Slab::new(8 * 4096, 4096).unwrap();
        let land = |bytes| {
            let mut landing = Landing::new(slab.take(bytes / 4096).unwrap(), bytes);
            assert_eq!(landing.push(&vec![1; bytes]), bytes);
            landing.landed().unwrap()
        };
        let mut held = Some(land(3 * 4096));
        for turn in 0..5 {
            let landed = land(4 * 4096);
            let starts: Vec<usize> = landed.slices(0, 4 * 4096).map(|page| page.as_ptr() as usize).collect();
            assert!(starts.windows(2).all(|pair| pair[0] + 4096 == pair[1]), "turn {turn}: {starts:x?}");
            if turn == 2 {
                held = None;
            }
        }
        assert!(held.is_none());
    }

    #[test]
    fn lead_shifts_the_payload() {
        let slab = slab();
        let mut landing = Landing::new(slab.take(2).unwrap(), 4096);
        let mut pages = landing.take_pages();
        pages[0][4000..].fill(1);
        pages[1][..4000].fill(2);
        landing.put_pages(pages, 4000);
        landing.advance(4096);
        let landed = landing.landed().unwrap();
        let all = landed.slices(0, 4096).collect::<Vec<_>>().concat();
        assert_eq!(all.iter().filter(|b| **b == 1).count(), 96);
        assert_eq!(all.iter().filter(|b| **b == 2).count(), 4000);
    }
}
