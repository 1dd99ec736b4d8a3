//! A copy engine and its consumers for tests: on a device of the driver double, or on the machine's GPU by `FARFEED_TEST_GPU=1`.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its device fails")]

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use farfeed::device::{Device, DeviceSlot, Engine, RawStream, Segment};
use farfeed::memory::{Landed, Landing, Slab};
use farfeed_driver_double::{Double, DoubleDevice, Driver, Live, on_gpu};

pub(crate) const PAGE_BYTES: usize = 4096;

/// What ends on an idle machine within milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Kernels that a test has launched at most.
const EXPECTATIONS: usize = 1024;

/// A device: one of the double's sixteen for each test, or the only one there may be.
pub(crate) struct Place {
    pub(crate) ordinal: u32,
    /// `None` on a real GPU.
    pub(crate) double: Option<DoubleDevice>,
    pub(crate) device: Device,
}

impl Place {
    pub(crate) fn new(ordinal: u32) -> Place {
        let ordinal = if on_gpu() { 0 } else { ordinal };
        let double = (!on_gpu()).then(|| Double::load().device(ordinal));
        Place { ordinal, double, device: Device::cuda(ordinal).expect("there is such a device") }
    }

    /// Copies take as long as at this rate; on a real GPU they take as long as they take.
    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        if let Some(double) = self.double {
            double.set_rate(bytes_per_second);
        }
    }

    /// Nothing may be left, and nothing forbidden may have happened.
    pub(crate) fn end(self) {
        drop(self.device);
        if let Some(double) = self.double {
            assert_eq!(double.violations(), "");
            assert_eq!(double.live(), Live::default());
            assert!(
                Double::load().thread_is_untouched(),
                "a context, or another mode towards captures, was left behind"
            );
        }
    }
}

/// Kernels that look at batches: each waits for a while and then counts bytes that are not what they should be.
pub(crate) struct Consumers {
    driver: Driver,
    module: usize,
    expect: usize,
    uploads: usize,
    /// A count of wrong bytes for each kernel.
    wrong: u64,
    /// What they should have found.
    wanted: Vec<u64>,
}

impl Consumers {
    pub(crate) fn new(place: &Place) -> Consumers {
        let driver = Driver::open(place.ordinal);
        if place.double.is_some() {
            register_twin();
        }
        let ptx = CString::new(include_str!("expect.ptx")).unwrap();
        let module = driver.module(&ptx).expect("the kernel is PTX 8.0");
        let expect = driver.function(module, c"expect").unwrap();
        let uploads = driver.stream(false);
        let wrong = driver.allocate(8 * EXPECTATIONS).unwrap();
        driver.fill(wrong, 0, 8 * EXPECTATIONS, uploads).unwrap();
        driver.synchronize_stream(uploads).unwrap();
        Consumers { driver, module, expect, uploads, wrong, wanted: Vec::new() }
    }

    /// Launches a kernel in `stream` that reads `expected.len()` bytes at `pointer`, `after` a while.
    pub(crate) fn expect(&mut self, stream: usize, pointer: u64, expected: &[u8], after: Duration) {
        assert!(self.wanted.len() < EXPECTATIONS && !expected.is_empty());
        let wanted = self.driver.allocate(expected.len()).unwrap();
        // In a stream of their own, and over before the kernel is launched: it waits for nothing but what its stream was told.
        self.driver.copy_pageable(wanted, expected, self.uploads).unwrap();
        self.driver.synchronize_stream(self.uploads).unwrap();
        let wrong = self.wrong + 8 * self.wanted.len() as u64;
        self.wanted.push(wanted);
        let parameters = [pointer, wanted, expected.len() as u64, wrong, after.as_nanos() as u64];
        self.driver.launch(self.expect, 256, &parameters, stream).unwrap();
    }

    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Waits for all kernels; none may have found anything wrong.
    pub(crate) fn end(self) {
        self.driver.synchronize().unwrap();
        let wrong = self.driver.read_back(self.wrong, 8 * EXPECTATIONS, self.uploads).unwrap();
        let counts: Vec<_> = wrong.chunks(8).map(|count| u64::from_ne_bytes(count.try_into().unwrap())).collect();
        assert_eq!(counts.iter().sum::<u64>(), 0, "wrong bytes by kernel: {:?}", &counts[..self.wanted.len()]);
        self.wanted.iter().chain([&self.wrong]).for_each(|pointer| self.driver.free(*pointer).unwrap());
        self.driver.destroy_stream(self.uploads).unwrap();
        self.driver.unload(self.module).unwrap();
    }
}

