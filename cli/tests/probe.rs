//! `farfeed probe` across an emulated link: what it prints, draws, and how it fails.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use farfeed::emulate::{Faults, Link, Objects, Server, Site};
use serde_json::Value;

const RATE_BYTES_S: f64 = 40e6;

/// A link of 40 MB/s at 15 ms, whose connections carry 17 MB/s each.
fn server() -> Server {
    let objects = Objects::from_iter([("a.tar", vec![7_u8; 40 << 20]), ("b.tar", vec![8_u8; 24 << 20])]);
    let link = Link { window_bytes: 256 << 10, ..Link::rtt(Duration::from_millis(15)).rate(RATE_BYTES_S as u64) };
    Server::start(Site::objects(objects), link, Faults::none()).unwrap()
}

fn probe(within: &Path, url: &str, more: &[&str]) -> Output {
    let limits = ["--seconds", "4", "--bytes", "300MB", "--connections-max", "16", "--request-sizes", "256KiB,1MiB"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_farfeed"));
    command.arg("probe").arg(url).args(limits).args(more).current_dir(within).output().unwrap()
}

fn printed(output: &Output) -> &str {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn a_table_a_verdict_and_a_curve() {
    let (folder, server) = (tempfile::tempdir().unwrap(), server());
    let url = format!("{}/{{a,b}}.tar", server.url());
    let output = probe(folder.path(), &url, &["--need", "200MB/s", "--sample-size", "100kB", "--svg", "link.svg"]);
    let text = printed(&output);
    let unwrapped = text.replace("\n             ", " ");
    for wanted in [
        "2 objects of 67.1 MB",
        "round trip   1",
        "for TCP",
        "on a fresh connection",
        "256 KiB",
        "\nknee ",
        "\nheld ",
        "\nloader ",
        "samples/s",
        "link.svg",
    ] {
        assert!(unwrapped.contains(wanted), "{wanted} is missing in\n{text}");
    }
    assert!(text.replace('\n', " ").contains("you need 2,000 (200 MB/s): no."), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(!text.contains(['\x1b', '\r']) && output.stderr.is_empty(), "{text}");

    let svg = std::fs::read_to_string(folder.path().join("link.svg")).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let count = |class: &str| document.descendants().filter(|node| node.attribute("class") == Some(class)).count();
    assert_eq!((count("knee"), count("ceiling")), (1, 1));
    assert!(count("curve s0") >= 2 && count("curve s1") >= 2 && count("d0") >= 3, "{svg}");
    assert!(svg.contains("needed 200 MB/s, far above") && !svg.contains("NaN") && !svg.contains("inf"));
    // Nothing is drawn outside.
    for circle in document.descendants().filter(|node| node.has_tag_name("circle")) {
        let at = |name: &str| circle.attribute(name).unwrap().parse::<f64>().unwrap();
        assert!((0.0..900.0).contains(&at("cx")) && (100.0..540.0).contains(&at("cy")), "{circle:?}");
    }
}

#[test]
fn json_has_it_all() {
    let (folder, server) = (tempfile::tempdir().unwrap(), server());
    let output = probe(folder.path(), &format!("{}/a.tar", server.url()), &["--need", "3MB/s", "--json"]);
    let text = printed(&output);
    assert!(text.trim_end().lines().count() == 1 && output.stderr.is_empty());
    let report: Value = serde_json::from_str(text).unwrap();
    let number =
        |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}: {text}"));
    assert!((0.0145..0.03).contains(&number("/rtt_s")), "{text}");
    assert!(number("/first_byte/p99_s") >= number("/first_byte/p50_s") && number("/first_byte/samples") >= 50.0);
    assert!(number("/connect/tcp/p50_s") < 0.1 && report["connect"]["tls"].is_null());
    let grid = report["grid"].as_array().unwrap();
    assert!(
        grid.len() >= 3 && grid.iter().all(|point| point["goodput_bytes_s"].as_f64().unwrap() < 1.2 * RATE_BYTES_S)
    );
    assert!(number("/knee/goodput_bytes_s") >= 0.95 * number("/best/goodput_bytes_s"));
    assert!(number("/steady/goodput_bytes_s") <= 1.1 * RATE_BYTES_S && number("/bytes") <= 300e6);
    assert_eq!(report["verdict"]["answer"], "yes");
    assert!(report["verdict"]["text"].as_str().unwrap().contains("to spare"), "{text}");
    assert!(report["explanation"].is_string() && report["signs_in_words"].is_array());
}

#[test]
fn what_cannot_be_probed_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small.bin"), [0; 1000]).unwrap();
    for (url, more, status, wanted) in [
        ("small.bin", &[][..], 2, "2097152 bytes or more"),
        ("none.bin", &[], 1, "none.bin"),
        ("small.bin", &["--need", "10samples/s"], 2, "--sample-size"),
        ("small.bin", &["--need", "fast"], 2, "no rate"),
        ("small.bin", &["--sample-size", "0", "--need", "1MB/s"], 2, "0 bytes"),
    ] {
        let output = probe(folder.path(), url, more);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{url} {more:?}: {complaint}");
        assert!(output.stdout.is_empty() && complaint.contains(wanted), "{url} {more:?}: {complaint}");
    }
    let output = probe(folder.path(), "small.bin", &["--request-sizes", "1KiB"]);
    assert_eq!(output.status.code(), Some(2));
}
