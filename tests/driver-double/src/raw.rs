//! The driver's calls for tests: what a consumer of batches does, and mistakes that the library does not make. The driver is
//! the double, or the machine's own where `FARFEED_TEST_GPU=1` says so.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::sync::OnceLock;

use crate::control::Double;

/// Whether tests are to use the machine's own driver and GPU in the place of the double.
pub fn on_gpu() -> bool {
    std::env::var_os("FARFEED_TEST_GPU").is_some_and(|value| value == "1")
}

macro_rules! calls {
    ($($name:ident($($arg:ty),*);)*) => {
        #[expect(non_snake_case, reason = "the names of the symbols")]
        struct Calls {
            $($name: unsafe extern "C" fn($($arg),*) -> u32,)*
        }

        impl Calls {
            /// # Safety
            /// `library` is a loaded driver.
            unsafe fn load(library: *mut c_void) -> Calls {
                Calls {
                    $($name: {
                        let name = CString::new(stringify!($name)).expect("a name");
                        // SAFETY: a loaded library and a zero-terminated name.
                        let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
                        assert!(!symbol.is_null(), "the driver has no {}", stringify!($name));
                        // SAFETY: the symbol has this signature, by the driver's header.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> u32>(symbol) }
                    },)*
                }
            }
        }
    };
}

calls! {
    cuInit(c_uint);
    cuDevicePrimaryCtxRetain(*mut usize, c_int);
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuCtxPushCurrent_v2(usize);
    cuCtxPopCurrent_v2(*mut usize);
    cuCtxSynchronize();
    cuMemAlloc_v2(*mut u64, usize);
    cuMemFree_v2(u64);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, usize);
    cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, usize);
    cuMemcpyDtoDAsync_v2(u64, u64, usize, usize);
    cuMemsetD8Async(u64, u8, usize, usize);
    cuStreamCreate(*mut usize, c_uint);
    cuStreamDestroy_v2(usize);
    cuStreamQuery(usize);
    cuStreamSynchronize(usize);
    cuStreamWaitEvent(usize, usize, c_uint);
    cuEventCreate(*mut usize, c_uint);
    cuEventDestroy_v2(usize);
    cuEventRecord(usize, usize);
    cuEventQuery(usize);
    cuEventSynchronize(usize);
    cuEventElapsedTime(*mut f32, usize, usize);
    cuModuleLoadData(*mut usize, *const c_void);
    cuModuleUnload(usize);
    cuModuleGetFunction(*mut usize, usize, *const c_char);
    cuLaunchKernel(usize, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, usize, *mut *mut c_void, *mut *mut c_void);
}

/// The driver's word for what went wrong.
pub type Code = u32;

/// A device, its primary context held. Every call is made with that context current, and puts the thread back as it was.
pub struct Driver {
    calls: &'static Calls,
    ordinal: c_int,
    context: usize,
}

/// How a batch's copies may read their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceOrder {
    /// In the stream's order.
    Stream = 1,
    /// Before the call returns.
    DuringCall = 2,
    /// At any time from the call on.
    Any = 3,
}

/// One copy of a batch: to an address, a range of the source.
pub type Piece = (u64, Range<usize>);

impl Driver {
    /// Holds device `ordinal`.
    ///
    /// # Panics
    /// When there is no driver, or no such device.
    pub fn open(ordinal: u32) -> Driver {
        static CALLS: OnceLock<Calls> = OnceLock::new();
        let calls = CALLS.get_or_init(|| {
            let library = if on_gpu() { open_real() } else { Double::load().library() };
            // SAFETY: that is a loaded driver.
            unsafe { Calls::load(library) }
        });
        let mut context = 0;
        // SAFETY: no flags; then a place for the answer.
        let codes = unsafe { ((calls.cuInit)(0), (calls.cuDevicePrimaryCtxRetain)(&mut context, ordinal as c_int)) };
        assert_eq!(codes, (0, 0), "device {ordinal} cannot be opened");
        Driver { calls, ordinal: ordinal as c_int, context }
    }

    /// A new stream: one that waits for the legacy default stream and makes it wait, or not.
    pub fn stream(&self, is_blocking: bool) -> usize {
        let mut stream = 0;
        // SAFETY: a place for the answer.
        self.made(|calls| unsafe { (calls.cuStreamCreate)(&mut stream, u32::from(!is_blocking)) });
        stream
    }

