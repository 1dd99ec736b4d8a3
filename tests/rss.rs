//! The process stays within host memory, device slots and 64 MiB. Alone in its binary: the peak is the process's.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use farfeed::emulate::{Faults, Link, Server, Site};
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Field, Loader};

const SHARDS: u64 = 4;
const PER_SHARD: u64 = 500;
const IMAGE_BYTES: u64 = 100_000;
const HOST_MEMORY: ByteSize = ByteSize::mib(64);
/// Threads, connections, the index, the order; in this test the server and the test itself too.
const ALLOWANCE: u64 = 64 << 20;

#[test]
fn the_process_stays_within_host_memory_and_slots() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write_shards(folder.path());
    // The server sends from the files: it has no payload in memory.
    let server = Server::start(Site::directory(folder.path()), Link::default(), Faults::none()).unwrap();
    let loader = Loader::builder(format!("{}/train-{{0000..{:04}}}.tar", server.url(), SHARDS - 1))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .shuffle(Shuffle::window(64).seed(5))
        .lanes(1)
        .host_memory(HOST_MEMORY)
        .epochs(1)
        .build()
        .unwrap();
    let mut seen = vec![false; (SHARDS * PER_SHARD) as usize];
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        for (image, label) in batch.ragged("jpg").unwrap().iter().zip(batch.ints("cls").unwrap()) {
            assert!(image.len() as u64 == IMAGE_BYTES && image.iter().all(|byte| *byte == label as u8), "{label}");
            assert!(!std::mem::replace(&mut seen[label as usize], true), "{label} came twice");
        }
    }
    assert!(seen.iter().all(|seen| *seen));
    let (stats, plan) = (loader.stats(), loader.plan());
    assert!(stats.fetch.bytes >= bytes * 9 / 10, "{} of {bytes} bytes came through the pages", stats.fetch.bytes);
    let slots = (plan.slots * plan.slot_bytes) as u64;
    let (peak, bound) = (peak_rss(), HOST_MEMORY.as_bytes() + slots + ALLOWANCE);
    println!("peak RSS {} MiB of {} MiB, {} MiB of them slots", peak >> 20, bound >> 20, slots >> 20);
    assert!(bound < bytes, "what is streamed would break the bound if it were kept");
    assert!(peak <= bound, "peak RSS is {peak} bytes, the bound {bound}");
}

/// Images whose bytes all say which one it is; gives the bytes of all shards.
fn write_shards(folder: &Path) -> u64 {
    let mut bytes = 0;
    for shard in 0..SHARDS {
        let path = folder.join(format!("train-{shard:04}.tar"));
        let mut archive = tar::Builder::new(BufWriter::new(File::create(&path).unwrap()));
        for number in shard * PER_SHARD..(shard + 1) * PER_SHARD {
            append(&mut archive, &format!("{number:06}.jpg"), &vec![number as u8; IMAGE_BYTES as usize]);
            append(&mut archive, &format!("{number:06}.cls"), number.to_string().as_bytes());
        }
        archive.into_inner().unwrap().flush().unwrap();
        bytes += path.metadata().unwrap().len();
    }
    bytes
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.append_data(&mut header, name, bytes).unwrap();
}

/// The most memory that this process ever had, in bytes.
fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}
