//! Slots in a GPU's memory, filled by its copy engine straight from the pages.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use cudarc::driver::CudaStream;

use super::slot::{Home, Place, stranger};
use super::{Backend, DeviceSlot, Engine, RawStream, Segment, Wake};
use crate::error::{Error, Kind, Result};
use crate::memory::{CopyHold, Slab};
use crate::sys::cuda::{self, Context, DeviceMemory, Entered, Event, Registration, StreamView};
use crate::sys::map::{Chunk, Map};
use crate::sys::plain::Plain;

/// How long the host waits for a batch to land: a step, however long, and the copies behind it.
const LANDING_PATIENCE: Duration = Duration::from_secs(30);

/// How long a teardown waits for the device before it gives up memory that the device may still use.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// Page-locked bytes per slot for what the host computes; more is added where a batch needs it.
const STAGING_BYTES: usize = 256 << 10;

/// Where each staged copy begins: a cache line, and what the copy engine likes.
const STAGING_ALIGNMENT: usize = 64;

/// Streams that may share a batch.
const STREAMS_MAX: usize = 8;

/// A GPU, and its context once somebody has needed it.
pub(super) struct CudaBackend {
    ordinal: u32,
    name: String,
    context: Mutex<Option<Arc<Context>>>,
}

impl CudaBackend {
    /// Device `ordinal`, without opening it.
    pub(super) fn find(ordinal: u32) -> Result<CudaBackend> {
        let name = format!("cuda:{ordinal} ({})", cuda::driver()?.describe(ordinal)?.name);
        Ok(CudaBackend { ordinal, name, context: Mutex::new(None) })
    }

    pub(super) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The primary context, taken when first asked for and kept.
    pub(super) fn context(&self) -> Result<Arc<Context>> {
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        match &*context {
            Some(context) => Ok(Arc::clone(context)),
            None => Ok(Arc::clone(context.insert(Context::retain(self.ordinal).map_err(|e| e.within(&self.name))?))),
        }
    }

    pub(super) fn stream(&self) -> Result<RawStream> {
        cuda::new_stream(&self.context()?)
    }

