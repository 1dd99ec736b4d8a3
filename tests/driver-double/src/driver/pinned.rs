//! Host memory that the driver allocates page-locked: mapped here, and registered as a program's own would be.

use std::collections::HashMap;
use std::ffi::{c_uint, c_void};
use std::sync::{LazyLock, Mutex, PoisonError};

use super::memory::{cuMemHostRegister_v2, cuMemHostUnregister};
use super::{answer, code};
use crate::device::*;

/// What was allocated and not freed: address and bytes.
static ALLOCATED: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(Mutex::default);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint) -> u32 {
    let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, anywhere; of no bytes it is refused.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        return if bytes == 0 { INVALID_VALUE } else { OUT_OF_MEMORY };
    }
    let refused = cuMemHostRegister_v2(start, bytes, flags);
    if refused != SUCCESS {
        // SAFETY: the mapping from above, which nobody was told of.
        unsafe { libc::munmap(start, bytes) };
        return refused;
    }
    ALLOCATED.lock().unwrap_or_else(PoisonError::into_inner).insert(start as usize, bytes);
    // SAFETY: the caller vouches for the place.
    code(unsafe { answer(pointer, start) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(start: *mut c_void) -> u32 {
    let allocated = ALLOCATED.lock().unwrap_or_else(PoisonError::into_inner).remove(&(start as usize));
    let Some(bytes) = allocated else { return INVALID_VALUE };
    let refused = cuMemHostUnregister(start);
    // SAFETY: mapped by `cuMemHostAlloc`, and freed once; the caller uses it no more.
    unsafe { libc::munmap(start, bytes) };
    refused
}