/// What `expect.ptx` does, on the double.
fn register_twin() {
    Double::load().twin("expect", |launch| {
        let (data, wanted, bytes, wrong) = (launch.u64(0), launch.u64(1), launch.u64(2) as usize, launch.u64(3));
        std::thread::sleep(Duration::from_nanos(launch.u64(4)));
        let (found, wanted) = (launch.read(data, bytes), launch.read(wanted, bytes));
        let count = found.iter().zip(&wanted).filter(|(found, wanted)| found != wanted).count() as u64;
        launch.write(wrong, &count.to_ne_bytes());
    });
}

/// An engine on a device, its slab, and its consumers.
pub(crate) struct Rig {
    pub(crate) place: Place,
    pub(crate) slab: Slab,
    pub(crate) engine: Option<Box<dyn Engine>>,
    pub(crate) consumers: Consumers,
    pub(crate) woken: Arc<AtomicUsize>,
}

impl Rig {
    pub(crate) fn new(ordinal: u32, pages: usize, slots: usize, slot_bytes: usize) -> Rig {
        let place = Place::new(ordinal);
        let slab = Slab::new(pages * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let engine = place.device.backend().open(&slab, slots, slot_bytes, wake).expect("the engine opens");
        let consumers = Consumers::new(&place);
        Rig { place, slab, engine: Some(engine), consumers, woken }
    }

    pub(crate) fn engine(&mut self) -> &mut dyn Engine {
        self.engine.as_deref_mut().expect("the engine was not dropped")
    }

    /// The next free slot.
    pub(crate) fn acquire(&mut self) -> DeviceSlot {
        within_patience("a slot", || {
            self.engine().poll().expect("copies go well");
            self.engine().acquire().expect("slots come back")
        })
    }

    /// Waits for all copies.
    pub(crate) fn settle(&mut self) {
        within_patience("copies to end", || (self.engine().poll().expect("copies go well") == 0).then_some(()));
    }

    /// Has `bytes` land in pages.
    pub(crate) fn land(&mut self, bytes: &[u8]) -> Landed {
        let count = bytes.len().div_ceil(PAGE_BYTES);
        let pages = within_patience("pages", || {
            let pages = self.slab.take(count);
            self.engine().poll().expect("copies go well");
            pages
        });
        let mut landing = Landing::new(pages, bytes.len());
        assert_eq!(landing.push(bytes), bytes.len());
        landing.landed().expect("all bytes were pushed")
    }

    /// Copies all of `landed` to the front of `slot`, and gives the pages away.
    pub(crate) fn send(&mut self, slot: &mut DeviceSlot, landed: Landed) {
        self.copy(slot, &landed);
        self.engine().seal(slot, vec![landed.hold()]).expect("the batch is sealed");
    }

    /// The first half of that.
    pub(crate) fn copy(&mut self, slot: &mut DeviceSlot, landed: &Landed) {
        let mut to = 0;
        let segments: Vec<_> = landed
            .slices(0, landed.len())
            .map(|from| {
                to += from.len();
                Segment { from, to: to - from.len() }
            })
            .collect();
        self.engine().copy(slot, &segments).expect("the copy is taken");
    }

    /// Has `stream` look at the front of a slot.
    pub(crate) fn expect(&mut self, stream: &RawStream, slot: &DeviceSlot, expected: &[u8], after: Duration) {
        self.consumers.expect(stream.handle(), slot.device_pointer(), expected, after);
    }

    /// Drops what is left; nothing may be, and nothing forbidden may have happened.
    pub(crate) fn end(self) {
        let Rig { place, slab, engine, consumers, .. } = self;
        drop((engine, slab));
        consumers.end();
        place.end();
    }
}

/// Asks until there is an answer.
pub(crate) fn within_patience<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31).wrapping_add(seed * 17) % 251) as u8).collect()
}
