//! Names to addresses, asked for rarely and spread over.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::sync::Mutex;

use super::url::Authority;

/// Object stores answer with a few addresses of many and change them every few seconds: to ask as often spreads the load.
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// Where asking fails, the addresses known last are used for this long.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// And asking takes no longer than this, while there are any.
const LOOKUP_MAX: Duration = Duration::from_secs(1);

/// A name that never had an address is asked for again this long: services that start together do so in any order, but most such names
/// are misspelt.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);

/// Redirects may lead to many hosts; the oldest is forgotten.
const KNOWN_MAX: usize = 16;

/// An address that failed is tried last for this long.
const SHUNNED_FOR: Duration = Duration::from_secs(10);
/// So many of them are remembered.
const SHUNNED_MAX: usize = 64;

/// The addresses of a few hosts.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// Names that are answered from here.
    told: Vec<(String, Vec<SocketAddr>)>,
    /// Held while asking, so that a burst of connections asks once.
    known: Mutex<Vec<Known>>,
    /// Names without an address so far, and when they were asked for first.
    unknown: StdMutex<Vec<(Arc<Authority>, Instant)>>,
    turn: AtomicUsize,
    shunned: StdMutex<Vec<(SocketAddr, Instant)>>,
    connect_ms: AtomicU64,
}

#[derive(Debug)]
struct Known {
    authority: Arc<Authority>,
    addresses: Arc<[SocketAddr]>,
    /// When they were found, and when they were asked for last.
    found: Instant,
    asked: Instant,
}

impl Resolver {
    /// One that answers these names itself; an address of port 0 gets that of the URL.
    pub(super) fn new(told: Vec<(String, Vec<SocketAddr>)>) -> Self {
        Resolver { told, ..Resolver::default() }
    }

    /// The addresses of `authority`; there may be none. An error of the kind `NotFound` is final: the name never had any.
    pub(super) async fn addresses(&self, authority: &Arc<Authority>) -> io::Result<Arc<[SocketAddr]>> {
        if let Some((_, told)) = self.told.iter().find(|(name, _)| name.eq_ignore_ascii_case(&authority.host)) {
            let port = |address: &SocketAddr| if address.port() == 0 { authority.port } else { address.port() };
            return Ok(told.iter().map(|address| SocketAddr::new(address.ip(), port(address))).collect());
        }
        let mut known = self.known.lock().await;
        known.retain(|known| known.found.elapsed() < KEPT_FOR);
        let found = known.iter_mut().find(|known| known.authority == *authority);
        if let Some(found) = &found
            && found.asked.elapsed() < KNOWN_FOR
        {
            return Ok(Arc::clone(&found.addresses));
        }
        let asking = lookup_host((authority.host.as_str(), authority.port));
        let Some(found) = found else {
            let addresses: Arc<[SocketAddr]> = asking.await.map_err(|cause| self.unknown(authority, cause))?.collect();
            self.unknown.lock().unwrap_or_else(PoisonError::into_inner).retain(|(name, _)| name != authority);
            if known.len() == KNOWN_MAX {
                known.remove(0);
            }
            let (authority, now) = (Arc::clone(authority), Instant::now());
            known.push(Known { authority, addresses: Arc::clone(&addresses), found: now, asked: now });
            return Ok(addresses);
        };
        let answer = tokio::time::timeout(LOOKUP_MAX, asking).await;
        found.asked = Instant::now();
        if let Ok(Ok(addresses)) = answer {
            (found.addresses, found.found) = (addresses.collect(), found.asked);
        }
        Ok(Arc::clone(&found.addresses))
    }

    /// What a failed look-up of a name without known addresses means.
    fn unknown(&self, authority: &Arc<Authority>, cause: io::Error) -> io::Error {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        match unknown.iter().find(|(name, _)| name == authority) {
            Some((_, since)) if since.elapsed() >= UNKNOWN_FOR => io::Error::new(io::ErrorKind::NotFound, cause),
            Some(_) => cause,
            None => {
                if unknown.len() == KNOWN_MAX {
                    unknown.remove(0);
                }
                unknown.push((Arc::clone(authority), Instant::now()));
                cause
            }
        }
    }

    /// `addresses` in the order to try them: another one first each time; those to avoid behind the others, and those that failed lately
    /// last.
    pub(super) fn in_turn(&self, addresses: &[SocketAddr], avoid: &[SocketAddr]) -> Vec<SocketAddr> {
        self.order(addresses, avoid, self.turn.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn order(&self, addresses: &[SocketAddr], avoid: &[SocketAddr], turn: usize) -> Vec<SocketAddr> {
        let mut order = addresses.to_vec();
        order.rotate_left(turn % addresses.len().max(1));
        let mut shunned = self.shunned();
        let place = |address: &SocketAddr| {
            (
                shunned.iter().any(|(bad, since)| bad == address && since.elapsed() < SHUNNED_FOR),
                avoid.contains(address),
            )
        };
        order.sort_by_cached_key(place);
        // One connection finds out whether a forgiven address answers again, and not all that are opened at that moment.
        if let Some((_, since)) = order.first().and_then(|first| shunned.iter_mut().find(|(bad, _)| bad == first)) {
            *since = Instant::now();
        }
        order
    }

    /// An address refused, did not answer, or let a request hang.
    pub(super) fn failed(&self, address: SocketAddr) {
        let mut shunned = self.shunned();
        shunned.retain(|(bad, _)| *bad != address);
        if shunned.len() == SHUNNED_MAX {
            shunned.remove(0);
        }
        shunned.push((address, Instant::now()));
    }

    /// A connection to an address took so long.
    pub(super) fn answered(&self, address: SocketAddr, took: Duration) {
        self.connect_ms.store(took.as_millis() as u64, Ordering::Relaxed);
        self.shunned().retain(|(bad, _)| *bad != address);
    }

    /// What connecting took last; zero before that.
    pub(super) fn last_connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms.load(Ordering::Relaxed))
    }

