//! Devices: what exists on them, and which one a call is for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem::take;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use crate::calls::Counters;
use crate::checker::checker;
use crate::faults::SETTINGS;
use crate::host;
use crate::memory::Memory;
use crate::module::{Function, Module};
use crate::stream::{Event, Kind, Link, Mark, Stream};

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
pub(crate) const CONTEXT_IS_DESTROYED: u32 = 709;
pub(crate) const ALREADY_REGISTERED: u32 = 712;
pub(crate) const NOT_REGISTERED: u32 = 713;
pub(crate) const NOT_SUPPORTED: u32 = 801;
pub(crate) const CAPTURE_UNSUPPORTED: u32 = 900;

/// The modes of a thread towards captures of graphs: the one that there is, and the last one, in which nothing is forbidden.
pub(crate) const GLOBAL: u32 = 0;
pub(crate) const RELAXED: u32 = 2;

/// Handles of the default streams: null and 1 are the legacy one, 2 is the calling thread's.
pub(crate) const LEGACY: usize = 1;
const PER_THREAD: usize = 2;

static ALL: LazyLock<[Arc<Device>; DEVICES]> = LazyLock::new(|| std::array::from_fn(Device::new));
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(0x1000);

thread_local! {
    /// The contexts that are current on this thread, the innermost last; a context is known by its device.
    pub(crate) static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    pub(crate) static CAPTURE_MODE: Cell<u32> = const { Cell::new(GLOBAL) };
    static THREAD: Thread = Thread(new_handle());
}

/// A number for a thread: for its default streams, and for what it has observed.
struct Thread(usize);

impl Drop for Thread {
    fn drop(&mut self) {
        checker().end_thread(self.0);
    }
}

/// The number of this thread.
pub(crate) fn thread() -> usize {
    // A thread that is ending has no number any more, and enqueues nothing of its own.
    THREAD.try_with(|thread| thread.0).unwrap_or(0)
}

pub(crate) struct Device {
    pub(crate) ordinal: usize,
    /// References to the primary context.
    pub(crate) retained: AtomicI64,
    /// Held while the context is taken or released.
    pub(crate) taking: Mutex<()>,
    /// Whether some other thread is said to be capturing a graph, in global mode.
    pub(crate) is_captured: AtomicBool,
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
    /// Held shared while a stream uses memory.
    touching: RwLock<()>,
}

#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) allocations: HashMap<usize, Arc<Memory>>,
    pub(crate) streams: HashMap<usize, Arc<Stream>>,
    pub(crate) events: HashMap<usize, Arc<Event>>,
    pub(crate) modules: HashMap<usize, Arc<Module>>,
    pub(crate) functions: HashMap<usize, Arc<Function>>,
    legacy: Option<Arc<Stream>>,
    per_thread: HashMap<usize, Arc<Stream>>,
    /// Work in them is still carried out.
    pub(crate) destroyed: Vec<Arc<Stream>>,
}

impl Device {
    fn new(ordinal: usize) -> Arc<Device> {
        let settings = &*SETTINGS;
        Arc::new(Device {
            ordinal,
            retained: AtomicI64::new(0),
            taking: Mutex::new(()),
            is_captured: AtomicBool::new(false),
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
            touching: RwLock::default(),
        })
    }

