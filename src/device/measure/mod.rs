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
mod reading;

pub use apparatus::{Apparatus, Mark, settle_within};
pub use digest::{Tally, digest};
pub use effort::Effort;
pub use finding::{Finding, Target, Verdict, findings};
pub use product::Product;

use copies::{copies, enqueueing};
use engine::engine;
use overlap::overlap;
use pinning::pinning;

use crate::device::Device;
use crate::error::Result;

/// Every part that needs no store and is `wanted`, one after the other; `told` is called before each. A part that fails is a finding behind those
/// it had made, and the others go on.
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
    let mut part = |name: &str, measure: &dyn Fn(&mut Vec<Finding>) -> Result<()>| {
        if wanted(name) {
            told(name);
            all.extend(finding::as_far(name, measure));
        }
    };
    part("page-locking", &|found| pinning(&apparatus, effort, found));
    part("enqueueing", &|found| enqueueing(&apparatus, effort, found));
    part("copies", &|found| copies(&apparatus, effort, found));
    part("engine", &|found| engine(&apparatus, device, effort, found));
    part("overlap", &|found| overlap(&apparatus, effort, found));
    Ok(all)
}
