//! Streaming across an emulated link: farfeed beside good streaming readers on other clients, and beside what the link could carry at best.
//!
//! `cargo bench --all-features --bench link -- [--quick] [--grid | --tail] [--rtt MS,MS] [--loss PERCENT,PERCENT] [--demand PERCENT,PERCENT]
//! [--readers NAME,NAME] [--reno] [--rate MB_PER_S] [--seconds N] [--rounds N] [--json FILE] [--svg FILE]`
//!
//! A WebDataset of `--seconds` of the link is made in the temporary folder (`TMPDIR`). For each pass server and reader are processes of their own, both
//! fresh, so that processor time and peak memory are the reader's. *Grid*: each reader at each distance, loss and demand. A demand of 100 % computes
//! nothing between batches and goes as fast as the link allows; less consumes that share of its rate. *Tail*: the same readers and smaller
//! batches, with and without one request in a hundred taking ten times as long.
//!
//! Readers take turns; medians of the rounds are printed. Clocks begin when the first batch is asked for, with connections open: ours
//! were opened when the loader was built, the others' by a byte over each. What came before is *open*: memory, index, plan. The *ideal*
//! is the model's own arithmetic: first byte, slow start over 32 connections, and bytes at the link's rate, without loss; with a
//! compute step, the first batch and the steps. Every byte is checked, outside the processor time that is reported. One MB is 1e6 bytes.
//! What misses its target is marked; that is a report, no failure.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot run fails")]

#[allow(dead_code, reason = "the benchmark of receiving uses the rest of it")]
#[path = "../field/mod.rs"]
mod field;

mod dataset;
mod far;
mod ours;
mod reader;
mod report;
mod rival;

use std::path::{Path, PathBuf};

use serde::Serialize;

use dataset::Manifest;
use far::{Far, Sent, Way};
use field::clients::{HYPER, OURS, REQWEST, STREAMED, WHOLE};
use field::machine::Machine;
use field::options::Options;
use field::process;
use reader::Pass;

/// Connections of the ideal transfer: as many as the rivals use.
const IDEAL_CONNECTIONS: usize = 32;
/// A pass ends when it has taken so many times the ideal; a reader that far behind has shown what it does.
const PATIENCE: f64 = 8.0;
const GRID_BATCH: u32 = 64;
/// Enough batches for a 99th percentile.
const TAIL_BATCH: u32 = 16;
const TAIL_RTTS_MS: [f64; 2] = [15.0, 30.0];
const TAIL_SLOW: f64 = 0.01;

fn main() {
    if let Some(task) = process::task(far::ROLE) {
        return far::run(&task);
    }
    if let Some(task) = process::task(reader::ROLE) {
        return println!("{}", serde_json::to_string(&reader::run(&task)).unwrap());
    }
    let (wanted, machine) = (Wanted::read(), Machine::look());
    let folder = tempfile::tempdir().unwrap();
    let bytes = (wanted.rate_bytes_s as f64 * wanted.seconds) as u64;
    let manifest = Manifest::write(folder.path(), bytes);
    let (samples, points) = (manifest.samples.len(), wanted.points.len());
    eprintln!("{samples} samples; {points} points × {} readers × {} rounds", wanted.readers.len(), wanted.rounds);
    let mut cells: Vec<Cell> = Vec::new();
    for point in &wanted.points {
        cells.extend(wanted.readers.iter().map(|reader| Cell {
            point: *point,
            reader: reader.clone(),
            runs: Vec::new(),
        }));
    }
    for round in 0..wanted.rounds {
        for cells in cells.chunks_mut(wanted.readers.len()) {
            // A machine that gets slower favours the first one in one round and the last one in the next.
            let forwards = round % 2 == 0;
            for index in 0..cells.len() {
                let index = if forwards { index } else { cells.len() - 1 - index };
                cells[index].run(folder.path(), &manifest, round);
            }
        }
    }
    println!("\n{machine}");
    report::print(&wanted, &cells);
    if let Some(path) = &wanted.json {
        std::fs::write(path, serde_json::to_string_pretty(&(&machine, &cells)).unwrap()).unwrap();
    }
    if let Some(path) = &wanted.svg {
        std::fs::write(path, report::picture(&wanted, &cells)).unwrap();
    }
}

