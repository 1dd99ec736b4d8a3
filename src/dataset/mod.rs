//! What samples exist and where their bytes lie: shards, fields, the index; one file per format.
//!
//! *Takes* bytes of shards and indexes (it does no I/O itself). *Gives* [`Dataset`]: samples, fields, blocks, extents.
//! *Owns* the index in memory. *Bounded* by the index's declared counts, which are checked before anything is
//! allocated. *Fails* with `Corrupt`, naming shard and offset, on bytes that are not what they claim.

mod catalog;
mod expand;
mod fingerprint;
mod index;
mod location;
mod members;
mod npy;
mod records;
mod safetensors;
mod samples;
mod tar;
mod webdataset;

pub use catalog::{Block, Dtype, Extent, FieldId, FieldLayout, SampleId, Shard, Version};
pub use expand::expand;
pub use index::{Index, index_url};
pub use location::shown;
pub use members::{MemberPlace, ShardIndex, Skipped};
pub use npy::NpyHeader;
pub use records::{RecordShard, RecordSpec};
pub use safetensors::{SafetensorsHeader, TensorPlace};
pub use samples::{BlockCut, Dataset, Named};
pub use tar::{Entry, EntryKind, TarScanner};
pub use webdataset::ShardIndexer;
