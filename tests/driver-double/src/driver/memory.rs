//! Device memory, and host memory that devices know.

use std::ffi::{c_uint, c_void};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{answer, call, giving_back};
use crate::calls::HOST_WAITS;
use crate::checker::{Use, checker};
use crate::device::*;
use crate::host;
use crate::memory::Memory;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    call("cuMemGetInfo_v2", |device| {
        let used: usize = device.tables().allocations.values().map(|memory| memory.bytes()).sum();
        // SAFETY: the caller vouches for the places.
        unsafe { answer(free, MEMORY_BYTES - used).and_then(|()| answer(total, MEMORY_BYTES)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> u32 {
    call("cuMemAlloc_v2", |device| {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let mut tables = device.tables();
        let used: usize = tables.allocations.values().map(|memory| memory.bytes()).sum();
        if used + bytes > MEMORY_BYTES || is_the_one(&device.allocations_until_refusal) {
            return Err(OUT_OF_MEMORY);
        }
        let memory = Memory::new(bytes).ok_or(OUT_OF_MEMORY)?;
        let address = memory.range().start;
        tables.allocations.insert(address, memory);
        // SAFETY: the caller vouches for the place.
        unsafe { answer(pointer, address as u64) }
    })
}

/// Poisons the memory where work is still to use it; its address is never given out again. Then has the host wait, as a real one may.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(pointer: u64) -> u32 {
    giving_back("cuMemFree_v2", |device| {
        device.calls.add(HOST_WAITS, 1);
        let freed = device.tables().allocations.remove(&(pointer as usize));
        let Some(memory) = freed else {
            device.violate("device memory was freed that was not allocated");
            return Err(INVALID_VALUE);
        };
        gone(device, &memory.range(), "the host frees");
        if Arc::strong_count(&memory) > 1 {
            memory.poison(0xDD);
        }
        device.wait_for_present_work();
        Ok(())
    })
}

/// Portable, mapped, of a device, read only: all flags there are.
const KNOWN_FLAGS: c_uint = 0xF;

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(start: *mut c_void, bytes: usize, flags: c_uint) -> u32 {
    call("cuMemHostRegister_v2", |device| {
        if device.refuses_registration.load(Ordering::Relaxed) {
            return Err(NOT_SUPPORTED);
        }
        if flags > KNOWN_FLAGS {
            return Err(INVALID_VALUE);
        }
        if is_the_one(&device.registrations_until_refusal) {
            return Err(OUT_OF_MEMORY);
        }
        let start = start as usize;
        host::lock(device.ordinal, &(start..start.checked_add(bytes).ok_or(INVALID_VALUE)?))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(start: *mut c_void) -> u32 {
    giving_back("cuMemHostUnregister", |device| {
        device.calls.add(HOST_WAITS, 1);
        let range = host::unlock(start as usize)?;
        gone(device, &range, "the host unregisters");
        device.wait_for_present_work();
        Ok(())
    })
}

/// Memory that nothing may be using any more; where the device has failed, nothing is.
fn gone(device: &Device, range: &Range<usize>, what: &str) {
    let has_failed = device.observed_health().is_err();
    let mut checker = checker();
    if !has_failed {
        checker.host_access(device.ordinal, range, Use::Write, what);
    }
    checker.forget(range);
}
