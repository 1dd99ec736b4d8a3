//! What receiving costs: `HttpStore` against a bare `recv` loop into the same pages.
//!
//! `cargo bench --bench receive -- [--paced MB_PER_S] [--passes N] [--rounds N]`
//!
//! Plain HTTP over loopback, 8 connections, ranges of 8 MiB. The server is another process, so the CPU time of this one is the
//! client's. Contenders take turns; every byte is checked, outside the clock. The bare loops are the ceiling: one blocking thread per
//! connection, no parsing beyond the header's end, no checks. One GB is 1e9 bytes.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use farfeed::memory::{Landing, Slab};
use farfeed::store::{HttpOptions, HttpStore, ReadRequest, Store};
use rustix::net::{RecvFlags, recv};
use rustix::time::{ClockId, clock_gettime};

const CONNECTIONS: usize = 8;
const REQUEST_BYTES: usize = 8 << 20;
const PAGE_BYTES: usize = 1 << 20;
const ROUND_BYTES: usize = CONNECTIONS * REQUEST_BYTES;

const RATIO_TARGET: f64 = 1.2;
const COPIES_TARGET: f64 = 0.01;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().unwrap())
    };
    let paced = number("--paced", 0);
    if arguments.iter().any(|argument| argument == "--serve") {
        return serve(paced);
    }
    let server = Server::start(paced);
    let object = Arc::new(object());
    let slab = Slab::new(ROUND_BYTES, PAGE_BYTES).unwrap();
    let mut contenders: Vec<Box<dyn Contender>> = vec![
        Box::new(Bare::start("bare recv", server.port, RecvFlags::empty())),
        Box::new(Bare::start("bare recv, MSG_WAITALL", server.port, RecvFlags::WAITALL)),
        Box::new(Ours::open(server.port)),
    ];
    let rounds = number("--rounds", if paced == 0 { 16 } else { 8 });
    for contender in &mut contenders {
        pass(&mut **contender, &slab, &object, 1);
    }
    let mut results: Vec<Vec<Pass>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..number("--passes", 9) {
        for (contender, results) in contenders.iter_mut().zip(&mut results) {
            results.push(pass(&mut **contender, &slab, &object, rounds));
        }
    }
    report(&contenders, &results, rounds, paced);
}

/// Something that receives `CONNECTIONS` ranges at once, the n-th at n × `REQUEST_BYTES`.
trait Contender {
    fn name(&self) -> &'static str;

    /// Fills all landings; gives the bytes that were copied in user space.
    fn receive(&mut self, landings: Vec<Landing>) -> (Vec<Landing>, u64);
}

#[derive(Clone, Copy)]
struct Pass {
    cpu_s_per_gb: f64,
    gb_per_s: f64,
    switches_per_gb: f64,
    copies_per_byte: f64,
}

fn pass(contender: &mut dyn Contender, slab: &Slab, object: &[u8], rounds: usize) -> Pass {
    let (mut cpu, mut wall, mut switches, mut copied) = (Duration::ZERO, Duration::ZERO, 0, 0);
    for _ in 0..rounds {
        let take = || Landing::new(slab.take(REQUEST_BYTES / PAGE_BYTES).unwrap(), REQUEST_BYTES);
        let landings = (0..CONNECTIONS).map(|_| take()).collect();
        let (switches_before, cpu_before, began) = (context_switches(), cpu_time(), Instant::now());
        let (landings, bytes) = contender.receive(landings);
        wall += began.elapsed();
        cpu += cpu_time() - cpu_before;
        switches += context_switches() - switches_before;
        copied += bytes;
        for (landing, expected) in landings.into_iter().zip(object.chunks(REQUEST_BYTES)) {
            let landed = landing.landed().unwrap();
            let mut at = 0;
            for slice in landed.slices(0, REQUEST_BYTES) {
                assert!(slice == &expected[at..at + slice.len()], "{}: wrong bytes at {at}", contender.name());
                at += slice.len();
            }
        }
    }
    let bytes = (rounds * ROUND_BYTES) as f64;
    Pass {
        cpu_s_per_gb: cpu.as_secs_f64() / (bytes / 1e9),
        gb_per_s: bytes / 1e9 / wall.as_secs_f64(),
        switches_per_gb: switches as f64 / (bytes / 1e9),
        copies_per_byte: copied as f64 / bytes,
    }
}

