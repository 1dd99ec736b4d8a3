//! `farfeed bench`: streams a dataset past a simulated training step, and says what it cost.

mod digest;
mod figures;
mod usage;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farfeed::order::State;
use farfeed::telemetry::Counter;
use farfeed::{Batch, Error, Kind, Loader, Result};
use indicatif::ProgressBar;

use self::digest::Digest;
use self::figures::Figures;
use crate::options::Stream;
use crate::{output, progress};

const DEFINITIONS: &str = "\
Figures (MB = 10^6 bytes; JSON names, one line):
  bytes, samples, batches  Delivered: bytes are payload, of the fields asked for
  seconds        From asking for the first batch to the end of the last step
  goodput_mb_s   bytes / seconds
  build_s        Before that: finding shards and index, memory, connections
  first_batch_s  Wait for the first batch, the cold start; it is no stall
  stall_s        Waits for all later batches, across epochs, until their bytes
                 have landed
  stall_pct      stall_s in per cent of seconds - first_batch_s
  cpu_s          User and system time of all threads during `seconds`, less
                 bench_cpu_s: digests, the list of ids and the end of each
                 step's sleep (a spin of at most 0.1 ms)
  cpu_s_per_gb   cpu_s per 10^9 bytes
  peak_rss_mb    The most memory resident since the process began (VmHWM); all
                 of host_memory is, from the start
  pinned_mb      The most of host_memory that was ever in use at once
  copies_per_byte  Copies in user space per byte fetched, the device's apart
  fetched_bytes, requests, retries  During `seconds`
  connections    Opened in all, those before `seconds` included: most are
                 opened ahead. Of a mounted file system, files
  left_out       Samples that batches lacked: bad ones, and those of --quarantine
  fields_read_again  Fields whose bytes were wrong, or whose first read failed
  quarantine     Samples that were found bad: the first 1000, and how many more
  digest.content Sum of a 64-bit hash of each value with its sample's key and
                 its field's name; the same in any order
  digest.order   Sum of a hash of each sample's number with its epoch and its
                 global position; the same for any way to the bytes
                 Both: add those of ranks, or of parts of a run, modulo 2^64,
                 and have those of the whole. Hexadecimal.
  bound_by       The stage that the consumer waited for

Example:
  farfeed bench data/train-{0000..0063}.tar --fields 'jpg,cls:int' \\
      --batch-size 256 --window 16384 --compute-ms 120 --json";

#[derive(clap::Args)]
#[command(after_long_help = DEFINITIONS, after_help = "--help says how each figure is defined.")]
pub(crate) struct Args {
    #[command(flatten)]
    stream: Stream,
    /// Length of the simulated step: a batch is held for this long from its arrival, as a GPU would
    #[arg(long, value_name = "MS", default_value = "0", value_parser = milliseconds)]
    compute_ms: Duration,
    /// Epochs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// Begin here, as after a resume; counts on through the epochs
    #[arg(long, value_name = "K", default_value_t = 0)]
    start_batch: u64,
    /// Write the samples' numbers there in the order of delivery, one per line
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Compute no digests: they cost CPU, and on a GPU read every batch back
    #[arg(long)]
    no_digest: bool,
    /// Print one line of JSON, and no bar
    #[arg(long)]
    json: bool,
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(ms) if (0.0..=3_600_000.0).contains(&ms) => Ok(Duration::from_secs_f64(ms / 1e3)),
        _ => Err("a step takes 0 to 3600000 milliseconds".into()),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    let loader = args.stream.open(args.json, |builder| builder.epochs(args.epochs))?;
    let (epoch, batch) = begin_at(&loader, args)?;
    let build = began.elapsed();
    let batches = args.epochs.saturating_mul(loader.batches_per_epoch()) - args.start_batch;
    let bar = progress::bar(args.json, "{bar:20} {pos} of {len} batches, {elapsed} of about {duration}, {msg}");
    bar.set_length(batches);
    let mut bench = Bench::new(args, &loader, bar)?;
    bench.stream(&loader, epoch)?;
    let figures = Figures::new(&bench, args, &loader, (epoch, batch), build);
    if args.json { output::print_json(&figures) } else { output::print(&figures.to_string()) }
}

/// Moves the loader to the batch that was asked for; says which of which epoch it is.
fn begin_at(loader: &Loader, args: &Args) -> Result<(u64, u64)> {
    let per_epoch = loader.batches_per_epoch();
    if per_epoch == 0 {
        let error = format!("{} samples do not fill a batch over all ranks", loader.dataset().samples());
        return Err(Error::new(Kind::Config, error).advice("lower --batch-size, or leave out --drop-last"));
    }
    let (epoch, batch) = (args.start_batch / per_epoch, args.start_batch % per_epoch);
    if epoch >= args.epochs {
        let error = format!("no batch {}: there are {} in each of {} epochs", args.start_batch, per_epoch, args.epochs);
        return Err(Error::new(Kind::Config, error).advice("batches count from 0; raise --epochs"));
    }
    if args.start_batch > 0 {
        let position = loader.partition().position(loader.order().samples(), batch);
        loader.resume(&State::new(loader.dataset().fingerprint(), loader.order(), epoch, position))?;
    }
    Ok((epoch, batch))
}

