//! The same batches at every world size, after every resume, however they are asked for: ids and bytes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/shards.rs"]
mod shards;

use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use farfeed::loader::LoaderBuilder;
use farfeed::memory::Landing;
use farfeed::order::{Shuffle, State};
use farfeed::store::{Appetite, Arrival, ObjectMeta, ReadRequest, Store, StoreFuture, Throttle, ThrottleStore};
use farfeed::{Batch, ByteSize, Field, Kind, Loader};
use shards::WebDataset;

/// 5 × 53 samples: eleven global batches of 24, and one sample left.
static DATASET: LazyLock<WebDataset> = LazyLock::new(|| shards::webdataset(5, 53, 3000));
const SAMPLES: u64 = 265;
const GLOBAL: u32 = 24;
const BATCHES: u64 = 12;
const LANES: u32 = 4;
const WINDOW: u64 = 100;

/// Ids of the samples of one batch, row by row.
type Rows = Vec<u64>;

fn builder_over(store: Arc<dyn Store>, rank: u32, world_size: u32) -> LoaderBuilder {
    Loader::builder(DATASET.pattern("memory:"))
        .store(store)
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(GLOBAL / world_size)
        .rank(rank, world_size)
        .lanes(LANES)
        .block_size(ByteSize::bytes(12_000))
        .shuffle(Shuffle::window(WINDOW).seed(3))
        .page_size(ByteSize::bytes(4096))
        .host_memory(ByteSize::mib(8))
}

fn builder(rank: u32, world_size: u32) -> LoaderBuilder {
    builder_over(DATASET.memory(), rank, world_size)
}

fn rows(batch: &Batch) -> Rows {
    DATASET.check(batch);
    batch.ids().to_vec()
}

/// The next batches of a loader, over the ends of epochs, as (epoch, index, rows).
fn next(loader: &Loader, count: usize) -> Vec<(u64, u64, Rows)> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        let epoch = loader.current_epoch();
        for batch in loader.epoch(epoch).take(count - taken.len()) {
            let batch = batch.unwrap();
            taken.push((batch.epoch(), batch.index(), rows(&batch)));
        }
    }
    taken
}

/// The rows of one global batch from those of its ranks: row *i* of rank *r* is position *i* × world size + *r*.
fn interleave(ranks: &[Rows]) -> Rows {
    let longest = ranks.iter().map(Vec::len).max().unwrap_or(0);
    (0..longest).flat_map(|row| ranks.iter().filter_map(move |rank| rank.get(row).copied())).collect()
}

/// The first two epochs and one batch, read once by one rank.
static WHOLE: LazyLock<Vec<(u64, u64, Rows)>> =
    LazyLock::new(|| next(&builder(0, 1).build().unwrap(), 2 * BATCHES as usize + 1));

#[test]
fn every_sample_comes_once_and_the_world_size_changes_no_global_batch() {
    for epoch in [0, 1] {
        let batches: Vec<&Rows> = WHOLE.iter().filter(|batch| batch.0 == epoch).map(|batch| &batch.2).collect();
        assert_eq!(batches.len() as u64, BATCHES);
        let mut ids: Vec<u64> = batches.iter().copied().flatten().copied().collect();
        assert!(!ids.is_sorted());
        ids.sort_unstable();
        assert_eq!(ids, (0..SAMPLES).collect::<Vec<_>>());
    }
    assert_ne!(WHOLE[0].2, WHOLE[BATCHES as usize].2, "epochs differ");
    for world_size in [2, 4] {
        let loaders: Vec<Loader> = (0..world_size).map(|rank| builder(rank, world_size).build().unwrap()).collect();
        for (epoch, index, whole) in WHOLE.iter() {
            let ranks: Vec<_> = loaders.iter().map(|loader| next(loader, 1).remove(0)).collect();
            assert!(ranks.iter().all(|(e, i, _)| (e, i) == (epoch, index)));
            let ranks: Vec<Rows> = ranks.into_iter().map(|(_, _, rows)| rows).collect();
            assert_eq!(interleave(&ranks), *whole, "batch {index} of epoch {epoch} at world size {world_size}");
            if *index == BATCHES - 1 {
                assert_eq!(ranks.iter().map(Vec::len).collect::<Vec<_>>()[..2], [1, 0], "one sample is left");
            }
            let states: Vec<State> = loaders.iter().map(Loader::state).collect();
            assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
        }
    }
}

