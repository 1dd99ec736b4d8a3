//! The tests' hold on the double: they are linked to one copy of this crate, the driver that they load is another.

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::calls::Calls;
use crate::checker::{Use, checker};
use crate::device::{CAPTURE_MODE, CURRENT, Device, GLOBAL, INVALID_VALUE};
use crate::host;
use crate::stream::Work;
use crate::twin::{Launch, RawTwin};

/// What the loaded library lets tests do; found by one symbol.
#[repr(C)]
pub struct Control {
    set_rate: extern "C" fn(u32, u64),
    fail_copy: extern "C" fn(u32, i64),
    refuse_registration: extern "C" fn(u32),
    consume: unsafe extern "C" fn(u32, usize, u64, *const u8, usize, u64) -> u32,
    drain: extern "C" fn(u32),
    live: extern "C" fn(u32) -> Live,
    violations: unsafe extern "C" fn(u32, *mut u8, usize) -> usize,
    contexts_on_this_thread: extern "C" fn() -> usize,
    calls: unsafe extern "C" fn(u32, *mut u8, usize) -> usize,
    reset_calls: extern "C" fn(u32),
    calls_in_children: extern "C" fn() -> u64,
    set_numa_node: extern "C" fn(u32, i64),
    refuse_batches: extern "C" fn(u32),
    twin: unsafe extern "C" fn(*const u8, usize, RawTwin),
    host_wrote: extern "C" fn(u32, usize, usize),
    settle: extern "C" fn(u32),
    is_in_global_mode: extern "C" fn() -> bool,
    capture_elsewhere: extern "C" fn(u32, bool),
}

/// What exists on a device at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// References to the primary context.
    pub contexts: i64,
    /// Allocations of device memory.
    pub allocations: usize,
    /// Registered ranges of host memory.
    pub registrations: usize,
    /// Streams, the default one apart.
    pub streams: usize,
    /// Events.
    pub events: usize,
}

/// The double, loaded into this process in the place of the driver.
#[derive(Clone, Copy)]
pub struct Double(&'static Control, Library);

/// What `dlopen` said.
#[derive(Clone, Copy)]
struct Library(*mut c_void);

// SAFETY: a handle that any thread may look symbols up with; it is never closed.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// One of its devices.
#[derive(Clone, Copy)]
pub struct DoubleDevice {
    control: &'static Control,
    ordinal: u32,
}

/// The library that was built beside the running test.
///
/// # Panics
/// When the test has no path.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().expect("the running test has a path");
    test.with_file_name("libfarfeed_driver_double.so")
}

impl Double {
    /// Loads the library that was built beside the running test. Must come before anything asks for a CUDA driver.
    ///
    /// # Panics
    /// When the library is not there.
    pub fn load() -> Double {
        static LOADED: OnceLock<Double> = OnceLock::new();
        *LOADED.get_or_init(|| {
            let path = library();
            let name = CString::new(path.as_os_str().as_bytes()).expect("a path without a zero byte");
            assert!(!crate::on_gpu(), "FARFEED_TEST_GPU is set: the double must not stand beside the driver");
            // SAFETY: a zero-terminated path; the library has no constructors. It stays loaded for good.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            assert!(!library.is_null(), "no driver double at {}", path.display());
            // SAFETY: a library that was just loaded, and a zero-terminated name.
            let control = unsafe { libc::dlsym(library, c"FARFEED_DRIVER_DOUBLE".as_ptr()) };
            assert!(!control.is_null(), "the driver double has no control");
            // SAFETY: that symbol is a `Control` of this crate, built by the same `cargo` call.
            Double(unsafe { &*control.cast::<Control>() }, Library(library))
        })
    }

    pub(crate) fn library(self) -> *mut c_void {
        self.1.0
    }

    /// Device `ordinal` of sixteen.
    pub fn device(self, ordinal: u32) -> DoubleDevice {
        DoubleDevice { control: self.0, ordinal }
    }

    /// Has `twin` run where a kernel called `name` is launched, on any device: in the stream's order, on the stream's
    /// thread. A kernel without one is a violation, and its launch is refused.
    pub fn twin(self, name: &str, twin: impl Fn(&Launch<'_>) + Send + Sync + 'static) {
        // SAFETY: the name is taken before the call returns.
        unsafe { (self.0.twin)(name.as_ptr(), name.len(), RawTwin::new(twin)) };
    }

    /// Driver calls that were made in processes forked off this one; each was refused.
    pub fn calls_in_children(self) -> u64 {
        (self.0.calls_in_children)()
    }

    /// Whether the calling thread is as threads begin: with no context current, and in the global mode towards captures.
    pub fn thread_is_untouched(self) -> bool {
        self.contexts_on_this_thread() == 0 && (self.0.is_in_global_mode)()
    }

    /// Contexts that are current on the calling thread.
    pub fn contexts_on_this_thread(self) -> usize {
        (self.0.contexts_on_this_thread)()
    }
}

impl DoubleDevice {
    /// Copies take as long as they would at this rate.
    pub fn set_rate(&self, bytes_per_second: u64) {
        (self.control.set_rate)(self.ordinal, bytes_per_second);
    }