    pub(crate) fn all() -> impl Iterator<Item = &'static Arc<Device>> {
        ALL.iter()
    }

    pub(crate) fn by_ordinal(ordinal: usize) -> Option<&'static Arc<Device>> {
        ALL[..SETTINGS.devices].get(ordinal)
    }

    /// The device whose context is current on this thread.
    /// The one of the context that is current on this thread, if somebody still holds that.
    pub(crate) fn current() -> Result<&'static Arc<Device>, u32> {
        let device = Device::innermost()?;
        if device.retained.load(Ordering::Acquire) <= 0 {
            device.violate("a context was used after its last release");
            return Err(CONTEXT_IS_DESTROYED);
        }
        Ok(device)
    }

    /// As [`Device::current`], be the context what it may.
    pub(crate) fn innermost() -> Result<&'static Arc<Device>, u32> {
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

    /// Has a stream use memory, unless the device has failed.
    pub(crate) fn touch(&self, work: impl FnOnce()) {
        let _touching = self.touching.read().unwrap_or_else(PoisonError::into_inner);
        if self.health().is_ok() {
            work();
        }
    }

    /// Well; or failed, and then no stream touches memory any more when this returns: the host may take that as a fact.
    pub(crate) fn observed_health(&self) -> Result<(), u32> {
        self.health().inspect_err(|_| {
            drop(self.touching.write().unwrap_or_else(PoisonError::into_inner));
            let streams: Vec<u32> = self.tables().all_streams().map(|stream| stream.number).collect();
            checker().observe_streams(streams.into_iter());
        })
    }

    /// From now on nothing is carried out, and every call says `fault`.
    pub(crate) fn fail(&self, fault: u32) {
        let _ = self.fault.compare_exchange(SUCCESS, fault, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Returns when all is done that streams had been given to do, or the device has failed: what freeing memory may take. It orders nothing.
    pub(crate) fn wait_for_present_work(&self) {
        let marks: Vec<Arc<Mark>> = self.tables().all_streams().filter_map(|stream| stream.mark_end()).collect();
        marks.iter().for_each(|mark| mark.wait(self));
    }

    /// The last reference to the context is gone: what is in flight ends. What was left in the context is counted until it is taken again.
    pub(crate) fn end_context(&self) {
        self.wait_for_present_work();
        let streams: Vec<u32> = self.tables().all_streams().map(|stream| stream.number).collect();
        checker().observe_streams(streams.into_iter());
    }

    /// The first reference to a new context: handles and memory of the last one are of no use in it.
    pub(crate) fn begin_context(&self) {
        let old = take(&mut *self.tables());
        old.all_streams().for_each(|stream| stream.close());
        let mut checker = checker();
        old.allocations.values().for_each(|memory| checker.forget(&memory.range()));
        host::unlock_all(self.ordinal);
    }

    pub(crate) fn violate(&self, what: impl Into<String>) {
        checker().report(self.ordinal, what);
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
    /// The stream of that handle; a default one is made when it is first asked for.
    pub(crate) fn stream(&mut self, device: &Arc<Device>, handle: usize) -> Result<Arc<Stream>, u32> {
        match handle {
            0 | LEGACY => Ok(Arc::clone(self.legacy.get_or_insert_with(|| Stream::new(device, Kind::Legacy)))),
            PER_THREAD => {
                let stream = self.per_thread.entry(thread());
                Ok(Arc::clone(stream.or_insert_with(|| Stream::new(device, Kind::Blocking))))
            }
            _ => self.streams.get(&handle).cloned().ok_or(INVALID_HANDLE),
        }
    }

    /// Every stream that there was, the default ones too.
    pub(crate) fn all_streams(&self) -> impl Iterator<Item = &Arc<Stream>> {
        self.streams.values().chain(self.per_thread.values()).chain(&self.legacy).chain(&self.destroyed)
    }

    pub(crate) fn legacy(&self) -> Option<&Arc<Stream>> {
        self.legacy.as_ref()
    }

    /// The allocation that `range` lies in.
    pub(crate) fn memory(&self, range: &Range<usize>) -> Option<&Arc<Memory>> {
        self.allocations.values().find(|memory| memory.holds(range))
    }
}

/// Takes one from a count of things that go well; says whether that was the one that does not.
pub(crate) fn is_the_one(left: &AtomicI64) -> bool {
    left.fetch_sub(1, Ordering::AcqRel) == 0
}

pub(crate) fn new_handle() -> usize {
    NEXT_HANDLE.fetch_add(1, Ordering::Relaxed) as usize
}
