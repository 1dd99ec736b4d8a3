//! Devices: what exists on them, and which one a call is for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::calls::Counters;
use crate::faults::SETTINGS;
use crate::memory::Memory;
use crate::module::{Function, Module};
use crate::stream::{Event, Kind, Link, Stream};

pub(crate) const DEVICES: usize = 16;
pub(crate) const MEMORY_BYTES: usize = 1 << 30;

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const INVALID_VALUE: u32 = 1;
pub(crate) const OUT_OF_MEMORY: u32 = 2;
pub(crate) const NOT_INITIALIZED: u32 = 3;
pub(crate) const INVALID_DEVICE_FUNCTION: u32 = 98;
pub(crate) const INVALID_DEVICE: u32 = 101;
pub(crate) const INVALID_IMAGE: u32 = 200;
pub(crate) const INVALID_CONTEXT: u32 = 201;
pub(crate) const INVALID_PTX: u32 = 218;
pub(crate) const UNSUPPORTED_PTX_VERSION: u32 = 222;
pub(crate) const INVALID_HANDLE: u32 = 400;
pub(crate) const NOT_FOUND: u32 = 500;
pub(crate) const NOT_READY: u32 = 600;
pub(crate) const ILLEGAL_ADDRESS: u32 = 700;
pub(crate) const ALREADY_REGISTERED: u32 = 712;
pub(crate) const NOT_REGISTERED: u32 = 713;
pub(crate) const NOT_SUPPORTED: u32 = 801;

/// Handles of the default streams: null and 1 are the legacy one, 2 is the calling thread's.
pub(crate) const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

static ALL: LazyLock<[Arc<Device>; DEVICES]> = LazyLock::new(|| std::array::from_fn(|ordinal| Device::new(ordinal)));
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(0x1000);

thread_local! {
    /// The contexts that are current on this thread, the innermost last; a context is known by its device.
    pub(crate) static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    /// A number for this thread, for its default streams.
    static THREAD: usize = new_handle();
}

pub(crate) struct Device {
    pub(crate) ordinal: usize,
    pub(crate) retained: AtomicI64,
    /// The error that every call returns from now on.
    pub(crate) fault: AtomicU32,
    /// How many more of its kind go well; negative for all of them.
    pub(crate) copies_until_fault: AtomicI64,
    pub(crate) allocations_until_refusal: AtomicI64,
    pub(crate) registrations_until_refusal: AtomicI64,
    pub(crate) calls_until_loss: AtomicI64,
    pub(crate) refuses_registration: AtomicBool,
    pub(crate) refuses_batches: AtomicBool,
    pub(crate) numa_node: AtomicI64,
    pub(crate) link: Link,
    pub(crate) calls: Counters,
    pub(crate) tables: Mutex<Tables>,
}

#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) allocations: HashMap<usize, Arc<Memory>>,
    pub(crate) registrations: HashMap<usize, usize>,
    pub(crate) streams: HashMap<usize, Arc<Stream>>,
    pub(crate) events: HashMap<usize, Arc<Event>>,
    pub(crate) modules: HashMap<usize, Arc<Module>>,
    pub(crate) functions: HashMap<usize, Arc<Function>>,
    legacy: Option<Arc<Stream>>,
    per_thread: HashMap<usize, Arc<Stream>>,
    /// Memory that copies in a queue read or write.
    in_use: HashMap<u64, Vec<Range<usize>>>,
    pub(crate) violations: Vec<String>,
}

impl Device {
    fn new(ordinal: usize) -> Arc<Device> {
        let settings = &*SETTINGS;
        Arc::new(Device {
            ordinal,
            retained: AtomicI64::new(0),
            fault: AtomicU32::new(SUCCESS),
            copies_until_fault: AtomicI64::new(settings.copy - 1),
            allocations_until_refusal: AtomicI64::new(settings.device_allocation - 1),
            registrations_until_refusal: AtomicI64::new(settings.registration - 1),
            calls_until_loss: AtomicI64::new(settings.operation - 1),
            refuses_registration: AtomicBool::new(false),
            refuses_batches: AtomicBool::new(false),
            numa_node: AtomicI64::new(0),
            link: Link::new(settings.bytes_per_second),
            calls: Counters::default(),
            tables: Mutex::default(),
        })
    }

