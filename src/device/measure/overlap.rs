//! Copies beside a matrix product: what each loses.

use super::apparatus::{Apparatus, settle_within};
use super::bay::{Bay, Source};
use super::effort::Effort;
use super::finding::{Finding, Target, median};
use super::product::Product;
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::Entered;
use crate::sys::cuda::bare::Mark;

const PART: &str = "overlap";

/// In percent.
const PRODUCT_TARGET: f64 = 3.0;
const COPIES_TARGET: f64 = 95.0;

/// Bytes of a copy, as the engine makes them of contiguous data.
const COPY_BYTES: usize = 4 << 20;

/// Products of one window, at most: fewer than a driver queues before it makes its caller wait.
const PRODUCTS_MAX: f64 = 500.0;

/// Slowdowns of a product beside copies at full rate, and of the copies, with `ceiling` in bytes/s.
///
/// # Errors
/// `Corrupt` when bytes or products are wrong; `Device`, `Stalled`.
pub fn overlap(apparatus: &Apparatus, effort: &Effort, ceiling: f64) -> Result<Vec<Finding>> {
    let bay = Bay::new(apparatus, Source::slab(apparatus, effort.region_bytes)?, 1)?;
    let mut product = Product::new(apparatus, effort.matrix)?;
    let stream = apparatus.stream()?;
    let single = product.seconds(apparatus, &stream, effort.rounds)?;
    let times = (effort.window.as_secs_f64() / single).ceil().clamp(2.0, PRODUCTS_MAX) as usize;
    let (mut slower, mut beside, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    // Taking turns: a device that gets warm and slow does so for both.
    for _ in 0..effort.rounds {
        let quiet = products(apparatus, &mut product, &stream, times)?;
        bay.clear(apparatus)?;
        let both = Both::run(apparatus, &bay, &mut product, &stream, times)?;
        bay.check(apparatus)?;
        product.check()?;
        slower.push(100.0 * (both.product_s / quiet - 1.0));
        beside.push(both.bytes_s);
        alone.push(quiet / times as f64);
    }
    let rate = median(beside);
    let product_s = median(alone);
    let figure = |name: &str, value: f64, unit: &str| Finding::new(PART, name, value, unit);
    Ok(vec![
        figure("the product, alone", product.operations() / product_s / 1e12, "Tflop/s").detail(format!(
            "{0} × {0} floats, {1:.2} ms each, {times} in a row",
            effort.matrix,
            1e3 * product_s
        )),
        figure("the product beside copies, slower by", median(slower), "%")
            .target(Target::AtMost(PRODUCT_TARGET))
            .detail("against the same products alone, taking turns; products and digests checked"),
        figure("copies beside the product, of the ceiling", 100.0 * rate / ceiling, "%")
            .target(Target::AtLeast(COPIES_TARGET))
            .detail(format!("{:.2} GB/s, {} MiB at a time", rate / 1e9, COPY_BYTES >> 20)),
    ])
}

/// Seconds of `times` products with nothing beside them.
fn products(
    apparatus: &Apparatus,
    product: &mut Product,
    stream: &crate::device::RawStream,
    times: usize,
) -> Result<f64> {
    apparatus.timed(std::slice::from_ref(stream), |entered| {
        (0..times).try_for_each(|_| product.launch_in(apparatus, entered, stream))
    })
}

/// What both did while they ran.
struct Both {
    product_s: f64,
    /// Rate of the copies.
    bytes_s: f64,
}

impl Both {
    /// Copies are under way when the products begin, and until they end: never more than two passes are asked for ahead.
    fn run(
        apparatus: &Apparatus,
        bay: &Bay,
        product: &mut Product,
        stream: &crate::device::RawStream,
        times: usize,
    ) -> Result<Both> {
        let entered = apparatus.enter()?;
        let new_mark = || Mark::new(apparatus.context());
        let (copies_begun, begun, ended) = (new_mark()?, new_mark()?, new_mark()?);
        let mut copying = Copying { marks: [new_mark()?, new_mark()?], passes: 0 };
        copies_begun.record(&entered, &bay.streams[0])?;
        copying.pass(&entered, bay)?;
        copying.pass(&entered, bay)?;
        begun.record(&entered, stream)?;
        for _ in 0..times {
            product.launch_in(apparatus, &entered, stream)?;
        }
        ended.record(&entered, stream)?;
        settle_within(std::time::Duration::from_secs(60), || {
            if copying.marks[copying.passes % 2].passed(&entered)? {
                copying.pass(&entered, bay)?;
            }
            ended.passed(&entered)
        })?;
        let last = (copying.passes + 1) % 2;
        super::apparatus::settle(&entered, &copying.marks[last])?;
        let product_s = ended.since(&entered, &begun)?;
        let copying_s = copying.marks[last].since(&entered, &copies_begun)?;
        if !(product_s > 0.0 && copying_s > 0.0) {
            return Err(Error::new(Kind::Device, "the device's clock stands still between two events"));
        }
        Ok(Both { product_s, bytes_s: copying.passes as f64 * bay.len() as f64 / copying_s })
    }
}

struct Copying {
    /// Behind the last two passes.
    marks: [Mark; 2],
    passes: usize,
}

impl Copying {
    fn pass(&mut self, entered: &Entered<'_>, bay: &Bay) -> Result<()> {
        bay.copy_all(entered, COPY_BYTES, 1)?;
        self.marks[self.passes % 2].record(entered, &bay.streams[0])?;
        self.passes += 1;
        Ok(())
    }
}
