//! What a run comes to.

use std::fmt;
use std::time::Duration;

use farfeed::telemetry::Limit;
use farfeed::{Loader, Quarantine};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use super::{Args, Bench, Counters, usage};
use crate::output::rounded;

/// The figures, as they are printed and as JSON names them; `--help` defines them.
#[derive(Serialize)]
pub(super) struct Figures {
    url: String,
    device: String,
    bytes: u64,
    samples: u64,
    batches: u64,
    seconds: f64,
    goodput_mb_s: f64,
    build_s: f64,
    first_batch_s: f64,
    stall_s: f64,
    stall_pct: f64,
    cpu_s: f64,
    bench_cpu_s: f64,
    cpu_s_per_gb: f64,
    peak_rss_mb: Option<f64>,
    pinned_mb: f64,
    host_memory_mb: f64,
    copies_per_byte: f64,
    fetched_bytes: u64,
    requests: u64,
    retries: u64,
    connections: u64,
    rereads: u64,
    left_out: u64,
    fields_read_again: u64,
    quarantine: Quarantine,
    digest: Option<Digests>,
    bound_by: Limit,
    batch_size: u64,
    window: u64,
    seed: u64,
    lanes: u32,
    rank: u32,
    world_size: u32,
    epochs: u64,
    first_epoch: u64,
    first_batch: u64,
    compute_ms: f64,
    fingerprint: String,
    version: &'static str,
}

#[derive(Serialize)]
struct Digests {
    content: String,
    order: String,
}

