//! An epoch from an emulated link into the device's memory, with kernels that consume each batch.

use std::process::Command;
use std::time::Duration;

use farfeed::dataset::Dtype;
use farfeed::device::measure::{Apparatus, Effort, Finding, Mark, Product, Tally, Target, digest};
use farfeed::device::{Device, RawStream};
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Error, Kind, Loader, Result, Tokens};
use rustix::time::{ClockId, clock_gettime};

use super::distant::Distant;

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
    /// With steps; one more is streamed without.
    pub(crate) epochs: u64,
}

impl Scene {
    /// Ten seconds of 300 MB/s from 15 ms away.
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
            epochs: 2,
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

    fn sample_bytes(&self) -> usize {
        self.tokens * TOKEN_BYTES
    }

    fn batch_bytes(&self) -> f64 {
        (self.batch * self.sample_bytes()) as f64
    }

    /// Of the dataset.
    pub(crate) fn bytes(&self) -> usize {
        self.samples * self.sample_bytes()
    }
}

/// Streams the scene from `server`, first as fast as it comes, then with steps, and tells how long the device waited between one batch's kernels and
/// the next one's.
pub(crate) fn epoch(device: &Device, effort: &Effort, scene: &Scene, server: Command) -> Result<Vec<Finding>> {
    // It makes its bytes while we make ours.
    let distant = Distant::start(server);
    let bytes = words(scene.bytes());
    let distant = distant?;
    let apparatus = Apparatus::open(device)?;
    let mut product = Product::new(&apparatus, effort.matrix)?;
    let stream = apparatus.stream()?;
    let single_s = product.seconds(&apparatus, &stream, effort.rounds)?;
    let step_s = scene.batch_bytes() / (scene.rate_bytes_s as f64 * scene.demand);
    let times = (step_s / single_s).ceil() as usize;
    let through = Through { apparatus: &apparatus, stream, device, scene, bytes: &bytes, url: &distant.url };
    let (bare, steady) = (through.run(1, None)?, through.run(scene.epochs, Some((&mut product, times)))?);

    let demand = scene.rate_bytes_s as f64 * scene.demand;
    let waits = &steady.waits;
    let far = format!(
        "emulated link of {} MB/s, {} ms, its server a process of its own; {} batches of {:.1} MB, every digest and product checked",
        scene.rate_bytes_s / 1_000_000,
        scene.rtt.as_millis(),
        steady.batches,
        scene.batch_bytes() / 1e6,
    );
    let kernels = format!("a digest and {times} products of {:.2} ms a step", 1e3 * single_s);
    let figure = |name: &str, value: f64, unit: &str| Finding::new(PART, name, value, unit);
    Ok(vec![
        figure("as fast as it comes, into the device", bare.rate / 1e9, "GB/s")
            .target(Target::AtLeast(demand / 1e9))
            .detail("digests only; wanted: what the steps below ask for, so that the source can keep up"),
        figure("processor time at that rate", bare.processor_s / (bytes.len() as f64 / 1e9), "s/GB")
            .detail("of this whole process: loader, consumer and driver"),
        figure("the device waited, of its time", 100.0 * waits.stalled_s / waits.total_s, "%")
            .target(Target::AtMost(STALL_TARGET))
            .detail(far),
        figure("longest wait between two steps", 1e3 * waits.longest_s, "ms")
            .detail(format!("before step {} of {}; {kernels}", waits.longest_at, steady.batches)),
        figure("rate into the device", steady.rate / 1e9, "GB/s")
            .detail(format!("{:.0} % of the link was asked for", 100.0 * scene.demand)),
        figure("first batch after", 1e3 * steady.first_batch_s, "ms").detail(steady.plan),
    ])
}

/// A loader's way from the server through the device, and what to hold it against.
struct Through<'t> {
    apparatus: &'t Apparatus,
    stream: RawStream,
    device: &'t Device,
    scene: &'t Scene,
    bytes: &'t [u8],
    url: &'t str,
}

/// What one way was like; all bytes were right.
struct Told {
    batches: usize,
    waits: Waits,
    /// Bytes/s from the first step's end to the last one's.
    rate: f64,
    processor_s: f64,
    first_batch_s: f64,
    plan: String,
}

