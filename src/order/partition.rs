//! Which positions of the global order make up batch *k* of a rank.

use crate::error::{Error, Kind, Result};

/// One rank's share of every global batch.
///
/// A global batch *k* is the run of `global_batch()` positions from *k* × `global_batch()` on; rank *r* of *w* takes those with
/// *p* mod *w* = *r*. Every rank counts the same batches. With `drop_last` all of them are full; without it the last may
/// be smaller, by at most one row more on one rank than on another: a rank has no rows in it where fewer samples are left than there are ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    rank: u32,
    world_size: u32,
    batch_size: u32,
    drop_last: bool,
}

/// A lane and a position in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LanePosition {
    /// Number of the lane.
    pub lane: u32,
    /// Position in the lane's output order.
    pub position: u64,
}

impl Partition {
    /// The share of `rank` of `world_size` ranks with `batch_size` rows on each of them.
    ///
    /// # Errors
    /// `Topology` if there is no such rank, `Config` if the batch size is 0.
    pub fn new(rank: u32, world_size: u32, batch_size: u32, drop_last: bool) -> Result<Self> {
        if rank >= world_size {
            let context = format!("rank {rank} in a world of {world_size}");
            return Err(Error::new(Kind::Topology, context).advice("ranks count from 0"));
        }
        if batch_size == 0 {
            return Err(Error::new(Kind::Config, "the batch size is 0").advice("take at least 1 sample per rank"));
        }
        Ok(Partition { rank, world_size, batch_size, drop_last })
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks.
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// Rows of a full batch on one rank.
    pub fn batch_size(&self) -> u32 {
        self.batch_size
    }

    /// Whether samples that do not fill a last global batch are left out.
    pub fn drop_last(&self) -> bool {
        self.drop_last
    }

    /// Samples of a full batch over all ranks.
    pub fn global_batch(&self) -> u64 {
        u64::from(self.batch_size) * u64::from(self.world_size)
    }

    /// Batches in an epoch of `samples`: the same on every rank.
    pub fn batches(&self, samples: u64) -> u64 {
        if self.drop_last { samples / self.global_batch() } else { samples.div_ceil(self.global_batch()) }
    }

    /// Rows of this rank in `batch` of an epoch of `samples`; 0 past the last batch.
    pub fn rows(&self, samples: u64, batch: u64) -> u32 {
        if batch >= self.batches(samples) {
            return 0;
        }
        let left = samples - batch * self.global_batch();
        let rows = left.saturating_sub(u64::from(self.rank)).div_ceil(u64::from(self.world_size));
        rows.min(u64::from(self.batch_size)) as u32
    }

    /// Global samples consumed once batches `0..batch` of an epoch of `samples` have been: the position to keep in the state.
    pub fn position(&self, samples: u64, batch: u64) -> u64 {
        batch.saturating_mul(self.global_batch()).min(samples)
    }

    /// Lane and position of row `row` of `batch` on this rank, where the order has `lanes` lanes.
    pub fn locate(&self, lanes: u32, batch: u64, row: u32) -> LanePosition {
        let (world_size, lanes) = (u64::from(self.world_size), u64::from(lanes));
        let position = batch * self.global_batch() + u64::from(row) * world_size + u64::from(self.rank);
        LanePosition { lane: (position % lanes) as u32, position: position / lanes }
    }

    /// The lanes that this rank serves, of `lanes`.
    pub fn lanes(&self, lanes: u32) -> impl ExactSizeIterator<Item = u32> + use<> {
        (self.rank..lanes).step_by(self.world_size as usize)
    }
}
