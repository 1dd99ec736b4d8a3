//! The entry points, as the driver's header has them: those that the library uses, and what consumers of its batches need.
//!
//! Each is `unsafe` by the driver's own contract: pointers for answers are valid for writes, and strings are long enough.

mod context;
mod copies;
mod kernels;
mod memory;
mod pinned;
mod streams;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::device::*;

/// Calls from processes that were forked off the one that started the driver, in memory that they share.
pub(crate) fn calls_in_children() -> &'static AtomicU64 {
    static SHARED: std::sync::LazyLock<usize> = std::sync::LazyLock::new(|| {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, anywhere.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 8, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "no memory to share with children");
        page as usize
    });
    // SAFETY: zeroed memory that is never unmapped, aligned to a page.
    unsafe { &*(*SHARED as *const AtomicU64) }
}

/// The process that called `cuInit`; 0 before that.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Whether this is the process that called `cuInit`.
pub(crate) fn is_of_this_process() -> bool {
    PROCESS.load(Ordering::Acquire) == std::process::id()
}

/// Refuses before `cuInit`, and in a forked child, as the real one does.
fn started() -> Result<(), u32> {
    match PROCESS.load(Ordering::Acquire) {
        0 => Err(NOT_INITIALIZED),
        process if process == std::process::id() => Ok(()),
        _ => {
            calls_in_children().fetch_add(1, Ordering::AcqRel);
            Err(NOT_INITIALIZED)
        }
    }
}

/// Turns an answer into a code.
fn code(answer: Result<(), u32>) -> u32 {
    answer.err().unwrap_or(SUCCESS)
}

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `place` is null or valid for a write.
unsafe fn answer<T>(place: *mut T, value: T) -> Result<(), u32> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so valid by this function's contract.
    unsafe { place.write(value) };
    Ok(())
}

/// A call that is for the current context's device: counted, and carried out where the device has not failed.
fn call(name: &'static str, body: impl FnOnce(&'static Arc<Device>) -> Result<(), u32>) -> u32 {
    code(started().and_then(|()| {
        let device = counted(name)?;
        device.observed_health()?;
        device.allows(name)?;
        body(device)
    }))
}

/// A call that gives something back: carried out on a device that has failed, too, which says so then.
fn giving_back(name: &'static str, body: impl FnOnce(&'static Arc<Device>) -> Result<(), u32>) -> u32 {
    code(started().and_then(|()| {
        let device = counted(name)?;
        device.allows(name)?;
        body(device)?;
        device.observed_health()
    }))
}

fn counted(name: &'static str) -> Result<&'static Arc<Device>, u32> {
    let device = Device::current()?;
    device.count(name);
    Ok(device)
}

/// Calls that no capture of another thread's forbids: they enqueue, or order what is enqueued. All others are taken for what the
/// driver calls potentially unsafe.
const NEVER_FORBIDDEN: [&str; 9] = [
    "cuCtxGetDevice",
    "cuEventRecord",
    "cuLaunchKernel",
    "cuMemcpyBatchAsync",
    "cuMemcpyBatchAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuStreamWaitEvent",
];

impl Device {
    /// Refuses what would break a graph that another thread is said to capture, where this thread's mode does not say that it knows better.
    fn allows(&self, name: &'static str) -> Result<(), u32> {
        let is_captured = self.is_captured.load(Ordering::Acquire);
        if !is_captured || CAPTURE_MODE.get() == RELAXED || NEVER_FORBIDDEN.contains(&name) {
            return Ok(());
        }
        self.violate(format!("{name} breaks a capture of another thread's: this one's mode is not relaxed"));
        Err(CAPTURE_UNSUPPORTED)
    }

    /// Counts a call; it may be the one with which the device is lost.
    fn count(&self, name: &'static str) {
        self.calls.add(name, 1);
        if is_the_one(&self.calls_until_loss) {
            self.fail(crate::faults::SETTINGS.loss);
        }
    }
}
