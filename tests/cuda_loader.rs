//! Whole loaders on devices of the driver double: what they cost the driver, what they share, and what a consumer hears when a device fails.
#![cfg(feature = "cuda")]

#[path = "fixture/shards.rs"]
mod shards;

use std::time::{Duration, Instant};

use farfeed::dataset::Dtype;
use farfeed::device::Device;
use farfeed::loader::{Batch, LoaderBuilder};
use farfeed::order::Shuffle;
use farfeed::store::MemoryStore;
use farfeed::{ByteSize, Field, Kind, Loader, Tokens};
use farfeed_driver_double::{Double, DoubleDevice, Live};
use shards::{WebDataset, noise, webdataset};

/// The double's insight and its counts are what these tests go by.
macro_rules! on_the_double {
    () => {
        if farfeed_driver_double::on_gpu() {
            eprintln!("skipped: this looks into the double");
            return;
        }
    };
}

/// Longer than a batch takes here, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

fn images(dataset: &WebDataset, device: &Device) -> LoaderBuilder {
    Loader::builder(dataset.pattern("memory:"))
        .store(dataset.memory())
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .shuffle(Shuffle::window(40).seed(3))
        .host_memory(ByteSize::mib(32))
        .patience(PATIENCE)
        .device(device.clone())
}

fn end(double: DoubleDevice) {
    double.drain();
    assert_eq!((double.violations().as_str(), double.live()), ("", Live::default()));
}

/// All bytes of a batch on a device, and the loader's promise that they are the right ones.
fn check(dataset: &WebDataset, batch: &Batch) {
    let values = batch.values("jpg").expect("they can be read back");
    let numbers = batch.ints("cls").expect("they can be read back");
    assert_eq!(values.len(), batch.len());
    for (row, (value, number)) in values.iter().zip(numbers).enumerate() {
        let (key, jpg, cls) = &dataset.samples[batch.ids()[row] as usize];
        assert!(value.as_ref() == jpg.as_slice() && number == *cls, "sample {key}");
    }
}

#[test]
fn two_loaders_on_two_devices_touch_only_their_own() {
    on_the_double!();
    let dataset = webdataset(2, 40, 5_000);
    let doubles = [0, 1, 2].map(|ordinal| Double::load().device(ordinal));
    let devices = [0, 1].map(|ordinal| Device::cuda(ordinal).expect("a device"));
    let loaders = devices.each_ref().map(|device| images(&dataset, device).epochs(1).build().expect("it builds"));
    let mut epochs = loaders.each_ref().map(|loader| loader.epoch(0));
    let mut batches = 0;
    while let (Some(one), Some(other)) = (epochs[0].next(), epochs[1].next()) {
        let (one, other) = (one.expect("a batch"), other.expect("a batch"));
        assert_eq!(one.ids(), other.ids());
        check(&dataset, &one);
        check(&dataset, &other);
        batches += 1;
    }
    assert_eq!(batches, 5);
    let contexts = doubles.each_ref().map(|double| double.live().contexts);
    assert_eq!(contexts, [1, 1, 0]);
    assert_eq!(doubles[2].calls().total(), 0, "a device that nobody asked for: {:?}", doubles[2].calls());
    drop((loaders, devices));
    doubles.into_iter().for_each(end);
    assert!(Double::load().thread_is_untouched());
}

#[test]
fn a_consumer_may_hold_what_it_may_hold_and_is_told_beyond() {
    on_the_double!();
    let dataset = webdataset(1, 200, 2_000);
    let (double, device) = (Double::load().device(3), Device::cuda(3).expect("a device"));
    let loader = images(&dataset, &device).batches_ahead(2).epochs(1).build().expect("it builds");
    let mut epoch = loader.epoch(0);
    let mut held = Vec::new();
    // Batches ahead and one: there is always a slot for the next.
    for batch in epoch.by_ref().take(3) {
        held.push(batch.expect("a batch"));
    }
    for _ in 0..5 {
        let next = epoch.next().expect("there are more").expect("the loader goes on");
        check(&dataset, &next);
        held.remove(0);
        held.push(next);
    }
    held.push(epoch.next().expect("there are more").expect("one more, in the last slot"));
    let asked = Instant::now();
    let error = epoch.next().expect("an answer").expect_err("nothing could land");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("4 batches are held") && error.next_step().is_some(), "{error}");
    assert!(asked.elapsed() < PATIENCE / 2, "told at once, not at the end of patience: {:?}", asked.elapsed());
    // Nothing is lost by it.
    let last = held.last().expect("four").index();
    held.clear();
    let next = loader.epoch(0).next().expect("there are more").expect("a batch");
    assert_eq!(next.index(), last + 1);
    check(&dataset, &next);
    drop(next);
    drop((loader, device));
    end(double);
}

