//! `farfeed demo`: the main job, shown. A dataset is served across an emulated link of several lengths, streamed to the
//! best device there is, and compute does not notice.

mod corpus;
mod distant;
mod pass;
mod report;
mod scratch;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use farfeed::device::Device;
use farfeed::emulate::Link;
use farfeed::{ByteSize, Error, Kind, Result};
use indicatif::{ProgressBar, ProgressStyle};

use self::corpus::Corpus;
use self::distant::Distant;
use self::pass::{Course, Outcome};
use self::report::{Report, Row};
use self::scratch::Scratch;
use crate::program::Program;
use crate::rate::Rate;
use crate::serve::milliseconds;
use crate::timeline;

/// The share of the link that the simulated compute step needs.
const DEMAND: f64 = 0.6;
/// Some batches are needed for a step time.
const SIZE_MIN: ByteSize = ByteSize::bytes(10_000_000);
const SIZE_MAX: ByteSize = ByteSize::bytes(100_000_000_000);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Round-trip times in milliseconds; step times are compared with the first one's
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "0,15,30")]
    rtt: Vec<f64>,
    /// Rate of the link, as in 2Gbit/s or 250MB/s
    #[arg(long, default_value = "2Gbit/s")]
    rate: Rate,
    /// Size of the dataset that is made
    #[arg(long, default_value = "640MB")]
    size: ByteSize,
    /// host, cuda, cuda:1, or best
    #[arg(long, default_value = "best")]
    device: String,
    /// Where the picture of the timeline goes
    #[arg(long, value_name = "PATH", default_value = "farfeed-demo.svg")]
    svg: PathBuf,
    /// Leave the dataset where it is, and say where
    #[arg(long)]
    keep: bool,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, program: &Program) -> Result<()> {
    let began = Instant::now();
    args.check()?;
    let device: Device = args.device.parse()?;
    let scratch = Scratch::new()?;
    let corpus = args.make_corpus(scratch.path())?;
    eprintln!(
        "streaming to {}; the link is emulated in user space: {}, slow start, shared by all connections",
        device.name(),
        args.rate
    );
    let mut rows: Vec<Row> = Vec::new();
    let mut pictures = Vec::new();
    for rtt_ms in &args.rtt {
        let (flat_out, paced) = args.measure(*rtt_ms, scratch.path(), &corpus, &device, program)?;
        let reference = rows.first().map_or(paced.step_s, |row| row.step_s);
        let row = Row::new(*rtt_ms, args.rate, &flat_out, &paced, reference);
        pictures.push(picture(&row, paced));
        rows.push(row);
    }
    let report = Report {
        emulated_link: true,
        rate_bytes_s: args.rate.bytes_s(),
        compute_bytes_s: args.compute_bytes_s(),
        dataset_bytes: corpus.bytes,
        samples: corpus.samples(),
        device: device.name(),
        samples_checked: 2 * (rows.len() * corpus.samples()) as u64,
        runs: rows,
        timeline: args.draw(&pictures, &corpus, &device)?,
        seconds: began.elapsed().as_secs_f64(),
    };
    args.tell(&report)?;
    if args.keep {
        eprintln!("the dataset is kept in {}", scratch.keep().display());
    }
    Ok(())
}

impl Args {
    fn check(&self) -> Result<()> {
        if self.rtt.is_empty() || self.rtt.len() > 16 {
            return Err(Error::new(Kind::Config, "--rtt takes 1 to 16 times").advice("write --rtt 0,15,30"));
        }
        for rtt_ms in &self.rtt {
            milliseconds("--rtt", *rtt_ms)?;
        }
        if !(SIZE_MIN..=SIZE_MAX).contains(&self.size) {
            let what = format!("--size {} is not between {SIZE_MIN} and {SIZE_MAX}", self.size);
            return Err(Error::new(Kind::Config, what).advice("leave it out: 640 MB are enough to see it work"));
        }
        Ok(())
    }

    fn compute_bytes_s(&self) -> f64 {
        self.rate.bytes_s() as f64 * DEMAND
    }

