//! Modules, their functions, and launches.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::Arc;

use super::{answer, call, giving_back};
use crate::checker::checker;
use crate::device::*;
use crate::module::{Function, Late, Launching, Module, twin};
use crate::stream::Work;

/// Takes PTX only: there is nothing here that could run a cubin.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut usize, image: *const c_void) -> u32 {
    // SAFETY: by this function's contract.
    call("cuModuleLoadData", |device| unsafe { load(device, module, image) })
}

/// Of the options those that ask for the compiler's complaints are known: the others change how PTX is compiled, and here nothing is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    image: *const c_void,
    count: c_uint,
    options: *mut c_uint,
    values: *mut *mut c_void,
) -> u32 {
    call("cuModuleLoadDataEx", |device| {
        // SAFETY: by this function's contract.
        let loaded = unsafe { load(device, module, image) };
        // SAFETY: as above: `count` options, and as many values.
        loaded.inspect_err(|code| unsafe { complain(*code, count as usize, options, values) })
    })
}

/// # Safety
/// As for `cuModuleLoadData`.
unsafe fn load(device: &Device, module: *mut usize, image: *const c_void) -> Result<(), u32> {
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller vouches for an image; PTX is text with a zero at its end, and the first zero of anything else is
    // inside it, since every binary form has one in its first bytes.
    let text = unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| INVALID_IMAGE)?;
    let parsed = Module::parse(text)?;
    let handle = new_handle();
    device.tables().modules.insert(handle, Arc::new(parsed));
    // SAFETY: the caller vouches for the place.
    unsafe { answer(module, handle) }
}

/// Writes what the compiler has to say where it was asked for, and how much that is, as the real one does.
///
/// # Safety
/// There are `count` options and values; the log's buffer is as large as the option beside it says.
unsafe fn complain(code: u32, count: usize, options: *const c_uint, values: *mut *mut c_void) {
    const ERROR_LOG: c_uint = 5;
    const ERROR_LOG_BYTES: c_uint = 6;
    // SAFETY: by this function's contract.
    let place = |option| (0..count).find(|at| unsafe { *options.add(*at) } == option);
    let (Some(log), Some(bytes)) = (place(ERROR_LOG), place(ERROR_LOG_BYTES)) else { return };
    let text = format!("driver double, line 1; fatal : not compiled\nbecause it was told to say {code}");
    // SAFETY: as above. The text is cut to the buffer, its final zero included.
    unsafe {
        let room = *values.add(bytes) as usize;
        let taken = text.len().min(room.saturating_sub(1));
        std::ptr::copy_nonoverlapping(text.as_ptr(), (*values.add(log)).cast::<u8>(), taken);
        (*values.add(log)).cast::<u8>().add(taken).write_bytes(0, usize::from(room > 0));
        *values.add(bytes) = std::ptr::without_provenance_mut(taken + 1);
    }
}

/// Work that was launched keeps what it needs, as the real one's does not: unloading is noted where the host has not observed that
/// all kernels of the module are over.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: usize) -> u32 {
    giving_back("cuModuleUnload", |device| {
        let mut tables = device.tables();
        let unloaded = tables.modules.remove(&module).ok_or(INVALID_HANDLE)?;
        tables.functions.retain(|_, function| function.module != module);
        drop(tables);
        let has_failed = device.observed_health().is_err();
        let in_use = unloaded.in_use(&checker());
        if let Some(kernel) = in_use.filter(|_| !has_failed) {
            device.violate(format!("a module was unloaded under {kernel}: the host has not observed its end"));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32 {
    call("cuModuleGetFunction", |device| {
        let mut tables = device.tables();
        let found = tables.modules.get(&module).ok_or(INVALID_HANDLE)?;
        // SAFETY: the caller vouches for a zero-terminated name.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let parameters = found.functions.get(&name).ok_or(NOT_FOUND)?.clone();
        let handle = new_handle();
        tables.functions.insert(handle, Arc::new(Function { name, parameters, module }));
        // SAFETY: the caller vouches for the place.
        unsafe { answer(function, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: usize,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    call("cuLaunchKernel", |device| {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        if !extra.is_null() {
            return Err(NOT_SUPPORTED);
        }
        let is_too_large = grid[1] > 65_535 || grid[2] > 65_535 || grid[0] > i32::MAX as u32 || block[2] > 64;
        if grid.contains(&0) || block.iter().product::<u32>() > 1024 || block.contains(&0) || is_too_large {
            return Err(INVALID_VALUE);
        }
        let mut tables = device.tables();
        let stream = tables.stream(device, stream)?;
        let function = Arc::clone(tables.functions.get(&function).ok_or(INVALID_HANDLE)?);
        let module = Arc::clone(tables.modules.get(&function.module).ok_or(INVALID_HANDLE)?);
        let Some(twin) = twin(&function.name) else {
            eprintln!("driver double: no twin is registered for kernel {}", function.name);
            device.violate(format!("kernel {} was launched, and has no twin", function.name));
            return Err(INVALID_DEVICE_FUNCTION);
        };
        if parameters.is_null() && !function.parameters.is_empty() {
            return Err(INVALID_VALUE);
        }
        let taken = function.parameters.iter().enumerate().map(|(index, bytes)| {
            // SAFETY: the caller vouches for an address for each parameter, with as many bytes as the kernel declares.
            unsafe { std::slice::from_raw_parts((*parameters.add(index)).cast::<u8>(), *bytes) }.to_vec()
        });
        let parameters = taken.collect();
        let name = function.name.clone();
        stream.enqueue(&tables, |checker| {
            let op = checker.enqueue(device.ordinal, stream.number, format!("kernel {name}"), false);
            module.launched(stream.number, &op);
            let late = Late::new(checker, op);
            Work::Launch(Launching { name, twin, parameters, grid, block, shared_bytes, late })
        });
        Ok(())
    })
}
