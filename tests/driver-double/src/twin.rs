//! The tests' side of a kernel: a function that does on the host what the kernel does on a device.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A function and what it is called with, in a form that both copies of this crate understand.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawTwin {
    pub(crate) run: unsafe extern "C" fn(*const c_void, *const RawLaunch),
    /// Leaked by [`RawTwin::new`], and a number so that it may go to any thread: what it points to is `Sync`.
    pub(crate) data: usize,
}

#[repr(C)]
pub(crate) struct RawLaunch {
    pub(crate) kernel: *const c_void,
    pub(crate) parameters: *const (*const u8, usize),
    pub(crate) count: usize,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) read: unsafe extern "C" fn(*const c_void, u64, *mut u8, usize),
    pub(crate) write: unsafe extern "C" fn(*const c_void, u64, *const u8, usize),
    pub(crate) fail: unsafe extern "C" fn(*const c_void, *const u8, usize),
}

type Twin = Box<dyn Fn(&Launch<'_>) + Send + Sync>;

impl RawTwin {
    pub(crate) fn new(twin: impl Fn(&Launch<'_>) + Send + Sync + 'static) -> RawTwin {
        let twin: Box<Twin> = Box::new(Box::new(twin));
        RawTwin { run, data: Box::into_raw(twin) as usize }
    }
}

/// One launch of a kernel, to its twin. It runs in the stream's order, on the stream's thread.
pub struct Launch<'l>(&'l RawLaunch);

impl Launch<'_> {
    /// Blocks in each direction.
    pub fn grid(&self) -> [u32; 3] {
        self.0.grid
    }

    /// Threads of a block in each direction.
    pub fn block(&self) -> [u32; 3] {
        self.0.block
    }

    /// Bytes of shared memory that were asked for beside those of the kernel.
    pub fn shared_bytes(&self) -> u32 {
        self.0.shared_bytes
    }

    /// All threads.
    pub fn threads(&self) -> u64 {
        self.0.grid.iter().chain(&self.0.block).map(|count| u64::from(*count)).product()
    }

    /// Parameter `index`, as its bytes in memory.
    ///
    /// # Panics
    /// When the kernel has no such parameter. A panic of a twin is a violation, and an error of the device.
    pub fn parameter(&self, index: usize) -> &[u8] {
        assert!(index < self.0.count, "no parameter {index}: the kernel has {}", self.0.count);
        // SAFETY: the launch lists that many parameters, each valid for as long as it is itself.
        unsafe {
            let (start, bytes) = *self.0.parameters.add(index);
            std::slice::from_raw_parts(start, bytes)
        }
    }

    /// Parameter `index`, 8 bytes: a pointer or a 64-bit number.
    ///
    /// # Panics
    /// When it has another size.
    pub fn u64(&self, index: usize) -> u64 {
        u64::from_ne_bytes(self.sized(index))
    }

    /// Parameter `index`, 4 bytes.
    ///
    /// # Panics
    /// When it has another size.
    pub fn u32(&self, index: usize) -> u32 {
        u32::from_ne_bytes(self.sized(index))
    }

    /// Parameter `index`, 4 bytes.
    ///
    /// # Panics
    /// When it has another size.
    pub fn f32(&self, index: usize) -> f32 {
        f32::from_ne_bytes(self.sized(index))
    }

    /// Reads device memory.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0xEE; bytes];
        // SAFETY: the launch's own function and kernel, and a buffer of that size.
        unsafe { (self.0.read)(self.0.kernel, address, found.as_mut_ptr(), bytes) };
        found
    }

    /// Writes device memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        // SAFETY: as in `read`.
        unsafe { (self.0.write)(self.0.kernel, address, bytes.as_ptr(), bytes.len()) };
    }

    fn sized<const N: usize>(&self, index: usize) -> [u8; N] {
        let bytes = self.parameter(index);
        bytes.try_into().unwrap_or_else(|_| panic!("parameter {index} has {} bytes, not {N}", bytes.len()))
    }
}

/// # Safety
/// `data` is that of a `RawTwin`, `launch` is valid during the call.
unsafe extern "C" fn run(data: *const c_void, launch: *const RawLaunch) {
    // SAFETY: by this function's contract.
    let (twin, launch) = unsafe { (&*data.cast::<Twin>(), &*launch) };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| twin(&Launch(launch)))) {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let text = format!("panicked: {}", text.unwrap_or("without words"));
        // SAFETY: the launch's own function and kernel; the text is read before it returns.
        unsafe { (launch.fail)(launch.kernel, text.as_ptr(), text.len()) };
    }
}
