//! Making and finding the index of tar shards.

use std::sync::Arc;

use super::LoaderBuilder;
use super::source::{Format, Object, shards};
use crate::dataset::{Index, Shard, ShardIndexer, index_url};
use crate::error::{Error, Kind, Result};
use crate::fetch::{RetryPolicy, heads, list, stream};
use crate::telemetry::Telemetry;

/// How far an index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexProgress {
    /// Bytes read.
    pub bytes: u64,
    /// Bytes there are.
    pub bytes_total: u64,
    /// Shards that are done.
    pub shards: usize,
    /// Shards there are.
    pub shards_total: usize,
    /// Samples found.
    pub samples: u64,
}

/// Called now and then while an index is made.
pub(super) type OnIndexProgress = Arc<dyn Fn(IndexProgress) + Send + Sync>;

impl LoaderBuilder {
    /// Reads every byte of the tar shards, at the speed of the link, and says what lies where, with a digest for each field. Of the
    /// options, those of shards, stores, retries and progress count.
    ///
    /// # Errors
    /// `NotFound` for a shard that is not there; `Corrupt` for one that is not a whole tar archive, with the offset; `Unsupported` for
    /// shards that are not tar.
    pub fn make_index(self) -> Result<Index> {
        let mut stores = self.open_stores(16);
        let objects = shards(&self.patterns, &mut stores, |prefix| listed_keys(prefix, self.policy))?;
        index_objects(&objects, self.policy, &Arc::new(Telemetry::new(0)), &self.on_index)
    }
}

/// Where the index of the dataset that `pattern` names lies, beside the shards: what the command saves [`LoaderBuilder::make_index`] as.
pub fn index_location(pattern: &str) -> String {
    index_url(pattern)
}

pub(super) fn listed_keys(prefix: &Object, policy: RetryPolicy) -> Result<Vec<String>> {
    Ok(list(&prefix.source(None), policy)?.into_iter().map(|entry| entry.key).collect())
}

pub(super) fn index_objects(
    objects: &[Object],
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
    progress: &OnIndexProgress,
) -> Result<Index> {
    for object in objects {
        if Format::of(&object.url)? != Format::Tar {
            return Err(Error::new(Kind::Unsupported, format!("{}: only tar shards have an index", object.url))
                .advice("files of records or tokens need none"));
        }
    }
    let sources: Vec<_> = objects.iter().map(|object| object.source(None)).collect();
    let sizes: Vec<u64> = heads(&sources, policy)?.iter().map(|meta| meta.size).collect();
    let sources = sources.into_iter().zip(&sizes).map(|(mut source, size)| {
        source.size = Some(*size);
        source
    });
    let mut so_far =
        IndexProgress { bytes_total: sizes.iter().sum(), shards_total: objects.len(), ..Default::default() };
    progress(so_far);
    let begin = |number: usize| {
        let object: &Object = &objects[number];
        ShardIndexer::new(Shard { url: object.url.clone(), size: sizes[number], version: None })
    };
    let mut done = Vec::with_capacity(objects.len());
    let mut current = begin(0);
    let mut finish = |indexer: ShardIndexer, so_far: &mut IndexProgress| -> Result<()> {
        let shard = indexer.finish()?;
        so_far.samples += shard.samples() as u64;
        so_far.shards += 1;
        done.push(shard);
        Ok(())
    };
    let mut number = 0;
    stream(sources.collect(), &sizes, policy, telemetry, |source, _, bytes| {
        while number < source {
            number += 1;
            finish(std::mem::replace(&mut current, begin(number)), &mut so_far)?;
        }
        so_far.bytes += bytes.len() as u64;
        current.push(bytes)?;
        progress(so_far);
        Ok(())
    })?;
    // What is left: the last shard, and empty ones behind it.
    loop {
        number += 1;
        let last = number >= objects.len();
        let next = begin(number.min(objects.len() - 1));
        finish(std::mem::replace(&mut current, next), &mut so_far)?;
        if last {
            break;
        }
    }
    progress(so_far);
    Ok(Index::new(done))
}

/// The largest index that is read: 4 GiB of it describe some hundred million samples.
const INDEX_BYTES_MAX: u64 = 4 << 30;

/// Reads the sidecar index at `object`; `None` when there is none.
pub(super) fn load(object: &Object, policy: RetryPolicy, telemetry: &Arc<Telemetry>) -> Result<Option<Index>> {
    let bytes = match read_whole(object, policy, INDEX_BYTES_MAX, telemetry) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Index::decode(&bytes).map(Some).map_err(|error| error.within(&object.url))
}

/// Reads a small object, or the first `bytes_max` bytes of it if `bytes_max` is what is wanted of a large one.
pub(super) fn read_whole(
    object: &Object,
    policy: RetryPolicy,
    bytes_max: u64,
    telemetry: &Arc<Telemetry>,
) -> Result<Vec<u8>> {
    let meta = heads(&[object.source(None)], policy)?.remove(0);
    if meta.size > bytes_max {
        let what = format!("{}: {} bytes, at most {bytes_max} are read", object.url, meta.size);
        return Err(Error::new(Kind::Unsupported, what));
    }
    read_head(object, meta.size, meta.size, policy, telemetry)
}

/// Reads the first `len` bytes of an object of `size` bytes.
pub(super) fn read_head(
    object: &Object,
    size: u64,
    len: u64,
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len as usize);
    stream(vec![object.source(Some(size))], &[len.min(size)], policy, telemetry, |_, _, slice| {
        bytes.extend_from_slice(slice);
        Ok(())
    })?;
    Ok(bytes)
}

/// The index of tar shards: the sidecar if there is one, else made now.
pub(super) fn find_or_make(
    objects: &[Object],
    sidecar: Option<&Object>,
    required: bool,
    policy: RetryPolicy,
    telemetry: &Arc<Telemetry>,
    progress: &OnIndexProgress,
) -> Result<Index> {
    let urls: Vec<String> = objects.iter().map(|object| object.url.clone()).collect();
    let found = sidecar.map(|object| load(object, policy, telemetry)).transpose()?.flatten();
    match (found, sidecar) {
        (Some(index), Some(at)) => index.select(&urls).map_err(|error| error.within(&at.url)),
        (None, Some(at)) if required => {
            Err(Error::new(Kind::NotFound, format!("{}: no index there", at.url))
                .advice("make it with `farfeed index`"))
        }
        _ => index_objects(objects, policy, telemetry, progress),
    }
}
