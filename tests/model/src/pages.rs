//! Pages: taken, filled, shared by batches, held by copies, and free again.

use std::time::Duration;

use loom::thread;

use crate::Bell;
use crate::memory::{Landed, Landing, Slab, SlabUse};

const PAGE_BYTES: usize = 4096;

/// Who waits for two pages gets them, when two threads let go of one each.
pub fn a_page_that_comes_back_is_not_slept_through() {
    loom::model(|| {
        let slab = slab(2);
        let pages = slab.take(2).into_iter().flatten();
        let threads: Vec<_> = pages.map(|page| thread::spawn(move || drop(page))).collect();
        let taken = slab.take_within(2, Duration::from_secs(3600));
        assert_eq!(taken.map(|pages| pages.len()).ok(), Some(2));
        join(threads);
        assert_eq!(slab.usage(), all_free(2));
    });
}

/// As the pump does: it asks, and sleeps until the slab's watcher wakes it.
pub fn the_watcher_wakes_who_found_no_page() {
    few_preemptions(|| {
        let slab = slab(2);
        let bell = Bell::default();
        let rings = bell.clone();
        slab.watch(move || rings.ring());
        let pages = slab.take(2).into_iter().flatten();
        let threads: Vec<_> = pages.map(|page| thread::spawn(move || drop(page))).collect();
        let taken = loop {
            match slab.take(2) {
                Some(pages) => break pages,
                None => bell.wait(),
            }
        };
        assert_eq!(taken.len(), 2);
        join(threads);
        drop(taken);
        assert_eq!(slab.usage(), all_free(2));
    });
}

/// Two take at once what is enough for one of them.
pub fn no_page_is_given_twice() {
    few_preemptions(|| {
        let slab = slab(3);
        let takers: Vec<_> = (1..=2_u8)
            .map(|name| {
                let slab = slab.clone();
                thread::spawn(move || {
                    let mut pages = slab.take(2)?;
                    pages.iter_mut().for_each(|page| page.fill(name));
                    thread::yield_now();
                    assert!(
                        pages.iter().all(|page| page.iter().all(|byte| *byte == name)),
                        "somebody else wrote there"
                    );
                    Some(pages.len())
                })
            })
            .collect();
        let taken: usize = takers.into_iter().filter_map(|taker| taker.join().ok().flatten()).sum();
        assert!(taken == 2 || taken == 4, "{taken}");
        let usage = slab.usage();
        assert_eq!((usage.free, usage.filling, usage.ready), (3, 0, 0));
    });
}

/// Two batches share a read: each holds it for its copies and lets go of it on a thread of its own, while its bytes are looked at.
pub fn what_batches_share_is_freed_once_and_by_the_last() {
    loom::model(|| {
        let slab = slab(1);
        let landed = landed(&slab);
        let copies: Vec<_> = (0..2)
            .map(|_| {
                let (landed, slab) = (landed.clone(), slab.clone());
                thread::spawn(move || {
                    let hold = landed.hold();
                    drop(landed);
                    assert!(slab.take(1).is_none(), "a copy reads it");
                    assert!(hold.landed().slices(0, PAGE_BYTES).all(|bytes| bytes.iter().all(|byte| *byte == 7)));
                    drop(hold);
                })
            })
            .collect();
        drop(landed);
        join(copies);
        assert_eq!(slab.usage(), all_free(1));
    });
}

/// The slab is let go of while a page is out: who comes last unmaps it.
pub fn a_page_may_outlive_its_slab() {
    loom::model(|| {
        let slab = slab(1);
        let landed = landed(&slab);
        let thread = thread::spawn(move || {
            let hold = landed.hold();
            drop(landed);
            hold.landed().slices(0, PAGE_BYTES).flatten().map(|byte| usize::from(*byte)).sum::<usize>()
        });
        drop(slab);
        assert_eq!(thread.join().ok(), Some(7 * PAGE_BYTES));
    });
}

/// The mistake that these models are there for: waking before the page is back. It must be found.
pub fn waking_too_early_is_found() {
    loom::model(|| {
        let slab = slab(1);
        let bell = Bell::default();
        let page = slab.take(1);
        let thread = thread::spawn({
            let bell = bell.clone();
            move || {
                bell.ring();
                drop(page);
            }
        });
        while slab.take(1).is_none() {
            bell.wait();
        }
        join(vec![thread]);
    });
}

/// Every order in which threads are interrupted three times at the most, which is where mistakes have been found to show (Musuvathi and Qadeer, "Iterative
/// context bounding for systematic testing of multithreaded programs", 2007): all orders would take half a minute.
fn few_preemptions(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn slab(pages: usize) -> Slab {
    match Slab::new(pages * PAGE_BYTES, PAGE_BYTES) {
        Ok(slab) => slab,
        Err(error) => panic!("{error}"),
    }
}

/// A page full of sevens.
fn landed(slab: &Slab) -> Landed {
    let mut landing = Landing::new(slab.take(1).unwrap_or_default(), PAGE_BYTES);
    landing.push(&[7; PAGE_BYTES]);
    match landing.landed() {
        Some(landed) => landed,
        None => panic!("a full landing has landed"),
    }
}

fn all_free(total: usize) -> SlabUse {
    SlabUse { free: total, filling: 0, ready: 0, copying: 0, high_water: total, total }
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    for thread in threads {
        assert!(thread.join().is_ok(), "a thread panicked");
    }
}
