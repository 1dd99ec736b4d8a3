//! What tests of the double's rules begin with.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::ffi::{CStr, c_void};

use farfeed_driver_double::{Double, DoubleDevice, Driver, HostMemory};

pub(crate) const BYTES: usize = 8192;
pub(crate) const LEGACY: usize = 1;
pub(crate) const PER_THREAD: usize = 2;

/// The double's insight is what is tested: nothing to do on a real one.
macro_rules! on_the_double {
    () => {
        if farfeed_driver_double::on_gpu() {
            eprintln!("skipped: this looks into the double");
            return;
        }
    };
}
pub(crate) use on_the_double;

/// A device of the double, with two streams that ignore the default one, an event, and memory on both sides.
pub(crate) struct Rig<'d> {
    pub(crate) double: DoubleDevice,
    pub(crate) driver: &'d Driver,
    pub(crate) first: usize,
    pub(crate) second: usize,
    pub(crate) event: usize,
    pub(crate) memory: u64,
    pub(crate) host: HostMemory<'d>,
}

impl<'d> Rig<'d> {
    pub(crate) fn new(ordinal: u32, driver: &'d Driver) -> Rig<'d> {
        let double = Double::load().device(ordinal);
        double.set_rate(1 << 40);
        Rig {
            double,
            driver,
            first: driver.stream(false),
            second: driver.stream(false),
            event: driver.event(false),
            memory: driver.allocate(BYTES).unwrap(),
            host: driver.host_memory(BYTES).unwrap(),
        }
    }

    pub(crate) fn copy(&self, stream: usize) {
        self.driver.copy_to_device(self.memory, &self.host, 0..BYTES, stream).unwrap();
    }

    pub(crate) fn fill(&self, stream: usize) {
        self.driver.fill(self.memory, 7, BYTES, stream).unwrap();
    }

    /// Nothing was reported; from here on neither.
    pub(crate) fn expect_nothing(self) {
        self.driver.synchronize().unwrap();
        assert_eq!(self.double.violations(), "");
    }

    /// One report, with these words in it.
    pub(crate) fn expect(self, words: &[&str]) {
        let found = self.double.violations();
        assert!(found.lines().count() == 1 && words.iter().all(|word| found.contains(word)), "{words:?}: {found:?}");
        self.driver.synchronize().unwrap();
    }
}

/// An entry point of the double, of this type.
pub(crate) fn entry<T: Copy>(name: &CStr) -> T {
    Double::load();
    // SAFETY: a zero-terminated name.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    assert!(!symbol.is_null() && size_of::<T>() == size_of::<*mut c_void>());
    // SAFETY: the tests name the type that the driver's header has.
    unsafe { std::mem::transmute_copy(&symbol) }
}

/// With the context of `ordinal` current, which somebody holds.
pub(crate) fn inside<T>(ordinal: usize, body: impl FnOnce() -> T) -> T {
    let push = entry::<unsafe extern "C" fn(usize) -> u32>(c"cuCtxPushCurrent_v2");
    let pop = entry::<unsafe extern "C" fn(*mut usize) -> u32>(c"cuCtxPopCurrent_v2");
    let mut popped = 0;
    // SAFETY: the double knows contexts by their device.
    assert_eq!(unsafe { push(ordinal + 1) }, 0);
    let result = body();
    // SAFETY: a place for the answer.
    assert_eq!(unsafe { pop(&mut popped) }, 0);
    result
}
