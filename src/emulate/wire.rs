//! The network as a client sees it, for simulations in other rooms' tests.

use std::time::Duration;

use super::link::Link;
use super::network::{FlowId, Network, Transfer};

/// A network and its round-trip time.
pub(crate) struct Wire {
    network: Network,
    rtt: Duration,
}

impl Wire {
    pub(crate) fn new(link: Link) -> Self {
        let rtt = link.rtt;
        Wire { network: Network::new(link), rtt }
    }

    /// Another link from now on, of the same round-trip time.
    pub(crate) fn change(&mut self, link: Link, now: Duration) {
        self.network.change(link, now);
    }

    /// A new connection, and when its handshake is over.
    pub(crate) fn open(&mut self, now: Duration) -> (FlowId, Duration) {
        (self.network.open(Duration::ZERO, now), now + self.rtt)
    }

    pub(crate) fn close(&mut self, flow: FlowId) {
        self.network.close(flow);
    }

    pub(crate) fn request(&mut self, flow: FlowId, bytes: u64, now: Duration) {
        let transfer = Transfer { bytes, delay: Duration::ZERO, ignore_untaken: false };
        self.network.request(flow, transfer, now);
    }

    /// When something arrives next, or before.
    pub(crate) fn wake_at(&self) -> Option<Duration> {
        self.network.wake_at()
    }

    /// Goes on to `now`, and takes what has arrived: connection, bytes, and when.
    pub(crate) fn advance(&mut self, now: Duration, arrived: &mut Vec<(FlowId, usize, Duration)>) {
        self.network.advance(now);
        let ready: Vec<_> = self.network.ready().collect();
        for (flow, way) in ready {
            while let Some((bytes, at)) = self.network.take(flow, way) {
                self.network.taken(flow, bytes, at);
                arrived.push((flow, bytes, at));
            }
        }
    }
}
