//! The copy engine as the loader uses it: pages → slot → a consumer's stream, and back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apparatus::Apparatus;
use super::bay::{fill, wrong};
use super::copies::{ceiling, processor_ns};
use super::digest::{Tally, digest, mixed};
use super::effort::Effort;
use super::finding::{Finding, Target, median};
use crate::device::{Device, Engine, RawStream, Segment};
use crate::error::{Error, Kind, Result};
use crate::memory::{Landed, Landing, Slab};
use crate::sys::cuda::Together;

const PART: &str = "engine";

/// In percent of the plain pinned copy.
const DENSE_TARGET: f64 = 95.0;
const SHUFFLED_TARGET: f64 = 80.0;

/// As a loader has with its two batches ahead.
const SLOTS: usize = 3;

/// Batches whose digests are known beforehand, taken in turn.
const KINDS: usize = 4;

/// Batches of one window, at most: each has a place for its digest.
const BATCHES_MAX: usize = 4096;

/// Between two looks.
const LOOK_MIN: Duration = Duration::from_micros(10);
const LOOK_MAX: Duration = Duration::from_micros(100);

const PATIENCE: Duration = Duration::from_secs(60);

/// Rates of the engine with dense batches and with shuffled samples, as shares of the ceiling; every batch is digested on the device, in a
/// consumer's stream.
///
/// # Errors
/// `Corrupt` when a batch is wrong; `Device`, `Stalled`.
pub(super) fn engine(apparatus: &Apparatus, device: &Device, effort: &Effort, found: &mut Vec<Finding>) -> Result<()> {
    let ceiling = ceiling(apparatus, effort, PART, found)?;
    let (samples, sample_bytes) = effort.samples;
    let plain = device.one_by_one()?;
    let runs = [
        ("dense batches, pages in a row", device, Shape::Dense { in_a_row: true }, Some(DENSE_TARGET)),
        ("dense batches, pages of 1 MiB anywhere", device, Shape::Dense { in_a_row: false }, None),
        ("shuffled samples", device, Shape::Shuffled, Some(SHUFFLED_TARGET)),
        ("shuffled samples, one copy after the other", &plain, Shape::Shuffled, None),
    ];
    let together = Together::new(apparatus.context().driver(), false);
    let many = together.name().unwrap_or("not with this driver: copies are issued one after the other");
    found.push(Finding::answer(PART, "many copies by one call", many));
    for (name, device, shape, target) in runs {
        let told = Run::new(device, effort, shape)?.measure(apparatus, effort)?;
        let share = 100.0 * told.bytes_s / ceiling;
        let what = match shape {
            Shape::Dense { .. } => format!("{} MiB each", effort.batch_bytes >> 20),
            Shape::Shuffled => format!("{samples} of {sample_bytes} bytes, pages of 256 KiB anywhere"),
        };
        let finding = Finding::new(PART, name, share, "%");
        let finding = target.map_or(finding.clone(), |target| finding.target(Target::AtLeast(target)));
        found.push(finding.detail(format!("{:.2} GB/s; {what}; every batch's digest checked", told.bytes_s / 1e9)));
        found.push(
            Finding::new(PART, format!("{name}: asking for a batch"), told.asking_ns / 1e3, "µs")
                .detail(format!("processor time of the engine's thread: events, and up to {:.0} copies", told.pieces)),
        );
        if let Some(note) = told.note {
            found.push(Finding::answer(PART, format!("{name}: note"), note));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    /// One contiguous column; the pages lie in the order of the slab, or in any.
    Dense { in_a_row: bool },
    /// Samples from anywhere among the landed bytes.
    Shuffled,
}

/// A slab with landed bytes, and the engine that copies out of it. The engine is dropped first.
struct Run {
    engine: Box<dyn Engine>,
    /// Where each batch's pieces lie among the landed bytes: (at, bytes), in the order of the slot.
    batches: Vec<Vec<(usize, usize)>>,
    wanted: Vec<u64>,
    batch_bytes: usize,
    landed: Landed,
}

/// What was found.
struct Told {
    bytes_s: f64,
    asking_ns: f64,
    /// Of a batch, on average: before neighbours are joined and long ones cut.
    pieces: f64,
    note: Option<String>,
}

impl Run {
    fn new(device: &Device, effort: &Effort, shape: Shape) -> Result<Run> {
        let (samples, sample_bytes) = effort.samples;
        let (batch_bytes, page_bytes) = match shape {
            Shape::Dense { .. } => (effort.batch_bytes, 1 << 20),
            Shape::Shuffled => (samples * sample_bytes, 256 << 10),
        };
        let bytes = KINDS * batch_bytes;
        let slab = Slab::near(bytes.next_multiple_of(page_bytes), page_bytes, device.backend().host_node())?;
        let (landed, plain) = land(&slab, bytes, shape == Shape::Dense { in_a_row: true })?;
        let batches: Vec<Vec<(usize, usize)>> = match shape {
            Shape::Dense { .. } => (0..KINDS).map(|kind| vec![(kind * batch_bytes, batch_bytes)]).collect(),
            Shape::Shuffled => shuffled(KINDS * samples)
                .chunks(samples)
                .map(|batch| batch.iter().map(|sample| (sample * sample_bytes, sample_bytes)).collect())
                .collect(),
        };
        let digest_of = |batch: &Vec<(usize, usize)>| {
            let pieces = batch.iter().flat_map(|(at, bytes)| &plain[*at..at + bytes]);
            digest(&pieces.copied().collect::<Vec<u8>>())
        };
        let wanted = batches.iter().map(digest_of).collect();
        let engine = device.backend().open(&slab, SLOTS, batch_bytes, Arc::new(|| ()))?;
        Ok(Run { engine, batches, wanted, batch_bytes, landed })
    }

    fn measure(mut self, apparatus: &Apparatus, effort: &Effort) -> Result<Told> {
        let stream = apparatus.stream()?;
        // As the loader's copier does, whose thread has little else to do.
        self.engine.attach()?;
        let told = self.windows(apparatus, effort, &stream);
        self.engine.detach();
        told
    }

    fn windows(&mut self, apparatus: &Apparatus, effort: &Effort, stream: &RawStream) -> Result<Told> {
        let (first, _) = self.window(apparatus, stream, KINDS)?;
        let (warm, _) = self.window(apparatus, stream, self.batches_of(effort.window / 3, first))?;
        let batches = self.batches_of(effort.window, warm);
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let (rate, mut cost) = self.window(apparatus, stream, batches)?;
            rates.push(rate);
            costs.append(&mut cost);
        }
        let pieces: usize =
            self.batches.iter().flatten().map(|(at, bytes)| self.landed.slices(*at, *bytes).count()).sum();
        let (pieces, note) = (pieces as f64 / KINDS as f64, self.engine.note());
        Ok(Told { bytes_s: median(rates), asking_ns: median(costs), pieces, note })
    }

    /// As many as go through in `window` at that rate.
    fn batches_of(&self, window: Duration, bytes_s: f64) -> usize {
        let batches = (window.as_secs_f64() * bytes_s / self.batch_bytes as f64).ceil();
        (batches as usize).clamp(KINDS, BATCHES_MAX)
    }

    /// Copies `batches`; gives bytes/s, and the processor time that each took the caller, in ns.
    fn window(&mut self, apparatus: &Apparatus, stream: &RawStream, batches: usize) -> Result<(f64, Vec<f64>)> {
        let mut tally = Tally::new(apparatus, batches)?;
        let mut costs = Vec::with_capacity(batches);
        let begun = Instant::now();
        for number in 0..batches {
            let mut slot = self.acquire()?;
            let before = processor_ns();
            let mut segments = Vec::new();
            let mut to = 0;
            for (at, bytes) in &self.batches[number % KINDS] {
                for from in self.landed.slices(*at, *bytes) {
                    segments.push(Segment { from, to });
                    to += from.len();
                }
            }
            self.engine.copy(&mut slot, &segments)?;
            let mut holds = self.engine.spare_holds();
            holds.push(self.landed.hold());
            self.engine.seal(&mut slot, holds)?;
            costs.push(processor_ns() - before);
            slot.wait_on(stream.clone())?;
            tally.add(apparatus, stream, &slot, (0, self.batch_bytes), number)?;
            slot.release(Some(stream.clone()))?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.engine.poll()? > 0 {
            pause(self.engine.as_ref(), deadline)?;
        }
        let rate = (batches * self.batch_bytes) as f64 / begun.elapsed().as_secs_f64();
        for (number, found) in tally.read()?.into_iter().enumerate() {
            let wanted = self.wanted[number % KINDS];
            if found != wanted {
                return Err(wrong(format!("batch {number} has the digest {found:#x} on the device, not {wanted:#x}")));
            }
        }
        Ok((rate, costs))
    }

    fn acquire(&mut self) -> Result<crate::device::DeviceSlot> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.engine.poll()?;
            if let Some(slot) = self.engine.acquire()? {
                return Ok(slot);
            }
            pause(self.engine.as_ref(), deadline)?;
        }
    }
}

