//! Minutes of random trouble: every epoch is right to the byte, and memory, descriptors and threads stay flat. Not part of the ordinary
//! tests: `make soak`, or `FARFEED_SOAK_SECONDS=600 cargo test --all-features --test soak -- --ignored --nocapture`. Ends by itself.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/leftovers.rs"]
mod leftovers;
#[path = "fixture/shards.rs"]
mod shards;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Server, Site};
use farfeed::fetch::{Hedge, RetryPolicy};
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Field, Loader, OnError};
use leftovers::Before;
use shards::WebDataset;

/// 12 MB in 480 samples.
static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(SHARDS, 60, 25_000));
const SHARDS: usize = 8;
/// In bytes per second: an epoch takes a second without any trouble.
const RATE: u64 = 12_000_000;
const POLICY: RetryPolicy = RetryPolicy {
    patience: Duration::from_secs(30),
    idle: Duration::from_millis(500),
    pause_min: Duration::from_millis(2),
    pause_max: Duration::from_millis(200),
    rate_min: 16 << 10,
    hedge: Hedge::per_mille(20),
};
/// How long one kind of trouble lasts.
const SPELL: Duration = Duration::from_millis(1500);
/// What may be more at the end than in the middle: caches of allocators, a connection more or less.
const RSS_SLACK: u64 = 12 << 20;
const DESCRIPTORS_SLACK: usize = 12;

fn options(builder: LoaderBuilder) -> LoaderBuilder {
    builder
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .block_size(ByteSize::bytes(200_000))
        .shuffle(Shuffle::window(120).seed(9))
        .host_memory(ByteSize::mib(24))
        .requests(12)
        .retry(POLICY)
        .patience(Duration::from_secs(60))
}

#[test]
#[ignore = "takes minutes: make soak"]
fn epoch_after_epoch_in_all_weathers() {
    let setting = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let seconds = Duration::from_secs(setting("FARFEED_SOAK_SECONDS", 120));
    let seed = setting("FARFEED_SOAK_SEED", 1);
    println!("{seconds:?} of trouble, FARFEED_SOAK_SEED={seed}");
    let before = Before::look();
    let link = Link::rtt(Duration::from_millis(8)).rate(RATE);
    let server = Server::start(Site::objects(DATASET.site()), link, Faults::none()).unwrap();
    let loader = options(Loader::builder(DATASET.pattern(&format!("{}/", server.url()))))
        .on_error(OnError::skip())
        .build()
        .unwrap();
    // The same order without a link.
    let intact = options(Loader::builder(DATASET.pattern("memory:")).store(DATASET.memory())).build().unwrap();
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let mut course = Vec::new();
    std::thread::scope(|scope| {
        // Whatever ends this test ends the weather too.
        let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
        for epoch in 0.. {
            if epoch == 1 {
                // By now every shard's version is known; one that is wrong on the first answer would be taken for the right one.
                scope.spawn(|| weather(&server, seed, &over));
            }
            pass(&loader, &intact, epoch);
            course.push(Level::now());
            let level = course[epoch as usize];
            println!("{:6.1} s  epoch {epoch}: {level:?}, {}", began.elapsed().as_secs_f64(), loader.stats());
            if began.elapsed() > seconds && course.len() >= 6 {
                break;
            }
        }
    });
    let (stats, troubles) = (loader.stats(), server.stats().faults);
    assert!(loader.quarantine().is_empty(), "all that was wrong was so once: {}", loader.quarantine());
    println!("{troubles} faults, {} retries, {} fields read again", stats.retries, stats.fields_read_again);
    assert!(troubles > 20 && stats.retries > 10, "there was no trouble");
    check_flat(&course);
    let slab = loader.slab().clone();
    drop((loader, intact, server));
    before.check_after(&slab, Duration::from_secs(5));
}

