//! What page-locking takes, and whether a driver and a ring can have the same memory.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::apparatus::Apparatus;
use super::bay::{Bay, Source};
use super::effort::Effort;
use super::finding::{Finding, Target, median};
use crate::error::Result;
use crate::sys::cuda::Registration;
use crate::sys::cuda::bare::{PinnedMemory, RingRegistration};
use crate::sys::map::Map;

const PART: &str = "page-locking";

/// Bytes that are registered twice.
const SHARED_BYTES: usize = 64 << 20;

/// Seconds per GB of the slab and of the driver's own memory, and whether io_uring registers either, before and after the driver.
///
/// # Errors
/// `Device` when memory cannot be page-locked; `Corrupt` when other bytes arrived.
pub(super) fn pinning(apparatus: &Apparatus, effort: &Effort, found: &mut Vec<Finding>) -> Result<()> {
    times(apparatus, effort, found)?;
    orders(apparatus, effort.pinned_bytes.min(SHARED_BYTES), found)
}

fn times(apparatus: &Apparatus, effort: &Effort, found: &mut Vec<Finding>) -> Result<()> {
    let (mut touching, mut registering, mut ending) = (Vec::new(), Vec::new(), Vec::new());
    let (mut allocating, mut freeing) = (Vec::new(), Vec::new());
    let mut huge = 0.0;
    // A virtual machine's memory may be its host's to find when it is first touched: a round that does not count has it found.
    for round in 0..=effort.rounds {
        let begun = Instant::now();
        let map = Arc::new(Map::near(effort.pinned_bytes, apparatus.host_node())?);
        touching.push(begun.elapsed());
        let begun = Instant::now();
        let registration = Registration::new(apparatus.context(), &map)?;
        registering.push(begun.elapsed());
        huge = huge_share(effort.pinned_bytes);
        let begun = Instant::now();
        drop(registration);
        ending.push(begun.elapsed());
        drop(map);
        let (allocated, freed) = PinnedMemory::time(apparatus.context(), effort.pinned_bytes)?;
        allocating.push(allocated);
        freeing.push(freed);
        if round == 0 {
            [&mut touching, &mut registering, &mut ending, &mut allocating, &mut freeing]
                .into_iter()
                .for_each(Vec::clear);
        }
    }
    let gigabytes = effort.pinned_bytes as f64 / 1e9;
    let [touching, registering, ending, allocating, freeing] = [touching, registering, ending, allocating, freeing]
        .map(|times| median(times.iter().map(|time| time.as_secs_f64() / gigabytes).collect()));
    let figure = |name: &str, seconds: f64| Finding::new(PART, name, seconds, "s/GB");
    let size = format!("{} MiB, {:.0} % of them in huge pages", effort.pinned_bytes >> 20, 100.0 * huge);
    found.extend([
        figure("slab: mapped in huge pages, touched", touching).detail(size),
        figure("slab: registered (cuMemHostRegister)", registering),
        figure("slab: both", touching + registering)
            .target(Target::AtMost(allocating))
            .detail("wanted: no more than cuMemHostAlloc"),
        figure("slab: registration ended", ending),
        figure("cuMemHostAlloc", allocating),
        figure("cuMemFreeHost", freeing),
    ]);
    Ok(())
}

/// How much of `bytes`, the only large mapping of this process, the kernel has put into huge pages; 0 where it does not tell.
fn huge_share(bytes: usize) -> f64 {
    let told = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0.0);
    (1024.0 * kib / bytes as f64).min(1.0)
}

/// The same memory for the driver and for a ring, each first in turn; copies out of it are checked while both have it.
fn orders(apparatus: &Apparatus, bytes: usize, found: &mut Vec<Finding>) -> Result<()> {
    let map = Arc::new(Map::near(bytes, apparatus.host_node())?);
    let driver_first = {
        let registration = Registration::new(apparatus.context(), &map)?;
        let ring = RingRegistration::of_map(&map);
        drop(registration);
        ring.and_then(RingRegistration::end)
    };
    let ring_first = match RingRegistration::of_map(&map) {
        Ok(ring) => {
            let registered = Registration::new(apparatus.context(), &map).map(drop);
            ring.end().and(registered.map_err(io::Error::other))
        }
        Err(refused) => Err(refused),
    };
    let driver = Source::driver(apparatus, bytes)?;
    let drivers = match &driver {
        Source::Driver(memory) => RingRegistration::of_pinned(memory).and_then(RingRegistration::end),
        Source::Slab { .. } => Ok(()),
    };
    let answer = |name: &str, told: io::Result<()>| {
        Finding::answer(PART, name, told.map_or_else(|why| format!("refused: {why}"), |()| "works".into()))
    };
    found.extend([
        answer("io_uring takes the slab after the driver", driver_first),
        answer("the driver takes the slab after io_uring", ring_first),
        answer("io_uring takes cuMemHostAlloc's memory", drivers),
    ]);
    found.push(both_at_once(apparatus, bytes)?);
    Ok(())
}

/// Copies out of memory that a ring has, too.
fn both_at_once(apparatus: &Apparatus, bytes: usize) -> Result<Finding> {
    const NAME: &str = "copies out of memory that both have";
    let source = Source::slab(apparatus, bytes)?;
    let Some(map) = source.map() else { return Ok(Finding::answer(PART, NAME, "not tried")) };
    let ring = match RingRegistration::of_map(&map) {
        Ok(ring) => ring,
        Err(refused) => return Ok(Finding::answer(PART, NAME, format!("not tried: io_uring refused: {refused}"))),
    };
    let bay = Bay::new(apparatus, source, 1)?;
    bay.clear(apparatus)?;
    apparatus.timed(&bay.streams, |entered| bay.copy_all(entered, 1 << 20, 1))?;
    bay.check(apparatus)?;
    drop(ring);
    Ok(Finding::answer(PART, NAME, "right, by digest"))
}
