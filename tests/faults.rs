//! A server that fails in every way that servers do: either the epoch is right to the byte, or the error is of its kind and comes
//! in time. Afterwards nothing is left: no page, no thread, no descriptor.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/leftovers.rs"]
mod leftovers;
#[path = "fixture/shards.rs"]
mod shards;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Server, Site};
use farfeed::fetch::{Hedge, RetryPolicy};
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::telemetry::Stats;
use farfeed::{ByteSize, Field, Kind, Loader};
use leftovers::Before;
use shards::WebDataset;

/// 4 MB in 160 samples.
static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(4, 40, 25_000));
const AT_ONCE: Duration = Duration::from_secs(2);
const EVER: Duration = Duration::from_secs(3600);
/// What a busy machine may add to a deadline.
const LATE: Duration = Duration::from_secs(3);

const PATIENT: RetryPolicy = RetryPolicy {
    patience: Duration::from_secs(15),
    idle: Duration::from_millis(400),
    rate_min: 16 << 10,
    hedge: Hedge::per_mille(20),
    pause_min: Duration::from_millis(2),
    pause_max: Duration::from_millis(100),
};
const IMPATIENT: RetryPolicy = RetryPolicy { patience: Duration::from_millis(800), ..PATIENT };

fn options(server: &Server) -> LoaderBuilder {
    Loader::builder(DATASET.pattern(&format!("{}/", server.url())))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .block_size(ByteSize::bytes(200_000))
        .shuffle(Shuffle::window(60).seed(4))
        .host_memory(ByteSize::mib(16))
        .requests(8)
        .retry(PATIENT)
        .patience(Duration::from_secs(30))
        .epochs(1)
}

fn server() -> Server {
    let link = Link { rtt: Duration::from_millis(2), ..Link::default() };
    Server::start(Site::objects(DATASET.site()), link, Faults::none()).unwrap()
}

/// Builds a loader, lets the trouble begin, and reads the epoch, every byte of it; gives what the loader counted.
fn survives(begin: impl FnOnce(&Server)) -> Stats {
    let before = Before::look();
    let server = server();
    let loader = options(&server).build().unwrap();
    begin(&server);
    let mut seen = vec![false; DATASET.samples.len()];
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        DATASET.check(&batch);
        batch.ids().iter().for_each(|id| assert!(!std::mem::replace(&mut seen[*id as usize], true)));
    }
    assert!(seen.iter().all(|seen| *seen));
    let stats = loader.stats();
    let slab = loader.slab().clone();
    drop(loader);
    drop(server);
    before.check_after(&slab, AT_ONCE);
    stats
}

/// Faults for whatever is asked of shards.
fn on_shards(effect: Effect) -> Fault {
    Fault::new(effect).on("train-")
}

fn cut(after: u64, how: Cut) -> Effect {
    Effect::Cut { after, how }
}

#[test]
fn a_storm_of_503_that_ends() {
    let storm = on_shards(Effect::unavailable()).times(30);
    let stats = survives(|server| server.set_faults(storm).unwrap());
    assert!(stats.retries >= 30, "{stats}");
    // With a time to wait: nobody asks again before.
    let began = Instant::now();
    let busy = on_shards(Effect::Status { status: 429, retry_after: Some(Duration::from_secs(1)) }).times(8);
    let stats = survives(|server| server.set_faults(busy).unwrap());
    assert!(stats.retries >= 8 && began.elapsed() >= Duration::from_secs(1), "{stats}");
}

#[test]
fn half_of_the_requests_fail_in_one_way_or_another() {
    for seed in 1..4 {
        let faults = Faults::none()
            .with(on_shards(Effect::unavailable()).probability(0.2))
            .with(on_shards(Effect::Status { status: 500, retry_after: None }).probability(0.1))
            .with(on_shards(cut(0, Cut::Reset)).probability(0.1))
            .with(on_shards(cut(9999, Cut::Close)).probability(0.2))
            .with(on_shards(Effect::Delay(Duration::from_millis(20))).probability(0.2))
            .seed(seed);
        let stats = survives(|server| server.set_faults(faults).unwrap());
        assert!(stats.retries > 5, "{stats}");
    }
}

