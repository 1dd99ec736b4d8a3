//! One epoch across the link, measured.

use std::time::{Duration, Instant};

use farfeed::device::Device;
use farfeed::emulate::Link;
use farfeed::order::Shuffle;
use farfeed::telemetry::{Lane, Span, Stats};
use farfeed::{ByteSize, Error, Field, Kind, Loader, Result};
use rustix::time::{ClockId, clock_gettime};

use super::corpus::Corpus;

pub(super) const BATCH_SIZE: u32 = 64;
pub(super) const WINDOW: u64 = 512;
pub(super) const HOST_MEMORY: ByteSize = ByteSize::mib(256);
const SEED: u64 = 7;
/// Spans kept for the picture: some thousand are made.
const SPANS_MAX: usize = 1 << 16;
/// A sleeping thread wakes late by less than this; the rest of a step is spun through.
const SPIN: Duration = Duration::from_micros(300);
/// How long the simulated script is busy before it asks for its first batch.
const MODEL_IS_MADE: Duration = Duration::from_millis(100);

/// What to stream and how fast it is consumed.
pub(super) struct Course<'a> {
    pub(super) url: &'a str,
    pub(super) corpus: &'a Corpus,
    pub(super) device: &'a Device,
    pub(super) link: Link,
    /// Bytes per second that the simulated compute step consumes; `None`: as fast as they come.
    pub(super) pace_bytes_s: Option<f64>,
}

/// What came of it. Times in seconds.
pub(super) struct Outcome {
    pub(super) batches: u64,
    /// Bytes that were fetched, from asking for the first batch to the delivery of the last.
    pub(super) fetched_bytes: u64,
    pub(super) streaming_s: f64,
    pub(super) first_batch_s: f64,
    /// What warm connections should need at most: three round trips and the batch's bytes at the link's rate.
    pub(super) first_batch_bound_s: f64,
    /// From the first delivery to the end of the last step, for each step.
    pub(super) step_s: f64,
    pub(super) cpu_s_per_gb: f64,
    pub(super) stats: Stats,
    pub(super) spans: Vec<Span>,
    /// When the first batch was asked for, on the spans' clock.
    pub(super) asked_s: f64,
}

impl Course<'_> {
    /// Streams one epoch, checking every sample. `progress` hears of payload bytes and stalls.
    ///
    /// # Errors
    /// The loader's, and `Corrupt` for a sample that is not what was written.
    pub(super) fn run(&self, progress: impl Fn(u64, &Loader)) -> Result<Outcome> {
        let loader = self.loader()?;
        // A training script makes its model between building the loader and asking for a batch; the connections open meanwhile.
        std::thread::sleep(2 * self.link.rtt + MODEL_IS_MADE);
        let mut checklist = self.corpus.checklist();
        let before = loader.stats();
        let mut clocks = Clocks::start();
        let mut first: Option<(Instant, u64)> = None;
        let (mut delivered, mut batches) = (clocks.began, 0);
        for batch in loader.epoch(0) {
            let batch = batch?;
            delivered = Instant::now();
            let own = Clocks::thread_cpu();
            first.get_or_insert((delivered, batch.payload_bytes()));
            checklist.check(&batch)?;
            if let Some(pace) = self.pace_bytes_s {
                // The deadline counts from the delivery: the check is a part of the step.
                sleep_until(delivered + Duration::from_secs_f64(batch.payload_bytes() as f64 / pace));
            }
            batches += 1;
            progress(batch.payload_bytes(), &loader);
            clocks.own += Clocks::thread_cpu().saturating_sub(own);
        }
        let ended = Instant::now();
        let loader_cpu = clocks.loader_cpu();
        checklist.finish()?;
        let (first_at, first_bytes) = first.ok_or_else(|| Error::new(Kind::Corrupt, "the epoch has no batch"))?;
        // The loader learns of a step's end when it is asked for the next batch; after the last one it is not.
        loader.telemetry().trace().add(Lane::Compute, delivered, ended, batches, 0);
        let stats = loader.stats();
        let fetched_bytes = stats.fetch.bytes - before.fetch.bytes;
        let at_rate = self.link.rate_bytes_s.map_or(0.0, |rate| first_bytes as f64 / rate as f64);
        Ok(Outcome {
            batches,
            fetched_bytes,
            streaming_s: (delivered - clocks.began).as_secs_f64(),
            first_batch_s: (first_at - clocks.began).as_secs_f64(),
            first_batch_bound_s: 3.0 * self.link.rtt.as_secs_f64() + at_rate,
            step_s: (ended - first_at).as_secs_f64() / batches as f64,
            cpu_s_per_gb: loader_cpu.as_secs_f64() / (fetched_bytes.max(1) as f64 / 1e9),
            spans: loader.telemetry().trace().spans(),
            asked_s: before.seconds,
            stats,
        })
    }

    fn loader(&self) -> Result<Loader> {
        Loader::builder(format!("{}/{}", self.url, self.corpus.pattern))
            .field("jpg", Field::bytes())
            .field("cls", Field::int())
            .field("json", Field::json())
            .batch_size(BATCH_SIZE)
            .shuffle(Shuffle::window(WINDOW).seed(SEED))
            .host_memory(HOST_MEMORY)
            .device(self.device.clone())
            .epochs(1)
            .trace(SPANS_MAX)
            .patience(Duration::from_secs(60))
            .build()
    }
}

/// CPU time of the loader: the process's, less what the demo itself spends on checks and on its simulated step.
struct Clocks {
    began: Instant,
    process: Duration,
    own: Duration,
}

impl Clocks {
    fn start() -> Self {
        Clocks { began: Instant::now(), process: cpu(ClockId::ProcessCPUTime), own: Duration::ZERO }
    }

    fn thread_cpu() -> Duration {
        cpu(ClockId::ThreadCPUTime)
    }

    fn loader_cpu(&self) -> Duration {
        cpu(ClockId::ProcessCPUTime).saturating_sub(self.process).saturating_sub(self.own)
    }
}

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn sleep_until(deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    std::thread::sleep(left.saturating_sub(SPIN));
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
}
