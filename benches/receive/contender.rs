//! One contender in a process of its own: it receives, and says what that cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use farfeed::memory::{Landing, Slab};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

use super::bare::{Bare, Wait};
use super::uring::Uring;
use crate::field::clients::{self, Client, HYPER, OURS, Origin, REQWEST, STREAMED, Scheme, WHOLE};
use crate::field::measure::{context_switches, cpu_time, peak_rss};

/// The object.
pub(crate) const KEY: &str = "object";
const PAGE_BYTES: usize = 1 << 20;

pub(crate) const BARE: &str = "bare recv";
const BARE_ALL: &str = "bare recv MSG_WAITALL";
pub(crate) const BARE_MARK: &str = "bare recv SO_RCVLOWAT";
pub(crate) const RUSTLS: &str = "bare rustls";
pub(crate) const URING: &str = "tokio-uring";

/// Who can receive from there, the floors first.
pub(crate) fn names(scheme: Scheme) -> &'static [&'static str] {
    match scheme {
        Scheme::Http => &[BARE, BARE_ALL, BARE_MARK, URING, HYPER, REQWEST, STREAMED, WHOLE, OURS],
        Scheme::Https => &[RUSTLS, HYPER, REQWEST, STREAMED, WHOLE, OURS],
        Scheme::S3 => &[STREAMED, WHOLE, OURS],
    }
}

/// What a contender is to do.
#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) contender: String,
    pub(crate) origin: Origin,
    /// Ranges under way at once, each on its connection.
    pub(crate) connections: usize,
    pub(crate) range_bytes: usize,
    /// Of the async clients' runtime; 1 is a runtime on the one thread there is.
    pub(crate) threads: usize,
    /// Rounds before the clock runs, and with it.
    pub(crate) warm_rounds: usize,
    pub(crate) rounds: usize,
    /// crc32c of each range of the object, twice as many as connections.
    pub(crate) digests: Vec<u64>,
}

/// What it cost.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) cpu_s_per_gb: f64,
    pub(crate) gb_per_s: f64,
    pub(crate) switches_per_gb: f64,
    pub(crate) copies_per_byte: f64,
    pub(crate) peak_rss: u64,
}

/// A range, and where it goes.
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) landing: Landing,
}

/// Something that receives as many ranges at once as it has connections.
pub(crate) trait Contender {
    /// Fills all landings and gives them back in their order, with the bytes that user space is known to have copied.
    fn receive(&mut self, parts: Vec<Part>) -> (Vec<Landing>, u64);
}

pub(crate) fn run(task: &Task) -> Cost {
    clients::install_cryptography();
    let slab = Slab::new(task.connections * task.range_bytes, PAGE_BYTES).unwrap();
    let mut contender = start(task);
    let (mut cpu, mut wall, mut switches, mut copied) = (Duration::ZERO, Duration::ZERO, 0, 0);
    for round in 0..task.warm_rounds + task.rounds {
        // The two halves of the object take turns, so that what an earlier round left in the pages is never right.
        let first = (round % 2) * task.connections;
        let part = |index: usize| {
            let landing = Landing::new(slab.take(task.range_bytes / PAGE_BYTES).unwrap(), task.range_bytes);
            Part { start: ((first + index) * task.range_bytes) as u64, landing }
        };
        let parts = (0..task.connections).map(part).collect();
        let (switches_before, cpu_before, began) = (context_switches(), cpu_time(), Instant::now());
        let (landings, bytes) = contender.receive(parts);
        if round >= task.warm_rounds {
            wall += began.elapsed();
            cpu += cpu_time() - cpu_before;
            switches += context_switches().saturating_sub(switches_before);
            copied += bytes;
        }
        for (landing, digest) in landings.into_iter().zip(&task.digests[first..]) {
            check(landing, *digest, &task.contender);
        }
    }
    let bytes = (task.rounds * task.connections * task.range_bytes) as f64;
    Cost {
        cpu_s_per_gb: cpu.as_secs_f64() / (bytes / 1e9),
        gb_per_s: bytes / 1e9 / wall.as_secs_f64(),
        switches_per_gb: switches as f64 / (bytes / 1e9),
        copies_per_byte: copied as f64 / bytes,
        peak_rss: peak_rss(),
    }
}

fn start(task: &Task) -> Box<dyn Contender> {
    let (origin, connections) = (&task.origin, task.connections);
    let bare = |wait| Box::new(Bare::start(origin, connections, wait));
    match task.contender.as_str() {
        BARE => bare(Wait::Any),
        BARE_ALL => bare(Wait::All),
        BARE_MARK => bare(Wait::LowWater(PAGE_BYTES)),
        URING => Box::new(Uring::start(origin, connections)),
        RUSTLS => Box::new(Async::start(Arc::new(clients::rustls::Rustls::open(origin)), task.threads)),
        name => Box::new(Async::start(clients::open(name, origin).unwrap(), task.threads)),
    }
}

fn check(landing: Landing, expected: u64, name: &str) {
    let landed = landing.landed().unwrap();
    let mut digest = crc_fast::Digest::new(Crc32Iscsi);
    for slice in landed.slices(0, landed.len()) {
        digest.update(slice);
    }
    assert_eq!(digest.finalize(), expected, "{name}: wrong bytes");
}

/// A client on a tokio runtime, a task for each range.
struct Async {
    client: Arc<dyn Client>,
    runtime: Runtime,
}

impl Async {
    fn start(client: Arc<dyn Client>, threads: usize) -> Self {
        let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
        Async { client, runtime: builder.worker_threads(threads).enable_all().build().unwrap() }
    }
}

impl Contender for Async {
    fn receive(&mut self, parts: Vec<Part>) -> (Vec<Landing>, u64) {
        self.runtime.block_on(async {
            let read = |mut part: Part| {
                let client = Arc::clone(&self.client);
                tokio::spawn(async move {
                    let copied = client.read(KEY, part.start, &mut part.landing).await;
                    (part.landing, copied)
                })
            };
            let reads: Vec<_> = parts.into_iter().map(read).collect();
            let (mut landings, mut copied) = (Vec::new(), 0);
            for read in reads {
                let (landing, bytes) = read.await.unwrap();
                landings.push(landing);
                copied += bytes;
            }
            (landings, copied)
        })
    }
}
