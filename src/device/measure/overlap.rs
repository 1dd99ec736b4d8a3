//! Copies beside kernels: what each loses.

use std::time::Duration;

use super::apparatus::{Apparatus, settle, settle_within};
use super::bay::{Bay, Source};
use super::copies::{ceiling, rate};
use super::effort::Effort;
use super::finding::{Finding, Target, median};
use super::product::Product;
use super::reading::Reading;
use crate::device::RawStream;
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::Entered;
use crate::sys::cuda::bare::Mark;

const PART: &str = "overlap";

/// In percent.
const PRODUCT_TARGET: f64 = 3.0;
const COPIES_TARGET: f64 = 95.0;

/// Bytes of a copy, as the engine makes them of contiguous data.
const COPY_BYTES: usize = 4 << 20;

/// Kernels of one window, at most: with those that warm up, fewer than a driver queues before it makes its caller wait.
const KERNELS_MAX: f64 = 500.0;

/// One kernel in so many more runs before a window begins.
const LEAD: usize = 8;

/// Slowdowns of kernels beside copies at full rate, and of the copies: of a product, whose limit is arithmetic, and of a kernel that reads, whose
/// limit is the device's memory.
///
/// # Errors
/// `Corrupt` when bytes or products are wrong; `Device`, `Stalled`.
pub(super) fn overlap(apparatus: &Apparatus, effort: &Effort, found: &mut Vec<Finding>) -> Result<()> {
    let ceiling = ceiling(apparatus, effort, PART, found)?;
    let bay = Bay::new(apparatus, Source::slab(apparatus, effort.region_bytes)?, 1)?;
    let stream = apparatus.stream()?;
    let scene = Scene { apparatus, effort, bay: &bay, stream: &stream };
    let alone = rate(apparatus, effort, &bay, COPY_BYTES, 1)?;
    let figure = |name: &str, value: f64, unit: &str| Finding::new(PART, name, value, unit);
    found.push(
        figure("copies, alone", alone / 1e9, "GB/s")
            .detail(format!("{} MiB at a time, out of a slab; digest checked", COPY_BYTES >> 20)),
    );

    let mut product = Product::new(apparatus, effort.matrix)?;
    let told = scene.measure(&mut product)?;
    found.push(figure("the product, alone", product.operations() / told.alone_s / 1e12, "Tflop/s").detail(format!(
        "{0} × {0} floats, {1:.2} ms each, {2} in a row",
        effort.matrix,
        1e3 * told.alone_s,
        told.times
    )));
    found.push(
        figure("the product beside copies, slower by", told.slower, "%")
            .target(Target::AtMost(PRODUCT_TARGET))
            .detail("against the same products alone, taking turns; products and digests checked"),
    );
    let beside = |told: &Told, what: &str| {
        figure(&format!("copies beside the {what}, of the ceiling"), 100.0 * told.bytes_s / ceiling, "%").detail(
            format!(
                "{:.2} GB/s while it ran, {:.2} in the slowest {} MiB; slower than alone by {:.1} %",
                told.bytes_s / 1e9,
                told.slowest_bytes_s / 1e9,
                effort.region_bytes >> 20,
                100.0 * (1.0 - told.bytes_s / alone)
            ),
        )
    };
    found.push(beside(&told, "product").target(Target::AtLeast(COPIES_TARGET)));
    drop(product);

    let mut reading = Reading::new(apparatus, &bay)?;
    let told = scene.measure(&mut reading)?;
    found.push(figure("a kernel that only reads, alone", reading.bytes() as f64 / told.alone_s / 1e9, "GB/s").detail(
        format!(
            "the digest of {} MiB, {:.3} ms each, {} in a row: the limit is the device's memory",
            reading.bytes() >> 20,
            1e3 * told.alone_s,
            told.times
        ),
    ));
    found.push(figure("it beside copies, slower by", told.slower, "%").detail("as above; every digest checked"));
    found.push(beside(&told, "reading kernel"));
    Ok(())
}

/// Something for the device to do, again and again.
pub(super) trait Work {
    fn launch(&mut self, apparatus: &Apparatus, entered: &Entered<'_>, stream: &RawStream) -> Result<()>;

    /// Holds what all of them computed against what they should have.
    fn check(&mut self) -> Result<()>;
}

struct Scene<'s> {
    apparatus: &'s Apparatus,
    effort: &'s Effort,
    bay: &'s Bay,
    stream: &'s RawStream,
}

/// Medians over the rounds.
struct Told {
    /// Kernels of a window, and the seconds of one with nothing beside it.
    times: usize,
    alone_s: f64,
    /// In percent.
    slower: f64,
    /// Rate of the copies while kernels ran, and of the slowest copy of everything in any round.
    bytes_s: f64,
    slowest_bytes_s: f64,
}

/// What both did while they ran.
struct Both {
    kernels_s: f64,
    bytes_s: f64,
    slowest_bytes_s: f64,
}

