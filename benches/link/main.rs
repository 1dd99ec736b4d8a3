//! The whole loader across an emulated link of 0, 15 and 30 ms, beside what the design promises.
//!
//! `cargo bench --bench link -- [--rate MB_PER_S] [--rounds N] [--size MB]`, for about a minute
//!
//! A WebDataset of 2.4 s of the link is made in the temporary folder (`TMPDIR`): 300 MB at the default 125 MB/s. For each pass, server and client are processes of their own, so that CPU
//! time and peak memory are the client's. At each distance one pass goes as fast as the link allows, and one consumes 60 % of its rate,
//! each with a cold start. Distances take turns; medians of the rounds are printed. Every sample's bytes are checked, outside the CPU time
//! that is reported. One MB is 1e6 bytes. What misses its target is marked; that is a report, no failure.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm::Crc64Nvme;
use farfeed::emulate::{Faults, Link, Server, Site};
use farfeed::fetch::RetryPolicy;
use farfeed::loader::{index, index_location};
use farfeed::order::Shuffle;
use farfeed::{Batch, ByteSize, Field, Loader};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

const RTTS_MS: [u64; 3] = [0, 15, 30];
const SHARDS: u64 = 8;
/// The mean size of an image; sizes lie within half of it to either side.
const IMAGE_BYTES: u64 = 100_000;
const BATCH_SIZE: u32 = 64;
const WINDOW: u64 = 512;
const HOST_MEMORY: ByteSize = ByteSize::mib(256);
/// The share of the link's rate that the paced passes consume.
const DEMAND: f64 = 0.6;

const SHARE_TARGET: f64 = 0.90;
const STEP_TARGET: f64 = 0.01;
const COPIES_TARGET: f64 = 0.01;
/// Memory of the process beside pages and slots.
const RSS_ALLOWANCE: u64 = 64 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--serve") => serve(&arguments[1..]),
        Some("--client") => println!("{}", serde_json::to_string(&stream(&arguments[1..])).unwrap()),
        _ => compare(&arguments),
    }
}

/// All passes, and the report.
fn compare(arguments: &[String]) {
    let number = |name: &str, default: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap())
    };
    // `cargo test --benches` wants to know whether it runs, not how fast.
    let measure = arguments.iter().any(|argument| argument == "--bench");
    let (rounds, centiseconds) = if measure { (3, 240) } else { (1, 16) };
    let (megabytes_s, rounds) = (number("--rate", 125), number("--rounds", rounds).max(1));
    let rate = megabytes_s * 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let samples = write_dataset(folder.path(), number("--size", megabytes_s * centiseconds / 100) * 1_000_000);
    eprintln!("{samples} samples; {rounds} rounds at an emulated {} MB/s", rate / 1_000_000);
    let mut results: BTreeMap<u64, Vec<[Pass; 2]>> = BTreeMap::new();
    for round in 1..=rounds {
        for rtt_ms in RTTS_MS {
            let passes =
                [None, Some((rate as f64 * DEMAND) as u64)].map(|pace| pass(folder.path(), rtt_ms, rate, pace));
            eprintln!(
                "round {round}, {rtt_ms:>2} ms: {:.1} MB/s as fast as it goes, {:.2} ms per step at {:.0} % of the rate",
                passes[0].goodput() / 1e6,
                1e3 * passes[1].step_s,
                100.0 * DEMAND
            );
            results.entry(rtt_ms).or_default().push(passes);
        }
    }
    report(&results, rate, rounds);
}

/// What a client measured. Times in seconds, sizes in bytes.
#[derive(Serialize, Deserialize)]
struct Pass {
    /// Bytes fetched, and the time from asking for the first batch to the delivery of the last.
    fetched: u64,
    streaming_s: f64,
    first_batch_s: f64,
    first_batch_bytes: u64,
    /// Payload per second from the first delivery to the last, the first batch apart.
    later_goodput: f64,
    /// From the first delivery to the end of the last step, per batch.
    step_s: f64,
    stall_share: f64,
    cpu_s: f64,
    copies_per_byte: f64,
    connections: u64,
    retries: u64,
    peak_rss: u64,
    rss_bound: u64,
}

impl Pass {
    fn goodput(&self) -> f64 {
        self.fetched as f64 / self.streaming_s
    }
}

/// One epoch from a fresh server by a fresh client.
fn pass(folder: &Path, rtt_ms: u64, rate: u64, pace: Option<u64>) -> Pass {
    let server = Distant::start(folder, rtt_ms, rate);
    let this = std::env::current_exe().unwrap();
    let (pace, digests) = (pace.unwrap_or(0).to_string(), digests_of(folder));
    let client = Command::new(this).args(["--client", &server.url, &pace]).arg(digests).output().unwrap();
    assert!(client.status.success(), "the client failed: {}", String::from_utf8_lossy(&client.stderr));
    serde_json::from_slice(&client.stdout).unwrap()
}

/// The server's process, ended when dropped.
struct Distant {
    child: Child,
    url: String,
}

