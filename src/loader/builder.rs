//! What a user says before anything is read.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::column::Field;
use super::indexing::{IndexProgress, OnIndexProgress};
use super::opened::open;
use super::quarantine::{OnError, Quarantine};
use super::{Loader, source::Stores};
use crate::dataset::{Dtype, shown};
use crate::device::Device;
use crate::error::{Error, Kind, Result};
use crate::fetch::{Hedge, RetryPolicy};
use crate::order::{Shuffle, State};
use crate::store::{ClientCertificate, Store, TlsOptions};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    /// So many times 2²⁰ bytes.
    pub const fn mib(mib: u64) -> Self {
        ByteSize(mib << 20)
    }

    /// So many times 2³⁰ bytes.
    pub const fn gib(gib: u64) -> Self {
        ByteSize(gib << 30)
    }

    /// In bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The next size that reads as what it is: whole MiB, or KiB below one.
    pub(super) fn rounded_up(self) -> Self {
        let unit: u64 = if self.0 < 1 << 20 { 1 << 10 } else { 1 << 20 };
        ByteSize(self.0.checked_next_multiple_of(unit).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1024 => write!(f, "{} bytes", self.0),
            1024..0x10_0000 => write!(f, "{:.1} KiB", self.0 as f64 / f64::from(1 << 10)),
            _ => write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20)),
        }
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    /// `4GiB`, `512MiB`, `64KiB`, `1GB`, `250MB`, `10KB`, or a bare number of bytes.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim() {
            "" | "B" => Some(1.0),
            "KB" | "kB" => Some(1e3),
            "MB" => Some(1e6),
            "GB" => Some(1e9),
            "TB" => Some(1e12),
            "KiB" => Some(1024.0),
            "MiB" => Some(1024f64.powi(2)),
            "GiB" => Some(1024f64.powi(3)),
            "TiB" => Some(1024f64.powi(4)),
            _ => None,
        };
        match (number.parse::<f64>(), factor) {
            (Ok(number), Some(factor)) if number * factor < 2f64.powi(60) => Ok(ByteSize((number * factor) as u64)),
            _ => Err(Error::new(Kind::Config, format!("'{text}' is not a size")).advice("write 4GiB, 512MiB or bytes")),
        }
    }
}

/// What [`LoaderBuilder::build`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildStep {
    /// The store: which shards there are, their sizes, their index.
    Store,
    /// So much host memory; for a GPU it is made resident and page-locked now, which takes seconds where there is much of it.
    Memory(ByteSize),
}

/// Called when building takes its next step.
pub(super) type OnBuildStep = Arc<dyn Fn(BuildStep) + Send + Sync>;

/// How token files are cut into samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub(super) dtype: Dtype,
    pub(super) tokens: usize,
    pub(super) overlap: usize,
    pub(super) widen: Option<Dtype>,
}

impl Tokens {
    /// Samples of `tokens` tokens, one after the other: a batch is `[B, T]`.
    pub fn new(dtype: Dtype, tokens: usize) -> Self {
        Tokens { dtype, tokens, overlap: 0, widen: None }
    }

    /// Each sample also brings the first token of the next one: a batch is `[B, T + 1]`, inputs and targets in one.
    #[must_use]
    pub fn with_next(mut self) -> Self {
        self.overlap = 1;
        self
    }

    /// They travel as they are stored, and are made wider on the device: see [`Field::widen`].
    #[must_use]
    pub fn widen(mut self, to: Dtype) -> Self {
        self.widen = Some(to);
        self
    }
}

/// Options of a [`Loader`]; each has a default. See [`Loader::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct LoaderBuilder {
    pub(super) patterns: Vec<String>,
    pub(super) stores: Vec<Arc<dyn Store>>,
    pub(super) store_options: Vec<(String, String)>,
    pub(super) fields: Vec<(String, Field)>,
    pub(super) tokens: Option<Tokens>,
    pub(super) index: Option<String>,
    pub(super) on_index: OnIndexProgress,
    pub(super) on_step: OnBuildStep,
    pub(super) batch_size: u32,
    pub(super) drop_last: bool,
    pub(super) shuffle: Shuffle,
    pub(super) shrink_window: bool,
    pub(super) lanes: Option<u32>,
    pub(super) rank: u32,
    pub(super) world_size: u32,
    pub(super) epochs: Option<u64>,
    pub(super) state: Option<State>,
    pub(super) device: Device,
    pub(super) batches_ahead: usize,
    pub(super) device_memory: Option<ByteSize>,
    pub(super) host_memory: Option<ByteSize>,
    pub(super) page_size: Option<ByteSize>,
    pub(super) block_bytes: ByteSize,
    pub(super) requests: Option<usize>,
    pub(super) in_flight: Option<ByteSize>,
    pub(super) max_rate: Option<ByteSize>,
    pub(super) policy: RetryPolicy,
    pub(super) verify: bool,
    pub(super) on_error: OnError,
    pub(super) quarantine: Quarantine,
    pub(super) trace_spans: usize,
    pub(super) patience: Duration,
    pub(super) tls: TlsOptions,
}

