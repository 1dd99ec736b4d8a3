//! The index of a tar dataset: where every sample of every shard lies.

use super::members::ShardIndex;

/// The index of a dataset of tar shards, in the dataset's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub(super) shards: Vec<ShardIndex>,
}

impl Index {
    /// The index of these shards.
    pub fn new(shards: Vec<ShardIndex>) -> Self {
        Index { shards }
    }

    /// One index per shard, in the dataset's order.
    pub fn shards(&self) -> &[ShardIndex] {
        &self.shards
    }

    /// Bytes of memory held for samples.
    pub fn memory_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.samples.memory_bytes()).sum()
    }
}
