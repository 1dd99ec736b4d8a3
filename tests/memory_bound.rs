//! Host memory is a hard bound: never passed, refused beforehand where it cannot do, and enough wherever it was accepted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/shards.rs"]
mod shards;

use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::dataset::Dtype;
use farfeed::loader::LoaderBuilder;
use farfeed::memory::Landing;
use farfeed::order::Shuffle;
use farfeed::schedule::{Budget, Shape};
use farfeed::store::{
    Appetite, Arrival, MemoryStore, ObjectMeta, ReadRequest, Store, StoreFuture, Throttle, ThrottleStore,
};
use farfeed::{ByteSize, Error, Field, Kind, Loader, Tokens};
use proptest::prelude::*;
use shards::WebDataset;

/// Longer than any batch here takes, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

fn builder(dataset: &WebDataset, store: Arc<dyn Store>) -> LoaderBuilder {
    Loader::builder(dataset.pattern("memory:"))
        .store(store)
        .field("cls", Field::int())
        .patience(PATIENCE)
        .host_memory(ByteSize::mib(32))
}

fn both_fields(dataset: &WebDataset) -> LoaderBuilder {
    builder(dataset, dataset.memory()).field("jpg", Field::bytes())
}

/// Wants to be asked in its own way.
#[derive(Debug)]
struct Picky {
    inner: Arc<dyn Store>,
    appetite: Appetite,
}

impl Store for Picky {
    fn root(&self) -> &str {
        self.inner.root()
    }

