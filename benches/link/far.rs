//! The far end: the emulated link and its server, in a process of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use farfeed::emulate::{Congestion, Effect, Fault, Faults, Link, Server, Site};
use serde::{Deserialize, Serialize};

use crate::field::process::{Companion, answer};

pub(crate) const ROLE: &str = "--far";

/// What lies between. Plain numbers, to be passed on and printed.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Way {
    pub(crate) rtt_ms: f64,
    pub(crate) loss: f64,
    pub(crate) rate_bytes_s: u64,
    /// The share of requests that take ten times as long.
    pub(crate) slow: f64,
    /// Whether the server's system is one that backs off as Reno did, and not as CUBIC does.
    pub(crate) reno: bool,
}

/// How much longer a slow request takes.
const SLOW_FACTOR: f64 = 10.0;

impl Way {
    pub(crate) fn link(&self) -> Link {
        let rtt = Duration::from_secs_f64(self.rtt_ms / 1e3);
        let congestion = if self.reno { Congestion::Reno } else { Congestion::default() };
        Link { loss: self.loss, congestion, ..Link::rtt(rtt).rate(self.rate_bytes_s) }
    }

    /// The least that so many bytes take over so many connections that are open: first byte, slow start, and bytes at the link's rate. Loss
    /// is not in it: what it costs is the reader's to keep small.
    pub(crate) fn ideal_s(&self, bytes: u64, connections: usize) -> f64 {
        let link = Way { loss: 0.0, ..*self }.link();
        // The model's arithmetic begins with the handshake.
        (link.transfer_time(bytes, connections).unwrap() - link.rtt).as_secs_f64()
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    folder: PathBuf,
    way: Way,
    seed: u64,
}

/// What it has sent.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    pub(crate) connections: u64,
    /// Requests that were slow on purpose.
    pub(crate) struck: u64,
}

pub(crate) struct Far {
    process: Companion,
    pub(crate) port: u16,
}

impl Far {
    pub(crate) fn start(folder: &Path, way: Way, seed: u64) -> Self {
        let mut process = Companion::start(ROLE, &Task { folder: folder.to_owned(), way, seed });
        let port = process.line().parse().unwrap();
        Far { process, port }
    }

    pub(crate) fn sent(&mut self) -> Sent {
        self.process.ask()
    }
}

/// Its process.
pub(crate) fn run(task: &Task) {
    let slow = Fault::new(Effect::Slow { factor: SLOW_FACTOR }).probability(task.way.slow);
    let faults = if task.way.slow > 0.0 { Faults::none().with(slow) } else { Faults::none() };
    let link = Link { seed: task.seed, ..task.way.link() };
    let server = Server::start(Site::directory(&task.folder), link, faults.seed(task.seed)).unwrap();
    println!("{}", server.address().port());
    answer(|| {
        let stats = server.stats();
        let (bytes, requests, connections, struck) = (stats.bytes, stats.requests, stats.connections, stats.faults);
        serde_json::to_string(&Sent { bytes, requests, connections, struck }).unwrap()
    });
}
