//! The command as people run it: `farfeed demo` leaves a table, a picture and nothing else; `farfeed serve` serves.
#![allow(clippy::unwrap_used, reason = "a test that cannot run the command fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn farfeed() -> Command {
    Command::new(env!("CARGO_BIN_EXE_farfeed"))
}

/// A small demo whose temporary files, and whose picture, go below `place`.
fn demo(place: &Path) -> Command {
    let mut command = farfeed();
    command.args(["demo", "--size", "20MB", "--rtt", "0,5", "--rate", "1Gbit/s", "--device", "host", "--svg"]);
    command.arg(place.join("timeline.svg")).env("TMPDIR", place).stdin(Stdio::null());
    command
}

fn entries(place: &Path) -> Vec<String> {
    let names = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}\n{}", output.status, text(&output.stderr));
}

#[test]
fn the_demo_ends_with_a_table_and_a_picture() {
    let place = tempfile::tempdir().unwrap();
    let output = demo(place.path()).output().unwrap();
    succeeded(&output);
    let (table, progress) = (text(&output.stdout), text(&output.stderr));
    for wanted in ["RTT", "goodput", "stalled", "\n0 ms", "\n5 ms", "against", "link was emulated", "timeline.svg"] {
        assert!(table.contains(wanted), "{wanted} is missing in\n{table}");
    }
    assert!(progress.contains("link is emulated"), "{progress}");
    assert!(!table.contains(['\x1b', '\r']) && !progress.contains(['\x1b', '\r']), "{progress}");

    let svg = std::fs::read_to_string(place.path().join("timeline.svg")).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let classes: Vec<_> = document.descendants().filter_map(|node| node.attribute("class")).collect();
    for lane in ["fetch", "copy", "compute", "stall"] {
        assert!(classes.contains(&lane), "{lane} is missing");
    }
    assert!(svg.len() < 500_000);
    assert_eq!(entries(place.path()), ["timeline.svg"], "the dataset is gone");
}

#[test]
fn the_demo_says_the_same_in_json() {
    let place = tempfile::tempdir().unwrap();
    let output = demo(place.path()).args(["--json", "--keep"]).output().unwrap();
    succeeded(&output);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |pointer: &str| report.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap();
    assert_eq!(report["emulated_link"], true);
    assert_eq!(number("/runs/1/rtt_ms"), 5.0);
    // Each sample of each run was checked: two distances, with and without the compute step.
    assert_eq!(number("/samples_checked"), 4.0 * number("/samples"));
    for run in 0..2 {
        let field = |name: &str| number(&format!("/runs/{run}/{name}"));
        // What no machine can beat, and what the slowest one that runs this test does reach.
        assert!((0.01..1.1).contains(&field("link_share")), "{report}");
        assert!((0.0..1.0).contains(&field("stall_share")), "{report}");
        let compute_s = 64.0 * 50_000.0 / number("/compute_bytes_s");
        assert!(field("step_s") > compute_s, "{report}");
        assert!(field("first_batch_s") > 0.0 && field("cpu_s_per_gb") > 0.0, "{report}");
    }
    assert!(number("/runs/1/first_batch_s") > 0.005);
    let kept = entries(place.path()).into_iter().find(|name| name.starts_with("farfeed-demo-")).unwrap();
    assert!(entries(&place.path().join(kept)).iter().any(|name| name.ends_with(".ffindex")));
}

#[test]
fn impossible_wishes_are_refused() {
    for wish in [["--rtt", "-1"], ["--size", "1KB"], ["--device", "gpu"]] {
        let output = farfeed().arg("demo").args(wish).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wish:?}: {}", text(&output.stderr));
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let mut child = Ended(demo(place.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines();
    // By then the dataset is there, and the first epoch begins.
    assert!(lines.any(|line| line.unwrap().contains("emulated")));
    assert!(!entries(place.path()).is_empty());
    let pid = rustix::process::Pid::from_child(&child.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().code(), Some(130));
    assert_eq!(entries(place.path()), Vec::<String>::new());
}

#[test]
fn serve_announces_itself_answers_and_ends_with_its_parent() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("shard"), b"0123456789").unwrap();
    let mut command = farfeed();
    command.arg("serve").arg(place.path()).args(["--rtt", "20", "--json", "--until-stdin-closes"]);
    let mut child = Ended(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let announcement: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(announcement["emulated"], true);
    let authority = announcement["url"].as_str().unwrap().strip_prefix("http://").unwrap();

    let asked = Instant::now();
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET /shard HTTP/1.1\r\nHost: a\r\nRange: bytes=2-4\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 206") && response.ends_with("234"), "{response}");
    assert!(asked.elapsed() >= Duration::from_millis(40), "connecting and asking take a round trip each");

    drop(child.0.stdin.take());
    assert!(child.wait().success());
}

#[test]
fn serve_fails_when_told_to() {
    let place = tempfile::tempdir().unwrap();
    let refused = farfeed().arg("serve").arg(place.path()).args(["--fail-503", "2"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    let missing = farfeed().arg("serve").arg(place.path().join("none")).output().unwrap();
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing.stderr));
}

/// A child that does not outlive its test.
struct Ended(Child);

impl Ended {
    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the child did not end in 20 s");
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