    fn appetite(&self) -> Appetite {
        self.appetite
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        self.inner.head(key)
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        self.inner.read(request, landing)
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}

/// Reads some batches, checking bytes, and that no more memory was ever taken than there is; gives the loader's own counts.
fn run(dataset: &WebDataset, loader: &Loader, epochs: u64) -> farfeed::telemetry::Stats {
    for epoch in 0..epochs {
        let mut seen = vec![false; dataset.samples.len()];
        for batch in loader.epoch(epoch) {
            let batch = batch.unwrap_or_else(|error| panic!("{error}\n{}\n{:?}", loader.plan(), loader.memory()));
            dataset.check(&batch);
            for id in batch.ids() {
                assert!(!std::mem::replace(&mut seen[*id as usize], true), "sample {id} came twice");
            }
            let pages = loader.memory();
            assert!(pages.high_water <= pages.total && pages.free <= pages.total, "{pages:?}");
        }
        assert!(seen.iter().all(|seen| *seen), "a sample was left out");
    }
    let (pages, plan) = (loader.memory(), loader.plan());
    assert!(pages.total as u64 * plan.page_bytes as u64 <= plan.host_memory, "{pages:?} in {} bytes", plan.host_memory);
    loader.stats()
}

/// All labels of an epoch, sorted.
fn labels(loader: &Loader, epoch: u64) -> Vec<i64> {
    let mut labels: Vec<i64> = Vec::new();
    for batch in loader.epoch(epoch) {
        let batch = batch.unwrap_or_else(|error| panic!("{error}\n{}\n{:?}", loader.plan(), loader.memory()));
        labels.extend(batch.ints("cls").unwrap());
    }
    labels.sort_unstable();
    labels
}

/// The least host memory in pages that is accepted.
fn least_pages(builder: &LoaderBuilder, page_bytes: u64) -> u64 {
    let accepted = |pages: u64| match builder.clone().host_memory(ByteSize::bytes(pages * page_bytes)).build() {
        Ok(_) => true,
        Err(error) => {
            assert!(error.kind() == Kind::Config && error.to_string().contains("host_memory"), "{error}");
            false
        }
    };
    let (mut refused, mut taken) = (0, 1);
    while !accepted(taken) {
        (refused, taken) = (taken, taken * 2);
        assert!(taken < 1 << 20);
    }
    while taken - refused > 1 {
        let middle = refused + (taken - refused) / 2;
        if accepted(middle) { taken = middle } else { refused = middle }
    }
    taken
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 30, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is accepted completes: the least memory too, where the cold start's fragments and the window do not fit at once.
    #[test]
    fn the_least_memory_that_is_accepted_is_enough(
        samples in 1usize..120,
        mean_bytes in prop::sample::select(vec![0usize, 100, 3000, 9000, 30_000]),
        batch in 1u32..70,
        window in prop::sample::select(vec![0u64, 1, 7, 40, 1000]),
        page_bytes in prop::sample::select(vec![4096u64, 16_384, 65_536]),
        block_bytes in prop::sample::select(vec![1u64, 10_000, 50_000, 1 << 20]),
        lanes in prop::sample::select(vec![1u32, 2, 6]),
        labels_only in any::<bool>(),
        request_bytes in prop::sample::select(vec![5000usize, 70_000, 2 << 20]),
        gap_bytes in prop::sample::select(vec![0usize, 4096, 65_536]),
        alignment in prop::sample::select(vec![1usize, 512]),
        spare in 0u64..20,
        seed in any::<u64>(),
    ) {
        let dataset = shards::webdataset(2, samples, mean_bytes);
        let appetite = Appetite { request_bytes, requests: 4, gap_bytes, alignment };
        let options = builder(&dataset, Arc::new(Picky { inner: dataset.memory(), appetite }));
        let options = if labels_only { options } else { options.field("jpg", Field::bytes()) };
        let options = options
            .batch_size(batch)
            .shuffle(if window == 0 { Shuffle::none() } else { Shuffle::window(window).seed(seed) })
            .lanes(lanes)
            .page_size(ByteSize::bytes(page_bytes))
            .block_size(ByteSize::bytes(block_bytes));
        let least = least_pages(&options, page_bytes);
        for pages in [least, least + spare] {
            let loader = options.clone().host_memory(ByteSize::bytes(pages * page_bytes)).epochs(2).build().unwrap();
            if labels_only {
                for epoch in 0..2 {
                    prop_assert_eq!(labels(&loader, epoch), (0..2 * samples as i64).collect::<Vec<_>>());
                }
                prop_assert!(loader.memory().high_water <= loader.memory().total);
            } else {
                run(&dataset, &loader, 2);
            }
            let slab = loader.slab().clone();
            drop(loader);
            prop_assert_eq!(slab.usage().free, slab.pages());
        }
    }
}

/// Small values that lie apart take a page each: more than were counted. What was read too early makes room for what is needed
/// first, and is read again.
#[test]
fn the_oldest_batch_finds_room_among_more_than_was_counted() {
    let dataset = shards::webdataset(2, 400, 6000);
    let options = builder(&dataset, dataset.memory())
        .batch_size(4)
        .shuffle(Shuffle::window(400).seed(5))
        .lanes(1)
        .page_size(ByteSize::bytes(65_536))
        .block_size(ByteSize::bytes(200_000))
        .epochs(2);
    let least = least_pages(&options, 65_536);
    let loader = options.host_memory(ByteSize::bytes(least * 65_536)).build().unwrap();
    for epoch in 0..2 {
        assert_eq!(labels(&loader, epoch), (0..800).collect::<Vec<_>>());
    }
    let stats = loader.stats();
    println!("{}\n{} requests, {} read twice", loader.plan(), stats.requests, stats.rereads);
    assert!(stats.rereads > 0, "this is to show what happens then");
    assert!(stats.rereads <= stats.requests / 2, "{} of {} reads", stats.rereads, stats.requests);
}

/// What the schedule says it needs is what it takes: an epoch in the steady state reads no byte twice, and the pages that hold
/// samples stay within the budget.
#[test]
fn the_budget_holds_the_window_and_no_byte_is_read_twice() {
    let dataset = shards::webdataset(4, 100, 20_000);
    for (window, batch) in [(0, 16), (64, 16), (200, 8)] {
        let options = both_fields(&dataset)
            .batch_size(batch)
            .shuffle(if window == 0 { Shuffle::none() } else { Shuffle::window(window).seed(1) })
            .page_size(ByteSize::bytes(16_384))
            .block_size(ByteSize::bytes(200_000))
            .epochs(3);
        let loader = options.host_memory(ByteSize::mib(16)).build().unwrap();
        let plan = loader.plan().clone();
        assert!(plan.window_pages + plan.edge_pages <= plan.pages && plan.spare_pages() > 0);
        let stats = run(&dataset, &loader, 3);
        assert_eq!(stats.rereads, 0, "window {window}");
        assert!(stats.fetch.bytes <= 3 * dataset.bytes(), "{} bytes fetched", stats.fetch.bytes);
        println!(
            "window {window}: {} + {} pages counted, {} of {} taken at once",
            plan.window_pages,
            plan.edge_pages,
            loader.memory().high_water,
            plan.pages
        );
    }
}

#[test]
fn what_cannot_fit_is_refused_with_both_numbers() {
    let dataset = shards::webdataset(4, 100, 20_000);
    let options =
        both_fields(&dataset).batch_size(16).page_size(ByteSize::bytes(16_384)).block_size(ByteSize::bytes(1));
    let refused = |options: LoaderBuilder, words: &[&str]| {
        let error: Error = options.build().unwrap_err();
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)) && error.next_step().is_some(), "{text}");
        error.kind()
    };
    let window = options.clone().shuffle(Shuffle::window(300).seed(2)).host_memory(ByteSize::mib(4));
    assert_eq!(
        refused(window.clone(), &["300 samples", "host_memory is 4.0 MiB", "raise host_memory to"]),
        Kind::Config
    );
    // Shrinking is allowed: the same data, in another order, in the same memory.
    let loader = window.shrink_window(true).build().unwrap();
    assert!((1..300).contains(&loader.plan().window), "{}", loader.plan().window);
    run(&dataset, &loader, 1);
    // A window of nothing would not help: the sample is too large.
    let tiny = options.clone().host_memory(ByteSize::bytes(16_384)).shrink_window(true);
    assert_eq!(refused(tiny, &["host_memory is 16.0 KiB"]), Kind::Config);
    let slots = options.clone().device_memory(ByteSize::mib(1));
    assert_eq!(refused(slots, &["4 slots", "device_memory is 1.0 MiB"]), Kind::Device);
    for (options, words) in [
        (options.clone().page_size(ByteSize::bytes(0)), "page size of 0"),
        (options.clone().page_size(ByteSize::bytes(5000)), "page size of 5000"),
        (options.clone().page_size(ByteSize::gib(1 << 20)), "page size"),
        (options.clone().batches_ahead(usize::MAX), "batches ahead"),
        (options.clone().batch_size(0), "batch size is 0"),
    ] {
        assert_eq!(refused(options, &[words]), Kind::Config);
    }
    // Larger than the dataset is no mistake: one batch is all there is.
    let loader = options.batch_size(u32::MAX).build().unwrap();
    assert_eq!(loader.epoch(0).next().unwrap().unwrap().len(), 400);
}

