//! A fork while other threads are at work on the loader: whatever they hold at that moment is held for ever in the child, which must be answered
//! all the same.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/shards.rs"]
mod shards;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use farfeed::loader::{Batch, Next};
use farfeed::order::Shuffle;
use farfeed::store::{Throttle, ThrottleStore};
use farfeed::telemetry::Lane;
use farfeed::{ByteSize, Error, Field, Kind, Loader, Result};
use farfeed_driver_double::in_a_child;
use shards::webdataset;

/// How long a child may take, on a machine that does much else. One that waits for a lock never ends.
const PATIENCE: Duration = Duration::from_secs(20);
const ROUNDS: usize = 12;

fn loader() -> Loader {
    let dataset = webdataset(1, 400, 4_000);
    let link = Throttle { latency: Duration::from_millis(3), bytes_per_second: 2 << 20, requests: 0 };
    Loader::builder(dataset.pattern("memory:"))
        .store(ThrottleStore::new(dataset.memory(), link))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(2)
        .shuffle(Shuffle::window(16).seed(1))
        .host_memory(ByteSize::mib(32))
        .page_size(ByteSize::bytes(4096))
        .trace(100)
        .build()
        .unwrap()
}

/// A question that a child may ask; the answer is empty, or says what is wrong with it.
type Question = (&'static str, fn(&Loader) -> String);

const QUESTIONS: [Question; 13] = [
    ("state", |loader| wrong_unless(loader.state().position < 400 + 2)),
    ("current_epoch", |loader| wrong_unless(loader.current_epoch() < 1 << 20)),
    ("stats", |loader| wrong_unless(loader.stats().to_string().starts_with("bound by"))),
    ("explain", |loader| wrong_unless(loader.explain().to_string().contains("threads"))),
    ("plan", |loader| wrong_unless(loader.plan().to_string().contains("memory"))),
    ("memory", |loader| wrong_unless(loader.memory().free <= loader.memory().total)),
    ("quarantine", |loader| wrong_unless(loader.quarantine().is_empty())),
    ("trace", |loader| {
        let now = Instant::now();
        loader.telemetry().trace().add(Lane::Compute, now, now, 0, 0);
        wrong_unless(loader.telemetry().trace().spans().is_empty())
    }),
    ("debug", |loader| wrong_unless(format!("{loader:?}").contains("free"))),
    ("slab", |loader| {
        let slab = loader.slab();
        slab.watch(|| ());
        // Its pages are not the child's: they are not even mapped there.
        wrong_unless(slab.take(1).is_none()) + &refused(slab.take_within(1, PATIENCE))
    }),
    ("seek", |loader| {
        loader.seek(7);
        loader.seek(8);
        String::new()
    }),
    ("resume", |loader| refused(loader.resume(&loader.state()))),
    ("next_within", |loader| {
        let next = |limit| loader.next_within(loader.current_epoch(), Instant::now(), limit);
        refused(next(PATIENCE)) + &refused(next(Duration::ZERO))
    }),
];

fn wrong_unless(right: bool) -> String {
    if right { String::new() } else { "a wrong answer".into() }
}

fn refused<T>(result: Result<T>) -> String {
    let good = |error: &Error| error.kind() == Kind::Unsupported && error.to_string().contains("fork");
    match result {
        Err(error) if good(&error) && error.next_step().is_some() => String::new(),
        Err(error) => error.to_string(),
        Ok(_) => "it worked".into(),
    }
}

/// Sets a flag when it goes, also because of a failure: nobody else would end then.
struct AtTheEnd<'a>(&'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One thread takes batches, and holds the consumer's lock while it waits for them; others ask all there is to ask.
fn kept_busy(loader: &Loader, while_doing: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let epoch = loader.current_epoch();
                loader.seek(epoch);
                match loader.next_within(epoch, Instant::now(), Duration::from_millis(50)).unwrap() {
                    Next::Batch(batch) => drop(batch),
                    Next::End | Next::Pending => {}
                }
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let harmless = |(name, _): &&Question| !["slab", "seek", "resume", "next_within"].contains(name);
                while !over.load(Ordering::Relaxed) {
                    QUESTIONS.iter().filter(harmless).for_each(|(_, ask)| drop(ask(loader)));
                }
            });
        }
        let _end = AtTheEnd(&over);
        while_doing();
    });
}

#[test]
fn every_question_is_answered_whoever_holds_a_lock() {
    let loader = loader();
    kept_busy(&loader, || {
        for round in 0..ROUNDS {
            for (name, ask) in QUESTIONS {
                let answer = in_a_child(PATIENCE, || ask(&loader) + "done");
                assert_eq!(answer.as_deref(), Ok("done"), "{name}, in round {round}");
            }
        }
    });
}

/// The loader's own threads are busy enough: the child lets go of a loader in mid-run, of batches, and of what watches it.
#[test]
fn what_is_let_go_of_in_a_child_waits_for_nobody() {
    let mut theirs = Some((loader(), Vec::<Batch>::new()));
    for round in 0..ROUNDS {
        let (loader, batches) = theirs.as_mut().unwrap();
        batches.clear();
        let epoch = loader.current_epoch();
        batches.extend(loader.epoch(epoch).take(2).map(|batch| batch.unwrap()));
        // In the parent it is not called: what is moved is the copy that the fork made.
        let answer = in_a_child(PATIENCE, || {
            let (loader, mut batches) = theirs.take().unwrap();
            let (slab, telemetry) = (loader.slab().clone(), Arc::clone(loader.telemetry()));
            let read: usize = batches.iter().map(|batch| batch.values("jpg").unwrap().len()).sum();
            drop(batches.pop());
            drop((loader, batches));
            drop((slab, telemetry));
            format!("{read} read")
        });
        assert_eq!(answer.as_deref(), Ok("4 read"), "in round {round}");
    }
}
