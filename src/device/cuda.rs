//! Slots in a GPU's memory, filled by its copy engine straight from the pages.

mod pinned;
mod slot;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::finish::cuda::CudaSteps;
use super::finish::{Finishing, Turn};
use super::home::Home;
use super::pace::Pace;
use super::slot::{Place, stranger};
use super::{Backend, DeviceSlot, Engine, RawStream, Segment, Wake};
use crate::error::{Error, Kind, Result};
use crate::memory::{CopyHold, Slab};
use crate::sys::cuda::{self, Attached, Context, Entered, Event, Together};
use crate::sys::numa;
use pinned::{PinnedSlab, Staging};
use slot::Common;
pub(super) use slot::CudaSlot;

/// How long the host waits for a batch to land: a step, however long, and the copies behind it.
const LANDING_PATIENCE: Duration = Duration::from_secs(30);

/// How long a teardown waits for the device before it gives up memory that the device may still use.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// A GPU, and its context once somebody has needed it.
pub(super) struct CudaBackend {
    ordinal: u32,
    name: String,
    /// The NUMA node next to it, on a machine with several.
    node: Option<u32>,
    context: Mutex<Option<Arc<Context>>>,
    /// Whether copies are issued one by one even where the driver takes many at once: to find what that is worth.
    one_by_one: bool,
}

impl CudaBackend {
    /// Device `ordinal`, without opening it.
    pub(super) fn find(ordinal: u32) -> Result<CudaBackend> {
        let told = cuda::driver()?.describe(ordinal)?;
        let name = format!("cuda:{ordinal} ({})", told.name);
        let node = told.host_node.filter(|_| numa::is_divided());
        Ok(CudaBackend { ordinal, name, node, context: Mutex::new(None), one_by_one: false })
    }

    /// The same device, whose engines issue copies one by one.
    #[cfg(feature = "measure")]
    pub(super) fn one_by_one(&self) -> Result<CudaBackend> {
        let (name, context) = (self.name.clone(), Mutex::new(Some(self.context()?)));
        Ok(CudaBackend { ordinal: self.ordinal, name, node: self.node, context, one_by_one: true })
    }

    pub(super) fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The primary context, taken when first asked for and kept.
    pub(super) fn context(&self) -> Result<Arc<Context>> {
        // A forked child is told, before it waits for a lock that is held by a thread of its parent.
        cuda::driver()?;
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
        let staging = Staging::shared(&context, slots, self.node)?;
        let common = Common { context: &context, copies: &copies, abandoned: &abandoned, node: self.node };
        let free = staging
            .into_iter()
            .map(|staging| CudaSlot::new(&common, slot_bytes, staging).map(Box::new))
            .collect::<Result<_>>()
            .map_err(|error| match context.memory() {
                Ok((free, _)) => error.within(format!("{slots} slots of {slot_bytes} bytes, {free} bytes are free")),
                Err(_) => error,
            })?;
        Ok(CudaEngine {
            in_flight: VecDeque::with_capacity(slots),
            unfinished: Vec::new(),
            free,
            arrivals,
            home,
            abandoned,
            batches: 0,
            landed: 0,
            pace: Pace::new(),
            events: Vec::new(),
            spare: Vec::with_capacity(slots),
            together: Together::new(context.driver(), self.one_by_one),
            pinned: Some(pinned),
            steps: CudaSteps::default(),
            copies,
            seat: Seat { attached: None, context },
        })
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn host_node(&self) -> Option<u32> {
        self.node
    }

    fn open(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<Box<dyn Engine>> {
        if slots == 0 || slot_bytes == 0 {
            return Err(Error::new(Kind::Config, format!("{slots} slots of {slot_bytes} bytes")));
        }
        let engine = self.open_engine(slab, slots, slot_bytes, wake).map_err(|error| error.within(&self.name))?;
        Ok(Box::new(engine))
    }
}

/// Where the engine's calls are made: in a context that is current already, or entered for each.
struct Seat {
    attached: Option<Attached>,
    context: Arc<Context>,
}

impl Seat {
    fn enter(&self) -> Result<Entered<'_>> {
        match self.attached.as_ref().and_then(Attached::entered) {
            Some(entered) => Ok(entered),
            None => self.context.enter(),
        }
    }
}

/// A batch being copied.
struct InFlight {
    number: u64,
    /// That of its slot; it is recorded anew only when nobody asks about this batch any more.
    landed: Arc<Event>,
    holds: Vec<CopyHold>,
}

/// The copy engine of one GPU. Fields are dropped in this order: copies, slots, pinned memory, steps, stream.
struct CudaEngine {
    /// Batches being copied, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Pages of batches whose copies could not all be issued, or not be followed: kept until the stream is idle.
    unfinished: Vec<Vec<CopyHold>>,
    free: VecDeque<Box<CudaSlot>>,
    arrivals: Receiver<Box<CudaSlot>>,
    home: Arc<Home<Box<CudaSlot>>>,
    abandoned: Arc<AtomicBool>,
    /// Batches sealed so far: the number of the newest.
    batches: u64,
    /// The number of the newest batch that is known to have landed.
    landed: u64,
    pace: Pace,
    /// Events of slots that were sealed more than once, to be used again.
    events: Vec<Arc<Event>>,
    /// Empty lists of holds, to be used again; as many as there were batches in flight at once.
    spare: Vec<Vec<CopyHold>>,
    together: Together,
    /// `None` only at the end of a teardown that gave it up.
    pinned: Option<PinnedSlab>,
    steps: CudaSteps,
    copies: RawStream,
    seat: Seat,
}

impl CudaEngine {
    /// The slot to fill next, and whether its consumer has yet to be waited for: one that its consumer is done with; failing that, the
    /// one that was let go of first, which the copy stream then waits for. That wait is for work enqueued before the slot came
    /// back, which can itself wait only for batches enqueued before that: never for one behind it in the copy stream.
    fn choose(&self, entered: &Entered<'_>) -> Result<Option<(usize, bool)>> {
        let mut busy = None;
        for (index, slot) in self.free.iter().enumerate() {
            // Until its last batch has landed, its staging memory is still being read.
            let landed = match slot.number {
                Some(number) => number <= self.landed,
                None => slot.landed.passed(entered)?,
            };
            if !landed {
                continue;
            }
            // With no choice there is nothing to ask: a wait for what is over costs the device nothing.
            if self.free.len() > 1 && slot.is_released(entered)? {
                return Ok(Some((index, false)));
            }
            busy = busy.or(Some((index, true)));
        }
        Ok(busy)
    }