#[test]
fn a_sample_that_host_memory_cannot_hold_is_refused() {
    let store = MemoryStore::new();
    let mut archive = tar::Builder::new(Vec::new());
    shards::append(&mut archive, "large.jpg", &shards::noise(1, 3 << 20));
    store.put("x.tar", archive.into_inner().unwrap());
    let options = Loader::builder("memory:x.tar").store(store).host_memory(ByteSize::mib(2));
    let error = options.clone().build().unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("host_memory is 2.0 MiB"), "{error}");
    let loader = options.host_memory(ByteSize::mib(16)).build().unwrap();
    assert!(
        loader.epoch(0).next().unwrap().unwrap().ragged("jpg").unwrap().row(0) == Some(&shards::noise(1, 3 << 20)[..])
    );
}

#[test]
fn a_consumer_that_holds_every_batch_is_told() {
    let store = MemoryStore::new();
    store.put("t.bin", vec![7_u8; 80_000]);
    let slow = Throttle { latency: Duration::from_millis(60), bytes_per_second: 0, requests: 0 };
    let loader = Loader::builder("memory:t.bin")
        .store(ThrottleStore::new(store, slow))
        .tokens(Tokens::new(Dtype::U16, 10))
        .batch_size(20)
        .batches_ahead(1)
        .host_memory(ByteSize::mib(4))
        .block_size(ByteSize::bytes(400))
        .build()
        .unwrap();
    let mut epoch = loader.epoch(0);
    // As many as there are, and each of them waited for, longer than a look.
    let mut held: Vec<_> = (0..3).map(|_| epoch.next().unwrap().unwrap()).collect();
    let began = Instant::now();
    let error = epoch.next().unwrap().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "told, not left hanging");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("3 batches are held, and there are 3 device slots"), "{error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let error = runtime.block_on(loader.next_batch()).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    // Letting go of one is enough, and nothing was lost.
    held.remove(1);
    let next = loader.epoch(0).next().unwrap().unwrap();
    assert_eq!((next.index(), held[0].index(), held[1].index()), (3, 0, 2));
    assert_eq!(next.ids().first(), Some(&60));
}

/// With one slot less than all in hand, as is allowed, there is never a false alarm: the last slot is filled while one waits.
#[test]
fn a_consumer_that_holds_all_it_may_is_served() {
    let store = MemoryStore::new();
    store.put("t.bin", vec![7_u8; 40_000]);
    let slow = Throttle { latency: Duration::from_millis(1), bytes_per_second: 20_000_000, requests: 1 };
    let loader = Loader::builder("memory:t.bin")
        .store(ThrottleStore::new(store, slow))
        .tokens(Tokens::new(Dtype::U16, 10))
        .batch_size(5)
        .batches_ahead(1)
        .host_memory(ByteSize::mib(4))
        .block_size(ByteSize::bytes(100))
        .epochs(1)
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut held = std::collections::VecDeque::new();
    let count = runtime.block_on(async {
        let mut count = 0;
        while let Some(batch) = tokio::time::timeout(PATIENCE, loader.next_batch()).await.unwrap().unwrap() {
            assert_eq!(batch.index(), count);
            count += 1;
            held.push_back(batch);
            if held.len() > 2 {
                held.pop_front();
            }
        }
        count
    });
    assert_eq!(count, 400);
}

#[test]
fn the_budget_counts_what_a_batch_of_fragments_takes() {
    let shape = Shape {
        request_bytes: 1 << 20,
        cold_request_bytes: 1 << 18,
        gap_bytes: 4096,
        page_bytes: 1 << 16,
        alignment: 1,
    };
    let budget = Budget { window_pages: 10, edge_pages: 6, block_pages: 3, blocks: 4 };
    let wanted = |values, value_bytes| budget.pages_wanted(&shape, values, value_bytes);
    assert_eq!(wanted(2, 5000), 16 + 3, "a block in flight is more than two fragments");
    assert_eq!(wanted(100, 5000), 16 + 100, "each fragment a page");
    assert_eq!(wanted(4, 512 << 10), 16 + 4 + 2, "long values come in several reads");
    assert_eq!(wanted(100_000, 5000), 16 + 16 * 16 + 4 + 8, "but no more of them than can lie apart");
}