#[test]
fn bodies_cut_anywhere_go_on_where_they_were_cut() {
    for how in [Cut::Reset, Cut::Close] {
        let mut faults = Faults::none();
        for (nth, after) in [1, 2, 511, 4096, 65_535, 65_536, 77_777, 150_000].into_iter().enumerate() {
            // Regularly, each at its turn, so that some read is cut several times.
            faults = faults.with(on_shards(cut(after, how)).skip(nth as u64).every(9).times(12));
        }
        let stats = survives(|server| server.set_faults(faults).unwrap());
        assert!(stats.retries >= 8, "{stats}");
        let most = DATASET.bytes() * 2;
        assert!(stats.fetch.bytes < most, "{} bytes were fetched of {}", stats.fetch.bytes, DATASET.bytes());
    }
    // No body is ever whole: not one answer tells the version of all that it should have brought.
    let stats = survives(|server| server.set_faults(on_shards(cut(20_000, Cut::Close))).unwrap());
    assert!(stats.retries as usize > DATASET.bytes() as usize / 20_000 / 2, "{stats}");
}

#[test]
fn a_stall_in_mid_body_is_cut_off_and_gone_on_from() {
    let pause = EVER;
    let faults = Faults::none()
        .with(on_shards(Effect::Stall { after: 20_000, pause }).every(5).times(4))
        .with(on_shards(Effect::Stall { after: 0, pause }).skip(3).every(7).times(2));
    let began = Instant::now();
    let stats = survives(|server| server.set_faults(faults).unwrap());
    assert!(stats.retries >= 4 && began.elapsed() < Duration::from_secs(20), "{stats}");
}

#[test]
fn a_slow_drip_is_slow_and_no_more() {
    let drip = on_shards(Effect::Drip { bytes_s: 300_000 }).every(4).times(5);
    let stats = survives(|server| server.set_faults(drip).unwrap());
    assert_eq!(stats.retries, 0, "bytes came all the time: {stats}");
    // Below the floor of rates the rest is asked for on another connection, by whoever is first: the second request or the retry.
    let drip = on_shards(Effect::Drip { bytes_s: 500 }).every(4).times(5);
    let began = Instant::now();
    let stats = survives(|server| server.set_faults(drip).unwrap());
    assert!(stats.retries + stats.hedges_won > 0 && began.elapsed() < Duration::from_secs(10), "{stats}");
}

#[test]
fn a_server_that_is_away_for_two_seconds() {
    let stats = survives(|server| {
        std::thread::sleep(Duration::from_millis(20));
        server.refuse_for(Duration::from_secs(2)).unwrap();
    });
    assert!(stats.retries > 0, "{stats}");
    let stats = survives(|server| server.silence_for(Duration::from_millis(1200)));
    assert!(stats.retries > 0, "{stats}");
}

/// What happens to a server.
type Trouble = &'static dyn Fn(&Server);

/// What cannot be survived: the kind, within patience and the idle time of the last try.
#[test]
fn what_does_not_end_is_given_up_in_time() {
    let cases: [(&str, Kind, Trouble); 7] = [
        ("503", Kind::Throttled, &|server| server.set_faults(on_shards(Effect::unavailable())).unwrap()),
        ("wait an hour", Kind::Throttled, &|server| {
            server.set_faults(on_shards(Effect::Status { status: 503, retry_after: Some(EVER) })).unwrap();
        }),
        ("500", Kind::Io, &|server| {
            server.set_faults(on_shards(Effect::Status { status: 500, retry_after: None })).unwrap();
        }),
        ("reset before the first byte", Kind::Io, &|server| server.set_faults(on_shards(cut(0, Cut::Reset))).unwrap()),
        ("cut at the same byte for ever", Kind::Io, &|server| {
            server.set_faults(on_shards(cut(0, Cut::Close))).unwrap()
        }),
        ("silence", Kind::Stalled, &|server| server.silence_for(EVER)),
        ("away", Kind::Io, &|server| server.refuse_for(EVER).unwrap()),
    ];
    for (name, kind, begin) in cases {
        let before = Before::look();
        let server = server();
        let loader = options(&server).retry(IMPATIENT).build().unwrap();
        begin(&server);
        let began = Instant::now();
        let error = loader.epoch(0).find_map(Result::err).unwrap_or_else(|| panic!("{name}: no error"));
        let took = began.elapsed();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains("train-") && error.is_transient(), "{name}: {text}");
        assert!(took < IMPATIENT.patience + 2 * IMPATIENT.idle + LATE, "{name}: {took:?}");
        let slab = loader.slab().clone();
        drop((loader, server));
        before.check_after(&slab, AT_ONCE);
    }
}

