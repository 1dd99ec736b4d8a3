//! The copy engine from end to end, against a driver double: see `tests/driver-double`. Each test has a device of its own.
#![cfg(feature = "cuda")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use farfeed::device::{Device, DeviceSlot, Engine, RawStream, Segment, copy_rate, probe};
use farfeed::memory::{Landed, Landing, Slab};
use farfeed::store::MemoryStore;
use farfeed::{ByteSize, Kind, Loader};
use farfeed_driver_double::{Double, DoubleDevice, Live};

const PAGE_BYTES: usize = 4096;

struct Rig {
    double: DoubleDevice,
    device: Device,
    slab: Slab,
    engine: Option<Box<dyn Engine>>,
    woken: Arc<AtomicUsize>,
}

impl Rig {
    fn new(ordinal: u32, pages: usize, slots: usize, slot_bytes: usize) -> Rig {
        let double = Double::load().device(ordinal);
        let device = Device::cuda(ordinal).expect("the double has that many devices");
        let slab = Slab::new(pages * PAGE_BYTES, PAGE_BYTES).expect("a small slab");
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        let engine = device.backend().open(&slab, slots, slot_bytes, wake).expect("the engine opens");
        Rig { double, device, slab, engine: Some(engine), woken }
    }

    fn engine(&mut self) -> &mut dyn Engine {
        self.engine.as_deref_mut().expect("the engine was not dropped")
    }

    /// The next free slot, within five seconds.
    fn acquire(&mut self) -> DeviceSlot {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            self.engine().poll().expect("copies go well");
            if let Some(slot) = self.engine().acquire().expect("slots come back") {
                return slot;
            }
            assert!(Instant::now() < deadline, "no slot came free");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits for all copies.
    fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.engine().poll().expect("copies go well") > 0 {
            assert!(Instant::now() < deadline, "copies do not end");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Has `bytes` land in pages, within five seconds.
    fn land(&mut self, bytes: &[u8]) -> Landed {
        let deadline = Instant::now() + Duration::from_secs(5);
        let pages = loop {
            if let Some(pages) = self.slab.take(bytes.len().div_ceil(PAGE_BYTES)) {
                break pages;
            }
            self.engine().poll().expect("copies go well");
            assert!(Instant::now() < deadline, "no page came free");
            std::thread::sleep(Duration::from_micros(200));
        };
        let mut landing = Landing::new(pages, bytes.len());
        assert_eq!(landing.push(bytes), bytes.len());
        landing.landed().expect("all bytes were pushed")
    }

    /// Copies all of `landed` to the front of `slot`, and gives the pages away.
    fn send(&mut self, slot: &mut DeviceSlot, landed: Landed) {
        let mut to = 0;
        let segments: Vec<_> = landed
            .slices(0, landed.len())
            .map(|from| {
                to += from.len();
                Segment { from, to: to - from.len() }
            })
            .collect();
        self.engine().copy(slot, &segments).expect("the copy is taken");
        self.engine().seal(slot, vec![landed.hold()]).expect("the batch is sealed");
    }

    /// Drops what is left; nothing may be, and nothing forbidden may have happened.
    fn end(mut self) {
        self.engine = None;
        self.double.drain();
        drop((self.device, self.slab));
        assert_eq!(self.double.violations(), "");
        assert_eq!(self.double.live(), Live::default());
        assert_eq!(Double::load().contexts_on_this_thread(), 0, "the thread is as it was");
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31).wrapping_add(seed * 17) % 251) as u8).collect()
}

