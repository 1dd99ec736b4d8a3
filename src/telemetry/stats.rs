//! Counters that every stage adds to, and the sentence they amount to.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::trace::Trace;

/// A step that payload passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Requests in flight: busy from asking to the last byte, waiting until the first one.
    Fetch,
    /// Checking digests and parsing small fields on the host.
    Decode,
    /// Assembling batches on the device; waiting for a free slot.
    Copy,
    /// The consumer: busy between batches, waiting when it asked and there was none (stall).
    Consumer,
}

const STAGES: [Stage; 4] = [Stage::Fetch, Stage::Decode, Stage::Copy, Stage::Consumer];

/// Something counted once per event, or in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "names say it")]
pub enum Counter {
    Requests,
    Retries,
    ConnectionsOpened,
    BytesCopiedByUserSpace,
    Batches,
    Samples,
    /// Reads that were dropped to make room and had to be read again.
    Rereads,
    /// Rows that delivered batches lack: bad samples, and those named beforehand.
    LeftOut,
    /// Fields that were read again because their bytes were wrong, or their first read failed.
    FieldsReadAgain,
    /// Nanoseconds in which reads waited for free pages.
    PageWaitNs,
    /// Nanoseconds in which reads waited because enough were in flight.
    LinkWaitNs,
    /// Reads that another client than ours carried out.
    FallbackReads,
    /// Second requests for what was late.
    Hedges,
    /// Those that overtook the first one.
    HedgesWon,
    /// Bytes that arrived twice because of them.
    BytesWasted,
    /// Answers that asked for less.
    Throttled,
    /// Requests given up because nothing came.
    TimedOut,
    /// Nanoseconds in which reads waited because of the rate that was asked for.
    RateWaitNs,
}

const COUNTERS: usize = Counter::RateWaitNs as usize + 1;

/// Counters shared by all threads of a loader.
#[derive(Debug)]
pub struct Telemetry {
    started: Instant,
    stages: [StageCells; STAGES.len()],
    counters: [AtomicU64; COUNTERS],
    first_batch_ns: AtomicU64,
    /// The shortest time to a first byte; `u64::MAX` before there was one.
    latency_ns: AtomicU64,
    /// The fields of [`Depth`], floats by their bits.
    depth: [AtomicU64; 4],
    /// Why the first read went through the fallback client.
    fallback: OnceLock<&'static str>,
    trace: Trace,
}

#[derive(Debug, Default)]
struct StageCells {
    bytes: AtomicU64,
    busy_ns: AtomicU64,
    wait_ns: AtomicU64,
}

impl Telemetry {
    /// Everything zero; the trace keeps up to `trace_spans` spans, none if 0.
    pub fn new(trace_spans: usize) -> Self {
        let started = Instant::now();
        Telemetry {
            started,
            stages: Default::default(),
            counters: Default::default(),
            first_batch_ns: AtomicU64::new(0),
            latency_ns: AtomicU64::new(u64::MAX),
            depth: Default::default(),
            fallback: OnceLock::new(),
            trace: Trace::new(started, trace_spans),
        }
    }

    /// Adds bytes and times to a stage.
    pub fn stage(&self, stage: Stage, bytes: u64, busy: Duration, wait: Duration) {
        let cells = &self.stages[stage as usize];
        cells.bytes.fetch_add(bytes, Ordering::Relaxed);
        cells.busy_ns.fetch_add(busy.as_nanos() as u64, Ordering::Relaxed);
        cells.wait_ns.fetch_add(wait.as_nanos() as u64, Ordering::Relaxed);
    }

    /// How long a stage has waited so far.
    pub fn waited(&self, stage: Stage) -> Duration {
        Duration::from_nanos(self.stages[stage as usize].wait_ns.load(Ordering::Relaxed))
    }

