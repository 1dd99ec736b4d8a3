//! What there is, and how fast it is: the facts that `farfeed doctor` prints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Device, Engine, Segment};
use crate::error::{Error, Kind, Result};
use crate::memory::{Landed, Landing, Slab};

/// The CUDA driver of this machine, or why there is none to use.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DriverFacts {
    /// The CUDA version that the driver supports, as (major, minor); `None` without a usable driver.
    pub version: Option<(u32, u32)>,
    /// Devices in the order of their ordinals.
    pub devices: Vec<DeviceFacts>,
    /// Why there is no usable device, and what to do about it.
    pub problem: Option<String>,
}

/// What a device says of itself without being opened.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeviceFacts {
    /// What to call it in `Device::cuda`.
    pub ordinal: u32,
    /// The maker's name.
    pub name: String,
    /// All of its memory, in bytes.
    pub memory_bytes: u64,
    /// Compute capability as (major, minor).
    pub compute_capability: (u32, u32),
    /// Copies that run beside kernels: 0 means that copying and computing take turns.
    pub copy_engines: u32,
    /// The NUMA node whose memory is nearest, if driver or system know it.
    pub host_node: Option<u32>,
}

/// Looks for CUDA devices without opening any. The first call decides whether there is a driver; later ones agree.
pub fn probe() -> DriverFacts {
    #[cfg(feature = "cuda")]
    {
        use crate::sys::cuda;
        let found = cuda::driver().and_then(|driver| {
            let devices = (0..driver.devices()).map(|ordinal| Ok(facts(ordinal, driver.describe(ordinal)?)));
            Ok((driver.version(), devices.collect::<Result<Vec<_>>>()?))
        });
        match found {
            Ok((version, devices)) => DriverFacts { version: Some(version), devices, problem: None },
            Err(error) => DriverFacts { version: None, devices: Vec::new(), problem: Some(error.to_string()) },
        }
    }
    #[cfg(not(feature = "cuda"))]
    {
        let problem = Device::cuda(0).err().map(|error| error.to_string());
        DriverFacts { version: None, devices: Vec::new(), problem }
    }
}

#[cfg(feature = "cuda")]
fn facts(ordinal: u32, told: crate::sys::cuda::Description) -> DeviceFacts {
    DeviceFacts {
        ordinal,
        name: told.name,
        memory_bytes: told.memory_bytes,
        compute_capability: told.compute_capability,
        copy_engines: told.copy_engines,
        host_node: told.host_node,
    }
}

/// Bytes of a batch that [`copy_rate`] copies: large enough that starting a copy costs nothing beside it.
const BATCH_BYTES: usize = 32 << 20;

/// Measures how fast `device` takes batches from page-locked host memory, in MB/s (10⁶ bytes), over at least `bytes`
/// after one batch to warm up; reads one back and compares. Takes 64 MiB of host memory and of the device's.
///
/// # Errors
/// Those of opening the device; `Corrupt` when the bytes that arrived are not those sent; `Stalled` when copies do not end.
pub fn copy_rate(device: &Device, bytes: usize) -> Result<f64> {
    const PAGE_BYTES: usize = 1 << 20;
    let slab = Slab::near(BATCH_BYTES, PAGE_BYTES, device.backend().host_node())?;
    let pages = slab.take(slab.pages()).ok_or_else(|| Error::new(Kind::Io, "a new slab without free pages"))?;
    let mut landing = Landing::new(pages, BATCH_BYTES);
    let mut position = 0usize;
    while landing.remaining() > 0 {
        let spare = landing.spare();
        spare.iter_mut().zip(position..).for_each(|(byte, at)| *byte = expected(at));
        let count = spare.len();
        position += count;
        landing.advance(count);
    }
    let landed = landing.landed().ok_or_else(|| Error::new(Kind::Io, "a full landing that has not landed"))?;
    let mut engine = device.backend().open(&slab, 2, BATCH_BYTES, Arc::new(|| ()))?;
    copy_batches(engine.as_mut(), &landed, BATCH_BYTES)?;
    let begun = Instant::now();
    let copied = copy_batches(engine.as_mut(), &landed, bytes)?;
    Ok(copied as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

/// Copies batches until `bytes` are through, and checks the last one; returns how many bytes went.
fn copy_batches(engine: &mut dyn Engine, landed: &Landed, bytes: usize) -> Result<usize> {
    let mut copied = 0;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Stalled, "copies to the device do not end"));
        }
        engine.poll()?;
        let Some(mut slot) = engine.acquire()? else {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        };
        let mut to = 0;
        let segments: Vec<_> = landed
            .slices(0, BATCH_BYTES)
            .map(|from| {
                let segment = Segment { from, to };
                to += from.len();
                segment
            })
            .collect();
        engine.copy(&mut slot, &segments)?;
        engine.seal(&mut slot, vec![landed.hold()])?;
        copied += BATCH_BYTES;
        if copied >= bytes {
            slot.synchronize()?;
            check(&slot.read_back(0, 4096)?, 0)?;
            check(&slot.read_back(BATCH_BYTES - 4096, 4096)?, BATCH_BYTES - 4096)?;
            return Ok(copied);
        }
    }
}

/// A byte that tells its position, with a period that is no divisor of any page size.
fn expected(at: usize) -> u8 {
    (at % 251) as u8
}

fn check(bytes: &[u8], at: usize) -> Result<()> {
    match bytes.iter().zip(at..).find(|(byte, at)| **byte != expected(*at)) {
        None => Ok(()),
        Some((byte, at)) => {
            let context = format!("byte {at} came back from the device as {byte}, not {}", expected(at));
            Err(Error::new(Kind::Corrupt, context).advice("test the device and the memory of this machine"))
        }
    }
}
