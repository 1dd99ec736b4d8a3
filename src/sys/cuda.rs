//! CUDA driver calls as safe types: context, stream, event, device memory, page-locked ranges.
//!
//! Every call is made inside [`Context::enter`], which makes the context current and puts the thread back as it was:
//! user threads keep whatever context and capture mode they had.

mod driver;
mod library;
mod view;

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{CU_MEMHOSTREGISTER_PORTABLE, CUstream_flags, CUstreamCaptureMode};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUevent_flags, CUstream};

use super::plain::Plain;
use super::stream::RawStream;
use crate::error::{Error, Kind, Result};
use driver::{ALREADY_REGISTERED, Driver, NOT_READY};
pub(crate) use driver::{Description, driver};
pub use view::StreamView;

/// The primary context of a device, shared with every framework in this process.
pub(crate) struct Context {
    driver: &'static Driver,
    device: CUdevice,
    handle: CUcontext,
    /// The process that made it: contexts do not survive `fork`.
    process: u32,
}

// SAFETY: a context may be made current on any thread, and on several at once; the driver locks it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of device `ordinal`, creating it if nobody has yet (that takes some 100 ms).
    pub(crate) fn retain(ordinal: u32) -> Result<Arc<Context>> {
        let driver = driver()?;
        let device = driver.device(ordinal)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a valid device and a place for the answer.
        let code = unsafe { (driver.calls.cuDevicePrimaryCtxRetain)(&mut handle, device) };
        driver.check(code, "taking the device's primary context")?;
        Ok(Arc::new(Context { driver, device, handle, process: std::process::id() }))
    }

    /// Makes the context current on this thread until the answer is dropped.
    ///
    /// # Errors
    /// `Unsupported` in a forked child; `Device` when the context is gone.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        if self.process != std::process::id() {
            let error = Error::new(Kind::Unsupported, "a CUDA device was opened before this process was forked");
            return Err(error.advice("start workers with spawn or forkserver, or open the device in the child"));
        }
        // SAFETY: the handle is a context that `retain` holds a reference to.
        let code = unsafe { (self.driver.calls.cuCtxPushCurrent_v2)(self.handle) };
        self.driver.check(code, "making the context current")?;
        // Queries and allocations of ours must not invalidate a capture that the framework has under way elsewhere.
        let mut capture = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the calling thread's mode, one of the three of the enumeration.
        unsafe { (self.driver.calls.cuThreadExchangeStreamCaptureMode)(&mut capture) };
        Ok(Entered { context: self, capture, thread: PhantomData })
    }

    /// Refuses a stream that is known to belong to another context: its events could not be ours.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn admit(&self, stream: &RawStream) -> Result<()> {
        match stream.context() {
            Some(context) if context != self.handle as usize => {
                let context = format!("{stream:?} belongs to another context than the memory of cuda:{}", self.device);
                Err(Error::new(Kind::Config, context)
                    .advice("take a stream of CudaContext::new(ordinal), with the ordinal of the batch's device"))
            }
            _ => Ok(()),
        }
    }

    /// Bytes of device memory that are free, and that there are.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        let _entered = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: a current context and places for the answers.
        let code = unsafe { (self.driver.calls.cuMemGetInfo_v2)(&mut free, &mut total) };
        self.driver.check(code, "asking for free device memory")?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // SAFETY: gives back the reference that `retain` took; everything made in the context holds an `Arc` of it.
            unsafe { (self.driver.calls.cuDevicePrimaryCtxRelease_v2)(self.device) };
        }
    }
}

/// Proof that a context is current on this thread.
pub(crate) struct Entered<'c> {
    context: &'c Context,
    capture: CUstreamCaptureMode,
    /// What is current is a property of the thread.
    thread: PhantomData<*const ()>,
}

impl Entered<'_> {
    fn check(&self, code: u32, doing: &'static str) -> Result<()> {
        self.context.driver.check(code, doing)
    }

    fn calls(&self) -> &driver::Calls {
        &self.context.driver.calls
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = std::ptr::null_mut();
        // SAFETY: undoes, in reverse, the two calls of `enter`, on the same thread (`Entered` is not `Send`).
        unsafe {
            (self.calls().cuThreadExchangeStreamCaptureMode)(&mut self.capture);
            (self.calls().cuCtxPopCurrent_v2)(&mut popped);
        }
    }
}

