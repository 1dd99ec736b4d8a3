//! An emulated link in front of the server, in a process of its own.

use std::net::SocketAddr;
use std::time::Duration;

use farfeed::emulate::{Faults, Link, Relay};
use serde::{Deserialize, Serialize};

use crate::field::process::{Companion, answer};

pub(crate) const ROLE: &str = "--relay";

#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    port: u16,
    rtt_us: u64,
    rate_bytes_s: u64,
}

/// Moves a server on this machine away.
pub(crate) struct Distance {
    /// Where it is reached from now on.
    pub(crate) port: u16,
    _relay: Companion,
}

impl Distance {
    pub(crate) fn start(port: u16, rtt_us: u64, rate_bytes_s: u64) -> Self {
        let mut relay = Companion::start(ROLE, &Task { port, rtt_us, rate_bytes_s });
        Distance { port: relay.line().parse().unwrap(), _relay: relay }
    }
}

/// The relay's process.
pub(crate) fn run(task: &Task) {
    // In portions of a network card's: fewer and larger ones would spare those clients most who wake up for each.
    let link = Link { burst_bytes: 64 << 10, ..Link::rtt(Duration::from_micros(task.rtt_us)).rate(task.rate_bytes_s) };
    let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], task.port)), link, Faults::none()).unwrap();
    println!("{}", relay.address().port());
    answer(|| serde_json::to_string(&relay.stats()).unwrap());
}