    /// A new event, with or without a time stamp.
    pub fn event(&self, is_timed: bool) -> usize {
        let mut event = 0;
        // SAFETY: a place for the answer.
        self.made(|calls| unsafe { (calls.cuEventCreate)(&mut event, if is_timed { 0 } else { 2 }) });
        event
    }

    /// Destroys a stream; its work is still carried out.
    pub fn destroy_stream(&self, stream: usize) -> Result<(), Code> {
        // SAFETY: a handle, valid or refused.
        self.call(|calls| unsafe { (calls.cuStreamDestroy_v2)(stream) })
    }

    /// Destroys an event.
    pub fn destroy_event(&self, event: usize) -> Result<(), Code> {
        // SAFETY: a handle, valid or refused.
        self.call(|calls| unsafe { (calls.cuEventDestroy_v2)(event) })
    }

    /// Device memory.
    pub fn allocate(&self, bytes: usize) -> Result<u64, Code> {
        let mut pointer = 0;
        // SAFETY: a place for the answer.
        self.call(|calls| unsafe { (calls.cuMemAlloc_v2)(&mut pointer, bytes) }).map(|()| pointer)
    }

    /// Gives device memory back.
    pub fn free(&self, pointer: u64) -> Result<(), Code> {
        // SAFETY: a pointer, valid or refused.
        self.call(|calls| unsafe { (calls.cuMemFree_v2)(pointer) })
    }