#[test]
fn scattered_samples_land_where_they_belong() {
    let mut rig = Rig::new(9, 16, 2, 60_000);
    let source = pattern(50_000, 1);
    let landed = rig.land(&source);
    let order: Vec<usize> = (0..500).map(|place| place * 37 % 500).collect();
    let mut segments = Vec::new();
    for (place, sample) in order.iter().enumerate() {
        let mut to = place * 100;
        for from in landed.slices(sample * 100, 100) {
            segments.push(Segment { from, to });
            to += from.len();
        }
    }
    let mut slot = rig.acquire();
    rig.engine().copy(&mut slot, &segments).unwrap();
    let mut offsets = vec![7; 300];
    rig.engine().put(&mut slot, 50_000, &offsets).unwrap();
    offsets.fill(8);
    // From the stack: no page, and no hold that would keep it.
    rig.engine().copy(&mut slot, &[Segment { from: &[9; 50], to: 50_300 }]).unwrap();
    rig.engine().seal(&mut slot, vec![landed.hold()]).unwrap();
    drop(landed);

    let want: Vec<u8> = order.iter().flat_map(|sample| &source[sample * 100..sample * 100 + 100]).copied().collect();
    assert_eq!(slot.read_back(0, 50_000).unwrap(), want);
    assert_eq!(slot.read_back(50_000, 350).unwrap(), [vec![7; 300], vec![9; 50]].concat());
    assert!(slot.bytes().is_none() && slot.device_pointer() != 0);
    assert_eq!(slot.read_back(59_999, 2).unwrap_err().kind(), Kind::Config);
    let past = rig.engine().copy(&mut slot, &[Segment { from: &[0; 2], to: 59_999 }]).unwrap_err();
    assert_eq!(past.kind(), Kind::Config);
    slot.release(None).unwrap();
    rig.settle();
    assert_eq!((rig.woken.load(Ordering::SeqCst), rig.slab.usage().free), (1, 16));
    rig.end();
}

#[test]
fn bytes_from_elsewhere_are_taken_at_once() {
    let mut rig = Rig::new(8, 1, 1, 10_000);
    rig.double.set_rate(1_000_000);
    let other = Slab::new(2 * PAGE_BYTES, PAGE_BYTES).unwrap();
    // Page-locked as well, so that the driver would read it later: after it was overwritten below.
    let engine = rig.device.backend().open(&other, 1, 1, Arc::new(|| ())).unwrap();
    let mut pages = other.take(2).unwrap();
    pages.iter_mut().for_each(|page| page.fill(1));
    let mut slot = rig.acquire();
    rig.engine().copy(&mut slot, &[Segment { from: &pages[0], to: 0 }, Segment { from: &pages[1], to: 5000 }]).unwrap();
    rig.engine().seal(&mut slot, Vec::new()).unwrap();
    pages.iter_mut().for_each(|page| page.fill(2));
    assert_eq!(slot.read_back(0, PAGE_BYTES).unwrap(), [1; PAGE_BYTES]);
    assert_eq!(slot.read_back(5000, PAGE_BYTES).unwrap(), [1; PAGE_BYTES]);
    drop((slot, engine, pages, other));
    rig.end();
}

#[test]
fn a_slot_is_refilled_only_after_its_consumer() {
    let mut rig = Rig::new(1, 64, 2, 20_000);
    rig.double.set_rate(100_000_000);
    let stream = rig.device.stream().unwrap();
    let other = rig.device.stream().unwrap();
    let begun = Instant::now();
    for batch in 0..12 {
        let bytes = pattern(20_000, batch);
        let landed = rig.land(&bytes);
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slot.wait_on(stream.clone()).unwrap();
        rig.double.consume(stream.handle(), slot.device_pointer(), &bytes, Duration::from_millis(10));
        match batch % 3 {
            // The stream is remembered from `wait_on`, alone or beside another.
            0 => drop(slot),
            1 => {
                slot.wait_on(other.clone()).unwrap();
                rig.double.consume(other.handle(), slot.device_pointer(), &bytes, Duration::from_millis(15));
                drop(slot);
            }
            _ => slot.release(Some(stream.clone())).unwrap(),
        }
    }
    // The last batch's copy has waited for its slot's consumer: none of this took the host's time.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    rig.settle();
    rig.double.drain();
    drop((stream, other));
    rig.end();
}

#[test]
fn a_batch_nobody_waited_for_is_covered_by_the_default_stream() {
    let mut rig = Rig::new(2, 64, 1, 20_000);
    for batch in 0..4 {
        let bytes = pattern(20_000, batch);
        let landed = rig.land(&bytes);
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slot.synchronize().unwrap();
        let default = RawStream::LEGACY_DEFAULT.handle();
        rig.double.consume(default, slot.device_pointer(), &bytes, Duration::from_millis(20));
    }
    rig.settle();
    rig.end();
}