    fn open_engine(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<CudaEngine> {
        let context = self.context()?;
        let pinned = PinnedSlab::new(&context, slab)?;
        let copies = cuda::new_stream(&context)?;
        let (home, arrivals) = Home::new(slots, wake);
        let abandoned = Arc::new(AtomicBool::new(false));
        let staging = Staging::shared(&context, slots)?;
        let free = staging
            .into_iter()
            .map(|staging| CudaSlot::new(&context, slot_bytes, staging, &copies, &abandoned).map(Box::new))
            .collect::<Result<_>>()
            .map_err(|error| match context.memory() {
                Ok((free, _)) => error.within(format!("{slots} slots of {slot_bytes} bytes, {free} bytes are free")),
                Err(_) => error,
            })?;
        let in_flight = VecDeque::with_capacity(slots);
        Ok(CudaEngine {
            in_flight,
            free,
            arrivals,
            home,
            abandoned,
            events: Vec::new(),
            pinned: Some(pinned),
            copies,
            context,
        })
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn open(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<Box<dyn Engine>> {
        if slots == 0 || slot_bytes == 0 {
            return Err(Error::new(Kind::Config, format!("{slots} slots of {slot_bytes} bytes")));
        }
        let engine = self.open_engine(slab, slots, slot_bytes, wake).map_err(|error| error.within(&self.name))?;
        Ok(Box::new(engine))
    }
}

/// The slab, page-locked for as long as copies may read from it.
struct PinnedSlab {
    /// `None` where the system refused: the driver then copies through memory of its own, and makes the engine's thread wait.
    /// Dropped before `slab`, which keeps the mapping.
    registration: Option<Registration>,
    /// What refused, if something did.
    refusal: Option<Error>,
    slab: Slab,
}

impl PinnedSlab {
    fn new(context: &Arc<Context>, slab: &Slab) -> Result<PinnedSlab> {
        let (address, bytes) = slab.mapping();
        let (registration, refusal) = match Registration::new(context, address, bytes) {
            Ok(registration) => (Some(registration), None),
            // Best effort, and not a reason to refuse: the bytes are the same, only later.
            Err(error) if error.kind() == Kind::Device => (None, Some(error)),
            Err(error) => return Err(error),
        };
        Ok(PinnedSlab { registration, refusal, slab: slab.clone() })
    }

    fn note(&self) -> Option<String> {
        let refusal = self.refusal.as_ref().filter(|_| self.registration.is_none())?;
        Some(format!("host memory is not page-locked, so copies are slower and do not overlap: {refusal}"))
    }

    fn holds(&self, bytes: &[u8]) -> bool {
        let (start, len) = self.slab.mapping();
        let address = bytes.as_ptr() as usize;
        address >= start && address + bytes.len() <= start + len
    }
}

/// Page-locked memory that host bytes wait in until their copy is done.
struct Staging {
    /// Before `chunk`: a range is unregistered while it is still mapped.
    _registration: Option<Arc<Registration>>,
    chunk: Chunk,
    used: usize,
}

impl Staging {
    /// One for each slot, cut from one mapping.
    fn shared(context: &Arc<Context>, slots: usize) -> Result<Vec<Staging>> {
        Staging::cut(context, slots * STAGING_BYTES, |whole| whole / slots / STAGING_ALIGNMENT * STAGING_ALIGNMENT).map(
            |mut staging| {
                staging.truncate(slots);
                staging
            },
        )
    }

    /// One of at least `bytes`.
    fn single(context: &Arc<Context>, bytes: usize) -> Result<Staging> {
        let mut staging = Staging::cut(context, bytes, |whole| whole)?;
        staging.pop().ok_or_else(|| Error::new(Kind::Io, "an empty mapping"))
    }

    fn cut(context: &Arc<Context>, bytes: usize, each: impl Fn(usize) -> usize) -> Result<Vec<Staging>> {
        let map = Map::new(bytes)?;
        let (address, whole) = (map.address(), map.bytes());
        let chunks = map.into_chunks(each(whole));
        // Pageable staging works as well: the driver takes the bytes before its call returns.
        let registration = Registration::new(context, address, whole).ok().map(Arc::new);
        let staged = |chunk| Staging { _registration: registration.clone(), chunk, used: 0 };
        Ok(chunks.into_iter().map(staged).collect())
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.chunk.len() - self.used >= bytes
    }

    /// Takes `bytes` in; returns where they wait. The caller has made sure that there is room.
    fn take(&mut self, bytes: &[u8]) -> &[u8] {
        let (from, to) = (self.used, self.used + bytes.len());
        self.used = to.next_multiple_of(STAGING_ALIGNMENT).min(self.chunk.len());
        self.chunk[from..to].copy_from_slice(bytes);
        &self.chunk[from..to]
    }
}

/// Device memory of one batch, and all that its way needs.
pub(super) struct CudaSlot {
    /// `None` once it was given up.
    memory: Option<DeviceMemory>,
    staging: Vec<Staging>,
    /// Recorded in `copies` behind the batch's last copy.
    landed: Event,
    /// Recorded in the consumer's streams when it let go; the first `released` of them count.
    releases: Vec<Event>,
    released: usize,
    /// Streams that were told to wait for the batch.
    consumers: Mutex<Vec<RawStream>>,
    /// Whether copies were enqueued since `landed` was recorded.
    unsealed: bool,
    copies: RawStream,
    /// Set when the engine had to leave copies behind that the device did not finish.
    abandoned: Arc<AtomicBool>,
    /// Until when freeing may wait; a second from then where nobody said.
    free_by: Option<Instant>,
    context: Arc<Context>,
}

impl CudaSlot {
    fn new(
        context: &Arc<Context>,
        bytes: usize,
        staging: Staging,
        copies: &RawStream,
        abandoned: &Arc<AtomicBool>,
    ) -> Result<CudaSlot> {
        Ok(CudaSlot {
            memory: Some(DeviceMemory::new(context, bytes)?),
            staging: vec![staging],
            landed: Event::new(context)?,
            releases: vec![Event::new(context)?],
            released: 0,
            consumers: Mutex::default(),
            unsealed: false,
            copies: copies.clone(),
            abandoned: Arc::clone(abandoned),
            free_by: None,
            context: Arc::clone(context),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.memory.as_ref().map_or(0, DeviceMemory::bytes)
    }

    pub(super) fn pointer(&self) -> u64 {
        self.memory.as_ref().map_or(0, DeviceMemory::pointer)
    }

    /// Refuses a stream of another context.
    pub(super) fn admit(&self, stream: &RawStream) -> Result<()> {
        self.context.admit(stream)
    }

    /// Elements at `at`, for kernels in `stream`, which waits for the batch.
    pub(super) fn view_in<T: Plain>(
        &self,
        at: usize,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<StreamView<'_, T>> {
        let view = self.memory.as_ref().ok_or_else(stranger)?.view(at, len, stream)?;
        self.wait_on(stream.into())?;
        Ok(view)
    }

    pub(super) fn wait_on(&self, stream: RawStream) -> Result<()> {
        self.admit(&stream)?;
        let entered = self.context.enter()?;
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        if !consumers.contains(&stream) {
            if consumers.len() == STREAMS_MAX {
                return Err(Error::new(Kind::Config, format!("a batch used in more than {STREAMS_MAX} streams"))
                    .advice("have one stream wait for the batch, and the others for that stream"));
            }
            consumers.push(stream.clone());
        }
        cuda::stream_waits(&entered, &stream, &self.landed)
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        let entered = self.context.enter()?;
        if cuda::wait_until(Instant::now() + LANDING_PATIENCE, || self.landed.passed(&entered))? {
            return Ok(());
        }
        Err(Error::new(Kind::Stalled, format!("a batch did not land within {LANDING_PATIENCE:?}"))
            .advice("see what the stream is doing that used the slot before"))
    }

    pub(super) fn read_back(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        self.synchronize()?;
        match &self.memory {
            Some(memory) => memory.read_back(at, len, Instant::now() + LANDING_PATIENCE),
            None => Err(Error::new(Kind::Device, "the slot's memory was given up")),
        }
    }

    /// Records how far the consumer's streams must come before the slot is anyone else's.
    pub(super) fn let_go(&mut self, stream: Option<RawStream>) -> Result<()> {
        let entered = self.context.enter()?;
        if self.unsealed {
            self.landed.record(&entered, &self.copies)?;
            self.unsealed = false;
        }
        let mut streams = std::mem::take(self.consumers.get_mut().unwrap_or_else(PoisonError::into_inner));
        match stream {
            Some(stream) if !streams.contains(&stream) => streams.push(stream),
            None if streams.is_empty() => streams.push(RawStream::LEGACY_DEFAULT),
            _ => {}
        }
        while self.releases.len() < streams.len() {
            self.releases.push(Event::new(&self.context)?);
        }
        for (event, stream) in self.releases.iter().zip(&streams) {
            event.record(&entered, stream)?;
        }
        self.released = streams.len();
        Ok(())
    }

    /// Gives the memory up, because nobody can tell when the device is done with it.
    pub(super) fn abandon(&mut self) {
        std::mem::forget(self.memory.take());
        self.staging.drain(..).for_each(std::mem::forget);
    }

    /// Whether the consumer is done with it.
    fn is_released(&self, entered: &Entered<'_>) -> Result<bool> {
        for event in &self.releases[..self.released] {
            if !event.passed(entered)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes `bytes` into staging memory and enqueues their copy.
    fn put(&mut self, entered: &Entered<'_>, to: usize, bytes: &[u8]) -> Result<()> {
        let memory = self.memory.as_ref().ok_or_else(stranger)?;
        let staging = match self.staging.iter().position(|staging| staging.has_room(bytes.len())) {
            Some(index) => &mut self.staging[index],
            None => {
                // Kept with the slot: batches are alike, and the next one finds the room it needs.
                let added: usize = self.staging.iter().skip(1).map(|staging| staging.chunk.len()).sum();
                if bytes.len() > memory.bytes() || added > 2 * memory.bytes() {
                    return Err(Error::new(Kind::Config, "more host bytes put into a slot than it has room for"));
                }
                self.staging.push(Staging::single(&self.context, bytes.len())?);
                let last = self.staging.len() - 1;
                &mut self.staging[last]
            }
        };
        memory.copy_from_host(entered, &self.copies, std::iter::once((staging.take(bytes), to)))
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

/// The copy engine of one GPU. Fields are dropped in this order: copies, slots, pinned memory, stream.
struct CudaEngine {
    /// Batches being copied, oldest first: their pages, and the event behind their last copy.
    in_flight: VecDeque<(Event, Vec<CopyHold>)>,
    free: VecDeque<Box<CudaSlot>>,
    arrivals: Receiver<Box<CudaSlot>>,
    home: Arc<Home<Box<CudaSlot>>>,
    abandoned: Arc<AtomicBool>,
    /// Events for `in_flight` to use again.
    events: Vec<Event>,
    /// `None` only at the end of a teardown that gave it up.
    pinned: Option<PinnedSlab>,
    copies: RawStream,
    context: Arc<Context>,
}

impl CudaEngine {
    fn ours<'s>(&self, slot: &'s mut DeviceSlot) -> Result<&'s mut CudaSlot> {
        match slot.place_mut() {
            Some(Place::Cuda(slot, home)) if Arc::ptr_eq(home, &self.home) => Ok(slot),
            _ => Err(stranger()),
        }
    }

    /// The slot to fill next: one that its consumer is done with; failing that, the one that was let go of first, which
    /// the copy stream then waits for. That wait is for work enqueued before the slot came back, which can itself
    /// wait only for batches enqueued before that: never for one behind it in the copy stream.
    fn choose(&self, entered: &Entered<'_>) -> Result<Option<usize>> {
        let mut busy = None;
        for (index, slot) in self.free.iter().enumerate() {
            // Until its last batch has landed, its staging memory is still being read.
            if !slot.landed.passed(entered)? {
                continue;
            }
            if slot.is_released(entered)? {
                return Ok(Some(index));
            }
            busy = busy.or(Some(index));
        }
        Ok(busy)
    }
}

impl Engine for CudaEngine {
    fn note(&self) -> Option<String> {
        self.pinned.as_ref().and_then(PinnedSlab::note)
    }

    fn acquire(&mut self) -> Result<Option<DeviceSlot>> {
        self.home.loss()?;
        self.free.extend(self.arrivals.try_iter());
        let entered = self.context.enter()?;
        let Some(mut slot) = self.choose(&entered)?.and_then(|index| self.free.remove(index)) else { return Ok(None) };
        for event in &slot.releases[..slot.released] {
            if let Err(error) = cuda::stream_waits(&entered, &self.copies, event) {
                self.free.push_back(slot);
                return Err(error);
            }
        }
        slot.released = 0;
        slot.staging.iter_mut().for_each(|staging| staging.used = 0);
        Ok(Some(DeviceSlot::new(Place::Cuda(slot, Arc::clone(&self.home)))))
    }

    fn copy(&mut self, slot: &mut DeviceSlot, segments: &[Segment<'_>]) -> Result<()> {
        let slot = self.ours(slot)?;
        let entered = self.context.enter()?;
        slot.unsealed = true;
        let paged = |segment: &Segment<'_>| self.pinned.as_ref().is_some_and(|pinned| pinned.holds(segment.from));
        // Bytes from elsewhere have no hold that keeps them: they are taken before this returns.
        for part in segments.chunk_by(|a, b| paged(a) == paged(b)) {
            if paged(&part[0]) {
                let memory = slot.memory.as_ref().ok_or_else(stranger)?;
                memory.copy_from_host(&entered, &self.copies, part.iter().map(|segment| (segment.from, segment.to)))?;
            } else {
                part.iter().try_for_each(|segment| slot.put(&entered, segment.to, segment.from))?;
            }
        }
        Ok(())
    }

    fn put(&mut self, slot: &mut DeviceSlot, to: usize, bytes: &[u8]) -> Result<()> {
        let slot = self.ours(slot)?;
        slot.unsealed = true;
        slot.put(&self.context.enter()?, to, bytes)
    }

    fn seal(&mut self, slot: &mut DeviceSlot, holds: Vec<CopyHold>) -> Result<()> {
        let event = match self.events.pop() {
            Some(event) => event,
            None => Event::new(&self.context)?,
        };
        let slot = self.ours(slot)?;
        let entered = self.context.enter()?;
        let recorded = slot.landed.record(&entered, &self.copies).and_then(|()| event.record(&entered, &self.copies));
        slot.unsealed &= recorded.is_err();
        self.in_flight.push_back((event, holds));
        recorded
    }

    fn poll(&mut self) -> Result<usize> {
        if self.in_flight.is_empty() {
            return Ok(0);
        }
        let entered = self.context.enter()?;
        while let Some((event, _)) = self.in_flight.front() {
            if !event.passed(&entered)? {
                break;
            }
            if let Some((event, holds)) = self.in_flight.pop_front() {
                self.events.push(event);
                drop(holds);
            }
        }
        Ok(self.in_flight.len())
    }
}

impl Drop for CudaEngine {
    /// Waits for copies under way; what the device does not let go of within a second is given up, never reused.
    fn drop(&mut self) {
        let deadline = Instant::now() + TEARDOWN_PATIENCE;
        let idle = self.context.enter().is_ok_and(|entered| {
            // As above: a device that fails has stopped.
            cuda::wait_until(deadline, || cuda::stream_idle(&entered, &self.copies)).unwrap_or(true)
        });
        if !idle {
            self.abandoned.store(true, Ordering::Release);
            self.in_flight.drain(..).for_each(std::mem::forget);
            std::mem::forget(self.pinned.take());
        }
        self.free.extend(self.arrivals.try_iter());
        self.free.iter_mut().for_each(|slot| slot.free_by = Some(deadline));
    }
}
