//! Devices, their memory, their streams and events.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) const DEVICES: usize = 16;
pub(crate) const MEMORY_BYTES: usize = 1 << 30;

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const INVALID_VALUE: u32 = 1;
pub(crate) const OUT_OF_MEMORY: u32 = 2;
pub(crate) const INVALID_DEVICE: u32 = 101;
pub(crate) const INVALID_CONTEXT: u32 = 201;
pub(crate) const INVALID_HANDLE: u32 = 400;
pub(crate) const NOT_READY: u32 = 600;
pub(crate) const ILLEGAL_ADDRESS: u32 = 700;
pub(crate) const ALREADY_REGISTERED: u32 = 712;
pub(crate) const NOT_REGISTERED: u32 = 713;
pub(crate) const NOT_SUPPORTED: u32 = 801;

static ALL: LazyLock<[Arc<Device>; DEVICES]> = LazyLock::new(|| std::array::from_fn(|_| Arc::new(Device::new())));
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(0x1000);

thread_local! {
    /// The contexts that are current on this thread, the innermost last; a context is known by its device.
    pub(crate) static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

pub(crate) struct Device {
    pub(crate) retained: AtomicI64,
    /// The error that every call returns from now on.
    pub(crate) fault: AtomicU32,
    /// Copies to carry out until one fails; negative for never.
    pub(crate) copies_until_fault: AtomicI64,
    pub(crate) bytes_per_second: AtomicU64,
    pub(crate) refuses_registration: AtomicBool,
    pub(crate) tables: Mutex<Tables>,
}

#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) allocations: HashMap<usize, usize>,
    pub(crate) registrations: HashMap<usize, usize>,
    pub(crate) streams: HashMap<usize, Arc<Stream>>,
    pub(crate) events: HashMap<usize, Arc<Event>>,
    pub(crate) default_stream: Option<Arc<Stream>>,
    /// Memory that copies in a queue read or write.
    in_use: HashMap<u64, [Range<usize>; 2]>,
    pub(crate) violations: Vec<String>,
}

impl Device {
    fn new() -> Device {
        Device {
            retained: AtomicI64::new(0),
            fault: AtomicU32::new(SUCCESS),
            copies_until_fault: AtomicI64::new(-1),
            bytes_per_second: AtomicU64::new(1_000_000_000),
            refuses_registration: AtomicBool::new(false),
            tables: Mutex::default(),
        }
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

    pub(crate) fn violate(&self, what: impl Into<String>) {
        self.tables().violations.push(what.into());
    }

    /// The stream of that handle; the default ones are one and the same.
    pub(crate) fn stream(self: &Arc<Self>, handle: usize) -> Result<Arc<Stream>, u32> {
        let mut tables = self.tables();
        if handle <= 2 {
            return Ok(Arc::clone(tables.default_stream.get_or_insert_with(|| Stream::new(self))));
        }
        tables.streams.get(&handle).cloned().ok_or(INVALID_HANDLE)
    }

    pub(crate) fn event(&self, handle: usize) -> Result<Arc<Event>, u32> {
        self.tables().events.get(&handle).cloned().ok_or(INVALID_HANDLE)
    }

    /// Notes that a copy will touch these ranges; returns what to call it.
    pub(crate) fn begin_use(&self, from: Range<usize>, to: Range<usize>) -> u64 {
        let id = new_handle() as u64;
        self.tables().in_use.insert(id, [from, to]);
        id
    }

    pub(crate) fn end_use(&self, id: u64) {
        self.tables().in_use.remove(&id);
    }
}

impl Tables {
    pub(crate) fn is_in_use(&self, range: &Range<usize>) -> bool {
        self.in_use.values().flatten().any(|used| used.start < range.end && range.start < used.end)
    }

    pub(crate) fn is_registered(&self, range: &Range<usize>) -> bool {
        self.registrations.iter().any(|(start, bytes)| *start <= range.start && range.end <= start + bytes)
    }

    pub(crate) fn is_allocated(&self, range: &Range<usize>) -> bool {
        self.allocations.iter().any(|(start, bytes)| *start <= range.start && range.end <= start + bytes)
    }
}

pub(crate) fn new_handle() -> usize {
    NEXT_HANDLE.fetch_add(1, Ordering::Relaxed) as usize
}

/// What an event was last recorded as. A wait is for the record that there was when it was enqueued, whatever comes later.
#[derive(Default)]
pub(crate) struct Event(Mutex<Option<Arc<Mark>>>);

impl Event {
    pub(crate) fn record(&self) -> Arc<Mark> {
        let mark = Arc::new(Mark::default());
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&mark));
        mark
    }

    pub(crate) fn last(&self) -> Option<Arc<Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A place in a stream's queue, which its thread comes past once.
