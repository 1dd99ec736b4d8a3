//! Bad samples cost their own rows and nothing else: on every rank, at every world size, after every resume; and what was found is said.
//!
//! Tests take turns, as some of them count threads.

#[path = "fixture/damage.rs"]
mod damage;
#[path = "fixture/leftovers.rs"]
mod leftovers;
#[path = "fixture/shards.rs"]
mod shards;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use damage::{DATASET, PER_SHARD, SAMPLES, all, builder, damaged, expected, fails, name, numbers, place, rows};
use farfeed::dataset::{Dtype, Index, Shard, ShardIndexer};
use farfeed::fetch::RetryPolicy;
use farfeed::memory::Landing;
use farfeed::order::Shuffle;
use farfeed::store::{Appetite, Arrival, Fault, FaultStore, MemoryStore, ObjectMeta, ReadRequest, Store, StoreFuture};
use farfeed::{ByteSize, Error, Field, Kind, Loader, OnError};
use leftovers::Before;

const IMPATIENT: RetryPolicy = RetryPolicy {
    patience: Duration::from_millis(300),
    idle: Duration::from_millis(300),
    pause_min: Duration::from_millis(2),
    pause_max: Duration::from_millis(50),
    rate_min: 0,
    hedge: farfeed::fetch::Hedge::off(),
};

#[test]
fn bad_samples_cost_their_rows_and_no_rank_diverges() {
    let _turn = Before::look();
    let fields = [(3, "jpg"), (40, "cls"), (41, "jpg"), (41, "cls"), (100, "jpg"), (101, "jpg"), (163, "cls")];
    let bad: BTreeSet<u64> = fields.iter().map(|(sample, _)| *sample as u64).collect();
    for world_size in [1, 2, 4] {
        let mut found = BTreeSet::new();
        let mut states = Vec::new();
        for rank in 0..world_size {
            let loader = builder(damaged(&fields), rank, world_size).on_error(OnError::skip()).build().unwrap();
            let batches = all(&loader);
            assert_eq!(batches, expected(rank, world_size, &bad), "rank {rank} of {world_size}");
            assert_eq!(batches.len() as u64, 2 * loader.batches_per_epoch());
            let list = loader.quarantine();
            found.extend(numbers(&list));
            let (stats, delivered) = (loader.stats(), batches.iter().map(|(_, _, ids)| ids.len() as u64).sum::<u64>());
            let intact: u64 =
                expected(rank, world_size, &BTreeSet::new()).iter().map(|(_, _, ids)| ids.len() as u64).sum();
            assert_eq!((stats.samples, stats.left_out), (delivered, intact - delivered));
            assert!(stats.fields_read_again >= stats.left_out && stats.to_string().contains("left out"), "{stats}");
            states.push(loader.state());
        }
        assert_eq!(found, bad, "each bad sample was found, by the rank that reads it");
        assert!(states.iter().all(|state| *state == states[0]));
    }
    // What is said of each.
    let loader =
        builder(damaged(&fields), 0, 1).lanes(1).shuffle(Shuffle::none()).on_error(OnError::skip()).build().unwrap();
    all(&loader);
    let (list, (_, start, bytes)) = (loader.quarantine(), place(3, "jpg"));
    let first = &list.entries()[0];
    assert_eq!((first.key.as_deref(), first.field.as_deref()), (Some("0000/000003"), Some("jpg")));
    assert_eq!(
        (first.shard.as_str(), first.start, first.bytes),
        ("memory:data/train-0000.tar", Some(start), Some(bytes))
    );
    assert!(first.reason.contains("crc32c is"), "{first}");
}

