//! The blocks of an epoch in their permuted order, cut into lanes.

use std::ops::Range;
use std::sync::Arc;

use super::lane::LaneCursor;
use super::random::{Purpose, Stream};
use super::shuffle::Shuffle;
use crate::error::{Error, Kind, Result};

/// Lanes to choose from: each divides the next but one or so, and together they serve most world sizes.
const LADDER: [u32; 9] = [1, 2, 4, 6, 12, 24, 60, 120, 240];

/// Most samples of a dataset, and of a window: keys keep 24 bits of fraction in 64 (see `lane`).
const SAMPLES_MAX: u64 = 1 << 39;

/// Where a sample is: its block, in dataset order, and its index in that block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// Number of the block in dataset order.
    pub block: u32,
    /// Number of the sample in the block.
    pub index: u32,
}

/// The order of every epoch of a dataset, the same on every rank.
#[derive(Clone, Debug)]
pub struct Order {
    block_samples: Arc<[u32]>,
    samples: u64,
    shuffle: Shuffle,
    lanes: u32,
}

impl Order {
    /// An order over blocks with `block_samples[b]` samples each, shared by `world_size` ranks.
    ///
    /// `lanes` is the number of independent streams that the global order is woven of; a resumed job passes the number in its
    /// state. By default it is the largest of 1, 2, 4, 6, 12, 24, 60, 120, 240 that the world size divides and that is not
    /// above the number of blocks in the window; else the smallest of them that the world size divides; else the
    /// world size.
    ///
    /// # Errors
    /// `Topology` if `lanes` is not a multiple of the world size, or either is 0; `Config` if there are no samples, more than 2³², blocks,
    /// or samples or window are above 2³⁹.
    pub fn new(block_samples: Arc<[u32]>, shuffle: Shuffle, world_size: u32, lanes: Option<u32>) -> Result<Self> {
        if world_size == 0 {
            return Err(Error::new(Kind::Topology, "the world size is 0").advice("it is 1 for a single process"));
        }
        let samples = block_samples.iter().map(|count| u64::from(*count)).sum::<u64>();
        check_sizes(block_samples.len(), samples, shuffle)?;
        let lanes = lanes.unwrap_or_else(|| default_lanes(block_samples.len() as u64, samples, shuffle, world_size));
        if lanes == 0 || !lanes.is_multiple_of(world_size) {
            let context = format!("{lanes} lanes cannot be shared by {world_size} ranks");
            return Err(
                Error::new(Kind::Topology, context).advice("choose a world size that divides the number of lanes")
            );
        }
        Ok(Order { block_samples, samples, shuffle, lanes })
    }

    /// Lanes that the global order is woven of.
    pub fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Samples in an epoch.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Reach and seed.
    pub fn shuffle(&self) -> Shuffle {
        self.shuffle
    }

    /// The lane's share of the window, in samples: none of its samples leaves later than this after its arrival.
    pub fn lane_window(&self) -> u64 {
        self.shuffle.window_samples() / u64::from(self.lanes)
    }

    /// How many samples of `lane` lie before the global position `position`: where the lane's cursor starts.
    pub fn lane_position(&self, lane: u32, position: u64) -> u64 {
        position.saturating_sub(u64::from(lane)).div_ceil(u64::from(self.lanes))
    }

    /// Order of one epoch. Takes time and memory in proportion to the blocks, not to the samples.
    pub fn epoch(&self, epoch: u64) -> EpochOrder {
        let mut blocks: Vec<u32> = (0..self.block_samples.len() as u32).collect();
        if !self.shuffle.is_none() {
            permute(&mut blocks, Stream::new(self.shuffle.seed_value(), Purpose::Blocks, epoch, 0));
        }
        let mut places = vec![0; blocks.len()];
        let mut starts = Vec::with_capacity(blocks.len() + 1);
        let mut start = 0;
        for (place, block) in blocks.iter().enumerate() {
            places[*block as usize] = place as u32;
            starts.push(start);
            start += u64::from(self.block_samples[*block as usize]);
        }
        starts.push(start);
        EpochOrder(Arc::new(Permuted { order: self.clone(), epoch, blocks, places, starts }))
    }
}