    fn make_corpus(&self, directory: &Path) -> Result<Corpus> {
        let began = Instant::now();
        let bar = bar(self.size.as_bytes(), "making a dataset");
        let corpus = Corpus::write(directory, self.size.as_bytes(), |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        eprintln!(
            "made a WebDataset: {} samples, {:.0} MB in {} shards and their index, in {:.1} s",
            corpus.samples(),
            corpus.bytes as f64 / 1e6,
            corpus.shards,
            began.elapsed().as_secs_f64()
        );
        Ok(corpus)
    }

    /// An epoch as fast as it goes, and one with the compute step; each with a cold start on a fresh server.
    fn measure(
        &self,
        rtt_ms: f64,
        directory: &Path,
        corpus: &Corpus,
        device: &Device,
        program: &Program,
    ) -> Result<(Outcome, Outcome)> {
        let link = Link { rtt: milliseconds("--rtt", rtt_ms)?, ..Link::default() }.rate(self.rate.bytes_s());
        let pass = |pace_bytes_s: Option<f64>, label: &str| {
            let server = Distant::start(program, directory, rtt_ms, self.rate)?;
            let course = Course { url: server.url(), corpus, device, link: link.clone(), pace_bytes_s };
            let bar = bar(corpus.bytes, &format!("{rtt_ms:>4} ms, {label}"));
            let outcome = course.run(|bytes, loader| {
                bar.inc(bytes);
                if pace_bytes_s.is_some() {
                    bar.set_message(format!("stalled {:.1} %", 100.0 * loader.stats().stall_share));
                }
            })?;
            bar.finish_and_clear();
            eprintln!(
                "{rtt_ms:>4} ms, {label}: {} batches in {:.2} s, the first after {:.0} ms",
                outcome.batches,
                outcome.streaming_s,
                1e3 * outcome.first_batch_s
            );
            Ok(outcome)
        };
        Ok((pass(None, "as fast as it goes")?, pass(Some(self.compute_bytes_s()), "with a compute step")?))
    }

    fn draw(&self, runs: &[timeline::Run], corpus: &Corpus, device: &Device) -> Result<PathBuf> {
        let subtitle = format!(
            "{:.0} MB, shuffled, to {}, across an emulated link of {}; compute needs {:.0} % of it",
            corpus.bytes as f64 / 1e6,
            device.name(),
            self.rate,
            100.0 * DEMAND
        );
        let svg = timeline::draw("One epoch at each distance", &subtitle, runs);
        std::fs::write(&self.svg, svg).map_err(|e| {
            Error::new(Kind::Io, format!("writing the timeline to {}", self.svg.display()))
                .advice("name another place with --svg")
                .source(e)
        })?;
        Ok(std::path::absolute(&self.svg).unwrap_or_else(|_| self.svg.clone()))
    }

    fn tell(&self, report: &Report) -> Result<()> {
        let failed = |e: io::Error| Error::new(Kind::Io, "writing to standard output").source(e);
        let mut stdout = io::stdout().lock();
        if self.json {
            let line =
                serde_json::to_string(report).map_err(|e| Error::new(Kind::Io, "writing the report").source(e))?;
            return writeln!(stdout, "{line}").map_err(failed);
        }
        writeln!(
            stdout,
            "\n{}\n{} samples checked against their digests: all right, each once per epoch.\nThe link was emulated. Timeline: {}\n{:.1} s in all.",
            report.table(),
            report.samples_checked,
            report.timeline.display(),
            report.seconds
        )
        .map_err(failed)
    }
}

fn picture(row: &Row, paced: Outcome) -> timeline::Run {
    timeline::Run {
        label: format!("{} ms", row.rtt_ms),
        notes: vec![
            format!("first batch {:.0} ms", 1e3 * row.first_batch_s),
            format!("step {:.2} ms", 1e3 * row.step_s),
            format!("stalled {:.2} %", 100.0 * row.stall_share),
        ],
        begin_s: paced.asked_s,
        spans: paced.spans,
    }
}

/// A bar on standard error, in less than 80 columns; nothing where that is no terminal.
fn bar(bytes: u64, label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:<28} {bar:24} {decimal_bytes:>10}  {msg}");
    let bar = ProgressBar::new(bytes).with_prefix(label.to_owned());
    style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("━╸ ")))
}