    /// Adds to a counter.
    pub fn count(&self, counter: Counter, by: u64) {
        self.counters[counter as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// A counter's value.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Notes how long a run's first batch was waited for: the cold start, which is no stall.
    pub fn first_batch(&self, wait: Duration) {
        self.first_batch_ns.store(wait.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Notes how long a request's first byte took.
    pub fn first_byte(&self, took: Duration) {
        self.latency_ns.fetch_min(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Notes how much may be in flight now, and what that was made from.
    pub fn depth(&self, depth: Depth) {
        let Depth { bytes, requests, goodput, first_byte_s } = depth;
        for (cell, value) in self.depth.iter().zip([bytes, requests, goodput.to_bits(), first_byte_s.to_bits()]) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Notes a read through the fallback client, and why.
    pub fn fallback(&self, why: &'static str) {
        self.count(Counter::FallbackReads, 1);
        self.fallback.get_or_init(|| why);
    }

    /// Spans for a picture of the run.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// The numbers so far.
    pub fn stats(&self) -> Stats {
        let stage = |stage: Stage| {
            let cells = &self.stages[stage as usize];
            StageStats {
                bytes: cells.bytes.load(Ordering::Relaxed),
                busy_s: seconds(&cells.busy_ns),
                wait_s: seconds(&cells.wait_ns),
            }
        };
        let bytes = self.stages[Stage::Fetch as usize].bytes.load(Ordering::Relaxed);
        let mut stats = Stats {
            seconds: self.started.elapsed().as_secs_f64(),
            fetch: stage(Stage::Fetch),
            decode: stage(Stage::Decode),
            copy: stage(Stage::Copy),
            consumer: stage(Stage::Consumer),
            requests: self.counter(Counter::Requests),
            retries: self.counter(Counter::Retries),
            hedges: self.counter(Counter::Hedges),
            hedges_won: self.counter(Counter::HedgesWon),
            bytes_wasted: self.counter(Counter::BytesWasted),
            connections_opened: self.counter(Counter::ConnectionsOpened),
            rereads: self.counter(Counter::Rereads),
            throttled: self.counter(Counter::Throttled),
            timed_out: self.counter(Counter::TimedOut),
            latency_s: match self.latency_ns.load(Ordering::Relaxed) {
                u64::MAX => 0.0,
                ns => ns as f64 / 1e9,
            },
            first_batch_s: seconds(&self.first_batch_ns),
            batches: self.counter(Counter::Batches),
            samples: self.counter(Counter::Samples),
            left_out: self.counter(Counter::LeftOut),
            fields_read_again: self.counter(Counter::FieldsReadAgain),
            page_wait_s: seconds(&self.counters[Counter::PageWaitNs as usize]),
            link_wait_s: seconds(&self.counters[Counter::LinkWaitNs as usize]),
            rate_wait_s: seconds(&self.counters[Counter::RateWaitNs as usize]),
            depth: Depth::from_cells(self.depth.each_ref().map(|cell| cell.load(Ordering::Relaxed))),
            copies_per_byte: self.counter(Counter::BytesCopiedByUserSpace) as f64 / bytes.max(1) as f64,
            fallback_reads: self.counter(Counter::FallbackReads),
            fallback_reason: self.fallback.get().copied(),
            stall_share: 0.0,
            limit: Limit::Consumer,
        };
        let consumer_s = stats.consumer.busy_s + stats.consumer.wait_s;
        stats.stall_share = if consumer_s > 0.0 { stats.consumer.wait_s / consumer_s } else { 0.0 };
        stats.limit = stats.attribute();
        stats
    }
}

/// A stage's totals.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StageStats {
    /// Bytes that passed.
    pub bytes: u64,
    /// Seconds at work, summed over threads and requests.
    pub busy_s: f64,
    /// Seconds of waiting, summed likewise.
    pub wait_s: f64,
}

/// How much may be in flight at present, and what was found out about the link. All zero before the first read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Depth {
    /// The most bytes in flight.
    pub bytes: u64,
    /// The most reads in flight.
    pub requests: u64,
    /// Bytes per second that the link delivered in the last stretch of time in which the depth was the limit; 0 before there was one,
    /// and where the depth does not follow the link.
    pub goodput: f64,
    /// The shortest time from asking to the first byte, in seconds, but for one in ten; 0 as above.
    pub first_byte_s: f64,
}

impl Depth {
    fn from_cells([bytes, requests, goodput, first_byte_s]: [u64; 4]) -> Self {
        Depth { bytes, requests, goodput: f64::from_bits(goodput), first_byte_s: f64::from_bits(first_byte_s) }
    }
}

/// What bounded the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// The consumer hardly waited: compute is the limit, as it should be.
    Consumer,
    /// The link or the store: as much was in flight as was allowed, and the consumer waited.
    Link,
    /// The rate that was asked for: reads waited for their turn while the consumer waited for batches.
    MaxRate,
    /// Host memory: reads waited for pages while the consumer waited for batches.
    HostMemory,
    /// Copies to the device.
    Copy,
    /// Digests and parsing on the host.
    Decode,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Limit::Consumer => "the consumer",
            Limit::Link => "the link",
            Limit::MaxRate => "max_rate",
            Limit::HostMemory => "host memory",
            Limit::Copy => "the copy to the device",
            Limit::Decode => "decoding on the host",
        })
    }
}

/// A request that takes this many times its latency has queued for the link, or filled it.
const QUEUEING: f64 = 4.0;

/// The numbers of a run so far. Times in seconds, sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Since the loader was built.
    pub seconds: f64,
    /// Requests.
    pub fetch: StageStats,
    /// Digests and small fields.
    pub decode: StageStats,
    /// Assembling batches.
    pub copy: StageStats,
    /// The consumer; its `wait_s` is the stall.
    pub consumer: StageStats,
    /// Requests sent.
    pub requests: u64,
    /// Requests sent again.
    pub retries: u64,
    /// Second requests for what was late.
    pub hedges: u64,
    /// Those of them that overtook the first one.
    pub hedges_won: u64,
    /// Bytes that arrived twice because of them, as far as they were received.
    pub bytes_wasted: u64,
    /// Connections opened, ahead of the first read or for a request; of a file store the files.
    pub connections_opened: u64,
    /// Reads dropped to make room and read again: host memory is too small for the window.
    pub rereads: u64,
    /// Answers that asked for less: 429, 503 and their like.
    pub throttled: u64,
    /// Requests given up because nothing came.
    pub timed_out: u64,
    /// The shortest time from asking to the first byte: the store's distance, with nothing queueing; 0 before there was one.
    pub latency_s: f64,
    /// Wait for the newest run's first batch: the cold start.
    pub first_batch_s: f64,
    /// Batches delivered.
    pub batches: u64,
    /// Samples delivered.
    pub samples: u64,
    /// Rows that delivered batches lack: bad samples, and those named beforehand. `Loader::quarantine` lists the bad ones.
    pub left_out: u64,
    /// Fields that were read again because their bytes were wrong, or their first read failed.
    pub fields_read_again: u64,
    /// Seconds in which a read was due and host memory had no room for it.
    pub page_wait_s: f64,
    /// Seconds in which a read was due and enough were in flight.
    pub link_wait_s: f64,
    /// Seconds in which a read was due and the rate that was asked for did not allow it.
    pub rate_wait_s: f64,
    /// How much may be in flight, and why.
    pub depth: Depth,
    /// Copies in user space per payload byte, the device's own copy apart.
    pub copies_per_byte: f64,
    /// Reads that a general client carried out, at the price of a copy of each byte.
    pub fallback_reads: u64,
    /// Why the first of them was not ours to carry out.
    pub fallback_reason: Option<&'static str>,
    /// Share of the consumer's time that it waited, 0 to 1.
    pub stall_share: f64,
    /// What bounded the run.
    pub limit: Limit,
}

