//! What the link between the server and its clients is like.

use std::time::Duration;

use super::congestion::Congestion;
use super::network::Network;
use crate::error::{Error, Kind, Result};

/// Bytes of payload in one packet: Ethernet's 1,500 less 40 of TCP/IP headers.
pub(super) const PACKET: usize = 1460;

/// Distance, rate and manners of the link. One link is shared by all connections of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// There and back. A fresh connection costs one, each request one more before its first byte.
    pub rtt: Duration,
    /// Bytes per second from the server to all clients together; no limit if `None`.
    pub rate_bytes_s: Option<u64>,
    /// The most that one connection has in flight, in bytes: its receive or send buffer, whichever is smaller.
    pub window_bytes: usize,
    /// The most that a fresh connection has in flight in its first round, in bytes.
    pub initial_window: usize,
    /// The most that the server gives one connection, in bytes per second; no limit if `None`.
    pub connection_rate: Option<u64>,
    /// What the server's system does about loss and growing delay.
    pub congestion: Congestion,
    /// How long a queue the shared link can hold before it drops; `None`: one round trip, at least 20 ms.
    pub buffer: Option<Duration>,
    /// Probability that a packet of 1,460 bytes is lost, 0 to 0.5.
    pub loss: f64,
    /// Up to this much is added to the way of each chunk, uniformly, never reordering a connection's bytes.
    pub jitter: Duration,
    /// Time that the server takes over each request before it answers.
    pub server_time: Duration,
    /// Whether a connection's window is halved for each 200 ms + RTT that it was idle, down to the initial one, as
    /// Linux does.
    pub idle_restart: bool,
    /// The most of one connection that arrives at once where there is a rate, in bytes; less if that is more than a millisecond. Receivers
    /// wake up that often: 64 KiB is what a network card hands over, and costs this process more.
    pub burst_bytes: usize,
    /// Seed of loss and jitter.
    pub seed: u64,
}

impl Default for Link {
    /// No distance, no limit, a window of 4 MiB.
    fn default() -> Self {
        Link {
            rtt: Duration::ZERO,
            rate_bytes_s: None,
            window_bytes: 4 << 20,
            initial_window: 10 * PACKET,
            connection_rate: None,
            congestion: Congestion::default(),
            buffer: None,
            loss: 0.0,
            jitter: Duration::ZERO,
            server_time: Duration::ZERO,
            idle_restart: true,
            burst_bytes: 512 << 10,
            seed: 0,
        }
    }
}

impl Link {
    /// A link without a limit of rate.
    pub fn rtt(rtt: Duration) -> Self {
        Link { rtt, ..Link::default() }
    }

    /// The same link with a rate, in bytes per second, that all connections share.
    #[must_use]
    pub fn rate(mut self, bytes_s: u64) -> Self {
        self.rate_bytes_s = Some(bytes_s);
        self
    }

    /// The same link with a limit, in bytes per second, for each connection.
    #[must_use]
    pub fn connection_rate(mut self, bytes_s: u64) -> Self {
        self.connection_rate = Some(bytes_s);
        self
    }

    /// How long `bytes` take to arrive over `connections` fresh connections that share them evenly, from connecting
    /// to the last byte, if the client takes everything at once: the floor that a loader's cold start stands on.
    ///
    /// # Errors
    /// `Config` when the link is impossible.
    pub fn transfer_time(&self, bytes: u64, connections: usize) -> Result<Duration> {
        self.check()?;
        Ok(Network::new(self.clone()).transfer_time(bytes, connections))
    }

    /// Refuses what no link can be.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = if self.rtt > Duration::from_secs(10) || self.jitter > Duration::from_secs(10) {
            "rtt and jitter are at most 10 s"
        } else if [self.rate_bytes_s, self.connection_rate].into_iter().flatten().any(|rate| rate < 1000) {
            "rate_bytes_s and connection_rate are at least 1000"
        } else if self.window_bytes < 2 * PACKET || self.initial_window < PACKET {
            "window_bytes is at least 2920, initial_window at least 1460"
        } else if self.burst_bytes < PACKET {
            "burst_bytes is at least 1460"
        } else if !(0.0..=0.5).contains(&self.loss) {
            "loss lies between 0 and 0.5"
        } else if self.server_time > Duration::from_secs(60) {
            "server_time is at most 60 s"
        } else {
            return Ok(());
        };
        Err(Error::new(Kind::Config, "no such link can be emulated").advice(wrong))
    }

    pub(super) fn half_way(&self) -> Duration {
        self.rtt / 2
    }

    pub(super) fn queue_max(&self) -> Duration {
        self.buffer.unwrap_or(self.rtt.max(Duration::from_millis(20)))
    }

    /// How long the shared link is busy with `bytes`.
    pub(super) fn busy(&self, bytes: usize) -> Duration {
        self.rate_bytes_s.map_or(Duration::ZERO, |rate| time_for(bytes, rate))
    }

    /// The most that is sent at a time: what the link carries in a millisecond, so that connections take turns often
    /// enough, and few enough chunks, so that the emulation stays cheap at high rates.
    pub(super) fn chunk_max(&self) -> usize {
        let rate = self.rate_bytes_s.into_iter().chain(self.connection_rate).min();
        rate.map_or(1 << 20, |rate| ((rate / 1000) as usize).clamp(PACKET, self.burst_bytes))
    }
}

/// How long `bytes` take at `rate` bytes per second.
pub(super) fn time_for(bytes: usize, rate: u64) -> Duration {
    Duration::from_nanos((bytes as u128 * 1_000_000_000 / u128::from(rate)) as u64)
}
