//! A reader in a process of its own: it takes batches, computes between them if told to, and says how it went.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{ours, rival};
use crate::field::clients::{OURS, install_cryptography};
use crate::field::measure::{cpu_time, peak_rss, quantile, thread_cpu_time};

pub(crate) const ROLE: &str = "--reader";
/// Ours without a shuffle: the order that the others read in.
pub(crate) const IN_ORDER: &str = "farfeed in order";

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) reader: String,
    pub(crate) folder: PathBuf,
    pub(crate) port: u16,
    pub(crate) batch_size: u32,
    /// What a step consumes, in bytes per second; none computes nothing.
    pub(crate) pace: Option<f64>,
    /// When to stop, done or not.
    pub(crate) seconds_max: f64,
}

/// How it went. Times in seconds, sizes in bytes.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Pass {
    /// Of the dataset, shares of it that passed.
    pub(crate) bytes: u64,
    /// All of it.
    pub(crate) complete: bool,
    /// To be ready to ask: index and plan.
    pub(crate) open_s: f64,
    /// From asking for the first batch to the delivery of the last one, and to the end of its step.
    pub(crate) streaming_s: f64,
    pub(crate) total_s: f64,
    pub(crate) first_batch_s: f64,
    pub(crate) first_batch_bytes: u64,
    /// Bytes per second from the first delivery to the last one, the first batch apart.
    pub(crate) later_goodput: f64,
    /// From the first delivery to the end of the last step, per batch.
    pub(crate) step_s: f64,
    /// Of the time after the first delivery, what was spent waiting for the next.
    pub(crate) stall_share: f64,
    /// From one delivery to the next.
    pub(crate) latency_p50_s: f64,
    pub(crate) latency_p99_s: f64,
    pub(crate) batches: u64,
    /// Without the checks.
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss: u64,
    pub(crate) ours: Option<ours::Details>,
}

/// Batches in their order.
pub(crate) trait Feed {
    type Batch;

    /// Waits for the next one; none at the end.
    fn next(&mut self) -> Option<Self::Batch>;

    fn payload(batch: &Self::Batch) -> u64;

    /// Whether every byte is right, and came once.
    fn check(&mut self, batch: &Self::Batch);

    /// Whether everything came.
    fn complete(&self) -> bool;
}

pub(crate) fn run(task: &Task) -> Pass {
    install_cryptography();
    if [OURS, IN_ORDER].contains(&task.reader.as_str()) { ours::run(task) } else { rival::run(task) }
}

/// Takes batches until there are no more, or the time is up. `opened` is when the reader began to be made, `dataset` what it streams.
pub(crate) fn consume<F: Feed>(feed: &mut F, task: &Task, open_s: f64, dataset: Streamed) -> Pass {
    let (asked, cpu) = (Instant::now(), cpu_time());
    let (mut first, mut delivered, mut last) = (None, asked, asked);
    let (mut payload, mut own_cpu, mut stalled) = (0, Duration::ZERO, Duration::ZERO);
    let mut intervals = Vec::new();
    // Two batches at the least: there is no latency from one to the next otherwise.
    while intervals.is_empty() || asked.elapsed().as_secs_f64() < task.seconds_max {
        let waits = Instant::now();
        let Some(batch) = feed.next() else { break };
        delivered = Instant::now();
        let (bytes, own) = (F::payload(&batch), thread_cpu_time());
        if first.is_none() {
            first = Some((delivered, bytes));
        } else {
            stalled += delivered - waits;
            intervals.push((delivered - last).as_secs_f64());
        }
        last = delivered;
        payload += bytes;
        feed.check(&batch);
        if let Some(pace) = task.pace {
            // The step begins with the delivery: the check is a part of it.
            hold_until(delivered + Duration::from_secs_f64(bytes as f64 / pace));
        }
        own_cpu += thread_cpu_time() - own;
    }
    let (ended, cpu_s) = (Instant::now(), cpu_time() - cpu - own_cpu);
    let (first_at, first_batch_bytes) = first.expect("a batch in time");
    let complete = feed.complete();
    let (steps, batches) = ((ended - first_at).as_secs_f64(), intervals.len() as u64 + 1);
    let share = if complete { 1.0 } else { payload as f64 / dataset.payload_bytes as f64 };
    Pass {
        bytes: (share * dataset.bytes as f64) as u64,
        complete,
        open_s,
        streaming_s: (delivered - asked).as_secs_f64(),
        total_s: (ended - asked).as_secs_f64(),
        first_batch_s: (first_at - asked).as_secs_f64(),
        first_batch_bytes,
        later_goodput: (payload - first_batch_bytes) as f64 / (delivered - first_at).as_secs_f64(),
        step_s: steps / batches as f64,
        stall_share: stalled.as_secs_f64() / steps,
        latency_p50_s: quantile(intervals.iter().copied(), 0.5),
        latency_p99_s: quantile(intervals, 0.99),
        batches,
        cpu_s: cpu_s.as_secs_f64(),
        peak_rss: peak_rss(),
        ours: None,
    }
}

/// Sizes of what is streamed, in bytes.
pub(crate) struct Streamed {
    pub(crate) bytes: u64,
    pub(crate) payload_bytes: u64,
}

/// Sleeps until just before `deadline` and spins for the rest: a sleep ends late.
fn hold_until(deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    std::thread::sleep(left.saturating_sub(Duration::from_micros(300)));
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
}