    pub(crate) fn by_ordinal(ordinal: usize) -> Option<&'static Arc<Device>> {
        ALL.get(ordinal)
    }

    /// The device whose context is current on this thread.
    pub(crate) fn current() -> Result<&'static Arc<Device>, u32> {
        CURRENT.with_borrow(|stack| stack.last().and_then(|ordinal| ALL.get(*ordinal))).ok_or(INVALID_CONTEXT)
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn health(&self) -> Result<(), u32> {
        match self.fault.load(Ordering::Acquire) {
            SUCCESS => Ok(()),
            fault => Err(fault),
        }
    }

    /// From now on nothing is carried out, and every call says `fault`.
    pub(crate) fn fail(&self, fault: u32) {
        let _ = self.fault.compare_exchange(SUCCESS, fault, Ordering::AcqRel, Ordering::Acquire);
    }

    pub(crate) fn violate(&self, what: impl Into<String>) {
        self.tables().violate(what);
    }

    /// The stream of that handle.
    pub(crate) fn stream(self: &Arc<Self>, handle: usize) -> Result<Arc<Stream>, u32> {
        self.tables().stream(self, handle)
    }

    /// The event of that handle, which may be another device's.
    pub(crate) fn event(&self, handle: usize) -> Result<Arc<Event>, u32> {
        if let Some(event) = self.tables().events.get(&handle) {
            return Ok(Arc::clone(event));
        }
        ALL.iter().find_map(|device| device.tables().events.get(&handle).cloned()).ok_or(INVALID_HANDLE)
    }
}

impl Tables {
    pub(crate) fn violate(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    pub(crate) fn stream(&mut self, device: &Arc<Device>, handle: usize) -> Result<Arc<Stream>, u32> {
        match handle {
            0 | LEGACY => Ok(Arc::clone(self.legacy.get_or_insert_with(|| Stream::new(device, Kind::Legacy)))),
            PER_THREAD => {
                let stream = self.per_thread.entry(THREAD.with(|thread| *thread));
                Ok(Arc::clone(stream.or_insert_with(|| Stream::new(device, Kind::Blocking))))
            }
            _ => self.streams.get(&handle).cloned().ok_or(INVALID_HANDLE),
        }
    }

    /// Every stream that was not destroyed, the default ones too.
    pub(crate) fn all_streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.streams.values().chain(self.per_thread.values()).chain(&self.legacy)
    }

    pub(crate) fn legacy(&self) -> Option<&Arc<Stream>> {
        self.legacy.as_ref()
    }

    /// The allocation that `range` lies in.
    pub(crate) fn memory(&self, range: &Range<usize>) -> Option<&Arc<Memory>> {
        self.allocations.values().find(|memory| memory.holds(range))
    }

    pub(crate) fn is_registered(&self, range: &Range<usize>) -> bool {
        self.registrations.iter().any(|(start, bytes)| *start <= range.start && range.end <= start + bytes)
    }

    /// Notes that work will touch these ranges; returns what to call it.
    pub(crate) fn begin_use(&mut self, ranges: Vec<Range<usize>>) -> u64 {
        let id = new_handle() as u64;
        self.in_use.insert(id, ranges);
        id
    }

    pub(crate) fn end_use(&mut self, id: u64) {
        self.in_use.remove(&id);
    }

    pub(crate) fn is_in_use(&self, range: &Range<usize>) -> bool {
        self.in_use.values().flatten().any(|used| used.start < range.end && range.start < used.end)
    }
}

/// Takes one from a count of things that go well; says whether that was the one that does not.
pub(crate) fn is_the_one(left: &AtomicI64) -> bool {
    left.fetch_sub(1, Ordering::AcqRel) == 0
}

pub(crate) fn new_handle() -> usize {
    NEXT_HANDLE.fetch_add(1, Ordering::Relaxed) as usize
}
