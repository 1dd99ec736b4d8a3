//! Shards go in, batches come out: the right bytes in the right order, from every kind of dataset.

use farfeed::dataset::Dtype;
use farfeed::order::Shuffle;
use farfeed::store::MemoryStore;
use farfeed::{ByteSize, Field, Loader, Tokens};

#[path = "fixture/shards.rs"]
mod shards;

#[test]
fn tokens_arrive_in_order() {
    let tokens: Vec<u16> = (0..10_001u32).map(|i| (i * 7 % 65_521) as u16).collect();
    let store = MemoryStore::new();
    store.put("corpus.bin", tokens.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>());
    let loader = Loader::builder("memory:corpus.bin")
        .store(store)
        .tokens(Tokens::new(Dtype::U16, 100).with_next())
        .batch_size(8)
        .host_memory(ByteSize::mib(16))
        .epochs(2)
        .build()
        .unwrap();
    for epoch in 0..2 {
        let mut next = 0;
        for batch in loader.epoch(epoch) {
            let batch = batch.unwrap();
            let column = batch.dense("tokens").unwrap();
            assert_eq!(column.shape, [batch.len(), 101]);
            for row in column.bytes.unwrap().chunks(202) {
                let expected: Vec<u8> = tokens[next..next + 101].iter().flat_map(|t| t.to_le_bytes()).collect();
                assert_eq!(row, expected);
                next += 100;
            }
        }
        assert_eq!(next, 10_000);
    }
}

#[test]
fn every_sample_of_a_shuffled_webdataset_arrives_once_and_whole() {
    let dataset = shards::webdataset(5, 200, 20_000);
    let loader = Loader::builder(dataset.pattern("memory:"))
        .store(dataset.memory())
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(64)
        .block_size(ByteSize::bytes(500_000))
        .shuffle(Shuffle::window(300).seed(7))
        .host_memory(ByteSize::mib(64))
        .epochs(1)
        .build()
        .unwrap();
    println!("{}", loader.plan());
    let mut seen = vec![false; dataset.samples.len()];
    let mut in_order = true;
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        dataset.check(&batch);
        for id in batch.ids().iter().map(|id| *id as usize) {
            assert!(!std::mem::replace(&mut seen[id], true), "sample {id} came twice");
            in_order &= id == 0 || seen[id - 1];
        }
    }
    assert!(seen.iter().all(|seen| *seen) && !in_order);
    println!("{}", loader.stats());
    let slab = loader.slab().clone();
    drop(loader);
    assert_eq!(slab.usage().free, slab.pages());
}
