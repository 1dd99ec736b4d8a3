//! Streams and events.

use std::ffi::c_uint;
use std::sync::Arc;

use super::{answer, call, giving_back};
use crate::calls::HOST_WAITS;
use crate::device::*;
use crate::stream::{Event, Kind, Stream, Work};

const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> u32 {
    call("cuStreamCreate", |device| {
        let (handle, kind) = (new_handle(), if flags & NON_BLOCKING == 0 { Kind::Blocking } else { Kind::NonBlocking });
        device.tables().streams.insert(handle, Stream::new(device, kind));
        // SAFETY: the caller vouches for the place.
        unsafe { answer(stream, handle) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut usize, flags: c_uint, _priority: i32) -> u32 {
    // SAFETY: as for the call that this one is.
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> u32 {
    giving_back("cuStreamDestroy_v2", |device| {
        device.tables().streams.remove(&stream).ok_or(INVALID_HANDLE)?.close();
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: usize) -> u32 {
    call("cuStreamQuery", |device| if device.stream(stream)?.is_idle() { device.health() } else { Err(NOT_READY) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> u32 {
    call("cuStreamSynchronize", |device| {
        device.calls.add(HOST_WAITS, 1);
        device.stream(stream)?.drain();
        device.health()
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> u32 {
    call("cuStreamWaitEvent", |device| {
        let event = device.event(event)?;
        let mut tables = device.tables();
        let stream = tables.stream(device, stream)?;
        // An event that was never recorded is nothing to wait for.
        if let Some(mark) = event.last() {
            stream.enqueue(&tables, Work::Wait(mark));
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, flags: c_uint) -> u32 {
    call("cuEventCreate", |device| {
        let handle = new_handle();
        device.tables().events.insert(handle, Arc::new(Event::new(flags & DISABLE_TIMING == 0)));
        // SAFETY: the caller vouches for the place.
        unsafe { answer(event, handle) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> u32 {
    giving_back("cuEventDestroy_v2", |device| device.tables().events.remove(&event).map(drop).ok_or(INVALID_HANDLE))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> u32 {
    call("cuEventRecord", |device| {
        let mut tables = device.tables();
        // Of this device: an event is recorded in streams of its own context only.
        let event = tables.events.get(&event).cloned().ok_or(INVALID_HANDLE)?;
        let stream = tables.stream(device, stream)?;
        stream.enqueue(&tables, Work::Record(event.record()));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: c_uint) -> u32 {
    cuEventRecord(event, stream)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> u32 {
    call("cuEventQuery", |device| match device.event(event)?.last() {
        Some(mark) if !mark.is_passed() => Err(NOT_READY),
        _ => device.health(),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> u32 {
    call("cuEventSynchronize", |device| {
        device.calls.add(HOST_WAITS, 1);
        if let Some(mark) = device.event(event)?.last() {
            mark.wait(device);
        }
        device.health()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    call("cuEventElapsedTime", |device| {
        let (start, end) = (device.event(start)?, device.event(end)?);
        if !start.is_timed || !end.is_timed {
            return Err(INVALID_HANDLE);
        }
        let (start, end) = (start.last().ok_or(INVALID_HANDLE)?, end.last().ok_or(INVALID_HANDLE)?);
        let (start, end) = (start.passed_at().ok_or(NOT_READY)?, end.passed_at().ok_or(NOT_READY)?);
        let elapsed =
            end.saturating_duration_since(start).as_secs_f32() - start.saturating_duration_since(end).as_secs_f32();
        // SAFETY: the caller vouches for the place.
        unsafe { answer(milliseconds, elapsed * 1e3) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    // SAFETY: as for the call that this one is.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
