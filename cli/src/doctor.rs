//! `farfeed doctor`: what this machine offers, and what to change.

mod devices;
mod gpu;
mod machine;
mod storage;

use std::path::PathBuf;

use farfeed::Result;
use farfeed::device::DriverFacts;
use serde::Serialize;

use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
✓ is as it should be, – costs something or is not there, ✗ needs a change. Takes
a few seconds: copy rates are measured. The exit status is 0 whatever is found.")]
pub(crate) struct Args {
    /// A directory or file of the file system that datasets are read from
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Also measure what each GPU does with batches: page-locking, copies, the engine
    /// beside the plain pinned copy, a matrix product beside copies; some 20 seconds and
    /// 2 GiB of host memory each
    #[arg(long)]
    gpu: bool,
    /// With --gpu, only see whether it all works: a few seconds, and figures that mean
    /// nothing
    #[arg(long, requires = "gpu")]
    quick: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let driver = farfeed::device::probe();
    let mut checks = machine::checks();
    checks.extend(storage::checks(&args.path));
    checks.extend(devices::checks(&driver, args.quick));
    if args.gpu && driver.devices.is_empty() {
        let why = driver.problem.as_deref().unwrap_or("there is no device");
        checks.push(Check::new("gpu", Status::Fair, "nothing measured", format!("there is no GPU to use; {why}")));
    }
    if args.json {
        let measured = if args.gpu { gpu::measure(&driver, args.quick, true).collect() } else { Vec::new() };
        return output::print_json(&Report { version: env!("CARGO_PKG_VERSION"), checks, driver, measured });
    }
    // Each as soon as it is known: measuring takes a while, and may be broken off.
    output::print(&text(&checks))?;
    if args.gpu {
        gpu::measure(&driver, args.quick, false)
            .try_for_each(|measured| output::print(&format!("\n{}", measured.text(COLUMNS))))?;
    }
    Ok(())
}

/// Width of the text.
const COLUMNS: usize = 80;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    checks: Vec<Check>,
    driver: DriverFacts,
    /// What `--gpu` found, device by device.
    measured: Vec<gpu::Measured>,
}

/// Something looked at.
#[derive(Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    value: String,
    /// What it means, and what to do about it where it is not good.
    meaning: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Good,
    /// Works less well than it could, or is not there and need not be.
    Fair,
    Bad,
}

impl Check {
    fn new(name: &'static str, status: Status, value: impl Into<String>, meaning: impl Into<String>) -> Self {
        Check { name, status, value: value.into(), meaning: meaning.into() }
    }

    /// A fact that the kernel does not tell.
    fn unknown(name: &'static str, place: &str) -> Self {
        Check::new(name, Status::Fair, "unknown", format!("{place} cannot be read"))
    }
}

fn text(checks: &[Check]) -> String {
    let mark = |status| match status {
        Status::Good => "✓",
        Status::Fair => "–",
        Status::Bad => "✗",
    };
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let lines = |check: &Check| {
        let Check { name, status, value, meaning } = check;
        let head = format!("{} {name:<width$}  ", mark(*status));
        let hanging = " ".repeat(head.chars().count());
        let wrapped = output::wrapped(&format!("{value}: {meaning}"), COLUMNS - hanging.len());
        format!("{head}{}", wrapped.join(&format!("\n{hanging}")))
    };
    checks.iter().map(lines).collect::<Vec<_>>().join("\n")
}

/// `Good` from `good` on, `Fair` from `fair` on.
fn rate(number: f64, good: f64, fair: f64) -> Status {
    if number >= good {
        Status::Good
    } else if number >= fair {
        Status::Fair
    } else {
        Status::Bad
    }
}