impl Distant {
    fn start(folder: &Path, rtt_ms: u64, rate: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .arg(folder)
            .args([rtt_ms.to_string(), rate.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Distant { child, url: url.trim().to_owned() }
    }
}

impl Drop for Distant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves a folder until standard input closes.
fn serve(arguments: &[String]) {
    let [folder, rtt_ms, rate] = arguments else { panic!("--serve FOLDER RTT_MS BYTES_PER_S") };
    let link = Link::rtt(Duration::from_millis(rtt_ms.parse().unwrap())).rate(rate.parse().unwrap());
    let server = Server::start(Site::directory(folder), link, Faults::none()).unwrap();
    println!("{}", server.url());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Streams one epoch, checking every sample.
fn stream(arguments: &[String]) -> Pass {
    let [url, pace, digests] = arguments else { panic!("--client URL BYTES_PER_S DIGESTS") };
    let pace: f64 = pace.parse().unwrap();
    let mut checklist = Checklist::read(Path::new(digests));
    let loader = Loader::builder(format!("{url}/{}", pattern()))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(BATCH_SIZE)
        .shuffle(Shuffle::window(WINDOW).seed(7))
        .host_memory(HOST_MEMORY)
        .epochs(1)
        .patience(Duration::from_secs(60))
        .build()
        .unwrap();
    // The bound is for open connections: a training script makes its model meanwhile.
    std::thread::sleep(Duration::from_millis(200));
    let fetched_before = loader.stats().fetch.bytes;
    let (asked, cpu) = (Instant::now(), cpu_time(ClockId::ProcessCPUTime));
    let (mut first, mut delivered, mut batches, mut own_cpu) = (None, asked, 0, Duration::ZERO);
    let mut payload = 0;
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        delivered = Instant::now();
        let own = cpu_time(ClockId::ThreadCPUTime);
        first.get_or_insert((delivered, batch.payload_bytes()));
        checklist.check(&batch);
        if pace > 0.0 {
            // The step begins with the delivery: the check is a part of it.
            hold_until(delivered + Duration::from_secs_f64(batch.payload_bytes() as f64 / pace));
        }
        batches += 1;
        payload += batch.payload_bytes();
        own_cpu += cpu_time(ClockId::ThreadCPUTime) - own;
    }
    let (ended, cpu_s) = (Instant::now(), cpu_time(ClockId::ProcessCPUTime) - cpu - own_cpu);
    assert!(checklist.seen.iter().all(|seen| *seen), "a sample never came");
    let (first_at, first_batch_bytes) = first.unwrap();
    let (stats, plan) = (loader.stats(), loader.plan());
    Pass {
        fetched: stats.fetch.bytes - fetched_before,
        streaming_s: (delivered - asked).as_secs_f64(),
        first_batch_s: (first_at - asked).as_secs_f64(),
        first_batch_bytes,
        later_goodput: (payload - first_batch_bytes) as f64 / (delivered - first_at).as_secs_f64(),
        step_s: (ended - first_at).as_secs_f64() / f64::from(batches),
        stall_share: stats.stall_share,
        cpu_s: cpu_s.as_secs_f64(),
        copies_per_byte: stats.copies_per_byte,
        connections: stats.connections_opened,
        retries: stats.retries,
        peak_rss: peak_rss(),
        rss_bound: HOST_MEMORY.as_bytes() + (plan.slots * plan.slot_bytes) as u64 + RSS_ALLOWANCE,
    }
}

/// What each sample must be, by number, and which have come.
struct Checklist {
    digests: Vec<u64>,
    seen: Vec<bool>,
}

impl Checklist {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let digests: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
        Checklist { seen: vec![false; digests.len()], digests }
    }

    fn check(&mut self, batch: &Batch) {
        let (images, labels) = (batch.ragged("jpg").unwrap(), batch.ints("cls").unwrap());
        for (row, label) in labels.into_iter().enumerate() {
            let sample = usize::try_from(label).unwrap();
            let digest = crc_fast::checksum(Crc64Nvme, images.row(row).unwrap());
            assert_eq!(digest, self.digests[sample], "sample {sample} is not what was written");
            assert_eq!(batch.key(row).unwrap(), key(label as u64));
            assert!(!std::mem::replace(&mut self.seen[sample], true), "sample {sample} came twice");
        }
    }
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The most memory that this process ever had, in bytes.
fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

/// Sleeps until just before `deadline` and spins for the rest: a sleep ends late.
fn hold_until(deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    std::thread::sleep(left.saturating_sub(Duration::from_micros(300)));
    while Instant::now() < deadline {
        std::hint::spin_loop();
    }
}

/// Writes about `size` bytes of noise as shards, their index, and a digest per sample; gives the number of samples.
fn write_dataset(folder: &Path, size: u64) -> usize {
    let mut noise = Noise { state: 0x9e37_79b9_7f4a_7c15 };
    let mut digests = Vec::new();
    for shard in 0..SHARDS {
        let file = File::create(folder.join(format!("train-{shard:04}.tar"))).unwrap();
        let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        let mut written = 0;
        while written < size / SHARDS {
            let (number, image) = (digests.len() as u64, noise.image());
            append(&mut archive, &format!("{}.jpg", key(number)), &image);
            append(&mut archive, &format!("{}.cls", key(number)), number.to_string().as_bytes());
            digests.push(crc_fast::checksum(Crc64Nvme, &image));
            written += image.len() as u64;
        }
        archive.into_inner().unwrap().flush().unwrap();
    }
    let shards = folder.join(pattern()).to_str().unwrap().to_owned();
    let found = index(std::slice::from_ref(&shards), RetryPolicy::default(), &(Arc::new(|_| {}) as _)).unwrap();
    fs::write(index_location(&shards), found.encode()).unwrap();
    let bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
    fs::write(digests_of(folder), bytes).unwrap();
    digests.len()
}

fn pattern() -> String {
    format!("train-{{0000..{:04}}}.tar", SHARDS - 1)
}

fn key(number: u64) -> String {
    format!("{number:06}")
}

fn digests_of(folder: &Path) -> PathBuf {
    folder.join("digests")
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, name, bytes).unwrap();
}

/// The same on every machine (xorshift64).
struct Noise {
    state: u64,
}

impl Noise {
    fn image(&mut self) -> Vec<u8> {
        let len = (IMAGE_BYTES / 2 + self.draw() % IMAGE_BYTES) as usize;
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.draw().to_le_bytes()).collect();
        bytes.truncate(len);
        bytes
    }