fn report(contenders: &[Box<dyn Contender>], results: &[Vec<Pass>], rounds: usize, paced: usize) {
    let pace = if paced == 0 { "unpaced".to_owned() } else { format!("paced at {paced} MB/s") };
    println!(
        "{CONNECTIONS} connections x 8 MiB, {pace}; {} passes of {} MiB",
        results[0].len(),
        (rounds * ROUND_BYTES) >> 20
    );
    println!(
        "{:24} {:>10} {:>17} {:>8} {:>14} {:>12}",
        "", "CPU-s/GB", "(range)", "GB/s", "switches/GB", "copies/byte"
    );
    for (contender, passes) in contenders.iter().zip(results) {
        let column = |of: fn(&Pass) -> f64| median(passes.iter().map(of));
        let cpu = || passes.iter().map(|pass| pass.cpu_s_per_gb);
        println!(
            "{:24} {:>10.3} {:>17} {:>8.2} {:>14.0} {:>12.5}",
            contender.name(),
            column(|pass| pass.cpu_s_per_gb),
            format!("({:.3}-{:.3})", cpu().fold(f64::INFINITY, f64::min), cpu().fold(0.0, f64::max)),
            column(|pass| pass.gb_per_s),
            column(|pass| pass.switches_per_gb),
            column(|pass| pass.copies_per_byte),
        );
    }
    let ours = results.last().unwrap();
    for (contender, bare) in contenders.iter().zip(results).take(contenders.len() - 1) {
        // Neighbours in time share the machine's mood.
        let ratio = median(ours.iter().zip(bare).map(|(ours, bare)| ours.cpu_s_per_gb / bare.cpu_s_per_gb));
        let verdict = if ratio <= RATIO_TARGET { "met" } else { "MISSED" };
        println!("HttpStore / {}: {ratio:.2} (target: at most {RATIO_TARGET}, {verdict})", contender.name());
    }
    let copies = median(ours.iter().map(|pass| pass.copies_per_byte));
    assert!(copies <= COPIES_TARGET, "{copies} copies per byte");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Of all threads of this process.
fn context_switches() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let statuses = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let count = |line: &str| line.split_once("ctxt_switches:").and_then(|(_, count)| count.trim().parse::<u64>().ok());
    statuses.map(|status| status.lines().filter_map(count).sum::<u64>()).sum()
}

/// Our client: one reactor thread.
struct Ours {
    store: Arc<HttpStore>,
    reactor: tokio::runtime::Runtime,
}

impl Ours {
    fn open(port: u16) -> Self {
        let store = HttpStore::open(&format!("http://127.0.0.1:{port}"), HttpOptions::default()).unwrap();
        let reactor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Ours { store, reactor }
    }
}

impl Contender for Ours {
    fn name(&self) -> &'static str {
        "HttpStore"
    }

    fn receive(&mut self, landings: Vec<Landing>) -> (Vec<Landing>, u64) {
        self.reactor.block_on(async {
            let mut reads = Vec::new();
            for (index, mut landing) in landings.into_iter().enumerate() {
                let store = Arc::clone(&self.store);
                reads.push(tokio::spawn(async move {
                    let start = (index * REQUEST_BYTES) as u64;
                    let request =
                        ReadRequest { key: "object".into(), start, size: Some(ROUND_BYTES as u64), version: None };
                    let arrival = store.read(&request, &mut landing).await.unwrap();
                    (landing, arrival.copied)
                }));
            }
            let (mut landings, mut copied) = (Vec::new(), 0);
            for read in reads {
                let (landing, bytes) = read.await.unwrap();
                landings.push(landing);
                copied += bytes;
            }
            (landings, copied)
        })
    }
}

/// The floor: a blocking thread per connection that does nothing but `recv`.
struct Bare {
    name: &'static str,
    threads: Vec<(SyncSender<Landing>, Receiver<Landing>)>,
}

