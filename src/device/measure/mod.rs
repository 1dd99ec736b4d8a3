//! What a GPU does with our kind of work, measured: for `farfeed doctor --gpu` and the benchmark of the device. No stable interface.
//!
//! Each part answers with [`Finding`]s, and each checks what it has moved or computed: digests are taken on the device, by a kernel whose
//! sum the host computes too, and a product's result is held against its factors. Bytes that are wrong are an error of kind `Corrupt`,
//! never a figure.

mod apparatus;
mod bay;
mod copies;
mod digest;
mod effort;
mod engine;
mod finding;
mod overlap;
mod pinning;
mod product;

pub use apparatus::{Apparatus, Mark, settle_within};
pub use copies::{ceiling, copies, enqueueing};
pub use digest::{Tally, digest};
pub use effort::Effort;
pub use engine::engine;
pub use finding::{Finding, Target, Verdict, findings};
pub use overlap::overlap;
pub use pinning::pinning;
pub use product::Product;

use crate::device::Device;
use crate::error::Result;

/// Every part that needs no store and is `wanted`, one after the other; `told` is called before each. A part that fails is a finding, too, and
/// the others go on.
///
/// # Errors
/// Those of opening the device.
pub fn measure_parts(
    device: &Device,
    effort: &Effort,
    wanted: impl Fn(&str) -> bool,
    mut told: impl FnMut(&str),
) -> Result<Vec<Finding>> {
    let apparatus = Apparatus::open(device)?;
    let mut all = Vec::new();
    if wanted("page-locking") {
        told("page-locking");
        all.extend(findings("page-locking", pinning(&apparatus, effort)));
    }
    if wanted("enqueueing") {
        told("enqueueing");
        all.extend(findings("enqueueing", enqueueing(&apparatus, effort)));
    }
    if !["copies", "engine", "overlap"].into_iter().any(&wanted) {
        return Ok(all);
    }
    told("copies");
    let rate = match ceiling(&apparatus, effort) {
        Ok((rate, finding)) => {
            all.push(finding);
            rate
        }
        // There is nothing to hold the others against.
        Err(error) => {
            all.push(Finding::failed("copies", "ceiling", error));
            return Ok(all);
        }
    };
    if wanted("copies") {
        all.extend(findings("copies", copies(&apparatus, effort, rate)));
    }
    if wanted("engine") {
        told("engine");
        all.extend(findings("engine", engine(&apparatus, device, effort, rate)));
    }
    if wanted("overlap") {
        told("overlap");
        all.extend(findings("overlap", overlap(&apparatus, effort, rate)));
    }
    Ok(all)
}