/// One epoch beside the intact one; now and then left in the middle, and gone on with from its state.
fn pass(loader: &Loader, intact: &Loader, epoch: u64) {
    let mut seen = vec![false; DATASET.samples.len()];
    let leave_at = (epoch % 4 == 3).then_some(loader.batches_per_epoch() / 2);
    for right in intact.epoch(epoch) {
        let right = right.unwrap();
        if leave_at == Some(right.index()) {
            loader.resume(&loader.state()).unwrap();
        }
        let batch = loader.epoch(epoch).next().unwrap_or_else(|| panic!("epoch {epoch} ended early")).unwrap();
        assert_eq!((batch.epoch(), batch.index(), batch.ids()), (epoch, right.index(), right.ids()));
        DATASET.check(&batch);
        batch.ids().iter().for_each(|id| assert!(!std::mem::replace(&mut seen[*id as usize], true)));
    }
    assert!(loader.epoch(epoch).next().is_none() && seen.iter().all(|seen| *seen));
}

/// One spell of trouble after the other, until it is over.
fn weather(server: &Server, seed: u64, over: &AtomicBool) {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut spell = 0;
    while !over.load(Ordering::Relaxed) {
        server.set_faults(faults(&mut chance, spell)).unwrap();
        match chance.u8(..) {
            0..20 => server.refuse_for(Duration::from_millis(chance.u64(100..1200))).unwrap(),
            20..40 => server.silence_for(Duration::from_millis(chance.u64(100..1200))),
            _ => {}
        }
        spell += 1;
        let began = Instant::now();
        while began.elapsed() < SPELL && !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    server.set_faults(Faults::none()).unwrap();
}

fn faults(chance: &mut fastrand::Rng, spell: usize) -> Faults {
    // Wrong bytes or a wrong version, once: a shard has its next turn long after its field was read again.
    let shard = format!("train-{:04}", spell % SHARDS);
    let once = if chance.bool() { Effect::Corrupt { at: chance.u64(..150_000) } } else { Effect::WrongETag };
    let mut faults = Faults::none().with(Fault::new(once).on(shard).times(1)).seed(chance.u64(..));
    let after = chance.u64(..150_000);
    for effect in [
        Effect::unavailable(),
        Effect::Status { status: 429, retry_after: Some(Duration::from_secs(1)) },
        Effect::Status { status: 500, retry_after: None },
        Effect::Cut { after, how: Cut::Reset },
        Effect::Cut { after, how: Cut::Close },
        Effect::Stall { after, pause: Duration::from_secs(5) },
        Effect::Stall { after, pause: Duration::from_millis(200) },
        Effect::Drip { bytes_s: chance.u64(20_000..500_000) },
        Effect::Delay(Duration::from_millis(chance.u64(1..400))),
        Effect::Slow { factor: 5.0 },
    ] {
        if chance.u8(..4) == 0 {
            faults = faults.with(Fault::new(effect).on("train-").probability(chance.f64() / 6.0));
        }
    }
    faults
}

/// What the process has, at the end of an epoch.
#[derive(Clone, Copy, Debug)]
struct Level {
    rss: u64,
    descriptors: usize,
    threads: usize,
}

impl Level {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap()
        };
        let threads = number("Threads:") as usize;
        Level { rss: number("VmRSS:") << 10, descriptors: leftovers::descriptors().len(), threads }
    }
}

/// The last third is not above the middle one: the first is for warming up.
fn check_flat(course: &[Level]) {
    let third = course.len() / 3;
    let (middle, last) = (&course[third..2 * third], &course[2 * third..]);
    let median = |levels: &[Level]| {
        let mut rss: Vec<u64> = levels.iter().map(|level| level.rss).collect();
        rss.sort_unstable();
        rss[rss.len() / 2]
    };
    let most = |levels: &[Level], of: fn(&Level) -> usize| levels.iter().map(of).max().unwrap_or(0);
    let (was, is) = (median(middle), median(last));
    assert!(is <= was + RSS_SLACK, "memory grows: {} MiB, then {} MiB", was >> 20, is >> 20);
    let (was, is) = (most(middle, |level| level.descriptors), most(last, |level| level.descriptors));
    assert!(is <= was + DESCRIPTORS_SLACK, "descriptors grow: {was}, then {is}");
    let (was, is) = (most(middle, |level| level.threads), most(last, |level| level.threads));
    assert!(is <= was + 1, "threads grow: {was}, then {is}");
}

/// Does something when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
