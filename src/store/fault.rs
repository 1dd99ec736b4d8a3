//! A store that fails as told, for tests of whoever reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{
    Appetite, Arrival, ConnectCost, ObjectEntry, ObjectMeta, ReadRequest, Route, Store, StoreFuture, any_way, changed,
};
use crate::dataset::Version;
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// What goes wrong with a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails before its first byte.
    Fail {
        /// Kind of the error.
        kind: Kind,
        /// Whether the error says that asking again may help.
        transient: bool,
    },
    /// It ends with a transient error after this many bytes; they count as landed. Without effect when fewer are wanted.
    Cut {
        /// Bytes that land.
        after: usize,
    },
    /// It rests after this many bytes, for a time or for ever, and then goes on.
    Stall {
        /// Bytes that land before.
        after: usize,
        /// How long; `None` is for ever.
        rest: Option<Duration>,
    },
    /// It succeeds, but this byte of what it was asked for, counted from 0, has all its bits inverted. Without effect when fewer are wanted.
    Flip {
        /// Which byte.
        at: usize,
    },
    /// The object has another version than before. Without effect on a read that expects none and does not look at it.
    OtherVersion,
}

/// Decorates a store with faults that depend on nothing but the number of a read: 0 is the first that is made.
///
/// Needs a tokio runtime with time only for a [`Fault::Stall`] that ends.
#[derive(Debug)]
pub struct FaultStore {
    inner: Arc<dyn Store>,
    script: Script,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    faults: AtomicU64,
}

#[derive(Clone, Debug)]
enum Script {
    ByNumber(Arc<BTreeMap<u64, Fault>>),
    Seeded { seed: u64, per_mille: u64, faults: Arc<[Fault]> },
}

impl FaultStore {
    /// Faults for the reads with these numbers.
    pub fn scripted(inner: Arc<dyn Store>, faults: impl IntoIterator<Item = (u64, Fault)>) -> Arc<Self> {
        Self::with(inner, Script::ByNumber(Arc::new(faults.into_iter().collect())))
    }

    /// One of `faults` for about `per_mille` of 1000 reads; which, follows from the seed.
    pub fn seeded(
        inner: Arc<dyn Store>,
        seed: u64,
        per_mille: u32,
        faults: impl IntoIterator<Item = Fault>,
    ) -> Arc<Self> {
        let faults = faults.into_iter().collect();
        Self::with(inner, Script::Seeded { seed, per_mille: per_mille.into(), faults })
    }

    /// Reads made so far, through all stores that [`Store::per_reactor`] gave.
    pub fn reads(&self) -> u64 {
        self.counts.reads.load(Ordering::Relaxed)
    }

    /// Reads so far with which something went wrong.
    pub fn faults(&self) -> u64 {
        self.counts.faults.load(Ordering::Relaxed)
    }

    fn with(inner: Arc<dyn Store>, script: Script) -> Arc<Self> {
        Arc::new(FaultStore { inner, script, counts: Arc::default() })
    }

    async fn broken(&self, request: &ReadRequest, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let number = self.counts.reads.fetch_add(1, Ordering::Relaxed);
        let Some(fault) = self.script.fault(number) else { return self.inner.read_by(request, landing, route).await };
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        let place = || format!("{}{}: read {number}", self.root(), request.key);
        match fault {
            Fault::Fail { kind, transient } => {
                let error = Error::new(kind, format!("{}: a fault on purpose", place()));
                Err(if transient { error.transient() } else { error })
            }
            Fault::Cut { after } => {
                let arrival = self.first(request, landing, after, route).await?;
                match landing.remaining() {
                    0 => Ok(arrival),
                    left => {
                        Err(Error::new(Kind::Io, format!("{}: cut on purpose, {left} bytes early", place()))
                            .transient())
                    }
                }
            }
            Fault::Stall { after, rest } => {
                let mut first = Arrival::default();
                if after > 0 {
                    first = self.first(request, landing, after, route).await?;
                }
                match rest {
                    Some(rest) => tokio::time::sleep(rest).await,
                    None => std::future::pending().await,
                }
                let arrival = self.inner.read_by(request, landing, route).await?;
                Ok(Arrival { copied: first.copied + arrival.copied, ..arrival })
            }
            Fault::Flip { at } => {
                let arrival = self.inner.read_by(request, landing, route).await?;
                let at = landing.lead() + at;
                if at < landing.lead() + landing.filled() {
                    let (lead, page_bytes) = (landing.lead(), landing.page_bytes());
                    let mut pages = landing.take_pages();
                    pages[at / page_bytes][at % page_bytes] ^= 0xff;
                    landing.put_pages(pages, lead);
                }
                Ok(arrival)
            }
            Fault::OtherVersion => {
                let other = Version(format!("other-{number}").into());
                if let Some(expected) = &request.version {
                    return Err(changed(self.root(), &request.key, expected, &other));
                }
                let arrival = self.inner.read_by(request, landing, route).await?;
                Ok(Arrival { version: Some(other), ..arrival })
            }
        }
    }

    async fn first(
        &self,
        request: &ReadRequest,
        landing: &mut Landing,
        bytes: usize,
        route: &Route,
    ) -> Result<Arrival> {
        let mut part = landing.shorten(bytes);
        let result = self.inner.read_by(request, &mut part, route).await;
        landing.rejoin(part);
        result
    }
}