    fn shunned(&self) -> MutexGuard<'_, Vec<(SocketAddr, Instant)>> {
        self.shunned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::url::Root;
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn address(n: usize) -> SocketAddr {
        format!("127.0.0.{n}:99").parse().unwrap()
    }

    #[test]
    fn asks_once_and_forgets_the_oldest() {
        run(async {
            let resolver = Resolver::default();
            for host in 1..=KNOWN_MAX + 4 {
                let root = Root::parse(&format!("http://127.0.0.{host}:99/")).unwrap();
                let addresses = resolver.addresses(root.authority()).await.unwrap();
                assert_eq!(*addresses, [address(host)]);
                assert!(Arc::ptr_eq(&addresses, &resolver.addresses(root.authority()).await.unwrap()));
            }
            assert_eq!(resolver.known.lock().await.len(), KNOWN_MAX);
        });
    }

    #[test]
    fn a_name_that_cannot_be_looked_up_keeps_its_addresses() {
        run(async {
            let resolver = Resolver::default();
            // A name that no resolver answers.
            let root = Root::parse("http://nowhere.invalid:99/").unwrap();
            assert!(resolver.addresses(root.authority()).await.is_err());
            let found = Instant::now().checked_sub(KNOWN_FOR * 2).unwrap();
            let authority = Arc::clone(root.authority());
            resolver.known.lock().await.push(Known { authority, addresses: [address(1)].into(), found, asked: found });
            let addresses = resolver.addresses(root.authority()).await.unwrap();
            assert_eq!(*addresses, [address(1)]);
            let asked = resolver.known.lock().await[0].asked;
            assert!(Arc::ptr_eq(&addresses, &resolver.addresses(root.authority()).await.unwrap()));
            assert_eq!(resolver.known.lock().await[0].asked, asked, "not for each connection anew");
        });
    }

    #[test]
    fn a_name_that_never_had_an_address_is_given_up() {
        run(async {
            let resolver = Resolver::default();
            let root = Root::parse("http://nowhere.invalid:99/").unwrap();
            let authority = Arc::clone(root.authority());
            let kind = async || resolver.addresses(&authority).await.unwrap_err().kind();
            assert_ne!(kind().await, io::ErrorKind::NotFound);
            assert_ne!(kind().await, io::ErrorKind::NotFound, "the name server may be starting");
            resolver.unknown.lock().unwrap()[0].1 = Instant::now().checked_sub(UNKNOWN_FOR).unwrap();
            assert_eq!(kind().await, io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn names_are_answered_as_told() {
        run(async {
            let resolver = Resolver::new(vec![("Data.Test".into(), vec![address(1), "127.0.0.2:0".parse().unwrap()])]);
            let root = Root::parse("http://data.test:77/").unwrap();
            let addresses = resolver.addresses(root.authority()).await.unwrap();
            assert_eq!(*addresses, [address(1), "127.0.0.2:77".parse().unwrap()]);
        });
    }

    #[test]
    fn goes_round_and_shuns_what_failed() {
        let resolver = Resolver::default();
        let all: Vec<_> = (1..=3).map(address).collect();
        let firsts: Vec<_> = (0..6).map(|_| resolver.in_turn(&all, &[])[0]).collect();
        assert_eq!(firsts, [1, 2, 3, 1, 2, 3].map(address));
        assert_eq!(resolver.order(&all, &[address(1)], 0), [2, 3, 1].map(address));
        resolver.failed(address(2));
        assert_eq!(
            resolver.order(&all, &[address(1)], 0),
            [3, 1, 2].map(address),
            "better one to avoid than one that failed"
        );
        resolver.answered(address(2), Duration::ZERO);
        assert_eq!(resolver.order(&all, &[], 0), all);
        // Forgiven, for one connection; if that hangs, the others have gone elsewhere.
        resolver.shunned().push((address(1), Instant::now().checked_sub(SHUNNED_FOR).unwrap()));
        assert_eq!(resolver.order(&all, &[], 0)[0], address(1));
        assert_eq!(resolver.order(&all, &[], 0)[0], address(2));
        (0..200).for_each(|n| resolver.failed(address(n)));
        assert_eq!(resolver.shunned().len(), SHUNNED_MAX);
        assert_eq!(resolver.order(&[], &[], 7), []);
    }
}