    fn draw(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

/// Prints medians and targets as a table.
fn report(results: &BTreeMap<u64, Vec<[Pass; 2]>>, rate: u64, rounds: u64) {
    let header = [
        "RTT",
        "share of the rate",
        "after the first batch",
        "first batch",
        "stalled",
        "step",
        "against 0 ms",
        "CPU-s/GB",
        "copies/byte",
        "peak RSS",
        "connections",
        "retries",
    ];
    println!(
        "\nEmulated link of {} MB/s; medians of {rounds} rounds. Share, CPU, copies: as fast as it goes. Stall and step: at {:.0} % of \
         the rate. First batch, RSS, connections, retries: the larger of both.\n",
        rate / 1_000_000,
        100.0 * DEMAND
    );
    println!("| {} |\n|{}", header.join(" | "), "--:|".repeat(header.len()));
    for (rtt_ms, rows) in results {
        println!("| {} |", cells(*rtt_ms, rows, &results[&RTTS_MS[0]], rate).join(" | "));
    }
    println!(
        "| target | >= {:.0} % |  | <= 3 RTT + bytes/rate |  |  | <= +{:.0} % |  | <= {COPIES_TARGET} | <= pages + slots + {} MiB |  | 0 |",
        100.0 * SHARE_TARGET,
        100.0 * STEP_TARGET,
        RSS_ALLOWANCE >> 20
    );
}

fn cells(rtt_ms: u64, rows: &[[Pass; 2]], nearest: &[[Pass; 2]], rate: u64) -> [String; 12] {
    let flat_out = |of: &dyn Fn(&Pass) -> f64| median(rows.iter().map(|[flat_out, _]| of(flat_out)));
    let paced = |of: &dyn Fn(&Pass) -> f64| median(rows.iter().map(|[_, paced]| of(paced)));
    let larger = |of: &dyn Fn(&Pass) -> f64| flat_out(of).max(paced(of));
    let share = flat_out(&|pass| pass.goodput() / rate as f64);
    let first = larger(&|pass| pass.first_batch_s);
    let first_target = larger(&|pass| 3e-3 * rtt_ms as f64 + pass.first_batch_bytes as f64 / rate as f64);
    // Against the pass without distance of the same round: what slows the machine down slows both.
    let step = median(rows.iter().zip(nearest).map(|([_, far], [_, near])| far.step_s / near.step_s - 1.0));
    let copies = flat_out(&|pass| pass.copies_per_byte);
    let (rss, rss_bound) = (larger(&|pass| pass.peak_rss as f64), larger(&|pass| pass.rss_bound as f64));
    let retries = larger(&|pass| pass.retries as f64);
    [
        format!("{rtt_ms} ms"),
        format!("{:.1} % {}", 100.0 * share, verdict(share >= SHARE_TARGET)),
        format!("{:.1} %", 100.0 * flat_out(&|pass| pass.later_goodput / rate as f64)),
        format!("{:.0} of {:.0} ms {}", 1e3 * first, 1e3 * first_target, verdict(first <= first_target)),
        format!("{:.2} %", 100.0 * paced(&|pass| pass.stall_share)),
        format!("{:.2} ms", 1e3 * paced(&|pass| pass.step_s)),
        format!("{:+.2} % {}", 100.0 * step, verdict(step <= STEP_TARGET)),
        format!("{:.2}", flat_out(&|pass| pass.cpu_s / (pass.fetched as f64 / 1e9))),
        format!("{copies:.4} {}", verdict(copies <= COPIES_TARGET)),
        format!("{:.0} of {:.0} MB {}", rss / 1e6, rss_bound / 1e6, verdict(rss <= rss_bound)),
        format!("{:.0}", larger(&|pass| pass.connections as f64)),
        format!("{retries:.0} {}", verdict(retries == 0.0)),
    ]
}

fn verdict(met: bool) -> &'static str {
    if met { "ok" } else { "miss" }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