impl Script {
    fn fault(&self, number: u64) -> Option<Fault> {
        match self {
            Script::ByNumber(faults) => faults.get(&number).cloned(),
            Script::Seeded { seed, per_mille, faults } => {
                let bits = mix(seed.wrapping_add(number));
                let hit = bits % 1000 < *per_mille && !faults.is_empty();
                hit.then(|| faults[(bits / 1000 % faults.len() as u64) as usize].clone())
            }
        }
    }
}

/// SplitMix64's step: neighbouring numbers give unrelated bits.
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

impl Store for FaultStore {
    fn root(&self) -> &str {
        self.inner.root()
    }

    fn appetite(&self) -> Appetite {
        self.inner.appetite()
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        self.inner.head(key)
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        any_way(self, request, landing)
    }

    fn read_by<'a>(
        &'a self,
        request: &'a ReadRequest,
        landing: &'a mut Landing,
        route: &'a Route,
    ) -> StoreFuture<'a, Arrival> {
        Box::pin(self.broken(request, landing, route))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectEntry>> {
        self.inner.list(prefix)
    }

    fn hedges(&self) -> bool {
        self.inner.hedges()
    }

    fn warm(&self, connections: usize) -> StoreFuture<'_, usize> {
        self.inner.warm(connections)
    }

    fn connect(&self) -> StoreFuture<'_, ConnectCost> {
        self.inner.connect()
    }

    /// Counts go on together: a read's number is its number among all.
    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        let inner = Arc::clone(&self.inner).per_reactor();
        Arc::new(FaultStore { inner, script: self.script.clone(), counts: Arc::clone(&self.counts) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slab;
    use crate::store::MemoryStore;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    fn store() -> (Arc<MemoryStore>, Vec<u8>, Slab) {
        let (store, bytes) = (MemoryStore::new(), (0..9000u32).map(|i| (i % 251) as u8).collect::<Vec<_>>());
        store.put("a", bytes.clone());
        (store, bytes, Slab::new(64 << 10, 4096).unwrap())
    }

    fn request(version: Option<Version>) -> ReadRequest {
        ReadRequest { key: "a".into(), start: 100, size: None, version }
    }

    #[test]
    fn each_fault_is_what_it_says_and_a_retry_goes_on() {
        let (inner, bytes, slab) = store();
        let fail = Fault::Fail { kind: Kind::Throttled, transient: true };
        let store = FaultStore::scripted(inner, [(0, fail), (1, Fault::Cut { after: 5000 }), (3, Fault::OtherVersion)]);
        runtime().block_on(async {
            let mut landing = Landing::new(slab.take(2).unwrap(), 8000);
            let error = store.read(&request(None), &mut landing).await.unwrap_err();
            assert!(error.kind() == Kind::Throttled && error.is_transient() && landing.filled() == 0);
            let error = store.read(&request(None), &mut landing).await.unwrap_err();
            assert!(error.kind() == Kind::Io && error.is_transient() && landing.filled() == 5000);
            store.read(&request(None), &mut landing).await.unwrap();
            let landed = landing.landed().unwrap();
            assert_eq!(landed.slices(0, 8000).collect::<Vec<_>>().concat(), bytes[100..8100]);
            let version = store.head("a").await.unwrap().version;
            let mut landing = Landing::new(slab.take(1).unwrap(), 10);
            let error = store.read(&request(version), &mut landing).await.unwrap_err();
            assert_eq!((error.kind(), store.reads(), store.faults()), (Kind::Corrupt, 4, 3));
        });
    }

    #[test]
    fn a_flip_changes_one_byte_and_says_nothing() {
        let (inner, mut bytes, slab) = store();
        let store = FaultStore::scripted(inner, [(0, Fault::Flip { at: 5000 }), (1, Fault::Flip { at: 8000 })]);
        let read = || {
            let mut landing = Landing::new(slab.take(2).unwrap(), 8000);
            runtime().block_on(store.read(&request(None), &mut landing)).unwrap();
            landing.landed().unwrap().slices(0, 8000).collect::<Vec<_>>().concat()
        };
        let (flipped, whole) = (read(), read());
        assert_eq!(whole, bytes[100..8100]);
        bytes[5100] ^= 0xff;
        assert_eq!(flipped, bytes[100..8100]);
    }

    #[test]
    fn a_stall_ends_or_not() {
        let (inner, bytes, slab) = store();
        let rest = Duration::from_millis(30);
        let stalls = [Some(rest), None].map(|rest| Fault::Stall { after: 70, rest });
        let store = FaultStore::scripted(inner, (0..).zip(stalls));
        runtime().block_on(async {
            let mut landing = Landing::new(slab.take(1).unwrap(), 100);
            let started = std::time::Instant::now();
            let arrival = store.read(&request(None), &mut landing).await.unwrap();
            assert!(started.elapsed() >= rest && arrival.copied == 100);
            assert_eq!(landing.landed().unwrap().slices(0, 100).next().unwrap(), &bytes[100..200]);
            let mut landing = Landing::new(slab.take(1).unwrap(), 100);
            let progress = landing.progress();
            let request = request(None);
            let read = store.read(&request, &mut landing);
            assert!(tokio::time::timeout(rest, read).await.is_err());
            assert_eq!(progress.load(Ordering::Relaxed), 70);
        });
    }

    #[test]
    fn a_seed_decides_which_reads_fail() {
        let failing = |seed| {
            let script = Script::Seeded { seed, per_mille: 100, faults: Arc::new([Fault::OtherVersion]) };
            (0..10_000).filter(|number| script.fault(*number).is_some()).collect::<Vec<u64>>()
        };
        assert_eq!(failing(1), failing(1));
        assert_ne!(failing(1), failing(2));
        assert!((900..1100).contains(&failing(3).len()));
    }
}