impl LoaderBuilder {
    pub(super) fn new(pattern: String) -> Self {
        LoaderBuilder {
            patterns: vec![pattern],
            stores: Vec::new(),
            store_options: Vec::new(),
            fields: Vec::new(),
            tokens: None,
            index: None,
            on_index: Arc::new(|_: IndexProgress| {}),
            on_step: Arc::new(|_: BuildStep| {}),
            batch_size: 1,
            drop_last: false,
            shuffle: Shuffle::none(),
            shrink_window: false,
            lanes: None,
            rank: 0,
            world_size: 1,
            epochs: None,
            state: None,
            device: Device::host(),
            batches_ahead: 2,
            device_memory: None,
            host_memory: None,
            page_size: None,
            block_bytes: ByteSize::mib(4),
            requests: None,
            in_flight: None,
            max_rate: None,
            policy: RetryPolicy::default(),
            verify: true,
            on_error: OnError::Fail,
            quarantine: Quarantine::default(),
            trace_spans: 0,
            patience: Duration::from_secs(600),
            tls: TlsOptions::default(),
        }
    }

    /// More shards, behind those named so far.
    pub fn and(mut self, pattern: impl Into<String>) -> Self {
        self.patterns.push(pattern.into());
        self
    }

    /// A store of the caller's own: it serves the URLs that begin with its root.
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.stores.push(store);
        self
    }

    /// An option of the stores that are opened by URL, such as `region`, `endpoint`, `access_key_id` or `proxy_url`: see
    /// [`ObjectOptions`](crate::store::ObjectOptions) for the names. What is set here counts before what the environment says.
    pub fn store_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.store_options.push((key.into(), value.into()));
        self
    }

    /// A field to be delivered, in this order. Without any, all fields are delivered: as arrays where the format fixes type and
    /// shape, else as bytes.
    pub fn field(mut self, name: impl Into<String>, field: Field) -> Self {
        self.fields.push((name.into(), field));
        self
    }

    /// How `.bin` files (and one-dimensional `.npy` files) of tokens are cut into samples.
    pub fn tokens(mut self, tokens: Tokens) -> Self {
        self.tokens = Some(tokens);
        self
    }

    /// Where the index of the tar shards is. Default: beside them, and where there is none it is made on the fly.
    pub fn index(mut self, url: impl Into<String>) -> Self {
        self.index = Some(url.into());
        self
    }

    /// Called while an index is made on the fly, which reads every byte once.
    pub fn on_index_progress(mut self, progress: impl Fn(IndexProgress) + Send + Sync + 'static) -> Self {
        self.on_index = Arc::new(progress);
        self
    }

    /// Called by [`LoaderBuilder::build`] before each step that may take long.
    pub fn on_build_step(mut self, step: impl Fn(BuildStep) + Send + Sync + 'static) -> Self {
        self.on_step = Arc::new(step);
        self
    }

    /// Samples per batch and rank. Default 1.
    pub fn batch_size(mut self, samples: u32) -> Self {
        self.batch_size = samples;
        self
    }

    /// Whether samples that do not fill a last global batch are left out. Default: they are delivered; every rank gets the same number of
    /// batches, and in the last one ranks may differ by one row.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.drop_last = drop_last;
        self
    }

    /// Order of the samples. Default: the dataset's own.
    pub fn shuffle(mut self, shuffle: Shuffle) -> Self {
        self.shuffle = shuffle;
        self
    }

    /// Whether a window that host memory cannot hold is made smaller instead of refused. The order then depends on host
    /// memory. Default: refused.
    pub fn shrink_window(mut self, shrink: bool) -> Self {
        self.shrink_window = shrink;
        self
    }

    /// Lanes of the global order: any world size that divides them can resume each other's states. Default: see [`crate::order`].
    pub fn lanes(mut self, lanes: u32) -> Self {
        self.lanes = Some(lanes);
        self
    }

    /// This process's rank, of `world_size`. Default 0 of 1.
    pub fn rank(mut self, rank: u32, world_size: u32) -> Self {
        (self.rank, self.world_size) = (rank, world_size);
        self
    }

    /// How many epochs there will be. Default: no end; the next epoch's first reads start before this one ends.
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.epochs = Some(epochs);
        self
    }

    /// Begins where `state` was taken, with its lanes.
    pub fn resume(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }

    /// Where batches go. Default: host memory.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Batches that are ready on the device before they are asked for. Default 2; slots are this and two more: the one the
    /// consumer holds and the one being filled.
    pub fn batches_ahead(mut self, batches: usize) -> Self {
        self.batches_ahead = batches;
        self
    }

    /// Most memory that the slots may take on the device. Default: what the largest batches need.
    pub fn device_memory(mut self, size: ByteSize) -> Self {
        self.device_memory = Some(size);
        self
    }

    /// Page-locked host memory: a hard bound. Default: a quarter of what the machine has, at most 4 GiB.
    pub fn host_memory(mut self, size: ByteSize) -> Self {
        self.host_memory = Some(size);
        self
    }

    /// Size of a page, a power of two. Default: 64 KiB to 1 MiB, following the samples' size.
    pub fn page_size(mut self, size: ByteSize) -> Self {
        self.page_size = Some(size);
        self
    }

    /// Size of a block, the run of samples that is read together. It is part of the order's definition. Default 4 MiB.
    pub fn block_size(mut self, size: ByteSize) -> Self {
        self.block_bytes = size;
        self
    }

    /// Most reads in flight, each on a connection of its own: a hard cap. Default: 256, at the cold start 192. Fewer while the store
    /// throttles.
    pub fn requests(mut self, requests: usize) -> Self {
        self.requests = Some(requests);
        self
    }

    /// Bytes in flight: a fixed depth instead of one that follows the link. It grows to this from the first batch's bytes, by a quarter
    /// with each batch that was waited for. Default: it follows the link, up to 256 reads and to what host memory has room for.
    pub fn in_flight(mut self, size: ByteSize) -> Self {
        self.in_flight = Some(size);
        self
    }

    /// The most that is asked for per second, for the sake of others on the link. Bytes that are asked for again, after a failure or
    /// by a hedge, are not counted. Default: no limit.
    pub fn max_rate(mut self, per_second: ByteSize) -> Self {
        self.max_rate = Some(per_second);
        self
    }

    /// How long to go on asking a store that fails.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Whether a request that is late is raced by a second one, or how much that may cost. Default: up to 2 % of the bytes are asked for
    /// twice. Set after [`LoaderBuilder::retry`], which says this, too.
    pub fn hedge(mut self, hedge: impl Into<Hedge>) -> Self {
        self.policy.hedge = hedge.into();
        self
    }

    /// Whether fields are checked against the digests of the index. Default: they are.
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// What to do about a sample that is bad: whose bytes are not what the index says, also when they are read a second time; that does not
    /// parse; or whose object is gone, truncated or replaced. Default: the batch that needs it is an error.
    ///
    /// What the link or the credentials do is no sample's fault and always an error, as is an object that is missing when its size or its
    /// index is first asked for.
    pub fn on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }

    /// Samples to leave out from the start: their rows are missing from the batches that they belong to, and are not read. All other samples
    /// keep their places, and saved states stay good. Give every rank the same list. Entries for other shards are passed over.
    pub fn quarantine(mut self, list: Quarantine) -> Self {
        self.quarantine = list;
        self
    }

    /// Keeps the newest `spans` spans for a timeline. Default: none.
    pub fn trace(mut self, spans: usize) -> Self {
        self.trace_spans = spans;
        self
    }

    /// How long a consumer waits for a batch before it is told that something hangs. Default 10 minutes.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// A file of certificates (PEM): `https://` servers must be certified by one of these, and not by one of the system's roots.
    pub fn ca_bundle(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls.ca_bundle = Some(path.into());
        self
    }

    /// Shown to `https://` servers that ask who we are (mutual TLS): files of the certificate with those that lead to its authority, and of
    /// its private key (PEM). They are read again when they change. Default: none.
    pub fn client_certificate(mut self, chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.tls.client_certificate = Some(ClientCertificate { chain: chain.into(), key: key.into() });
        self
    }

    /// Finds the shards and their index, checks that the sums come out, allocates, and opens connections.
    ///
    /// # Errors
    /// `Config` where options contradict each other, the dataset or host memory, naming both numbers; `NotFound` for shards, fields
    /// and indexes; `Topology` for ranks; `Device` where slots do not fit; and whatever reading the index brings.
    pub fn build(self) -> Result<Loader> {
        let mut stores = self.open_stores(self.requests.unwrap_or(256));
        open(&self, &mut stores)
    }
}

