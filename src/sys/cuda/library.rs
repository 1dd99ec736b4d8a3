//! The driver's library, looked for by name.
//!
//! Not by way of cudarc: how cudarc finds it is one feature for the whole program, and where another crate has it linked (as candle does) there is
//! nothing in cudarc to ask.

use std::ffi::{CStr, c_void};
use std::ops::Deref;

/// A loaded library, never unloaded.
pub(super) struct Library(*mut c_void);

/// An entry point of a type that the caller vouches for.
pub(super) struct Symbol<T>(T);

/// There is no such entry point.
pub(super) struct Missing;

impl Library {
    /// The driver's library; `None` where the loader finds none.
    ///
    /// # Safety
    /// Loading a library runs its constructors: whatever the loader finds under the driver's name must be the driver, or stand in for it.
    pub(super) unsafe fn open() -> Option<Library> {
        let names = [c"libcuda.so", c"libcuda.so.1"];
        names.iter().find_map(|name| {
            // SAFETY: a zero-terminated name; the rest is this function's contract.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
            (!library.is_null()).then_some(Library(library))
        })
    }

    /// An entry point by its name, with its zero at the end.
    ///
    /// # Safety
    /// `T` is a function pointer, of the function's own type.
    pub(super) unsafe fn get<T: Copy>(&self, name: &[u8]) -> Result<Symbol<T>, Missing> {
        const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Missing)?;
        // SAFETY: a library that is never unloaded and a zero-terminated name.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        if symbol.is_null() {
            return Err(Missing);
        }
        // SAFETY: `T` is a function pointer, as long as this one and not null; that it is of the right type is this function's contract.
        Ok(Symbol(unsafe { std::mem::transmute_copy(&symbol) }))
    }
}

impl<T> Deref for Symbol<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
