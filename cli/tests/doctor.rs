//! `farfeed doctor --gpu` as a user runs it, with the driver double in the driver's place (`tests/driver-double`), or on the machine's
//! own GPU by `FARFEED_TEST_GPU=1`: every part measures, the table and the JSON say so, and what fails is told.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use farfeed_driver_double::{library, on_gpu};
use serde_json::Value;
use tempfile::TempDir;

/// Seconds on an idle machine; one that does much else may take its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// One device that is fast, with kernels.
const WELL: &str = "devices=1,twins=measure,rate=4000000000";

/// What is said of a device by `--quick`.
const TRIED: &str = ", tried: figures mean nothing";

/// What `--gpu` measures.
const PARTS: [&str; 5] = ["page-locking", "enqueueing", "copies", "engine", "overlap"];

struct Told {
    status: ExitStatus,
    text: String,
    complaint: String,
}

/// Runs the command; on the double, with these settings of it.
fn doctor(more: &[&str], settings: &str) -> Told {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_farfeed"));
    command.args(["doctor", "--gpu", "--quick"]).args(more).current_dir(folder.path());
    command.stdout(File::create(path("out")).unwrap()).stderr(File::create(path("err")).unwrap());
    if !on_gpu() {
        command.env("LD_LIBRARY_PATH", place_of_the_double(&folder)).env("FARFEED_DOUBLE", settings);
    }
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("doctor --gpu does not end: {}", fs::read_to_string(path("err")).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let read = |name| fs::read_to_string(path(name)).unwrap();
    Told { status, text: read("out"), complaint: read("err") }
}

/// A folder with the double by the driver's name, in front of those that libraries are looked for in.
fn place_of_the_double(folder: &TempDir) -> String {
    symlink(library(), folder.path().join("libcuda.so")).unwrap();
    let others = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    format!("{}:{others}", folder.path().display())
}

impl Told {
    /// Its text, of a command that succeeded. On the double that means as well that nothing forbidden was done: see `UNREAD` there.
    fn of_success(self) -> String {
        assert!(self.status.success(), "{}: {}\n{}", self.status, self.complaint, self.text);
        self.text
    }
}

/// The lines about the first device, and its name.
fn measured(text: &str) -> (String, Vec<&str>) {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("cuda:0 ") || !line.ends_with(TRIED));
    let head = lines.next().unwrap_or_else(|| panic!("nothing was measured: {text}"));
    (head.to_owned(), lines.take_while(|line| line.starts_with(' ')).collect())
}

#[test]
fn every_part_has_its_lines() {
    let text = doctor(&[], WELL).of_success();
    let (head, lines) = measured(&text);
    assert!(on_gpu() || head == format!("cuda:0 driver double{TRIED}"), "{head}");
    let parts: Vec<&str> = lines.iter().filter(|line| !line.starts_with("   ")).map(|line| line.trim()).collect();
    // What has a mark is no heading.
    let parts: Vec<&str> = parts.into_iter().filter(|line| PARTS.contains(line)).collect();
    assert_eq!(parts, PARTS, "{text}");
    assert!(!lines.iter().any(|line| line.contains('✗')), "{text}");
    for name in ["slab: registered", "one copy of 4 KiB", "ceiling", "dense batches", "the product, alone"] {
        assert_eq!(lines.iter().filter(|line| line.contains(name)).count().min(1), 1, "no {name:?}: {text}");
    }
    let figures =
        lines.iter().filter(|line| [" GB/s", " s/GB", " ns", " %", " Tflop/s"].iter().any(|u| line.contains(u)));
    assert!(figures.count() >= 15, "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn the_json_has_every_figure() {
    let text = doctor(&["--json"], WELL).of_success();
    assert_eq!(text.trim_end().lines().count(), 1, "one line: {text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let devices = report["driver"]["devices"].as_array().unwrap().len();
    let all = report["measured"].as_array().unwrap();
    assert_eq!(all.len(), devices);
    let one = &all[0];
    assert!(one["device"] == 0 && one["quick"] == true, "{one}");
    assert!(on_gpu() || one["name"] == "driver double", "{one}");
    let findings = one["findings"].as_array().unwrap();
    let parts: BTreeSet<&str> = findings.iter().map(|finding| finding["part"].as_str().unwrap()).collect();
    assert_eq!(parts, BTreeSet::from(PARTS), "{one}");
    for finding in findings {
        assert_ne!(finding["verdict"], "failed", "{finding}");
        // A figure with its unit, or words.
        let is_figure = finding["value"].as_f64().is_some_and(f64::is_finite) && finding["unit"] != "";
        assert!(is_figure || finding["detail"] != "", "{finding}");
        assert_eq!(finding["target"].is_null(), finding["verdict"] == "told", "{finding}");
    }
    let ceiling = findings.iter().find(|finding| finding["name"].as_str().unwrap().starts_with("ceiling")).unwrap();
    assert!(ceiling["value"].as_f64().unwrap() > 0.0 && ceiling["unit"] == "GB/s", "{ceiling}");
}

#[test]
fn a_device_that_fails_is_told_of_in_the_drivers_words() {
    if on_gpu() {
        return eprintln!("skipped: a real one does not fail when it is told to");
    }
    let text = doctor(&[], &format!("{WELL},copy=40")).of_success();
    let (_, lines) = measured(&text);
    let failed: Vec<_> = lines.iter().filter(|line| line.contains('✗')).collect();
    assert!(!failed.is_empty() && text.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{text}");
    assert!(!lines.iter().any(|line| line.contains("ceiling") && line.contains("GB/s")), "made up: {text}");
}

#[test]
fn without_a_device_it_is_said_why() {
    if on_gpu() {
        return eprintln!("skipped: there is one");
    }
    let text = doctor(&[], "init=100").of_success();
    assert!(!text.contains(TRIED), "{text}");
    // Lines are wrapped.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("nothing measured") && words.contains("CUDA_ERROR_NO_DEVICE (100)"), "{text}");
    let report: Value = serde_json::from_str(&doctor(&["--json"], "init=100").of_success()).unwrap();
    assert_eq!(report["measured"].as_array().unwrap().len(), 0);
}
