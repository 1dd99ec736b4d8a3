//! CUDA driver calls as safe types: context, stream, event, device memory, page-locked ranges.
//!
//! Every call is made inside [`Context::enter`], which makes the context current and puts the thread back as it was:
//! user threads keep whatever context and capture mode they had. A thread of ours can stay inside: [`Attached`].

#[cfg(feature = "measure")]
pub(crate) mod bare;
mod copies;
mod driver;
mod library;
mod module;
mod view;

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{CU_MEMHOSTREGISTER_PORTABLE, CUstream_flags, CUstreamCaptureMode};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUevent_flags, CUstream};

use super::map::Map;
use super::plain::Plain;
use super::process::Birthplace;
use super::stream::RawStream;
use crate::error::{Error, Kind, Result};
pub(crate) use copies::{Copies, Together};
use driver::{ALREADY_REGISTERED, Driver, NOT_READY};
pub(crate) use driver::{Description, driver};
pub(crate) use module::{Argument, Kernel, Module, launch};
pub use view::StreamView;

/// The primary context of a device, shared with every framework in this process.
pub(crate) struct Context {
    driver: &'static Driver,
    device: CUdevice,
    handle: CUcontext,
    /// The process that made it: contexts do not survive `fork`.
    process: Birthplace,
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
        Ok(Arc::new(Context { driver, device, handle, process: Birthplace::here() }))
    }

    /// The driver that it belongs to.
    pub(crate) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Makes the context current on this thread until the answer is dropped.
    ///
    /// # Errors
    /// `Unsupported` in a forked child; `Device` when the context is gone.
    pub(crate) fn enter(&self) -> Result<Entered<'_>> {
        self.push()?;
        // Queries and allocations of ours must not invalidate a capture that the framework has under way elsewhere.
        let mut capture = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: exchanges the calling thread's mode, one of the three of the enumeration.
        unsafe { (self.driver.calls.cuThreadExchangeStreamCaptureMode)(&mut capture) };
        Ok(Entered { context: self, undo: Undo::PopAndMode(capture), thread: PhantomData })
    }

    /// As [`Context::enter`], by two driver calls instead of four: for recording events and having streams wait, which no capture
    /// elsewhere forbids. Not for queries or allocations.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn enter_to_order(&self) -> Result<Entered<'_>> {
        self.push()?;
        Ok(Entered { context: self, undo: Undo::Pop, thread: PhantomData })
    }

    /// Refuses in a forked child.
    ///
    /// # Errors
    /// `Unsupported` there.
    pub(crate) fn check_process(&self) -> Result<()> {
        self.process.check("a CUDA device was opened")
    }

    fn push(&self) -> Result<()> {
        self.check_process()?;
        // SAFETY: the handle is a context that `retain` holds a reference to.
        let code = unsafe { (self.driver.calls.cuCtxPushCurrent_v2)(self.handle) };
        self.driver.check(code, "making the context current")
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
        if self.process.is_here() {
            // SAFETY: gives back the reference that `retain` took; everything made in the context holds an `Arc` of it.
            unsafe { (self.driver.calls.cuDevicePrimaryCtxRelease_v2)(self.device) };
        }
    }
}

/// Proof that a context is current on this thread.
pub(crate) struct Entered<'c> {
    context: &'c Context,
    undo: Undo,
    /// What is current is a property of the thread.
    thread: PhantomData<*const ()>,
}

/// What puts the thread back as it was.
#[derive(Clone, Copy)]
enum Undo {
    Nothing,
    Pop,
    /// The capture mode that there was, and the context.
    PopAndMode(CUstreamCaptureMode),
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
        // SAFETY: undoes, in reverse, what `enter` or `enter_to_order` did, on the same thread (`Entered` is not `Send`).
        unsafe {
            if let Undo::PopAndMode(mut capture) = self.undo {
                (self.calls().cuThreadExchangeStreamCaptureMode)(&mut capture);
            }
            if !matches!(self.undo, Undo::Nothing) {
                (self.calls().cuCtxPopCurrent_v2)(&mut popped);
            }
        }
    }
}

