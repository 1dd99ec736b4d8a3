//! farfeed: the whole loader, shuffled as in training, or in order.

use std::time::{Duration, Instant};

use farfeed::order::Shuffle;
use farfeed::{Batch, ByteSize, Field, Loader};
use serde::{Deserialize, Serialize};

use super::dataset::{Manifest, digest, pattern, sample_key};
use super::reader::{Feed, IN_ORDER, Pass, Streamed, Task, consume};

const WINDOW: u64 = 512;
pub(crate) const HOST_MEMORY: ByteSize = ByteSize::mib(256);
/// Memory of the process beside pages and slots.
pub(crate) const RSS_ALLOWANCE: u64 = 64 << 20;
/// A training script makes its model meanwhile: connections that were opened ahead are there when the first batch is asked for.
const PAUSE: Duration = Duration::from_millis(200);

/// What only our loader tells.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Details {
    pub(crate) copies_per_byte: f64,
    pub(crate) retries: u64,
    pub(crate) rss_bound: u64,
}

pub(crate) fn run(task: &Task) -> Pass {
    let manifest = Manifest::read(&task.folder);
    let dataset = Streamed { bytes: manifest.bytes(), payload_bytes: manifest.payload_bytes };
    let began = Instant::now();
    let mut builder = Loader::builder(format!("http://127.0.0.1:{}/{}", task.port, pattern()))
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(task.batch_size)
        .host_memory(HOST_MEMORY)
        .epochs(1)
        .patience(Duration::from_secs(60));
    if task.reader != IN_ORDER {
        builder = builder.shuffle(Shuffle::window(WINDOW).seed(7));
    }
    let loader = builder.build().unwrap();
    let open_s = began.elapsed().as_secs_f64();
    std::thread::sleep(PAUSE);
    let seen = vec![false; manifest.samples.len()];
    let mut feed = Epoch { batches: loader.epoch(0), samples: manifest.samples, seen };
    let pass = consume(&mut feed, task, open_s, dataset);
    let (stats, plan) = (loader.stats(), loader.plan());
    let rss_bound = HOST_MEMORY.as_bytes() + (plan.slots * plan.slot_bytes) as u64 + RSS_ALLOWANCE;
    let details = Details { copies_per_byte: stats.copies_per_byte, retries: stats.retries, rss_bound };
    Pass { ours: Some(details), ..pass }
}

struct Epoch<'a> {
    batches: farfeed::loader::Epoch<'a>,
    samples: Vec<u64>,
    seen: Vec<bool>,
}

impl Feed for Epoch<'_> {
    type Batch = Batch;

    fn next(&mut self) -> Option<Batch> {
        self.batches.next().map(Result::unwrap)
    }

    fn payload(batch: &Batch) -> u64 {
        batch.payload_bytes()
    }

    fn check(&mut self, batch: &Batch) {
        let (images, labels) = (batch.ragged("jpg").unwrap(), batch.ints("cls").unwrap());
        for (row, label) in labels.into_iter().enumerate() {
            let sample = usize::try_from(label).unwrap();
            assert_eq!(
                digest([images.row(row).unwrap()]),
                self.samples[sample],
                "sample {sample} is not what was written"
            );
            assert_eq!(batch.key(row).unwrap(), sample_key(label as u64));
            assert!(!std::mem::replace(&mut self.seen[sample], true), "sample {sample} came twice");
        }
    }

    fn complete(&self) -> bool {
        self.seen.iter().all(|seen| *seen)
    }
}
