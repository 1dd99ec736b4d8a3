//! A good streaming reader on top of another client: shards from their beginning to their end in ranges of 8 MiB, 32 of them under way, what
//! has landed kept until its turn comes, and batches cut from that as they would be from a tar. It neither shuffles nor parses.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use farfeed::memory::{Landed, Landing, Slab};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::dataset::{IMAGE_BYTES, Manifest, RANGE_BYTES, digest};
use super::reader::{Feed, Pass, Streamed, Task, consume};
use crate::field::clients::{self, Client, Origin};

/// Requests under way.
const REQUESTS: usize = 32;
/// Ranges under way or waiting for their turn: twice as many, so that one that is late does not stop the others at once. 512 MiB.
const AHEAD: usize = 64;
const PAGE_BYTES: usize = 1 << 20;

pub(crate) fn run(task: &Task) -> Pass {
    let manifest = Manifest::read(&task.folder);
    let dataset = Streamed { bytes: manifest.bytes(), payload_bytes: manifest.bytes() };
    let began = Instant::now();
    let client = clients::open(&task.reader, &Origin::plain(task.port)).unwrap();
    let (order, arrivals) = mpsc::channel();
    let (ready, opened) = mpsc::channel();
    let (start, started) = oneshot::channel();
    let ranges = ranges(&manifest);
    let mut feed = Sequence {
        batch_bytes: u64::from(task.batch_size) * IMAGE_BYTES,
        left: dataset.bytes,
        here: 0,
        arrivals,
        digests: ranges.iter().map(|range| range.digest).collect(),
        checked: 0,
    };
    thread::spawn(move || {
        let slab = Slab::new(AHEAD * RANGE_BYTES as usize, PAGE_BYTES).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            connect(&client, &ranges[0], &slab).await;
            ready.send(()).unwrap();
            started.await.unwrap();
            request_all(client, ranges, slab, order).await;
        });
    });
    opened.recv().unwrap();
    let open_s = began.elapsed().as_secs_f64();
    start.send(()).unwrap();
    consume(&mut feed, task, open_s, dataset)
}

/// Opens the connections, by a byte over each: ours are open when the first batch is asked for, and so are theirs.
async fn connect(client: &Arc<dyn Client>, range: &Range, slab: &Slab) {
    let read = |_| {
        let (client, key) = (Arc::clone(client), Arc::clone(&range.key));
        let mut landing = Landing::new(slab.take(1).unwrap(), 1);
        tokio::spawn(async move { client.read(&key, 0, &mut landing).await })
    };
    let reads: Vec<_> = (0..REQUESTS).map(read).collect();
    for read in reads {
        read.await.unwrap();
    }
}

struct Range {
    key: Arc<str>,
    start: u64,
    bytes: usize,
    digest: u64,
}

fn ranges(manifest: &Manifest) -> Vec<Range> {
    let mut ranges = Vec::new();
    for shard in &manifest.shards {
        for (index, digest) in shard.ranges.iter().enumerate() {
            let start = index as u64 * RANGE_BYTES;
            let bytes = (shard.bytes - start).min(RANGE_BYTES) as usize;
            ranges.push(Range { key: shard.key.as_str().into(), start, bytes, digest: *digest });
        }
    }
    ranges
}

/// A range that has landed. Its pages go back first, then somebody may take them.
struct Arrived {
    landed: Landed,
    _turn: OwnedSemaphorePermit,
}

/// Asks for the ranges in their order, as the bounds allow, and says in that order where each will arrive.
async fn request_all(
    client: Arc<dyn Client>,
    ranges: Vec<Range>,
    slab: Slab,
    order: mpsc::Sender<oneshot::Receiver<Arrived>>,
) {
    let (ahead, requests) = (Arc::new(Semaphore::new(AHEAD)), Arc::new(Semaphore::new(REQUESTS)));
    let mut reads = Vec::new();
    for range in ranges {
        let turn = Arc::clone(&ahead).acquire_owned().await.unwrap();
        let request = Arc::clone(&requests).acquire_owned().await.unwrap();
        let pages = slab.take(range.bytes.div_ceil(PAGE_BYTES)).unwrap();
        let (arrived, arrival) = oneshot::channel();
        if order.send(arrival).is_err() {
            return;
        }
        let client = Arc::clone(&client);
        reads.push(tokio::spawn(async move {
            let mut landing = Landing::new(pages, range.bytes);
            client.read(&range.key, range.start, &mut landing).await;
            drop(request);
            let _ = arrived.send(Arrived { landed: landing.landed().unwrap(), _turn: turn });
        }));
    }
    for read in reads {
        read.await.unwrap();
    }
}

/// Batches of equal size, as far as the ranges have landed in order.
struct Sequence {
    batch_bytes: u64,
    /// Not delivered yet.
    left: u64,
    /// Of ranges that have landed and are not in a batch yet.
    here: u64,
    arrivals: mpsc::Receiver<oneshot::Receiver<Arrived>>,
    digests: Vec<u64>,
    checked: usize,
}

impl Feed for Sequence {
    type Batch = (u64, Vec<Arrived>);

    fn next(&mut self) -> Option<Self::Batch> {
        let bytes = self.batch_bytes.min(self.left);
        let mut arrived = Vec::new();
        while self.here < bytes {
            let range = self.arrivals.recv().unwrap().blocking_recv().unwrap();
            self.here += range.landed.len() as u64;
            arrived.push(range);
        }
        (self.here, self.left) = (self.here - bytes, self.left - bytes);
        (bytes > 0).then_some((bytes, arrived))
    }

    fn payload(batch: &Self::Batch) -> u64 {
        batch.0
    }

    fn check(&mut self, batch: &Self::Batch) {
        for range in &batch.1 {
            let found = digest(range.landed.slices(0, range.landed.len()));
            assert_eq!(found, self.digests[self.checked], "range {} is not what was written", self.checked);
            self.checked += 1;
        }
    }

    fn complete(&self) -> bool {
        self.left == 0 && self.checked == self.digests.len()
    }
}
