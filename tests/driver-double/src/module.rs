//! Modules and kernels: PTX is read as far as the names of its kernels and the sizes of their parameters; what a kernel does
//! a twin does, a function of the test's that was registered under its name.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use crate::checker::{Checker, Op, Use, checker};
use crate::device::{Device, ILLEGAL_ADDRESS, INVALID_PTX, UNSUPPORTED_PTX_VERSION};
use crate::faults::SETTINGS;
use crate::kernels;
use crate::memory::Memory;
use crate::twin::{RawLaunch, RawTwin};

static TWINS: LazyLock<Mutex<HashMap<String, RawTwin>>> = LazyLock::new(|| {
    let mut twins = HashMap::new();
    if SETTINGS.twins {
        twins.extend(kernels::measuring());
    }
    Mutex::new(twins)
});

/// Has `twin` run where a kernel called `name` is launched.
pub(crate) fn register(name: String, twin: RawTwin) {
    TWINS.lock().unwrap_or_else(PoisonError::into_inner).insert(name, twin);
}

pub(crate) fn twin(name: &str) -> Option<RawTwin> {
    TWINS.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
}

/// What PTX holds.
pub(crate) struct Module {
    pub(crate) functions: HashMap<String, Vec<usize>>,
    /// The last kernel of it in each stream.
    launched: Mutex<HashMap<u32, Arc<Op>>>,
}

/// A kernel, and the bytes of each of its parameters.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) parameters: Vec<usize>,
    /// The handle of the module that it is of.
    pub(crate) module: usize,
}

impl Module {
    pub(crate) fn parse(text: &str) -> Result<Module, u32> {
        let text: String =
            text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
        if oldest_driver(&text).ok_or(INVALID_PTX)? > SETTINGS.version {
            return Err(UNSUPPORTED_PTX_VERSION);
        }
        if SETTINGS.ptx_error != 0 {
            return Err(SETTINGS.ptx_error);
        }
        let mut functions = HashMap::new();
        for entry in text.split(".entry").skip(1) {
            let head = entry.split('{').next().ok_or(INVALID_PTX)?;
            let (name, rest) = head.split_once('(').unwrap_or((head, ""));
            let list = rest.split(')').next().unwrap_or("");
            let sizes = list.split(',').filter(|parameter| !parameter.trim().is_empty()).map(parameter_bytes);
            functions.insert(name.trim().to_owned(), sizes.collect::<Option<_>>().ok_or(INVALID_PTX)?);
        }
        Ok(Module { functions, launched: Mutex::default() })
    }

    /// One of its kernels was enqueued.
    pub(crate) fn launched(&self, stream: u32, op: &Arc<Op>) {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner).insert(stream, Arc::clone(op));
    }

    /// A kernel of it whose end the host has not observed.
    pub(crate) fn in_use(&self, checker: &Checker) -> Option<Arc<Op>> {
        let launched = self.launched.lock().unwrap_or_else(PoisonError::into_inner);
        launched.values().find(|op| !checker.is_over(op)).cloned()
    }
}

/// The first CUDA version whose driver takes PTX of this `.version`.
fn oldest_driver(text: &str) -> Option<u32> {
    let version = text.split(".version").nth(1)?.split_whitespace().next()?;
    let (major, minor) = version.split_once('.')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(match (major, minor) {
        (..8, _) => 11_000,
        (8, 0..=5) => 12_000 + minor * 10,
        // There was no PTX 8.6 for CUDA 12.6: numbers are one behind from here on.
        (8, _) => 12_010 + minor * 10,
        _ => 13_000 + minor * 10,
    })
}

/// `.param .u64 name`, `.param .align 8 .b8 name[24]`.
fn parameter_bytes(parameter: &str) -> Option<usize> {
    let kind = parameter.split_whitespace().filter(|word| word.starts_with('.')).find_map(|word| {
        let digits = word.trim_start_matches(|c: char| c == '.' || c.is_ascii_alphabetic());
        digits.parse::<usize>().ok()
    })?;
    let count = match parameter.split_once('[') {
        Some((_, count)) => count.split(']').next()?.trim().parse().ok()?,
        None => 1,
    };
    Some(kind / 8 * count)
}

