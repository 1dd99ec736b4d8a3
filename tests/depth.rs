//! A loader's depth follows the store, and a rate that was asked for is kept.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::dataset::Dtype;
use farfeed::loader::LoaderBuilder;
use farfeed::store::{MemoryStore, Throttle, ThrottleStore};
use farfeed::telemetry::Limit;
use farfeed::{ByteSize, Kind, Loader, Tokens};

/// Samples of 64 KiB, 16 to a batch of a mebibyte.
const SAMPLE: usize = 64 << 10;
const BATCH: u32 = 16;

fn far_away(bytes: usize, bytes_per_second: u64) -> LoaderBuilder {
    let store = MemoryStore::new();
    store.put("corpus.bin", vec![7_u8; bytes]);
    let latency = Duration::from_millis(10);
    let store: Arc<_> = ThrottleStore::new(store, Throttle { latency, bytes_per_second, requests: 0 });
    Loader::builder("memory:corpus.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, SAMPLE / 2))
        .batch_size(BATCH)
        .host_memory(ByteSize::mib(128))
        .epochs(1)
}

fn read_all(loader: &Loader) -> (usize, Duration) {
    let began = Instant::now();
    let bytes = loader.epoch(0).map(|batch| batch.unwrap().dense("tokens").unwrap().bytes.unwrap().len()).sum();
    (bytes, began.elapsed())
}

#[test]
fn the_depth_follows_the_store_and_is_told() {
    let rate = 60_000_000;
    let loader = far_away(96 << 20, rate).build().unwrap();
    assert!(loader.plan().follows_link && loader.plan().to_string().contains("follows"));
    assert_eq!(read_all(&loader).0, 96 << 20);
    let stats = loader.stats();
    assert_eq!(stats.limit, Limit::Link);
    let depth = stats.depth;
    assert!((1..=loader.plan().in_flight_bytes).contains(&depth.bytes), "{depth:?}");
    assert_eq!(depth.requests, 256);
    assert!((0.2..=1.5).contains(&(depth.goodput / rate as f64)), "{depth:?}");
    assert!(depth.first_byte_s >= 0.009, "{depth:?}");
}

#[test]
fn a_depth_that_was_asked_for_does_not_follow() {
    let loader = far_away(16 << 20, 0).in_flight(ByteSize::mib(4)).requests(20).build().unwrap();
    assert!(!loader.plan().follows_link);
    read_all(&loader);
    let depth = loader.stats().depth;
    assert_eq!((depth.bytes, depth.requests, depth.goodput), (4 << 20, 20, 0.0));
}

#[test]
fn a_rate_that_was_asked_for_is_kept_and_named() {
    let (bytes, rate) = (24 << 20, 20_000_000);
    let loader = far_away(bytes, 0).max_rate(ByteSize::bytes(rate)).build().unwrap();
    assert!(loader.plan().to_string().contains("20 MB/s"));
    let (read, took) = read_all(&loader);
    assert_eq!(read, bytes);
    // A tenth of a second's bytes and one read may come at once.
    let least = (bytes - (2 << 20)) as f64 / rate as f64 - 0.1;
    assert!(took.as_secs_f64() >= least, "{took:?}, at least {least:.2} s");
    let stats = loader.stats();
    assert!(stats.limit == Limit::MaxRate && stats.to_string().contains("max_rate"), "{stats}");
}

#[test]
fn a_rate_of_nothing_is_refused() {
    let error = far_away(1 << 20, 0).max_rate(ByteSize::bytes(0)).build().unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("max_rate"), "{error}");
}