/// A context that stays current on a thread, so that calls there cost no entering: for a thread that does little else. Whatever
/// else makes contexts current there must put this one back.
pub(crate) struct Attached {
    context: Arc<Context>,
    undo: Undo,
    thread: ThreadId,
}

impl Attached {
    /// Enters `context` on the calling thread, to stay.
    ///
    /// # Errors
    /// As [`Context::enter`].
    pub(crate) fn new(context: &Arc<Context>) -> Result<Attached> {
        let mut entered = context.enter()?;
        let undo = std::mem::replace(&mut entered.undo, Undo::Nothing);
        Ok(Attached { context: Arc::clone(context), undo, thread: std::thread::current().id() })
    }

    /// Inside, on that thread and in that process; nothing elsewhere.
    pub(crate) fn entered(&self) -> Option<Entered<'_>> {
        self.is_here().then(|| Entered { context: &self.context, undo: Undo::Nothing, thread: PhantomData })
    }

    fn is_here(&self) -> bool {
        self.thread == std::thread::current().id() && self.context.process.is_here()
    }
}

impl Drop for Attached {
    /// Puts the thread back as it was. Elsewhere nothing can be done for it.
    fn drop(&mut self) {
        if self.is_here() {
            drop(Entered { context: &self.context, undo: self.undo, thread: PhantomData });
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

    /// New memory that begins as `bytes`; waits until they are there.
    ///
    /// # Errors
    /// `Stalled` after `deadline`; `Device`.
    pub(crate) fn of_bytes(context: &Arc<Context>, bytes: &[u8], deadline: Instant) -> Result<DeviceMemory> {
        let memory = DeviceMemory::new(context, bytes.len())?;
        let stream = new_stream(context)?;
        let entered = context.enter()?;
        let (to, handle) = (memory.pointer, stream.handle() as CUstream);
        // SAFETY: as many bytes as were allocated. They are pageable, so that the driver takes them before it returns.
        let code =
            unsafe { (entered.calls().cuMemcpyHtoDAsync_v2)(to, bytes.as_ptr().cast::<c_void>(), bytes.len(), handle) };
        entered.check(code, "copying to the device")?;
        if wait_until(deadline, || stream_idle(&entered, &stream))? {
            return Ok(memory);
        }
        std::mem::forget(memory);
        Err(Error::new(Kind::Stalled, format!("{} bytes did not reach the device", bytes.len())))
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

/// A mapping that is page-locked and known to every context until this is dropped; it is kept mapped for as long.
pub(crate) struct Registration {
    context: Arc<Context>,
    map: Arc<Map>,
}

impl Registration {
    /// Page-locks `map`.
    ///
    /// # Errors
    /// `Config` when it is registered already: two registrations of one range would undo each other; `Device` when the driver cannot
    /// (a limit on locked memory, a system that does not support it).
    pub(crate) fn new(context: &Arc<Context>, map: &Arc<Map>) -> Result<Registration> {
        let entered = context.enter()?;
        let (address, bytes) = (map.address() as *mut c_void, map.bytes());
        // SAFETY: the driver pins the pages in that range, or refuses where there are none; it reads and writes nothing.
        let code = unsafe { (entered.calls().cuMemHostRegister_v2)(address, bytes, CU_MEMHOSTREGISTER_PORTABLE) };
        if code == ALREADY_REGISTERED {
            return Err(Error::new(Kind::Config, "this slab serves another copy engine already")
                .advice("make a slab for each engine"));
        }
        entered.check(code, "page-locking host memory")?;
        Ok(Registration { context: Arc::clone(context), map: Arc::clone(map) })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: registered by `new`, at this address, once.
            unsafe { (entered.calls().cuMemHostUnregister)(self.map.address() as *mut c_void) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
