//! Samples that are left out: which, why, and how many may be.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::run::lock;
use crate::dataset::{Dataset, Extent, Named, SampleId};
use crate::error::{Error, Kind, Result};

/// What a loader does about a bad sample: one whose bytes are not what the index says, also when they are read a second time; that does not
/// parse; or whose object is gone, truncated or replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The batch that needs it is an error.
    #[default]
    Fail,
    /// Its row is left out of its batch, and it is reported by [`Loader::quarantine`](super::Loader::quarantine). Nothing else changes: all other
    /// samples keep their places, and every rank has as many batches as before.
    Skip {
        /// The most samples that may be left out in an epoch by a rank; one more is an error.
        limit: u64,
    },
}

impl OnError {
    /// Leaves out at most 1,000 samples in an epoch.
    pub const fn skip() -> Self {
        OnError::Skip { limit: 1000 }
    }

    /// Whether a read that failed in this way spoils its samples alone. What the link did, or the credentials, is never skipped: it says nothing of
    /// a sample.
    pub(super) fn skips(self, error: &Error) -> bool {
        self != OnError::Fail && error.is_in_object()
    }
}

/// A bad sample, or all samples of a bad shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    /// URL or path of the shard, without secrets. Where a list is applied, the last components that tell it from the others are enough.
    pub shard: String,
    /// Key of the sample; without one all samples of the shard are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Number of the sample in its shard, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// The field that was found to be bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// First byte of that field in the shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// Bytes of that field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What is wrong with it.
    #[serde(default)]
    pub reason: String,
}

impl Quarantined {
    pub(super) fn new(dataset: &Dataset, sample: SampleId, field: &str, extent: Option<Extent>, error: &Error) -> Self {
        let (shard, number) = dataset.shard_of(sample).unzip();
        let shard = shard.and_then(|shard| dataset.shards().get(shard as usize));
        Quarantined {
            shard: shard.map_or_else(String::new, |shard| shard.url.clone()),
            key: Some(dataset.key(sample).into_owned()),
            number,
            field: Some(field.to_owned()),
            start: extent.map(|extent| extent.start),
            bytes: extent.map(|extent| extent.len),
            reason: error.summary(),
        }
    }

    fn named(&self) -> Named<'_> {
        Named { shard: &self.shard, key: self.key.as_deref(), number: self.number }
    }
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "sample {key} of {}", self.shard)?,
            None => write!(f, "all samples of {}", self.shard)?,
        }
        if let Some(field) = &self.field {
            write!(f, ", field '{field}'")?;
        }
        if let (Some(start), Some(bytes)) = (self.start, self.bytes) {
            write!(f, ", bytes {start}..{}", start.saturating_add(bytes))?;
        }
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {}", self.reason) }
    }
}

/// Samples that were found bad, or that are to be left out from the start ([`LoaderBuilder::quarantine`](super::LoaderBuilder::quarantine)).
///
/// Its text form is one line of JSON for each: `to_json_lines`, and back by `parse` or [`Quarantine::read`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Quarantine {
    entries: Vec<Quarantined>,
    more: u64,
}

/// Entries that a loader's report holds; further ones are counted.
const ENTRIES_MAX: usize = 1000;
/// The largest list that is read from a file: some million lines.
const FILE_BYTES_MAX: u64 = 1 << 30;

impl Quarantine {
    /// The entries: of a loader's report the first 1,000.
    pub fn entries(&self) -> &[Quarantined] {
        &self.entries
    }

    /// Samples that were found beyond those listed: counted once for each epoch. `farfeed verify` lists all.
    pub fn more(&self) -> u64 {
        self.more
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.more == 0
    }

    /// One line of JSON for each entry.
    pub fn to_json_lines(&self) -> String {
        self.entries.iter().map(|entry| format!("{}\n", serde_json::json!(entry))).collect()
    }

