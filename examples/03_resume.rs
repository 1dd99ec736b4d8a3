//! A job that is stopped in the middle of an epoch and goes on with twice the ranks: the same samples, in the same global batches.
//!
//! Run it with `cargo run --example 03_resume`.

use std::sync::Arc;

use farfeed::dataset::Dtype;
use farfeed::order::{Shuffle, State};
use farfeed::store::MemoryStore;
use farfeed::{ByteSize, Loader, Result, Tokens};

/// Samples of a batch over all ranks: it stays, whatever their number.
const GLOBAL_BATCH: u32 = 48;

fn main() -> Result<()> {
    let store = MemoryStore::new();
    store.put("train.bin", vec![0u8; 2_000 * 64 * 2]);

    // What an uninterrupted job of two ranks delivers.
    let whole = global_batches(&ranks(&store, 2, None)?, usize::MAX)?;

    // One that is stopped after 15 batches. All ranks would save the same state: a line of text.
    let before = ranks(&store, 2, None)?;
    let mut resumed = global_batches(&before, 15)?;
    let saved = before[0].state().to_string();
    assert!(before.iter().all(|rank| rank.state().to_string() == saved));
    println!("two ranks stop after {} batches; state: {saved}", resumed.len());
    drop(before);

    // It goes on with four, and one more time with one.
    let after = ranks(&store, 4, Some(saved.parse()?))?;
    resumed.extend(global_batches(&after, 10)?);
    let saved = after[3].state().to_string();
    println!("four ranks stop after {} batches; state: {saved}", resumed.len());
    resumed.extend(global_batches(&ranks(&store, 1, Some(saved.parse()?))?, usize::MAX)?);

    assert_eq!(resumed, whole);
    println!("one rank ends the epoch: {} batches, sample for sample those of the uninterrupted job", whole.len());
    Ok(())
}

/// The loaders of all ranks, here in one process.
fn ranks(store: &Arc<MemoryStore>, world_size: u32, state: Option<State>) -> Result<Vec<Loader>> {
    let loader = |rank| {
        let builder = Loader::builder("memory:train.bin")
            .store(Arc::clone(store) as _)
            .tokens(Tokens::new(Dtype::U16, 64))
            .batch_size(GLOBAL_BATCH / world_size)
            .rank(rank, world_size)
            .lanes(4) // Any number of ranks that divides it can go on: 1, 2, 4.
            .block_size(ByteSize::bytes(4 << 10))
            .shuffle(Shuffle::window(500).seed(42))
            .host_memory(ByteSize::mib(32))
            .epochs(1);
        match state {
            Some(state) => builder.resume(state).build(),
            None => builder.build(),
        }
    };
    (0..world_size).map(loader).collect()
}

/// Up to `count` global batches: row *i* of rank *r* is sample *i* × world size + *r*.
fn global_batches(ranks: &[Loader], count: usize) -> Result<Vec<Vec<u64>>> {
    let mut epochs: Vec<_> = ranks.iter().map(|rank| rank.epoch(0)).collect();
    let mut batches = Vec::new();
    while batches.len() < count {
        let mut rows = Vec::new();
        for epoch in &mut epochs {
            rows.extend(epoch.next().transpose()?.map(|batch| batch.ids().to_vec()));
        }
        if rows.is_empty() {
            break;
        }
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        batches.push((0..longest).flat_map(|row| rows.iter().filter_map(move |rank| rank.get(row).copied())).collect());
    }
    Ok(batches)
}
