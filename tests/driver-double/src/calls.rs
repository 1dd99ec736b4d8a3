//! What a device was asked for: calls by name, and what tests make of the numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Counted beside the calls: a call in which the host waited for a device, or may have on a real one.
pub(crate) const HOST_WAITS: &str = "(host waits)";
/// Counted beside the calls: copies, those inside a batch one by one.
pub(crate) const COPIES: &str = "(copies)";
/// Counted beside the calls: bytes of those copies.
pub(crate) const COPIED_BYTES: &str = "(copied bytes)";

#[derive(Default)]
pub(crate) struct Counters(Mutex<BTreeMap<&'static str, u64>>);

impl Counters {
    pub(crate) fn add(&self, name: &'static str, count: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += count;
    }

    /// A line for each name: the count, then the name.
    pub(crate) fn text(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(name, count)| format!("{count} {name}\n")).collect()
    }

    pub(crate) fn reset(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Calls that a device has answered, by the name of the entry point.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Calls(BTreeMap<String, u64>);

impl Calls {
    pub(crate) fn parse(text: &str) -> Calls {
        Calls(text.lines().filter_map(|line| line.split_once(' ')).fold(BTreeMap::new(), |mut calls, (count, name)| {
            calls.insert(name.to_owned(), count.parse().unwrap_or(0));
            calls
        }))
    }

    /// How often the entry point of this name was called.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All calls, whatever they did.
    pub fn total(&self) -> u64 {
        self.0.iter().filter(|(name, _)| !name.starts_with('(')).map(|(_, count)| count).sum()
    }

    /// Copies, those inside a batch one by one.
    pub fn copies(&self) -> u64 {
        self.of(COPIES)
    }

    /// Bytes of all copies.
    pub fn copied_bytes(&self) -> u64 {
        self.of(COPIED_BYTES)
    }

    /// Calls that enqueue one copy.
    pub fn plain_copies(&self) -> u64 {
        self.with("cuMemcpy") - self.batches()
    }

    /// Calls that enqueue a batch of copies.
    pub fn batches(&self) -> u64 {
        self.with("cuMemcpyBatchAsync")
    }

    /// Kernels.
    pub fn launches(&self) -> u64 {
        self.with("cuLaunch")
    }

    /// Events recorded.
    pub fn records(&self) -> u64 {
        self.with("cuEventRecord")
    }

    /// Waits of streams for events.
    pub fn stream_waits(&self) -> u64 {
        self.with("cuStreamWaitEvent")
    }

    /// Questions whether an event or a stream is done.
    pub fn queries(&self) -> u64 {
        self.of("cuEventQuery") + self.of("cuStreamQuery")
    }

    /// Changes of the calling thread's context, of its capture mode too.
    pub fn context_changes(&self) -> u64 {
        ["cuCtxPush", "cuCtxPop", "cuCtxSetCurrent", "cuThreadExchange"].iter().map(|prefix| self.with(prefix)).sum()
    }

    /// Memory of the device taken or given back, host memory registered or not any more; streams, events and modules made.
    pub fn allocations(&self) -> u64 {
        let prefixes = [
            "cuMemAlloc",
            "cuMemFree",
            "cuMemHostRegister",
            "cuMemHostUnregister",
            "cuMemHostAlloc",
            "cuStreamCreate",
            "cuStreamDestroy",
            "cuEventCreate",
            "cuEventDestroy",
            "cuModuleLoad",
            "cuModuleUnload",
        ];
        prefixes.iter().map(|prefix| self.with(prefix)).sum()
    }

    /// Calls in which the host waited for the device, or may have on a real one: the synchronising calls, copies from or to
    /// pageable memory, the freeing of memory.
    pub fn host_waits(&self) -> u64 {
        self.of(HOST_WAITS)
    }

    fn with(&self, prefix: &str) -> u64 {
        self.0.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, count)| count).sum()
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}
