//! From names back to samples: for lists that say which samples to leave out.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::{Dataset, Layout, Samples};
use crate::dataset::catalog::SampleId;
use crate::dataset::location::ByPath;
use crate::error::{Error, Kind, Result};

/// Samples as a list names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// URL or path of the shard; the last components that tell it from the others are enough.
    pub shard: &'a str,
    /// Key of the sample; `None` for all samples of the shard.
    pub key: Option<&'a str>,
    /// Number of the sample in its shard, for keys that are there more than once.
    pub number: Option<u64>,
}

impl Dataset {
    /// Shard of a sample, and the sample's number there; `None` for samples that do not exist.
    pub fn shard_of(&self, sample: SampleId) -> Option<(u32, u64)> {
        self.locate(sample).map(|(shard, number)| (shard as u32, number))
    }

    /// Samples of a shard; none of one that does not exist.
    pub fn samples_of(&self, shard: u32) -> Range<SampleId> {
        let shard = shard as usize;
        match (self.firsts.get(shard), self.firsts.get(shard + 1)) {
            (Some(first), Some(end)) => *first..*end,
            _ => 0..0,
        }
    }

    /// The samples that `names` name, in ascending order, and how many of the names are of shards that this dataset does not have.
    ///
    /// # Errors
    /// `NotFound` for a shard of the dataset that has no sample of that key, or another one of that number; `Config` where several
    /// shards could be meant.
    pub fn find<'a>(&self, names: impl IntoIterator<Item = Named<'a>>) -> Result<(Vec<SampleId>, usize)> {
        let shards = ByPath::new(self.shards.iter().map(|shard| shard.url.as_str()));
        let (mut found, mut elsewhere) = (Vec::new(), 0);
        let mut by_shard: BTreeMap<usize, Vec<(&str, Option<u64>)>> = BTreeMap::new();
        for name in names {
            match (shards.find(name.shard), name.key) {
                (None, _) => elsewhere += 1,
                (Some(None), _) => {
                    return Err(Error::new(Kind::Config, format!("several shards could be {}", name.shard))
                        .advice("name the shard with the directories that tell it from the others"));
                }
                (Some(Some(shard)), None) => found.extend(self.samples_of(shard as u32)),
                (Some(Some(shard)), Some(key)) => by_shard.entry(shard).or_default().push((key, name.number)),
            }
        }
        for (shard, wanted) in by_shard {
            self.find_in(shard, &wanted, &mut found)?;
        }
        found.sort_unstable();
        found.dedup();
        Ok((found, elsewhere))
    }

    fn find_in(&self, shard: usize, wanted: &[(&str, Option<u64>)], found: &mut Vec<SampleId>) -> Result<()> {
        let first = self.firsts[shard];
        let numbers = match &self.layout {
            Layout::Members(places) => Numbers::of(&places[shard].samples, wanted),
            Layout::Records { .. } => Numbers::default(),
        };
        for (key, number) in wanted {
            let before = found.len();
            match (number, &self.layout) {
                (Some(number), _) => {
                    let sample = first.saturating_add(*number);
                    let it = self.samples_of(shard as u32).contains(&sample) && self.key(sample) == Cow::Borrowed(*key);
                    found.extend(it.then_some(sample));
                }
                (None, Layout::Members(_)) => {
                    found.extend(numbers.0.get(key).into_iter().flatten().map(|number| first + number));
                }
                (None, Layout::Records { .. }) => {
                    let number = key.rsplit_once(':').and_then(|(_, number)| number.parse::<u64>().ok());
                    let sample = number.map(|number| first.saturating_add(number));
                    let it = |sample: &SampleId| {
                        self.samples_of(shard as u32).contains(sample) && self.key(*sample) == Cow::Borrowed(*key)
                    };
                    found.extend(sample.filter(it));
                }
            }
            if found.len() == before {
                let number = number.map_or_else(String::new, |number| format!(" with number {number}"));
                let what = format!("{}: no sample {key}{number}", self.shards[shard].url);
                return Err(Error::new(Kind::NotFound, what)
                    .advice("the list is of another version of the shard: make it again, or remove the line"));
            }
        }
        Ok(())
    }
}

/// The numbers in a shard of the samples of some keys.
#[derive(Default)]
struct Numbers<'a>(HashMap<&'a str, Vec<u64>>);

impl<'a> Numbers<'a> {
    fn of(samples: &Samples, wanted: &[(&'a str, Option<u64>)]) -> Self {
        let mut numbers: HashMap<&str, Vec<u64>> =
            wanted.iter().filter(|(_, number)| number.is_none()).map(|(key, _)| (*key, Vec::new())).collect();
        if !numbers.is_empty() {
            for (number, key) in (0..samples.rows.len()).filter_map(|number| Some((number, samples.key(number)?))) {
                if let Some(of_key) = numbers.get_mut(key) {
                    of_key.push(number as u64);
                }
            }
        }
        Numbers(numbers)
    }
}