impl LoaderBuilder {
    /// Stores to open as URLs come, with `connections` each.
    pub(super) fn open_stores(&self, connections: usize) -> Stores {
        let mut stores = Stores::new(connections, self.tls.clone());
        stores.configure(&self.store_options);
        self.stores.iter().for_each(|store| stores.add(Arc::clone(store)));
        stores
    }

    /// The shards as they were named, but for secrets.
    pub(super) fn shown(&self) -> String {
        self.patterns.iter().map(|pattern| shown(pattern)).collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Debug for LoaderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderBuilder")
            .field("shards", &self.shown())
            .field("batch_size", &self.batch_size)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let parse = |text: &str| text.parse::<ByteSize>().map(ByteSize::as_bytes).ok();
        assert_eq!(parse("4GiB"), Some(4 << 30));
        assert_eq!(parse("1.5 MB"), Some(1_500_000));
        assert_eq!(parse("4096"), Some(4096));
        assert_eq!(parse("4 gigs"), None);
        assert_eq!(parse("-1"), None);
        assert_eq!(parse("9e99TB"), None);
    }

    #[test]
    fn sizes_are_written_as_people_read_them() {
        let shown = |bytes| ByteSize::bytes(bytes).to_string();
        assert_eq!((shown(7), shown(1536), shown(5 << 30)), ("7 bytes".into(), "1.5 KiB".into(), "5120.0 MiB".into()));
        let rounded = |bytes| ByteSize::bytes(bytes).rounded_up().as_bytes();
        assert_eq!((rounded(5), rounded((4 << 20) + 1), rounded(u64::MAX)), (1024, 5 << 20, u64::MAX));
    }
}