/// What was asked for.
struct Wanted {
    points: Vec<Point>,
    readers: Vec<String>,
    rate_bytes_s: u64,
    seconds: f64,
    rounds: usize,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

/// One place of the grid.
#[derive(Clone, Copy, PartialEq, Serialize)]
struct Point {
    way: Way,
    /// Share of the link's rate that is consumed; 1 computes nothing.
    demand: f64,
    batch_size: u32,
}

impl Wanted {
    fn read() -> Self {
        let mut options = Options::read();
        // `cargo test --benches` wants to know whether it runs, not how fast.
        let glance = !options.measures();
        let quick = options.flag("--quick") || glance;
        let (grid_only, tail_only) = (options.flag("--grid"), options.flag("--tail"));
        let rate_bytes_s = options.value("--rate", 125_u64) * 1_000_000;
        let reno = options.flag("--reno");
        let rtts = options.list("--rtt", if quick { vec![0.2, 15.0] } else { vec![0.2, 15.0, 30.0, 100.0] });
        let losses = options.list("--loss", if quick { vec![0.0] } else { vec![0.0, 0.01, 0.1] });
        let demands = options.list("--demand", vec![100.0, 60.0]);
        let readers = [OURS, STREAMED, REQWEST, HYPER].map(str::to_owned).to_vec();
        let mut points = Vec::new();
        let point = |rtt_ms: f64, loss: f64, slow: f64, demand: f64, batch_size| {
            let way = Way { rtt_ms, loss: loss / 100.0, rate_bytes_s, slow, reno };
            Point { way, demand: demand / 100.0, batch_size }
        };
        for demand in demands.iter().filter(|_| !tail_only) {
            for loss in &losses {
                points.extend(rtts.iter().map(|rtt| point(*rtt, *loss, 0.0, *demand, GRID_BATCH)));
            }
        }
        let tail_rtts = rtts.iter().filter(|rtt| TAIL_RTTS_MS.contains(rtt));
        for rtt in tail_rtts.filter(|_| !grid_only) {
            for demand in &demands {
                points.extend([0.0, TAIL_SLOW].map(|slow| point(*rtt, 0.0, slow, *demand, TAIL_BATCH)));
            }
        }
        let wanted = Wanted {
            points,
            readers: options.list("--readers", readers),
            rate_bytes_s,
            seconds: options.value(
                "--seconds",
                if glance {
                    0.2
                } else if quick {
                    1.0
                } else {
                    4.0
                },
            ),
            rounds: options.value("--rounds", 1).max(1),
            json: options.path("--json"),
            svg: options.path("--svg"),
        };
        options.finish();
        let known = [OURS, reader::IN_ORDER, STREAMED, WHOLE, REQWEST, HYPER];
        for reader in &wanted.readers {
            assert!(known.contains(&reader.as_str()), "no reader {reader}; there are {known:?}");
        }
        wanted
    }
}

/// A reader at a place of the grid, and its passes.
#[derive(Serialize)]
struct Cell {
    point: Point,
    reader: String,
    runs: Vec<Run>,
}

#[derive(Serialize)]
struct Run {
    pass: Pass,
    sent: Sent,
    ideal_s: f64,
}

impl Run {
    /// What the ideal would have taken, of what it took: from asking for the first batch to the end of the last step.
    fn efficiency(&self) -> f64 {
        self.ideal_s / self.pass.total_s
    }

    fn extra_bytes(&self) -> f64 {
        self.sent.bytes as f64 / self.pass.bytes as f64 - 1.0
    }
}

impl Cell {
    fn run(&mut self, folder: &Path, manifest: &Manifest, round: usize) {
        let Point { way, demand, batch_size } = self.point;
        let pace = (demand < 1.0).then_some(way.rate_bytes_s as f64 * demand);
        let mut far = Far::start(folder, way, round as u64);
        let task = reader::Task {
            reader: self.reader.clone(),
            folder: folder.to_owned(),
            port: far.port,
            batch_size,
            pace,
            seconds_max: PATIENCE * manifest.bytes() as f64 / (way.rate_bytes_s as f64 * demand) + 1.0,
        };
        let pass: Pass = process::measure(reader::ROLE, &task);
        let first = |bytes: u64| way.ideal_s(bytes, IDEAL_CONNECTIONS);
        let ideal_s = match pace {
            None => first(pass.bytes),
            Some(pace) => first(pass.first_batch_bytes) + pass.bytes as f64 / pace,
        };
        let run = Run { pass, sent: far.sent(), ideal_s };
        eprintln!(
            "round {}: {:>5} ms, {} % lost, {} % slow, demand {:>3.0} %: {:24} {:>5.1} % of the ideal",
            round + 1,
            way.rtt_ms,
            100.0 * way.loss,
            100.0 * way.slow,
            100.0 * demand,
            self.reader,
            100.0 * run.efficiency(),
        );
        self.runs.push(run);
    }
}
