//! The index of a tar dataset: where every sample of every shard lies; its sidecar file.

mod codec;
#[cfg(test)]
mod tests;

use super::location::{ByPath, path, path_end};
use super::members::ShardIndex;
use crate::error::{Error, Kind, Result};

/// The index of a dataset of tar shards, in the dataset's order.
///
/// In its encoded form, described in `docs/formats.md`, it is one file for the whole dataset.
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

    /// The sidecar file. Shards are named in it by their paths from the directory they share, so that it stays good where the dataset is copied to.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a sidecar file. Memory is bounded by the file's size, whatever it claims.
    ///
    /// # Errors
    /// `Corrupt` for bytes that are not an index or not a consistent one; `Unsupported` for one of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        codec::decode(bytes)
    }

    /// The index of the wanted shards only, in the order wanted and under the URLs wanted. A shard is known by the longest
    /// run of last path components that it shares with a wanted URL, its file name at least.
    ///
    /// # Errors
    /// `NotFound` for a shard that the index does not have; `Config` where several are equally alike.
    pub fn select<U: AsRef<str>>(self, wanted: &[U]) -> Result<Index> {
        let matches = self.find_all(wanted)?;
        let mut uses = vec![0u32; self.shards.len()];
        for &place in &matches {
            uses[place] += 1;
        }
        let mut shards: Vec<Option<ShardIndex>> = self.shards.into_iter().map(Some).collect();
        let mut selected = Vec::with_capacity(matches.len());
        for (&place, url) in matches.iter().zip(wanted) {
            uses[place] -= 1;
            let shard = if uses[place] == 0 { shards[place].take() } else { shards[place].clone() };
            selected.extend(shard.map(|mut shard| {
                url.as_ref().clone_into(&mut shard.shard.url);
                shard
            }));
        }
        Ok(Index { shards: selected })
    }

    /// Place of each wanted shard.
    fn find_all<U: AsRef<str>>(&self, wanted: &[U]) -> Result<Vec<usize>> {
        let shards = ByPath::new(self.shards.iter().map(|shard| shard.shard.url.as_str()));
        let find = |url: &str| match shards.find(url) {
            Some(Some(place)) => Ok(place),
            Some(None) => Err(Error::new(Kind::Config, format!("several shards of the index could be {}", path(url)))
                .advice("name the shards with the directories in which `farfeed index` found them")),
            None => Err(Error::new(Kind::NotFound, format!("shard {} is not in the index", path(url)))
                .advice("run `farfeed index` on the shards again")),
        };
        wanted.iter().map(|url| find(url.as_ref())).collect()
    }
}

/// Where the sidecar of a dataset lies unless told otherwise: beside the shards, named after what their names have in common.
///
/// `s3://b/train-{0000..0255}.tar` → `s3://b/train.ffindex`, `x.tar` → `x.tar.ffindex`, `dir/` → `dir/dataset.ffindex`. A query stays where it is.
pub fn index_url(pattern: &str) -> String {
    let (pattern, query) = pattern.split_at(path_end(pattern));
    let literal = pattern.split('{').next().unwrap_or(pattern);
    let (directory, name) = literal.split_at(literal.rfind('/').map_or(0, |slash| slash + 1));
    let name = if literal.len() < pattern.len() { name.trim_matches(['-', '_', '.']) } else { name };
    let name = if name.is_empty() { "dataset" } else { name };
    format!("{directory}{name}.ffindex{query}")
}
