//! Device memory, and host memory that devices know.

use std::ffi::{c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{answer, call, giving_back};
use crate::calls::HOST_WAITS;
use crate::device::*;
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

/// Poisons the memory where work is still to use it; its address is never given out again.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(pointer: u64) -> u32 {
    giving_back("cuMemFree_v2", |device| {
        device.calls.add(HOST_WAITS, 1);
        let mut tables = device.tables();
        let Some(memory) = tables.allocations.remove(&(pointer as usize)) else {
            tables.violate("device memory was freed that was not allocated");
            return Err(INVALID_VALUE);
        };
        if tables.is_in_use(&memory.range()) {
            tables.violate("device memory was freed under a copy");
        }
        if Arc::strong_count(&memory) > 1 {
            memory.poison(0xDD);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(start: *mut c_void, bytes: usize, _flags: c_uint) -> u32 {
    call("cuMemHostRegister_v2", |device| {
        if device.refuses_registration.load(Ordering::Relaxed) {
            return Err(NOT_SUPPORTED);
        }
        let (mut tables, start) = (device.tables(), start as usize);
        if tables.registrations.iter().any(|(other, len)| *other < start + bytes && start < other + len) {
            return Err(ALREADY_REGISTERED);
        }
        if is_the_one(&device.registrations_until_refusal) {
            return Err(OUT_OF_MEMORY);
        }
        tables.registrations.insert(start, bytes);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(start: *mut c_void) -> u32 {
    giving_back("cuMemHostUnregister", |device| {
        device.calls.add(HOST_WAITS, 1);
        let (mut tables, start) = (device.tables(), start as usize);
        let Some(bytes) = tables.registrations.remove(&start) else { return Err(NOT_REGISTERED) };
        if tables.is_in_use(&(start..start + bytes)) {
            tables.violate("host memory was unregistered under a copy");
        }
        Ok(())
    })
}
