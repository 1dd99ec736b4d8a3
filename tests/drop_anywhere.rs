//! Dropped at any moment, a loader gives every page back and ends every thread, at once.
#[path = "fixture/leftovers.rs"]
mod leftovers;
#[path = "fixture/shards.rs"]
mod shards;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use farfeed::emulate::{Effect, Fault as Refusal, Faults, Link, Server, Site};
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::store::{Fault, FaultStore, Store, Throttle, ThrottleStore};
use farfeed::{ByteSize, Field, Loader};
use leftovers::Before;
use shards::WebDataset;

static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(4, 60, 20_000));
/// What is promised.
const AT_ONCE: Duration = Duration::from_secs(2);

fn options(root: &str) -> LoaderBuilder {
    Loader::builder(DATASET.pattern(root))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(8)
        .block_size(ByteSize::bytes(60_000))
        .shuffle(Shuffle::window(100).seed(1))
        .host_memory(ByteSize::mib(16))
}

fn over(store: Arc<dyn Store>) -> LoaderBuilder {
    options("memory:").store(store)
}

/// Drops the loader and what else there is of it; checks that it takes no longer than promised and nothing is left.
fn drop_and_check(before: &Before, loader: Loader, rest: impl Sized) {
    let slab = loader.slab().clone();
    let began = Instant::now();
    drop(loader);
    let took = began.elapsed();
    drop(rest);
    before.check_after(&slab, AT_ONCE.saturating_sub(took));
}

#[test]
fn before_the_first_batch() {
    let before = Before::look();
    drop_and_check(&before, over(DATASET.memory()).build().unwrap(), ());
    // The threads run, and nobody has taken anything.
    let loader = over(DATASET.memory()).build().unwrap();
    let mut epoch = loader.epoch(0);
    drop(epoch.next().unwrap().unwrap());
    drop_and_check(&before, loader, ());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let loader = over(DATASET.memory()).build().unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut asked = Box::pin(loader.next_batch());
    let _ = std::future::Future::poll(asked.as_mut(), &mut context);
    drop(asked);
    drop_and_check(&before, loader, runtime);
}

#[test]
fn in_the_middle_at_any_moment() {
    let before = Before::look();
    let link = Throttle { latency: Duration::from_millis(2), bytes_per_second: 100_000_000, requests: 0 };
    for batches in 0..20 {
        let loader = over(ThrottleStore::new(DATASET.memory(), link)).build().unwrap();
        for batch in loader.epoch(0).take(batches) {
            DATASET.check(&batch.unwrap());
        }
        std::thread::sleep(Duration::from_micros(300 * (batches as u64 % 7)));
        drop_and_check(&before, loader, ());
    }
}

#[test]
fn at_the_end_and_after_a_jump() {
    let before = Before::look();
    let loader = over(DATASET.memory()).epochs(1).build().unwrap();
    assert_eq!(loader.epoch(0).count(), 30);
    drop_and_check(&before, loader, ());
    let loader = over(DATASET.memory()).build().unwrap();
    for epoch in [4, 0, 9, 2] {
        DATASET.check(&loader.epoch(epoch).next().unwrap().unwrap());
    }
    drop_and_check(&before, loader, ());
}

#[test]
fn with_batches_still_held() {
    let before = Before::look();
    let loader = over(DATASET.memory()).build().unwrap();
    let held: Vec<_> = loader.epoch(0).take(3).map(Result::unwrap).collect();
    let slab = loader.slab().clone();
    drop(loader);
    before.check_after(&slab, AT_ONCE);
    // They outlive the loader, bytes, keys and all.
    held.iter().for_each(|batch| DATASET.check(batch));
    let elsewhere = std::thread::spawn(move || held.iter().map(|batch| batch.len()).sum::<usize>());
    assert_eq!(elsewhere.join().unwrap(), 24);
}

#[test]
fn while_requests_stall_for_ever() {
    let before = Before::look();
    for after in [0, 5000] {
        // The index is read first; then every read rests.
        let faults = (1..2000).map(|number| (number, Fault::Stall { after, rest: None }));
        let loader = over(FaultStore::scripted(DATASET.memory(), faults)).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let waited = runtime
            .block_on(async { tokio::time::timeout(Duration::from_millis(50), loader.next_batch()).await.is_err() });
        assert!(waited && loader.memory().filling > 0, "reads are in flight");
        drop_and_check(&before, loader, runtime);
    }
}

#[test]
fn while_the_server_is_silent_refuses_or_is_dead() {
    let before = Before::look();
    for trouble in 0..4 {
        let server = Server::start(Site::objects(DATASET.site()), Link::default(), Faults::none()).unwrap();
        let loader = options(&format!("{}/", server.url())).build().unwrap();
        DATASET.check(&loader.epoch(0).next().unwrap().unwrap());
        let mut server = Some(server);
        match (trouble, &server) {
            (0, Some(server)) => server.silence_for(Duration::from_secs(60)),
            (1, Some(server)) => server.refuse_for(Duration::from_secs(60)).unwrap(),
            (2, Some(server)) => server.set_faults(Refusal::new(Effect::unavailable())).unwrap(),
            _ => drop(server.take()),
        }
        // Far enough to need what does not come.
        loader.resume(&farfeed::order::State { epoch: 3, ..loader.state() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let waited = runtime
            .block_on(async { tokio::time::timeout(Duration::from_millis(100), loader.next_batch()).await.is_err() });
        assert!(waited, "trouble {trouble}");
        let slab = loader.slab().clone();
        let began = Instant::now();
        drop(loader);
        assert!(began.elapsed() < AT_ONCE, "trouble {trouble}: {:?}", began.elapsed());
        drop((runtime, server));
        before.check_after(&slab, AT_ONCE);
    }
}

#[test]
fn files_too() {
    let before = Before::look();
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in &DATASET.shards {
        std::fs::create_dir_all(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("data").join(name), bytes).unwrap();
    }
    for batches in [0, 1, 17] {
        let loader = options(&format!("{}/", folder.path().display())).build().unwrap();
        for batch in loader.epoch(0).take(batches) {
            DATASET.check(&batch.unwrap());
        }
        drop_and_check(&before, loader, ());
    }
}

#[test]
fn a_loader_that_fails_to_build_leaves_nothing() {
    let before = Before::look();
    let slab = farfeed::memory::Slab::new(4096, 4096).unwrap();
    for _ in 0..3 {
        over(DATASET.memory()).field("png", Field::bytes()).build().unwrap_err();
        over(DATASET.memory()).host_memory(ByteSize::bytes(1)).build().unwrap_err();
        over(DATASET.memory())
            .resume(farfeed::order::State {
                version: 9,
                fingerprint: 0,
                seed: 0,
                window: 0,
                lanes: 1,
                epoch: 0,
                position: 0,
            })
            .build()
            .unwrap_err();
    }
    before.check_after(&slab, AT_ONCE);
}