#[test]
fn pages_are_recycled_only_after_their_copy() {
    let mut rig = Rig::new(3, 8, 4, 4 * PAGE_BYTES);
    rig.double.set_rate(200_000);
    let mut slots = Vec::new();
    for batch in 0..4 {
        // Eight pages, four for a batch: from the third on, each must wait for the copy of an earlier one (80 ms).
        let landed = rig.land(&pattern(4 * PAGE_BYTES, batch));
        if batch < 2 {
            assert_eq!(rig.slab.usage().free, 4 - 4 * batch);
        }
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slots.push(slot);
    }
    assert!(rig.engine().poll().unwrap() > 0 && rig.slab.usage().free < 8, "copies were still under way");
    assert!(rig.engine().acquire().unwrap().is_none(), "all slots are held");
    for (batch, slot) in slots.iter().enumerate() {
        assert_eq!(slot.read_back(0, 4 * PAGE_BYTES).unwrap(), pattern(4 * PAGE_BYTES, batch), "batch {batch}");
    }
    rig.settle();
    assert_eq!(rig.slab.usage().free, 8);
    drop(slots);
    rig.end();
}

#[test]
fn a_teardown_in_mid_copy_waits_for_the_copy() {
    let mut rig = Rig::new(4, 8, 3, 8 * PAGE_BYTES);
    rig.double.set_rate(200_000);
    let bytes = pattern(8 * PAGE_BYTES, 5);
    let landed = rig.land(&bytes);
    let mut held = rig.acquire();
    let unsealed = rig.acquire();
    rig.send(&mut held, landed);
    drop(unsealed);
    assert_eq!(rig.engine().poll().unwrap(), 1);
    let begun = Instant::now();
    rig.engine = None;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(rig.slab.usage().free, 8);
    assert_eq!(rig.double.live().registrations, 1, "the slab is unregistered; the held slot has its staging memory");
    // 32 KiB at 200 kB/s would have been cut short by freeing anything early.
    assert_eq!(held.read_back(0, bytes.len()).unwrap(), bytes);
    drop(held);
    rig.end();
}

/// R13 of docs/python.md: no wait for a user's stream is without an end.
#[test]
fn a_consumer_that_never_ends_does_not_hang_the_teardown() {
    let mut rig = Rig::new(5, 16, 1, 4 * PAGE_BYTES);
    let stream = rig.device.stream().unwrap();
    let first = pattern(4 * PAGE_BYTES, 1);
    let landed = rig.land(&first);
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    slot.wait_on(stream.clone()).unwrap();
    rig.double.consume(stream.handle(), slot.device_pointer(), &first, Duration::from_secs(3));
    slot.release(Some(stream.clone())).unwrap();
    // The next batch's copy waits for that kernel, in the copy stream.
    let landed = rig.land(&pattern(4 * PAGE_BYTES, 2));
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    let begun = Instant::now();
    rig.engine = None;
    drop(slot);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let live = rig.double.live();
    assert_eq!(
        (live.allocations, live.registrations),
        (1, 2),
        "what the device may still touch is given up, not freed"
    );
    assert_eq!(rig.slab.usage().copying, 4);
    rig.double.drain();
    drop(stream);
    assert_eq!(rig.double.violations(), "");
}

#[test]
fn a_failed_copy_is_told_with_the_drivers_name_for_it() {
    let mut rig = Rig::new(6, 16, 2, 4 * PAGE_BYTES);
    rig.double.set_rate(10_000_000);
    rig.double.fail_copy(1);
    let mut slots = Vec::new();
    for batch in 0..2 {
        let landed = rig.land(&pattern(4 * PAGE_BYTES, batch));
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slots.push(slot);
    }
    let error = slots[1].synchronize().unwrap_err();
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{error}");
    assert!(error.next_step().is_some());
    assert_eq!(rig.engine().poll().unwrap_err().kind(), Kind::Device);
    let begun = Instant::now();
    for slot in slots {
        assert_eq!(slot.release(None).unwrap_err().kind(), Kind::Device);
    }
    assert_eq!(rig.engine().acquire().unwrap_err().kind(), Kind::Device);
    rig.engine = None;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!((rig.double.violations().as_str(), rig.slab.usage().free), ("", 16));
}