fn check_sizes(blocks: usize, samples: u64, shuffle: Shuffle) -> Result<()> {
    if samples == 0 {
        return Err(Error::new(Kind::Config, "the dataset has no samples"));
    }
    if u32::try_from(blocks).is_err() {
        let error = Error::new(Kind::Config, format!("{blocks} blocks; the most is {}", u32::MAX));
        return Err(error.advice("use larger blocks"));
    }
    for (what, count) in [("samples", samples), ("samples in the shuffle window", shuffle.window_samples())] {
        if count > SAMPLES_MAX {
            return Err(Error::new(Kind::Config, format!("{count} {what}; the most is {SAMPLES_MAX}")));
        }
    }
    Ok(())
}

fn default_lanes(blocks: u64, samples: u64, shuffle: Shuffle, world_size: u32) -> u32 {
    let in_window = u128::from(shuffle.window_samples()) * u128::from(blocks) / u128::from(samples);
    let mut fitting = LADDER.into_iter().filter(|lanes| lanes % world_size == 0);
    let smallest = fitting.next().unwrap_or(world_size);
    fitting.take_while(|lanes| u128::from(*lanes) <= in_window).last().unwrap_or(smallest)
}

/// Fisher–Yates from the end, number *n* of the stream deciding step *n*.
fn permute(blocks: &mut [u32], stream: Stream) {
    for last in (1..blocks.len()).rev() {
        blocks.swap(last, stream.below(last as u64, last as u64 + 1) as usize);
    }
}

/// Order of one epoch. Clones share one permutation.
#[derive(Clone, Debug)]
pub struct EpochOrder(Arc<Permuted>);

#[derive(Debug)]
struct Permuted {
    order: Order,
    epoch: u64,
    /// Blocks by their place in the stream.
    blocks: Vec<u32>,
    /// Places by block: the inverse.
    places: Vec<u32>,
    /// First sample of each place, in the stream, and one past the last.
    starts: Vec<u64>,
}

impl EpochOrder {
    /// Number of the epoch.
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// The order that this is an epoch of.
    pub fn order(&self) -> &Order {
        &self.0.order
    }

    /// Samples in `lane`; 0 if there is no such lane.
    pub fn lane_samples(&self, lane: u32) -> u64 {
        let range = self.lane_range(lane);
        range.end - range.start
    }

    /// The samples of `lane` from its position `from` on, in output order. Takes time in proportion to the lane's
    /// window, wherever it starts. Empty past the lane's end.
    pub fn lane(&self, lane: u32, from: u64) -> LaneCursor {
        LaneCursor::new(self.clone(), lane, from)
    }

    /// Where sample `index` of `lane` in stream order lies: before the shuffle by keys, after that of the blocks.
    ///
    /// # Panics
    /// If the lane has no such sample.
    pub fn locate(&self, lane: u32, index: u64) -> Slot {
        assert!(index < self.lane_samples(lane), "lane {lane} has no sample {index}");
        let (place, index) = self.place(self.lane_range(lane).start + index);
        Slot { block: self.block_at(place), index }
    }

    /// The lane's part of the stream.
    pub(super) fn lane_range(&self, lane: u32) -> Range<u64> {
        let Permuted { order, .. } = &*self.0;
        if lane >= order.lanes {
            return order.samples..order.samples;
        }
        let (lane, lanes) = (u64::from(lane), u64::from(order.lanes));
        let start = |lane: u64| lane * (order.samples / lanes) + lane.min(order.samples % lanes);
        start(lane)..start(lane + 1)
    }

    /// Place of the block that holds sample `at` of the stream, and the sample's index in it. Past the end: the last place.
    pub(super) fn place(&self, at: u64) -> (u32, u32) {
        let starts = &self.0.starts[..self.0.blocks.len()];
        let place = starts.partition_point(|start| *start <= at) - 1;
        (place as u32, (at - starts[place]) as u32)
    }

    pub(super) fn block_at(&self, place: u32) -> u32 {
        self.0.blocks[place as usize]
    }

    /// Samples of the block at `place`.
    pub(super) fn samples_at(&self, place: u32) -> u32 {
        self.0.order.block_samples[self.block_at(place) as usize]
    }

    /// The block's part of the stream; empty if there is no such block.
    pub(super) fn block_range(&self, block: u32) -> Range<u64> {
        let Some(place) = self.0.places.get(block as usize) else { return 0..0 };
        self.0.starts[*place as usize]..self.0.starts[*place as usize + 1]
    }
}
