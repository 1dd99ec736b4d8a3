//! A transformer of one layer over bytes.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax;
use candle_nn::{Embedding, Linear, Module, VarBuilder, VarMap, embedding, linear};

use crate::Result;
use crate::corpus::VOCABULARY;
use crate::training::CONTEXT;

const WIDTH: usize = 64;

/// Causal attention, then two layers on each position; scores of the next token.
pub(crate) struct Model {
    token: Embedding,
    position: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    widen: Linear,
    narrow: Linear,
    score: Linear,
    /// `[CONTEXT, CONTEXT]`: 0 where a position may look, else a large negative number.
    mask: Tensor,
}

impl Model {
    /// A model whose weights are those of `weights`, the same each time.
    pub(crate) fn new(weights: &VarMap, device: &Device) -> Result<Model> {
        let place = VarBuilder::from_varmap(weights, DType::F32, device);
        let mask: Vec<f32> =
            (0..CONTEXT * CONTEXT).map(|at| if at % CONTEXT > at / CONTEXT { f32::MIN / 2.0 } else { 0.0 }).collect();
        let model = Model {
            token: embedding(VOCABULARY, WIDTH, place.pp("token"))?,
            position: place.get((CONTEXT, WIDTH), "position")?,
            query: linear(WIDTH, WIDTH, place.pp("query"))?,
            key: linear(WIDTH, WIDTH, place.pp("key"))?,
            value: linear(WIDTH, WIDTH, place.pp("value"))?,
            widen: linear(WIDTH, 4 * WIDTH, place.pp("widen"))?,
            narrow: linear(4 * WIDTH, WIDTH, place.pp("narrow"))?,
            score: linear(WIDTH, VOCABULARY, place.pp("score"))?,
            mask: Tensor::from_vec(mask, (CONTEXT, CONTEXT), device)?,
        };
        reset(weights, device)?;
        Ok(model)
    }

    /// Scores `[B, CONTEXT, VOCABULARY]` of the token after each of `tokens` `[B, CONTEXT]`.
    pub(crate) fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let hidden = self.token.forward(tokens)?.broadcast_add(&self.position)?;
        let (query, key) = (self.query.forward(&hidden)?, self.key.forward(&hidden)?);
        let likeness = (query.matmul(&key.transpose(1, 2)?.contiguous()?)? / (WIDTH as f64).sqrt())?;
        let attention = softmax(&likeness.broadcast_add(&self.mask)?, D::Minus1)?;
        let hidden = (&hidden + attention.matmul(&self.value.forward(&hidden)?)?)?;
        let hidden = (&hidden + self.narrow.forward(&self.widen.forward(&hidden)?.relu()?)?)?;
        Ok(self.score.forward(&hidden)?)
    }
}

/// Small numbers that depend on nothing but their place: candle's generator on the CPU takes no seed.
fn reset(weights: &VarMap, device: &Device) -> Result<()> {
    let variables = weights.data().lock().map_err(|_| "another thread panicked")?;
    let mut names: Vec<&String> = variables.keys().collect();
    names.sort();
    let mut state = 1u64;
    for name in names {
        let variable = &variables[name];
        let bound = 1.0 / (WIDTH as f32).sqrt();
        let values: Vec<f32> = (0..variable.elem_count())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // The upper 24 bits, as a number from -bound to bound.
                ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * bound
            })
            .collect();
        variable.set(&Tensor::from_vec(values, variable.shape(), device)?)?;
    }
    Ok(())
}
