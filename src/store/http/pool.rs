//! Idle connections of one reactor.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::url::Authority;

/// A connection that is slower than the fastest by more than this is not worth keeping.
const SLOWER_MAX: f64 = 4.0;

/// A connection on which nothing was asked yet is kept for so many times as long: servers wait longer for the first request.
const UNUSED_AGES: u32 = 4;

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

    /// An idle connection to `authority`, at an address that `suits`, that still seems open: the fastest, and of those without a long
    /// body so far the one used last, whose congestion window is the warmest. Those that are not needed grow old.
    pub(super) fn take(&self, authority: &Authority, suits: impl Fn(SocketAddr) -> bool) -> Option<Connection> {
        let runtime = tokio::runtime::Handle::current().id();
        let mut idle = self.fresh();
        loop {
            let suits = |idle: &Idle| idle.connection.suits(authority, runtime) && suits(idle.connection.address());
            let suiting = idle.iter().enumerate().filter(|(_, idle)| suits(idle));
            let pace = |idle: &Idle| idle.connection.pace().unwrap_or(0.0);
            let fastest = suiting.max_by(|(_, a), (_, b)| pace(a).total_cmp(&pace(b))).map(|(at, _)| at);
            let Some(Idle { mut connection, .. }) = fastest.and_then(|at| idle.remove(at)) else { break };
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Closes all connections to an address.
    pub(super) fn forget(&self, address: SocketAddr) {
        self.fresh().retain(|idle| idle.connection.address() != address);
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

    /// Connections kept that still seem open; the others are closed.
    pub(super) fn open_count(&self) -> usize {
        let runtime = tokio::runtime::Handle::current().id();
        let mut idle = self.fresh();
        idle.retain_mut(|idle| !idle.connection.is_of(runtime) || idle.connection.is_quiet());
        idle.len()
    }

    /// The idle connections without those that servers are likely to have closed.
    fn fresh(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        idle.retain(|idle| {
            let age = if idle.connection.is_used() { self.age } else { self.age * UNUSED_AGES };
            now.saturating_duration_since(idle.since) < age
        });
        idle
    }
}
