//! How well does a bounded shuffle mix, and what does it hold in memory meanwhile?
//!
//! Run it with `cargo run --release --example shuffle_quality`. The numbers in `docs/design/0004-order-lanes-and-sliding-keys.md`
//! are this program's output. It is deterministic: they should not change.

use std::collections::{HashMap, HashSet};

use farfeed::order::{Order, Shuffle};

/// Samples of one class lie together, as in a data set that was written directory by directory.
const CLASSES: u32 = 1000;
const CLASS_SAMPLES: u32 = 320;
const SAMPLES: u32 = CLASSES * CLASS_SAMPLES;
/// About 8 MiB of 100 KiB images.
const BLOCK_SAMPLES: u32 = 80;
const BATCH: usize = 256;

fn main() -> farfeed::Result<()> {
    mixing()?;
    println!();
    residency()
}

/// One line for each window: how far apart neighbours get, and what a batch sees of the classes.
fn mixing() -> farfeed::Result<()> {
    println!("{SAMPLES} samples sorted by {CLASSES} classes, blocks of {BLOCK_SAMPLES}, batches of {BATCH}\n");
    println!(
        "| window | lanes | blocks in window | median distance of neighbours | neighbours in one batch | \
         classes per batch | fewest | variance of class counts | blocks of the first batch |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let blocks: Vec<u32> = vec![BLOCK_SAMPLES; (SAMPLES / BLOCK_SAMPLES) as usize];
    report("none", &order(&blocks, Shuffle::none(), None)?);
    for window in [1024, 4096, 16_384, 65_536] {
        for lanes in [Some(1), None] {
            let shuffle = Shuffle::window(window).seed(7);
            report(&window.to_string(), &order(&blocks, shuffle, lanes)?);
        }
    }
    // Blocks of one sample, permuted, are a full permutation.
    report("full permutation", &order(&vec![1; SAMPLES as usize], Shuffle::window(1).seed(7), Some(1))?);
    Ok(())
}

struct Measured {
    lanes: u32,
    blocks_in_window: u64,
    /// Samples, by their number in the dataset, in the order of their delivery.
    delivered: Vec<u32>,
}

fn order(blocks: &[u32], shuffle: Shuffle, lanes: Option<u32>) -> farfeed::Result<Measured> {
    let order = Order::new(blocks.into(), shuffle, 1, lanes)?;
    let (epoch, block_samples) = (order.epoch(0), blocks[0]);
    let mut cursors: Vec<_> = (0..order.lanes()).map(|lane| epoch.lane(lane, 0)).collect();
    let lanes_in_turn = (0..cursors.len()).cycle();
    let delivered = lanes_in_turn.map_while(|lane| cursors[lane].next());
    let delivered = delivered.map(|slot| slot.block * block_samples + slot.index).collect();
    let blocks_in_window = shuffle.window_samples() / u64::from(block_samples);
    Ok(Measured { lanes: order.lanes(), blocks_in_window, delivered })
}

fn report(window: &str, Measured { lanes, blocks_in_window, delivered }: &Measured) {
    assert_eq!(delivered.len(), SAMPLES as usize, "every sample is delivered once");
    let mut position = vec![0u32; delivered.len()];
    for (at, sample) in (0..).zip(delivered) {
        position[*sample as usize] = at;
    }
    let mut distances: Vec<u32> = position.windows(2).map(|pair| pair[0].abs_diff(pair[1])).collect();
    distances.sort_unstable();
    let batch_of = |sample: usize| position[sample] as usize / BATCH;
    let together = (1..delivered.len()).filter(|sample| batch_of(*sample) == batch_of(sample - 1)).count();
    let (classes, fewest, variance) = class_balance(delivered);
    let first_blocks = delivered[..BATCH].iter().map(|sample| sample / BLOCK_SAMPLES).collect::<HashSet<_>>().len();
    println!(
        "| {window} | {lanes} | {blocks_in_window} | {} | {:.2} % | {classes:.1} | {fewest} | {variance:.2} | {first_blocks} |",
        distances[distances.len() / 2],
        100.0 * together as f64 / (delivered.len() - 1) as f64,
    );
}

/// Mean and smallest number of classes in a batch, and the variance of a class's count in a batch in units of what independent draws give.
fn class_balance(delivered: &[u32]) -> (f64, usize, f64) {
    let expected = BATCH as f64 / f64::from(CLASSES);
    let (mut distinct, mut fewest, mut squares, mut batches) = (0, usize::MAX, 0.0, 0);
    for batch in delivered.chunks_exact(BATCH) {
        let mut counts = HashMap::<u32, u32>::new();
        batch.iter().for_each(|sample| *counts.entry(sample / CLASS_SAMPLES).or_default() += 1);
        distinct += counts.len();
        fewest = fewest.min(counts.len());
        squares += counts.values().map(|count| (f64::from(*count) - expected).powi(2)).sum::<f64>();
        squares += f64::from(CLASSES - counts.len() as u32) * expected * expected;
        batches += 1;
    }
    let independent = expected * (1.0 - 1.0 / f64::from(CLASSES));
    let variance = squares / (f64::from(batches) * f64::from(CLASSES)) / independent;
    (distinct as f64 / f64::from(batches), fewest, variance)
}

/// Pages held by three shuffles of one stream: a page is held from the arrival of its first sample to the departure of its last.
fn residency() -> farfeed::Result<()> {
    const WINDOW: usize = 4000;
    println!("pages held, in units of the window ({WINDOW} samples, one lane), mean / peak\n");
    println!("| samples per page | draw from a full buffer | permute window after window | sliding keys |");
    println!("|---|---|---|---|");
    let sliding = sliding_keys(WINDOW)?;
    let shuffles = [draw_from_a_full_buffer(WINDOW), window_after_window(WINDOW), sliding];
    for page_samples in [1, 2, 10, 40] {
        let cells = shuffles.each_ref().map(|departures| pages_held(departures, page_samples, WINDOW));
        println!("| {page_samples} | {} |", cells.map(|(mean, peak)| format!("{mean:.1} / {peak:.1}")).join(" | "));
    }
    Ok(())
}

/// A sample's place in the stream, and how many samples had arrived when it left.
struct Departure {
    sample: usize,
    arrived: usize,
}

fn sliding_keys(window: usize) -> farfeed::Result<Vec<Departure>> {
    let blocks = vec![BLOCK_SAMPLES; (SAMPLES / BLOCK_SAMPLES) as usize];
    let epoch = Order::new(blocks.into(), Shuffle::window(window as u64).seed(7), 1, Some(1))?.epoch(0);
    let stream = (0..u64::from(SAMPLES)).map(|at| (epoch.locate(0, at), at as usize));
    let place: HashMap<_, _> = stream.collect();
    let mut cursor = epoch.lane(0, 0);
    let mut departures = Vec::with_capacity(SAMPLES as usize);
    while let Some(slot) = cursor.next() {
        departures.push(Departure { sample: place[&slot], arrived: departures.len() + 1 + cursor.held() });
    }
    Ok(departures)
}

fn draw_from_a_full_buffer(window: usize) -> Vec<Departure> {
    let mut draw = draws();
    let mut buffer: Vec<usize> = (0..window).collect();
    let mut arrived = window;
    let mut departures = Vec::with_capacity(SAMPLES as usize);
    while !buffer.is_empty() {
        let sample = buffer.swap_remove(draw(buffer.len()));
        departures.push(Departure { sample, arrived });
        if arrived < SAMPLES as usize {
            buffer.push(arrived);
            arrived += 1;
        }
    }
    departures
}

fn window_after_window(window: usize) -> Vec<Departure> {
    let mut draw = draws();
    let mut departures = Vec::with_capacity(SAMPLES as usize);
    for start in (0..SAMPLES as usize).step_by(window) {
        let end = (start + window).min(SAMPLES as usize);
        let mut samples: Vec<usize> = (start..end).collect();
        while !samples.is_empty() {
            let sample = samples.swap_remove(draw(samples.len()));
            departures.push(Departure { sample, arrived: end });
        }
    }
    departures
}

/// Numbers below a bound, from a 64-bit linear congruential generator's upper half.
fn draws() -> impl FnMut(usize) -> usize {
    let mut state = 7u64;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 32) as usize * bound) >> 32
    }
}

/// Mean and peak of the pages held, in windows, leaving out the start and the end of the stream.
fn pages_held(departures: &[Departure], page_samples: usize, window: usize) -> (f64, f64) {
    let pages = departures.len().div_ceil(page_samples);
    let mut left = vec![page_samples; pages];
    let (mut released, mut sum, mut peak, mut steps) = (0usize, 0.0, 0.0f64, 0.0);
    for (at, departure) in departures.iter().enumerate() {
        let held = departure.arrived.div_ceil(page_samples) - released;
        left[departure.sample / page_samples] -= 1;
        released += usize::from(left[departure.sample / page_samples] == 0);
        if (4 * window..departures.len() - 4 * window).contains(&at) {
            let held = (held * page_samples) as f64 / window as f64;
            (sum, peak, steps) = (sum + held, peak.max(held), steps + 1.0);
        }
    }
    (sum / steps, peak)
}
