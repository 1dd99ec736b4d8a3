//! Copies, one by one and in batches, and fills.

use std::ffi::{c_uchar, c_void};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::call;
use crate::calls::{COPIED_BYTES, COPIES, HOST_WAITS};
use crate::checker::{Use, checker};
use crate::device::*;
use crate::faults::SETTINGS;
use crate::guard::Guarded;
use crate::host::{Locked, how_much_is_locked};
use crate::stream::{Copy, Place, Stream, Work};

/// When a copy reads host memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// Pageable memory before the call returns, page-locked memory when the copy is carried out: all but batches.
    AsItLies,
    /// When the copy is carried out, whatever memory it is.
    Later,
    /// Before the call returns.
    Now,
}

fn range(start: usize, bytes: usize) -> Result<Range<usize>, u32> {
    Ok(start..start.checked_add(bytes).ok_or(INVALID_VALUE)?)
}

/// The end of a copy at `address`; the host's unless it is device memory.
///
/// # Safety
/// A source that is host memory is valid for reads as long as `reads` says.
unsafe fn source(tables: &Tables, address: usize, bytes: usize, reads: Reads) -> Result<Place, u32> {
    let range = range(address, bytes)?;
    if let Some(memory) = tables.memory(&range) {
        return Ok(Place::Device(Arc::clone(memory), address));
    }
    match (how_much_is_locked(&range), reads) {
        (Locked::Partly, _) => return Err(INVALID_VALUE),
        (Locked::Whole, Reads::AsItLies) | (_, Reads::Later) => return Ok(Place::Host(address)),
        _ => {}
    }
    // SAFETY: by this function's contract valid until the call returns, at least.
    Ok(Place::Taken(unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec()))
}

fn on_device(tables: &Tables, address: u64, bytes: usize) -> Result<Place, u32> {
    let memory = tables.memory(&range(address as usize, bytes)?).ok_or(INVALID_VALUE)?;
    Ok(Place::Device(Arc::clone(memory), address as usize))
}

