//! The order's promises, checked against a model that writes the definition out and sorts, and pinned by goldens.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::sync::Arc;

use farfeed::Kind;
use farfeed::order::{EpochOrder, Order, Partition, ResumePoint, Shuffle, Slot, State};
use proptest::prelude::*;

/// The definition in its plainest form: a full sort, nothing streamed.
mod model {
    use farfeed::order::Slot;

    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

    fn mix(z: u64) -> u64 {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Number `counter` of the stream, below `bound`. Purpose 1 permutes blocks, purpose 2 makes keys.
    fn below(seed: u64, purpose: u64, epoch: u64, lane: u64, counter: u64, bound: u64) -> u64 {
        let mut key = mix(seed);
        for part in [purpose, epoch, lane] {
            key = mix(key.wrapping_add(STEP) ^ mix(part.wrapping_add(STEP)));
        }
        let number = mix(key.wrapping_add((counter + 1).wrapping_mul(STEP)));
        ((u128::from(number) * u128::from(bound)) >> 64) as u64
    }

    pub(crate) struct Model {
        pub(crate) lanes: Vec<Vec<Slot>>,
        /// Lane index, in stream order, of every output.
        pub(crate) arrivals: Vec<Vec<u64>>,
    }

    pub(crate) fn epoch(block_samples: &[u32], window: u64, seed: u64, lanes: u32, epoch: u64) -> Model {
        let mut blocks: Vec<u32> = (0..block_samples.len() as u32).collect();
        if window > 0 {
            for last in (1..blocks.len()).rev() {
                blocks.swap(last, below(seed, 1, epoch, 0, last as u64, last as u64 + 1) as usize);
            }
        }
        let mut stream = blocks
            .iter()
            .flat_map(|block| (0..block_samples[*block as usize]).map(|index| Slot { block: *block, index }));
        let samples: u64 = block_samples.iter().map(|count| u64::from(*count)).sum();
        let window = window / u64::from(lanes);
        let mut model = Model { lanes: Vec::new(), arrivals: Vec::new() };
        for lane in 0..u64::from(lanes) {
            let count = (0..samples).filter(|p| p % u64::from(lanes) == lane).count();
            let slots: Vec<Slot> = stream.by_ref().take(count).collect();
            let key = |i: u64| (i << 24) + below(seed, 2, epoch, lane, i, window << 24);
            let mut arrivals: Vec<u64> = (0..count as u64).collect();
            arrivals.sort_by_key(|i| (key(*i), *i));
            model.lanes.push(arrivals.iter().map(|i| slots[*i as usize]).collect());
            model.arrivals.push(arrivals);
        }
        assert!(stream.next().is_none(), "the lanes cover the stream");
        model
    }
}

/// The global order of an epoch.
fn global(epoch: &EpochOrder) -> Vec<Slot> {
    let (lanes, samples) = (epoch.order().lanes(), epoch.order().samples());
    let mut cursors: Vec<_> = (0..lanes).map(|lane| epoch.lane(lane, 0)).collect();
    (0..samples).map(|p| cursors[(p % u64::from(lanes)) as usize].next().expect("as long as the lane")).collect()
}

/// FNV-1a over the little-endian numbers of block and index.
fn digest(slots: &[Slot]) -> u64 {
    let bytes = slots.iter().flat_map(|slot| [slot.block.to_le_bytes(), slot.index.to_le_bytes()]).flatten();
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

fn dataset_numbers(block_samples: &[u32], slots: &[Slot]) -> Vec<u64> {
    let starts: Vec<u64> = block_samples
        .iter()
        .scan(0, |start, count| Some(std::mem::replace(start, *start + u64::from(*count))))
        .collect();
    slots.iter().map(|slot| starts[slot.block as usize] + u64::from(slot.index)).collect()
}

struct Golden {
    name: &'static str,
    block_samples: Vec<u32>,
    shuffle: Shuffle,
    world_size: u32,
    lanes: Option<u32>,
    epoch: u64,
    expect_lanes: u32,
    first: [u64; 32],
    digest: u64,
}

fn ragged(blocks: u32) -> Vec<u32> {
    (0..blocks).map(|block| 1 + block * 7 % 13).collect()
}

#[rustfmt::skip]
fn goldens() -> Vec<Golden> {
    vec![
        Golden {
            name: "dataset order", block_samples: vec![8; 10], shuffle: Shuffle::none(), world_size: 1, lanes: None, epoch: 0,
            expect_lanes: 1, digest: 0xD7D4_5674_AA12_8125,
            first: [
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
                16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
            ],
        },
        Golden {
            name: "one rank, default lanes", block_samples: vec![100; 50], shuffle: Shuffle::window(1000).seed(7), world_size: 1, lanes: None, epoch: 0,
            expect_lanes: 6, digest: 0x588D_DF41_73CA_4385,
            first: [
                3203, 2766, 3389, 2812, 4846, 273, 3207, 2745, 3391, 2817, 4834, 271, 3201, 2754, 3372, 2811,
                4876, 284, 3213, 2758, 3381, 2824, 4857, 286, 3211, 2739, 2310, 2825, 4866, 285, 3212, 2774,
            ],
        },
        Golden {
            name: "one rank, a later epoch", block_samples: vec![100; 50], shuffle: Shuffle::window(1000).seed(7), world_size: 1, lanes: None, epoch: 3,
            expect_lanes: 6, digest: 0x25E5_0180_4C88_DCA5,
            first: [
                900, 1951, 4570, 110, 2852, 2579, 901, 1954, 4587, 120, 2855, 2569, 908, 1941, 4580, 106,
                2834, 2587, 912, 1940, 4573, 126, 2859, 2921, 918, 1939, 4582, 103, 2835, 2907, 910, 1971,
            ],
        },
        Golden {
            name: "one lane", block_samples: vec![100; 50], shuffle: Shuffle::window(1000).seed(7), world_size: 1, lanes: Some(1), epoch: 0,
            expect_lanes: 1, digest: 0x8397_933B_8967_7405,
            first: [
                3207, 3203, 3243, 3239, 3201, 3213, 3211, 3212, 3257, 3238, 3248, 3221, 2511, 3215, 3283, 3286,
                2513, 3255, 3202, 3216, 3241, 2539, 3240, 3218, 3236, 2579, 2527, 2581, 2576, 2548, 2556, 3232,
            ],
        },
        Golden {
            name: "ragged blocks, eight ranks", block_samples: ragged(300), shuffle: Shuffle::window(256).seed(1), world_size: 8, lanes: None, epoch: 1,
            expect_lanes: 24, digest: 0x2A83_486E_8F5B_60BE,
            first: [
                1703, 44, 594, 902, 1282, 1271, 364, 589, 619, 237, 808, 1835, 1398, 1664, 2052, 741,
                1759, 256, 1184, 1246, 34, 176, 709, 1438, 1704, 1054, 597, 898, 925, 1273, 1349, 591,
            ],
        },
        Golden {
            name: "ragged blocks, prime world size", block_samples: ragged(100), shuffle: Shuffle::window(64).seed(2), world_size: 7, lanes: None, epoch: 0,
            expect_lanes: 7, digest: 0x4FDE_6DCB_DE8A_D846,
            first: [
                465, 213, 374, 65, 72, 521, 222, 464, 214, 539, 68, 71, 522, 221, 552, 212,
                373, 66, 428, 524, 225, 549, 92, 541, 67, 75, 523, 223, 548, 95, 540, 364,
            ],
        },
        Golden {
            name: "dataset order, three ranks", block_samples: ragged(20), shuffle: Shuffle::none(), world_size: 3, lanes: None, epoch: 5,
            expect_lanes: 6, digest: 0x1AD2_4595_BA10_3773,
            first: [
                0, 22, 44, 65, 86, 107, 1, 23, 45, 66, 87, 108, 2, 24, 46, 67,
                88, 109, 3, 25, 47, 68, 89, 110, 4, 26, 48, 69, 90, 111, 5, 27,
            ],
        },
        Golden {
            name: "a window as long as the dataset", block_samples: vec![1; 500], shuffle: Shuffle::window(500).seed(0xDEAD_BEEF), world_size: 1, lanes: None, epoch: 0,
            expect_lanes: 240, digest: 0x80A6_4C9F_7103_4A01,
            first: [
                403, 291, 70, 223, 62, 422, 175, 121, 182, 141, 368, 106, 443, 333, 109, 207,
                494, 118, 155, 78, 363, 346, 272, 235, 406, 293, 318, 50, 351, 447, 331, 352,
            ],
        },
        Golden {
            name: "a wide window, large seed", block_samples: vec![64; 400], shuffle: Shuffle::window(16384).seed(u64::MAX), world_size: 2, lanes: Some(60), epoch: 1 << 40,
            expect_lanes: 60, digest: 0x7FF0_802A_2AD1_E62D,
            first: [
                21445, 18288, 609, 1354, 4863, 22057, 9101, 15350, 5874, 9423, 3395, 16794, 15685, 9526, 22967, 9935,
                11965, 22111, 14170, 12026, 22782, 14088, 7938, 3494, 20319, 15476, 12320, 6236, 4611, 14437, 15371, 21823,
            ],
        },
    ]
}

/// If this fails, every run that resumes from an older version gets other batches: do not renew the numbers, raise `State`'s version.
#[test]
fn orders_are_pinned_across_versions() {
    for golden in goldens() {
        let Golden { name, block_samples, shuffle, world_size, lanes, .. } = golden;
        let order = Order::new(block_samples.clone().into(), shuffle, world_size, lanes).unwrap();
        let slots = global(&order.epoch(golden.epoch));
        let first: Vec<u64> = dataset_numbers(&block_samples, &slots).into_iter().take(32).collect();
        assert_eq!(
            (order.lanes(), &first[..], format!("{:#018x}", digest(&slots))),
            (golden.expect_lanes, &golden.first[..], format!("{:#018x}", golden.digest)),
            "{name}"
        );
    }
}

#[derive(Clone, Debug)]
struct Case {
    block_samples: Vec<u32>,
    window: u64,
    seed: u64,
    lanes: u32,
    epoch: u64,
}

impl Case {
    fn order(&self, world_size: u32) -> Order {
        let shuffle = Shuffle::window(self.window).seed(self.seed);
        Order::new(self.block_samples.clone().into(), shuffle, world_size, Some(self.lanes)).unwrap()
    }

    fn model(&self) -> model::Model {
        model::epoch(&self.block_samples, self.window, self.seed, self.lanes, self.epoch)
    }
}

/// Lanes are those that 1, 2 and 4 ranks can share; blocks may be empty, larger than a lane, or fewer than the lanes.
fn case() -> impl Strategy<Value = Case> {
    let blocks = prop::collection::vec(prop_oneof![4 => 0..30u32, 1 => 100..200u32], 1..40)
        .prop_filter("no samples", |blocks| blocks.iter().any(|count| *count > 0));
    let window = prop_oneof![1 => Just(0u64), 4 => 1..400u64, 1 => 1000..100_000u64];
    (blocks, window, any::<u64>(), prop::sample::select(vec![4u32, 12, 60]), 0..1000u64)
        .prop_map(|(block_samples, window, seed, lanes, epoch)| Case { block_samples, window, seed, lanes, epoch })
}

/// What one rank reads, from `batch` on: its batches in order, each as the slots of its rows.
fn batches_of(order: &Order, epoch: u64, partition: Partition, from: u64) -> Vec<Vec<Slot>> {
    let (epoch, lanes, samples) = (order.epoch(epoch), order.lanes(), order.samples());
    let position = partition.position(samples, from);
    let mut cursors: Vec<_> = (0..lanes).map(|lane| epoch.lane(lane, order.lane_position(lane, position))).collect();
    let row_of = |batch, row, cursors: &mut Vec<farfeed::order::LaneCursor>| {
        let place = partition.locate(lanes, batch, row);
        let cursor = &mut cursors[place.lane as usize];
        assert_eq!(place.lane % partition.world_size(), partition.rank(), "a lane is read by one rank");
        assert_eq!(cursor.lane_position(), place.position, "rows come in the order of their lane");
        cursor.next().unwrap()
    };
    (from..partition.batches(samples))
        .map(|batch| (0..partition.rows(samples, batch)).map(|row| row_of(batch, row, &mut cursors)).collect())
        .collect()
}

/// The global batches of a job: the ranks' rows, woven.
fn global_batches(order: &Order, epoch: u64, world_size: u32, global_batch: u32, drop_last: bool) -> Vec<Vec<Slot>> {
    let ranks: Vec<_> = (0..world_size)
        .map(|rank| Partition::new(rank, world_size, global_batch / world_size, drop_last).unwrap())
        .map(|partition| batches_of(order, epoch, partition, 0))
        .collect();
    assert!(ranks.iter().all(|batches| batches.len() == ranks[0].len()), "the same batch count on every rank");
    (0..ranks[0].len())
        .map(|batch| {
            let rows = ranks[0][batch].len();
            (0..rows).flat_map(|row| ranks.iter().filter_map(move |rank| rank[batch].get(row).copied())).collect()
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn streaming_agrees_with_a_full_sort(case in case()) {
        let (epoch, model) = (case.order(1).epoch(case.epoch), case.model());
        for lane in 0..case.lanes {
            let cursor = epoch.lane(lane, 0);
            prop_assert_eq!(cursor.len() as u64, epoch.lane_samples(lane));
            prop_assert_eq!(&cursor.collect::<Vec<_>>(), &model.lanes[lane as usize]);
        }
    }

    #[test]
    fn every_sample_leaves_within_one_window_of_its_arrival(case in case()) {
        let order = case.order(1);
        let (window, epoch, model) = (order.lane_window(), order.epoch(case.epoch), case.model());
        for lane in 0..case.lanes {
            let arrivals = &model.arrivals[lane as usize];
            let mut cursor = epoch.lane(lane, 0);
            for (position, arrival) in (0..).zip(arrivals) {
                prop_assert!(arrival.abs_diff(position) <= window);
                prop_assert_eq!(cursor.next(), Some(epoch.locate(lane, *arrival)));
                prop_assert!(cursor.held() as u64 <= window);
            }
            prop_assert_eq!(cursor.next(), None);
        }
    }

    #[test]
    fn a_cursor_begins_anywhere(case in case(), at in any::<prop::sample::Index>()) {
        let (epoch, model) = (case.order(1).epoch(case.epoch), case.model());
        for lane in 0..case.lanes {
            let whole = &model.lanes[lane as usize];
            let from = at.index(whole.len() + 1);
            let mut cursor = epoch.lane(lane, from as u64);
            prop_assert_eq!(cursor.lane_position(), from as u64);
            prop_assert_eq!(&cursor.by_ref().collect::<Vec<_>>(), &whole[from..]);
            prop_assert_eq!(cursor.lane_position(), whole.len() as u64);
        }
    }

    #[test]
    fn pending_is_what_the_rest_of_the_lane_needs(case in case(), at in any::<prop::sample::Index>(), run in 0..50usize) {
        let (epoch, model) = (case.order(1).epoch(case.epoch), case.model());
        for lane in 0..case.lanes {
            let whole = &model.lanes[lane as usize];
            let from = at.index(whole.len() + 1);
            let mut cursor = epoch.lane(lane, from as u64);
            let _ = cursor.by_ref().take(run).count();
            for block in 0..case.block_samples.len() as u32 + 1 {
                let indices = |slots: &[Slot]| {
                    let mut of_block: Vec<u32> =
                        slots.iter().filter(|slot| slot.block == block).map(|slot| slot.index).collect();
                    of_block.sort_unstable();
                    of_block
                };
                prop_assert_eq!(cursor.pending_at_start(block).collect::<Vec<_>>(), indices(&whole[from..]));
                prop_assert_eq!(cursor.block_span(block).collect::<Vec<_>>(), indices(whole));
            }
        }
    }

    #[test]
    fn every_sample_exactly_once_over_all_ranks(case in case(), world in prop::sample::select(vec![1u32, 2, 4]), batch in 1..9u32) {
        let order = case.order(world);
        let mut seen: Vec<Slot> = global_batches(&order, case.epoch, world, world * batch, false).concat();
        seen.sort_unstable();
        let all = (0..).zip(&case.block_samples).flat_map(|(block, count)| (0..*count).map(move |index| Slot { block, index }));
        prop_assert!(seen.into_iter().eq(all));
    }

    #[test]
    fn the_world_size_never_changes_a_global_batch(case in case(), quarter in 1..9u32, drop_last in any::<bool>()) {
        let alone = global_batches(&case.order(1), case.epoch, 1, 4 * quarter, drop_last);
        for world in [2, 4] {
            prop_assert_eq!(&global_batches(&case.order(world), case.epoch, world, 4 * quarter, drop_last), &alone);
        }
    }

    #[test]
    fn resuming_gives_the_same_rest(
        case in case(), batch_size in 1..9u32, drop_last in any::<bool>(), at in any::<prop::sample::Index>(),
        (before, after) in prop::sample::select(vec![(1u32, 1u32), (1, 4), (4, 2), (2, 2)]),
    ) {
        let global_batch = batch_size * 4;
        let old = Partition::new(0, before, global_batch / before, drop_last).unwrap();
        let order = case.order(after);
        let consumed = at.index(old.batches(order.samples()) as usize + 1) as u64;
        let state = State::new(3, &case.order(before), case.epoch, old.position(order.samples(), consumed));
        for rank in 0..after {
            let partition = Partition::new(rank, after, global_batch / after, drop_last).unwrap();
            let point = state.resume(3, &order, &partition).unwrap();
            if consumed > 0 && consumed == old.batches(order.samples()) {
                prop_assert_eq!(point, ResumePoint { epoch: case.epoch + 1, batch: 0 });
                continue;
            }
            prop_assert_eq!(point, ResumePoint { epoch: case.epoch, batch: consumed });
            let whole = batches_of(&order, case.epoch, partition, 0);
            prop_assert_eq!(&batches_of(&order, case.epoch, partition, consumed)[..], &whole[consumed as usize..]);
        }
    }

    #[test]
    fn a_state_survives_both_of_its_forms(
        version in any::<u32>(), fingerprint in any::<u64>(), seed in any::<u64>(), window in any::<u64>(),
        lanes in any::<u32>(), epoch in any::<u64>(), position in any::<u64>(),
    ) {
        let state = State { version, fingerprint, seed, window, lanes, epoch, position };
        prop_assert_eq!(state.to_string().parse::<State>().unwrap(), state);
        let json = serde_json::to_string(&state).unwrap();
        prop_assert_eq!(serde_json::from_str::<State>(&json).unwrap(), state);
    }
}

#[test]
fn drop_last_and_keep_count_alike_on_every_rank() {
    let rows = |drop_last| {
        (0..4u32)
            .map(|rank| {
                let partition = Partition::new(rank, 4, 3, drop_last).unwrap();
                (0..partition.batches(26) + 1).map(|batch| partition.rows(26, batch)).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(rows(true), [[3, 3, 0]; 4]);
    assert_eq!(rows(false), [[3, 3, 1, 0], [3, 3, 1, 0], [3, 3, 0, 0], [3, 3, 0, 0]]);
}

#[test]
fn lanes_by_default() {
    let lanes = |blocks: usize, window, world| {
        Order::new(vec![100; blocks].into(), Shuffle::window(window), world, None).unwrap().lanes()
    };
    // 16,384 samples of the window are 163 blocks of 100.
    assert_eq!([1, 2, 3, 4, 5, 8, 60].map(|world| lanes(1000, 16_384, world)), [120, 120, 120, 120, 120, 120, 120]);
    assert_eq!([7, 16, 80, 512].map(|world| lanes(1000, 16_384, world)), [7, 240, 240, 512]);
    assert_eq!(lanes(1000, 0, 1), 1);
    assert_eq!([3, 8, 7].map(|world| lanes(1000, 0, world)), [6, 24, 7]);
    assert_eq!(lanes(1000, 50, 1), 1);
    assert_eq!(lanes(1000, 1300, 1), 12);
}

#[test]
fn window_zero_is_dataset_order() {
    let order = Order::new(ragged(50).into(), Shuffle::none(), 1, None).unwrap();
    let slots = global(&order.epoch(9));
    assert!(slots.is_sorted() && slots.len() as u64 == order.samples());
}

#[test]
fn epochs_and_seeds_differ() {
    let order = |seed| Order::new(ragged(50).into(), Shuffle::window(100).seed(seed), 1, None).unwrap();
    let (first, second, other) = (global(&order(1).epoch(0)), global(&order(1).epoch(1)), global(&order(2).epoch(0)));
    assert!(first != second && first != other && second != other);
}

#[test]
fn refuses_what_does_not_fit_and_names_it() {
    let new = |blocks: &[u32], world, lanes| Order::new(blocks.into(), Shuffle::window(8), world, lanes);
    let error = new(&[5], 4, Some(6)).unwrap_err();
    assert_eq!(error.kind(), Kind::Topology);
    assert!(error.to_string().contains("6 lanes cannot be shared by 4 ranks"), "{error}");
    assert_eq!(new(&[5], 0, None).unwrap_err().kind(), Kind::Topology);
    assert_eq!(new(&[5], 1, Some(0)).unwrap_err().kind(), Kind::Topology);
    assert_eq!(new(&[0, 0], 1, None).unwrap_err().kind(), Kind::Config);
    assert_eq!(new(&[], 1, None).unwrap_err().kind(), Kind::Config);
    let huge = Order::new([5].into(), Shuffle::window(1 << 40), 1, None).unwrap_err();
    assert!(huge.kind() == Kind::Config && huge.to_string().contains("shuffle window"), "{huge}");
    assert_eq!(Partition::new(2, 2, 1, true).unwrap_err().kind(), Kind::Topology);
    assert_eq!(Partition::new(0, 1, 0, true).unwrap_err().kind(), Kind::Config);
}

#[test]
fn a_state_refuses_another_job_naming_both_values() {
    let blocks: Arc<[u32]> = vec![10; 20].into();
    let order = |shuffle, lanes| Order::new(Arc::clone(&blocks), shuffle, 1, Some(lanes)).unwrap();
    let (shuffle, partition) = (Shuffle::window(64).seed(7), Partition::new(0, 1, 16, true).unwrap());
    let state = State::new(0xABC, &order(shuffle, 4), 2, 32);
    assert_eq!(state.to_string(), "farfeed1:0000000000000abc:7:64:4:2:32");
    assert_eq!(state.resume(0xABC, &order(shuffle, 4), &partition).unwrap(), ResumePoint { epoch: 2, batch: 2 });

    let refusal = |state: State, fingerprint, order: &Order, partition: &Partition| {
        let error = state.resume(fingerprint, order, partition).unwrap_err();
        (error.kind(), error.to_string())
    };
    let same = order(shuffle, 4);
    let wider = Partition::new(0, 1, 20, true).unwrap();
    let cases = [
        (refusal(state, 0xABD, &same, &partition), Kind::Config, ["0000000000000abc", "0000000000000abd"]),
        (refusal(state, 0xABC, &order(shuffle.seed(8), 4), &partition), Kind::Config, ["seed 7", "has 8"]),
        (
            refusal(state, 0xABC, &order(Shuffle::window(65).seed(7), 4), &partition),
            Kind::Config,
            ["window 64", "has 65"],
        ),
        (refusal(state, 0xABC, &order(shuffle, 8), &partition), Kind::Topology, ["lanes 4", "has 8"]),
        (refusal(state, 0xABC, &same, &wider), Kind::Topology, ["32 samples", "batches of 20"]),
        (refusal(State { position: 201, ..state }, 0xABC, &same, &partition), Kind::Config, ["201", "200"]),
        (
            refusal(State { version: 2, ..state }, 0xABC, &same, &partition),
            Kind::Unsupported,
            ["version 2", "version 1"],
        ),
    ];
    for ((kind, text), expected, names) in cases {
        assert_eq!(kind, expected, "{text}");
        assert!(names.iter().all(|name| text.contains(name)), "{text}");
    }
    for text in ["", "farfeed1", "farfeed1:zz:7:64:4:2:32", "farfeed1:0:7:64:4:2", "farfeed1:0:7:64:4:2:32:1"] {
        assert_eq!(text.parse::<State>().unwrap_err().kind(), Kind::Config, "{text:?}");
    }
}
