//! Device memory of one batch, on its way from the engine to the consumer and back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use cudarc::driver::CudaStream;

use super::pinned::{PinnedSlab, Staging};
use super::{LANDING_PATIENCE, Seat, TEARDOWN_PATIENCE};
use crate::device::finish::cuda::CudaSteps;
use crate::device::slot::stranger;
use crate::device::{RawStream, Turn};
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::{self, Context, Copies, DeviceMemory, Entered, Event, StreamView, Together};
use crate::sys::plain::Plain;

/// Streams that may share a batch.
const STREAMS_MAX: usize = 8;

/// Device memory of one batch, and all that its way needs.
pub(in crate::device) struct CudaSlot {
    /// `None` once it was given up.
    memory: Option<DeviceMemory>,
    staging: Vec<Staging>,
    /// What is to be copied into it, as far as it was not issued.
    listed: Copies,
    /// Recorded in the engine's stream behind the batch's last copy. The engine asks it about the pages, too.
    pub(super) landed: Arc<Event>,
    /// The batch's number at its engine; `None` when it was let go of before all its copies had been issued.
    pub(super) number: Option<u64>,
    /// Recorded in the consumer's streams when it let go; the first `released` of them count.
    releases: Vec<Event>,
    released: usize,
    /// Streams that were told to wait for the batch.
    consumers: Mutex<Vec<Consumer>>,
    /// Whether copies were issued since `landed` was recorded.
    unsealed: bool,
    copies: RawStream,
    /// Set when the engine had to leave copies behind that the device did not finish.
    abandoned: Arc<AtomicBool>,
    /// Until when freeing may wait; a second from then where nobody said.
    pub(super) free_by: Option<Instant>,
    /// The NUMA node that staging memory is taken from.
    node: Option<u32>,
    context: Arc<Context>,
}

/// A stream that was told to wait for a batch.
struct Consumer {
    stream: RawStream,
    /// Whose it is, where the name stands for another stream on each thread.
    thread: Option<ThreadId>,
    /// Whether all that is enqueued in it from now on comes behind the batch: its stream has been told, and nothing was copied since. Of what
    /// the contract of `RawStream` says: a handle stays the name of one stream for as long as the slot knows it.
    waits: bool,
}

impl Consumer {
    /// The stream that the name stands for on this thread.
    fn here(stream: RawStream) -> Consumer {
        let is_threads_own = stream == RawStream::PER_THREAD_DEFAULT;
        Consumer { stream, thread: is_threads_own.then(|| std::thread::current().id()), waits: false }
    }

    fn is(&self, other: &Consumer) -> bool {
        self.stream == other.stream && self.thread == other.thread
    }

    /// Where an event comes behind what the consumer has enqueued. Another thread's own stream has no name on this one; the legacy
    /// default stream comes behind all of them.
    fn stream_behind(&self) -> RawStream {
        match self.thread {
            Some(thread) if thread != std::thread::current().id() => RawStream::LEGACY_DEFAULT,
            _ => self.stream.clone(),
        }
    }
}

/// What the slots of an engine have in common.
pub(super) struct Common<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) copies: &'a RawStream,
    pub(super) abandoned: &'a Arc<AtomicBool>,
    pub(super) node: Option<u32>,
}

impl CudaSlot {
    pub(super) fn new(common: &Common<'_>, bytes: usize, staging: Staging) -> Result<CudaSlot> {
        let context = common.context;
        Ok(CudaSlot {
            memory: Some(DeviceMemory::new(context, bytes)?),
            staging: vec![staging],
            listed: Copies::new(),
            landed: Arc::new(Event::new(context)?),
            number: Some(0),
            releases: vec![Event::new(context)?],
            released: 0,
            // One more may be named at the end.
            consumers: Mutex::new(Vec::with_capacity(STREAMS_MAX + 1)),
            unsealed: false,
            copies: common.copies.clone(),
            abandoned: Arc::clone(common.abandoned),
            free_by: None,
            node: common.node,
            context: Arc::clone(context),
        })
    }

