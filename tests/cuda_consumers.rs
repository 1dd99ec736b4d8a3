//! Whole loaders whose batches are looked at by kernels: on their own streams, while the loader goes on. On the driver double
//! (see `tests/driver-double`), where checker and guard look on, or on a GPU by `FARFEED_TEST_GPU=1`.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

mod cuda;
#[path = "fixture/shards.rs"]
mod shards;

use std::time::{Duration, Instant};

use cuda::{Consumers, PATIENCE, Place};
use farfeed::device::RawStream;
use farfeed::loader::{Batch, LoaderBuilder};
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Field, Loader};
use shards::{WebDataset, webdataset};

/// Long enough for the copies of batches to come behind a step that is still at work.
const STEP: Duration = Duration::from_millis(3);

fn images(dataset: &WebDataset, place: &Place) -> LoaderBuilder {
    Loader::builder(dataset.pattern("memory:"))
        .store(dataset.memory())
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .shuffle(Shuffle::window(48).seed(5))
        .block_size(ByteSize::bytes(64 << 10))
        .host_memory(ByteSize::mib(8))
        .patience(PATIENCE)
        .device(place.device.clone())
}

/// Has kernels compare both columns, offsets and all, with what the samples are.
fn expect(consumers: &mut Consumers, stream: &RawStream, dataset: &WebDataset, batch: &Batch, after: Duration) {
    let samples: Vec<_> = batch.ids().iter().map(|id| &dataset.samples[*id as usize]).collect();
    let column = batch.ragged("jpg").unwrap();
    let values: Vec<u8> = samples.iter().flat_map(|(_, jpg, _)| jpg).copied().collect();
    let mut ends = vec![0i64];
    ends.extend(samples.iter().scan(0, |end, (_, jpg, _)| {
        *end += jpg.len() as i64;
        Some(*end)
    }));
    let offsets: Vec<u8> = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
    let labels: Vec<u8> = samples.iter().flat_map(|(_, _, cls)| cls.to_le_bytes()).collect();
    assert_eq!(column.values_len, values.len());
    consumers.expect(stream.handle(), column.values_pointer, &values, after);
    consumers.expect(stream.handle(), column.offsets_pointer, &offsets, Duration::ZERO);
    consumers.expect(stream.handle(), batch.dense("cls").unwrap().pointer, &labels, Duration::ZERO);
}

/// How a consumer hands a batch back.
fn hand_back(batch: Batch, stream: &RawStream) {
    if batch.index().is_multiple_of(2) { drop(batch) } else { batch.release(stream.clone()).unwrap() }
}

#[test]
fn kernels_find_every_batch_as_it_should_be() {
    let place = Place::new(0);
    // 4 ms for a batch, about what a step takes: now one is waited for, now the other.
    place.set_rate(40_000_000);
    let dataset = webdataset(4, 100, 10_000);
    assert!(dataset.bytes() > 3 << 20, "host memory is used again");
    let mut consumers = Consumers::new(&place);
    let streams = [place.device.stream().unwrap(), place.device.stream().unwrap(), RawStream::LEGACY_DEFAULT];
    let loader = images(&dataset, &place).epochs(2).build().unwrap();
    let mut seen = 0;
    for epoch in 0..2 {
        for batch in loader.epoch(epoch) {
            let batch = batch.unwrap();
            let stream = &streams[seen % streams.len()];
            batch.wait_on(stream.clone()).unwrap();
            expect(&mut consumers, stream, &dataset, &batch, STEP);
            hand_back(batch, stream);
            seen += 1;
        }
    }
    assert_eq!(seen, 50);
    let slab = loader.slab().clone();
    drop(loader);
    assert_eq!(slab.usage().free, slab.pages());
    drop((slab, streams));
    consumers.end();
    place.end();
}

/// A framework captures a graph on another thread, in global mode as it does by itself: whatever the loader does on its threads and on its
/// consumer's, from its beginning to its end, is nothing that would break the capture.
#[test]
fn a_capture_of_somebody_elses_is_left_alone() {
    let place = Place::new(2);
    let Some(double) = place.double else { return eprintln!("skipped: there is nobody who captures") };
    double.capture_elsewhere(true);
    let dataset = webdataset(1, 100, 6_000);
    let loader = images(&dataset, &place).epochs(1).build().unwrap();
    let streams = [place.device.stream().unwrap(), place.device.stream().unwrap()];
    let mut seen = 0;
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        // More streams than a slot has events for.
        streams.iter().for_each(|stream| batch.wait_on(stream.clone()).unwrap());
        if seen % 3 == 0 {
            let values = batch.values("jpg").unwrap();
            let found = values.iter().zip(batch.ids()).all(|(value, id)| **value == dataset.samples[*id as usize].1);
            assert!(found && values.len() == batch.len());
        }
        hand_back(batch, &streams[seen % 2]);
        seen += 1;
    }
    assert_eq!(seen, 7);
    drop((loader, streams));
    double.capture_elsewhere(false);
    place.end();
}

/// Stops in the middle with a batch in hand and kernels queued, then goes on from the state: what was in hand stays good, and
/// what comes is what would have come.
#[test]
fn a_loader_may_end_before_its_batches() {
    let place = Place::new(1);
    place.set_rate(40_000_000);
    let dataset = webdataset(2, 100, 6_000);
    let mut consumers = Consumers::new(&place);
    let stream = place.device.stream().unwrap();
    let loader = images(&dataset, &place).epochs(1).build().unwrap();
    let mut held = Vec::new();
    let mut order = Vec::new();
    for batch in loader.epoch(0).take(5) {
        let batch = batch.unwrap();
        batch.wait_on(stream.clone()).unwrap();
        expect(&mut consumers, &stream, &dataset, &batch, 3 * STEP);
        order.extend_from_slice(batch.ids());
        if batch.index() >= 3 {
            held.push(batch);
        }
    }
    let state = loader.state();
    let begun = Instant::now();
    drop(loader);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    for batch in held {
        expect(&mut consumers, &stream, &dataset, &batch, STEP);
        drop(batch);
    }
    let loader = images(&dataset, &place).epochs(1).resume(state).build().unwrap();
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        batch.wait_on(stream.clone()).unwrap();
        expect(&mut consumers, &stream, &dataset, &batch, Duration::ZERO);
        order.extend_from_slice(batch.ids());
    }
    order.sort_unstable();
    assert!(order.into_iter().eq(0..200), "each sample once");
    drop((loader, stream));
    consumers.end();
    place.end();
}