    /// Reads a file of such lines. Empty lines are passed over.
    ///
    /// # Errors
    /// `NotFound` or `Io` where there is no such file; `Config` for a line that is not an entry, with its number.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error: std::io::Error| {
            let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Io };
            Error::new(kind, format!("{}: reading the quarantine list", path.display())).source(error)
        };
        let bytes = std::fs::metadata(path).map_err(failed)?.len();
        if bytes > FILE_BYTES_MAX {
            let what = format!("{}: {bytes} bytes, a quarantine list has at most {FILE_BYTES_MAX}", path.display());
            return Err(Error::new(Kind::Unsupported, what));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        text.parse().map_err(|error: Error| error.within(path.display()))
    }

    /// The samples that are meant, in ascending order, and how many entries are of shards that the dataset does not have.
    pub(super) fn find_in(&self, dataset: &Dataset) -> Result<(Vec<SampleId>, usize)> {
        dataset.find(self.entries.iter().map(Quarantined::named)).map_err(|error| error.within("quarantine"))
    }
}

impl FromStr for Quarantine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parse = |(number, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| {
                Error::new(Kind::Config, format!("line {} is no entry of a quarantine list", number + 1))
                    .source(error)
                    .advice(r#"write {"shard": "train-0001.tar", "key": "0001/000007"}"#)
            })
        };
        Ok(Quarantine { entries: lines.map(parse).collect::<Result<_>>()?, more: 0 })
    }
}

impl Extend<Quarantined> for Quarantine {
    /// Adds entries, without a bound.
    fn extend<I: IntoIterator<Item = Quarantined>>(&mut self, entries: I) {
        self.entries.extend(entries);
    }
}

impl FromIterator<Quarantined> for Quarantine {
    fn from_iter<I: IntoIterator<Item = Quarantined>>(entries: I) -> Self {
        Quarantine { entries: entries.into_iter().collect(), more: 0 }
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing in quarantine");
        }
        for (number, entry) in self.entries.iter().enumerate() {
            let line_end = if number > 0 { "\n" } else { "" };
            write!(f, "{line_end}{entry}")?;
        }
        if self.more > 0 { write!(f, "\nand {} more", self.more) } else { Ok(()) }
    }
}

/// What a loader has left out so far.
#[derive(Debug)]
pub(super) struct Ledger {
    on_error: OnError,
    /// Those that the report lists, from the front: room for all of them, made for the first one. They are read without a lock, which in a
    /// forked child somebody might hold who is not there.
    entries: OnceLock<Box<[OnceLock<Quarantined>]>>,
    more: AtomicU64,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// Those in the report's list.
    listed: HashSet<SampleId>,
    epoch: u64,
    /// Those left out in this epoch; a run that begins again finds them again.
    in_epoch: HashSet<SampleId>,
}

impl Ledger {
    pub(super) fn new(on_error: OnError) -> Self {
        Ledger { on_error, entries: OnceLock::new(), more: AtomicU64::new(0), found: Mutex::default() }
    }

    pub(super) fn on_error(&self) -> OnError {
        self.on_error
    }

    pub(super) fn list(&self) -> Quarantine {
        let entries = self.entries.get().into_iter().flatten();
        Quarantine {
            entries: entries.map_while(OnceLock::get).cloned().collect(),
            more: self.more.load(Ordering::Relaxed),
        }
    }

