//! A dataset to look at, without a loader: what there is, and single samples.

use std::fmt;
use std::sync::Arc;

use super::LoaderBuilder;
use super::indexing::listed_keys;
use super::opened::dataset;
use super::source::shards;
use crate::dataset::{Dataset, Extent, FieldId, SampleId};
use crate::error::Result;
use crate::fetch::{RetryPolicy, Source, extents};
use crate::sys::process::Birthplace;
use crate::telemetry::Telemetry;

/// What a dataset holds, and a few of its samples. Made by [`LoaderBuilder::peek`].
///
/// For people who look; a training loop wants a [`Loader`](super::Loader).
pub struct Peek {
    dataset: Arc<Dataset>,
    sources: Vec<Source>,
    policy: RetryPolicy,
    /// The process that the stores' threads and locks belong to.
    born: Birthplace,
}

impl LoaderBuilder {
    /// Finds the shards and their index, and stops there: samples may lack fields, and no memory is set aside. Of the
    /// options, those of shards, stores, tokens, index, blocks and retries count.
    ///
    /// # Errors
    /// `NotFound` for shards and indexes; `Config` where token files come without [`LoaderBuilder::tokens`]; and
    /// whatever reading the index brings.
    pub fn peek(self) -> Result<Peek> {
        let mut stores = self.open_stores(1);
        let telemetry = Arc::new(Telemetry::new(0));
        let objects = shards(&self.patterns, &mut stores, |prefix| listed_keys(prefix, self.policy))?;
        let dataset = Arc::new(dataset(&self, &objects, &mut stores, &telemetry)?);
        let sources =
            objects.iter().zip(dataset.shards()).map(|(object, shard)| object.source(Some(shard.size))).collect();
        Ok(Peek { dataset, sources, policy: self.policy, born: Birthplace::here() })
    }
}

impl Peek {
    /// Samples, fields and shards.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The first `bytes_max` bytes, or all if there are fewer, of fields of samples; `None` where a sample lacks the
    /// field. They are held in memory, all of them.
    ///
    /// # Errors
    /// Those of reading: `NotFound` for a shard that has gone, `Corrupt` for one that is not the index's, and so on; `Unsupported` in a
    /// forked child.
    pub fn read(&self, wanted: &[(SampleId, FieldId)], bytes_max: u64) -> Result<Vec<Option<Vec<u8>>>> {
        self.born.check("the shards were opened")?;
        let places: Vec<Option<Extent>> = wanted
            .iter()
            .map(|(sample, field)| self.dataset.extent(*sample, *field))
            .map(|place| place.map(|extent| Extent { len: extent.len.min(bytes_max), ..extent }))
            .collect();
        let there: Vec<Extent> = places.iter().copied().flatten().collect();
        let telemetry = Arc::new(Telemetry::new(0));
        let mut values = extents(self.sources.clone(), &there, self.policy, &telemetry)?.into_iter();
        Ok(places.into_iter().map(|place| place.and_then(|_| values.next())).collect())
    }
}

impl fmt::Debug for Peek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peek").field("dataset", &self.dataset).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Loader;
    use crate::dataset::Dtype;
    use crate::loader::Tokens;
    use crate::store::MemoryStore;

    #[test]
    fn single_samples_are_read_where_they_lie() {
        let store = MemoryStore::new();
        let (a, b): (Vec<u8>, Vec<u8>) = ((0..60).collect(), (100..160).collect());
        store.put("a.bin", a.as_slice());
        store.put("b.bin", b.as_slice());
        let peek = Loader::builder("memory:{a,b}.bin").store(store).tokens(Tokens::new(Dtype::U16, 10)).peek().unwrap();
        assert_eq!(peek.dataset().samples(), 6);
        let read = peek.read(&[(4, 0), (0, 0), (9, 0), (1, 1)], 20).unwrap();
        assert_eq!(read, [Some(b[20..40].to_vec()), Some(a[..20].to_vec()), None, None]);
        assert_eq!(peek.read(&[(5, 0)], 3).unwrap(), [Some(b[40..43].to_vec())]);
        assert!(peek.read(&[], 3).unwrap().is_empty());
        let answer = farfeed_driver_double::in_a_child(std::time::Duration::from_secs(20), || {
            peek.read(&[(5, 0)], 3).map_or_else(|error| format!("{:?}", error.kind()), |_| "it worked".into())
        });
        assert_eq!(answer.as_deref(), Ok("Unsupported"));
    }
}