/// Destroys a stream of ours; work in it is still carried out.
struct StreamOwner {
    context: Arc<Context>,
    handle: usize,
}

impl Drop for StreamOwner {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: the stream was created by `new_stream`, and the last name for it is gone.
            unsafe { (entered.calls().cuStreamDestroy_v2)(self.handle as CUstream) };
        }
    }
}

/// A new stream that does not synchronise with the legacy default stream.
pub(crate) fn new_stream(context: &Arc<Context>) -> Result<RawStream> {
    let entered = context.enter()?;
    let mut handle: CUstream = std::ptr::null_mut();
    // SAFETY: a current context and a place for the answer.
    let code = unsafe { (entered.calls().cuStreamCreate)(&mut handle, CUstream_flags::CU_STREAM_NON_BLOCKING as u32) };
    entered.check(code, "creating a stream")?;
    let handle = handle as usize;
    Ok(RawStream::owned(handle, Arc::new(StreamOwner { context: Arc::clone(context), handle })))
}

/// Has the work that is enqueued in `stream` from now on wait for `event`; the host does not wait.
pub(crate) fn stream_waits(entered: &Entered<'_>, stream: &RawStream, event: &Event) -> Result<()> {
    // SAFETY: the event is alive, the stream by the contract of `RawStream`; the driver remembers the event's record,
    // not the event, so neither has to outlive the call.
    let code = unsafe { (entered.calls().cuStreamWaitEvent)(stream.handle() as CUstream, event.handle, 0) };
    entered.check(code, "having a stream wait for an event")
}

/// Whether all work in `stream` is done. An error means that the device has stopped.
pub(crate) fn stream_idle(entered: &Entered<'_>, stream: &RawStream) -> Result<bool> {
    // SAFETY: the stream is alive by the contract of `RawStream`.
    let code = unsafe { (entered.calls().cuStreamQuery)(stream.handle() as CUstream) };
    if code == NOT_READY {
        return Ok(false);
    }
    entered.check(code, "asking whether copies are done").map(|()| true)
}

/// A point in a stream, without a time stamp. One that was never recorded counts as passed.
pub(crate) struct Event {
    context: Arc<Context>,
    handle: CUevent,
}

// SAFETY: events may be recorded, queried and destroyed from any thread; the driver locks them.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// A new event; these are few, and pooled.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Event> {
        let entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a current context and a place for the answer.
        let code =
            unsafe { (entered.calls().cuEventCreate)(&mut handle, CUevent_flags::CU_EVENT_DISABLE_TIMING as u32) };
        entered.check(code, "creating an event")?;
        Ok(Event { context: Arc::clone(context), handle })
    }

    /// Moves the event to the present end of `stream`.
    pub(crate) fn record(&self, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        // SAFETY: the event is alive, the stream by the contract of `RawStream`.
        let code = unsafe { (entered.calls().cuEventRecord)(self.handle, stream.handle() as CUstream) };
        entered.check(code, "recording an event")
    }

    /// Whether the stream has come past the event. An error, and it may be that of earlier work, is not "no".
    pub(crate) fn passed(&self, entered: &Entered<'_>) -> Result<bool> {
        // SAFETY: the event is alive.
        let code = unsafe { (entered.calls().cuEventQuery)(self.handle) };
        if code == NOT_READY {
            return Ok(false);
        }
        entered.check(code, "waiting for work on the device").map(|()| true)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: created by `new`, destroyed once; the driver keeps what streams still wait for.
            unsafe { (entered.calls().cuEventDestroy_v2)(self.handle) };
        }
    }
}

