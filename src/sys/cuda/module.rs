//! Kernels of ours: loaded from PTX text that is compiled into the library, launched on streams.

use std::ffi::{CStr, c_uint, c_void};
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};

use super::{Context, DeviceMemory, Entered, RawStream};
use crate::error::{Error, Kind, Result};

/// Arguments that a kernel may have.
const ARGUMENTS_MAX: usize = 16;

/// PTX that the driver has made code of. Dropping it unloads the code: nothing of it may be running by then.
pub(crate) struct Module {
    context: Arc<Context>,
    handle: CUmodule,
}

// SAFETY: a module may be used and unloaded on any thread; the driver locks it.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Has the driver compile `ptx` for the context's device, which it remembers on disk: some 10 ms the first time.
    ///
    /// The text is `'static` because it is part of this library. Its kernels read and write nothing but the
    /// [`Argument::memory`] they are given: whoever adds one vouches for that.
    ///
    /// # Errors
    /// `Device` when the device is older than the text's target, or the driver older than its version.
    pub(crate) fn new(context: &Arc<Context>, ptx: &'static CStr) -> Result<Arc<Module>> {
        let entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a current context, a place for the answer, and zero-terminated text.
        let code = unsafe { (entered.calls().cuModuleLoadData)(&mut handle, ptx.as_ptr().cast()) };
        entered.check(code, "loading kernels")?;
        Ok(Arc::new(Module { context: Arc::clone(context), handle }))
    }

    /// The kernel of that name, which keeps the module.
    ///
    /// # Errors
    /// `Device` when the module has none.
    pub(crate) fn kernel(self: &Arc<Module>, name: &CStr) -> Result<Kernel> {
        let entered = self.context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for the answer, a loaded module and a zero-terminated name.
        let code = unsafe { (entered.calls().cuModuleGetFunction)(&mut handle, self.handle, name.as_ptr()) };
        entered.check(code, "looking a kernel up").map_err(|error| error.within(name.to_string_lossy()))?;
        Ok(Kernel { handle, _module: Arc::clone(self) })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(entered) = self.context.enter() {
            // SAFETY: loaded by `new`, unloaded once; kernels of it hold an `Arc` each.
            unsafe { (entered.calls().cuModuleUnload)(self.handle) };
        }
    }
}

/// A function that runs on the device.
pub(crate) struct Kernel {
    handle: CUfunction,
    _module: Arc<Module>,
}

// SAFETY: a function handle is a name within its module, which is held; launches from any thread are the driver's to lock.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// What a kernel is given: a value of at most eight bytes, in the low ones. Both systems that there are drivers for
/// are little-endian.
#[derive(Clone, Copy)]
pub(crate) struct Argument(u64);

impl Argument {
    /// The address of `range` in `memory`. The kernel must stay within it, and the memory must stay until the launch has run.
    ///
    /// # Errors
    /// `Config` for a range outside the memory.
    pub(crate) fn memory(memory: &DeviceMemory, range: Range<usize>) -> Result<Argument> {
        if range.start > range.end || range.end > memory.bytes() {
            let context = format!("bytes {} to {} of {} on the device", range.start, range.end, memory.bytes());
            return Err(Error::new(Kind::Config, context));
        }
        Ok(Argument(memory.pointer() + range.start as u64))
    }

    /// An `unsigned long long` or `size_t`.
    pub(crate) fn u64(value: u64) -> Argument {
        Argument(value)
    }

    /// An `unsigned int`.
    pub(crate) fn u32(value: u32) -> Argument {
        Argument(u64::from(value))
    }
}

/// Enqueues a run of `kernel` in `stream`: `grid` blocks (x, y, z) of `block` threads. Returns before it has run.
///
/// `arguments` are the kernel's, in its order and of its types.
///
/// # Errors
/// `Config` for more than 16 arguments; `Device`, also for a grid that the device cannot have, and for what failed
/// earlier.
pub(crate) fn launch(
    entered: &Entered<'_>,
    stream: &RawStream,
    kernel: &Kernel,
    grid: [u32; 3],
    block: [u32; 3],
    arguments: &[Argument],
) -> Result<()> {
    let mut places = [std::ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
    if arguments.len() > places.len() {
        return Err(Error::new(Kind::Config, format!("a kernel with {} arguments", arguments.len())));
    }
    for (place, argument) in places.iter_mut().zip(arguments) {
        *place = std::ptr::from_ref(&argument.0).cast_mut().cast();
    }
    let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (grid, block);
    let no_shared_memory: c_uint = 0;
    // SAFETY: the driver copies the arguments before it returns: as many as the kernel has, of at most eight bytes each,
    // which is what lies at each place. It writes to none. What the kernel touches is memory that `Argument::memory`
    // has held against its allocation, by the contract of `Module::new`. The stream is alive by that of `RawStream`.
    let code = unsafe {
        (entered.calls().cuLaunchKernel)(
            kernel.handle,
            grid_x,
            grid_y,
            grid_z,
            block_x,
            block_y,
            block_z,
            no_shared_memory,
            stream.handle() as CUstream,
            places.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    };
    entered.check(code, "launching a kernel")
}
