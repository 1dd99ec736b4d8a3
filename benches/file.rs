//! The file store beside the least that reads the same file: a bare io_uring loop, `O_DIRECT`, 1 MiB blocks, 32 in
//! flight, into pages of the same slab.
//!
//! `cargo bench --bench file` writes 512 MiB to the temporary folder (`TMPDIR`; it must be on a disk) and removes them.
//! Both readers first read all of it with its checksum; then they take turns, and each block's stamps are looked at.

use std::cell::Cell;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use criterion::{Criterion, SamplingMode, Throughput};
use farfeed::memory::{Landing, Slab};
use farfeed::store::{FileOptions, FileStore, ReadRequest, Store};
use tokio::runtime::Runtime;

const BLOCK_BYTES: usize = 1 << 20;
const BLOCKS: u64 = 512;
const DEPTH: usize = 32;
/// Turns that each reader takes for the ratio.
const TURNS: usize = 15;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("blocks");
    let checksums = write_blocks(&path).expect("writing the file");
    let bench = Bench::new(&path);
    bench.verify(&checksums);
    bench.ratio();

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("file/1MiB-blocks-32-in-flight");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).throughput(Throughput::Bytes(BLOCKS * BLOCK_BYTES as u64));
    group.measurement_time(Duration::from_secs(4));
    group.bench_function("bare", |b| b.iter(|| bench.bare(&stamped)));
    group.bench_function("store", |b| b.iter(|| bench.store(&stamped)));
    group.finish();
    criterion.final_summary();
}

struct Bench {
    file: File,
    key: Arc<str>,
    slab: Slab,
    store: Arc<FileStore>,
    runtime: Runtime,
}

impl Bench {
    fn new(path: &Path) -> Self {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        Bench {
            file: File::options()
                .read(true)
                .custom_flags(direct)
                .open(path)
                .expect("direct reads: set TMPDIR to a folder on a disk"),
            key: path.to_str().expect("a path in UTF-8").into(),
            slab: Slab::new(DEPTH * BLOCK_BYTES, BLOCK_BYTES).expect("a slab"),
            store: FileStore::open(FileOptions::default()).expect("a file store"),
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
        }
    }

    /// Reads the file once without the store.
    fn bare(&self, each: &dyn Fn(u64, &[u8])) {
        let pages = self.slab.take(DEPTH).expect("all pages are free");
        farfeed::bare::read_blocks(&self.file, BLOCKS, pages, each).expect("reading");
    }

    /// Reads the file once through the store.
    fn store(&self, each: &dyn Fn(u64, &[u8])) {
        let next = AtomicU64::new(0);
        let reader = async || {
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                if block >= BLOCKS {
                    return;
                }
                let pages = self.slab.take(1).expect("a page for each reader");
                let mut landing = Landing::new(pages, BLOCK_BYTES);
                let start = block * BLOCK_BYTES as u64;
                let request = ReadRequest { key: Arc::clone(&self.key), start, size: None, version: None };
                self.store.read(&request, &mut landing).await.expect("reading");
                let landed = landing.landed().expect("all of it");
                each(block, landed.slices(0, BLOCK_BYTES).next().expect("one page"));
            }
        };
        self.runtime.block_on(join_all((0..DEPTH).map(|_| reader())));
    }

    fn verify(&self, checksums: &[u64]) {
        for read in [Bench::bare, Bench::store] {
            let seen = Cell::new(0);
            read(self, &|block, bytes| {
                assert_eq!(crc_fast::checksum(Crc32Iscsi, bytes), checksums[block as usize], "block {block}");
                seen.set(seen.get() + 1);
            });
            assert_eq!(seen.get(), BLOCKS);
        }
    }

    /// Takes turns, so that a machine that slows down slows both; compares medians.
    fn ratio(&self) {
        let (mut bare, mut store) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            bare.push(cost(|| self.bare(&stamped)));
            store.push(cost(|| self.store(&stamped)));
        }
        let gigabytes = BLOCKS as f64 * BLOCK_BYTES as f64 / 1e9;
        let [bare, store] = [bare, store].map(|turns| {
            let median = |of: fn(&(f64, f64)) -> f64| {
                let mut values: Vec<f64> = turns.iter().map(of).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2] / gigabytes
            };
            (median(|turn| turn.0), median(|turn| turn.1))
        });
        println!(
            "file store {:.2} GB/s, bare io_uring {:.2} GB/s: ratio {:.1} % (>= 95 % wanted); \
             CPU-s/GB {:.4} against {:.4}; checksums right, median of {TURNS} turns each",
            1.0 / store.0,
            1.0 / bare.0,
            100.0 * bare.0 / store.0,
            store.1,
            bare.1,
        );
    }
}

/// Wall and CPU seconds.
fn cost(work: impl FnOnce()) -> (f64, f64) {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    work();
    (started.elapsed().as_secs_f64(), cpu_seconds() - cpu)
}

/// Time on a processor of all threads there are, the kernel's for this process included.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs");
    let spent = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    spent.sum::<u64>() as f64 / 1e9
}

/// Looks at both ends of a block: what every turn checks without touching all bytes.
fn stamped(block: u64, bytes: &[u8]) {
    let (first, last) = (&bytes[..8], &bytes[BLOCK_BYTES - 8..]);
    assert!(first == block.to_le_bytes() && last == (!block).to_le_bytes(), "block {block}");
    black_box(bytes);
}

/// Writes stamped blocks of noise; gives their checksums.
fn write_blocks(path: &Path) -> std::io::Result<Vec<u64>> {
    let mut file = File::create(path)?;
    let mut state = 1u64;
    let mut block_bytes = vec![0u8; BLOCK_BYTES];
    let mut checksums = Vec::new();
    for block in 0..BLOCKS {
        for word in block_bytes.chunks_exact_mut(8) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        block_bytes[..8].copy_from_slice(&block.to_le_bytes());
        block_bytes[BLOCK_BYTES - 8..].copy_from_slice(&(!block).to_le_bytes());
        checksums.push(crc_fast::checksum(Crc32Iscsi, &block_bytes));
        file.write_all(&block_bytes)?;
    }
    file.sync_all()?;
    Ok(checksums)
}

/// Runs futures side by side on this thread.
async fn join_all<F: Future<Output = ()>>(futures: impl Iterator<Item = F>) {
    let mut futures: Vec<_> = futures.map(Box::pin).map(Some).collect();
    std::future::poll_fn(|context| {
        for slot in &mut futures {
            if slot.as_mut().is_some_and(|future| future.as_mut().poll(context).is_ready()) {
                *slot = None;
            }
        }
        if futures.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
