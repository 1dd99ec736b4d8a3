//! Host memory that devices know: page-locked by one device's context, and known to all of them, as where addresses are unified.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::device::{ALREADY_REGISTERED, INVALID_VALUE, NOT_REGISTERED};

/// By first address: its end, and the device whose context registered it.
static LOCKED: Mutex<BTreeMap<usize, (usize, usize)>> = Mutex::new(BTreeMap::new());

fn locked() -> MutexGuard<'static, BTreeMap<usize, (usize, usize)>> {
    LOCKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of a range is page-locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locked {
    Nothing,
    /// Of one registration.
    Whole,
    /// Some of it, or of several registrations: no copy takes such a range.
    Partly,
}

/// How much of `range` is page-locked.
pub(crate) fn how_much_is_locked(range: &Range<usize>) -> Locked {
    let locked = locked();
    let mut touching = locked.iter().filter(|(start, (end, _))| **start < range.end && range.start < *end);
    match touching.next() {
        None => Locked::Nothing,
        Some((start, (end, _))) if *start <= range.start && range.end <= *end => Locked::Whole,
        Some(_) => Locked::Partly,
    }
}

/// Notes that `device` has page-locked a range; refused where it touches one that any device has.
pub(crate) fn lock(device: usize, range: &Range<usize>) -> Result<(), u32> {
    if range.start == 0 || range.is_empty() {
        return Err(INVALID_VALUE);
    }
    if how_much_is_locked(range) != Locked::Nothing {
        return Err(ALREADY_REGISTERED);
    }
    locked().insert(range.start, (range.end, device));
    Ok(())
}

/// What was page-locked from `start` on, and is not any more.
pub(crate) fn unlock(start: usize) -> Result<Range<usize>, u32> {
    locked().remove(&start).map(|(end, _)| start..end).ok_or(NOT_REGISTERED)
}

/// Ranges that `device` has page-locked.
pub(crate) fn count(device: usize) -> usize {
    locked().values().filter(|(_, owner)| *owner == device).count()
}

/// The device's context is gone, and what it had page-locked is not any more.
pub(crate) fn unlock_all(device: usize) {
    locked().retain(|_, (_, owner)| *owner != device);
}
