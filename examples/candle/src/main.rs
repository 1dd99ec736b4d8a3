//! Trains a small transformer in candle on farfeed's own documentation, across an emulated link: near, far, and interrupted in mid-epoch. Whatever happens
//! to the stream, each step sees the same batch, so the losses are the same, bit for bit.
//!
//! Run it with `make candle`, or `cargo run --manifest-path examples/candle/Cargo.toml`; with `--features cuda` where nvcc is.

mod batches;
mod corpus;
mod model;
mod training;

use std::time::Duration;

use farfeed::emulate::{Faults, Link, Objects, Server, Site};
use training::{Checkpoint, EPOCHS, Run, train};

/// Bytes per second that the emulated link carries: one gigabit.
const RATE_BYTES_S: u64 = 125_000_000;
const FAR: Duration = Duration::from_millis(15);
/// Of both epochs together.
const STEPS: usize = 80;
/// In the first epoch.
const STOP_AFTER: usize = 30;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let tokens = corpus::tokens(STEPS / EPOCHS as usize)?;
    let near = run(&tokens, Duration::ZERO, None)?;
    let far = run(&tokens, FAR, None)?;

    let directory = tempfile::tempdir()?;
    let stop = Checkpoint { directory: directory.path(), stop_after: Some(STOP_AFTER) };
    let go_on = Checkpoint { directory: directory.path(), stop_after: None };
    let before = run(&tokens, FAR, Some(&stop))?;
    let after = run(&tokens, FAR, Some(&go_on))?;

    assert_eq!(near.losses.len(), STEPS);
    assert_eq!(near.losses, far.losses, "the distance changes nothing");
    assert_eq!(before.losses.len(), STOP_AFTER);
    assert_eq!([before.losses, after.losses].concat(), near.losses, "nor does an interruption");
    let (first, last) = (mean(&near.losses[..8]), mean(&near.losses[STEPS - 8..]));
    assert!(last < first - 0.5, "it learns: {first} to {last}");

    println!(
        "loss {first:.3} → {last:.3} in {STEPS} steps: bit for bit the same near, {} ms away, and stopped after {STOP_AFTER} steps",
        FAR.as_millis()
    );
    for (name, run) in [("near", &near), ("far", &far)] {
        let per_step = |total: Duration| 1e3 * total.as_secs_f64() / STEPS as f64;
        println!(
            "{name:>5}: step {:.1} ms, of which waiting for the batch {:.2} ms, making tensors of it {:.3} ms ({})",
            per_step(run.took),
            per_step(run.waited),
            per_step(run.handed_over),
            batches::HOW,
        );
    }
    Ok(())
}

/// Trains on `tokens` that far away. Three of four runs here are the same training; only what they must agree in is compared.
fn run(tokens: &[u8], rtt: Duration, checkpoint: Option<&Checkpoint<'_>>) -> Result<Run> {
    let site = Site::objects(Objects::from_iter([("docs.bin", tokens.to_vec())]));
    let server = Server::start(site, Link::rtt(rtt).rate(RATE_BYTES_S), Faults::none())?;
    train(&format!("{}/docs.bin", server.url()), checkpoint)
}

fn mean(losses: &[f32]) -> f32 {
    losses.iter().sum::<f32>() / losses.len() as f32
}