    /// The copy after `copies` more fails, and with it everything that comes later.
    pub fn fail_copy(&self, copies: u32) {
        (self.control.fail_copy)(self.ordinal, i64::from(copies));
    }

    /// Host memory cannot be registered any more.
    pub fn refuse_registration(&self) {
        (self.control.refuse_registration)(self.ordinal);
    }

    /// Enqueues a kernel in a stream: after `after` it reads device memory and wants to find `expected`.
    ///
    /// # Panics
    /// When the driver refuses it.
    pub fn consume(&self, stream: usize, pointer: u64, expected: &[u8], after: Duration) {
        let after_ms = after.as_millis() as u64;
        // SAFETY: the bytes are taken before the call returns.
        let code = unsafe {
            (self.control.consume)(self.ordinal, stream, pointer, expected.as_ptr(), expected.len(), after_ms)
        };
        assert_eq!(code, 0, "a kernel was refused");
    }

    /// Waits until all streams have nothing left to do: an observation, as by `cuCtxSynchronize`.
    pub fn drain(&self) {
        (self.control.drain)(self.ordinal);
    }

    /// Waits as `drain` does, and tells the checker nothing of it: time goes by, and nobody looks.
    pub fn settle(&self) {
        (self.control.settle)(self.ordinal);
    }

    /// What exists now.
    pub fn live(&self) -> Live {
        (self.control.live)(self.ordinal)
    }

    /// What has happened that must not happen, a line each; empty when all is well. What this tells counts as read.
    pub fn violations(&self) -> String {
        self.text(self.control.violations)
    }

    /// Says that the host has written to `bytes`: a violation where a copy reads them whose end the host has not observed.
    pub fn host_wrote(&self, bytes: &[u8]) {
        (self.control.host_wrote)(self.ordinal, bytes.as_ptr() as usize, bytes.len());
    }

    /// Batches of copies are refused as not supported, as by a driver before 12.8.
    pub fn refuse_batches(&self) {
        (self.control.refuse_batches)(self.ordinal);
    }

    /// Says that another thread is capturing a graph in global mode, or is not any more: calls that would break it are refused and
    /// are violations, but for threads whose mode is relaxed.
    pub fn capture_elsewhere(&self, is_captured: bool) {
        (self.control.capture_elsewhere)(self.ordinal, is_captured);
    }

    /// The host's NUMA node that the device is nearest to; -1 for none.
    pub fn set_numa_node(&self, node: i64) {
        (self.control.set_numa_node)(self.ordinal, node);
    }

    /// What was called since the process began, or since `reset_calls`.
    pub fn calls(&self) -> Calls {
        Calls::parse(&self.text(self.control.calls))
    }

    /// Counts from 0 again.
    pub fn reset_calls(&self) {
        (self.control.reset_calls)(self.ordinal);
    }

    fn text(&self, source: unsafe extern "C" fn(u32, *mut u8, usize) -> usize) -> String {
        let mut text = vec![0; 64 << 10];
        // SAFETY: the library writes at most as many bytes as there are.
        let written = unsafe { source(self.ordinal, text.as_mut_ptr(), text.len()) };
        String::from_utf8_lossy(&text[..written]).into_owned()
    }
}

/// Found by `Double::load` in the library that it loads.
#[unsafe(no_mangle)]
pub static FARFEED_DRIVER_DOUBLE: Control = Control {
    set_rate,
    fail_copy,
    refuse_registration,
    consume,
    drain,
    live,
    violations,
    contexts_on_this_thread,
    calls,
    reset_calls,
    calls_in_children,
    set_numa_node,
    refuse_batches,
    twin,
    host_wrote,
    settle,
    is_in_global_mode,
    capture_elsewhere,
};

fn device(ordinal: u32) -> &'static std::sync::Arc<Device> {
    Device::by_ordinal(ordinal as usize).expect("one of the double's devices")
}

extern "C" fn set_rate(ordinal: u32, bytes_per_second: u64) {
    device(ordinal).link.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
}

extern "C" fn fail_copy(ordinal: u32, copies: i64) {
    device(ordinal).copies_until_fault.store(copies, Ordering::Release);
}

