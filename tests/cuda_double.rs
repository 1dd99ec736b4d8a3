//! The copy engine from end to end, against a driver double (see `tests/driver-double`), or against a GPU by
//! `FARFEED_TEST_GPU=1`. On the double each test has a device of its own, and its checker, guard and counts look on.
#![cfg(feature = "cuda")]

mod cuda;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cuda::{PAGE_BYTES, Place, Rig, pattern};
use farfeed::device::{Device, RawStream, Segment, copy_rate, probe};
use farfeed::memory::Slab;
use farfeed::store::MemoryStore;
use farfeed::{ByteSize, Kind, Loader};
use farfeed_driver_double::{Double, Live, on_gpu};

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
    rig.place.set_rate(1_000_000);
    let other = Slab::new(2 * PAGE_BYTES, PAGE_BYTES).unwrap();
    // Page-locked as well, so that the driver would read it later: after it was overwritten below.
    let engine = rig.place.device.backend().open(&other, 1, 1, Arc::new(|| ())).unwrap();
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
    rig.place.set_rate(100_000_000);
    let stream = rig.place.device.stream().unwrap();
    let other = rig.place.device.stream().unwrap();
    for batch in 0..12 {
        let bytes = pattern(20_000, batch);
        let landed = rig.land(&bytes);
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slot.wait_on(stream.clone()).unwrap();
        rig.expect(&stream, &slot, &bytes, Duration::from_millis(10));
        match batch % 3 {
            // The stream is remembered from `wait_on`, alone or beside another.
            0 => drop(slot),
            1 => {
                slot.wait_on(other.clone()).unwrap();
                rig.expect(&other, &slot, &bytes, Duration::from_millis(15));
                drop(slot);
            }
            _ => slot.release(Some(stream.clone())).unwrap(),
        }
    }
    rig.settle();
    rig.consumers.driver().synchronize().unwrap();
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
        rig.expect(&RawStream::LEGACY_DEFAULT, &slot, &bytes, Duration::from_millis(20));
    }
    rig.settle();
    rig.end();
}

/// Staging memory is a slot's own, and used again with it: not before its copies are known to be over.
#[test]
fn what_the_host_computed_waits_for_its_copy() {
    let mut rig = Rig::new(5, 16, 1, 5 * PAGE_BYTES);
    rig.place.set_rate(1_000_000);
    for batch in 0..5 {
        // Pages come first, and take 16 ms: the host's bytes have to wait, and the next batch's for them.
        let landed = rig.land(&pattern(4 * PAGE_BYTES, batch));
        let mut slot = rig.acquire();
        rig.copy(&mut slot, &landed);
        let labels = pattern(3000, 100 + batch);
        rig.engine().put(&mut slot, 4 * PAGE_BYTES, &labels).unwrap();
        rig.engine().seal(&mut slot, vec![landed.hold()]).unwrap();
        if batch == 4 {
            assert_eq!(slot.read_back(4 * PAGE_BYTES, 3000).unwrap(), labels);
        }
    }
    rig.settle();
    rig.end();
}

/// The handle 2 means another stream on every thread: what a thread has enqueued in its own, another one must find.
#[test]
fn a_threads_own_stream_is_waited_for_wherever_the_slot_is_dropped() {
    let mut rig = Rig::new(4, 64, 1, 20_000);
    for batch in 0..4 {
        let bytes = pattern(20_000, batch);
        let landed = rig.land(&bytes);
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        let consumers = &mut rig.consumers;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stream = RawStream::PER_THREAD_DEFAULT;
                slot.wait_on(stream.clone()).unwrap();
                let pointer = slot.device_pointer();
                consumers.expect(stream.handle(), pointer, &bytes, Duration::from_millis(10));
            });
        });
        // Not on the thread that waited.
        drop(slot);
    }
    // Two threads, each with its own, share a batch.
    let bytes = pattern(20_000, 9);
    let landed = rig.land(&bytes);
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    for _ in 0..2 {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                slot.wait_on(RawStream::PER_THREAD_DEFAULT).unwrap();
                rig.consumers.expect(2, slot.device_pointer(), &bytes, Duration::from_millis(10));
            });
        });
    }
    drop(slot);
    let landed = rig.land(&pattern(20_000, 10));
    let mut slot = rig.acquire();
    rig.send(&mut slot, landed);
    drop(slot);
    rig.settle();
    rig.end();
}

/// A stream that has waited for a slot waits again for what was copied to it since.
#[test]
fn a_slot_that_is_sealed_again_is_waited_for_again() {
    let mut rig = Rig::new(11, 8, 1, 4 * PAGE_BYTES);
    rig.place.set_rate(400_000);
    let stream = rig.place.device.stream().unwrap();
    let mut slot = rig.acquire();
    for round in 0..3 {
        // 40 ms each; nothing reads the slot while it is copied to.
        let bytes = pattern(4 * PAGE_BYTES, round);
        let landed = rig.land(&bytes);
        rig.send(&mut slot, landed);
        slot.wait_on(stream.clone()).unwrap();
        rig.expect(&stream, &slot, &bytes, Duration::ZERO);
        rig.consumers.driver().synchronize_stream(stream.handle()).unwrap();
    }
    drop(slot);
    rig.settle();
    drop(stream);
    rig.end();
}

#[test]
fn pages_are_recycled_only_after_their_copy() {
    let mut rig = Rig::new(3, 8, 4, 4 * PAGE_BYTES);
    rig.place.set_rate(200_000);
    let mut slots = Vec::new();
    for batch in 0..4 {
        // Eight pages, four for a batch: from the third on, each must wait for the copy of an earlier one (80 ms).
        let landed = rig.land(&pattern(4 * PAGE_BYTES, batch));
        if batch < 2 && rig.place.double.is_some() {
            assert_eq!(rig.slab.usage().free, 4 - 4 * batch);
        }
        let mut slot = rig.acquire();
        rig.send(&mut slot, landed);
        slots.push(slot);
    }
    if rig.place.double.is_some() {
        assert!(rig.engine().poll().unwrap() > 0 && rig.slab.usage().free < 8, "copies were still under way");
    }
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
fn what_cannot_be_had_is_explained_or_done_without() {
    if on_gpu() {
        eprintln!("skipped: what the double cannot have");
        return;
    }
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
    let (place, host_memory) = (Place::new(10), ByteSize::mib(10));
    let device = place.device.clone();
    let (file, values) = safetensors(5, 1_000_003);
    assert!(file.len() as u64 > host_memory.as_bytes());
    let store = MemoryStore::new();
    store.put("m.safetensors", file);
    let builder = Loader::builder("memory:m.safetensors").store(store).device(device.clone()).host_memory(host_memory);
    let weights = builder.load_weights().expect("the tensors fit");
    assert!(weights.device() == &device && weights.len() == values.len());
    for (number, value) in values.iter().enumerate() {
        let name = format!("t{number}");
        let tensor = weights.tensor(&name).expect("it is there");
        assert!(tensor.bytes.is_none() && tensor.pointer.is_multiple_of(256), "{name} lies on the device");
        assert!(weights.read_back(&name).expect("it can be read") == *value, "{name}");
    }
    weights.wait_on(RawStream::LEGACY_DEFAULT).expect("the stream is remembered");
    drop((weights, device));
    place.end();
}