    /// Gives the slot an event of its own, where earlier copies into it are still asked about.
    fn renew(&mut self, slot: &mut CudaSlot) -> Result<()> {
        if Arc::strong_count(&slot.landed) > 1 {
            slot.landed = match self.events.pop() {
                Some(event) => event,
                None => Arc::new(Event::new(&self.seat.context)?),
            };
        }
        Ok(())
    }

    /// Asks which batches have landed, oldest first, and lets go of their pages.
    fn look(&mut self) -> Result<()> {
        let entered = self.seat.enter()?;
        while let Some(oldest) = self.in_flight.front() {
            let passed = oldest.landed.passed(&entered)?;
            let now = Instant::now();
            if !passed {
                self.pace.not_yet(now);
                break;
            }
            if let Some(InFlight { number, landed, mut holds }) = self.in_flight.pop_front() {
                self.landed = number;
                holds.clear();
                self.spare.push(holds);
                // Of a slot that was sealed again since.
                if Arc::strong_count(&landed) == 1 {
                    self.events.push(landed);
                }
            }
            self.pace.landed(now, !self.in_flight.is_empty());
        }
        Ok(())
    }
}

/// The slot, if it is one of `home`'s.
fn ours<'s>(slot: &'s mut DeviceSlot, home: &Arc<Home<Box<CudaSlot>>>) -> Result<&'s mut CudaSlot> {
    match slot.place_mut() {
        Some(Place::Cuda(slot, its)) if Arc::ptr_eq(its, home) => Ok(slot),
        _ => Err(stranger()),
    }
}

/// As [`ours`], ready to have copies listed.
fn opened<'s>(
    slot: &'s mut DeviceSlot,
    home: &Arc<Home<Box<CudaSlot>>>,
    pages: Option<&PinnedSlab>,
) -> Result<&'s mut CudaSlot> {
    let slot = ours(slot, home)?;
    slot.open_list(pages.ok_or_else(stranger)?);
    Ok(slot)
}