extern "C" fn refuse_registration(ordinal: u32) {
    device(ordinal).refuses_registration.store(true, Ordering::Relaxed);
}

extern "C" fn refuse_batches(ordinal: u32) {
    device(ordinal).refuses_batches.store(true, Ordering::Relaxed);
}

extern "C" fn set_numa_node(ordinal: u32, node: i64) {
    device(ordinal).numa_node.store(node, Ordering::Relaxed);
}

/// # Safety
/// `expected` is valid for reads of `len` bytes.
unsafe extern "C" fn consume(
    ordinal: u32,
    stream: usize,
    pointer: u64,
    expected: *const u8,
    len: usize,
    after_ms: u64,
) -> u32 {
    let (device, from) = (device(ordinal), pointer as usize);
    // SAFETY: by this function's contract.
    let expected = unsafe { std::slice::from_raw_parts(expected, len) }.to_vec();
    let mut tables = device.tables();
    let Some(memory) = tables.memory(&(from..from + len)).cloned() else { return INVALID_VALUE };
    match tables.stream(device, stream) {
        Ok(stream) => {
            let after = Duration::from_millis(after_ms);
            stream.enqueue(&tables, |checker| {
                let op = checker.enqueue(device.ordinal, stream.number, "a consumer's kernel".into(), false);
                checker.access(&op, from..from + len, Use::Read, None);
                Work::Consume { memory, from, expected, after }
            });
            0
        }
        Err(code) => code,
    }
}

/// # Safety
/// `name` is valid for reads of `len` bytes; the twin is one of `RawTwin::new`.
unsafe extern "C" fn twin(name: *const u8, len: usize, twin: RawTwin) {
    // SAFETY: by this function's contract.
    let name = unsafe { std::slice::from_raw_parts(name, len) };
    crate::module::register(String::from_utf8_lossy(name).into_owned(), twin);
}

extern "C" fn host_wrote(ordinal: u32, start: usize, len: usize) {
    let ordinal = device(ordinal).ordinal;
    checker().host_access(ordinal, &(start..start + len), Use::Write, "the host writes");
}

extern "C" fn drain(ordinal: u32) {
    let numbers = idle(ordinal);
    checker().observe_streams(numbers.into_iter());
}

extern "C" fn settle(ordinal: u32) {
    idle(ordinal);
}

/// Waits until the device's streams are idle; gives their numbers.
fn idle(ordinal: u32) -> Vec<u32> {
    let streams: Vec<_> = device(ordinal).tables().all_streams().cloned().collect();
    streams.iter().for_each(|stream| stream.drain());
    streams.iter().map(|stream| stream.number).collect()
}

extern "C" fn live(ordinal: u32) -> Live {
    let device = device(ordinal);
    let tables = device.tables();
    Live {
        contexts: device.retained.load(Ordering::Acquire),
        allocations: tables.allocations.len(),
        registrations: host::count(device.ordinal),
        streams: tables.streams.len(),
        events: tables.events.len(),
    }
}

extern "C" fn reset_calls(ordinal: u32) {
    device(ordinal).calls.reset();
}

extern "C" fn calls_in_children() -> u64 {
    crate::driver::calls_in_children().load(Ordering::Acquire)
}

/// Writes as much of `all` as there is room for; returns how much.
///
/// # Safety
/// `text` is valid for writes of `len` bytes.
unsafe fn tell(all: &str, text: *mut u8, len: usize) -> usize {
    let written = all.len().min(len);
    // SAFETY: by this function's contract, and no longer than the text.
    unsafe { std::ptr::copy_nonoverlapping(all.as_ptr(), text, written) };
    written
}

/// # Safety
/// `text` is valid for writes of `len` bytes.
unsafe extern "C" fn violations(ordinal: u32, text: *mut u8, len: usize) -> usize {
    let all = checker().reports(device(ordinal).ordinal);
    // SAFETY: by this function's contract.
    unsafe { tell(&all, text, len) }
}

/// # Safety
/// `text` is valid for writes of `len` bytes.
unsafe extern "C" fn calls(ordinal: u32, text: *mut u8, len: usize) -> usize {
    // SAFETY: by this function's contract.
    unsafe { tell(&device(ordinal).calls.text(), text, len) }
}

extern "C" fn contexts_on_this_thread() -> usize {
    CURRENT.with_borrow(Vec::len)
}

extern "C" fn is_in_global_mode() -> bool {
    CAPTURE_MODE.get() == GLOBAL
}

extern "C" fn capture_elsewhere(ordinal: u32, is_captured: bool) {
    device(ordinal).is_captured.store(is_captured, Ordering::Release);
}
