//! The same epoch next door and 15 ms away, across an emulated link, with a compute step: the distance stays hidden.
//!
//! Run it with `cargo run --example 04_far_away --features emulate`. `farfeed demo` does it at full size.

use std::thread::sleep;
use std::time::{Duration, Instant};

use farfeed::dataset::Dtype;
use farfeed::emulate::{Faults, Link, Objects, Server, Site};
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Loader, Result, Tokens};

/// 1 Gbit/s, of which the step needs half: 32 samples of 32 KiB every 17 ms.
const RATE_BYTES_S: u64 = 125_000_000;
const STEP: Duration = Duration::from_millis(17);
const TOKENS: usize = 16 << 10;
const BATCH: u32 = 32;

fn main() -> Result<()> {
    let bytes: Vec<u8> = (0..64u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let near = epoch(&bytes, Duration::ZERO)?;
    let far = epoch(&bytes, Duration::from_millis(15))?;
    assert_eq!(near, far, "the distance changes no batch");
    println!("{} batches, byte for byte the same at both distances", near.len());
    Ok(())
}

/// The ids and a checksum of each batch of one epoch.
fn epoch(bytes: &[u8], rtt: Duration) -> Result<Vec<(Vec<u64>, u64)>> {
    let site = Site::objects(Objects::from_iter([("train.bin", bytes.to_vec())]));
    // A server of this process takes its part of the processors; for figures, run `farfeed serve` in another one.
    let server = Server::start(site, Link::rtt(rtt).rate(RATE_BYTES_S), Faults::none())?;
    let loader = Loader::builder(format!("{}/train.bin", server.url()))
        .tokens(Tokens::new(Dtype::U16, TOKENS))
        .batch_size(BATCH)
        .shuffle(Shuffle::window(256).seed(3))
        .block_size(ByteSize::mib(1))
        .host_memory(ByteSize::mib(128))
        .epochs(1)
        .build()?;

    let began = Instant::now();
    let mut batches = Vec::new();
    for batch in loader.epoch(0) {
        let batch = batch?;
        let sum = batch.dense("tokens")?.bytes.unwrap_or_default().iter().map(|byte| u64::from(*byte)).sum();
        batches.push((batch.ids().to_vec(), sum));
        sleep(STEP); // A GPU's step.
    }
    let stats = loader.stats();
    assert_eq!(stats.batches, loader.batches_per_epoch());
    println!(
        "{:2} ms, emulated link of {} MB/s: {} batches in {:.2} s, the first after {:.0} ms",
        rtt.as_millis(),
        RATE_BYTES_S / 1_000_000,
        batches.len(),
        began.elapsed().as_secs_f64(),
        1e3 * stats.first_batch_s
    );
    println!("       {stats}\n");
    Ok(batches)
}