impl Engine for CudaEngine {
    fn note(&self) -> Option<String> {
        let refused = |error: &Error| format!("scattered samples are copied one by one: {error}");
        let notes = [self.pinned.as_ref().and_then(PinnedSlab::note), self.together.refusal().map(refused)];
        let notes: Vec<String> = notes.into_iter().flatten().collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    fn attach(&mut self) -> Result<()> {
        self.seat.attached = None;
        self.seat.attached = Some(Attached::new(&self.seat.context)?);
        Ok(())
    }

    fn detach(&mut self) {
        self.seat.attached = None;
    }

    fn acquire(&mut self) -> Result<Option<DeviceSlot>> {
        self.home.loss()?;
        self.free.extend(self.arrivals.try_iter());
        if self.free.is_empty() {
            return Ok(None);
        }
        let in_flight = self.in_flight.len();
        let mut chosen = self.choose(&self.seat.enter()?)?;
        if chosen.is_none() && self.poll()? < in_flight {
            chosen = self.choose(&self.seat.enter()?)?;
        }
        let Some((index, busy)) = chosen else { return Ok(None) };
        let Some(mut slot) = self.free.remove(index) else { return Ok(None) };
        if busy && let Err(error) = self.seat.enter().and_then(|entered| slot.await_release(&entered)) {
            self.free.push_back(slot);
            return Err(error);
        }
        slot.begin();
        Ok(Some(DeviceSlot::new(Place::Cuda(slot, Arc::clone(&self.home)))))
    }

    fn copy(&mut self, slot: &mut DeviceSlot, segments: &[Segment<'_>]) -> Result<()> {
        let slot = opened(slot, &self.home, self.pinned.as_ref())?;
        let (seat, together) = (&self.seat, &mut self.together);
        segments.iter().try_for_each(|segment| slot.copy(seat, segment.to, segment.from, together))
    }

    fn put(&mut self, slot: &mut DeviceSlot, to: usize, bytes: &[u8]) -> Result<()> {
        let slot = opened(slot, &self.home, self.pinned.as_ref())?;
        slot.put(&self.seat, to, bytes, &mut self.together)
    }

    fn prepare(&mut self, steps: &[Finishing]) -> Result<()> {
        self.steps = CudaSteps::new(&self.seat.context, steps, Instant::now() + LANDING_PATIENCE)?;
        Ok(())
    }

    fn finish(&mut self, slot: &mut DeviceSlot, turn: Turn) -> Result<()> {
        let slot = opened(slot, &self.home, self.pinned.as_ref())?;
        slot.finish(&self.seat.enter()?, &self.steps, turn, &mut self.together)
    }

    fn seal(&mut self, slot: &mut DeviceSlot, holds: Vec<CopyHold>) -> Result<()> {
        let slot = ours(slot, &self.home)?;
        let number = self.batches + 1;
        let renewed = self.renew(slot);
        let sealed = renewed.and_then(|()| slot.seal(&self.seat.enter()?, &mut self.together, number));
        if let Err(error) = sealed {
            self.unfinished.push(holds);
            return Err(error);
        }
        self.batches = number;
        self.pace.sealed(Instant::now(), !self.in_flight.is_empty());
        self.in_flight.push_back(InFlight { number, landed: Arc::clone(&slot.landed), holds });
        Ok(())
    }

    fn spare_holds(&mut self) -> Vec<CopyHold> {
        self.spare.pop().unwrap_or_default()
    }

    fn poll(&mut self) -> Result<usize> {
        if !self.in_flight.is_empty() && self.pace.is_due(Instant::now()) {
            self.look()?;
        }
        Ok(self.in_flight.len())
    }

    fn look_again(&self) -> Duration {
        self.pace.wait(Instant::now())
    }
}

impl Drop for CudaEngine {
    /// Waits for copies under way; what the device does not let go of within a second is given up, never reused.
    fn drop(&mut self) {
        let deadline = Instant::now() + TEARDOWN_PATIENCE;
        let idle = self.seat.enter().is_ok_and(|entered| {
            // As for a slot: a device that fails has stopped.
            cuda::wait_until(deadline, || cuda::stream_idle(&entered, &self.copies)).unwrap_or(true)
        });
        if !idle {
            self.abandoned.store(true, Ordering::Release);
            self.in_flight.drain(..).for_each(std::mem::forget);
            self.unfinished.drain(..).for_each(std::mem::forget);
            std::mem::forget(self.pinned.take());
            std::mem::forget(std::mem::take(&mut self.steps));
        }
        self.free.extend(self.arrivals.try_iter());
        self.free.iter_mut().for_each(|slot| slot.free_by = Some(deadline));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lock is held when the child is forked, and nobody lets go of it there.
    #[test]
    fn a_forked_child_is_told_before_it_waits() {
        let _ = cuda::driver();
        let (name, context) = ("cuda:0".into(), Mutex::new(None));
        let backend = CudaBackend { ordinal: 0, name, node: None, context, one_by_one: false };
        let held = backend.context.lock();
        let answer = farfeed_driver_double::in_a_child(Duration::from_secs(20), || {
            backend.stream().map_or_else(|error| error.to_string(), |_| "it worked".into())
        });
        assert!(answer.as_ref().is_ok_and(|answer| answer != "it worked"), "{answer:?}");
        drop(held);
    }
}
