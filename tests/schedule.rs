//! Properties of the schedule: what it lists is what batches need, in the order of need, no byte twice.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;
use std::sync::Arc;

use farfeed::dataset::{BlockCut, Dataset, Dtype, RecordShard, RecordSpec, Shard};
use farfeed::order::{Order, Partition, Shuffle};
use farfeed::schedule::{BatchPlan, Read, Schedule, Shape, Step};
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Case {
    shards: Vec<u64>,
    row: usize,
    block: u64,
    window: u64,
    world_size: u32,
    batch_size: u32,
    drop_last: bool,
    shape: Shape,
    start_batch: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (prop::collection::vec(1..60u64, 1..5), 1..40usize, 1..400u64, 0..80u64);
    let ranks = (prop_oneof![Just(1u32), Just(2), Just(3)], 1..9u32, any::<bool>(), 0..4u64);
    let shape = (8..200u64, 8..64u64, 0..40u64);
    (sizes, ranks, shape).prop_map(
        |((shards, row, block, window), (world_size, batch_size, drop_last, start_batch), (request, cold, gap))| Case {
            shards,
            row,
            block,
            window,
            world_size,
            batch_size,
            drop_last,
            shape: Shape {
                request_bytes: request,
                cold_request_bytes: cold,
                gap_bytes: gap,
                page_bytes: 4096,
                alignment: 1,
            },
            start_batch,
        },
    )
}

fn dataset(case: &Case) -> Arc<Dataset> {
    let shard = |(number, rows): (usize, &u64)| {
        let bytes = rows * case.row as u64;
        let shard = Shard { url: format!("{number}.bin"), size: bytes, version: None };
        RecordShard { shard, start: 0, bytes }
    };
    let shards = case.shards.iter().enumerate().map(shard).collect();
    let spec = RecordSpec::rows(Dtype::U8, vec![case.row]).unwrap();
    Arc::new(Dataset::records(shards, spec, BlockCut { bytes: case.block }).unwrap())
}

struct Listed {
    reads: BTreeMap<u64, Read>,
    batches: Vec<BatchPlan>,
}

/// Everything that the schedule of one rank lists over one epoch, in order; checks that reads come before their batches.
fn walk(case: &Case, dataset: &Arc<Dataset>, order: &Order, rank: u32, start: u64) -> Listed {
    walk_without(case, dataset, order, rank, start, &[])
}

