//! Nothing that is dropped frees memory that the kernel still writes to.
//!
//! That these tests can fail was tried, on a local disk: with a ring that frees the pages of a read in flight once nobody
//! waits for it (what futures do that own their buffers), the first test fails in its second round with more than 40
//! of 64 pages overwritten; with `Ring::drop` freeing what is in flight without waiting, the second does, with more
//! than 50. Round 0 drops at once, when the disk has hardly begun.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::io::Write;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use farfeed::Kind;
use farfeed::memory::{Filling, Landing, Page, Slab};
use farfeed::store::{FileBackend, FileOptions, FileStore, ReadRequest, Store};

const PAGE_BYTES: usize = 1 << 20;
const PAGES: usize = 64;
const READ_PAGES: usize = 4;
const ROUNDS: u8 = 24;
/// In the file, and never in a pattern.
const FROM_FILE: u8 = 0xFF;
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads in flight are dropped, and the pages used again the moment they come back.
#[test]
fn dropped_reads_write_to_no_page_that_came_back() {
    let (_folder, key) = file();
    let slab = Slab::new(PAGES * PAGE_BYTES, PAGE_BYTES).unwrap();
    let Some(store) = ring() else { return };
    for round in 0..ROUNDS {
        begin_and_drop(&store, &slab, &key, pause(round));
        check_reuse(&slab, round);
    }
    assert_eq!(slab.usage().free, PAGES);
}

/// The same, and the store with its ring goes as well.
#[test]
fn a_dropped_store_waits_for_the_kernel_before_it_frees() {
    let (_folder, key) = file();
    let slab = Slab::new(PAGES * PAGE_BYTES, PAGE_BYTES).unwrap();
    for round in 0..ROUNDS {
        let Some(store) = ring() else { return };
        begin_and_drop(&store, &slab, &key, pause(round));
        drop(store);
        check_reuse(&slab, round);
    }
    assert_eq!(slab.usage().free, PAGES);
}

/// How long reads run before they are dropped: from not begun to mostly done.
fn pause(round: u8) -> Duration {
    Duration::from_micros(u64::from(round % 8) * 150)
}

fn file() -> (tempfile::TempDir, Arc<str>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard");
    let mut file = std::fs::File::create(&path).unwrap();
    for _ in 0..PAGES {
        file.write_all(&[FROM_FILE; PAGE_BYTES]).unwrap();
    }
    // Direct reads of what is only in the page cache would write it out first.
    file.sync_all().unwrap();
    let key = path.to_str().unwrap().into();
    (folder, key)
}

/// `None` where the kernel refuses a ring: there is nothing to tear down then.
fn ring() -> Option<Arc<FileStore>> {
    let options = FileOptions { backend: FileBackend::Ring, direct: true, queue_depth: PAGES };
    match FileStore::open(options) {
        Err(error) if error.kind() == Kind::Unsupported => {
            eprintln!("skipped: {error}");
            None
        }
        store => Some(store.unwrap()),
    }
}

/// Reads one byte, so that the file is open.
fn open(store: &FileStore, slab: &Slab, key: &Arc<str>) {
    let mut landing = Landing::new(slab.take(1).unwrap(), 1);
    let request = ReadRequest { key: Arc::clone(key), start: 0, size: None, version: None };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.read(&request, &mut landing)).unwrap();
    assert_eq!(landing.landed().unwrap().slices(0, 1).next().unwrap(), [FROM_FILE]);
}

/// Starts reads into all pages, lets them run for a while, and drops futures and landings.
fn begin_and_drop(store: &FileStore, slab: &Slab, key: &Arc<str>, pause: Duration) {
    open(store, slab, key);
    let bytes = READ_PAGES * PAGE_BYTES;
    let requests: Vec<_> = (0..PAGES / READ_PAGES)
        .map(|read| ReadRequest { key: Arc::clone(key), start: (read * bytes) as u64, size: None, version: None })
        .collect();
    let mut landings: Vec<_> = requests.iter().map(|_| Landing::new(slab.take(READ_PAGES).unwrap(), bytes)).collect();
    let mut reads: Vec<_> =
        std::iter::zip(&requests, &mut landings).map(|(request, landing)| store.read(request, landing)).collect();
    // The file is open: one poll, without any executor, brings a read to the ring.
    let mut context = Context::from_waker(Waker::noop());
    for read in &mut reads {
        // A machine that was busy elsewhere may find it done already.
        if let Poll::Ready(result) = read.as_mut().poll(&mut context) {
            result.unwrap();
        }
    }
    std::thread::sleep(pause);
    drop(reads);
    drop(landings);
}

/// Takes pages as they come back, writes a pattern, and sees that it stays.
fn check_reuse(slab: &Slab, round: u8) {
    let deadline = Instant::now() + PATIENCE;
    let mut reused: Vec<Page<Filling>> = Vec::new();
    while reused.len() < PAGES {
        match slab.take(1) {
            Some(mut pages) => {
                pages.iter_mut().for_each(|page| page.fill(round));
                reused.append(&mut pages);
            }
            None => std::thread::sleep(Duration::from_micros(50)),
        }
        assert!(Instant::now() < deadline, "pages did not come back: {:?}", slab.usage());
    }
    // Whatever was in flight has landed by now.
    std::thread::sleep(Duration::from_millis(60));
    let pattern = vec![round; PAGE_BYTES];
    let overwritten = reused.iter().filter(|page| page[..] != pattern[..]).count();
    assert_eq!(overwritten, 0, "the kernel wrote into pages that were in use, round {round}");
}