#[test]
fn dense_columns_close_up() {
    let _turn = Before::look();
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..20u8 {
        let number_text = format!("{}.5", number);
        shards::append(&mut archive, &format!("{number:02}.vec"), &[number; 12]);
        shards::append(&mut archive, &format!("{number:02}.score"), number_text.as_bytes());
        shards::append(&mut archive, &format!("{number:02}.json"), format!("[{number}]").as_bytes());
    }
    let bytes = archive.into_inner().unwrap();
    let mut indexer = ShardIndexer::new(Shard { url: "memory:v.tar".into(), size: bytes.len() as u64, version: None });
    indexer.push(&bytes).unwrap();
    let index = Index::new(vec![indexer.finish().unwrap()]);
    let mut broken = bytes.clone();
    for (sample, field) in [(1, "vec"), (2, "score"), (3, "json"), (15, "vec"), (15, "json")] {
        let place = index.shards()[0].members(sample).find(|place| place.field == field).unwrap();
        broken[place.start as usize] ^= 0xff;
    }
    let store = MemoryStore::new();
    store.put("v.tar", broken);
    store.put("v.tar.ffindex", index.encode());
    let loader = Loader::builder("memory:v.tar")
        .store(store)
        .field("vec", Field::array(Dtype::U8, &[3, 4]))
        .field("score", Field::float())
        .field("json", Field::json())
        .batch_size(8)
        .host_memory(ByteSize::mib(4))
        .on_error(OnError::skip())
        .build()
        .unwrap();
    let mut kept = Vec::new();
    for (batch, len) in loader.epoch(0).zip([5, 7, 4]) {
        let batch = batch.unwrap();
        assert_eq!((batch.len(), batch.left_out()), (len, if batch.index() < 2 { 8 - len } else { 0 }));
        let vec = batch.dense("vec").unwrap();
        assert_eq!((vec.shape, vec.len), (&[len, 3, 4][..], len * 12));
        let wanted: Vec<u8> = batch.ids().iter().flat_map(|id| [*id as u8; 12]).collect();
        assert_eq!(vec.bytes.unwrap(), wanted);
        let scores: Vec<f64> = batch.ids().iter().map(|id| *id as f64 + 0.5).collect();
        assert_eq!((batch.dense("score").unwrap().shape, batch.floats("score").unwrap()), (&[len][..], scores));
        let documents: Vec<_> = batch.ids().iter().map(|id| serde_json::json!([id])).collect();
        assert_eq!(batch.json("json").unwrap(), documents);
        assert_eq!(batch.key(len - 1).unwrap(), format!("{:02}", batch.ids()[len - 1]));
        kept.extend_from_slice(batch.ids());
    }
    assert_eq!(kept, (0..20).filter(|id| ![1, 2, 3, 15].contains(id)).collect::<Vec<_>>());
}

#[test]
fn a_resume_in_the_middle_gives_the_same_rest() {
    let _turn = Before::look();
    let fields: Vec<(usize, &str)> = (0..SAMPLES).step_by(7).map(|sample| (sample, "jpg")).collect();
    let bad: BTreeSet<u64> = fields.iter().map(|(sample, _)| *sample as u64).collect();
    let store = damaged(&fields);
    let skipping =
        |rank, world_size| builder(Arc::<MemoryStore>::clone(&store), rank, world_size).on_error(OnError::skip());
    let source = skipping(0, 1).build().unwrap();
    let whole = expected(0, 1, &bad);
    for done in 0..whole.len() {
        let state = source.state();
        let again = skipping(0, 1).resume(state).build().unwrap();
        assert_eq!(all(&again), whole[done..], "after {done} batches");
        let half = skipping(1, 2).resume(state).build().unwrap();
        assert_eq!(all(&half), expected(1, 2, &bad)[done..], "after {done} batches, as rank 1 of 2");
        assert_eq!(rows(&source.epoch(source.current_epoch()).next().unwrap().unwrap()), whole[done]);
        if done + 1 == whole.len() / 2 {
            assert!(source.epoch(0).next().is_none());
        }
    }
}

#[test]
fn a_batch_of_nothing_but_bad_samples_is_delivered_empty() {
    let _turn = Before::look();
    let fields: Vec<(usize, &str)> = (24..48).map(|sample| (sample, "jpg")).collect();
    let loader = builder(damaged(&fields), 0, 1)
        .lanes(1)
        .shuffle(Shuffle::none())
        .on_error(OnError::skip())
        .epochs(1)
        .build()
        .unwrap();
    let mut lens = Vec::new();
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        DATASET.check(&batch);
        if batch.is_empty() {
            assert_eq!((batch.index(), batch.left_out(), batch.payload_bytes()), (1, 24, 0));
            assert_eq!((batch.values("jpg").unwrap().len(), batch.values("cls").unwrap().len()), (0, 0));
            assert_eq!((batch.dense("cls").unwrap().shape, batch.ragged("jpg").unwrap().values_len), (&[0][..], 0));
        }
        lens.push(batch.len());
    }
    assert_eq!(lens, [24, 0, 24, 24, 24, 24, 20]);
}

#[test]
fn beyond_the_limit_and_without_leave_it_is_an_error_that_names_the_place() {
    let _turn = Before::look();
    let fields = [(30, "jpg"), (60, "cls"), (90, "jpg")];
    let ordered = || builder(damaged(&fields), 0, 1).lanes(1).shuffle(Shuffle::none());
    let (shard, start, bytes) = place(90, "jpg");
    let named = format!("field 'jpg' of sample 0002/000008 (memory:{}, bytes {start}..{})", name(shard), start + bytes);
    let loader = ordered().on_error(OnError::Skip { limit: 2 }).build().unwrap();
    let (before, error) = fails(&loader);
    assert_eq!((before.len(), error.kind(), error.is_transient()), (3, Kind::Corrupt, false), "{error}");
    let text = error.to_string();
    assert!(text.contains(&named) && text.contains("2 bad samples of epoch 0"), "{text}");
    assert_eq!(numbers(&loader.quarantine()), [30, 60].into());
    // Asking again changes nothing, and a state is not moved.
    assert_eq!((fails(&loader).0, loader.stats().batches), (Vec::new(), 3));
    // Three are enough, in each epoch.
    let enough = ordered().on_error(OnError::Skip { limit: 3 }).build().unwrap();
    assert_eq!(all(&enough).len(), 14);
    let (before, error) = fails(&ordered().build().unwrap());
    assert_eq!((before.len(), error.kind()), (1, Kind::Corrupt));
    assert!(error.to_string().contains("field 'jpg' of sample 0000/000030"), "{error}");
}

