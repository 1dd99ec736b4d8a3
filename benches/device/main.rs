//! What a GPU does with batches: page-locking, copies, the engine, overlap with a matrix product, an epoch across an emulated link, lifetimes.
//!
//! `cargo bench --all-features --bench device -- [--quick | --short] [--device N] [--only PART,PART] [--seconds N] [--json FILE]`
//! `cargo bench --all-features --bench device -- --report FILE.json [--to FILE.md]`
//!
//! Needs a driver and a device, no toolkit: build it anywhere (`make gpu`), carry the binary, run it there. Without a GPU it says why there is none, and
//! ends well. Each part runs in a process of its own, for a limited time, and what it found is kept at once: one that fails, crashes or hangs costs
//! its own figures. Everything is checked by digests that a kernel computes; where bytes were wrong, or a part failed, the exit status is 1. A figure
//! that misses its target is marked; that is a report, no failure. `--report` makes the page in docs/results of what `--json` wrote.
#![allow(clippy::unwrap_used, reason = "machine.rs is shared with benchmarks that fail where they cannot run")]

mod apart;
mod carried;
mod distant;
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
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use farfeed::device::measure::Effort;
use farfeed::device::{Device, probe};

use epoch::Scene;
use measured::{Measured, PARTS, Wanted};
use options::Options;

/// For a part, beside the time that lifetimes are asked to take: three times what the longest takes where all is well.
const PART_MAX: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    let asked = Asked::read();
    let done = match &asked.todo {
        Todo::Measure => measure(&asked),
        Todo::Alone => alone(&asked),
        Todo::Serve => {
            distant::serve(&asked.wanted.scene).map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string())
        }
        Todo::Report(json) => page(json, asked.to.as_deref()),
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
    let mut measured = Measured::begin(&device, asked.wanted.effort_name);
    let started = Instant::now();
    for part in &asked.wanted.parts {
        eprintln!("{:4.0} s: {part}", started.elapsed().as_secs_f64());
        if part == carried::PART {
            let begun = Instant::now();
            measured.findings.extend(carried::carried(&tests(), carried::TEST_MAX, carried::ALL_MAX));
            measured.seconds += begun.elapsed().as_secs_f64();
        } else {
            let limit = PART_MAX + asked.wanted.lifetimes.0;
            measured.take_apart(part, asked.again(&["--alone", "--only", part]), limit);
        }
        asked.keep(&measured)?;
    }
    eprintln!("{:4.0} s: done", started.elapsed().as_secs_f64());
    println!("{}", report::table(&measured));
    Ok(if measured.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Measures here and prints it: for the process that started this one.
fn alone(asked: &Asked) -> Result<ExitCode, String> {
    let device = Device::cuda(asked.device).map_err(|error| error.to_string())?;
    let measured = Measured::take(&device, &asked.wanted, |_| ()).map_err(|error| format!("{device}: {error}"))?;
    println!("{}", serde_json::to_string(&measured).map_err(|error| error.to_string())?);
    Ok(if measured.failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where `make gpu` puts the tests: beside this program.
fn tests() -> PathBuf {
    std::env::current_exe().unwrap_or_default().with_file_name("tests")
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

enum Todo {
    Measure,
    /// Some parts, in this process.
    Alone,
    /// To be the epoch's server.
    Serve,
    Report(PathBuf),
}

/// What was asked for.
struct Asked {
    todo: Todo,
    wanted: Wanted,
    device: u32,
    json: Option<PathBuf>,
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
        let all: Vec<_> = PARTS.into_iter().chain([carried::PART]).collect();
        let parts = options.list("--only", all.iter().map(|part| (*part).to_owned()).collect());
        for part in &parts {
            assert!(all.contains(&part.as_str()), "no part {part}; there are {all:?}");
        }
        let lifetimes = (Duration::from_secs_f64(options.value("--seconds", if glance { 0.2 } else { 10.0 })), 2000);
        let todo = match (options.flag("--alone"), options.flag("--serve"), options.path("--report")) {
            (true, ..) => Todo::Alone,
            (_, true, _) => Todo::Serve,
            (.., Some(json)) => Todo::Report(json),
            _ => Todo::Measure,
        };
        let asked = Asked {
            todo,
            wanted: Wanted { effort, scene, effort_name: name, parts, lifetimes, server },
            device: options.value("--device", 0),
            json: options.path("--json"),
            to: options.path("--to"),
        };
        options.finish();
        asked
    }

    /// This program once more, with the same effort.
    fn again(&self, arguments: &[&str]) -> Command {
        let mut command = again(arguments);
        command.args(["--device", &self.device.to_string()]);
        command.args(["--seconds", &self.wanted.lifetimes.0.as_secs_f64().to_string()]);
        command
    }

    /// Writes what was found so far.
    fn keep(&self, measured: &Measured) -> Result<(), String> {
        let Some(path) = &self.json else { return Ok(()) };
        let text = serde_json::to_string_pretty(measured).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// The epoch's server.
fn server() -> Command {
    again(&["--serve"])
}

fn again(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command
        .args(arguments)
        .args(std::env::args().filter(|text| ["--quick", "--test", "--short"].contains(&text.as_str())));
    command
}