#[derive(Default)]
pub(crate) struct Mark {
    passed: Mutex<bool>,
    changed: Condvar,
}

impl Mark {
    pub(crate) fn is_passed(&self) -> bool {
        *self.lock()
    }

    fn pass(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    fn wait(&self, device: &Device) {
        let mut passed = self.lock();
        while !*passed && device.health().is_ok() {
            let pause = Duration::from_millis(20);
            passed = self.changed.wait_timeout(passed, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a stream is told to do.
pub(crate) enum Work {
    Copy {
        from: Source,
        to: usize,
        bytes: usize,
        id: u64,
    },
    Record(Arc<Mark>),
    Wait(Arc<Mark>),
    /// A kernel that runs for a while and reads device memory at its end.
    Consume {
        pointer: usize,
        expected: Vec<u8>,
        after: Duration,
    },
}

/// Where a copy reads.
pub(crate) enum Source {
    /// Memory that the caller keeps until the copy is done.
    Address(usize),
    /// Pageable memory, taken when the copy was enqueued.
    Taken(Vec<u8>),
}

/// A queue with a thread that lives until the stream is destroyed and the queue is empty.
pub(crate) struct Stream {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    is_busy: bool,
    is_closed: bool,
}

impl Stream {
    pub(crate) fn new(device: &Arc<Device>) -> Arc<Stream> {
        let stream = Arc::new(Stream { queue: Mutex::default(), changed: Condvar::new() });
        let (worker, device) = (Arc::clone(&stream), Arc::clone(device));
        std::thread::spawn(move || {
            while let Some(work) = worker.next() {
                carry_out(&device, work);
            }
        });
        stream
    }

    pub(crate) fn enqueue(&self, work: Work) {
        self.lock().work.push_back(work);
        self.changed.notify_all();
    }

    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_idle(&self) -> bool {
        let queue = self.lock();
        queue.work.is_empty() && !queue.is_busy
    }

    pub(crate) fn drain(&self) {
        let mut queue = self.lock();
        while !queue.work.is_empty() || queue.is_busy {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn next(&self) -> Option<Work> {
        let mut queue = self.lock();
        queue.is_busy = false;
        self.changed.notify_all();
        loop {
            if let Some(work) = queue.work.pop_front() {
                queue.is_busy = true;
                return Some(work);
            }
            if queue.is_closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One piece of work; a device with a fault does nothing any more.
fn carry_out(device: &Device, work: Work) {
    let is_well = device.health().is_ok();
    match work {
        Work::Copy { from, to, bytes, id } => {
            if is_well {
                copy(device, &from, to, bytes);
            }
            device.end_use(id);
        }
        Work::Record(mark) if is_well => mark.pass(),
        Work::Wait(mark) if is_well => mark.wait(device),
        Work::Consume { pointer, expected, after } if is_well => {
            std::thread::sleep(after);
            // SAFETY: allocations are never given back to the system (see `cuMemFree_v2`), and the range was checked.
            let found = unsafe { std::slice::from_raw_parts(pointer as *const u8, expected.len()) };
            if let Some(at) = found.iter().zip(&expected).position(|(found, expected)| found != expected) {
                device.violate(format!("a consumer found {:#04x} for {:#04x} at {at}", found[at], expected[at]));
            }
        }
        _ => {}
    }
}

fn copy(device: &Device, from: &Source, to: usize, bytes: usize) {
    let rate = device.bytes_per_second.load(Ordering::Relaxed).max(1);
    // SAFETY: one end was checked to lie in an allocation, which is never given back to the system; the other is registered or
    // the caller waits for this copy. Nothing holds a reference to either: they are what a device would write to.
    unsafe { std::ptr::write_bytes(to as *mut u8, 0xEE, bytes) };
    std::thread::sleep(Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate));
    if device.copies_until_fault.fetch_sub(1, Ordering::AcqRel) == 0 {
        device.fault.store(ILLEGAL_ADDRESS, Ordering::Release);
        return;
    }
    let source = match from {
        Source::Address(address) => *address as *const u8,
        Source::Taken(taken) => taken.as_ptr(),
    };
    // SAFETY: as above; source and destination are `bytes` long and of different memories.
    unsafe { std::ptr::copy_nonoverlapping(source, to as *mut u8, bytes) };
}