impl Scene<'_> {
    fn measure(&self, work: &mut dyn Work) -> Result<Told> {
        self.alone(work, 2)?;
        let single_s = self.alone(work, LEAD)? / LEAD as f64;
        let times = (self.effort.window.as_secs_f64() / single_s).ceil().clamp(2.0, KERNELS_MAX) as usize;
        let (mut alone, mut slower, mut rates, mut slowest) = (Vec::new(), Vec::new(), Vec::new(), f64::INFINITY);
        for round in 0..self.effort.rounds {
            self.bay.clear(self.apparatus)?;
            // Taking turns, and turns in being first: a device that gets warm and slow does so for both.
            let (quiet, both) = if round % 2 == 0 {
                let quiet = self.alone(work, times)?;
                (quiet, self.both(work, times)?)
            } else {
                let both = self.both(work, times)?;
                (self.alone(work, times)?, both)
            };
            self.bay.check(self.apparatus)?;
            work.check()?;
            alone.push(quiet / times as f64);
            slower.push(100.0 * (both.kernels_s / quiet - 1.0));
            rates.push(both.bytes_s);
            slowest = slowest.min(both.slowest_bytes_s);
        }
        let (alone_s, slower, bytes_s) = (median(alone), median(slower), median(rates));
        Ok(Told { times, alone_s, slower, bytes_s, slowest_bytes_s: slowest })
    }

    /// Seconds of `times` kernels with nothing beside them, behind some that do not count.
    fn alone(&self, work: &mut dyn Work, times: usize) -> Result<f64> {
        let entered = self.apparatus.enter()?;
        let (begun, ended) = (Mark::new(self.apparatus.context())?, Mark::new(self.apparatus.context())?);
        self.kernels(&entered, work, times, &begun, &ended)?;
        settle(&entered, &ended)?;
        ran(ended.since(&entered, &begun)?)
    }

    fn kernels(
        &self,
        entered: &Entered<'_>,
        work: &mut dyn Work,
        times: usize,
        begun: &Mark,
        ended: &Mark,
    ) -> Result<()> {
        let mut launch = |times: usize| (0..times).try_for_each(|_| work.launch(self.apparatus, entered, self.stream));
        launch(times.div_ceil(LEAD))?;
        begun.record(entered, self.stream)?;
        launch(times)?;
        ended.record(entered, self.stream)
    }

    /// Copies are under way before the kernels begin, and until they end: never more than two passes are asked for ahead.
    fn both(&self, work: &mut dyn Work, times: usize) -> Result<Both> {
        let entered = self.apparatus.enter()?;
        let new_mark = || Mark::new(self.apparatus.context());
        let (begun, ended) = (new_mark()?, new_mark()?);
        let mut copying = Copying { scene: self, passed: vec![new_mark()?] };
        copying.passed[0].record(&entered, &self.bay.streams[0])?;
        copying.pass(&entered)?;
        copying.pass(&entered)?;
        self.kernels(&entered, work, times, &begun, &ended)?;
        settle_within(Duration::from_secs(60), || {
            if copying.passed[copying.passed.len() - 2].passed(&entered)? {
                copying.pass(&entered)?;
            }
            ended.passed(&entered)
        })?;
        copying.passed.last().map_or(Ok(()), |last| settle(&entered, last))?;
        let kernels_s = ran(ended.since(&entered, &begun)?)?;
        // All behind the first mark: what the driver says of times before it is nowhere written down.
        let behind_first = |mark: &Mark| mark.since(&entered, &copying.passed[0]);
        let ends = copying.passed[1..].iter().map(behind_first).collect::<Result<Vec<f64>>>()?;
        let (mean, slowest) = during(&ends, behind_first(&begun)?, behind_first(&ended)?);
        let bytes = self.bay.len() as f64;
        Ok(Both { kernels_s, bytes_s: bytes / mean, slowest_bytes_s: bytes / slowest })
    }
}

/// Of passes that ended at these times, the first of which began at 0: the mean seconds of those that lie within `begin` and `end`, and the most
/// that one took of which any part does. Where that is too short a time for two, all of them count.
fn during(ends: &[f64], begin: f64, end: f64) -> (f64, f64) {
    let begins = std::iter::once(0.0).chain(ends.iter().copied());
    let passes: Vec<(f64, f64)> = begins.zip(ends.iter().copied()).collect();
    let seconds = |(from, to): &(f64, f64)| to - from;
    let within: Vec<_> = passes.iter().filter(|(from, to)| *from >= begin && *to <= end).map(seconds).collect();
    let counted = if within.len() < 2 { passes.iter().map(seconds).collect() } else { within };
    let mean = counted.iter().sum::<f64>() / counted.len() as f64;
    let touching = passes.iter().filter(|(from, to)| *to > begin && *from < end).map(seconds);
    (mean, touching.fold(mean, f64::max))
}

/// The seconds, if there are any.
fn ran(seconds: f64) -> Result<f64> {
    let stands = || Error::new(Kind::Device, "the device's clock stands still between two events");
    if seconds > 0.0 { Ok(seconds) } else { Err(stands()) }
}

struct Copying<'s> {
    scene: &'s Scene<'s>,
    /// Before the first pass, and behind each.
    passed: Vec<Mark>,
}

impl Copying<'_> {
    fn pass(&mut self, entered: &Entered<'_>) -> Result<()> {
        let Scene { apparatus, bay, .. } = self.scene;
        bay.copy_all(entered, COPY_BYTES, 1)?;
        let mark = Mark::new(apparatus.context())?;
        mark.record(entered, &bay.streams[0])?;
        self.passed.push(mark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::during;

    #[test]
    fn only_what_ran_beside_kernels_counts() {
        // Passes of 1 s each, but for one of 3 s that the kernels met, and one of 9 s after them.
        let ends = [1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 17.0];
        let (mean, slowest) = during(&ends, 2.5, 8.0);
        assert!((mean - 5.0 / 3.0).abs() < 1e-9 && (slowest - 3.0).abs() < 1e-9, "{mean} {slowest}");
        // One that the end meets counts as slow, too.
        assert!((during(&ends, 2.5, 8.5).1 - 9.0).abs() < 1e-9);
        // Kernels that were over at once.
        let (mean, slowest) = during(&[2.0, 4.0], 1.0, 1.1);
        assert!((mean - 2.0).abs() < 1e-9 && (slowest - 2.0).abs() < 1e-9, "{mean} {slowest}");
    }
}
