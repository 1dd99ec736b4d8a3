//! What a probe found, as numbers.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

/// What a probe found. Serialises as it is: times are seconds, sizes bytes, rates bytes per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProbeReport {
    /// Root of the store, without user information and query.
    pub store: String,
    /// Objects that were read from.
    pub objects: usize,
    /// Their bytes.
    pub object_bytes: u64,
    /// How long the probe took.
    pub seconds: f64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Fresh connections and what they cost; `None` where a store has none.
    pub connect: Option<Connects>,
    /// The round trip, as well as it can be told: the shortest TCP handshake; or, where somebody nearer shakes hands for the server, by how
    /// much the first answer on a fresh connection is later than on a used one. `None` where there are no connections.
    pub rtt_s: Option<f64>,
    /// From asking for 4 KiB to the first byte, on used connections with little else to do.
    pub first_byte: Spread,
    /// Points of the grid that were measured, in the order of measuring.
    pub grid: Vec<Point>,
    /// The point with the highest goodput.
    pub best: Depth,
    /// The point with the fewest connections, and of those the smallest requests, whose goodput is within 5 % of the best.
    pub knee: Depth,
    /// Why the grid ended where it did.
    pub ended: Ended,
    /// One connection.
    pub connection: Option<OneConnection>,
    /// Goodput held for longer, at a little more than the knee.
    pub steady: Steady,
    /// What seems to hold goodput where it is.
    pub limit: Limit,
    /// What looks like throttling, or would make the figures doubtful.
    pub signs: Vec<Sign>,
    /// The most that a loader has in flight unless told otherwise.
    pub defaults: InFlight,
    /// Bytes per request that a loader sends to such a store.
    pub loader_request_bytes: usize,
}

/// Fresh connections.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Connects {
    /// Where they led.
    pub addresses: Vec<SocketAddr>,
    /// For finding the address.
    pub resolve: Spread,
    /// For the TCP handshake.
    pub tcp: Spread,
    /// For the TLS handshake; `None` without TLS.
    pub tls: Option<Spread>,
    /// From asking for 4 KiB to the first byte, on a connection that has carried nothing yet.
    pub first_byte: Option<Spread>,
}

/// Times, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// How many.
    pub samples: usize,
    /// The shortest.
    pub min_s: f64,
    /// Half were shorter.
    pub p50_s: f64,
    /// 99 of 100 were shorter; of fewer than 100, the longest.
    pub p99_s: f64,
}

impl Spread {
    /// The spread of `seconds`, whose order is lost; `None` of none.
    pub fn of(seconds: &mut [f64]) -> Option<Self> {
        seconds.sort_unstable_by(f64::total_cmp);
        let rank = |quantile: f64| ((seconds.len() as f64 * quantile).ceil() as usize).saturating_sub(1);
        let at = |quantile| seconds.get(rank(quantile)).copied();
        Some(Spread { samples: seconds.len(), min_s: *seconds.first()?, p50_s: at(0.5)?, p99_s: at(0.99)? })
    }
}

/// One point of the grid: so many connections, each asking for so many bytes at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Connections, each with one request.
    pub connections: usize,
    /// Bytes per request.
    pub request_bytes: usize,
    /// Bytes per second of all connections together.
    pub goodput_bytes_s: f64,
    /// How long was measured.
    pub seconds: f64,
    /// Requests that ended meanwhile, well or badly.
    pub requests: u64,
    /// Of those: refused with a request to slow down, as by 429 and 503.
    pub throttled: u64,
    /// Of those: failed otherwise, and may be asked again.
    pub failed: u64,
    /// From asking to the first byte.
    pub first_byte: Option<Spread>,
    /// Half of the requests were through sooner.
    pub request_p50_s: Option<f64>,
    /// The busiest network thread's share of its time.
    pub busy: f64,
}

impl Point {
    pub(super) fn depth(&self) -> Depth {
        let Point { connections, request_bytes, goodput_bytes_s, .. } = *self;
        Depth { connections, request_bytes, goodput_bytes_s }
    }
}

/// Where on the grid, and what was reached there.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Depth {
    /// Connections.
    pub connections: usize,
    /// Bytes per request.
    pub request_bytes: usize,
    /// Bytes per second.
    pub goodput_bytes_s: f64,
}