impl Bare {
    fn start(name: &'static str, port: u16, flags: RecvFlags) -> Self {
        let start = |index: usize| {
            let (to_thread, landings) = sync_channel::<Landing>(1);
            let (done, from_thread) = sync_channel(1);
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_nodelay(true).unwrap();
            thread::spawn(move || {
                for mut landing in landings {
                    receive_bare(&mut socket, index * REQUEST_BYTES, &mut landing, flags);
                    done.send(landing).unwrap();
                }
            });
            (to_thread, from_thread)
        };
        Bare { name, threads: (0..CONNECTIONS).map(start).collect() }
    }
}

impl Contender for Bare {
    fn name(&self) -> &'static str {
        self.name
    }

    fn receive(&mut self, landings: Vec<Landing>) -> (Vec<Landing>, u64) {
        for ((to_thread, _), landing) in self.threads.iter().zip(landings) {
            to_thread.send(landing).unwrap();
        }
        let landings: Vec<Landing> = self.threads.iter().map(|(_, from_thread)| from_thread.recv().unwrap()).collect();
        (landings, 0)
    }
}

fn receive_bare(socket: &mut TcpStream, start: usize, landing: &mut Landing, flags: RecvFlags) {
    let last = start + landing.len() - 1;
    let request = format!("GET /object HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{last}\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut scratch = [0; 4096];
    let mut here = 0;
    let end = loop {
        here += socket.read(&mut scratch[here..]).unwrap();
        if let Some(end) = scratch[..here].windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    landing.push(&scratch[end..here]);
    while landing.remaining() > 0 {
        let (count, _) = recv(&*socket, landing.spare(), flags).unwrap();
        assert!(count > 0, "the server closed the connection");
        landing.advance(count);
    }
}

/// The server, in a process of its own; ends with this one.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(paced: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--serve", "--paced", &paced.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Server { child, port: line.trim().parse().unwrap() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every eight bytes differ, so that nothing that lands in the wrong place looks right.
fn object() -> Vec<u8> {
    (0..ROUND_BYTES as u64 / 8).flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect()
}

/// Serves ranges of the object by `sendfile` until standard input ends: until the benchmark does.
fn serve(paced: usize) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&object()).unwrap();
    let file = Arc::new(file);
    let pacer = Arc::new(Pacer { next: Mutex::new(Instant::now()), bytes_per_s: paced as f64 * 1e6 });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (file, pacer) = (Arc::clone(&file), Arc::clone(&pacer));
            thread::spawn(move || answer(&socket, &file, &pacer));
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
}

fn answer(mut socket: &TcpStream, file: &std::fs::File, pacer: &Pacer) {
    const PIECE_BYTES: usize = 256 << 10;
    socket.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(socket);
    loop {
        let mut range = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some((first, last)) =
                line.trim_end().strip_prefix("Range: bytes=").and_then(|range| range.split_once('-'))
            {
                range = Some((first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap()));
            }
            if line == "\r\n" {
                break;
            }
        }
        let (first, last) = range.unwrap();
        let mut left = last + 1 - first;
        let header = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {left}\r\nContent-Range: bytes {first}-{last}/{ROUND_BYTES}\r\n\
             ETag: \"bench\"\r\nContent-Type: application/octet-stream\r\n\r\n"
        );
        if socket.write_all(header.as_bytes()).is_err() {
            return;
        }
        let mut offset = first as u64;
        while left > 0 {
            pacer.wait(left.min(PIECE_BYTES));
            let mut piece = left.min(PIECE_BYTES);
            while piece > 0 {
                let Ok(sent) = rustix::fs::sendfile(socket, file, Some(&mut offset), piece) else { return };
                piece -= sent;
                left -= sent;
            }
        }
    }
}

/// One rate for all connections together.
struct Pacer {
    next: Mutex<Instant>,
    bytes_per_s: f64,
}

impl Pacer {
    fn wait(&self, bytes: usize) {
        if self.bytes_per_s == 0.0 {
            return;
        }
        let due = {
            let mut next = self.next.lock().unwrap();
            let due = (*next).max(Instant::now());
            *next = due + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
            due
        };
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}