#[test]
fn what_was_damaged_on_the_way_is_read_again_and_nothing_is_left_out() {
    let _turn = Before::look();
    let intact = expected(0, 1, &BTreeSet::new());
    let mut healed = 0;
    for (read, at) in [(2, 600), (5, 1500), (9, 30), (14, 3000), (20, 0)] {
        for on_error in [OnError::Fail, OnError::skip()] {
            let store = FaultStore::scripted(DATASET.memory(), [(read, Fault::Flip { at })]);
            let reads = Arc::clone(&store);
            let loader = builder(store, 0, 1).on_error(on_error).build().unwrap();
            assert_eq!(all(&loader), intact, "read {read}, byte {at}");
            assert!(loader.quarantine().is_empty() && reads.faults() == 1);
            // A byte of a header or between samples is nobody's.
            assert!(loader.stats().fields_read_again <= 1, "the field alone is read again");
            healed += loader.stats().fields_read_again;
        }
    }
    assert!(healed >= 4, "{healed}");
}

#[test]
fn shards_that_are_gone_truncated_or_replaced_cost_their_samples() {
    let before = Before::look();
    let of_shard = |shard: u64| (shard * PER_SHARD as u64..(shard + 1) * PER_SHARD as u64).collect::<BTreeSet<u64>>();
    let with = |change: &dyn Fn(&MemoryStore)| {
        let store = MemoryStore::new();
        for (name, bytes) in &DATASET.shards {
            store.put(format!("data/{name}"), bytes.clone());
        }
        store.put(shards::INDEX, DATASET.index().encode());
        change(&store);
        store
    };
    let cut = DATASET.shards["train-0002.tar"][..40_000].to_vec();
    let truncated = with(&|store| store.put(name(2), cut.clone()));
    let gone = MemoryStore::new();
    for (name, bytes) in DATASET.shards.iter().filter(|(name, _)| !name.contains("0002")) {
        gone.put(format!("data/{name}"), bytes.clone());
    }
    gone.put(shards::INDEX, DATASET.index().encode());
    for (store, kind, word) in
        [(gone, Kind::NotFound, "no such object"), (truncated, Kind::Corrupt, "the object has 40000")]
    {
        let loader = builder(Arc::<MemoryStore>::clone(&store), 1, 2).on_error(OnError::skip()).build().unwrap();
        let slab = loader.slab().clone();
        assert_eq!(all(&loader), expected(1, 2, &of_shard(2)), "{word}");
        assert!(loader.quarantine().entries().iter().all(|entry| entry.reason.contains(word)));
        drop(loader);
        before.check_after(&slab, Duration::from_secs(5));
        let error = fails(&builder(Arc::<MemoryStore>::clone(&store), 1, 2).build().unwrap()).1;
        assert!(error.kind() == kind && error.to_string().contains(word), "{error}");
        let few = builder(store, 1, 2).on_error(OnError::Skip { limit: 5 }).build().unwrap();
        let error = fails(&few).1;
        assert!(error.kind() == kind && error.to_string().contains("5 bad samples"), "{error}");
    }
    // Replaced in the middle of a run: what was read before stays good.
    let store = with(&|_| {});
    let loader = builder(Arc::<MemoryStore>::clone(&store), 0, 1).on_error(OnError::skip()).epochs(40).build().unwrap();
    let intact = builder(DATASET.memory(), 0, 1).epochs(40).build().unwrap();
    for epoch in 0..40 {
        for (found, intact) in loader.epoch(epoch).zip(intact.epoch(epoch)) {
            let (found, intact) = (rows(&found.unwrap()), rows(&intact.unwrap()));
            let kept = |id: &u64| found.2.contains(id);
            assert!(intact.2.iter().all(|id| kept(id) || of_shard(2).contains(id)), "{found:?} of {intact:?}");
            assert_eq!(found.2, intact.2.iter().copied().filter(kept).collect::<Vec<_>>());
            if (epoch, found.1) == (0, 0) {
                assert_eq!(found.2, intact.2);
                store.put(name(2), DATASET.shards["train-0002.tar"].clone());
            }
        }
    }
    assert_eq!(numbers(&loader.quarantine()), of_shard(2));
    assert!(loader.quarantine().entries().iter().all(|entry| entry.reason.contains("the object changed")));
}

