//! Bad samples that are known beforehand: lists of them, and the scan that finds them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

#[path = "fixture/damage.rs"]
mod damage;
#[path = "fixture/shards.rs"]
mod shards;

use std::collections::BTreeSet;
use std::sync::Arc;

use damage::{DATASET, SAMPLES, all, builder, damaged, expected, name, numbers, place};
use farfeed::loader::{Quarantined, Scanned};
use farfeed::store::{Fault, FaultStore, MemoryStore, Store};
use farfeed::{ByteSize, Kind, Loader, OnError, Quarantine};

#[test]
fn a_report_applied_from_the_start_leaves_the_same_rows_out_unread() {
    let fields = [(3, "jpg"), (77, "cls"), (78, "jpg"), (140, "jpg")];
    let bad: BTreeSet<u64> = [3, 77, 78, 140].into();
    let store = damaged(&fields);
    let finder = builder(Arc::<MemoryStore>::clone(&store), 0, 1).on_error(OnError::skip()).build().unwrap();
    all(&finder);
    let report = finder.quarantine();
    assert_eq!(numbers(&report), bad);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), report.to_json_lines()).unwrap();
    let list = Quarantine::read(file.path()).unwrap();
    assert_eq!(list, report);
    for (rank, world_size) in [(0, 1), (0, 2), (1, 2), (3, 4)] {
        // Nothing may go wrong: whatever is bad was named.
        let loader =
            builder(Arc::<MemoryStore>::clone(&store), rank, world_size).quarantine(list.clone()).build().unwrap();
        assert_eq!(all(&loader), expected(rank, world_size, &bad), "rank {rank} of {world_size}");
        let stats = loader.stats();
        assert!(loader.quarantine().is_empty() && stats.fields_read_again == 0);
        assert_eq!(
            stats.left_out + stats.samples,
            all(&builder(DATASET.memory(), rank, world_size).build().unwrap())
                .iter()
                .map(|(_, _, ids)| ids.len() as u64)
                .sum::<u64>()
        );
        let plan = loader.plan().to_string();
        assert!(plan.split_whitespace().collect::<Vec<_>>().join(" ").contains("4 samples in quarantine"), "{plan}");
    }
    // A whole shard, at another place; entries of shards that are not here count for nothing.
    let lines =
        "{\"shard\": \"s3://elsewhere/data/train-0001.tar\"}\n{\"shard\": \"train-0009.tar\", \"key\": \"k\"}\n";
    let loader = builder(DATASET.memory(), 0, 1).quarantine(lines.parse().unwrap()).build().unwrap();
    assert_eq!(all(&loader), expected(0, 1, &(41..82).collect()));
    let of_another = "{\"shard\": \"train-0001.tar\", \"key\": \"0001/000099\"}".parse().unwrap();
    let error = builder(DATASET.memory(), 0, 1).quarantine(of_another).build().unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.to_string().contains("0001/000099"), "{error}");
    let everything = "{\"shard\": \"train-0000.tar\"}\n{\"shard\": \"train-0001.tar\"}\n{\"shard\": \"train-0002.tar\"}\n{\"shard\": \"train-0003.tar\"}";
    assert_eq!(
        builder(DATASET.memory(), 0, 1).quarantine(everything.parse().unwrap()).build().unwrap_err().kind(),
        Kind::Config
    );
}

#[test]
fn samples_that_lack_a_field_can_be_named() {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..6 {
        shards::append(&mut archive, &format!("{number}.cls"), number.to_string().as_bytes());
        if number != 4 {
            shards::append(&mut archive, &format!("{number}.txt"), b"text");
        }
    }
    let store = MemoryStore::new();
    store.put("l.tar", archive.into_inner().unwrap());
    let options = || {
        Loader::builder("memory:l.tar")
            .store(Arc::<MemoryStore>::clone(&store))
            .batch_size(3)
            .host_memory(ByteSize::mib(2))
    };
    let error = options().build().unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("the first is 4"), "{error}");
    let list: Quarantine = "{\"shard\": \"memory:l.tar\", \"key\": \"4\", \"reason\": \"no text\"}".parse().unwrap();
    let loader = options().quarantine(list).build().unwrap();
    let ids: Vec<Vec<u64>> = loader.epoch(0).map(|batch| batch.unwrap().ids().to_vec()).collect();
    assert_eq!(ids, [vec![0, 1, 2], vec![3, 5]]);
}