impl Stats {
    /// Below one per cent of stall nothing but the consumer is the limit. Above, the stage that was saturated while the
    /// consumer waited: serial stages by their busy time, then pages, and else the link.
    ///
    /// Pages are waited for with a link that is full, too: with more of them requests would only queue for longer. It is full when
    /// requests take several times as long as the distance alone makes them, just as the plan's bytes in flight are four times rate × RTT.
    fn attribute(&self) -> Limit {
        if self.stall_share < 0.01 {
            return Limit::Consumer;
        }
        let busy = self.seconds.max(1e-9);
        if self.copy.busy_s > 0.8 * busy {
            Limit::Copy
        } else if self.decode.busy_s > 0.8 * busy {
            Limit::Decode
        } else if self.rate_wait_s > self.page_wait_s.max(self.link_wait_s)
            && self.rate_wait_s > 0.5 * self.consumer.wait_s
        {
            Limit::MaxRate
        } else if self.page_wait_s > self.link_wait_s
            && self.page_wait_s > 0.5 * self.consumer.wait_s
            && self.fetch.busy_s <= QUEUEING * self.latency_s * self.requests as f64
        {
            Limit::HostMemory
        } else {
            Limit::Link
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let goodput = self.fetch.bytes as f64 / 1e6 / self.seconds.max(1e-9);
        write!(
            f,
            "bound by: {} (consumer waited {:.1} % of the time); {} batches, {} samples, {:.1} MB at {goodput:.1} MB/s, {} requests, {} retries",
            self.limit,
            100.0 * self.stall_share,
            self.batches,
            self.samples,
            self.fetch.bytes as f64 / 1e6,
            self.requests,
            self.retries,
        )?;
        if self.hedges > 0 {
            let wasted = self.bytes_wasted as f64 / 1e6;
            write!(f, ", {} hedged ({} won, {wasted:.1} MB twice)", self.hedges, self.hedges_won)?;
        }
        if self.left_out > 0 {
            write!(f, ", {} samples left out", self.left_out)?;
        }
        match self.fallback_reason {
            Some(why) => write!(f, "; {} reads through the fallback client: {why}", self.fallback_reads),
            None => Ok(()),
        }
    }
}

fn seconds(ns: &AtomicU64) -> f64 {
    ns.load(Ordering::Relaxed) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stall: Duration, page_wait: Duration, link_wait: Duration) -> Stats {
        let telemetry = Telemetry::new(0);
        telemetry.stage(Stage::Consumer, 0, Duration::from_secs(9), stall);
        telemetry.count(Counter::PageWaitNs, page_wait.as_nanos() as u64);
        telemetry.count(Counter::LinkWaitNs, link_wait.as_nanos() as u64);
        telemetry.stats()
    }