/// Asks until `done` says yes or fails, or `deadline` has come: then `false`. Sleeps in between, longer each time.
pub(crate) fn wait_until(deadline: Instant, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let mut pause = Duration::from_micros(10);
    loop {
        if done()? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

/// Memory of a device. Freeing it is the owner's to time: nothing may still be using it.
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    pointer: CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates `bytes`, aligned to at least 256.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<DeviceMemory> {
        let entered = context.enter()?;
        let mut pointer = 0;
        // SAFETY: a current context and a place for the answer.
        let code = unsafe { (entered.calls().cuMemAlloc_v2)(&mut pointer, bytes.max(1)) };
        entered.check(code, "allocating device memory")?;
        Ok(DeviceMemory { context: Arc::clone(context), pointer, bytes })
    }

    /// Address on the device.
    pub(crate) fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `len` elements at `at`, for kernels in `stream`. What must come first the caller has had the stream wait for, and whoever
    /// writes to this memory next waits for the stream.
    ///
    /// # Errors
    /// `Config` for a range outside this memory, or one that does not begin at a multiple of the elements' size.
    pub(crate) fn view<T: Plain>(&self, at: usize, len: usize, stream: &Arc<CudaStream>) -> Result<StreamView<'_, T>> {
        let end = len.checked_mul(size_of::<T>()).and_then(|bytes| at.checked_add(bytes));
        if end.is_none_or(|end| end > self.bytes) || !at.is_multiple_of(align_of::<T>()) {
            let context = format!("{len} elements of {} bytes at {at}, in {} bytes", size_of::<T>(), self.bytes);
            return Err(Error::new(Kind::Config, context));
        }
        Ok(StreamView::new(self.pointer + at as u64, len, stream))
    }

    /// Enqueues copies of `pieces` (bytes, offset in this memory) in `stream`, neighbours on both sides as one.
    ///
    /// A piece may lie in pageable memory, which the driver reads before it returns, or in memory that a
    /// [`Registration`] pins: there the caller must not let it be written to before an event recorded after this has passed,
    /// or the device gets other bytes than it was meant to. No two neighbouring pieces may differ in that.
    ///
    /// # Errors
    /// `Config` for a piece that passes the end of this memory; `Device`.
    pub(crate) fn copy_from_host<'a>(
        &self,
        entered: &Entered<'_>,
        stream: &RawStream,
        pieces: impl Iterator<Item = (&'a [u8], usize)>,
    ) -> Result<()> {
        for run in (Runs { pieces: pieces.peekable() }) {
            if run.to.checked_add(run.bytes).is_none_or(|end| end > self.bytes) {
                let Run { to, bytes, .. } = run;
                let context = format!("{bytes} bytes at offset {to} pass the end of a slot of {}", self.bytes);
                return Err(Error::new(Kind::Config, context));
            }
            // SAFETY: the destination was checked against the allocation. The source is a union of live slices that
            // touch each other; pageable memory is read before the call returns, and registered memory stays pinned
            // until it is unregistered, so that the device never reads a page that the system has taken back.
            let code = unsafe {
                (entered.calls().cuMemcpyHtoDAsync_v2)(
                    self.pointer + run.to as u64,
                    run.from.cast(),
                    run.bytes,
                    stream.handle() as CUstream,
                )
            };
            entered.check(code, "copying to the device")?;
        }
        Ok(())
    }

    /// Reads `bytes` at `at` back, in a stream of its own: what must come first has been waited for by the caller.
    ///
    /// # Errors
    /// `Config` for a range outside this memory; `Stalled` after `deadline`; `Device`.
    pub(crate) fn read_back(&self, at: usize, bytes: usize, deadline: Instant) -> Result<Vec<u8>> {
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let context = format!("{bytes} bytes at offset {at} pass the end of a slot of {}", self.bytes);
            return Err(Error::new(Kind::Config, context));
        }
        let stream = new_stream(&self.context)?;
        let entered = self.context.enter()?;
        let mut host = vec![0u8; bytes];
        // SAFETY: source checked, destination of that length. It is pageable, so the driver writes it before it
        // returns; should it not, `host` is kept until the stream is idle, and given up where it does not become so.
        let code = unsafe {
            (entered.calls().cuMemcpyDtoHAsync_v2)(
                host.as_mut_ptr().cast::<c_void>(),
                self.pointer + at as u64,
                bytes,
                stream.handle() as CUstream,
            )
        };
        entered.check(code, "copying from the device")?;
        match wait_until(deadline, || stream_idle(&entered, &stream)) {
            Ok(true) => Ok(host),
            Ok(false) => {
                std::mem::forget(host);
                Err(Error::new(Kind::Stalled, format!("{bytes} bytes did not come back from the device")))
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: allocated by `new`, freed once.
            unsafe { (entered.calls().cuMemFree_v2)(self.pointer) };
        }
    }
}

