//! What measurements need beside the copy engine: memory that the driver page-locks itself, events with a clock, and io_uring's own
//! registration of host memory.
//!
//! Looked up apart from the engine's calls, so that a driver that lacks one of them still feeds batches.

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;
use cudarc::driver::sys::{CUevent, CUstream};
use io_uring::IoUring;

use super::driver::NOT_READY;
use super::library::Library;
use super::{Context, DeviceMemory, Entered, RawStream};
use crate::error::{Error, Kind, Result};
use crate::sys::map::Map;

/// Entry points that only measurements use; signatures as in the driver's header, where `CUresult` is a number.
#[expect(non_snake_case, reason = "the names of the symbols")]
struct Calls {
    cuMemHostAlloc: unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> u32,
    cuMemFreeHost: unsafe extern "C" fn(*mut c_void) -> u32,
    cuEventElapsedTime: unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> u32,
    cuDeviceGetPCIBusId: unsafe extern "C" fn(*mut i8, c_int, c_int) -> u32,
}

// The bindings were generated from that header. They have the time between events under its newer name, of the same signature; drivers before
// 12.8 have the older one only.
const _: unsafe fn(*mut *mut c_void, usize, c_uint) -> sys::CUresult = sys::cuMemHostAlloc;
const _: unsafe fn(*mut c_void) -> sys::CUresult = sys::cuMemFreeHost;
const _: unsafe fn(*mut f32, CUevent, CUevent) -> sys::CUresult = sys::cuEventElapsedTime_v2;
const _: unsafe fn(*mut i8, c_int, c_int) -> sys::CUresult = sys::cuDeviceGetPCIBusId;

/// The table. A context is asked for as proof that a driver was found.
fn calls(_context: &Context) -> Result<&'static Calls> {
    static CALLS: OnceLock<Option<Calls>> = OnceLock::new();
    fn load() -> Option<Calls> {
        // SAFETY: the library was loaded before the context was made, so that this is another name for it.
        let library = unsafe { Library::open() }?;
        // SAFETY: the symbols have these signatures, which the constants above hold against the bindings.
        unsafe {
            Some(Calls {
                cuMemHostAlloc: *library.get(b"cuMemHostAlloc\0").ok()?,
                cuMemFreeHost: *library.get(b"cuMemFreeHost\0").ok()?,
                cuEventElapsedTime: *library.get(b"cuEventElapsedTime\0").ok()?,
                cuDeviceGetPCIBusId: *library.get(b"cuDeviceGetPCIBusId\0").ok()?,
            })
        }
    }
    CALLS.get_or_init(load).as_ref().ok_or_else(|| {
        Error::new(Kind::Unsupported, "the CUDA driver lacks a call that measurements need")
            .advice("install NVIDIA driver 525 or newer")
    })
}

/// Where the device sits on the bus, as in `0000:3b:00.0`.
pub(crate) fn bus_address(context: &Context) -> Result<String> {
    let mut text = [0u8; 32];
    // SAFETY: a valid device, and 32 bytes at `text`, of which the driver writes no more, its final zero included.
    let code = unsafe { (calls(context)?.cuDeviceGetPCIBusId)(text.as_mut_ptr().cast(), 32, context.device) };
    context.driver.check(code, "asking where the device sits")?;
    Ok(text.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect())
}

/// Host memory that the driver allocated and page-locked, zeroed: what plain CUDA programs copy from. Freed by its
/// drop, which must come after the last copy out of it.
pub(crate) struct PinnedMemory {
    context: Arc<Context>,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is the owner's alone, and may be freed on any thread.
unsafe impl Send for PinnedMemory {}
// SAFETY: `&PinnedMemory` allows reading only.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// `bytes`, known to every context, not write-combined.
    ///
    /// # Errors
    /// `Device` when the driver cannot.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<PinnedMemory> {
        let mut memory = PinnedMemory::untouched(context, bytes)?;
        memory.fill(0);
        Ok(memory)
    }

    /// As [`PinnedMemory::new`], with whatever the driver left in it: nothing of it can be read.
    pub(crate) fn time(context: &Arc<Context>, bytes: usize) -> Result<(std::time::Duration, std::time::Duration)> {
        let begun = std::time::Instant::now();
        let memory = PinnedMemory::untouched(context, bytes)?;
        let allocated = begun.elapsed();
        drop(memory);
        Ok((allocated, begun.elapsed() - allocated))
    }

    fn untouched(context: &Arc<Context>, bytes: usize) -> Result<PinnedMemory> {
        let entered = context.enter()?;
        let mut start = std::ptr::null_mut();
        // SAFETY: a current context and a place for the answer.
        let code = unsafe { (calls(context)?.cuMemHostAlloc)(&mut start, bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) };
        entered.check(code, "allocating page-locked memory")?;
        let start = NonNull::new(start.cast::<u8>());
        let start = start.ok_or_else(|| Error::new(Kind::Device, "page-locked memory at no address"))?;
        Ok(PinnedMemory { context: Arc::clone(context), start, bytes })
    }

    /// Address of the first byte.
    pub(crate) fn address(&self) -> usize {
        self.start.as_ptr() as usize
    }
}