/// What is counted while batches go by. Times are this consumer's own: the library's are for comparison.
struct Bench {
    step: Duration,
    epochs: u64,
    digest: Option<Digest>,
    ids: Option<Ids>,
    bar: ProgressBar,
    before: Counters,
    began: Instant,
    ended: Instant,
    cpu: Duration,
    own_cpu: Duration,
    first_batch: Option<Duration>,
    stall: Duration,
    bytes: u64,
    samples: u64,
    batches: u64,
}

/// Counts of the loader, which began before the first batch was asked for: an index may have been read.
#[derive(Clone, Copy, Default)]
struct Counters {
    requests: u64,
    retries: u64,
    copied: u64,
    fetched: u64,
}

impl Counters {
    fn of(loader: &Loader) -> Self {
        let count = |counter| loader.telemetry().counter(counter);
        Counters {
            requests: count(Counter::Requests),
            retries: count(Counter::Retries),
            copied: count(Counter::BytesCopiedByUserSpace),
            fetched: loader.stats().fetch.bytes,
        }
    }

    fn since(self, before: Counters) -> Self {
        Counters {
            requests: self.requests - before.requests,
            retries: self.retries - before.retries,
            copied: self.copied - before.copied,
            fetched: self.fetched - before.fetched,
        }
    }
}

impl Bench {
    fn new(args: &Args, loader: &Loader, bar: ProgressBar) -> Result<Self> {
        let digest = (!args.no_digest).then(|| Digest::new(*loader.partition()));
        let ids = args.ids.as_deref().map(Ids::create).transpose()?;
        let now = Instant::now();
        Ok(Bench {
            step: args.compute_ms,
            epochs: args.epochs,
            digest,
            ids,
            bar,
            before: Counters::of(loader),
            began: now,
            ended: now,
            cpu: usage::process_cpu(),
            own_cpu: Duration::ZERO,
            first_batch: None,
            stall: Duration::ZERO,
            bytes: 0,
            samples: 0,
            batches: 0,
        })
    }

    /// From the loader's place in `epoch` to the end of the last one.
    fn stream(&mut self, loader: &Loader, epoch: u64) -> Result<()> {
        self.began = Instant::now();
        self.cpu = usage::process_cpu();
        let mut asked = self.began;
        for epoch in epoch..self.epochs {
            for batch in loader.epoch(epoch) {
                let batch = batch?;
                // A GPU's own stream would wait here: a batch has arrived when its bytes have landed.
                batch.synchronize()?;
                let arrived = Instant::now();
                self.waited(arrived - asked);
                let cpu = usage::thread_cpu();
                self.take(&batch)?;
                hold_until(arrived + self.step);
                self.own_cpu += usage::thread_cpu().saturating_sub(cpu);
                drop(batch);
                asked = Instant::now();
            }
        }
        self.ended = asked;
        self.cpu = usage::process_cpu().saturating_sub(self.cpu);
        self.bar.finish_and_clear();
        self.ids.as_mut().map_or(Ok(()), Ids::finish)
    }

    /// Counts a wait that ended with a batch.
    fn waited(&mut self, wait: Duration) {
        match self.first_batch {
            None => self.first_batch = Some(wait),
            Some(_) => self.stall += wait,
        }
    }

    fn take(&mut self, batch: &Batch) -> Result<()> {
        self.bytes += batch.payload_bytes();
        self.samples += batch.len() as u64;
        self.batches += 1;
        if let Some(digest) = &mut self.digest {
            digest.add(batch)?;
        }
        if let Some(ids) = &mut self.ids {
            ids.add(batch.ids())?;
        }
        if !self.bar.is_hidden() {
            let rate = self.bytes as f64 / 1e6 / self.began.elapsed().as_secs_f64().max(1e-9);
            self.bar.set_message(format!("{rate:.1} MB/s, stalled for {:.2} s", self.stall.as_secs_f64()));
            self.bar.inc(1);
        }
        Ok(())
    }
}

/// The numbers of the samples, as text.
struct Ids {
    file: BufWriter<File>,
    shown: String,
}

impl Ids {
    fn create(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let file = File::create(path).map_err(|error| Ids::failed(&shown, error))?;
        Ok(Ids { file: BufWriter::new(file), shown })
    }

    fn add(&mut self, ids: &[u64]) -> Result<()> {
        let mut all = ids.iter();
        all.try_for_each(|id| writeln!(self.file, "{id}")).map_err(|error| Ids::failed(&self.shown, error))
    }

    fn finish(&mut self) -> Result<()> {
        self.file.flush().map_err(|error| Ids::failed(&self.shown, error))
    }

    fn failed(shown: &str, error: std::io::Error) -> Error {
        Error::new(Kind::Io, format!("{shown}: writing the list of ids")).source(error)
    }
}

/// How late a sleep may end: the kernel's default slack of 50 µs, and as much again for waking up.
const SLACK: Duration = Duration::from_micros(100);

/// Sleeps until just before `deadline` and spins for the rest, so that steps are as long as they say.
fn hold_until(deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    if left > SLACK {
        std::thread::sleep(left - SLACK);
    }
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_end_when_they_should() {
        for step in [Duration::ZERO, Duration::from_micros(50), Duration::from_millis(3)] {
            let deadline = Instant::now() + step;
            hold_until(deadline);
            assert!(Instant::now() >= deadline);
        }
    }

    #[test]
    fn a_step_has_a_bound() {
        assert_eq!(milliseconds("2.5"), Ok(Duration::from_micros(2500)));
        for wrong in ["-1", "NaN", "inf", "", "1e9", "5ms"] {
            assert!(milliseconds(wrong).is_err(), "{wrong}");
        }
    }
}