/// Enqueues copies that have no order among them.
fn enqueue(device: &Device, tables: &Tables, stream: &Stream, copies: Vec<Copy>, what: &str) {
    let bytes = copies.iter().map(|copy| copy.bytes).sum::<usize>();
    device.calls.add(COPIES, copies.len() as u64);
    device.calls.add(COPIED_BYTES, bytes as u64);
    stream.enqueue(tables, |checker| {
        let op = checker.enqueue(device.ordinal, stream.number, what.to_owned(), true);
        for Copy { from, to, bytes } in &copies {
            for (place, how) in [(from, Use::Read), (to, Use::Write)] {
                match place {
                    Place::Device(_, address) => checker.access(&op, *address..*address + bytes, how, None),
                    Place::Host(address) => {
                        let range = *address..*address + bytes;
                        let is_guarded = how == Use::Read && how_much_is_locked(&range) == Locked::Whole;
                        let guarded = if is_guarded { Guarded::new(&range) } else { None };
                        checker.access(&op, range, how, guarded);
                    }
                    Place::Taken(_) => {}
                }
            }
        }
        Work::Copies(copies)
    });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) -> u32 {
    call("cuMemcpyHtoDAsync_v2", |device| {
        let mut tables = device.tables();
        let stream = tables.stream(device, stream)?;
        let to = on_device(&tables, to, bytes)?;
        // SAFETY: the caller vouches for `bytes` at `from`: until this returns, or until the copy is over if they are page-locked.
        let from = unsafe { source(&tables, from as usize, bytes, Reads::AsItLies)? };
        if matches!(from, Place::Taken(_)) {
            device.calls.add(HOST_WAITS, 1);
        }
        enqueue(device, &tables, &stream, vec![Copy { from, to, bytes }], "a copy to the device");
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) -> u32 {
    call("cuMemcpyDtoHAsync_v2", |device| {
        let mut tables = device.tables();
        let stream = tables.stream(device, stream)?;
        let from = on_device(&tables, from, bytes)?;
        let is_registered = match how_much_is_locked(&range(to as usize, bytes)?) {
            Locked::Partly => return Err(INVALID_VALUE),
            locked => locked == Locked::Whole,
        };
        let copy = Copy { from, to: Place::Host(to as usize), bytes };
        enqueue(device, &tables, &stream, vec![copy], "a copy to the host");
        if is_registered {
            return Ok(());
        }
        // The caller's memory is ours only until we return.
        let clock = checker().record(stream.number);
        drop(tables);
        device.calls.add(HOST_WAITS, 1);
        stream.drain();
        device.observed_health()?;
        checker().observe(&clock);
        checker().forget(&(to as usize..to as usize + bytes));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> u32 {
    call("cuMemcpyDtoDAsync_v2", |device| {
        let mut tables = device.tables();
        let stream = tables.stream(device, stream)?;
        let (from, to) = (on_device(&tables, from, bytes)?, on_device(&tables, to, bytes)?);
        enqueue(device, &tables, &stream, vec![Copy { from, to, bytes }], "a copy within the device");
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, value: c_uchar, bytes: usize, stream: usize) -> u32 {
    call("cuMemsetD8Async", |device| {
        let mut tables = device.tables();
        let stream = tables.stream(device, stream)?;
        let range = range(to as usize, bytes)?;
        let memory = Arc::clone(tables.memory(&range).ok_or(INVALID_VALUE)?);
        stream.enqueue(&tables, |checker| {
            let op = checker.enqueue(device.ordinal, stream.number, "a fill".into(), false);
            checker.access(&op, range, Use::Write, None);
            Work::Fill { memory, to: to as usize, value, bytes }
        });
        Ok(())
    })
}

/// How the copies of a batch read their sources; the driver's `CUmemcpyAttributes`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Attributes {
    order: u32,
    hints: [[i32; 2]; 2],
    flags: u32,
}

/// The arguments that both forms of the batch have in common.
struct Batch {
    to: *const u64,
    from: *const u64,
    sizes: *const usize,
    count: usize,
    attributes: *const Attributes,
    begins: *const usize,
    kinds: usize,
}

impl Batch {
    /// The copies, or the place of the first one that is wrong.
    ///
    /// # Safety
    /// The arrays are as long as the counts say; host sources are valid for as long as their attributes say.
    unsafe fn copies(&self, tables: &Tables) -> Result<Vec<Copy>, (u32, usize)> {
        let everything = (INVALID_VALUE, usize::MAX);
        let pointers = [self.to.is_null(), self.from.is_null(), self.sizes.is_null()];
        if self.count == 0 || pointers.contains(&true) || self.attributes.is_null() || self.begins.is_null() {
            return Err(everything);
        }
        // SAFETY: not null, so as long as the counts say, by this function's contract.
        let (to, from, sizes, attributes, begins) = unsafe {
            (
                std::slice::from_raw_parts(self.to, self.count),
                std::slice::from_raw_parts(self.from, self.count),
                std::slice::from_raw_parts(self.sizes, self.count),
                std::slice::from_raw_parts(self.attributes, self.kinds),
                std::slice::from_raw_parts(self.begins, self.kinds),
            )
        };
        let rises = begins.windows(2).all(|pair| pair[0] < pair[1]);
        if begins.first() != Some(&0) || !rises || begins.last().is_none_or(|last| *last >= self.count) {
            return Err(everything);
        }
        let mut copies = Vec::with_capacity(self.count);
        for index in 0..self.count {
            let kind = begins.partition_point(|begin| *begin <= index) - 1;
            let reads = match attributes[kind].order {
                1 | 3 => Reads::Later,
                2 => Reads::Now,
                _ => return Err((INVALID_VALUE, index)),
            };
            let bytes = sizes[index];
            // One flag is known: that compute should go on beside it.
            if bytes == 0 || attributes[kind].flags > 1 {
                return Err((INVALID_VALUE, index));
            }
            let to = on_device(tables, to[index], bytes).map_err(|code| (code, index))?;
            // SAFETY: by this function's contract.
            let from = unsafe { source(tables, from[index] as usize, bytes, reads) }.map_err(|code| (code, index))?;
            copies.push(Copy { from, to, bytes });
        }
        Ok(copies)
    }

    /// Enqueues it, all or nothing.
    ///
    /// # Safety
    /// As for `copies`.
    unsafe fn enqueue(&self, device: &Arc<Device>, stream: usize, since: u32) -> Result<(), (u32, usize)> {
        let everything = |code| (code, usize::MAX);
        if SETTINGS.version < since || device.refuses_batches.load(Ordering::Relaxed) {
            return Err(everything(NOT_SUPPORTED));
        }
        if stream <= LEGACY {
            return Err(everything(INVALID_VALUE));
        }
        let mut tables = device.tables();
        let stream = tables.stream(device, stream).map_err(everything)?;
        // SAFETY: by this function's contract.
        let copies = unsafe { self.copies(&tables)? };
        if copies.iter().any(|copy| matches!(copy.from, Place::Taken(_))) {
            device.calls.add(HOST_WAITS, 1);
        }
        enqueue(device, &tables, &stream, copies, "a batch of copies");
        Ok(())
    }
}

/// The form of 12.8.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyBatchAsync(
    to: *mut u64,
    from: *mut u64,
    sizes: *mut usize,
    count: usize,
    attributes: *mut Attributes,
    begins: *mut usize,
    kinds: usize,
    failed: *mut usize,
    stream: usize,
) -> u32 {
    call("cuMemcpyBatchAsync", |device| {
        let batch = Batch { to, from, sizes, count, attributes, begins, kinds };
        // SAFETY: the caller vouches for the arrays and sources.
        let result = unsafe { batch.enqueue(device, stream, 12_080) };
        result.map_err(|(code, index)| {
            if !failed.is_null() {
                // SAFETY: the caller vouches for the place.
                unsafe { failed.write(index) };
            }
            code
        })
    })
}

/// The form of 13.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyBatchAsync_v2(
    to: *mut u64,
    from: *mut u64,
    sizes: *mut usize,
    count: usize,
    attributes: *mut Attributes,
    begins: *mut usize,
    kinds: usize,
    stream: usize,
) -> u32 {
    call("cuMemcpyBatchAsync_v2", |device| {
        let batch = Batch { to, from, sizes, count, attributes, begins, kinds };
        // SAFETY: the caller vouches for the arrays and sources.
        unsafe { batch.enqueue(device, stream, 13_000) }.map_err(|(code, _)| code)
    })
}