    #[test]
    fn names_the_limit() {
        let (none, one, two) = (Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2));
        assert_eq!(run(none, two, none).limit, Limit::Consumer);
        assert_eq!(run(one, none, two).limit, Limit::Link);
        assert_eq!(run(one, two, none).limit, Limit::HostMemory);
        let full = Telemetry::new(0);
        full.stage(Stage::Consumer, 0, one, one);
        full.count(Counter::PageWaitNs, one.as_nanos() as u64);
        full.count(Counter::Requests, 10);
        full.first_byte(Duration::from_millis(10));
        full.stage(Stage::Fetch, 0, Duration::from_millis(390), Duration::ZERO);
        assert_eq!(full.stats().limit, Limit::HostMemory);
        full.stage(Stage::Fetch, 0, Duration::from_millis(20), Duration::ZERO);
        assert_eq!(full.stats().limit, Limit::Link, "requests take more than four times their latency");
        let polite = Telemetry::new(0);
        polite.stage(Stage::Consumer, 0, one, one);
        polite.count(Counter::RateWaitNs, one.as_nanos() as u64);
        assert_eq!(polite.stats().limit, Limit::MaxRate);
        assert!((run(one, none, none).stall_share - 0.1).abs() < 1e-9);
    }

    #[test]
    fn the_depth_is_told_as_it_was_noted() {
        let telemetry = Telemetry::new(0);
        assert_eq!(telemetry.stats().depth, Depth::default());
        let depth = Depth { bytes: 16 << 20, requests: 200, goodput: 2.5e8, first_byte_s: 0.0151 };
        telemetry.depth(depth);
        assert_eq!(telemetry.stats().depth, depth);
    }

    #[test]
    fn reads_as_a_sentence() {
        let text = run(Duration::from_secs(1), Duration::ZERO, Duration::ZERO).to_string();
        assert!(text.starts_with("bound by: the link (consumer waited 10.0 % of the time)"), "{text}");
        assert!(text.ends_with("0 retries"), "{text}");
        let telemetry = Telemetry::new(0);
        telemetry.fallback("chunked bodies");
        telemetry.fallback("redirects");
        let text = telemetry.stats().to_string();
        assert!(text.ends_with("; 2 reads through the fallback client: chunked bodies"), "{text}");
    }
}