    pub(in crate::device) fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, DeviceMemory::bytes)
    }

    pub(in crate::device) fn pointer(&self) -> u64 {
        self.memory.as_ref().map_or(0, DeviceMemory::pointer)
    }

    /// Refuses a stream of another context.
    pub(in crate::device) fn admit(&self, stream: &RawStream) -> Result<()> {
        self.context.admit(stream)
    }

    /// Elements at `at`, for kernels in `stream`, which waits for the batch.
    pub(in crate::device) fn view_in<T: Plain>(
        &self,
        at: usize,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<StreamView<'_, T>> {
        let view = self.memory.as_ref().ok_or_else(stranger)?.view(at, len, stream)?;
        self.wait_on(stream.into())?;
        Ok(view)
    }

    pub(in crate::device) fn wait_on(&self, stream: RawStream) -> Result<()> {
        self.admit(&stream)?;
        // Before the lock: in a child nobody may be left to open it.
        self.context.check_process()?;
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        let consumer = Consumer::here(stream);
        let number = match consumers.iter().position(|known| known.is(&consumer)) {
            // A stream does things in order: one wait stands before all that follows.
            Some(number) if consumers[number].waits => return Ok(()),
            Some(number) => number,
            None if consumers.len() == STREAMS_MAX => {
                return Err(Error::new(Kind::Config, format!("a batch used in more than {STREAMS_MAX} streams"))
                    .advice("have one stream wait for the batch, and the others for that stream"));
            }
            None => {
                consumers.push(consumer);
                consumers.len() - 1
            }
        };
        let entered = self.context.enter_to_order()?;
        cuda::stream_waits(&entered, &consumers[number].stream, &self.landed)?;
        consumers[number].waits = true;
        Ok(())
    }

    pub(in crate::device) fn synchronize(&self) -> Result<()> {
        let entered = self.context.enter()?;
        if cuda::wait_until(Instant::now() + LANDING_PATIENCE, || self.landed.passed(&entered))? {
            return Ok(());
        }
        Err(Error::new(Kind::Stalled, format!("a batch did not land within {LANDING_PATIENCE:?}"))
            .advice("see what the stream is doing that used the slot before"))
    }

    pub(in crate::device) fn read_back(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        self.synchronize()?;
        match &self.memory {
            Some(memory) => memory.read_back(at, len, Instant::now() + LANDING_PATIENCE),
            None => Err(Error::new(Kind::Device, "the slot's memory was given up")),
        }
    }

    /// Records how far the consumer's streams must come before the slot is anyone else's.
    pub(in crate::device) fn let_go(&mut self, stream: Option<RawStream>) -> Result<()> {
        // Nobody keeps their pages any more.
        self.listed.end();
        let consumers = self.consumers.get_mut().unwrap_or_else(PoisonError::into_inner);
        match stream.map(Consumer::here) {
            Some(named) if !consumers.iter().any(|known| known.is(&named)) => consumers.push(named),
            None if consumers.is_empty() => consumers.push(Consumer::here(RawStream::LEGACY_DEFAULT)),
            _ => {}
        }
        while self.releases.len() < consumers.len() {
            self.releases.push(Event::new(&self.context)?);
        }
        let entered = self.context.enter_to_order()?;
        if self.unsealed {
            self.landed.record(&entered, &self.copies)?;
            (self.unsealed, self.number) = (false, None);
        }
        for (event, consumer) in self.releases.iter().zip(&*consumers) {
            event.record(&entered, &consumer.stream_behind())?;
        }
        self.released = consumers.len();
        consumers.clear();
        Ok(())
    }

    /// Whether the device has stopped for good: then it uses nothing any more, and what is freed is safe.
    pub(in crate::device) fn has_failed(&self) -> bool {
        self.context.enter().is_ok_and(|entered| self.landed.passed(&entered).is_err())
    }

    /// Gives the memory up, because nobody can tell when the device is done with it.
    pub(in crate::device) fn abandon(&mut self) {
        std::mem::forget(self.memory.take());
        self.staging.drain(..).for_each(std::mem::forget);
    }

    /// Whether the consumer is done with it.
    pub(super) fn is_released(&self, entered: &Entered<'_>) -> Result<bool> {
        for event in &self.releases[..self.released] {
            if !event.passed(entered)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Has the engine's stream wait until the consumer is done with it.
    pub(super) fn await_release(&self, entered: &Entered<'_>) -> Result<()> {
        let releases = &self.releases[..self.released];
        releases.iter().try_for_each(|event| cuda::stream_waits(entered, &self.copies, event))
    }

    /// Begins a new batch: the consumer of the last one is done, or waited for.
    pub(super) fn begin(&mut self) {
        self.released = 0;
        self.listed.end();
        self.staging.iter_mut().for_each(Staging::empty);
    }

    /// Lets copies be listed from `pages` and from its staging memory.
    pub(super) fn open_list(&mut self, pages: &PinnedSlab) {
        if self.listed.is_open() {
            return;
        }
        for (map, pinned) in std::iter::once(pages.source()).chain(self.staging.iter().map(Staging::source)) {
            self.listed.allow(map, pinned);
        }
    }

    /// Lists a copy from a page, or takes bytes from elsewhere into staging memory: those have no hold that keeps them.
    pub(super) fn copy(&mut self, seat: &Seat, to: usize, from: &[u8], together: &mut Together) -> Result<()> {
        if !self.listed.can_read(from) {
            return self.put(seat, to, from, together);
        }
        let (len, mut from, mut to) = (self.len(), from, to);
        let fits = to.checked_add(from.len()).is_some_and(|end| end <= len);
        if !fits {
            return Err(outside(to, from.len(), len));
        }
        loop {
            let taken = self.listed.add(from, to)?;
            if taken == from.len() {
                return Ok(());
            }
            self.issue(&seat.enter()?, together)?;
            (from, to) = (&from[taken..], to + taken);
        }
    }

    /// Takes `bytes` into staging memory and lists their copy.
    pub(super) fn put(&mut self, seat: &Seat, to: usize, bytes: &[u8], together: &mut Together) -> Result<()> {
        let len = self.len();
        if bytes.is_empty() {
            return Ok(());
        }
        if to.checked_add(bytes.len()).is_none_or(|end| end > len) {
            return Err(outside(to, bytes.len(), len));
        }
        let number = match self.staging.iter().position(|staging| staging.has_room(bytes.len())) {
            Some(number) => number,
            None => self.add_staging(bytes.len())?,
        };
        let (mut from, mut to) = (0, to);
        let staged = self.staging[number].take(bytes);
        loop {
            let taken = self.listed.add(&staged[from..], to)?;
            (from, to) = (from + taken, to + taken);
            if from == staged.len() {
                return Ok(());
            }
            let memory = self.memory.as_ref().ok_or_else(stranger)?;
            self.unsealed = true;
            memory.issue(&seat.enter()?, &self.copies, &mut self.listed, together)?;
        }
    }

    /// Issues what is listed.
    pub(super) fn issue(&mut self, entered: &Entered<'_>, together: &mut Together) -> Result<()> {
        if self.listed.is_empty() {
            return Ok(());
        }
        let memory = self.memory.as_ref().ok_or_else(stranger)?;
        self.unsealed = true;
        memory.issue(entered, &self.copies, &mut self.listed, together)
    }

    /// Issues what is listed, and a step behind it.
    pub(super) fn finish(
        &mut self,
        entered: &Entered<'_>,
        steps: &CudaSteps,
        turn: Turn,
        together: &mut Together,
    ) -> Result<()> {
        self.issue(entered, together)?;
        let memory = self.memory.as_ref().ok_or_else(stranger)?;
        self.unsealed = true;
        steps.enqueue(entered, &self.copies, memory, turn)
    }

    /// Issues what is left, and records where the batch will have landed. It may be sealed again, after more copies.
    pub(super) fn seal(&mut self, entered: &Entered<'_>, together: &mut Together, number: u64) -> Result<()> {
        self.issue(entered, together)?;
        // A consumer that keeps the batch for ever does not keep the slab.
        self.listed.end();
        self.landed.record(entered, &self.copies)?;
        (self.unsealed, self.number) = (false, Some(number));
        // What they have waited for were the copies until then.
        self.consumers
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .iter_mut()
            .for_each(|known| known.waits = false);
        Ok(())
    }

    /// More staging memory. Kept with the slot: batches are alike, and the next one finds the room it needs.
    fn add_staging(&mut self, bytes: usize) -> Result<usize> {
        let added: usize = self.staging.iter().skip(1).map(Staging::bytes).sum();
        if added > 2 * self.len() {
            return Err(Error::new(Kind::Config, "more host bytes put into a slot than it has room for"));
        }
        let staging = Staging::single(&self.context, bytes, self.node)?;
        let (map, pinned) = staging.source();
        self.listed.allow(map, pinned);
        self.staging.push(staging);
        Ok(self.staging.len() - 1)
    }
}

impl Drop for CudaSlot {
    /// Frees the memory once the device is done with it; reached only at teardown, or when the engine is gone.
    fn drop(&mut self) {
        if self.memory.is_none() {
            return;
        }
        let deadline = self.free_by.unwrap_or_else(|| Instant::now() + TEARDOWN_PATIENCE);
        let done = !self.abandoned.load(Ordering::Acquire)
            && self.context.enter().is_ok_and(|entered| {
                let done = || Ok(self.landed.passed(&entered)? && self.is_released(&entered)?);
                // A device that fails has stopped, and uses nothing any more.
                cuda::wait_until(deadline, done).unwrap_or(true)
            });
        if !done {
            self.abandon();
        }
    }
}

fn outside(at: usize, bytes: usize, len: usize) -> Error {
    Error::new(Kind::Config, format!("{bytes} bytes at offset {at} pass the end of a slot of {len}"))
}
