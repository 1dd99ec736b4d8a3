//! `loader.stats()` names what bounded a run.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/shards.rs"]
mod shards;

use std::time::Duration;

use farfeed::store::{Throttle, ThrottleStore};
use farfeed::telemetry::{Limit, Stats};
use farfeed::{ByteSize, Field, Loader};

const PLENTY: ByteSize = ByteSize::mib(64);
/// Room for the batches being assembled, and for a few blocks in flight.
const LITTLE: ByteSize = ByteSize::mib(4);

/// Streams 25 MB in steps of `step` from a store that is so far away and so fast (bytes per second, 0: no limit).
fn run(latency_ms: u64, bytes_per_second: u64, host_memory: ByteSize, step: Duration) -> Stats {
    let dataset = shards::webdataset(4, 150, 40_000);
    let throttle = Throttle { latency: Duration::from_millis(latency_ms), bytes_per_second, requests: 0 };
    let loader = Loader::builder(dataset.pattern("memory:"))
        .store(ThrottleStore::new(dataset.memory(), throttle))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(8)
        .block_size(ByteSize::bytes(200_000))
        .lanes(1)
        .host_memory(host_memory)
        .patience(Duration::from_secs(20))
        .epochs(1)
        .build()
        .unwrap();
    for batch in loader.epoch(0) {
        dataset.check(&batch.unwrap());
        std::thread::sleep(step);
    }
    let stats = loader.stats();
    println!("{stats}\npages {:.2} s, link {:.2} s, {:?}", stats.page_wait_s, stats.link_wait_s, stats.fetch);
    stats
}

#[test]
fn a_slow_link_is_the_limit() {
    assert_eq!(run(5, 10_000_000, PLENTY, Duration::ZERO).limit, Limit::Link);
}

/// More memory would only make requests queue for longer.
#[test]
fn a_slow_link_is_the_limit_with_little_memory_too() {
    assert_eq!(run(5, 10_000_000, LITTLE, Duration::ZERO).limit, Limit::Link);
}

#[test]
fn memory_that_cannot_cover_the_distance_is_the_limit() {
    let near = run(50, 0, LITTLE, Duration::ZERO);
    assert_eq!(near.limit, Limit::HostMemory);
    assert!(near.stall_share > 0.1 && near.latency_s >= 0.05, "{near:?}");
}

#[test]
fn a_consumer_that_takes_its_time_is_the_limit() {
    // Long steps: on a busy machine a millisecond of waiting is nothing beside them.
    let stats = run(5, 0, PLENTY, Duration::from_millis(60));
    assert_eq!(stats.limit, Limit::Consumer, "stalled {}", stats.stall_share);
}
