//! What an emulated far end has done, counted.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::Serialize;

use super::line::Counts;

/// What a server or a relay has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Requests answered, with whatever status; a relay knows of none.
    pub requests: u64,
    /// Bytes handed to clients: of bodies by a server, of everything by a relay.
    pub bytes: u64,
    /// Requests (of a relay: connections) that a fault struck, or that lacked the token.
    pub faults: u64,
    /// Packets lost by chance.
    pub losses: u64,
    /// Times that a connection found the link's buffer full and slowed down.
    pub drops: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    faults: AtomicU64,
    busy: AtomicUsize,
}

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// One request more is being answered; says how many that are.
    pub(super) fn busy(&self) -> (Busy<'_>, usize) {
        let before = self.busy.fetch_add(1, Ordering::Relaxed);
        (Busy(&self.busy), before + 1)
    }

    pub(super) fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn requested(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn struck(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn stats(&self, counts: Counts) -> Stats {
        Stats {
            connections: self.connections.load(Ordering::Relaxed),
            connections_open: self.open(),
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            faults: self.faults.load(Ordering::Relaxed),
            losses: counts.losses,
            drops: counts.drops,
        }
    }
}
