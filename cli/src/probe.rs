//! `farfeed probe`: what the link does, and whether it is enough.

mod curve;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use farfeed::probe::{InFlight, Need, ProbeOptions, ProbeProgress, ProbeReport, ProbeStage, Verdict};
use farfeed::{ByteSize, Error, Kind, Loader, Result};
use indicatif::{DecimalBytes, ProgressBar};
use serde::Serialize;

use crate::rate::Rate;
use crate::reach::Reach;
use crate::{output, progress};

#[derive(clap::Args)]
#[command(after_help = "\
Opens fresh connections, times first bytes, then reads with 1, 2, 4, ... of them
and several sizes of request until goodput has stopped rising, and holds what
was best. Ranges are scattered over the objects, so that caches do not flatter.
Stores that charge for reading charge for the bytes read: --bytes bounds them.
The exit status is 0 whatever the answer; --json has it as verdict.answer.

Example:
  farfeed probe http://host/train-{0000..0007}.tar --need 500MB/s \\
      --sample-size 110kB --svg link.svg")]
pub(crate) struct Args {
    /// Path or URL of one object; with braces as in train-{0000..0007}.tar, or ending in / where the store can list, of
    /// several: 64 MiB together, or more
    url: String,
    /// What is needed, as in 500MB/s or 4Gbit/s, or 38000samples/s with --sample-size; asks for a verdict
    #[arg(long, value_name = "RATE")]
    need: Option<Wanted>,
    /// Bytes of a sample, as in 110kB: the verdict counts in samples too
    #[arg(long, value_name = "SIZE")]
    sample_size: Option<ByteSize>,
    /// The most time it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0)]
    seconds: f64,
    /// The most that is read
    #[arg(long, value_name = "SIZE", default_value = "4GB")]
    bytes: ByteSize,
    /// The most connections, up to 256
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections_max: usize,
    /// Sizes of request that are tried
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "256KiB,1MiB,4MiB,8MiB")]
    request_sizes: Vec<ByteSize>,
    /// Draw goodput against connections there
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    reach: Reach,
    /// Print one line of JSON, and no bar: seconds, bytes, bytes per second
    #[arg(long)]
    json: bool,
}

/// What `--need` was given.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    Bytes(f64),
    Samples(f64),
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(number) = text.trim().strip_suffix("samples/s") else {
            return Ok(Wanted::Bytes(text.parse::<Rate>()?.bytes_s() as f64));
        };
        match number.trim().parse::<f64>() {
            Ok(samples) if (1e-3..=1e12).contains(&samples) => Ok(Wanted::Samples(samples)),
            _ => {
                Err(Error::new(Kind::Config, format!("'{text}' is no rate")).advice("write 38000samples/s or 500MB/s"))
            }
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    report: &'a ProbeReport,
    /// What holds goodput where it is, in words.
    explanation: String,
    /// The signs, in words.
    signs_in_words: Vec<String>,
    /// What to have in flight for as much as there is.
    in_flight: Option<InFlight>,
    verdict: Option<Verdict>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let need = args.need()?;
    let options = args.options()?;
    let bar = progress::bar(args.json, "{bar:20} {msg}");
    let mut show = |so_far: ProbeProgress| show(&bar, &so_far, options.time);
    let report = args.reach.apply(Loader::builder(&args.url)).probe(options.clone(), &mut show);
    bar.finish_and_clear();
    let report = report?;
    let verdict = need.map(|need| report.verdict(need));
    if let Some(path) = &args.svg {
        write(path, &curve::draw(&report, need))?;
    }
    if args.json {
        return output::print_json(&Output {
            explanation: report.explanation(),
            signs_in_words: report.signs.iter().map(ToString::to_string).collect(),
            in_flight: report.in_flight(),
            report: &report,
            verdict,
        });
    }
    let mut text = report.to_string();
    if let Some(verdict) = verdict {
        text.push('\n');
        text.push_str(&output::wrapped(&verdict.text, COLUMNS).join("\n"));
        text.push('\n');
    }
    if let Some(path) = &args.svg {
        text.push_str(&format!("\nThe curve is in {}.\n", path.display()));
    }
    output::print(text.trim_end())
}

/// Width of the text.
const COLUMNS: usize = 80;

impl Args {
    fn options(&self) -> Result<ProbeOptions> {
        let time = Duration::try_from_secs_f64(self.seconds).map_err(|_| {
            Error::new(Kind::Config, format!("--seconds {} is no time", self.seconds)).advice("write 1 or more")
        })?;
        let size = |size: &ByteSize| usize::try_from(size.as_bytes()).unwrap_or(usize::MAX);
        Ok(ProbeOptions {
            time,
            bytes: self.bytes.as_bytes(),
            connections_max: self.connections_max,
            request_sizes: self.request_sizes.iter().map(size).collect(),
            ..ProbeOptions::default()
        })
    }

    fn need(&self) -> Result<Option<Need>> {
        let sample_bytes = self.sample_size.map(|size| size.as_bytes() as f64);
        if sample_bytes == Some(0.0) {
            return Err(Error::new(Kind::Config, "samples of 0 bytes").advice("write their mean size, as in 110kB"));
        }
        let bytes_s = match (self.need, sample_bytes) {
            (None, _) => return Ok(None),
            (Some(Wanted::Bytes(bytes)), _) => bytes,
            (Some(Wanted::Samples(samples)), Some(bytes)) => samples * bytes,
            (Some(Wanted::Samples(_)), None) => {
                return Err(Error::new(Kind::Config, "a need in samples, whose size is not known")
                    .advice("add --sample-size, as in --sample-size 110kB"));
            }
        };
        Ok(Some(Need { bytes_s, sample_bytes }))
    }
}

fn show(bar: &ProgressBar, so_far: &ProbeProgress, time: Duration) {
    bar.set_length(time.as_millis() as u64);
    bar.set_position(so_far.elapsed.min(time).as_millis() as u64);
    let at = |connections: usize, bytes: usize| {
        let plural = if connections == 1 { "" } else { "s" };
        format!("{connections} connection{plural} of {}, {} read", curve::size_text(bytes), DecimalBytes(so_far.bytes))
    };
    bar.set_message(match so_far.stage {
        ProbeStage::FirstBytes => "connecting, first bytes".to_owned(),
        ProbeStage::Grid(connections, bytes) => at(connections, bytes),
        ProbeStage::Holding(connections, bytes) => format!("holding {}", at(connections, bytes)),
    });
}

fn write(path: &Path, svg: &str) -> Result<()> {
    std::fs::write(path, svg).map_err(|error| {
        Error::new(Kind::Io, format!("{}: writing the curve", path.display()))
            .advice("name a file in a directory that can be written to")
            .source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_bytes_or_samples() {
        let parse = |text: &str| text.parse::<Wanted>().ok();
        assert_eq!(parse("500MB/s"), Some(Wanted::Bytes(500e6)));
        assert_eq!(parse("4Gbit/s"), Some(Wanted::Bytes(500e6)));
        assert_eq!(parse("38000 samples/s"), Some(Wanted::Samples(38e3)));
        for wrong in ["", "samples/s", "-1samples/s", "NaNsamples/s", "fast"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