/// Sleeps for as long as the engine has no reason to look, and at most until something may have come back.
fn pause(engine: &dyn Engine, deadline: Instant) -> Result<()> {
    if Instant::now() > deadline {
        return Err(Error::new(Kind::Stalled, "copies to the device do not end"));
    }
    std::thread::sleep(engine.look_again().clamp(LOOK_MIN, LOOK_MAX));
    Ok(())
}

/// `bytes` landed in pages, and the same once more. Pages that do not lie in a row split samples and runs, as they do after some time of
/// coming and going.
fn land(slab: &Slab, bytes: usize, in_a_row: bool) -> Result<(Landed, Vec<u8>)> {
    let pages = slab.take(slab.pages()).ok_or_else(|| Error::new(Kind::Io, "a new slab without free pages"))?;
    let mut pages: Vec<_> = pages.into_iter().map(Some).collect();
    let order = if in_a_row { (0..pages.len()).collect() } else { shuffled(pages.len()) };
    let pages = order.into_iter().filter_map(|number| pages[number].take()).collect();
    let mut plain = vec![0; bytes];
    fill(&mut plain, 5);
    let mut landing = Landing::new(pages, bytes);
    landing.push(&plain);
    let landed = landing.landed().ok_or_else(|| Error::new(Kind::Io, "a full landing that has not landed"))?;
    Ok((landed, plain))
}

/// The numbers below `count`, in an order that is always the same.
fn shuffled(count: usize) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    numbers.sort_by_key(|number| mixed(*number as u64 + 1));
    numbers
}