#[test]
fn what_the_link_does_is_never_a_samples_fault() {
    let _turn = Before::look();
    let faults = [
        (Kind::Io, false, Kind::Io),
        (Kind::Throttled, true, Kind::Throttled),
        (Kind::Stalled, true, Kind::Stalled),
        (Kind::Auth, false, Kind::Auth),
        (Kind::Unsupported, false, Kind::Unsupported),
    ];
    for (kind, transient, seen) in faults {
        let broken = (12..5000).map(|read| (read, Fault::Fail { kind, transient }));
        let store = FaultStore::scripted(DATASET.memory(), broken);
        let loader = builder(store, 0, 1).on_error(OnError::skip()).retry(IMPATIENT).build().unwrap();
        let error = fails(&loader).1;
        assert_eq!(error.kind(), seen, "{error}");
        assert!(loader.quarantine().is_empty(), "{}", loader.quarantine());
    }
    // The same when a damaged field is asked for a second time: nothing is known of it then.
    for (kind, transient) in [(Kind::Auth, false), (Kind::Io, true)] {
        let (shard, start, bytes) = place(90, "jpg");
        let guard = Guard { inner: damaged(&[(90, "jpg")]), key: name(shard), start, bytes, kind, transient };
        let loader = builder(Arc::new(guard), 0, 1).on_error(OnError::skip()).retry(IMPATIENT).build().unwrap();
        let error = fails(&loader).1;
        let text = error.to_string();
        assert!(error.kind() == kind && text.contains("field 'jpg' of sample 0002/000008"), "{text}");
        assert!(loader.quarantine().is_empty() && loader.stats().fields_read_again == 1);
    }
}

#[test]
fn a_loader_can_be_dropped_while_a_field_is_read_again() {
    let before = Before::look();
    let (shard, start, bytes) = place(90, "jpg");
    let inner = damaged(&[(90, "jpg")]);
    let guard = Guard { inner, key: name(shard), start, bytes, kind: Kind::Stalled, transient: true };
    let loader =
        builder(Arc::new(guard), 0, 1).on_error(OnError::skip()).patience(Duration::from_secs(1)).build().unwrap();
    let error = fails(&loader).1;
    assert!(error.kind() == Kind::Stalled && error.to_string().contains("no batch for"), "{error}");
    assert_eq!(loader.stats().fields_read_again, 1);
    let slab = loader.slab().clone();
    drop(loader);
    before.check_after(&slab, Duration::from_secs(3));
}

/// Refuses a read of just these bytes; hangs if that is what it should say.
#[derive(Debug)]
struct Guard {
    inner: Arc<dyn Store>,
    key: String,
    start: u64,
    bytes: u64,
    kind: Kind,
    transient: bool,
}

impl Store for Guard {
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
        if (&*request.key, request.start, landing.len() as u64) != (&self.key, self.start, self.bytes) {
            return self.inner.read(request, landing);
        }
        if self.kind == Kind::Stalled {
            return Box::pin(std::future::pending());
        }
        let error = Error::new(self.kind, "refused");
        Box::pin(std::future::ready(Err(if self.transient { error.transient() } else { error })))
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }
}

#[test]
fn values_that_do_not_parse_are_bad_too() {
    let _turn = Before::look();
    let text = |number: usize| if number == 2 { "x7".to_owned() } else { number.to_string() };
    let mut archive = tar::Builder::new(Vec::new());
    (0..5).for_each(|number| shards::append(&mut archive, &format!("{number}.cls"), text(number).as_bytes()));
    let store = MemoryStore::new();
    store.put("p.tar", archive.into_inner().unwrap());
    for verify in [true, false] {
        let loader = Loader::builder("memory:p.tar")
            .store(Arc::<MemoryStore>::clone(&store))
            .field("cls", Field::int())
            .batch_size(4)
            .host_memory(ByteSize::mib(2))
            .verify(verify)
            .epochs(1)
            .on_error(OnError::skip())
            .build()
            .unwrap();
        let labels: Vec<Vec<i64>> = loader.epoch(0).map(|batch| batch.unwrap().ints("cls").unwrap()).collect();
        assert_eq!(labels, [vec![0, 1, 3], vec![4]]);
        let list = loader.quarantine();
        assert_eq!(list.entries().len(), 1);
        assert!(
            list.to_string().contains("sample 2 of memory:p.tar, field 'cls'") && list.to_string().contains("'x7'")
        );
        // Bytes that the index vouches for are not asked for again.
        assert_eq!(loader.stats().fields_read_again, u64::from(!verify));
    }
}
