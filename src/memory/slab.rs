//! The slab: all pages there are, and who waits for one.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::free::FreePages;
use super::page::{Filling, Page};
use crate::error::{Error, Kind, Result};
use crate::sys::map::{Chunk, HUGE_PAGE_BYTES, Map};
use crate::sys::process::Birthplace;
use crate::sys::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard};

/// Niceness of the thread that makes memory resident.
const NICE: i32 = 10;

/// All pinned host memory of a loader: pages of one size, a hard bound.
///
/// Clones name the same slab.
#[derive(Clone)]
pub struct Slab(Arc<SlabInner>);

/// How many pages are in which state, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabUse {
    /// Pages nobody holds.
    pub free: usize,
    /// Pages that a read writes to.
    pub filling: usize,
    /// Pages whose bytes have landed, copies in flight included.
    pub ready: usize,
    /// Pages that a copy in flight reads from.
    pub copying: usize,
    /// The most pages that were ever taken at once.
    pub high_water: usize,
    /// Pages there are.
    pub total: usize,
}

pub(super) struct SlabInner {
    page_bytes: usize,
    total: usize,
    map: Arc<Map>,
    /// The process that has the pages: a child of it has neither those nor whoever holds the lock.
    born: Birthplace,
    free: Mutex<Free>,
    returned: Condvar,
    /// What the lock guards, for those who only want to know: pages that are free, and the most that ever were not.
    free_count: AtomicUsize,
    high_water: AtomicUsize,
    pub(super) ready: AtomicUsize,
    pub(super) copying: AtomicUsize,
    /// Neither the slab nor a page of it is left.
    gone: Arc<AtomicBool>,
}