/// Whoever waits for a batch is told in time, even where requests are allowed to take longer; and may go on waiting.
#[test]
fn a_consumer_out_of_patience_is_told_what_is_under_way() {
    let before = Before::look();
    let server = server();
    let slow = RetryPolicy { idle: Duration::from_secs(10), ..PATIENT };
    let loader = options(&server).retry(slow).patience(Duration::from_millis(200)).build().unwrap();
    server.silence_for(Duration::from_millis(900));
    let error = loader.epoch(0).next().unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Stalled);
    let text = error.to_string();
    assert!(text.contains("no batch for") && text.contains("requests are under way"), "{text}");
    let began = Instant::now();
    let batch = loop {
        match loader.epoch(0).next().unwrap() {
            Ok(batch) => break batch,
            Err(error) => {
                assert!(error.kind() == Kind::Stalled && began.elapsed() < Duration::from_secs(15), "{error}")
            }
        }
    };
    DATASET.check(&batch);
    assert_eq!((batch.index(), loader.stats().retries), (0, 0));
    let slab = loader.slab().clone();
    drop((batch, loader, server));
    before.check_after(&slab, AT_ONCE);
}

/// After an error the loader goes on where it stood, once the trouble is over: no batch is lost, none comes twice.
#[test]
fn an_outage_that_outlasts_patience_costs_no_batch() {
    let before = Before::look();
    let server = server();
    let loader = options(&server).retry(IMPATIENT).batches_ahead(1).in_flight(ByteSize::bytes(1)).build().unwrap();
    let mut ids = Vec::new();
    let mut failures = 0;
    while ids.len() < DATASET.samples.len() {
        if ids.len() == 48 && failures == 0 {
            server.set_faults(on_shards(Effect::unavailable())).unwrap();
        }
        let Some(batch) = loader.epoch(0).next() else { panic!("{} samples, {failures} failures", ids.len()) };
        match batch {
            Ok(batch) => {
                DATASET.check(&batch);
                ids.extend_from_slice(batch.ids());
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Throttled, "{error}");
                failures += 1;
                assert!(failures < 3, "{error}");
                server.set_faults(Faults::none()).unwrap();
            }
        }
    }
    assert_eq!(failures, 1, "all was in flight before the trouble began");
    ids.sort_unstable();
    assert_eq!(ids, (0..160).collect::<Vec<_>>());
    let slab = loader.slab().clone();
    drop((loader, server));
    before.check_after(&slab, AT_ONCE);
}

#[test]
fn trouble_while_the_index_is_read_or_made() {
    let before = Before::look();
    let server = server();
    let troubles = Faults::none()
        .with(Fault::new(Effect::unavailable()).every(3).times(8))
        .with(Fault::new(cut(700, Cut::Reset)).every(4).times(6));
    server.set_faults(troubles.clone()).unwrap();
    let with_index = options(&server).build().unwrap();
    let site = DATASET.site();
    site.remove(shards::INDEX);
    let bare = Server::start(Site::objects(site), Link::default(), troubles).unwrap();
    let without = options(&bare).build().unwrap();
    assert_eq!(without.dataset().fingerprint(), with_index.dataset().fingerprint());
    bare.set_faults(Fault::new(cut(0, Cut::Reset))).unwrap();
    let began = Instant::now();
    let error = options(&bare).retry(IMPATIENT).build().unwrap_err();
    assert!(error.kind() == Kind::Io && error.is_transient(), "{error}");
    assert!(began.elapsed() < 2 * IMPATIENT.patience + LATE);
    let (one, two) = (with_index.slab().clone(), without.slab().clone());
    drop((with_index, without, server, bare));
    before.check_after(&one, AT_ONCE);
    before.check_after(&two, AT_ONCE);
}