fn scan(store: Arc<dyn Store>) -> (Scanned, Vec<Quarantined>) {
    let mut found = Vec::new();
    let keep = |entry| {
        found.push(entry);
        Ok(())
    };
    let scanned = Loader::builder(DATASET.pattern("memory:")).store(store).scan(|_| {}, keep).unwrap();
    (scanned, found)
}

#[test]
fn a_scan_finds_exactly_what_is_bad() {
    let (scanned, found) = scan(DATASET.memory());
    let total = DATASET.bytes();
    let whole =
        Scanned { bytes: total, bytes_total: total, shards: 4, shards_total: 4, samples: SAMPLES as u64, bad: 0 };
    assert_eq!((scanned, found), (whole, vec![]));
    let fields = [(0, "jpg"), (40, "cls"), (41, "jpg"), (41, "cls"), (150, "jpg")];
    let (scanned, found) = scan(damaged(&fields));
    assert_eq!(scanned, Scanned { bad: 4, ..whole });
    let places = found.iter().map(|entry| {
        let sample = numbers(&std::iter::once(entry.clone()).collect()).into_iter().next().unwrap();
        (sample as usize, entry.field.as_deref().unwrap())
    });
    assert_eq!(places.collect::<Vec<_>>(), fields);
    let (_, start, bytes) = place(40, "cls");
    assert_eq!(
        (found[1].start, found[1].bytes, found[1].key.as_deref()),
        (Some(start), Some(bytes), Some("0000/000040"))
    );
    // What comes wrong once is asked for again.
    let (scanned, found) = scan(FaultStore::scripted(DATASET.memory(), [(2, Fault::Flip { at: 700 })]));
    assert_eq!((scanned, found), (whole, vec![]));
    // What it found is what a loader needs.
    let list: Quarantine = scan(damaged(&fields)).1.into_iter().collect();
    let loader = builder(damaged(&fields), 0, 1).quarantine(list).build().unwrap();
    assert_eq!(all(&loader), expected(0, 1, &[0, 40, 41, 150].into()));
}

#[test]
fn a_scan_goes_on_past_shards_that_are_gone() {
    let store = damaged(&[(1, "jpg"), (130, "jpg")]);
    store.put(name(1), b"short".to_vec());
    let whole_shard = |entry: &Quarantined| entry.key.is_none() && entry.number.is_none();
    let (scanned, found) = scan(Arc::<MemoryStore>::clone(&store));
    assert_eq!((scanned.bad, scanned.shards, scanned.samples), (41 + 2, 4, SAMPLES as u64));
    assert_eq!(found.iter().map(whole_shard).collect::<Vec<_>>(), [true, false, false]);
    assert!(found[0].shard.ends_with("train-0001.tar") && found[0].reason.contains("has 5 bytes"), "{}", found[0]);
    // Gone under way, when sizes were looked at: read 0 is the index, one read for each shard follows.
    let gone = |read| (read, Fault::Fail { kind: Kind::NotFound, transient: false });
    let lost =
        FaultStore::scripted(damaged(&[(1, "jpg"), (130, "jpg")]), [gone(2), gone(6), gone(7), gone(8), gone(9)]);
    let (scanned, found) = scan(lost);
    assert_eq!((scanned.shards, scanned.samples), (4, SAMPLES as u64));
    assert!(
        found.iter().any(whole_shard) && found.iter().filter(|entry| !whole_shard(entry)).count() <= 2,
        "{found:?}"
    );
    // Without an index nothing is known.
    let bare = MemoryStore::new();
    DATASET.shards.iter().for_each(|(name, bytes)| bare.put(format!("data/{name}"), bytes.clone()));
    let error = Loader::builder(DATASET.pattern("memory:")).store(bare).scan(|_| {}, |_| Ok(())).unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.to_string().contains("farfeed index"), "{error}");
    let tokens = MemoryStore::new();
    tokens.put("t.bin", vec![0; 100]);
    let error = Loader::builder("memory:t.bin").store(tokens).scan(|_| {}, |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
}