#[test]
fn a_failing_device_ends_the_epoch_with_its_own_word() {
    on_the_double!();
    let dataset = webdataset(1, 200, 2_000);
    let (double, device) = (Double::load().device(4), Device::cuda(4).expect("a device"));
    let loader = images(&dataset, &device).build().expect("it builds");
    let mut epoch = loader.epoch(0);
    let first = epoch.next().expect("a batch").expect("it lands");
    double.fail_copy(0);
    let asked = Instant::now();
    let error = within_batches(&mut epoch);
    assert_eq!(error.kind(), Kind::Device, "{error}");
    assert!(error.to_string().contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{error}");
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    // Again, and not a hang: the device stays as it is.
    assert_eq!(within_batches(&mut loader.epoch(0)).kind(), Kind::Device);
    drop(first);
    let slab = loader.slab().clone();
    drop((loader, device));
    assert!(asked.elapsed() < PATIENCE * 2, "{:?}", asked.elapsed());
    assert_eq!(slab.usage().free, slab.pages(), "every page came back");
    assert_eq!(double.violations(), "");
}

/// The error that comes within a few batches.
fn within_batches(epoch: &mut dyn Iterator<Item = farfeed::Result<Batch>>) -> farfeed::Error {
    let found = epoch.take(10).find_map(Result::err);
    found.expect("an error within ten batches")
}

/// Dense batches of 16 MiB in the order of the dataset, consumed as fast as they come: the steady state counts.
#[test]
fn a_steady_loader_asks_little_of_the_driver() {
    on_the_double!();
    const BATCHES: u64 = 16;
    let (double, device) = (Double::load().device(5), Device::cuda(5).expect("a device"));
    double.set_rate(2_000_000_000);
    let store = MemoryStore::new();
    store.put("corpus.bin", noise(1, 8 << 20).repeat(8));
    let loader = Loader::builder("memory:corpus.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, 8192))
        .batch_size(1024)
        .host_memory(ByteSize::mib(256))
        .patience(PATIENCE)
        .device(device.clone())
        .build()
        .expect("it builds");
    let stream = device.stream().expect("a stream");
    for batch in (0..2).flat_map(|epoch| loader.epoch(epoch)) {
        batch.expect("a batch").wait_on(stream.clone()).expect("a stream");
    }
    // How often the engine asks depends on the time that copies take, which a loaded machine stretches: rounds are run until one is good.
    let mut least = f64::MAX;
    let mut batches = (2..).flat_map(|epoch| loader.epoch(epoch));
    let deadline = Instant::now() + PATIENCE;
    while least > 3.0 && Instant::now() < deadline {
        double.reset_calls();
        for batch in batches.by_ref().take(BATCHES as usize) {
            batch.expect("a batch").wait_on(stream.clone()).expect("a stream");
        }
        let calls = double.calls();
        let copies = calls.copies();
        // What the consumer asked for is 6 calls a batch.
        let engines = calls.total() - 6 * BATCHES;
        println!("{engines} calls of the engine for {copies} copies: {calls:?}");
        assert!(calls.copied_bytes() / copies >= 1 << 20, "copies are coalesced: {calls:?}");
        assert_eq!((calls.allocations(), calls.host_waits()), (0, 0), "{calls:?}");
        least = least.min(engines as f64 / copies as f64);
    }
    assert!(least <= 3.0, "{least:.1} calls for each copy, at the least");
    drop((loader, stream, device));
    end(double);
}
