//! A store behind a slow link, for tests and for a first guess at what a link would do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::{Appetite, Arrival, ConnectCost, ObjectEntry, ObjectMeta, ReadRequest, Route, Store, StoreFuture, any_way};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// Bytes that a read gets before the next one gets its turn: small against a request, so that requests share the rate.
const TURN_BYTES: usize = 64 << 10;

/// Limits of a [`ThrottleStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    /// From asking to the first byte, for each request.
    pub latency: Duration,
    /// Bytes per second of all reads together; 0 is no limit.
    pub bytes_per_second: u64,
    /// Requests at once; more of them wait. 0 is no limit.
    pub requests: usize,
}

/// Decorates a store with latency, a rate that all reads share, and a limit of requests at once.
///
/// Needs a tokio runtime with time. Stores that [`Store::per_reactor`] gave share the limits.
#[derive(Debug)]
pub struct ThrottleStore {
    inner: Arc<dyn Store>,
    throttle: Throttle,
    link: Arc<Link>,
}

#[derive(Debug)]
struct Link {
    /// When the link is free again; `None` before its first byte.
    free_at: Mutex<Option<Instant>>,
    requests: Semaphore,
}

impl ThrottleStore {
    /// Puts `inner` behind these limits.
    pub fn new(inner: Arc<dyn Store>, throttle: Throttle) -> Arc<Self> {
        let requests = if throttle.requests == 0 { Semaphore::MAX_PERMITS } else { throttle.requests };
        let requests = Semaphore::new(requests.min(Semaphore::MAX_PERMITS));
        Arc::new(ThrottleStore { inner, throttle, link: Arc::new(Link { free_at: Mutex::new(None), requests }) })
    }

    /// Runs a request when it is its turn, after the latency.
    async fn request<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        let turn = self.link.requests.acquire().await;
        let _turn = turn.map_err(|error| Error::new(Kind::Io, "a closed throttle").source(error))?;
        tokio::time::sleep(self.throttle.latency).await;
        request.await
    }

    async fn slowly(&self, request: &ReadRequest, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let mut whole: Option<Arrival> = None;
        // To whoever waits the turns are one request: the first one notes when it went out, and the others go no other way for it.
        let onward = route.fork();
        // Once at least: an empty read has its errors too.
        while whole.is_none() || landing.remaining() > 0 {
            let bytes = landing.remaining().min(TURN_BYTES);
            sleep_until(self.link.reserve(bytes, self.throttle.bytes_per_second)).await;
            let mut part = landing.shorten(bytes);
            let later = onward.fork();
            let way = if whole.is_none() { route } else { &later };
            let result = self.inner.read_by(request, &mut part, way).await;
            landing.rejoin(part);
            let arrival = result?;
            let first = whole.get_or_insert_with(|| Arrival { copied: 0, ..arrival.clone() });
            first.copied += arrival.copied;
            first.opened |= arrival.opened;
        }
        let mut arrival = whole.unwrap_or_default();
        arrival.first_byte += self.throttle.latency;
        Ok(arrival)
    }
}

impl Link {
    /// Takes the link for `bytes`; gives when the last of them is through.
    fn reserve(&self, bytes: usize, bytes_per_second: u64) -> Instant {
        let now = Instant::now();
        if bytes_per_second == 0 {
            return now;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let through = free_at.map_or(now, |free_at| free_at.max(now)) + takes;
        *free_at = Some(through);
        through
    }
}

impl Store for ThrottleStore {
    fn root(&self) -> &str {
        self.inner.root()
    }

    fn appetite(&self) -> Appetite {
        self.inner.appetite()
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        Box::pin(self.request(self.inner.head(key)))
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
        Box::pin(self.request(self.slowly(request, landing, route)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectEntry>> {
        Box::pin(self.request(self.inner.list(prefix)))
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

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        let inner = Arc::clone(&self.inner).per_reactor();
        Arc::new(ThrottleStore { inner, throttle: self.throttle, link: Arc::clone(&self.link) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slab;
    use crate::store::MemoryStore;

    /// How long `count` reads of `bytes` take together.
    fn time(throttle: Throttle, count: usize, bytes: usize) -> Duration {
        let inner = MemoryStore::new();
        inner.put("a", vec![7; bytes]);
        let store = ThrottleStore::new(inner, throttle);
        let slab = Slab::new(4 << 20, 64 << 10).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let started = Instant::now();
            let reads: Vec<_> = (0..count)
                .map(|_| {
                    let store = Arc::clone(&store);
                    let mut landing = Landing::new(slab.take(bytes.div_ceil(64 << 10)).unwrap(), bytes);
                    let read = async move {
                        let request = ReadRequest { key: "a".into(), start: 0, size: None, version: None };
                        store.read(&request, &mut landing).await.unwrap();
                        landing.landed().unwrap().slices(0, bytes).map(<[u8]>::len).sum::<usize>()
                    };
                    tokio::task::spawn(read)
                })
                .collect();
            for read in reads {
                assert_eq!(read.await.unwrap(), bytes);
            }
            started.elapsed()
        })
    }

    const FREE: Throttle = Throttle { latency: Duration::ZERO, bytes_per_second: 0, requests: 0 };

    #[test]
    fn latency_is_per_request_and_side_by_side() {
        let latency = Duration::from_millis(40);
        let took = time(Throttle { latency, ..FREE }, 8, 1000);
        assert!(took >= latency && took < latency * 6, "{took:?}");
    }

    #[test]
    fn the_rate_is_shared() {
        let took = time(Throttle { bytes_per_second: 10_000_000, ..FREE }, 4, 500_000);
        assert!(took >= Duration::from_millis(200), "{took:?}");
    }

    #[test]
    fn requests_wait_for_each_other() {
        let latency = Duration::from_millis(30);
        let took = time(Throttle { latency, requests: 2, ..FREE }, 6, 1000);
        assert!(took >= latency * 3, "{took:?}");
    }
}