impl Figures {
    pub(super) fn new(
        bench: &Bench,
        args: &Args,
        loader: &Loader,
        (first_epoch, first_batch): (u64, u64),
        build: Duration,
    ) -> Self {
        let seconds = (bench.ended - bench.began).as_secs_f64();
        let waited = bench.first_batch.unwrap_or_default().as_secs_f64();
        let stall = bench.stall.as_secs_f64();
        let cpu = bench.cpu.saturating_sub(bench.own_cpu).as_secs_f64();
        let Counters { requests, retries, copied, fetched } = Counters::of(loader).since(bench.before);
        let (plan, stats, memory) = (loader.plan(), loader.stats(), loader.memory());
        let pages_mb = |pages: usize| rounded(pages as f64 * plan.page_bytes as f64 / 1e6);
        let per = |amount: f64, whole: f64| if whole > 0.0 { rounded(amount / whole) } else { 0.0 };
        Figures {
            url: plan.dataset.clone(),
            device: plan.device.clone(),
            bytes: bench.bytes,
            samples: bench.samples,
            batches: bench.batches,
            seconds: rounded(seconds),
            goodput_mb_s: per(bench.bytes as f64 / 1e6, seconds),
            build_s: rounded(build.as_secs_f64()),
            first_batch_s: rounded(waited),
            stall_s: rounded(stall),
            stall_pct: per(100.0 * stall, seconds - waited),
            cpu_s: rounded(cpu),
            bench_cpu_s: rounded(bench.own_cpu.as_secs_f64()),
            cpu_s_per_gb: per(cpu, bench.bytes as f64 / 1e9),
            peak_rss_mb: usage::peak_rss_bytes().map(|bytes| rounded(bytes as f64 / 1e6)),
            pinned_mb: pages_mb(memory.high_water),
            host_memory_mb: pages_mb(memory.total),
            copies_per_byte: per(copied as f64, fetched as f64),
            fetched_bytes: fetched,
            requests,
            retries,
            connections: stats.connections_opened,
            rereads: stats.rereads,
            left_out: stats.left_out,
            fields_read_again: stats.fields_read_again,
            quarantine: loader.quarantine(),
            digest: bench.digest.map(|digest| Digests {
                content: format!("{:016x}", digest.content),
                order: format!("{:016x}", digest.order),
            }),
            bound_by: stats.limit,
            batch_size: plan.batch_size,
            window: plan.window,
            seed: args.stream.seed,
            lanes: plan.lanes,
            rank: plan.rank,
            world_size: plan.world_size,
            epochs: args.epochs,
            first_epoch,
            first_batch,
            compute_ms: args.compute_ms.as_secs_f64() * 1e3,
            fingerprint: format!("{:016x}", loader.dataset().fingerprint()),
            version: env!("CARGO_PKG_VERSION"),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let Figures { seconds, first_batch_s, stall_s, .. } = self;
        let (batches, samples) = (HumanCount(self.batches), HumanCount(self.samples));
        let (bytes, fetched) = (DecimalBytes(self.bytes), DecimalBytes(self.fetched_bytes));
        let rank =
            if self.world_size > 1 { format!(", rank {} of {}", self.rank, self.world_size) } else { String::new() };
        let peak = self.peak_rss_mb.map_or_else(|| "unknown".into(), |mb| format!("{mb:.1} MB"));
        let digest = self.digest.as_ref().map(|digest| format!("content {}, order {}", digest.content, digest.order));
        let mut lines = vec![
            ("dataset", self.url.clone()),
            ("to", format!("{}{rank}", self.device)),
            ("delivered", format!("{batches} batches, {samples} samples, {bytes} in {seconds:.3} s")),
            ("goodput", format!("{:.1} MB/s", self.goodput_mb_s)),
            (
                "first batch",
                format!("{first_batch_s:.3} s after asking; {:.3} s to build the loader before", self.build_s),
            ),
            (
                "stall",
                format!("{stall_s:.3} s of the {:.3} s after it: {:.2} %", seconds - first_batch_s, self.stall_pct),
            ),
            (
                "cpu",
                format!(
                    "{:.3} s, {:.3} s per GB; {:.3} s more for digests and the bench itself",
                    self.cpu_s, self.cpu_s_per_gb, self.bench_cpu_s
                ),
            ),
            (
                "memory",
                format!("{:.1} MB of {:.1} MB of pages in use; peak RSS {peak}", self.pinned_mb, self.host_memory_mb),
            ),
            (
                "requests",
                format!(
                    "{}, {} retried, {fetched} fetched; {} connections or files opened",
                    HumanCount(self.requests),
                    HumanCount(self.retries),
                    HumanCount(self.connections)
                ),
            ),
            ("copies", format!("{:.4} per byte in user space", self.copies_per_byte)),
            ("digest", digest.unwrap_or_else(|| "none (--no-digest)".into())),
            ("bound by", format!("{}: {}", self.bound_by, next_step(self.bound_by))),
        ];
        if self.left_out > 0 || !self.quarantine.is_empty() {
            lines.push(("left out", format!("{} samples; found bad: {}", HumanCount(self.left_out), self.found_bad())));
        }
        lines
    }

    /// The first of what was found bad, a line for each.
    fn found_bad(&self) -> String {
        const SHOWN_MAX: usize = 10;
        let (entries, more) = (self.quarantine.entries(), self.quarantine.more());
        let more = entries.len().saturating_sub(SHOWN_MAX) as u64 + more;
        let mut lines: Vec<String> = entries.iter().take(SHOWN_MAX).map(|entry| format!("\n  {entry}")).collect();
        if more > 0 {
            lines.push(format!("\n  and {} more (--json has 1,000)", HumanCount(more)));
        }
        if lines.is_empty() { "none".into() } else { lines.concat() }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> =
            self.lines().iter().map(|(name, text)| format!("{:<13}{text}", format!("{name}:"))).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// What would change the limit.
fn next_step(limit: Limit) -> &'static str {
    match limit {
        Limit::Consumer => "it hardly waited, as it should be",
        Limit::Link => {
            "the depth follows the link: nothing but a faster or nearer one helps, or more --host-memory where the plan names it"
        }
        Limit::MaxRate => "raise --max-rate, if others on the link can bear it",
        Limit::HostMemory => "raise --host-memory, or lower --window",
        Limit::Copy => "see the copy rates of `farfeed doctor`",
        Limit::Decode => "try --no-verify, or fewer fields",
    }
}
