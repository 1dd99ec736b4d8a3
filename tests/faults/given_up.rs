//! Trouble that is told: of its kind, in time, and nothing is left.

use std::time::{Duration, Instant};

use farfeed::emulate::{Cut, Effect, Fault, Faults, Server, Site};
use farfeed::fetch::RetryPolicy;
use farfeed::{ByteSize, Kind, Loader};

use crate::far::{AT_ONCE, DATASET, EVER, Far, Front, IMPATIENT, LATE, PATIENT, cut, on_shards};
use crate::leftovers::Before;
use crate::shards;

/// What happens to a server.
type Trouble = &'static dyn Fn(&Server);

/// What cannot be survived: the kind, within patience and the idle time of the last try.
pub(crate) fn what_does_not_end_is_given_up_in_time(front: Front) {
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
        let far = Far::start(front);
        let loader = far.options().retry(IMPATIENT).build().unwrap();
        begin(&far.server);
        let began = Instant::now();
        let error = loader.epoch(0).find_map(Result::err).unwrap_or_else(|| panic!("{name}: no error"));
        let took = began.elapsed();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains("train-") && error.is_transient(), "{name}: {text}");
        assert!(took < IMPATIENT.patience + 2 * IMPATIENT.idle + LATE, "{name}: {took:?}");
        let slab = loader.slab().clone();
        drop((loader, far));
        before.check_after(&slab, AT_ONCE);
    }
}

/// Whoever waits for a batch is told in time, even where requests are allowed to take longer; and may go on waiting.
pub(crate) fn a_consumer_out_of_patience_is_told_what_is_under_way(front: Front) {
    let before = Before::look();
    let far = Far::start(front);
    let slow = RetryPolicy { idle: Duration::from_secs(10), ..PATIENT };
    let loader = far.options().retry(slow).patience(Duration::from_millis(200)).build().unwrap();
    far.server.silence_for(Duration::from_millis(900));
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
    drop((batch, loader, far));
    before.check_after(&slab, AT_ONCE);
}

/// After an error the loader goes on where it stood, once the trouble is over: no batch is lost, none comes twice.
pub(crate) fn an_outage_that_outlasts_patience_costs_no_batch(front: Front) {
    let before = Before::look();
    let far = Far::start(front);
    let loader = far.options().retry(IMPATIENT).batches_ahead(1).in_flight(ByteSize::bytes(1)).build().unwrap();
    let mut ids = Vec::new();
    let mut failures = 0;
    while ids.len() < DATASET.samples.len() {
        if ids.len() == 48 && failures == 0 {
            far.server.set_faults(on_shards(Effect::unavailable())).unwrap();
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
                far.server.set_faults(Faults::none()).unwrap();
            }
        }
    }
    assert_eq!(failures, 1, "all was in flight before the trouble began");
    ids.sort_unstable();
    assert_eq!(ids, (0..160).collect::<Vec<_>>());
    let slab = loader.slab().clone();
    drop((loader, far));
    before.check_after(&slab, AT_ONCE);
}

/// Answers that must not be believed: the first one is told, for to ask again would not make them right.
pub(crate) fn wrong_answers_are_named(front: Front) {
    // Only a bucket's client knows what the codes of S3 mean.
    let expired = (front == Front::S3).then(|| (Effect::expired_token(), Kind::Auth, "ExpiredToken"));
    let wrong = [
        (Effect::WrongContentRange, Kind::Corrupt, "expected"),
        (Effect::WrongETag, Kind::Corrupt, "changed"),
        (Effect::IgnoreRange, Kind::Unsupported, "Range"),
        (Effect::RedirectLoop, Kind::Unsupported, "redirect"),
        (Effect::Status { status: 403, retry_after: None }, Kind::Auth, "refused access"),
        (Effect::Status { status: 401, retry_after: None }, Kind::Auth, "refused access"),
        (Effect::Status { status: 404, retry_after: None }, Kind::NotFound, "404"),
    ];
    for (effect, kind, word) in wrong.into_iter().chain(expired) {
        let before = Before::look();
        let far = Far::start(front);
        let loader = far.options().build().unwrap();
        let began = Instant::now();
        // The index pinned the version; from the second request on a shard something else is answered.
        far.server.set_faults(on_shards(effect.clone()).skip(8)).unwrap();
        let error = loader.epoch(0).find_map(Result::err).unwrap_or_else(|| panic!("{effect:?}: no error"));
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{effect:?}: {text}");
        assert!(text.contains("train-") && text.contains(word), "{effect:?}: {text}");
        assert!(began.elapsed() < AT_ONCE + LATE, "{effect:?}: {:?}", began.elapsed());
        let slab = loader.slab().clone();
        drop((loader, far));
        before.check_after(&slab, AT_ONCE);
    }
}

pub(crate) fn trouble_while_the_index_is_read_or_made(front: Front) {
    let before = Before::look();
    let far = Far::start(front);
    let troubles = Faults::none()
        .with(Fault::new(Effect::unavailable()).every(3).times(8))
        .with(Fault::new(cut(700, Cut::Reset)).every(4).times(6));
    far.server.set_faults(troubles.clone()).unwrap();
    let with_index = far.options().build().unwrap();
    let site = DATASET.site();
    site.remove(shards::INDEX);
    let bare = Far::serving(front, Site::objects(site), troubles);
    let without = bare.options().build().unwrap();
    assert_eq!(without.dataset().fingerprint(), with_index.dataset().fingerprint());
    bare.server.set_faults(Fault::new(cut(0, Cut::Reset))).unwrap();
    let began = Instant::now();
    let error = bare.options().retry(IMPATIENT).build().unwrap_err();
    assert!(error.kind() == Kind::Io && error.is_transient(), "{error}");
    assert!(began.elapsed() < 2 * IMPATIENT.patience + LATE);
    let (one, two) = (with_index.slab().clone(), without.slab().clone());
    drop((with_index, without, far, bare));
    before.check_after(&one, AT_ONCE);
    before.check_after(&two, AT_ONCE);
}

pub(crate) fn a_name_that_is_nowhere(front: Front) {
    let before = Before::look();
    let far = Far::start(front);
    let options = match front {
        Front::Http => Loader::builder(DATASET.pattern("http://farm.invalid/")),
        Front::Https => Loader::builder(DATASET.pattern("https://farm.invalid/")),
        Front::S3 => Loader::builder(DATASET.pattern("s3://"))
            .store_option("endpoint", "http://farm.invalid")
            .store_option("allow_http", "true")
            .store_option("skip_signature", "true"),
    };
    let began = Instant::now();
    let error = options.retry(IMPATIENT).build().unwrap_err();
    assert!(error.kind() == Kind::Io && error.is_transient(), "{error}");
    assert!(error.to_string().contains("farm.invalid"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10) + LATE, "{:?}", began.elapsed());
    let slab = far.options().build().unwrap().slab().clone();
    drop(far);
    before.check_after(&slab, AT_ONCE);
}