/// Host memory that is page-locked and known to every context until this is dropped, which must come before it is unmapped.
pub(crate) struct Registration {
    context: Arc<Context>,
    address: usize,
}

impl Registration {
    /// Page-locks `bytes` at `address`.
    ///
    /// # Errors
    /// `Config` when the range is registered already: two registrations of one range would undo each other; `Device`
    /// when the driver cannot (a limit on locked memory, a system that does not support it).
    pub(crate) fn new(context: &Arc<Context>, address: usize, bytes: usize) -> Result<Registration> {
        let entered = context.enter()?;
        // SAFETY: the driver pins the pages in that range, or refuses where there are none; it reads and writes nothing.
        let code = unsafe {
            (entered.calls().cuMemHostRegister_v2)(address as *mut c_void, bytes, CU_MEMHOSTREGISTER_PORTABLE)
        };
        if code == ALREADY_REGISTERED {
            return Err(Error::new(Kind::Config, "this slab serves another copy engine already")
                .advice("make a slab for each engine"));
        }
        entered.check(code, "page-locking host memory")?;
        Ok(Registration { context: Arc::clone(context), address })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: registered by `new`, at this address, once.
            unsafe { (entered.calls().cuMemHostUnregister)(self.address as *mut c_void) };
        }
    }
}

/// Bytes that can be copied at once.
struct Run {
    from: *const u8,
    to: usize,
    bytes: usize,
}

/// Joins pieces that follow each other in the source and in the destination: a call costs some 2 µs of CPU, whatever it copies.
struct Runs<'a, I: Iterator<Item = (&'a [u8], usize)>> {
    pieces: std::iter::Peekable<I>,
}

impl<'a, I: Iterator<Item = (&'a [u8], usize)>> Iterator for Runs<'a, I> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let (first, to) = self.pieces.find(|(from, _)| !from.is_empty())?;
        let mut run = Run { from: first.as_ptr(), to, bytes: first.len() };
        while let Some((next, _)) = self.pieces.next_if(|(from, to)| {
            from.is_empty()
                || (from.as_ptr() == run.from.wrapping_add(run.bytes) && Some(*to) == run.to.checked_add(run.bytes))
        }) {
            run.bytes += next.len();
        }
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(pieces: &[(&[u8], usize)]) -> Vec<(usize, usize)> {
        Runs { pieces: pieces.iter().copied().peekable() }.map(|run| (run.to, run.bytes)).collect()
    }

    #[test]
    fn neighbours_on_both_sides_become_one_copy() {
        let page = [0u8; 100];
        let (a, rest) = page.split_at(10);
        let (b, c) = rest.split_at(30);
        assert_eq!(joined(&[(a, 0), (b, 10), (c, 40)]), [(0, 100)]);
        assert_eq!(joined(&[(a, 0), (b, 11), (c, 41)]), [(0, 10), (11, 90)], "a gap in the destination");
        assert_eq!(joined(&[(a, 0), (c, 10), (b, 70)]), [(0, 10), (10, 60), (70, 30)], "a gap in the source");
        assert_eq!(joined(&[(&[], 7), (a, 0), (&[], 3), (b, 10)]), [(0, 40)], "empty pieces copy nothing");
        assert_eq!(joined(&[]), []);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let begun = Instant::now();
        assert!(!wait_until(begun + Duration::from_millis(20), || Ok(false)).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(2));
        let mut asked = 0;
        let answer = wait_until(begun + Duration::from_secs(10), || {
            asked += 1;
            Ok(asked == 3)
        });
        assert!(answer.unwrap() && asked == 3);
    }
}