impl Deref for PinnedMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: allocated by the driver, readable by the host, and written by `new` before anyone can look.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for PinnedMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and bytes of any value are bytes; `&mut self` is the only access of the host's, and the device
        // only ever reads.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let (Ok(calls), Ok(_entered)) = (calls(&self.context), self.context.enter()) {
            // SAFETY: allocated by `cuMemHostAlloc`, freed once.
            unsafe { (calls.cuMemFreeHost)(self.start.as_ptr().cast()) };
        }
    }
}

/// An event that knows when it was passed, to about half a microsecond of the device's own clock.
pub(crate) struct Mark {
    context: Arc<Context>,
    handle: CUevent,
}

// SAFETY: events may be recorded, queried and destroyed from any thread; the driver locks them.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl Mark {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Mark> {
        let entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a current context and a place for the answer. No flag: it takes the time.
        let code = unsafe { (entered.calls().cuEventCreate)(&mut handle, 0) };
        entered.check(code, "creating an event")?;
        Ok(Mark { context: Arc::clone(context), handle })
    }

    /// Moves it to the present end of `stream`.
    pub(crate) fn record(&self, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        // SAFETY: the event is alive, the stream by the contract of `RawStream`.
        let code = unsafe { (entered.calls().cuEventRecord)(self.handle, stream.handle() as CUstream) };
        entered.check(code, "recording an event")
    }

    /// Has what is enqueued in `stream` from now on wait for it.
    pub(crate) fn hold_back(&self, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        // SAFETY: as above; the driver remembers the event's record, not the event.
        let code = unsafe { (entered.calls().cuStreamWaitEvent)(stream.handle() as CUstream, self.handle, 0) };
        entered.check(code, "having a stream wait for an event")
    }

    /// Whether its stream has come past it.
    pub(crate) fn passed(&self, entered: &Entered<'_>) -> Result<bool> {
        // SAFETY: the event is alive.
        let code = unsafe { (entered.calls().cuEventQuery)(self.handle) };
        if code == NOT_READY {
            return Ok(false);
        }
        entered.check(code, "waiting for work on the device").map(|()| true)
    }

    /// Seconds from `earlier` to here, both passed; negative where this came first.
    pub(crate) fn since(&self, entered: &Entered<'_>, earlier: &Mark) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: two live events that were made with a clock, and a place for the answer.
        let code =
            unsafe { (calls(&self.context)?.cuEventElapsedTime)(&mut milliseconds, earlier.handle, self.handle) };
        entered.check(code, "asking for the time between two events")?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: created by `new`, destroyed once.
            unsafe { (entered.calls().cuEventDestroy_v2)(self.handle) };
        }
    }
}

/// Enqueues one plain copy of `from` to offset `to` of `memory`: what all others are measured against. It may lie in pageable memory, which
/// the driver reads before it returns; page-locked memory the caller keeps as it is until an event recorded after this has passed.
///
/// # Errors
/// `Config` for bytes that pass the end of the memory; `Device`.
pub(crate) fn copy(
    entered: &Entered<'_>,
    stream: &RawStream,
    memory: &DeviceMemory,
    from: &[u8],
    to: usize,
) -> Result<()> {
    if to.checked_add(from.len()).is_none_or(|end| end > memory.bytes()) {
        let context = format!("{} bytes at offset {to} pass the end of {} on the device", from.len(), memory.bytes());
        return Err(Error::new(Kind::Config, context));
    }
    // SAFETY: the destination was checked against the allocation. The source is a live slice: pageable memory is read before the call
    // returns, and page-locked memory stays so until it is unregistered, so that the device never reads a page that the system has taken back.
    let code = unsafe {
        (entered.calls().cuMemcpyHtoDAsync_v2)(
            memory.pointer() + to as u64,
            from.as_ptr().cast(),
            from.len(),
            stream.handle() as CUstream,
        )
    };
    entered.check(code, "copying to the device")
}

/// Host memory registered with an io_uring of its own, until this is dropped.
pub(crate) struct RingRegistration(IoUring);

impl RingRegistration {
    /// Registers `map` as fixed buffers; the kernel's refusal is the answer that is asked for.
    pub(crate) fn of_map(map: &Map) -> io::Result<RingRegistration> {
        RingRegistration::new(map.address(), map.bytes())
    }

    /// Registers memory that the driver allocated.
    pub(crate) fn of_pinned(memory: &PinnedMemory) -> io::Result<RingRegistration> {
        RingRegistration::new(memory.address(), memory.bytes)
    }

    fn new(address: usize, bytes: usize) -> io::Result<RingRegistration> {
        /// The kernel's limit for one buffer.
        const BUFFER_BYTES_MAX: usize = 1 << 30;
        let ring = IoUring::new(4)?;
        let buffers: Vec<libc::iovec> = (0..bytes)
            .step_by(BUFFER_BYTES_MAX)
            .map(|at| libc::iovec {
                iov_base: (address + at) as *mut c_void,
                iov_len: BUFFER_BYTES_MAX.min(bytes - at),
            })
            .collect();
        // SAFETY: the ranges are mapped now; the kernel holds the pages by itself, and this ring is given nothing to do, so that
        // nothing is ever read or written through them.
        unsafe { ring.submitter().register_buffers(&buffers) }?;
        Ok(RingRegistration(ring))
    }

    /// Takes it back.
    pub(crate) fn end(self) -> io::Result<()> {
        self.0.submitter().unregister_buffers()
    }
}