#[test]
fn what_cannot_be_had_is_explained_or_done_without() {
    let double = Double::load().device(7);
    let facts = probe();
    assert_eq!((facts.version, facts.devices.len(), facts.problem), (Some((13, 0)), 16, None));
    assert_eq!((facts.devices[7].memory_bytes, facts.devices[7].copy_engines), (1 << 30, 2));
    assert_eq!(Device::best().to_string(), "cuda:0");
    let device: Device = "cuda:7".parse().unwrap();
    assert_eq!(device.name(), "cuda:7 (driver double)");
    assert_eq!(Device::cuda(16).unwrap_err().kind(), Kind::Device);

    double.set_rate(500_000_000);
    let rate = copy_rate(&device, 64 << 20).unwrap();
    assert!((20.0..=501.0).contains(&rate), "{rate} MB/s of 500");

    let slab = Slab::new(8 * PAGE_BYTES, PAGE_BYTES).unwrap();
    let open = |slots, bytes| device.backend().open(&slab, slots, bytes, Arc::new(|| ()));
    let error = open(3, 400 << 20).err().unwrap();
    assert_eq!(error.kind(), Kind::Device);
    assert!(error.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY") && error.to_string().contains("free"), "{error}");
    assert_eq!((double.live().allocations, double.live().registrations), (0, 0));

    let engine = open(1, 100).unwrap();
    assert_eq!(open(1, 100).err().map(|error| error.kind()), Some(Kind::Config), "one engine for a slab");
    assert_eq!(engine.note(), None);
    drop(engine);

    double.refuse_registration();
    let mut engine = open(1, 3 << 20).unwrap();
    assert!(engine.note().is_some_and(|note| note.contains("not page-locked")));
    // More than the staging memory that a slot begins with.
    let mut slot = engine.acquire().unwrap().unwrap();
    let bytes = pattern(3 << 20, 3);
    engine.put(&mut slot, 0, &bytes).unwrap();
    engine.seal(&mut slot, Vec::new()).unwrap();
    assert_eq!(slot.read_back(0, bytes.len()).unwrap(), bytes);
    drop((slot, engine, slab));
    drop(device);
    assert_eq!((double.violations().as_str(), double.live()), ("", Live::default()));
}

/// A safetensors file of so many tensors of so many floats.
fn safetensors(tensors: usize, floats: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let values: Vec<_> = (0..tensors).map(|number| pattern(floats * 4, number)).collect();
    let entry = |number| {
        let (from, to) = (number * floats * 4, (number + 1) * floats * 4);
        format!(r#""t{number}":{{"dtype":"F32","shape":[{floats}],"data_offsets":[{from},{to}]}}"#)
    };
    let table = format!("{{{}}}", (0..tensors).map(entry).collect::<Vec<_>>().join(","));
    let head = [&(table.len() as u64).to_le_bytes(), table.as_bytes()].concat();
    (head.into_iter().chain(values.iter().flatten().copied()).collect(), values)
}

#[test]
fn weights_go_through_less_host_memory_than_they_have_bytes() {
    let (ordinal, host_memory) = (10, ByteSize::mib(10));
    let double = Double::load().device(ordinal);
    let device = Device::cuda(ordinal).expect("the double has that many devices");
    let (file, values) = safetensors(5, 1_000_003);
    assert!(file.len() as u64 > host_memory.as_bytes());
    let store = MemoryStore::new();
    store.put("m.safetensors", file);
    let builder = Loader::builder("memory:m.safetensors").store(store).device(device.clone()).host_memory(host_memory);
    let weights = builder.load_weights().expect("the tensors fit");
    assert!(weights.device() == &device && weights.len() == values.len());
    let base = weights.tensor("t0").expect("it is there").pointer;
    for (number, value) in values.iter().enumerate() {
        let name = format!("t{number}");
        let tensor = weights.tensor(&name).expect("it is there");
        // A driver's own memory begins at such a multiple, the double's anywhere.
        assert!(tensor.bytes.is_none() && (tensor.pointer - base) % 256 == 0, "{name} lies on the device");
        assert!(weights.read_back(&name).expect("it can be read") == *value, "{name}");
    }
    weights.wait_on(RawStream::LEGACY_DEFAULT).expect("the stream is remembered");
    drop((weights, device));
    double.drain();
    assert_eq!(double.violations(), "");
    assert_eq!(double.live(), Live::default());
}
