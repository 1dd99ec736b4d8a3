//! A device with the kernels that measurements use, and the waiting that they share.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::{Device, RawStream};
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::{self, Argument, Context, DeviceMemory, Entered, Kernel, Module, bare};

use super::digest::Tally;

/// The kernels, compiled from `kernels.cu`.
const PTX: &str = concat!(include_str!("kernels.ptx"), "\0");

/// How long the device may take for what is measured in one go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks: short beside what is measured, and a core is left to others.
const PAUSE: Duration = Duration::from_micros(20);

/// Threads of a block of the digest, and blocks: enough to have every part of the largest device busy.
const DIGEST_BLOCK: u32 = 256;
const DIGEST_GRID: u32 = 512;

/// A device, opened, with kernels to try it with.
pub struct Apparatus {
    context: Arc<Context>,
    host_node: Option<u32>,
    pub(super) digest: Kernel,
    pub(super) product: Kernel,
}

impl Apparatus {
    /// Opens `device` and loads the kernels.
    ///
    /// # Errors
    /// `Unsupported` for host memory; `Device` when the device or its driver cannot.
    pub fn open(device: &Device) -> Result<Apparatus> {
        let context = device.context()?;
        let text = CStr::from_bytes_with_nul(PTX.as_bytes());
        let module = Module::new(&context, text.map_err(|e| Error::new(Kind::Unsupported, "kernels").source(e))?)?;
        let (digest, product) = (module.kernel(c"farfeed_digest")?, module.kernel(c"farfeed_product")?);
        Ok(Apparatus { context, host_node: device.backend().host_node(), digest, product })
    }

    /// Where the device sits on the bus, as in `0000:3b:00.0`.
    ///
    /// # Errors
    /// `Device`.
    pub fn bus_address(&self) -> Result<String> {
        bare::bus_address(&self.context)
    }

    /// A new non-blocking stream.
    ///
    /// # Errors
    /// `Device`.
    pub fn stream(&self) -> Result<RawStream> {
        cuda::new_stream(&self.context)
    }

    /// The NUMA node next to it, on a machine with several.
    pub fn host_node(&self) -> Option<u32> {
        self.host_node
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn enter(&self) -> Result<Entered<'_>> {
        self.context.enter()
    }

    /// Enqueues a digest of `bytes` at `address`, added to `place` of `tally`. The caller has made sure that the range is memory of this
    /// device, and that it stays until the stream has come past.
    pub(super) fn launch_digest(
        &self,
        entered: &Entered<'_>,
        stream: &RawStream,
        (address, bytes): (u64, usize),
        tally: &Tally,
        place: usize,
    ) -> Result<()> {
        let arguments = [Argument::u64(address), Argument::u64(bytes as u64), tally.argument(place)?];
        cuda::launch(entered, stream, &self.digest, [DIGEST_GRID, 1, 1], [DIGEST_BLOCK, 1, 1], &arguments)
    }

    /// The digest of `memory`'s first `bytes`, computed on the device after all that `stream` has been given to do.
    pub(super) fn digest_of(&self, stream: &RawStream, memory: &Arc<DeviceMemory>, bytes: usize) -> Result<u64> {
        let tally = Tally::new(self, 1)?;
        let entered = self.enter()?;
        let bytes = bytes.min(memory.bytes());
        let done = bare::Mark::new(&self.context)?;
        self.launch_digest(&entered, stream, (memory.pointer(), bytes), &tally, 0)?;
        done.record(&entered, stream)?;
        settle(&entered, &done)?;
        tally.read().map(|sums| sums[0])
    }

    /// Seconds that `work` takes the device, from when the first stream comes to it until all of them are through. They begin and end
    /// together.
    pub(super) fn timed(&self, streams: &[RawStream], work: impl FnOnce(&Entered<'_>) -> Result<()>) -> Result<f64> {
        let entered = self.enter()?;
        let (first, others) =
            streams.split_first().ok_or_else(|| Error::new(Kind::Config, "nothing to measure without a stream"))?;
        let (begun, ended) = (bare::Mark::new(&self.context)?, bare::Mark::new(&self.context)?);
        begun.record(&entered, first)?;
        others.iter().try_for_each(|stream| begun.hold_back(&entered, stream))?;
        work(&entered)?;
        for stream in others {
            let through = bare::Mark::new(&self.context)?;
            through.record(&entered, stream)?;
            through.hold_back(&entered, first)?;
        }
        ended.record(&entered, first)?;
        settle(&entered, &ended)?;
        ended.since(&entered, &begun)
    }
}

/// A point in a stream, with the time at which it was passed.
pub struct Mark {
    mark: bare::Mark,
    context: Arc<Context>,
}

impl Mark {
    /// At the present end of `stream`.
    ///
    /// # Errors
    /// `Device`.
    pub fn at(apparatus: &Apparatus, stream: &RawStream) -> Result<Mark> {
        let mark = bare::Mark::new(&apparatus.context)?;
        mark.record(&apparatus.enter()?, stream)?;
        Ok(Mark { mark, context: Arc::clone(&apparatus.context) })
    }

    /// Has what is enqueued in `stream` from now on wait for it.
    ///
    /// # Errors
    /// `Device`.
    pub fn hold_back(&self, stream: &RawStream) -> Result<()> {
        self.mark.hold_back(&self.context.enter()?, stream)
    }

    /// Waits on the host until the stream has come past it, at most a minute.
    ///
    /// # Errors
    /// `Stalled` when it has not; `Device`.
    pub fn settle(&self) -> Result<()> {
        settle(&self.context.enter()?, &self.mark)
    }

    /// Seconds from `earlier` to here, both passed.
    ///
    /// # Errors
    /// `Device`.
    pub fn since(&self, earlier: &Mark) -> Result<f64> {
        self.mark.since(&self.context.enter()?, &earlier.mark)
    }
}

/// Waits until `mark` is passed.
pub(super) fn settle(entered: &Entered<'_>, mark: &bare::Mark) -> Result<()> {
    settle_within(PATIENCE, || mark.passed(entered))
}

/// Waits until `done` says yes or fails.
///
/// # Errors
/// Those of `done`; `Stalled` when `patience` was not enough.
pub fn settle_within(patience: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !done()? {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Stalled, format!("work on the device did not end within {patience:?}"))
                .advice("see with nvidia-smi what else the device does"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
