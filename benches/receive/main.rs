//! What receiving costs, in processor time: farfeed's client beside the field and beside the least that could do it.
//!
//! `cargo bench --all-features --bench receive -- [--quick] [--scheme http,https,s3] [--only NAME,NAME] [--unpaced | --paced]
//! [--rate MB_PER_S] [--rtt MS] [--connections N] [--range MIB] [--threads N] [--rounds N] [--json FILE] [--svg FILE]`
//!
//! nginx serves an object from the page cache. *Paced*: an emulated link of 500 MB/s and 15 ms lies in front of it, 32 ranges of 8 MiB are
//! under way at once. *Unpaced*: nothing does, and there are 8. In every round each contender has its turn, in a process of its own; the order is turned
//! round from one round to the next. Server and link are other processes too, so that what is counted is the client's alone: processor
//! time of all its threads, the kernel's share included, and context switches. Every range is checked by its crc32c, outside of what is
//! counted. Medians of the rounds; one GB is 1e9 bytes.
//!
//! `https` is TLS 1.3 with rustls and ring for all. `s3` signs each request; nginx does not look at signatures.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

#[allow(dead_code, reason = "the benchmark of the link uses the rest of it")]
#[path = "../field/mod.rs"]
mod field;

mod bare;
mod contender;
mod distance;
mod object;
mod report;
#[allow(unused_imports, reason = "the tests use the rest of it")]
#[path = "../../tests/servers/mod.rs"]
mod servers;
mod uring;

use std::path::PathBuf;

use serde::Serialize;

use contender::{Cost, names};
use distance::Distance;
use field::clients::{Origin, Scheme};
use field::machine::Machine;
use field::options::Options;
use field::process;
use servers::{Nginx, Site};

const CONTENDER: &str = "--contender";

fn main() {
    if let Some(task) = process::task(distance::ROLE) {
        return distance::run(&task);
    }
    if let Some(task) = process::task(CONTENDER) {
        return println!("{}", serde_json::to_string(&contender::run(&task)).unwrap());
    }
    let (wanted, machine) = (Wanted::read(), Machine::look());
    let nginx = Nginx::start();
    let most = wanted.settings.iter().map(|setting| setting.connections).max().unwrap();
    let digests = object::write(&nginx.root(), 2 * most, wanted.range_bytes);
    let mut tables = Vec::new();
    for setting in &wanted.settings {
        for scheme in &wanted.schemes {
            tables.push(compare(&wanted, setting, *scheme, &nginx, &digests));
        }
    }
    println!("\n{machine}");
    report::print(&tables);
    if let Some(path) = &wanted.json {
        std::fs::write(path, serde_json::to_string_pretty(&(&machine, &tables)).unwrap()).unwrap();
    }
    if let Some(path) = &wanted.svg {
        std::fs::write(path, report::picture(&tables)).unwrap();
    }
}

/// What was asked for.
struct Wanted {
    settings: Vec<Setting>,
    schemes: Vec<Scheme>,
    only: Vec<String>,
    range_bytes: usize,
    threads: usize,
    rounds: usize,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

/// What lies between the server and its clients.
#[derive(Clone, Serialize)]
struct Setting {
    rate_mb_s: Option<u64>,
    rtt_ms: f64,
    connections: usize,
    /// Times that a contender receives a range on each connection, in one round.
    turns: usize,
}

impl Wanted {
    fn read() -> Self {
        let mut options = Options::read();
        let quick = options.flag("--quick") || !options.measures();
        let (paced_only, unpaced_only) = (options.flag("--paced"), options.flag("--unpaced"));
        let turns = if quick { 1 } else { 4 };
        let paced = Setting {
            rate_mb_s: Some(options.value("--rate", 500)),
            rtt_ms: options.value("--rtt", 15.0),
            connections: options.value("--connections", if quick { 8 } else { 32 }),
            turns,
        };
        let unpaced = Setting { rate_mb_s: None, rtt_ms: 0.0, connections: 8, turns: 4 * turns };
        let wanted = Wanted {
            settings: match (paced_only, unpaced_only) {
                (false, true) => vec![unpaced],
                (true, false) => vec![paced],
                _ => vec![paced, unpaced],
            },
            schemes: options.list("--scheme", vec![Scheme::Http, Scheme::Https, Scheme::S3]),
            only: options.list("--only", Vec::new()),
            range_bytes: options.value("--range", 8) << 20,
            threads: options.value("--threads", 1),
            rounds: options.value("--rounds", if quick { 1 } else { 5 }),
            json: options.path("--json"),
            svg: options.path("--svg"),
        };
        options.finish();
        wanted
    }

    fn takes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Everyone's costs in one setting, by round.
#[derive(Serialize)]
struct Table {
    scheme: Scheme,
    setting: Setting,
    range_bytes: usize,
    threads: usize,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    contender: &'static str,
    rounds: Vec<Cost>,
}

fn compare(wanted: &Wanted, setting: &Setting, scheme: Scheme, nginx: &Nginx, digests: &[u64]) -> Table {
    let mut origin = origin(nginx, scheme);
    let distance =
        setting.rate_mb_s.map(|rate| Distance::start(origin.port, (setting.rtt_ms * 1e3) as u64, rate * 1_000_000));
    if let Some(distance) = &distance {
        origin.port = distance.port;
    }
    let contenders = names(scheme).iter().filter(|name| wanted.takes(name));
    let mut rows: Vec<Row> = contenders.map(|contender| Row { contender, rounds: Vec::new() }).collect();
    for round in 0..wanted.rounds {
        // A machine that gets slower within a round favours the first one in one round and the last one in the next.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for row in order {
            let cost = turn(wanted, setting, rows[row].contender, &origin, digests);
            let (name, contender) = (scheme.name(), rows[row].contender);
            let (cpu, rate) = (cost.cpu_s_per_gb, cost.gb_per_s);
            eprintln!("{name:5} round {}: {contender:24} {cpu:.3} CPU-s/GB, {rate:.2} GB/s", round + 1);
            rows[row].rounds.push(cost);
        }
    }
    Table { scheme, setting: setting.clone(), range_bytes: wanted.range_bytes, threads: wanted.threads, rows }
}

fn origin(nginx: &Nginx, scheme: Scheme) -> Origin {
    match scheme {
        Scheme::Http | Scheme::S3 => Origin { scheme, port: nginx.port(Site::Http), authority: None },
        Scheme::Https => Origin { scheme, port: nginx.port(Site::Tls13), authority: Some(nginx.ca()) },
    }
}

fn turn(wanted: &Wanted, setting: &Setting, contender: &str, origin: &Origin, digests: &[u64]) -> Cost {
    let task = contender::Task {
        contender: contender.to_owned(),
        origin: origin.clone(),
        connections: setting.connections,
        range_bytes: wanted.range_bytes,
        threads: wanted.threads,
        warm_rounds: 1,
        rounds: setting.turns,
        digests: digests[..2 * setting.connections].to_vec(),
    };
    process::measure(CONTENDER, &task)
}