/// A consumer that counts batches never sees that there are no more.
#[test]
fn a_stream_whose_ends_nobody_sees_is_one_stream() {
    let loader = builder(0, 1).epochs(3).build().unwrap();
    let mut taken = Vec::new();
    for epoch in 0..3 {
        assert_eq!(loader.current_epoch(), epoch);
        let mut batches = loader.epoch(epoch);
        taken.extend((0..BATCHES).map(|_| rows(&batches.next().unwrap().unwrap())));
        let state = loader.state();
        assert_eq!((state.epoch, state.position), (epoch + 1, 0));
    }
    assert!(taken.iter().zip(WHOLE.iter()).all(|(taken, whole)| *taken == whole.2));
    assert!(loader.epoch(3).next().is_none());
    // Had it begun anew, what was read ahead would have been read twice.
    let once = builder(0, 1).epochs(3).build().unwrap();
    for epoch in 0..3 {
        once.epoch(epoch).for_each(|batch| drop(batch.unwrap()));
    }
    assert_eq!(loader.stats().fetch.bytes, once.stats().fetch.bytes);
}

#[test]
fn the_last_batch_is_dropped_or_kept() {
    let loader = builder(1, 4).drop_last(true).build().unwrap();
    assert_eq!(loader.batches_per_epoch(), BATCHES - 1);
    let taken = next(&loader, 2 * (BATCHES as usize - 1));
    let kept: Vec<_> = WHOLE.iter().filter(|batch| batch.1 < BATCHES - 1).collect();
    for (found, whole) in taken.iter().zip(kept) {
        let own: Rows = whole.2.iter().copied().skip(1).step_by(4).collect();
        assert_eq!((found.0, found.1, &found.2), (whole.0, whole.1, &own));
    }
    // Behind the last batch stands the next epoch's first.
    let again = builder(1, 4).drop_last(true).resume(loader.state()).build().unwrap();
    assert_eq!(again.epoch(2).next().unwrap().unwrap().index(), 0);
    let error = builder(0, 1).batch_size(266).drop_last(true).build().unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("265 samples"), "{error}");
    let all = builder(0, 1).batch_size(266).build().unwrap();
    assert_eq!(next(&all, 2).iter().map(|batch| batch.2.len()).collect::<Vec<_>>(), [265, 265]);
}

#[test]
fn a_resumed_loader_gives_the_same_rest() {
    let source = builder(1, 2).build().unwrap();
    let mut states = vec![source.state()];
    for _ in 0..2 * BATCHES {
        next(&source, 1);
        states.push(source.state());
    }
    for (done, state) in states.iter().enumerate() {
        let text = serde_json::to_string(state).unwrap();
        let from_json: State = serde_json::from_str(&text).unwrap();
        let from_line: State = state.to_string().parse().unwrap();
        assert_eq!((from_json, from_line), (*state, *state));
        // The whole rest now and then, the next few batches always.
        let rest = WHOLE.len() - done;
        let count = if done % 7 == 3 { rest } else { rest.min(2) };
        let world_size = [1, 2, 4][done % 3];
        let rank = done as u32 % world_size;
        let loader = builder(rank, world_size).resume(from_json).build().unwrap();
        let end = state.position == SAMPLES;
        let same = State { epoch: state.epoch + u64::from(end), position: state.position % SAMPLES, ..*state };
        assert_eq!(
            loader.state(),
            same,
            "resuming is no progress, and the end of an epoch is the next one's beginning"
        );
        for (found, whole) in next(&loader, count).into_iter().zip(&WHOLE[done..]) {
            let own: Rows = whole.2.iter().copied().skip(rank as usize).step_by(world_size as usize).collect();
            assert_eq!(found, (whole.0, whole.1, own), "after {done} batches, rank {rank} of {world_size}");
        }
    }
}

#[test]
fn a_running_loader_can_be_sent_anywhere() {
    let loader = builder(0, 1).build().unwrap();
    next(&loader, 5);
    let state = loader.state();
    next(&loader, 4);
    loader.resume(&state).unwrap();
    assert_eq!(next(&loader, 3), WHOLE[5..8]);
    let other = builder(0, 1).build().unwrap();
    let seventh: Vec<Rows> = other.epoch(7).map(|batch| rows(&batch.unwrap())).collect();
    assert_eq!(loader.epoch(7).map(|batch| rows(&batch.unwrap())).collect::<Vec<_>>(), seventh);
    assert_eq!(
        loader.epoch(1).take(2).map(|batch| rows(&batch.unwrap())).collect::<Vec<_>>(),
        [WHOLE[12].2.clone(), WHOLE[13].2.clone()]
    );
    // An epoch that is left in the middle goes on there; one that was left for another begins anew.
    assert_eq!(next(&loader, 1), WHOLE[14..15]);
    assert_eq!(loader.epoch(0).map(|batch| rows(&batch.unwrap())).collect::<Vec<_>>().len() as u64, BATCHES);
    assert_eq!((loader.current_epoch(), loader.state().position), (1, 0));
    assert_eq!(loader.memory().total, loader.memory().free + loader.memory().filling + loader.memory().ready);
}

