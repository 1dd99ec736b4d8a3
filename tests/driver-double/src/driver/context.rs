//! The driver itself, devices and contexts.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::{PROCESS, answer, call, calls_in_children, code, started};
use crate::calls::HOST_WAITS;
use crate::checker::checker;
use crate::device::*;
use crate::ending::look_at_the_end;
use crate::faults::SETTINGS;

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> u32 {
    calls_in_children();
    look_at_the_end();
    if SETTINGS.init_error == SUCCESS {
        let _ = PROCESS.compare_exchange(0, std::process::id(), Ordering::AcqRel, Ordering::Acquire);
    }
    SETTINGS.init_error
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    // SAFETY: the caller vouches for the place.
    code(unsafe { answer(version, SETTINGS.version as c_int) })
}

fn known(error: u32) -> Option<(&'static CStr, &'static CStr)> {
    Some(match error {
        SUCCESS => (c"CUDA_SUCCESS", c"no error"),
        INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        NOT_INITIALIZED => (c"CUDA_ERROR_NOT_INITIALIZED", c"initialization error"),
        INVALID_DEVICE_FUNCTION => (c"CUDA_ERROR_INVALID_DEVICE_FUNCTION", c"invalid device function"),
        100 => (c"CUDA_ERROR_NO_DEVICE", c"no CUDA-capable device is detected"),
        INVALID_DEVICE => (c"CUDA_ERROR_INVALID_DEVICE", c"invalid device ordinal"),
        INVALID_IMAGE => (c"CUDA_ERROR_INVALID_IMAGE", c"device kernel image is invalid"),
        INVALID_CONTEXT => (c"CUDA_ERROR_INVALID_CONTEXT", c"invalid device context"),
        214 => (c"CUDA_ERROR_ECC_UNCORRECTABLE", c"uncorrectable ECC error encountered"),
        INVALID_PTX => (c"CUDA_ERROR_INVALID_PTX", c"a PTX JIT compilation failed"),
        209 => (c"CUDA_ERROR_NO_BINARY_FOR_GPU", c"no kernel image is available for execution on the device"),
        221 => (c"CUDA_ERROR_JIT_COMPILER_NOT_FOUND", c"PTX JIT compiler library not found"),
        223 => (c"CUDA_ERROR_JIT_COMPILATION_DISABLED", c"PTX JIT compilation was disabled"),
        UNSUPPORTED_PTX_VERSION => {
            (c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", c"the provided PTX was compiled with an unsupported toolchain.")
        }
        INVALID_HANDLE => (c"CUDA_ERROR_INVALID_HANDLE", c"invalid resource handle"),
        NOT_FOUND => (c"CUDA_ERROR_NOT_FOUND", c"named symbol not found"),
        NOT_READY => (c"CUDA_ERROR_NOT_READY", c"device not ready"),
        ILLEGAL_ADDRESS => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
        ALREADY_REGISTERED => (
            c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
            c"part or all of the requested memory range is already mapped",
        ),
        CONTEXT_IS_DESTROYED => (c"CUDA_ERROR_CONTEXT_IS_DESTROYED", c"context is destroyed"),
        CAPTURE_UNSUPPORTED => {
            (c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", c"operation not permitted when stream is capturing")
        }
        NOT_REGISTERED => {
            (c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", c"pointer does not correspond to a registered memory region")
        }
        719 => (c"CUDA_ERROR_LAUNCH_FAILED", c"unspecified launch failure"),
        NOT_SUPPORTED => (c"CUDA_ERROR_NOT_SUPPORTED", c"operation not supported"),
        802 => (c"CUDA_ERROR_SYSTEM_NOT_READY", c"system not yet initialized"),
        803 => {
            (c"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", c"system has unsupported display driver / cuda driver combination")
        }
        999 => (c"CUDA_ERROR_UNKNOWN", c"unknown error"),
        _ => return None,
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    // SAFETY: the caller vouches for the place.
    code(known(error).ok_or(INVALID_VALUE).and_then(|known| unsafe { answer(name, known.0.as_ptr()) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: the caller vouches for the place.
    code(known(error).ok_or(INVALID_VALUE).and_then(|known| unsafe { answer(text, known.1.as_ptr()) }))
}

fn by_ordinal(ordinal: c_int) -> Result<&'static std::sync::Arc<Device>, u32> {
    started()?;
    usize::try_from(ordinal).ok().and_then(Device::by_ordinal).ok_or(INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    // SAFETY: the caller vouches for the place.
    code(started().and_then(|()| unsafe { answer(count, SETTINGS.devices as c_int) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    // SAFETY: the caller vouches for the place.
    code(by_ordinal(ordinal).and_then(|_| unsafe { answer(device, ordinal) }))
}

/// Writes a string of so many bytes at most.
///
/// # Safety
/// `place` is valid for writes of `bytes`.
unsafe fn text(place: *mut c_char, bytes: c_int, text: &str) -> Result<(), u32> {
    if (bytes as usize) <= text.len() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for `bytes` at `place`; the text and its final zero are no longer.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), place, text.len());
        place.add(text.len()).write(0);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, device: c_int) -> u32 {
    // SAFETY: the caller vouches for `bytes` at `name`.
    code(by_ordinal(device).and_then(|_| unsafe { text(name, bytes, "driver double") }))
}

/// An address that no machine has: bus numbers end below the domain that the double says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, bytes: c_int, device: c_int) -> u32 {
    let written = |device: &Device| format!("FFFF:{:02X}:00.0", device.ordinal + 1);
    // SAFETY: the caller vouches for `bytes` at `id`.
    code(by_ordinal(device).and_then(|device| unsafe { text(id, bytes, &written(device)) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> u32 {
    // SAFETY: the caller vouches for the place.
    code(by_ordinal(device).and_then(|_| unsafe { answer(bytes, MEMORY_BYTES) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) -> u32 {
    code(by_ordinal(device).and_then(|device| {
        let known = match attribute {
            // Threads of a block: all, and in each direction.
            1..=3 => 1024,
            4 => 64,
            // Blocks of a grid in each direction.
            5 => i32::MAX,
            6 | 7 => 65_535,
            8 => 48 << 10,
            // Warp, clock in kHz, multiprocessors.
            10 => 32,
            13 => 1_000_000,
            16 => 8,
            // PCI bus and device, and domain.
            33 => device.ordinal as c_int + 1,
            34 => 0,
            50 => 0xFFFF,
            // Copy engines, unified addresses.
            40 => 2,
            41 => 1,
            // Compute capability.
            75 => 9,
            76 => 0,
            134 => device.numa_node.load(Ordering::Relaxed) as c_int,
            _ => 0,
        };
        // SAFETY: the caller vouches for the place.
        unsafe { answer(value, known) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> u32 {
    code(by_ordinal(device).and_then(|found| {
        found.calls.add("cuDevicePrimaryCtxRetain", 1);
        let _taking = found.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if found.retained.load(Ordering::Acquire) == 0 {
            found.begin_context();
        }
        found.retained.fetch_add(1, Ordering::AcqRel);
        // Contexts are known by their device; a handle must not be null.
        // SAFETY: the caller vouches for the place.
        unsafe { answer(context, found.ordinal + 1) }
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> u32 {
    code(by_ordinal(device).and_then(|found| {
        found.calls.add("cuDevicePrimaryCtxRelease_v2", 1);
        let _taking = found.taking.lock().unwrap_or_else(PoisonError::into_inner);
        match found.retained.load(Ordering::Acquire) {
            0 => {
                found.violate("a context was released more often than it was taken");
                return Err(INVALID_CONTEXT);
            }
            1 => found.end_context(),
            _ => {}
        }
        found.retained.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }))
}

/// The device whose context that is, if somebody holds it.
fn held(context: usize) -> Result<&'static std::sync::Arc<Device>, u32> {
    let device = context.checked_sub(1).and_then(Device::by_ordinal).ok_or(INVALID_CONTEXT)?;
    if device.retained.load(Ordering::Acquire) <= 0 {
        device.violate("a context was used after its last release");
        return Err(CONTEXT_IS_DESTROYED);
    }
    Ok(device)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxPushCurrent_v2(context: usize) -> u32 {
    code(started().and_then(|()| held(context)).map(|device| {
        device.count("cuCtxPushCurrent_v2");
        CURRENT.with_borrow_mut(|stack| stack.push(device.ordinal));
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut usize) -> u32 {
    code(started().and_then(|()| Device::innermost()).and_then(|device| {
        device.count("cuCtxPopCurrent_v2");
        CURRENT.with_borrow_mut(Vec::pop);
        // SAFETY: the caller vouches for the place.
        unsafe { answer(context, device.ordinal + 1) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> u32 {
    let handle = || {
        Device::innermost().map_or(0, |device| {
            device.count("cuCtxGetCurrent");
            device.ordinal + 1
        })
    };
    // SAFETY: the caller vouches for the place.
    code(started().and_then(|()| unsafe { answer(context, handle()) }))
}

/// Replaces the innermost current context, or takes it away for null.
#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> u32 {
    code(started().and_then(|()| {
        let device = if context == 0 { None } else { Some(held(context)?) };
        match device.or(Device::innermost().ok()) {
            Some(device) => device.count("cuCtxSetCurrent"),
            None => return Ok(()),
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            stack.extend(device.map(|device| device.ordinal));
        });
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> u32 {
    // SAFETY: the caller vouches for the place.
    call("cuCtxGetDevice", |current| unsafe { answer(device, current.ordinal as c_int) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> u32 {
    call("cuCtxSynchronize", |device| {
        device.calls.add(HOST_WAITS, 1);
        let streams: Vec<_> = device.tables().all_streams().cloned().collect();
        streams.iter().for_each(|stream| stream.drain());
        device.observed_health()?;
        checker().observe_streams(streams.iter().map(|stream| stream.number));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> u32 {
    code(started().and_then(|()| {
        if let Ok(device) = Device::innermost() {
            device.count("cuThreadExchangeStreamCaptureMode");
        }
        // SAFETY: the caller vouches for the place, and for what is in it.
        match unsafe { mode.as_mut() } {
            Some(mode) if *mode <= RELAXED => {
                *mode = CAPTURE_MODE.replace(*mode);
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }))
}
