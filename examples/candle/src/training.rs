//! The training loop, and where it stops and goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_nn::loss::cross_entropy;
use candle_nn::{Optimizer, SGD, VarMap};
use farfeed::dataset::Dtype;
use farfeed::order::{Shuffle, State};
use farfeed::{ByteSize, Loader, Tokens};

use crate::Result;
use crate::batches::Place;
use crate::model::Model;

pub(crate) const BATCH: usize = 16;
pub(crate) const CONTEXT: usize = 64;
pub(crate) const EPOCHS: u64 = 2;
const LEARNING_RATE: f64 = 0.5;

/// What a training run did.
#[derive(Default)]
pub(crate) struct Run {
    /// One for each step.
    pub(crate) losses: Vec<f32>,
    pub(crate) took: Duration,
    /// For batches, the first one included.
    pub(crate) waited: Duration,
    /// Making tensors of batches.
    pub(crate) handed_over: Duration,
}

/// Where a run leaves weights and position, or goes on from.
pub(crate) struct Checkpoint<'a> {
    pub(crate) directory: &'a Path,
    /// Without it the run goes on from what is there.
    pub(crate) stop_after: Option<usize>,
}

/// Trains on the token file at `url`, from the beginning to the end, or as the checkpoint says.
pub(crate) fn train(url: &str, checkpoint: Option<&Checkpoint<'_>>) -> Result<Run> {
    let place = Place::new()?;
    let mut weights = VarMap::new();
    let model = Model::new(&weights, &place.candle)?;
    let mut builder = Loader::builder(url)
        .tokens(Tokens::new(Dtype::U32, CONTEXT).with_next())
        .batch_size(BATCH as u32)
        .shuffle(Shuffle::window(512).seed(7))
        .device(place.farfeed.clone())
        .host_memory(ByteSize::mib(64))
        .drop_last(true)
        .epochs(EPOCHS);
    let mut first_epoch = 0;
    if let Some(Checkpoint { directory, stop_after: None }) = checkpoint {
        weights.load(directory.join("weights.safetensors"))?;
        let state: State = std::fs::read_to_string(directory.join("state"))?.parse()?;
        first_epoch = state.epoch;
        builder = builder.resume(state);
    }
    let loader = builder.build()?;
    // It has no state of its own: weights and position are all that a checkpoint needs.
    let mut optimizer = SGD::new(weights.all_vars(), LEARNING_RATE)?;

    let mut run = Run::default();
    let began = Instant::now();
    for epoch in first_epoch..EPOCHS {
        for batch in loader.epoch(epoch) {
            let batch = batch?;
            let asked = Instant::now();
            let tokens = place.tensor(&batch, "tokens")?;
            run.handed_over += asked.elapsed();
            // Its slot is free for the next one while this one is computed with.
            drop(batch);

            // One token more than the context: inputs and targets in one.
            let inputs = tokens.narrow(1, 0, CONTEXT)?.contiguous()?;
            let targets = tokens.narrow(1, 1, CONTEXT)?.flatten_all()?;
            let loss = cross_entropy(&model.forward(&inputs)?.flatten_to(1)?, &targets)?;
            optimizer.backward_step(&loss)?;
            run.losses.push(loss.to_scalar()?);

            if let Some(Checkpoint { directory, stop_after: Some(steps) }) = checkpoint
                && run.losses.len() == *steps
            {
                weights.save(directory.join("weights.safetensors"))?;
                std::fs::write(directory.join("state"), loader.state().to_string())?;
                return Ok(run);
            }
        }
    }
    run.took = began.elapsed();
    run.waited = Duration::from_secs_f64(loader.stats().consumer.wait_s);
    Ok(run)
}
