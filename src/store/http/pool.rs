//! Idle connections of one reactor.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::url::Authority;

/// Connections without a request, the one used last at the back. Never more than `cap`, none older than `age`.
#[derive(Debug)]
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    cap: usize,
    age: Duration,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// An empty pool.
    pub(super) fn new(cap: usize, age: Duration) -> Self {
        Pool { idle: Mutex::default(), cap, age }
    }

    /// The connection to `authority` that was used last and still seems open. Last used first: its congestion window is the
    /// warmest, and those that are not needed grow old.
    pub(super) fn take(&self, authority: &Authority) -> Option<Connection> {
        let runtime = tokio::runtime::Handle::current().id();
        let mut idle = self.fresh();
        while let Some(at) = idle.iter().rposition(|idle| idle.connection.suits(authority, runtime)) {
            let Some(Idle { connection, .. }) = idle.remove(at) else { break };
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request; the oldest one goes when there are too many.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.fresh();
        if idle.len() >= self.cap {
            idle.pop_front();
        }
        if self.cap > 0 {
            idle.push_back(Idle { connection, since: Instant::now() });
        }
    }

    /// Connections kept.
    pub(super) fn len(&self) -> usize {
        self.fresh().len()
    }

    /// The idle connections without those that servers are likely to have closed.
    fn fresh(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while idle.front().is_some_and(|idle| idle.since.elapsed() >= self.age) {
            idle.pop_front();
        }
        idle
    }
}