impl Depth {
    /// Bytes that are asked for and have not arrived, at the most.
    pub fn in_flight_bytes(&self) -> u64 {
        self.connections as u64 * self.request_bytes as u64
    }
}

/// Why the grid ended where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// Goodput had stopped rising for every size of request.
    Flat,
    /// As many connections as were allowed.
    Connections,
    /// As much time as was allowed.
    Time,
    /// As many bytes as were allowed.
    Bytes,
    /// More in flight than there is memory for.
    Memory,
}

/// What one connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OneConnection {
    /// Bytes per second of one connection, pauses between requests included.
    pub goodput_bytes_s: f64,
    /// Bytes per second while a body is on its way.
    pub body_bytes_s: f64,
    /// Bytes on their way at that rate: what a window would have to hold. `None` where no round trip is known.
    pub window_bytes: Option<f64>,
    /// Whether several connections carry clearly more than one does while its body is on the way: one is capped, by the server,
    /// a window or losses.
    pub capped: bool,
}

/// Goodput held for longer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Steady {
    /// Connections.
    pub connections: usize,
    /// Bytes per request.
    pub request_bytes: usize,
    /// Bytes per second.
    pub goodput_bytes_s: f64,
    /// Standard deviation between windows of it.
    pub spread_bytes_s: f64,
    /// Bytes per second in its first third.
    pub first_third_bytes_s: f64,
    /// Bytes per second in its last third.
    pub last_third_bytes_s: f64,
    /// How long it was held.
    pub seconds: f64,
    /// Length of a window.
    pub window_s: f64,
    /// Requests that ended meanwhile, well or badly.
    pub requests: u64,
    /// Of those: refused with a request to slow down.
    pub throttled: u64,
    /// Of those: failed otherwise.
    pub failed: u64,
    /// The busiest network thread's share of its time.
    pub busy: f64,
}

/// What seems to hold goodput where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// More connections brought no more: the link, or the server behind it.
    Link,
    /// Goodput still rose with connections when the grid ended.
    Connections,
    /// The store refuses requests.
    Throttling,
    /// A network thread of this machine was busy nearly all the time.
    Machine,
}

/// Something to know before the figures are believed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "sign", rename_all = "snake_case")]
pub enum Sign {
    /// Requests were answered with a request to slow down.
    Refused {
        /// So many.
        throttled: u64,
        /// Of so many.
        requests: u64,
    },
    /// Requests failed otherwise.
    Failed {
        /// So many.
        failed: u64,
        /// Of so many.
        requests: u64,
    },
    /// Goodput falls when there are more connections.
    Falls {
        /// The best with requests of this size.
        from: Depth,
        /// What it fell to.
        to: Depth,
    },
    /// First bytes come far later when there are more connections: requests wait in a queue.
    Queues {
        /// Connections.
        connections: usize,
        /// Half of the first bytes took longer there.
        first_byte_s: f64,
        /// And without load.
        alone_s: f64,
    },
    /// Goodput faded while it was held.
    Fades {
        /// Bytes per second in the first third.
        from_bytes_s: f64,
        /// In the last third.
        to_bytes_s: f64,
    },
    /// Goodput varies a great deal: the link is shared, or losing packets.
    Uneven {
        /// Standard deviation by mean.
        share: f64,
    },
    /// Clearly less was held than the best that was measured for a moment.
    HeldLess {
        /// Bytes per second of the best point.
        best_bytes_s: f64,
        /// Of what was held.
        held_bytes_s: f64,
    },
    /// More bytes were read than there are: a cache may have flattered.
    Reread {
        /// Times that each byte was read, on average.
        times: f64,
    },
    /// Connections are accepted much nearer than the data is.
    Nearer {
        /// The shortest handshake.
        tcp_s: f64,
        /// The shortest time to a first byte.
        first_byte_s: f64,
    },
}

/// The most that a loader has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct InFlight {
    /// Reads, each on a connection of its own.
    pub requests: usize,
    /// Bytes.
    pub bytes: u64,
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} MiB in flight", self.requests, self.bytes.div_ceil(1 << 20))
    }
}
