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
    use super::*;

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
