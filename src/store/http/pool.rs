//! Idle connections of one reactor.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::url::Authority;

/// A connection that is slower than the fastest by more than this is not worth keeping.
const SLOWER_MAX: f64 = 4.0;

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

    /// An idle connection to `authority` that still seems open: the fastest, and of those without a long body so far the one used
    /// last, whose congestion window is the warmest. Those that are not needed grow old.
    pub(super) fn take(&self, authority: &Authority) -> Option<Connection> {
        let runtime = tokio::runtime::Handle::current().id();
        let mut idle = self.fresh();
        loop {
            let suiting = idle.iter().enumerate().filter(|(_, idle)| idle.connection.suits(authority, runtime));
            let pace = |idle: &Idle| idle.connection.pace().unwrap_or(0.0);
            let fastest = suiting.max_by(|(_, a), (_, b)| pace(a).total_cmp(&pace(b))).map(|(at, _)| at);
            let Some(Idle { mut connection, .. }) = fastest.and_then(|at| idle.remove(at)) else { break };
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next request; the oldest one goes when there are too many.
    ///
    /// One that is far slower than the fastest is closed instead: a loss early in its life has left it a congestion window that would take
    /// seconds to grow again, and whoever waits for the oldest read would wait for it. A fresh one doubles its window each round trip.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.fresh();
        let fastest = idle.iter().filter_map(|idle| idle.connection.pace()).fold(0.0, f64::max);
        if connection.pace().is_some_and(|pace| pace < fastest / SLOWER_MAX) {
            return;
        }
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