    /// Page-locked host memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn host_memory(&self, bytes: usize) -> Result<HostMemory<'_>, Code> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, anywhere; never unmapped, so that a mistake of a test's reads old bytes and does not fault.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "no host memory");
        // SAFETY: mapped memory of that size.
        self.call(|calls| unsafe { (calls.cuMemHostRegister_v2)(start, bytes, 1) })?;
        Ok(HostMemory { driver: self, start: start.cast(), bytes })
    }

    /// Enqueues a copy of a part of `from`.
    pub fn copy_to_device(
        &self,
        to: u64,
        from: &HostMemory<'_>,
        range: Range<usize>,
        stream: usize,
    ) -> Result<(), Code> {
        let source = from.address(&range) as *const c_void;
        // SAFETY: the destination is checked by the driver; the source stays mapped for good.
        self.call(|calls| unsafe { (calls.cuMemcpyHtoDAsync_v2)(to, source, range.len(), stream) })
    }

    /// Copies pageable bytes: they are taken before this returns.
    pub fn copy_pageable(&self, to: u64, from: &[u8], stream: usize) -> Result<(), Code> {
        // SAFETY: live bytes, which the driver takes before it returns.
        self.call(|calls| unsafe { (calls.cuMemcpyHtoDAsync_v2)(to, from.as_ptr().cast(), from.len(), stream) })
    }

    /// Enqueues a batch of copies, by the form of 13.0 or by that of 12.8.
    ///
    /// # Errors
    /// The driver's; by the older form with the place of the first copy that is wrong.
    pub fn copy_batch(
        &self,
        is_new: bool,
        from: &HostMemory<'_>,
        pieces: &[Piece],
        order: SourceOrder,
        stream: usize,
    ) -> Result<(), (Code, usize)> {
        let library = if on_gpu() { open_real() } else { Double::load().library() };
        let symbol = if is_new { c"cuMemcpyBatchAsync_v2" } else { c"cuMemcpyBatchAsync" };
        // SAFETY: a loaded library and a zero-terminated name.
        let symbol = unsafe { libc::dlsym(library, symbol.as_ptr()) };
        assert!(!symbol.is_null(), "the driver has no batches");
        let mut to: Vec<u64> = pieces.iter().map(|(to, _)| *to).collect();
        let mut sources: Vec<u64> = pieces.iter().map(|(_, range)| from.address(range) as u64).collect();
        let mut sizes: Vec<usize> = pieces.iter().map(|(_, range)| range.len()).collect();
        let (mut attributes, mut begin, mut failed) = ([order as u32, 0, 0, 0, 0, 0], 0, usize::MAX);
        let (to, sources, sizes) = (to.as_mut_ptr(), sources.as_mut_ptr(), sizes.as_mut_ptr());
        let (attributes, count) = (attributes.as_mut_ptr(), pieces.len());
        self.call(|_| {
            if is_new {
                // SAFETY: the signature of the driver's header.
                let call: BatchNew = unsafe { std::mem::transmute(symbol) };
                // SAFETY: arrays of `count`, one attribute (24 bytes) for all; sources stay mapped for good.
                unsafe { call(to, sources, sizes, count, attributes, &mut begin, 1, stream) }
            } else {
                // SAFETY: the signature of the driver's header.
                let call: BatchOld = unsafe { std::mem::transmute(symbol) };
                // SAFETY: as above, and a place for the answer.
                unsafe { call(to, sources, sizes, count, attributes, &mut begin, 1, &mut failed, stream) }
            }
        })
        .map_err(|code| (code, failed))
    }

    /// Enqueues a copy from device memory to device memory.
    pub fn copy_within(&self, to: u64, from: u64, bytes: usize, stream: usize) -> Result<(), Code> {
        // SAFETY: both ends are checked by the driver.
        self.call(|calls| unsafe { (calls.cuMemcpyDtoDAsync_v2)(to, from, bytes, stream) })
    }

    /// Enqueues a fill of device memory.
    pub fn fill(&self, to: u64, value: u8, bytes: usize, stream: usize) -> Result<(), Code> {
        // SAFETY: the destination is checked by the driver.
        self.call(|calls| unsafe { (calls.cuMemsetD8Async)(to, value, bytes, stream) })
    }

    /// Reads device memory behind what is in `stream`; returns when that is done.
    pub fn read_back(&self, from: u64, bytes: usize, stream: usize) -> Result<Vec<u8>, Code> {
        let mut host = vec![0u8; bytes];
        let place = host.as_mut_ptr().cast();
        // SAFETY: pageable memory of that size, which the driver writes before it returns, or else before the stream is idle.
        self.call(|calls| unsafe {
            match (calls.cuMemcpyDtoHAsync_v2)(place, from, bytes, stream) {
                0 => (calls.cuStreamSynchronize)(stream),
                code => code,
            }
        })?;
        Ok(host)
    }

    /// Moves an event to the present end of a stream.
    pub fn record(&self, event: usize, stream: usize) -> Result<(), Code> {
        // SAFETY: handles, valid or refused.
        self.call(|calls| unsafe { (calls.cuEventRecord)(event, stream) })
    }

    /// Has a stream wait for an event.
    pub fn wait(&self, stream: usize, event: usize) -> Result<(), Code> {
        // SAFETY: handles, valid or refused.
        self.call(|calls| unsafe { (calls.cuStreamWaitEvent)(stream, event, 0) })
    }

    /// Whether an event has passed.
    pub fn has_passed(&self, event: usize) -> Result<bool, Code> {
        // SAFETY: a handle, valid or refused.
        Driver::yes(self.call(|calls| unsafe { (calls.cuEventQuery)(event) }))
    }

    /// Whether a stream has nothing left to do.
    pub fn is_idle(&self, stream: usize) -> Result<bool, Code> {
        // SAFETY: a handle, valid or refused.
        Driver::yes(self.call(|calls| unsafe { (calls.cuStreamQuery)(stream) }))
    }

    /// Waits for an event.
    pub fn synchronize_event(&self, event: usize) -> Result<(), Code> {
        // SAFETY: a handle, valid or refused.
        self.call(|calls| unsafe { (calls.cuEventSynchronize)(event) })
    }

    /// Waits for a stream.
    pub fn synchronize_stream(&self, stream: usize) -> Result<(), Code> {
        // SAFETY: a handle, valid or refused.
        self.call(|calls| unsafe { (calls.cuStreamSynchronize)(stream) })
    }

    /// Waits for all of the device's streams.
    pub fn synchronize(&self) -> Result<(), Code> {
        // SAFETY: takes nothing.
        self.call(|calls| unsafe { (calls.cuCtxSynchronize)() })
    }

    /// Milliseconds between two events.
    pub fn elapsed_ms(&self, start: usize, end: usize) -> Result<f32, Code> {
        let mut elapsed = 0.0;
        // SAFETY: a place for the answer; handles, valid or refused.
        self.call(|calls| unsafe { (calls.cuEventElapsedTime)(&mut elapsed, start, end) }).map(|()| elapsed)
    }

    /// Loads PTX.
    pub fn module(&self, ptx: &CStr) -> Result<usize, Code> {
        let mut module = 0;
        // SAFETY: a place for the answer, and zero-terminated text.
        self.call(|calls| unsafe { (calls.cuModuleLoadData)(&mut module, ptx.as_ptr().cast()) }).map(|()| module)
    }

    /// Unloads a module.
    pub fn unload(&self, module: usize) -> Result<(), Code> {
        // SAFETY: a handle, valid or refused.
        self.call(|calls| unsafe { (calls.cuModuleUnload)(module) })
    }

    /// A kernel of a module.
    pub fn function(&self, module: usize, name: &CStr) -> Result<usize, Code> {
        let mut function = 0;
        // SAFETY: a place for the answer, and a zero-terminated name.
        self.call(|calls| unsafe { (calls.cuModuleGetFunction)(&mut function, module, name.as_ptr()) })
            .map(|()| function)
    }

    /// Launches one block of a kernel whose parameters are all of 8 bytes.
    pub fn launch(&self, function: usize, threads: u32, parameters: &[u64], stream: usize) -> Result<(), Code> {
        let mut places: Vec<*mut c_void> =
            parameters.iter().map(|parameter| std::ptr::from_ref(parameter).cast_mut().cast()).collect();
        let places = places.as_mut_ptr();
        // SAFETY: an address for each parameter; they are taken before the call returns.
        self.call(|calls| unsafe {
            (calls.cuLaunchKernel)(function, 1, 1, 1, threads, 1, 1, 0, stream, places, std::ptr::null_mut())
        })
    }

    fn yes(answer: Result<(), Code>) -> Result<bool, Code> {
        match answer {
            Ok(()) => Ok(true),
            Err(600) => Ok(false),
            Err(code) => Err(code),
        }
    }

    fn made(&self, body: impl FnOnce(&Calls) -> u32) {
        assert_eq!(self.call(body), Ok(()), "the driver refuses");
    }

    fn call(&self, body: impl FnOnce(&Calls) -> u32) -> Result<(), Code> {
        let mut popped = 0;
        // SAFETY: a context that is held; what was pushed is popped, on the same thread.
        let (pushed, code) = unsafe {
            let pushed = (self.calls.cuCtxPushCurrent_v2)(self.context);
            let code = if pushed == 0 { body(self.calls) } else { pushed };
            (pushed, code)
        };
        if pushed == 0 {
            // SAFETY: as above.
            unsafe { (self.calls.cuCtxPopCurrent_v2)(&mut popped) };
        }
        if code == 0 { Ok(()) } else { Err(code) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: gives back what `open` took.
        unsafe { (self.calls.cuDevicePrimaryCtxRelease_v2)(self.ordinal) };
    }
}

