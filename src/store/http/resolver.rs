//! Names to addresses, asked for rarely and spread over.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::lookup_host;
use tokio::sync::Mutex;

use super::url::Authority;

/// Object stores answer with a few addresses of many and change them every few seconds: to ask as often spreads the load.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// Redirects may lead to many hosts; the oldest is forgotten.
const KNOWN_MAX: usize = 16;

/// The addresses of a few hosts.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    /// Held while asking, so that a burst of connections asks once.
    known: Mutex<Vec<Known>>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Known {
    authority: Arc<Authority>,
    addresses: Arc<[SocketAddr]>,
    since: Instant,
}

impl Resolver {
    /// The addresses of `authority`; there may be none.
    pub(super) async fn addresses(&self, authority: &Arc<Authority>) -> io::Result<Arc<[SocketAddr]>> {
        let mut known = self.known.lock().await;
        known.retain(|known| known.since.elapsed() < KNOWN_FOR);
        if let Some(known) = known.iter().find(|known| known.authority == *authority) {
            return Ok(Arc::clone(&known.addresses));
        }
        let addresses: Arc<[SocketAddr]> = lookup_host((authority.host.as_str(), authority.port)).await?.collect();
        if known.len() == KNOWN_MAX {
            known.remove(0);
        }
        let authority = Arc::clone(authority);
        known.push(Known { authority, addresses: Arc::clone(&addresses), since: Instant::now() });
        Ok(addresses)
    }

    /// Which address to try first: another one each time.
    pub(super) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::url::Root;
    use super::*;

    #[test]
    fn asks_once_and_forgets_the_oldest() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let resolver = Resolver::default();
            for host in 1..=KNOWN_MAX + 4 {
                let root = Root::parse(&format!("http://127.0.0.{host}:99/")).unwrap();
                let addresses = resolver.addresses(root.authority()).await.unwrap();
                assert_eq!(addresses[0].to_string(), format!("127.0.0.{host}:99"));
                assert!(Arc::ptr_eq(&addresses, &resolver.addresses(root.authority()).await.unwrap()));
            }
            assert_eq!(resolver.known.lock().await.len(), KNOWN_MAX);
            assert_ne!(resolver.turn(), resolver.turn());
        });
    }
}
