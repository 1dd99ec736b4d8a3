//! The entry points, as the driver's header has them. Only those that the library uses.
//!
//! Each is `unsafe` by the driver's own contract: pointers for answers are valid for writes, and strings are long enough.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::*;

/// Turns an answer into a code, and the code of a device that has failed into all there is to say.
fn code(answer: Result<(), u32>) -> u32 {
    answer.err().unwrap_or(SUCCESS)
}

/// Writes an answer where the caller wants it.
///
/// # Safety
/// `place` is null or valid for a write.
unsafe fn answer<T>(place: *mut T, value: T) -> Result<(), u32> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, so valid by this function's contract.
    unsafe { place.write(value) };
    Ok(())
}

macro_rules! answers {
    ($place:expr, $value:expr) => {
        // SAFETY: the caller of the entry point vouches for the place.
        code(unsafe { answer($place, $value) })
    };
}

/// The device of the current context, if it has not failed.
fn healthy() -> Result<&'static Arc<Device>, u32> {
    let device = Device::current()?;
    device.health().map(|()| device)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> u32 {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    answers!(version, 12_040)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    let known = match error {
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        ALREADY_REGISTERED => c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        NOT_REGISTERED => c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        NOT_SUPPORTED => c"CUDA_ERROR_NOT_SUPPORTED",
        _ => return INVALID_VALUE,
    };
    answers!(name, known.as_ptr())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    answers!(count, DEVICES as c_int)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    if !(0..DEVICES as c_int).contains(&ordinal) {
        return INVALID_DEVICE;
    }
    answers!(device, ordinal)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, _device: c_int) -> u32 {
    const NAME: &std::ffi::CStr = c"driver double";
    let bytes_with_zero = NAME.to_bytes_with_nul();
    if (bytes as usize) < bytes_with_zero.len() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller vouches for `bytes` at `name`, and the name is no longer.
    unsafe { std::ptr::copy_nonoverlapping(NAME.as_ptr(), name, bytes_with_zero.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> u32 {
    answers!(bytes, MEMORY_BYTES)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> u32 {
    let known = match attribute {
        40 => 2,
        75 => 9,
        _ => 0,
    };
    answers!(value, known)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32 {
    let Some(found) = Device::by_ordinal(device as usize) else { return INVALID_DEVICE };
    found.retained.fetch_add(1, Ordering::AcqRel);
    // Contexts are known by their device; a handle must not be null.
    answers!(context, device as usize + 1)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    let Some(found) = Device::by_ordinal(device as usize) else { return INVALID_DEVICE };
    found.retained.fetch_sub(1, Ordering::AcqRel);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(context: usize) -> u32 {
    let Some(device) = context.checked_sub(1).and_then(Device::by_ordinal) else { return INVALID_CONTEXT };
    if device.retained.load(Ordering::Acquire) <= 0 {
        device.violate("a context was used after its last release");
        return INVALID_CONTEXT;
    }
    CURRENT.with_borrow_mut(|stack| stack.push(context - 1));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut usize) -> u32 {
    match CURRENT.with_borrow_mut(Vec::pop) {
        Some(ordinal) => answers!(context, ordinal + 1),
        None => INVALID_CONTEXT,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuThreadExchangeStreamCaptureMode(_mode: *mut c_uint) -> u32 {
    // Nothing is ever captured, so the caller's mode may as well be the one there was.
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    let device = match healthy() {
        Ok(device) => device,
        Err(error) => return error,
    };
    let used: usize = device.tables().allocations.values().sum();
    answers!(free, MEMORY_BYTES - used).max(answers!(total, MEMORY_BYTES))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> u32 {
    let device = match healthy() {
        Ok(device) => device,
        Err(error) => return error,
    };
    let mut tables = device.tables();
    if bytes == 0 {
        return INVALID_VALUE;
    }
    if tables.allocations.values().sum::<usize>() + bytes > MEMORY_BYTES {
        return OUT_OF_MEMORY;
    }
    let address = Box::leak(vec![0xDB_u8; bytes].into_boxed_slice()).as_mut_ptr() as usize;
    tables.allocations.insert(address, bytes);
    answers!(pointer, address as u64)
}

/// Poisons the memory and keeps it: a late use finds 0xDD, not somebody else's bytes.
#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(pointer: u64) -> u32 {
    let Ok(device) = Device::current() else { return INVALID_CONTEXT };
    let mut tables = device.tables();
    let address = pointer as usize;
    let Some(bytes) = tables.allocations.remove(&address) else {
        tables.violations.push("device memory was freed that was not allocated".into());
        return INVALID_VALUE;
    };
    if tables.is_in_use(&(address..address + bytes)) {
        tables.violations.push("device memory was freed under a copy".into());
    }
    // SAFETY: the allocation was leaked by `cuMemAlloc_v2`, so it is still there.
    unsafe { std::ptr::write_bytes(address as *mut u8, 0xDD, bytes) };
    drop(tables);
    code(device.health())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostRegister_v2(start: *mut c_void, bytes: usize, _flags: c_uint) -> u32 {
    let device = match healthy() {
        Ok(device) => device,
        Err(error) => return error,
    };
    if device.refuses_registration.load(Ordering::Relaxed) {
        return NOT_SUPPORTED;
    }
    let (mut tables, start) = (device.tables(), start as usize);
    if tables.registrations.iter().any(|(other, len)| *other < start + bytes && start < other + len) {
        return ALREADY_REGISTERED;
    }
    tables.registrations.insert(start, bytes);
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostUnregister(start: *mut c_void) -> u32 {
    let Ok(device) = Device::current() else { return INVALID_CONTEXT };
    let (mut tables, start) = (device.tables(), start as usize);
    let Some(bytes) = tables.registrations.remove(&start) else { return NOT_REGISTERED };
    if tables.is_in_use(&(start..start + bytes)) {
        tables.violations.push("host memory was unregistered under a copy".into());
    }
    drop(tables);
    code(device.health())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) -> u32 {
    code((|| {
        let device = healthy()?;
        let stream = device.stream(stream)?;
        let (from, to) = (from as usize..from as usize + bytes, to as usize..to as usize + bytes);
        let is_registered = {
            let tables = device.tables();
            if !tables.is_allocated(&to) {
                return Err(INVALID_VALUE);
            }
            tables.is_registered(&from)
        };
        let source = if is_registered {
            Source::Address(from.start)
        } else {
            // SAFETY: the caller vouches for `bytes` at `from` until this call returns.
            Source::Taken(unsafe { std::slice::from_raw_parts(from.start as *const u8, bytes) }.to_vec())
        };
        let to_start = to.start;
        let id = device.begin_use(if is_registered { from } else { 0..0 }, to);
        stream.enqueue(Work::Copy { from: source, to: to_start, bytes, id });
        Ok(())
    })())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) -> u32 {
    code((|| {
        let device = healthy()?;
        let stream = device.stream(stream)?;
        let (from, to) = (from as usize..from as usize + bytes, to as usize..to as usize + bytes);
        if !device.tables().is_allocated(&from) {
            return Err(INVALID_VALUE);
        }
        let (source, to_start) = (Source::Address(from.start), to.start);
        let id = device.begin_use(from, to);
        stream.enqueue(Work::Copy { from: source, to: to_start, bytes, id });
        // Registered or not: the caller's memory is ours only until we return.
        stream.drain();
        device.health()
    })())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, _flags: c_uint) -> u32 {
    let device = match healthy() {
        Ok(device) => device,
        Err(error) => return error,
    };
    let handle = new_handle();
    device.tables().streams.insert(handle, Stream::new(device));
    answers!(stream, handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> u32 {
    let Ok(device) = Device::current() else { return INVALID_CONTEXT };
    match device.tables().streams.remove(&stream) {
        Some(stream) => stream.close(),
        None => return INVALID_HANDLE,
    }
    code(device.health())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: usize) -> u32 {
    code(healthy().and_then(|device| if device.stream(stream)?.is_idle() { device.health() } else { Err(NOT_READY) }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> u32 {
    code(healthy().and_then(|device| {
        let stream = device.stream(stream)?;
        // An event that was never recorded is nothing to wait for.
        if let Some(mark) = device.event(event)?.last() {
            stream.enqueue(Work::Wait(mark));
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, _flags: c_uint) -> u32 {
    let device = match healthy() {
        Ok(device) => device,
        Err(error) => return error,
    };
    let handle = new_handle();
    device.tables().events.insert(handle, Arc::default());
    answers!(event, handle)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> u32 {
    let Ok(device) = Device::current() else { return INVALID_CONTEXT };
    if device.tables().events.remove(&event).is_none() {
        return INVALID_HANDLE;
    }
    code(device.health())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> u32 {
    code(healthy().and_then(|device| {
        let (event, stream) = (device.event(event)?, device.stream(stream)?);
        stream.enqueue(Work::Record(event.record()));
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> u32 {
    code(healthy().and_then(|device| match device.event(event)?.last() {
        Some(mark) if !mark.is_passed() => Err(NOT_READY),
        _ => device.health(),
    }))
}
