//! The way that a read's requests have taken so far.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4;

/// How far the newest request for a read has come, and where the read's requests have been: the next one goes elsewhere where it can.
/// Shared by the store, which notes, and by whoever waits for the read.
#[derive(Debug, Default)]
pub struct Route(Mutex<Way>);

#[derive(Clone, Debug, Default)]
struct Way {
    /// The newest at the back.
    addresses: Vec<SocketAddr>,
    sent: Option<Instant>,
    first_byte: Option<Duration>,
    /// The connection at the newest address brought nothing for too long.
    hangs: bool,
}

impl Route {
    /// The way of one more request for the same bytes: it avoids the same addresses.
    #[must_use]
    pub fn fork(&self) -> Self {
        let addresses = self.way().addresses.clone();
        Route(Mutex::new(Way { addresses, ..Way::default() }))
    }

    /// A request has gone out to this address.
    pub fn sent(&self, address: SocketAddr) {
        let mut way = self.way();
        way.addresses.retain(|known| *known != address);
        if way.addresses.len() == ADDRESSES_MAX {
            way.addresses.remove(0);
        }
        way.addresses.push(address);
        (way.sent, way.first_byte) = (Some(Instant::now()), None);
    }

    /// Its answer has begun.
    pub fn answered(&self) {
        let mut way = self.way();
        way.first_byte = way.sent.map(|sent| sent.elapsed());
    }

    /// The newest request was given up because nothing came, or too little.
    pub fn hangs(&self) {
        let mut way = self.way();
        way.hangs = way.sent.is_some();
    }

    /// Another request begins; gives the address that the last one hung at, once, and the addresses to avoid.
    pub fn begin(&self) -> (Option<SocketAddr>, Vec<SocketAddr>) {
        let mut way = self.way();
        (way.sent, way.first_byte) = (None, None);
        let hung = std::mem::take(&mut way.hangs).then(|| way.addresses.last().copied()).flatten();
        (hung, way.addresses.clone())
    }

    /// The time since the newest request went out, `None` if it has not yet; and that from then to its answer, `None` before it.
    pub fn progress(&self) -> (Option<Duration>, Option<Duration>) {
        let way = self.way();
        (way.sent.map(|sent| sent.elapsed()), way.first_byte)
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::{Landing, Slab};
    use crate::store::{
        Appetite, Arrival, Fault, FaultStore, ObjectMeta, ReadRequest, Store, StoreFuture, Throttle, ThrottleStore,
        any_way,
    };

    /// Two addresses, the first of which is taken unless a read has been there.
    #[derive(Debug)]
    struct TwoWays;

    fn way(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 80))
    }

    impl Store for TwoWays {
        fn root(&self) -> &str {
            "two:"
        }

        fn appetite(&self) -> Appetite {
            Appetite { request_bytes: 1 << 20, requests: 1, gap_bytes: 0, alignment: 1 }
        }

        fn head<'a>(&'a self, _: &'a str) -> StoreFuture<'a, ObjectMeta> {
            Box::pin(std::future::ready(Ok(ObjectMeta { size: 1 << 20, version: None })))
        }

        fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
            any_way(self, request, landing)
        }

        fn read_by<'a>(
            &'a self,
            _: &'a ReadRequest,
            landing: &'a mut Landing,
            route: &'a Route,
        ) -> StoreFuture<'a, Arrival> {
            let (_, avoided) = route.begin();
            let taken = if avoided.contains(&way(1)) { 2 } else { 1 };
            route.sent(way(taken));
            route.answered();
            landing.push(&vec![taken; landing.remaining()]);
            Box::pin(std::future::ready(Ok(Arrival::default())))
        }

        fn hedges(&self) -> bool {
            true
        }

        fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
            self
        }
    }

    #[test]
    fn decorators_pass_it_on() {
        const BYTES: usize = 200_000;
        let throttle = Throttle { latency: Duration::ZERO, bytes_per_second: 0, requests: 0 };
        let stores: [Arc<dyn Store>; 3] = [
            FaultStore::scripted(Arc::new(TwoWays), []),
            FaultStore::scripted(Arc::new(TwoWays), [(0, Fault::Flip { at: BYTES }), (1, Fault::OtherVersion)]),
            ThrottleStore::new(Arc::new(TwoWays), throttle),
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let slab = Slab::new(256 << 10, 64 << 10).unwrap();
        let request = ReadRequest { key: "a".into(), start: 0, size: None, version: None };
        for store in stores {
            let store = store.per_reactor();
            let (first, read) = (Route::default(), |route: &Route| {
                let mut landing = Landing::new(slab.take(4).unwrap(), BYTES);
                runtime.block_on(store.read_by(&request, &mut landing, route)).unwrap();
                let landed = landing.landed().unwrap();
                let taken = landed.slices(0, BYTES).next().unwrap()[0];
                assert!(landed.slices(0, BYTES).flatten().all(|byte| *byte == taken), "{store:?} wandered");
                taken
            });
            assert_eq!(read(&first), 1, "{store:?}");
            assert!(matches!(first.progress(), (Some(_), Some(_))), "{store:?} does not say how far it is");
            assert_eq!(read(&first.fork()), 2, "{store:?} does not avoid where the first one went");
        }
    }

    #[test]
    fn remembers_where_it_was_and_tells_once_where_it_hung() {
        let address = |n: u8| SocketAddr::from(([127, 0, 0, n], 80));
        let route = Route::default();
        route.hangs();
        assert_eq!(route.begin(), (None, vec![]), "nothing was sent");
        for n in 1..=6 {
            route.sent(address(n));
        }
        route.sent(address(4));
        route.answered();
        assert!(matches!(route.progress(), (Some(_), Some(_))));
        let fork = route.fork();
        assert_eq!(fork.progress(), (None, None));
        route.hangs();
        let avoided = vec![address(3), address(5), address(6), address(4)];
        assert_eq!(route.begin(), (Some(address(4)), avoided.clone()));
        assert_eq!(route.begin(), (None, avoided.clone()));
        assert_eq!(fork.begin(), (None, avoided));
    }
}
