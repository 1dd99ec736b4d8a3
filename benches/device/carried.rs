//! Tests that were carried along: those of the driver double, on the machine's own driver.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use farfeed::device::measure::Finding;

use super::apart;

pub(crate) const PART: &str = "tests";

/// For each test, and for all of them.
pub(crate) const TEST_MAX: Duration = Duration::from_secs(90);
pub(crate) const ALL_MAX: Duration = Duration::from_secs(300);

/// Characters of what a failed test said.
const SAID_MAX: usize = 300;

/// Runs all tests of the programs in `folder` one by one, each in a process of its own with the machine's driver: a finding for each program.
pub(crate) fn carried(folder: &Path, test_max: Duration, all_max: Duration) -> Vec<Finding> {
    let deadline = Instant::now() + all_max;
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut programs: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    programs.sort();
    if programs.is_empty() {
        return vec![Finding::answer(PART, "all of them", "not run: there are none beside this program")];
    }
    programs.iter().map(|program| run_all(program, test_max, deadline)).collect()
}

fn run_all(program: &Path, test_max: Duration, deadline: Instant) -> Finding {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let begun = Instant::now();
    let tests = match list(program) {
        Ok(tests) => tests,
        Err(why) => return Finding::failed(PART, name, why),
    };
    let (mut failed, mut skipped) = (Vec::new(), 0);
    for test in &tests {
        let limit = test_max.min(deadline.saturating_duration_since(Instant::now()));
        match run(program, test, limit) {
            Ok(did_skip) => skipped += usize::from(did_skip),
            Err(why) => failed.push(format!("{test}: {why}")),
        }
    }
    let count = tests.len();
    if !failed.is_empty() || count == 0 {
        return Finding::failed(PART, name, format!("{} of {count} failed: {}", failed.len(), failed.join("; ")));
    }
    let seconds = begun.elapsed().as_secs_f64();
    Finding::new(PART, name, (count - skipped) as f64, "passed")
        .detail(format!("of {count}, with the machine's driver, {skipped} skipped themselves; {seconds:.0} s"))
}

/// The names of a program's tests.
fn list(program: &Path) -> Result<Vec<String>, String> {
    let mut command = Command::new(program);
    command.args(["--list", "--format", "terse"]);
    let ended = apart::run(command, Duration::from_secs(10)).map_err(|error| error.to_string())?;
    if !ended.well() {
        return Err(format!("it does not list its tests: {}", ended.how()));
    }
    Ok(ended.output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// Whether the test skipped itself, or how it failed.
fn run(program: &Path, test: &str, limit: Duration) -> Result<bool, String> {
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env("FARFEED_TEST_GPU", "1").stderr(Stdio::piped());
    let ended = apart::run(command, limit).map_err(|error| error.to_string())?;
    let (well, how, said) = (ended.well(), ended.how(), ended.output + &ended.errors);
    if well {
        return Ok(said.contains("skipped"));
    }
    eprintln!("{test}:\n{said}");
    // What a panic says is behind the line that tells where it was.
    let panic: Vec<&str> = said.lines().skip_while(|line| !line.contains("panicked at")).take(2).collect();
    Err(format!("{how}, {}", panic.join(" ").chars().take(SAID_MAX).collect::<String>()))
}