/// A kernel in a queue: what it is given was taken when it was launched.
pub(crate) struct Launching {
    pub(crate) name: String,
    pub(crate) twin: RawTwin,
    pub(crate) parameters: Vec<Vec<u8>>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) late: Late,
}

/// What the checker knows a kernel by until it has run, or will not run any more.
pub(crate) struct Late {
    op: Arc<Op>,
    number: u64,
}

impl Late {
    pub(crate) fn new(checker: &mut Checker, op: Arc<Op>) -> Late {
        Late { number: checker.begin_late(&op), op }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        checker().end_late(self.number);
    }
}

impl Launching {
    /// Runs the twin, which reads and writes the device's memory by the functions that it is given.
    pub(crate) fn run(&self, device: &Device) {
        let parameters: Vec<_> = self.parameters.iter().map(|bytes| (bytes.as_ptr(), bytes.len())).collect();
        let kernel = Kernel { device, name: &self.name, op: &self.late.op };
        let launch = RawLaunch {
            kernel: std::ptr::from_ref(&kernel).cast(),
            parameters: parameters.as_ptr(),
            count: parameters.len(),
            grid: self.grid,
            block: self.block,
            shared_bytes: self.shared_bytes,
            read,
            write,
            fail,
        };
        // SAFETY: the twin was registered with its data, which is never given back; all that `launch` names outlives the call.
        unsafe { (self.twin.run)(self.twin.data as *const c_void, &launch) };
    }
}

/// What a twin's memory accesses are checked with.
struct Kernel<'d> {
    device: &'d Device,
    name: &'d str,
    op: &'d Arc<Op>,
}

impl Kernel<'_> {
    /// Where the device's memory at `address` is, if there is so much of it; otherwise the device has failed.
    fn locate(&self, address: u64, bytes: usize, how: Use) -> Option<(Arc<Memory>, *mut u8)> {
        let range = address as usize..(address as usize).checked_add(bytes)?;
        let found = self.device.tables().memory(&range).cloned();
        match found {
            Some(memory) => {
                let place = memory.inside(&range);
                checker().access(self.op, range, how, None);
                Some((memory, place))
            }
            None => {
                self.fail(&format!("touched {bytes} bytes at {address:#x}, which are no device memory"));
                None
            }
        }
    }

    fn fail(&self, what: &str) {
        eprintln!("driver double: kernel {} {what}", self.name);
        self.device.violate(format!("kernel {} {what}", self.name));
        self.device.fail(ILLEGAL_ADDRESS);
    }
}

/// # Safety
/// `kernel` is what the launch was made with; `to` is valid for writes of `bytes`.
unsafe extern "C" fn read(kernel: *const c_void, address: u64, to: *mut u8, bytes: usize) {
    // SAFETY: by this function's contract.
    let kernel = unsafe { &*kernel.cast::<Kernel<'_>>() };
    if let Some((_memory, place)) = kernel.locate(address, bytes, Use::Read) {
        // SAFETY: live device memory, kept by `_memory`, and the caller's buffer.
        unsafe { std::ptr::copy_nonoverlapping(place, to, bytes) };
    }
}

/// # Safety
/// `kernel` is what the launch was made with; `from` is valid for reads of `bytes`.
unsafe extern "C" fn write(kernel: *const c_void, address: u64, from: *const u8, bytes: usize) {
    // SAFETY: by this function's contract.
    let kernel = unsafe { &*kernel.cast::<Kernel<'_>>() };
    if let Some((_memory, place)) = kernel.locate(address, bytes, Use::Write) {
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(from, place, bytes) };
    }
}

/// # Safety
/// `kernel` is what the launch was made with; `text` is valid for reads of `bytes`.
unsafe extern "C" fn fail(kernel: *const c_void, text: *const u8, bytes: usize) {
    // SAFETY: by this function's contract.
    let (kernel, text) = unsafe { (&*kernel.cast::<Kernel<'_>>(), std::slice::from_raw_parts(text, bytes)) };
    kernel.fail(&String::from_utf8_lossy(text));
}