struct Free {
    /// By number; those that are out are `None`.
    chunks: Vec<Option<Chunk>>,
    pages: FreePages,
    /// Threads that wait for pages.
    waiting: usize,
    /// Called after a page came back, without the lock held.
    watcher: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Slab {
    /// Maps `bytes` (rounded down to whole pages, at least one) as pages of `page_bytes`, all of it resident.
    ///
    /// # Errors
    /// `Config` when `page_bytes` is not a power of two of at least 4 KiB; `Io` when the memory is not to be had.
    pub fn new(bytes: usize, page_bytes: usize) -> Result<Self> {
        Slab::near(bytes, page_bytes, None)
    }

    /// As [`Slab::new`], of memory of the NUMA node `node` as far as that has any: a wish, which a machine with one node does not hear.
    ///
    /// # Errors
    /// As there.
    pub fn near(bytes: usize, page_bytes: usize, node: Option<u32>) -> Result<Self> {
        Slab::cut(bytes, page_bytes, |bytes| Map::near(bytes, node))
    }

    /// As [`Slab::new`], at once: what makes the memory resident goes on behind it, from the pages on that go out first. A page that
    /// goes out before takes its own. Where the kernel offers no such thing it is [`Slab::new`].
    ///
    /// # Errors
    /// As there; `Io` also when no thread can be started.
    pub fn at_once(bytes: usize, page_bytes: usize) -> Result<Self> {
        let slab = Slab::cut(bytes, page_bytes, |bytes| {
            let mut map = Map::own(bytes)?;
            if !map.populate(0) {
                map.touch();
            }
            Ok(map)
        })?;
        slab.populate()?;
        Ok(slab)
    }

    fn cut(bytes: usize, page_bytes: usize, map: impl FnOnce(usize) -> Result<Map>) -> Result<Self> {
        if !page_bytes.is_power_of_two() || page_bytes < 4096 {
            return Err(Error::new(Kind::Config, format!("page size of {page_bytes} bytes"))
                .advice("take a power of two of at least 4096"));
        }
        let total = (bytes / page_bytes).max(1);
        let mut chunks = map(total * page_bytes)?.into_chunks(page_bytes);
        let map = chunks.first().map(Chunk::map).ok_or_else(|| Error::new(Kind::Io, "an empty mapping"))?;
        chunks.truncate(total);
        Ok(Slab(Arc::new(SlabInner {
            page_bytes,
            total,
            map,
            born: Birthplace::here(),
            free: Mutex::new(Free {
                chunks: chunks.into_iter().map(Some).collect(),
                pages: FreePages::all(total),
                waiting: 0,
                watcher: None,
            }),
            returned: Condvar::new(),
            free_count: AtomicUsize::new(total),
            high_water: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            copying: AtomicUsize::new(0),
            gone: Arc::default(),
        })))
    }

    /// Makes the mapping resident on a thread of its own, which ends with the slab: nobody waits for more than the huge page at hand.
    fn populate(&self) -> Result<()> {
        let map = Arc::clone(&self.0.map);
        let gone = Arc::clone(&self.0.gone);
        let work = move || {
            // Behind those who have something to do now: on few processors it would take its part from the first handshakes.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
            // Where it fails, whoever writes there will find out why.
            let _ = rest_of(map.bytes(), &gone).all(|offset| map.populate(offset));
        };
        let thread = std::thread::Builder::new().name("farfeed-memory".into()).spawn(work);
        thread.map(drop).map_err(|e| Error::new(Kind::Io, "starting a thread for host memory").source(e))
    }

    /// Takes `count` pages, or none when fewer are free; in a forked child, which has none of them, never any.
    pub fn take(&self, count: usize) -> Option<Vec<Page<Filling>>> {
        if !self.0.born.is_here() {
            return None;
        }
        self.split_off(&mut self.0.lock(), count)
    }

    /// Takes `count` pages, waiting up to `patience` for them.
    ///
    /// # Errors
    /// `Config` when the slab has fewer pages in all; `Stalled` when they did not come free in time; `Unsupported` in a forked child.
    pub fn take_within(&self, count: usize, patience: Duration) -> Result<Vec<Page<Filling>>> {
        self.0.born.check("host memory was set aside")?;
        if count > self.0.total {
            return Err(Error::new(Kind::Config, format!("{count} pages wanted of a slab of {}", self.0.total))
                .advice("raise host_memory"));
        }
        let deadline = Instant::now() + patience;
        let mut free = self.0.lock();
        loop {
            if let Some(pages) = self.split_off(&mut free, count) {
                return Ok(pages);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let here = free.pages.count();
                return Err(Error::new(
                    Kind::Stalled,
                    format!("waited {patience:?} for {count} pages, {here} of {} are free", self.0.total),
                )
                .advice("something holds batches or reads for too long"));
            }
            free.waiting += 1;
            free = self.0.returned.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
            free.waiting -= 1;
        }
    }

    /// Bytes in a page.
    pub fn page_bytes(&self) -> usize {
        self.0.page_bytes
    }

    /// Pages there are.
    pub fn pages(&self) -> usize {
        self.0.total
    }

    /// How many pages are in which state now. Waits for nobody; in a forked child it is how it was when it was forked.
    pub fn usage(&self) -> SlabUse {
        let free = self.0.free_count.load(Ordering::Relaxed);
        let ready = self.0.ready.load(Ordering::Relaxed);
        SlabUse {
            free,
            filling: (self.0.total - free).saturating_sub(ready),
            ready,
            copying: self.0.copying.load(Ordering::Relaxed),
            high_water: self.0.high_water.load(Ordering::Relaxed),
            total: self.0.total,
        }
    }

    /// Has `watcher` called each time a page comes back, on the thread that returned it. In a forked child none does.
    pub fn watch(&self, watcher: impl Fn() + Send + Sync + 'static) {
        if self.0.born.is_here() {
            self.0.lock().watcher = Some(Arc::new(watcher));
        }
    }

    /// The mapping, for registration with a driver.
    #[cfg(feature = "cuda")]
    pub(crate) fn map(&self) -> &Arc<Map> {
        &self.0.map
    }

    fn split_off(&self, free: &mut Free, count: usize) -> Option<Vec<Page<Filling>>> {
        let Free { chunks, pages, .. } = free;
        if count > pages.count() {
            return None;
        }
        let mut taken = Vec::with_capacity(count);
        pages.take(count, |page| {
            taken.extend(chunks[page].take().map(|chunk| Page::new(chunk, Arc::clone(&self.0))));
        });
        self.0.free_count.store(pages.count(), Ordering::Relaxed);
        self.0.high_water.fetch_max(self.0.total - pages.count(), Ordering::Relaxed);
        Some(taken)
    }
}

/// Where huge pages begin behind the first one, until the slab is gone.
fn rest_of(bytes: usize, gone: &AtomicBool) -> impl Iterator<Item = usize> {
    (HUGE_PAGE_BYTES..bytes).step_by(HUGE_PAGE_BYTES).take_while(|_| !gone.load(Ordering::Relaxed))
}

impl SlabInner {
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_back(&self, chunk: Chunk) {
        if !self.born.is_here() {
            return;
        }
        let number = (chunk.as_ptr() as usize - self.map.address()) / self.page_bytes;
        let (watcher, awaited) = {
            let mut free = self.lock();
            free.chunks[number] = Some(chunk);
            free.pages.put(number);
            self.free_count.store(free.pages.count(), Ordering::Relaxed);
            (free.watcher.clone(), free.waiting > 0)
        };
        if awaited {
            self.returned.notify_all();
        }
        if let Some(watcher) = watcher {
            watcher();
        }
    }
}

impl Drop for SlabInner {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("page_bytes", &self.0.page_bytes).field("usage", &self.usage()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_gives_more_than_it_has() {
        let slab = Slab::new(4 * 65_536, 65_536).unwrap();
        let three = slab.take(3).unwrap();
        assert!(slab.take(2).is_none());
        let one = slab.take(1).unwrap();
        assert_eq!(slab.usage().high_water, 4);
        drop((three, one));
        let usage = slab.usage();
        assert_eq!((usage.free, usage.filling, usage.high_water), (4, 0, 4));
    }

    #[test]
    fn memory_that_comes_behind_is_there_and_ends_with_the_slab() {
        const BYTES: usize = 64 << 20;
        let slab = Slab::at_once(BYTES, 1 << 20).unwrap();
        let mut pages = slab.take(64).unwrap();
        for (number, page) in pages.iter_mut().enumerate() {
            assert!(page.iter().all(|byte| *byte == 0));
            page.fill(number as u8);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while Arc::strong_count(&slab.0.gone) > 1 {
            assert!(Instant::now() < deadline, "the thread does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        for (number, page) in pages.iter().enumerate() {
            assert!(page.iter().all(|byte| *byte == number as u8), "page {number} was changed");
        }
        let gone = Arc::clone(&slab.0.gone);
        assert!(rest_of(4 * HUGE_PAGE_BYTES, &gone).eq([1, 2, 3].map(|n| n * HUGE_PAGE_BYTES)));
        drop(slab);
        assert!(!gone.load(Ordering::Relaxed), "pages are out");
        drop(pages);
        assert_eq!(rest_of(4 * HUGE_PAGE_BYTES, &gone).count(), 0);
    }

    /// The lock is held when the child is forked, and nobody lets go of it there.
    #[test]
    fn a_forked_child_neither_has_pages_nor_waits() {
        let slab = Slab::new(4 * 65_536, 65_536).unwrap();
        let mut theirs = slab.take(3);
        let held = slab.0.lock();
        let answer = farfeed_driver_double::in_a_child(Duration::from_secs(20), || {
            drop(theirs.take());
            slab.watch(|| ());
            let waited = slab.take_within(1, Duration::from_secs(60)).unwrap_err();
            let usage = slab.usage();
            format!("{:?} {} {} {}", waited.kind(), slab.take(1).is_none(), usage.free, usage.high_water)
        });
        assert_eq!(answer.as_deref(), Ok("Unsupported true 1 3"));
        drop(held);
        drop(theirs);
        assert_eq!(slab.usage().free, 4);
    }

    #[test]
    fn waiting_ends_with_the_page_or_with_a_diagnosis() {
        let slab = Slab::new(65_536, 65_536).unwrap();
        let page = slab.take(1).unwrap();
        let error = slab.take_within(1, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), Kind::Stalled);
        assert_eq!(slab.take_within(2, Duration::ZERO).unwrap_err().kind(), Kind::Config);
        let waiter = std::thread::spawn({
            let slab = slab.clone();
            move || slab.take_within(1, Duration::from_secs(10)).map(|pages| pages.len())
        });
        drop(page);
        assert_eq!(waiter.join().unwrap().unwrap(), 1);
    }
}
