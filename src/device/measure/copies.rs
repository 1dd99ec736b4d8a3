//! How fast plain copies are, by size and streams, and what it costs the processor to ask for one.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::apparatus::Apparatus;
use super::bay::{Bay, Source};
use super::effort::Effort;
use super::finding::{Finding, Target, median};
use crate::error::Result;
use crate::sys::cuda::{Copies, Entered, Together};

const PART: &str = "enqueueing";

/// The size of the copies that the ceiling is made of.
const CEILING_COPY_BYTES: usize = 64 << 20;

/// A copy of at least so many bytes should come near the ceiling: what the design copies at a time where data is contiguous.
const LARGE_BYTES: usize = 4 << 20;

/// In percent of the ceiling.
const LARGE_TARGET: f64 = 95.0;

/// Copies that are asked for in one go to find what asking costs: fewer than a driver queues before it makes its caller wait.
const BURST: usize = 256;

/// Times that one figure's copies are repeated, at most.
const PASSES_MAX: f64 = 500.0;

/// The rate of the plain pinned copy, in bytes/s: large copies, one after the other, out of memory that the driver page-locked. It is told as
/// `part`'s first finding: each part is held against what the device and its link do in the same process, seconds before.
///
/// # Errors
/// `Corrupt` when other bytes arrived; `Device`, `Stalled`.
pub(super) fn ceiling(apparatus: &Apparatus, effort: &Effort, part: &str, found: &mut Vec<Finding>) -> Result<f64> {
    let bay = Bay::new(apparatus, Source::driver(apparatus, effort.region_bytes)?, 1)?;
    // Warm already when its own warming up begins: a ceiling that is too low flatters everything below it.
    warm_up(apparatus, effort.window, &bay, CEILING_COPY_BYTES, 1)?;
    let rate = rate(apparatus, effort, &bay, CEILING_COPY_BYTES, 1)?;
    let finding = Finding::new(part, "ceiling: out of cuMemHostAlloc's memory", rate / 1e9, "GB/s");
    found.push(finding.detail("copies of 64 MiB in one stream; digest checked"));
    Ok(rate)
}

/// Rates by size and streams out of registered huge pages, as shares of the ceiling, and beside the plain pinned copy's of the same size.
///
/// # Errors
/// As [`ceiling`].
pub(super) fn copies(apparatus: &Apparatus, effort: &Effort, found: &mut Vec<Finding>) -> Result<()> {
    let ceiling = ceiling(apparatus, effort, "copies", found)?;
    let plain = Bay::new(apparatus, Source::driver(apparatus, effort.region_bytes)?, 1)?;
    let bay = Bay::new(apparatus, Source::slab(apparatus, effort.region_bytes)?, 2)?;
    for size in &effort.sizes {
        let plain = rate(apparatus, effort, &plain, *size, 1)?;
        for streams in [1, 2] {
            let rate = rate(apparatus, effort, &bay, *size, streams)?;
            let (share, plural) = (100.0 * rate / ceiling, if streams == 1 { "" } else { "s" });
            let name = format!("{} KiB at a time, {streams} stream{plural}", size >> 10);
            let finding = Finding::new("copies", name, share, "%").detail(format!(
                "{:.2} GB/s; {:.2} out of cuMemHostAlloc's memory at this size, in one stream",
                rate / 1e9,
                plain / 1e9
            ));
            found.push(match (size, streams) {
                (&(LARGE_BYTES..), 1) => finding.target(Target::AtLeast(LARGE_TARGET)),
                _ => finding,
            });
        }
    }
    Ok(())
}

/// Bytes/s, checked: the median of a few windows, warmed up.
pub(super) fn rate(apparatus: &Apparatus, effort: &Effort, bay: &Bay, size: usize, streams: usize) -> Result<f64> {
    bay.clear(apparatus)?;
    let once = warm_up(apparatus, effort.window / 3, bay, size, streams)?;
    let times = (effort.window.as_secs_f64() / once).ceil().clamp(1.0, PASSES_MAX);
    let rates =
        (0..effort.rounds).map(|_| Ok(bay.len() as f64 * times / pass(apparatus, bay, size, streams, times as usize)?));
    let rate = median(rates.collect::<Result<_>>()?);
    bay.check(apparatus)?;
    Ok(rate)
}

/// Copies for `time`; gives the seconds that the last copy of everything took.
fn warm_up(apparatus: &Apparatus, time: Duration, bay: &Bay, size: usize, streams: usize) -> Result<f64> {
    let begun = Instant::now();
    loop {
        let once = pass(apparatus, bay, size, streams, 1)?;
        if begun.elapsed() >= time {
            return Ok(once);
        }
    }
}

/// Seconds that copying everything takes, `times` over.
fn pass(apparatus: &Apparatus, bay: &Bay, size: usize, streams: usize, times: usize) -> Result<f64> {
    apparatus
        .timed(&bay.streams[..streams], |entered| (0..times).try_for_each(|_| bay.copy_all(entered, size, streams)))
}

/// Nanoseconds of processor time that asking for a copy costs, by itself and among many by one call.
///
/// # Errors
/// `Corrupt` when other bytes arrived; `Device`, `Stalled`.
pub(super) fn enqueueing(apparatus: &Apparatus, effort: &Effort, found: &mut Vec<Finding>) -> Result<()> {
    for copy_bytes in [4 << 10, 64 << 10] {
        let source = Source::slab(apparatus, BURST * copy_bytes)?;
        let map = source.map();
        let bay = Bay::new(apparatus, source, 1)?;
        let kib = copy_bytes >> 10;
        let cost = burst(apparatus, effort, &bay, |entered| bay.copy_all(entered, copy_bytes, 1))?;
        found.push(
            Finding::new(PART, format!("one copy of {kib} KiB, by itself"), cost / BURST as f64, "ns")
                .detail(format!("processor time of the calling thread, {BURST} in a row; digest checked")),
        );
        let mut together = Together::new(apparatus.context().driver(), false);
        let (Some(name), Some(map)) = (together.name(), map) else {
            found.push(Finding::answer(PART, "many copies by one call", "not with this driver"));
            continue;
        };
        let mut copies = Copies::new();
        copies.allow(map, true);
        let cost = burst(apparatus, effort, &bay, |entered| {
            bay.copy_all_together(entered, copy_bytes, &mut copies, &mut together)
        })?;
        found.push(match together.refusal() {
            Some(refusal) => Finding::answer(PART, format!("many copies by one call ({name})"), refusal.to_string()),
            None => {
                Finding::new(PART, format!("one copy of {kib} KiB, of many by one call"), cost / BURST as f64, "ns")
                    .detail(format!("{name} with {} copies; digest checked", BURST / 2))
            }
        });
    }
    Ok(())
}

/// Nanoseconds of processor time that `ask` takes its caller, by the median; what it asked for is waited for in between, and checked.
fn burst(
    apparatus: &Apparatus,
    effort: &Effort,
    bay: &Bay,
    mut ask: impl FnMut(&Entered<'_>) -> Result<()>,
) -> Result<f64> {
    bay.clear(apparatus)?;
    let mut costs = Vec::new();
    // The first one has the driver set itself up.
    for number in 0..=4 * effort.rounds {
        let mut cost = 0.0;
        apparatus.timed(&bay.streams, |entered| {
            let before = processor_ns();
            ask(entered)?;
            cost = processor_ns() - before;
            Ok(())
        })?;
        if number > 0 {
            costs.push(cost);
        }
    }
    bay.check(apparatus)?;
    Ok(median(costs))
}

/// Processor time of the calling thread.
pub(super) fn processor_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}