type BatchNew = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize, usize, *mut u32, *mut usize, usize, usize) -> u32;
type BatchOld =
    unsafe extern "C" fn(*mut u64, *mut u64, *mut usize, usize, *mut u32, *mut usize, usize, *mut usize, usize) -> u32;

/// Page-locked host memory, from which devices read at any time.
pub struct HostMemory<'d> {
    driver: &'d Driver,
    start: *mut u8,
    bytes: usize,
}

impl HostMemory<'_> {
    /// Writes `value` all over a part; whoever is reading it.
    pub fn write(&self, range: Range<usize>, value: u8) {
        let start = self.address(&range) as *mut u8;
        for at in 0..range.len() {
            // SAFETY: inside the mapping. Volatile: a device may be reading, and each write is to happen here.
            unsafe { start.add(at).write_volatile(value) };
        }
    }

    /// Its bytes, for the checker and for comparing.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for good; what writes to it are `write`, on tests' threads, and copies that tests order.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    fn address(&self, range: &Range<usize>) -> usize {
        assert!(range.start <= range.end && range.end <= self.bytes, "past the end of host memory");
        self.start as usize + range.start
    }
}

impl Drop for HostMemory<'_> {
    fn drop(&mut self) {
        let start = self.start.cast();
        // SAFETY: registered when it was made.
        let _ = self.driver.call(|calls| unsafe { (calls.cuMemHostUnregister)(start) });
    }
}

fn open_real() -> *mut c_void {
    // SAFETY: a zero-terminated name; loading runs the driver's constructors, which is what loading it is for.
    let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "FARFEED_TEST_GPU is set, and there is no libcuda.so.1");
    library
}
