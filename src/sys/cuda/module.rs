//! Kernels of ours: loaded from PTX text that is compiled into the library, launched on streams.

use std::ffi::{CStr, c_uint, c_void};
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::{CUfunction, CUjit_option, CUmodule, CUstream};

use super::{Context, DeviceMemory, Entered, RawStream};
use crate::error::{Error, Kind, Result};

/// Arguments that a kernel may have.
const ARGUMENTS_MAX: usize = 16;

/// Room for what the driver's compiler says of text that it refuses: a line or two.
const LOG_BYTES: usize = 2048;

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
    /// `Device` when the device is older than the text's target, the driver older than its version, or its compiler not there; with what
    /// that compiler says.
    pub(crate) fn new(context: &Arc<Context>, ptx: &'static CStr) -> Result<Arc<Module>> {
        let entered = context.enter()?;
        let mut handle = std::ptr::null_mut();
        let mut log = [0u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut::<c_void>(LOG_BYTES)];
        // SAFETY: a current context, a place for the answer, and zero-terminated text. Two options and their values: a buffer, and its size,
        // which the driver reads out of the pointer's place and overwrites there.
        let code = unsafe {
            (entered.calls().cuModuleLoadDataEx)(
                &mut handle,
                ptx.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        entered.check(code, "loading kernels").map_err(|error| match said(&log) {
            Some(text) => error.source(text),
            None => error,
        })?;
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

/// The compiler's words in one line, if there are any.
fn said(log: &[u8]) -> Option<String> {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_told_in_one_line() {
        assert_eq!(said(&[0; 8]), None);
        assert_eq!(said(b" \n\0fatal"), None);
        assert_eq!(
            said(b"line 1; fatal : no\nptxas : aborted\n\0\0").as_deref(),
            Some("line 1; fatal : no; ptxas : aborted")
        );
        assert_eq!(said(b"without an end \xff").as_deref(), Some("without an end \u{fffd}"));
    }
}
