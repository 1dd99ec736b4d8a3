//! What a GPU does with batches: page-locking, copies, the engine, overlap with a matrix product, an epoch across an emulated link, lifetimes.
//!
//! `cargo bench --all-features --bench device -- [--quick | --short] [--device N] [--only PART,PART] [--seconds N] [--json FILE]`
//! `cargo bench --all-features --bench device -- --report FILE.json [--to FILE.md]`
//!
//! Needs a driver and a device, no toolkit: build it anywhere (`make gpu`), carry the binary, run it there. Without a GPU it says why there is none, and
//! ends well. Everything is checked by digests that a kernel computes; wrong bytes end it with exit status 1. A figure that misses its target
//! is marked; that is a report, no failure. `--report` makes the page in docs/results of what `--json` wrote.
#![allow(clippy::unwrap_used, reason = "machine.rs is shared with benchmarks that fail where they cannot run")]

mod epoch;
mod lifetimes;
#[allow(dead_code, reason = "other benchmarks use the rest of it")]
#[path = "../field/machine.rs"]
mod machine;
mod measured;
#[allow(dead_code, reason = "other benchmarks use the rest of it")]
#[path = "../field/options.rs"]
mod options;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use farfeed::device::measure::Effort;
use farfeed::device::{Device, probe};

use epoch::Scene;
use measured::{Measured, PARTS, Wanted};
use options::Options;

fn main() -> ExitCode {
    let asked = Asked::read();
    let done = match &asked.report {
        Some(json) => page(json, asked.to.as_deref()),
        None => measure(&asked),
    };
    done.unwrap_or_else(|why| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}

fn measure(asked: &Asked) -> Result<ExitCode, String> {
    let facts = probe();
    if let Some(problem) = &facts.problem {
        println!("no GPU, nothing measured: {problem}");
        return Ok(ExitCode::SUCCESS);
    }
    let device = Device::cuda(asked.device).map_err(|error| error.to_string())?;
    let measured = Measured::take(&device, &asked.wanted, |part| eprintln!("{part} …"))
        .map_err(|error| format!("{device}: {error}"))?;
    println!("{}", report::table(&measured));
    if let Some(path) = &asked.json {
        let text = serde_json::to_string_pretty(&measured).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(if measured.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Writes the page of what was measured elsewhere.
fn page(json: &Path, to: Option<&Path>) -> Result<ExitCode, String> {
    let told = |path: &Path, error: String| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(json).map_err(|error| told(json, error.to_string()))?;
    let measured = serde_json::from_str(&text).map_err(|error| told(json, error.to_string()))?;
    let page = report::page(&measured);
    match to {
        Some(to) => std::fs::write(to, page).map_err(|error| told(to, error.to_string()))?,
        None => print!("{page}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What was asked for.
struct Asked {
    wanted: Wanted,
    device: u32,
    json: Option<PathBuf>,
    report: Option<PathBuf>,
    to: Option<PathBuf>,
}

impl Asked {
    fn read() -> Asked {
        let mut options = Options::read();
        // `cargo test --benches` wants to know whether it runs; a carried binary is run without `--bench`, to measure.
        let glance = options.flag("--quick") || options.flag("--test");
        let short = options.flag("--short");
        let (effort, scene, name) = if glance {
            (Effort::glance(), Scene::glance(), "a glance, whose figures mean nothing")
        } else if short {
            (Effort::short(), Scene::short(), "short")
        } else {
            (Effort::full(), Scene::full(), "full")
        };
        let parts = options.list("--only", PARTS.map(str::to_owned).to_vec());
        for part in &parts {
            assert!(PARTS.contains(&part.as_str()), "no part {part}; there are {PARTS:?}");
        }
        let seconds = options.value("--seconds", if glance { 0.2 } else { 10.0 });
        let asked = Asked {
            wanted: Wanted { effort, scene, effort_name: name, parts, lifetimes: Duration::from_secs_f64(seconds) },
            device: options.value("--device", 0),
            json: options.path("--json"),
            report: options.path("--report"),
            to: options.path("--to"),
        };
        options.finish();
        asked
    }
}
