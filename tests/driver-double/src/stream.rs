//! Streams: queues with a thread each. And events, which are places in them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::checker::{Checker, Clock, checker};
use crate::device::{Device, ILLEGAL_ADDRESS, Tables, is_the_one};
use crate::memory::Memory;
use crate::module::Launching;

/// What an event was last recorded as. A wait is for the record that there was when it was enqueued, whatever comes later.
pub(crate) struct Event {
    pub(crate) is_timed: bool,
    mark: Mutex<Option<Arc<Mark>>>,
}

impl Event {
    pub(crate) fn new(is_timed: bool) -> Event {
        Event { is_timed, mark: Mutex::new(None) }
    }

    /// A new record, of what `clock` stands for.
    pub(crate) fn record(&self, clock: Clock) -> Arc<Mark> {
        let mark = Arc::new(Mark { clock, ..Mark::default() });
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&mark));
        mark
    }

    pub(crate) fn last(&self) -> Option<Arc<Mark>> {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A place in a stream's queue, which its thread comes past once.
#[derive(Default)]
pub(crate) struct Mark {
    /// What is done when it is passed.
    pub(crate) clock: Clock,
    passed: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Mark {
    pub(crate) fn passed_at(&self) -> Option<Instant> {
        *self.lock()
    }

    pub(crate) fn is_passed(&self) -> bool {
        self.lock().is_some()
    }

    fn pass(&self) {
        *self.lock() = Some(Instant::now());
        self.changed.notify_all();
    }

    /// Returns when the mark was passed, or the device has failed.
    pub(crate) fn wait(&self, device: &Device) {
        let mut passed = self.lock();
        while passed.is_none() && device.health().is_ok() {
            let pause = Duration::from_millis(20);
            passed = self.changed.wait_timeout(passed, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What copies share: so many bytes a second.
pub(crate) struct Link {
    pub(crate) bytes_per_second: AtomicU64,
    free_at: Mutex<Instant>,
}

impl Link {
    pub(crate) fn new(bytes_per_second: u64) -> Link {
        Link { bytes_per_second: AtomicU64::new(bytes_per_second), free_at: Mutex::new(Instant::now()) }
    }

    /// Takes the time that `bytes` take behind those that came before.
    fn carry(&self, bytes: usize) {
        let rate = self.bytes_per_second.load(Ordering::Relaxed).max(1);
        let lasts = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate);
        let now = Instant::now();
        let until = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            *free_at = (*free_at).max(now) + lasts;
            *free_at
        };
        // A sleep takes some 60 us more than was asked for: what is short is owed, and slept when it has become long.
        let left = until - now;
        if left > Duration::from_micros(100) {
            std::thread::sleep(left);
        }
    }
}

/// What a stream is told to do.
pub(crate) enum Work {
    /// Copies without an order among them.
    Copies(Vec<Copy>),
    Fill {
        memory: Arc<Memory>,
        to: usize,
        value: u8,
        bytes: usize,
    },
    Record(Arc<Mark>),
    Wait(Arc<Mark>),
    /// A kernel that runs for a while and reads device memory at its end.
    Consume {
        memory: Arc<Memory>,
        from: usize,
        expected: Vec<u8>,
        after: Duration,
    },
    Launch(Launching),
}

pub(crate) struct Copy {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) bytes: usize,
}

/// One end of a copy.
pub(crate) enum Place {
    /// Host memory that the caller keeps until the copy is done.
    Host(usize),
    /// Pageable memory, taken when the copy was enqueued.
    Taken(Vec<u8>),
    /// Device memory, by the address that the host knows.
    Device(Arc<Memory>, usize),
}

impl Place {
    fn address(&self, bytes: usize) -> *mut u8 {
        match self {
            Place::Host(address) => *address as *mut u8,
            Place::Taken(taken) => taken.as_ptr().cast_mut(),
            Place::Device(memory, address) => memory.inside(&(*address..address + bytes)),
        }
    }
}

/// What the legacy default stream is to a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is that one.
    Legacy,
    /// Each waits for the other.
    Blocking,
    /// Nothing.
    NonBlocking,
}

/// A queue with a thread that lives until the stream is destroyed and the queue is empty.
pub(crate) struct Stream {
    /// Its number among all there ever were.
    pub(crate) number: u32,
    kind: Kind,
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
    pub(crate) fn new(device: &Arc<Device>, kind: Kind) -> Arc<Stream> {
        static NUMBERS: AtomicU32 = AtomicU32::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream { number, kind, queue: Mutex::default(), changed: Condvar::new() });
        let (worker, device) = (Arc::clone(&stream), Arc::clone(device));
        std::thread::spawn(move || {
            while let Some(work) = worker.next() {
                carry_out(&device, work);
            }
        });
        stream
    }

    /// Puts work at the end of the queue, behind what the default stream's rules put before it. `tables` are the device's, held
    /// so that nothing is enqueued elsewhere in between; `work` tells the checker what it does.
    pub(crate) fn enqueue(&self, tables: &Tables, work: impl FnOnce(&mut Checker) -> Work) {
        let mut checker = checker();
        match self.kind {
            Kind::NonBlocking => {}
            Kind::Blocking => tables.legacy().into_iter().for_each(|legacy| self.follow(&mut checker, legacy)),
            Kind::Legacy => {
                let blocking = tables.all_streams().filter(|stream| stream.kind == Kind::Blocking);
                blocking.for_each(|stream| self.follow(&mut checker, stream));
            }
        }
        self.push(work(&mut checker));
    }

    /// Has this stream wait for what is in the other one now.
    fn follow(&self, checker: &mut Checker, other: &Stream) {
        checker.follow(self.number, other.number);
        if let Some(mark) = other.mark_end() {
            self.push(Work::Wait(mark));
        }
    }

    /// A mark behind what is in the queue; `None` when that is nothing, and then nothing may come to a stream that was destroyed.
    pub(crate) fn mark_end(&self) -> Option<Arc<Mark>> {
        let mut queue = self.lock();
        if queue.work.is_empty() && !queue.is_busy {
            return None;
        }
        let mark = Arc::new(Mark::default());
        queue.work.push_back(Work::Record(Arc::clone(&mark)));
        self.changed.notify_all();
        Some(mark)
    }

    fn push(&self, work: Work) {
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
    if device.health().is_err() {
        // What a launch has to give back it gives back as it is dropped.
        return;
    }
    match work {
        Work::Copies(copies) => copy(device, &copies),
        Work::Fill { memory, to, value, bytes } => device.touch(|| {
            // SAFETY: a range of live device memory, which only streams write to.
            unsafe { std::ptr::write_bytes(memory.inside(&(to..to + bytes)), value, bytes) };
        }),
        Work::Record(mark) => mark.pass(),
        Work::Wait(mark) => mark.wait(device),
        Work::Consume { memory, from, expected, after } => {
            std::thread::sleep(after);
            let range = from..from + expected.len();
            // SAFETY: a range of live device memory; should a stream write to it meanwhile, other bytes are what is to be found.
            let found = unsafe { std::slice::from_raw_parts(memory.inside(&range), expected.len()) };
            if let Some(at) = found.iter().zip(&expected).position(|(found, expected)| found != expected) {
                device.violate(format!("a consumer found {:#04x} for {:#04x} at {at}", found[at], expected[at]));
            }
        }
        Work::Launch(launching) => launching.run(device),
    }
}

/// Spoils the destinations, takes its time, and only then reads: whoever touches either end too early is found out.
fn copy(device: &Device, copies: &[Copy]) {
    device.touch(|| {
        for Copy { to, bytes, .. } in copies {
            // SAFETY: device memory is alive and only streams write to it; host memory the caller keeps until this is over.
            unsafe { std::ptr::write_bytes(to.address(*bytes), 0xEE, *bytes) };
        }
    });
    device.link.carry(copies.iter().map(|copy| copy.bytes).sum());
    device.touch(|| {
        for Copy { from, to, bytes } in copies {
            if is_the_one(&device.copies_until_fault) {
                device.fail(ILLEGAL_ADDRESS);
                return;
            }
            // SAFETY: as above, and the source likewise. Ends may overlap where the caller has made a mistake: `copy` allows that.
            unsafe { std::ptr::copy(from.address(*bytes), to.address(*bytes), *bytes) };
        }
    });
}