    /// Notes that a sample is left out.
    ///
    /// # Errors
    /// What is wrong with it, where it may not be.
    pub(super) fn leave_out(&self, epoch: u64, sample: SampleId, entry: Quarantined, error: Error) -> Result<()> {
        let OnError::Skip { limit } = self.on_error else { return Err(error) };
        let mut found = lock(&self.found);
        if found.epoch != epoch {
            found.epoch = epoch;
            found.in_epoch.clear();
        }
        if found.in_epoch.contains(&sample) {
            return Ok(());
        }
        if found.in_epoch.len() as u64 >= limit {
            let what =
                format!("{limit} bad samples of epoch {epoch} are left out, which is the limit, and here is another");
            return Err(error.within(what));
        }
        found.in_epoch.insert(sample);
        let number = found.listed.len();
        if number >= ENTRIES_MAX {
            self.more.fetch_add(u64::from(!found.listed.contains(&sample)), Ordering::Relaxed);
        } else if found.listed.insert(sample) {
            let room = || std::iter::repeat_with(OnceLock::new).take(ENTRIES_MAX).collect();
            let _ = self.entries.get_or_init(room)[number].set(entry);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> Quarantined {
        Quarantined {
            shard: "http://h/a.tar".into(),
            key: Some(key.into()),
            number: Some(3),
            field: Some("jpg".into()),
            start: Some(512),
            bytes: Some(100),
            reason: "crc32c is 1".into(),
        }
    }

    fn bad() -> Error {
        Error::new(Kind::Corrupt, "x")
    }

    #[test]
    fn a_list_reads_back_as_it_was_written() {
        let mut list: Quarantine = [entry("\"k\"\n"), entry("l")].into_iter().collect();
        let whole = Quarantined { key: None, number: None, field: None, start: None, bytes: None, ..entry("") };
        list.extend([whole]);
        let text = list.to_json_lines();
        assert_eq!(text.lines().count(), 3);
        assert_eq!(text.parse::<Quarantine>().unwrap(), list);
        let by_hand: Quarantine = "\n{\"shard\": \"a.tar\", \"key\": \"k\"}\n\n".parse().unwrap();
        assert_eq!((by_hand.entries()[0].key.as_deref(), by_hand.entries().len()), (Some("k"), 1));
        for wrong in ["{}", "{\"shard\": \"a\", \"keys\": \"k\"}", "a.tar k", "{\"shard\": 1}"] {
            let error = format!("{{\"shard\": \"a\"}}\n{wrong}").parse::<Quarantine>().unwrap_err();
            assert!(error.kind() == Kind::Config && error.to_string().contains("line 2"), "{error}");
        }
    }

    #[test]
    fn a_list_reads_as_sentences() {
        let list: Quarantine = [entry("k")].into_iter().collect();
        assert_eq!(list.to_string(), "sample k of http://h/a.tar, field 'jpg', bytes 512..612: crc32c is 1");
        assert_eq!(Quarantine::default().to_string(), "nothing in quarantine");
    }

    #[test]
    fn a_limit_counts_samples_of_an_epoch() {
        let ledger = Ledger::new(OnError::Skip { limit: 2 });
        for (epoch, sample) in [(0, 5), (0, 6), (0, 5), (1, 5), (1, 7)] {
            ledger.leave_out(epoch, sample, entry("k"), bad()).unwrap();
        }
        let error = ledger.leave_out(1, 8, entry("k"), bad()).unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("2 bad samples of epoch 1"), "{error}");
        assert_eq!((ledger.list().entries().len(), ledger.list().more()), (3, 0));
        assert!(Ledger::new(OnError::Fail).leave_out(0, 1, entry("k"), bad()).is_err());
    }

    /// The lock is held when the child is forked, and nobody lets go of it there.
    #[test]
    fn a_forked_child_reads_the_report_without_waiting() {
        let ledger = Ledger::new(OnError::skip());
        assert!(ledger.list().is_empty());
        ledger.leave_out(0, 7, entry("k"), bad()).unwrap();
        let held = lock(&ledger.found);
        let answer =
            farfeed_driver_double::in_a_child(std::time::Duration::from_secs(20), || ledger.list().to_string());
        assert_eq!(answer, Ok(ledger.list().to_string()));
        drop(held);
    }

    #[test]
    fn a_report_has_a_bound() {
        let ledger = Ledger::new(OnError::Skip { limit: u64::MAX });
        (0..1200).for_each(|sample| ledger.leave_out(0, sample, entry("k"), bad()).unwrap());
        let list = ledger.list();
        assert_eq!((list.entries().len(), list.more()), (1000, 200));
        assert!(list.to_string().ends_with("\nand 200 more"));
    }
}