#[test]
fn the_asynchronous_stream_is_the_same() {
    let link = Throttle { latency: Duration::from_millis(2), bytes_per_second: 0, requests: 0 };
    let loader = builder_over(ThrottleStore::new(DATASET.memory(), link), 0, 1).epochs(2).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let stream = runtime.block_on(async {
        let mut stream = Vec::new();
        // A future that is dropped loses nothing.
        drop(tokio::time::timeout(Duration::from_micros(10), loader.next_batch()).await);
        let next = async || tokio::time::timeout(Duration::from_secs(20), loader.next_batch()).await.unwrap().unwrap();
        while let Some(batch) = next().await {
            stream.push((batch.epoch(), batch.index(), rows(&batch)));
        }
        assert!(next().await.is_none(), "the end is the end");
        stream
    });
    assert_eq!(stream, WHOLE[..2 * BATCHES as usize]);
    assert!(loader.epoch(2).next().is_none());
}

#[test]
fn a_state_of_something_else_is_refused() {
    let source = builder(0, 1).build().unwrap();
    next(&source, 3);
    let state = source.state();
    let other = shards::webdataset(5, 53, 2999);
    let resumed = |builder: LoaderBuilder, state: State| builder.resume(state).build().map(drop);
    let cases = [
        (resumed(builder_over(other.memory(), 0, 1), state), Kind::Config, "fingerprint"),
        (resumed(builder(0, 1).block_size(ByteSize::bytes(9000)), state), Kind::Config, "fingerprint"),
        (resumed(builder(0, 1).shuffle(Shuffle::window(WINDOW).seed(4)), state), Kind::Config, "seed 3"),
        (resumed(builder(0, 1).shuffle(Shuffle::window(99).seed(3)), state), Kind::Config, "window 100"),
        (resumed(builder(0, 1).lanes(2), state), Kind::Topology, "lanes 4"),
        (resumed(builder(0, 1).rank(0, 3), state), Kind::Topology, "4 lanes"),
        (resumed(builder(0, 1).batch_size(7), state), Kind::Topology, "72 samples"),
        (resumed(builder(0, 1), State { version: 9, ..state }), Kind::Unsupported, "version 9"),
        (resumed(builder(0, 1), State { position: 266, ..state }), Kind::Config, "266"),
        // Near the end no sample is passed over by rounding up to the next epoch.
        (resumed(builder(0, 1).batch_size(200), State { position: 264, ..state }), Kind::Topology, "264 samples"),
        (source.resume(&State { seed: 9, ..state }), Kind::Config, "seed 9"),
    ];
    for (number, (outcome, kind, words)) in cases.into_iter().enumerate() {
        let error = outcome.expect_err(&format!("case {number}"));
        assert!(error.kind() == kind && error.to_string().contains(words), "case {number}: {error}");
    }
    // A refusal leaves the loader where it was.
    assert_eq!(next(&source, 1), WHOLE[3..4]);
    assert_eq!("farfeed1:1:2".parse::<State>().unwrap_err().kind(), Kind::Config);
}

/// Notes what is read.
#[derive(Debug)]
struct Witness {
    inner: Arc<dyn Store>,
    reads: Mutex<Vec<(Arc<str>, u64)>>,
}

impl Store for Witness {
    fn root(&self) -> &str {
        self.inner.root()
    }

    fn appetite(&self) -> Appetite {
        self.inner.appetite()
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        self.inner.head(key)
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        self.reads.lock().unwrap().push((Arc::clone(&request.key), request.start));
        self.inner.read(request, landing)
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}

#[test]
fn the_next_epoch_is_asked_for_before_this_one_ends() {
    let witness = Arc::new(Witness { inner: DATASET.memory(), reads: Mutex::default() });
    let loader = builder_over(Arc::<Witness>::clone(&witness), 0, 1).shuffle(Shuffle::none()).build().unwrap();
    let asked_again = || {
        let reads = witness.reads.lock().unwrap();
        let first = reads.iter().find(|(key, _)| key.ends_with(".tar")).cloned();
        first.is_some_and(|first| reads.iter().filter(|read| **read == first).count() > 1)
    };
    let mut epoch = loader.epoch(0);
    for _ in 0..BATCHES - 1 {
        epoch.next().unwrap().unwrap();
    }
    let began = Instant::now();
    while !asked_again() {
        assert!(began.elapsed() < Duration::from_secs(10), "the next epoch's first bytes are not asked for");
        std::thread::sleep(Duration::from_millis(2));
    }
    let last = epoch.next().unwrap().unwrap();
    assert_eq!((last.index(), last.len()), (BATCHES - 1, 1));
    assert!(epoch.next().is_none());
    // Where there is no next epoch, nothing is read of it.
    let witness = Arc::new(Witness { inner: DATASET.memory(), reads: Mutex::default() });
    let loader =
        builder_over(Arc::<Witness>::clone(&witness), 0, 1).shuffle(Shuffle::none()).epochs(1).build().unwrap();
    assert_eq!(loader.epoch(0).count() as u64, BATCHES);
    let reads = witness.reads.lock().unwrap();
    let mut once = reads.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), reads.len(), "a byte was asked for twice");
}
