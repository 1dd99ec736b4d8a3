//! An epoch from an emulated link into the device's memory, with kernels that consume each batch.

use std::time::Duration;

use farfeed::dataset::Dtype;
use farfeed::device::Device;
use farfeed::device::measure::{Apparatus, Effort, Finding, Mark, Product, Tally, Target, digest};
use farfeed::emulate::{Faults, Link, Objects, Server, Site};
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Error, Kind, Loader, Result, Tokens};

const PART: &str = "epoch";

/// In percent of the time from the first step to the last.
const STALL_TARGET: f64 = 1.0;

const TOKEN_BYTES: usize = 2;

/// What is streamed, and across which link.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) rtt: Duration,
    pub(crate) rate_bytes_s: u64,
    /// Share of that rate that the steps consume: below 1, the source keeps up.
    pub(crate) demand: f64,
    /// Tokens of a sample, two bytes each.
    pub(crate) tokens: usize,
    pub(crate) samples: usize,
    pub(crate) batch: usize,
    pub(crate) window: u64,
    pub(crate) host_memory: ByteSize,
}

impl Scene {
    /// Five seconds of 300 MB/s from 15 ms away.
    pub(crate) fn full() -> Scene {
        Scene {
            rtt: Duration::from_millis(15),
            rate_bytes_s: 500_000_000,
            demand: 0.6,
            tokens: 50_000,
            samples: 15_360,
            batch: 64,
            window: 2048,
            host_memory: ByteSize::gib(1),
        }
    }

    pub(crate) fn short() -> Scene {
        Scene { samples: 6_400, ..Scene::full() }
    }

    pub(crate) fn glance() -> Scene {
        Scene {
            rtt: Duration::from_millis(1),
            rate_bytes_s: 100_000_000,
            tokens: 1_001,
            samples: 300,
            batch: 7,
            window: 64,
            host_memory: ByteSize::mib(32),
            ..Scene::full()
        }
    }
}

/// Streams the scene, and tells how long the device waited between one batch's kernels and the next one's.
pub(crate) fn epoch(device: &Device, effort: &Effort, scene: &Scene) -> Result<Vec<Finding>> {
    let apparatus = Apparatus::open(device)?;
    let bytes = words(scene.samples * scene.tokens * TOKEN_BYTES);
    let site = Site::objects(Objects::from_iter([("train.bin", bytes.clone())]));
    let server = Server::start(site, Link::rtt(scene.rtt).rate(scene.rate_bytes_s), Faults::none())?;
    let loader = Loader::builder(format!("{}/train.bin", server.url()))
        .tokens(Tokens::new(Dtype::U16, scene.tokens))
        .batch_size(scene.batch as u32)
        .shuffle(Shuffle::window(scene.window).seed(3))
        .host_memory(scene.host_memory)
        .epochs(1)
        .device(device.clone())
        .build()?;
    let stream = apparatus.stream()?;
    let mut product = Product::new(&apparatus, effort.matrix)?;
    let single_s = product.seconds(&apparatus, &stream, effort.rounds)?;
    let step_s = (scene.batch * scene.tokens * TOKEN_BYTES) as f64 / (scene.rate_bytes_s as f64 * scene.demand);
    let times = (step_s / single_s).ceil() as usize;

    let mut tally = Tally::new(&apparatus, scene.samples.div_ceil(scene.batch))?;
    let (mut steps, mut ids) = (Vec::new(), Vec::new());
    for batch in loader.epoch(0) {
        let batch = batch?;
        batch.wait_on(stream.clone())?;
        let begun = Mark::at(&apparatus, &stream)?;
        batch.tally("tokens", &apparatus, &stream, &mut tally, ids.len())?;
        product.launch(&apparatus, &stream, times)?;
        ids.push(batch.ids().to_vec());
        batch.release(stream.clone())?;
        steps.push((begun, Mark::at(&apparatus, &stream)?));
    }
    product.check()?;
    check(scene, &bytes, &ids, &tally.read()?)?;
    let waits = Waits::of(&steps)?;
    let (stats, plan) = (loader.stats(), loader.plan());
    let far = format!(
        "emulated link of {} MB/s, {} ms, in this process; {} batches of {:.1} MB, every digest and product checked",
        scene.rate_bytes_s / 1_000_000,
        scene.rtt.as_millis(),
        ids.len(),
        (scene.batch * scene.tokens * TOKEN_BYTES) as f64 / 1e6,
    );
    let kernels = format!("a digest and {times} products of {:.2} ms a step", 1e3 * single_s);
    Ok(vec![
        Finding::new(PART, "the device waited, of its time", 100.0 * waits.stalled_s / waits.total_s, "%")
            .target(Target::AtMost(STALL_TARGET))
            .detail(far),
        Finding::new(PART, "longest wait between two steps", 1e3 * waits.longest_s, "ms").detail(kernels),
        Finding::new(PART, "rate into the device", waits.rate(bytes.len()) / 1e9, "GB/s")
            .detail(format!("{:.0} % of the link was asked for", 100.0 * scene.demand)),
        Finding::new(PART, "first batch after", 1e3 * stats.first_batch_s, "ms").detail(format!(
            "{} slots of {:.1} MB, {} of host memory",
            plan.slots,
            plan.slot_bytes as f64 / 1e6,
            scene.host_memory
        )),
    ])
}

/// Between the end of a step and the beginning of the next one, by the device's own clock.
struct Waits {
    stalled_s: f64,
    longest_s: f64,
    /// From the beginning of the first step to the end of the last.
    total_s: f64,
}

impl Waits {
    fn of(steps: &[(Mark, Mark)]) -> Result<Waits> {
        let ((first, _), (_, last)) = steps.first().zip(steps.last()).ok_or_else(|| wrong("no batch came".into()))?;
        last.settle()?;
        let waits = steps.windows(2).map(|pair| pair[1].0.since(&pair[0].1)).collect::<Result<Vec<f64>>>()?;
        Ok(Waits {
            stalled_s: waits.iter().sum(),
            longest_s: waits.iter().copied().fold(0.0, f64::max),
            total_s: last.since(first)?,
        })
    }

    fn rate(&self, bytes: usize) -> f64 {
        bytes as f64 / self.total_s
    }
}

/// Every sample once, and every batch the bytes of its samples.
fn check(scene: &Scene, bytes: &[u8], ids: &[Vec<u64>], found: &[u64]) -> Result<()> {
    let mut seen = vec![false; scene.samples];
    for (number, (ids, found)) in ids.iter().zip(found).enumerate() {
        let wanted = digest(&assembled(bytes, scene.tokens * TOKEN_BYTES, ids));
        if wanted != *found {
            return Err(wrong(format!("batch {number} has the digest {found:#x} on the device, not {wanted:#x}")));
        }
        for id in ids {
            if std::mem::replace(&mut seen[*id as usize], true) {
                return Err(wrong(format!("sample {id} came twice")));
            }
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(sample) => Err(wrong(format!("sample {sample} never came"))),
        None => Ok(()),
    }
}

/// The bytes that a batch of these samples must have.
pub(crate) fn assembled(bytes: &[u8], sample_bytes: usize, ids: &[u64]) -> Vec<u8> {
    ids.iter().flat_map(|id| &bytes[*id as usize * sample_bytes..][..sample_bytes]).copied().collect()
}

/// Noise, the same on every machine (xorshift64).
pub(crate) fn words(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..bytes.div_ceil(8)).flat_map(|_| draw()).take(bytes).collect()
}

pub(crate) fn wrong(context: String) -> Error {
    Error::new(Kind::Corrupt, context).advice("please report it, with what was printed")
}