impl Through<'_> {
    /// Streams `epochs` epochs, each batch with a digest and so many products as a step, if any.
    fn run(&self, epochs: u64, mut products: Option<(&mut Product, usize)>) -> Result<Told> {
        let Through { apparatus, stream, scene, .. } = self;
        let loader = Loader::builder(format!("{}/train.bin", self.url))
            .tokens(Tokens::new(Dtype::U16, scene.tokens))
            .batch_size(scene.batch as u32)
            .shuffle(Shuffle::window(scene.window).seed(3))
            .host_memory(scene.host_memory)
            .epochs(epochs)
            .device(self.device.clone())
            .build()?;
        let mut tally = Tally::new(apparatus, epochs as usize * scene.samples.div_ceil(scene.batch))?;
        let (mut steps, mut ids) = (Vec::new(), Vec::new());
        let before = processor_s();
        for epoch in 0..epochs {
            for batch in loader.epoch(epoch) {
                let batch = batch?;
                batch.wait_on(stream.clone())?;
                let begun = Mark::at(apparatus, stream)?;
                batch.tally("tokens", apparatus, stream, &mut tally, ids.len())?;
                if let Some((product, times)) = &mut products {
                    product.launch(apparatus, stream, *times)?;
                }
                ids.push((epoch, batch.ids().to_vec()));
                batch.release(stream.clone())?;
                steps.push((begun, Mark::at(apparatus, stream)?));
            }
        }
        let processor_s = processor_s() - before;
        if let Some((product, _)) = products {
            product.check()?;
        }
        check(scene, self.bytes, &ids, &tally.read()?)?;
        let (stats, plan) = (loader.stats(), loader.plan());
        let plan = format!(
            "{} slots of {:.1} MB, {} of host memory",
            plan.slots,
            plan.slot_bytes as f64 / 1e6,
            scene.host_memory
        );
        let waits = Waits::of(&steps)?;
        let behind_the_first = ids.iter().skip(1).map(|(_, ids)| ids.len()).sum::<usize>() * scene.sample_bytes();
        let rate = behind_the_first as f64 / (waits.total_s - waits.first_s);
        Ok(Told { batches: ids.len(), waits, rate, processor_s, first_batch_s: stats.first_batch_s, plan })
    }
}

/// Processor time of this process so far.
fn processor_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Between the end of a step and the beginning of the next one, by the device's own clock.
struct Waits {
    stalled_s: f64,
    longest_s: f64,
    /// The step before which that was, counted from 0.
    longest_at: usize,
    /// The first step.
    first_s: f64,
    /// From the beginning of the first step to the end of the last.
    total_s: f64,
}

impl Waits {
    fn of(steps: &[(Mark, Mark)]) -> Result<Waits> {
        let Some(((first, first_end), (_, last))) = steps.first().zip(steps.last()) else {
            return Err(wrong("no batch came".into()));
        };
        last.settle()?;
        let waits = steps.windows(2).map(|pair| pair[1].0.since(&pair[0].1)).collect::<Result<Vec<f64>>>()?;
        let longest = waits.iter().copied().enumerate().max_by(|one, other| one.1.total_cmp(&other.1));
        let (longest_at, longest_s) = longest.map_or((0, 0.0), |(number, wait)| (number + 1, wait));
        Ok(Waits {
            stalled_s: waits.iter().sum(),
            longest_s,
            longest_at,
            first_s: first_end.since(first)?,
            total_s: last.since(first)?,
        })
    }
}

/// Every sample once in each epoch, and every batch the bytes of its samples.
fn check(scene: &Scene, bytes: &[u8], ids: &[(u64, Vec<u64>)], found: &[u64]) -> Result<()> {
    let mut seen = vec![vec![false; scene.samples]; ids.last().map_or(1, |(epoch, _)| *epoch as usize + 1)];
    for (number, ((epoch, ids), found)) in ids.iter().zip(found).enumerate() {
        let wanted = digest(&assembled(bytes, scene.sample_bytes(), ids));
        if wanted != *found {
            return Err(wrong(format!("batch {number} has the digest {found:#x} on the device, not {wanted:#x}")));
        }
        for id in ids {
            if std::mem::replace(&mut seen[*epoch as usize][*id as usize], true) {
                return Err(wrong(format!("sample {id} came twice")));
            }
        }
    }
    match seen.iter().find_map(|seen| seen.iter().position(|seen| !seen)) {
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
    let mut words = vec![0; bytes];
    words.chunks_mut(8).for_each(|word| word.copy_from_slice(&draw()[..word.len()]));
    words
}

pub(crate) fn wrong(context: String) -> Error {
    Error::new(Kind::Corrupt, context).advice("please report it, with what was printed")
}
