//! What the demo says at the end: a table for people, one line of JSON for programs.

use std::fmt::Write;
use std::path::PathBuf;

use farfeed::telemetry::Limit;
use serde::Serialize;

use super::pass::Outcome;
use crate::rate::Rate;

/// Everything that was measured. Times in seconds, sizes in bytes.
#[derive(Serialize)]
pub(super) struct Report {
    /// Always: no network was measured.
    pub(super) emulated_link: bool,
    pub(super) rate_bytes_s: u64,
    /// What the simulated compute step consumes.
    pub(super) compute_bytes_s: f64,
    pub(super) dataset_bytes: u64,
    pub(super) samples: usize,
    pub(super) device: String,
    /// Samples whose digest was checked, over all runs.
    pub(super) samples_checked: u64,
    pub(super) runs: Vec<Row>,
    pub(super) timeline: PathBuf,
    /// From start to end, the dataset's making included.
    pub(super) seconds: f64,
}

/// One distance.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) rtt_ms: f64,
    /// As fast as the link: bytes over time from asking for the first batch to the last delivery.
    pub(super) goodput_bytes_s: f64,
    pub(super) link_share: f64,
    pub(super) first_batch_s: f64,
    pub(super) first_batch_bound_s: f64,
    pub(super) stall_share: f64,
    pub(super) step_s: f64,
    /// Step time as a multiple of the first row's.
    pub(super) step_ratio: f64,
    pub(super) cpu_s_per_gb: f64,
    pub(super) copies_per_byte: f64,
    pub(super) retries: u64,
    /// What bounded the run with the compute step, and the one without.
    pub(super) limit: Limit,
    pub(super) limit_without_compute: Limit,
}

impl Row {
    /// From a run as fast as the link and one with the compute step.
    pub(super) fn new(rtt_ms: f64, rate: Rate, flat_out: &Outcome, paced: &Outcome, reference_step_s: f64) -> Row {
        let goodput = flat_out.fetched_bytes as f64 / flat_out.streaming_s;
        Row {
            rtt_ms,
            goodput_bytes_s: goodput,
            link_share: goodput / rate.bytes_s() as f64,
            first_batch_s: paced.first_batch_s,
            first_batch_bound_s: paced.first_batch_bound_s,
            stall_share: paced.stats.stall_share,
            step_s: paced.step_s,
            step_ratio: paced.step_s / reference_step_s,
            cpu_s_per_gb: paced.cpu_s_per_gb,
            copies_per_byte: paced.stats.copies_per_byte,
            retries: flat_out.stats.retries + paced.stats.retries,
            limit: paced.stats.limit,
            limit_without_compute: flat_out.stats.limit,
        }
    }
}

/// Columns: heading in two lines.
const COLUMNS: [(&str, &str); 10] = [
    ("", "RTT"),
    ("", "goodput"),
    ("of the", "link"),
    ("first", "batch"),
    ("≤ 3 RTT", "+ bytes"),
    ("", "stalled"),
    ("step", "time"),
    ("against", ""),
    ("CPU-s", "per GB"),
    ("copies", "per byte"),
];

impl Report {
    /// The table, and a line on what bounded each run.
    pub(super) fn table(&self) -> String {
        let reference = self.runs.first().map_or_else(String::new, |row| format!("{} ms", row.rtt_ms));
        let mut headings = COLUMNS.map(|(above, below)| [above.to_owned(), below.to_owned()]);
        headings[7][1] = reference;
        let rows: Vec<[String; 10]> = self.runs.iter().map(Row::cells).collect();
        let widths: [usize; 10] = std::array::from_fn(|n| {
            let cells = rows.iter().map(|row| row[n].chars().count());
            headings[n].iter().map(|part| part.chars().count()).chain(cells).max().unwrap_or(0)
        });
        let mut text = String::new();
        push_line(&mut text, &widths, |n| &headings[n][0]);
        push_line(&mut text, &widths, |n| &headings[n][1]);
        let rule = widths.map(|width| "─".repeat(width));
        push_line(&mut text, &widths, |n| &rule[n]);
        for row in &rows {
            push_line(&mut text, &widths, |n| &row[n]);
        }
        text.push('\n');
        for row in &self.runs {
            let _ = writeln!(
                text,
                "{} ms: bound by {} as fast as it goes, by {} with the compute step",
                row.rtt_ms, row.limit_without_compute, row.limit
            );
        }
        text
    }
}

impl Row {
    fn cells(&self) -> [String; 10] {
        [
            format!("{} ms", self.rtt_ms),
            format!("{:.1} MB/s", self.goodput_bytes_s / 1e6),
            format!("{:.1} %", 100.0 * self.link_share),
            format!("{:.0} ms", 1e3 * self.first_batch_s),
            format!("{:.0} ms", 1e3 * self.first_batch_bound_s),
            format!("{:.2} %", 100.0 * self.stall_share),
            format!("{:.2} ms", 1e3 * self.step_s),
            format!("{:+.2} %", 100.0 * (self.step_ratio - 1.0)),
            format!("{:.2}", self.cpu_s_per_gb),
            format!("{:.3}", self.copies_per_byte),
        ]
    }
}

fn push_line<'a>(text: &mut String, widths: &[usize; 10], cell: impl Fn(usize) -> &'a str) {
    let line: Vec<String> = widths.iter().enumerate().map(|(n, width)| format!("{:>width$}", cell(n))).collect();
    let _ = writeln!(text, "{}", line.join("  ").trim_end());
}
