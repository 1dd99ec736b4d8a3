//! What samples exist and where their bytes lie: shards, fields, the index; one file per format.
//!
//! *Takes* bytes of shards and indexes (it does no I/O itself). *Gives* [`Dataset`]: samples, fields, blocks, extents.
//! *Owns* the index in memory. *Bounded* by the index's declared counts, which are checked before anything is
//! allocated. *Fails* with `Corrupt`, naming shard and offset, on bytes that are not what they claim.

mod catalog;
mod fingerprint;
mod index;
mod location;
mod members;
mod records;
mod samples;

pub use catalog::{Block, Dtype, Extent, FieldId, FieldLayout, SampleId, Shard, Version};
pub use index::Index;
pub use members::{MemberPlace, ShardIndex, Skipped};
pub use records::{RecordShard, RecordSpec};
pub use samples::{BlockCut, Dataset};