fn walk_without(case: &Case, dataset: &Arc<Dataset>, order: &Order, rank: u32, start: u64, excluded: &[u64]) -> Listed {
    let partition = Partition::new(rank, case.world_size, case.batch_size, case.drop_last).unwrap();
    let mut schedule = Schedule::new(Arc::clone(dataset), order.clone(), partition, vec![0], case.shape, (0, start), 1)
        .without(excluded.into());
    let mut listed = Listed { reads: BTreeMap::new(), batches: Vec::new() };
    let mut ended = false;
    while let Some(step) = schedule.advance().unwrap() {
        assert!(!ended, "nothing follows the epoch's end");
        match step {
            Step::Read(read) => {
                assert_eq!(
                    read.first_batch,
                    listed.batches.len() as u64,
                    "listed with the batch it is first needed for"
                );
                assert!(listed.reads.insert(read.id, read).is_none());
            }
            Step::Batch(plan) => {
                assert!(plan.pieces.iter().all(|piece| listed.reads.contains_key(&piece.read)), "reads come first");
                listed.batches.push(plan);
            }
            Step::EpochEnd(_) => ended = true,
        }
    }
    assert!(ended);
    listed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn batches_are_made_of_what_is_read_and_nothing_is_read_twice(case in cases()) {
        let dataset = dataset(&case);
        let samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
        let order = Order::new(samples, Shuffle::window(case.window).seed(5), case.world_size, None).unwrap();
        let mut seen = vec![0u32; dataset.samples() as usize];
        for rank in 0..case.world_size {
            let partition = Partition::new(rank, case.world_size, case.batch_size, case.drop_last).unwrap();
            let batches = partition.batches(dataset.samples());
            let start = case.start_batch.min(batches);
            let listed = walk(&case, &dataset, &order, rank, start);
            prop_assert_eq!(listed.batches.len() as u64, batches - start);
            let mut uses: BTreeMap<u64, u32> = BTreeMap::new();
            for (number, plan) in listed.batches.iter().enumerate() {
                prop_assert_eq!((plan.sequence, plan.batch), (number as u64, start + number as u64));
                for (row, sample) in plan.rows.iter().enumerate() {
                    seen[*sample as usize] += 1;
                    let wanted = dataset.extent(*sample, 0).unwrap();
                    let mut at = wanted.start;
                    for piece in plan.pieces_of(row, 0, 1) {
                        let read = &listed.reads[&piece.read];
                        prop_assert_eq!((read.extent.shard, read.extent.start + piece.at), (wanted.shard, at));
                        prop_assert!(piece.len > 0 && piece.at + piece.len <= read.extent.len);
                        at += piece.len;
                        *uses.entry(piece.read).or_default() += 1;
                    }
                    prop_assert_eq!(at, wanted.end());
                }
            }
            let mut covered: BTreeMap<(u32, u64), u64> = BTreeMap::new();
            for read in listed.reads.values() {
                prop_assert!(read.extent.len <= case.shape.request_bytes.max(case.shape.cold_request_bytes));
                prop_assert!(read.uses > 0 && read.pages == case.shape.pages(read.extent.len));
                let used = uses.get(&read.id).copied().unwrap_or(0);
                // Only what a dropped last batch would have held is listed and not used.
                prop_assert!(used == read.uses || case.drop_last && used < read.uses);
                covered.insert((read.extent.shard, read.extent.start), read.extent.len);
            }
            // A gap that is read over may hold samples that came before; else no byte is read twice.
            let mut last = (u32::MAX, 0);
            for ((shard, at), len) in covered {
                prop_assert!(case.shape.gap_bytes > 0 || last.0 != shard || at >= last.1);
                last = (shard, at + len);
            }
        }
        if case.start_batch == 0 && !case.drop_last {
            prop_assert!(seen.iter().all(|times| *times == 1));
        } else {
            prop_assert!(seen.iter().all(|times| *times <= 1));
        }
    }

    #[test]
    fn a_resumed_walk_has_the_rest_of_the_batches(case in cases()) {
        let dataset = dataset(&case);
        let samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
        let order = Order::new(samples, Shuffle::window(case.window).seed(5), case.world_size, None).unwrap();
        let rows = |listed: Listed| listed.batches.into_iter().map(|plan| plan.rows).collect::<Vec<_>>();
        for rank in 0..case.world_size {
            let all = rows(walk(&case, &dataset, &order, rank, 0));
            let start = case.start_batch.min(all.len() as u64);
            prop_assert_eq!(&all[start as usize..], &rows(walk(&case, &dataset, &order, rank, start))[..]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn samples_that_are_left_out_are_not_read_and_move_nothing(case in cases(), step in 1..6u64) {
        let dataset = dataset(&case);
        let samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
        let order = Order::new(samples, Shuffle::window(case.window).seed(5), case.world_size, None).unwrap();
        let excluded: Vec<u64> = (0..dataset.samples()).filter(|sample| sample % 7 < step).collect();
        for rank in 0..case.world_size {
            let start = case.start_batch.min(walk(&case, &dataset, &order, rank, 0).batches.len() as u64);
            let whole = walk(&case, &dataset, &order, rank, start);
            let part = walk_without(&case, &dataset, &order, rank, start, &excluded);
            prop_assert_eq!(part.batches.len(), whole.batches.len());
            let mut uses: BTreeMap<u64, u32> = BTreeMap::new();
            for (part, whole) in part.batches.iter().zip(&whole.batches) {
                let kept: Vec<u64> = whole.rows.iter().copied().filter(|row| excluded.binary_search(row).is_err()).collect();
                prop_assert_eq!((&part.rows, part.batch), (&kept, whole.batch));
                prop_assert_eq!((part.left_out as usize, whole.left_out), (whole.rows.len() - kept.len(), 0));
                for (row, sample) in part.rows.iter().enumerate() {
                    let bytes: u64 = part.pieces_of(row, 0, 1).iter().map(|piece| piece.len).sum();
                    prop_assert_eq!(bytes, dataset.extent(*sample, 0).unwrap().len);
                }
                part.pieces.iter().for_each(|piece| *uses.entry(piece.read).or_default() += 1);
            }
            for read in part.reads.values() {
                // Pages come back when the last piece was copied: one that never comes would keep them.
                let used = uses.get(&read.id).copied().unwrap_or(0);
                prop_assert!(used == read.uses || case.drop_last && used < read.uses);
                let apart = |sample: &u64| {
                    let extent = dataset.extent(*sample, 0).unwrap();
                    let touches = extent.start < read.extent.end() && read.extent.start < extent.end();
                    extent.shard != read.extent.shard || !touches
                };
                prop_assert!(case.shape.gap_bytes > 0 || excluded.iter().all(apart));
            }
        }
    }
}

#[test]
fn the_first_batch_is_read_alone_and_in_short_reads() {
    let case = Case {
        shards: vec![4000; 4],
        row: 1000,
        block: 100_000,
        window: 500,
        world_size: 1,
        batch_size: 32,
        drop_last: false,
        shape: Shape { request_bytes: 100_000, cold_request_bytes: 500, gap_bytes: 0, page_bytes: 4096, alignment: 1 },
        start_batch: 0,
    };
    let dataset = dataset(&case);
    let samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
    let order = Order::new(samples, Shuffle::window(case.window).seed(1), 1, None).unwrap();
    let listed = walk(&case, &dataset, &order, 0, 0);
    let first: Vec<_> = listed.reads.values().filter(|read| read.first_batch == 0).collect();
    assert_eq!(first.iter().map(|read| read.extent.len).sum::<u64>(), 32_000, "the batch's own bytes");
    assert!(first.iter().all(|read| read.extent.len <= 500));
    // Long before the epoch's end whole blocks are read, and all in all there are few more reads than blocks have requests.
    let whole = listed.reads.values().filter(|read| read.extent.len == 100_000).count();
    assert!(whole > 100, "{whole} of 160 blocks were read whole");
}

#[test]
fn small_samples_cost_little_more_than_their_bytes() {
    for (window, batch_size) in [(0, 64), (1024, 8), (1024, 64), (4096, 64), (16_384, 64)] {
        let case = Case {
            shards: vec![16_384],
            row: 4096,
            block: 4 << 20,
            window,
            world_size: 1,
            batch_size,
            drop_last: false,
            shape: Shape {
                request_bytes: 1 << 20,
                cold_request_bytes: 43_800,
                gap_bytes: 64 << 10,
                page_bytes: 65_536,
                alignment: 1,
            },
            start_batch: 0,
        };
        let dataset = dataset(&case);
        let samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
        let order = Order::new(samples, Shuffle::window(window).seed(1), 1, None).unwrap();
        let listed = walk(&case, &dataset, &order, 0, 0);
        let bytes: u64 = listed.reads.values().map(|read| read.extent.len).sum();
        let ratio = bytes as f64 / (16_384.0 * 4096.0);
        println!("window {window}, batch {batch_size}: {ratio:.3} bytes read per byte, {} reads", listed.reads.len());
        assert!(ratio < 1.5, "window {window}, batch {batch_size}: {ratio:.2} bytes read per byte");
    }
}
