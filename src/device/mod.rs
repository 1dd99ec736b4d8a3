//! Batches are assembled where they are consumed: host memory, or a GPU's.
//!
//! *Takes* a slab and copies out of its pages. *Gives* [`DeviceSlot`]s holding a batch each. *Owns* the slots and, on a
//! GPU, a stream and a pool of events. *Bounded*: a fixed number of slots of fixed size. *Fails* with `Device`, naming
//! the driver's own word for it.
//!
//! A slot is in one place at a time: free inside the [`Engine`] → being filled → sealed and handed over, possibly
//! before its bytes have landed → back through a channel with room for every slot. On a GPU both hand-overs are events: the consumer's
//! stream waits for *landed*, the copy stream waits for what the consumer's streams had been given to do when it let go.
//! Each such wait is for work that was enqueued before it, so that no circle of waits can form.

#[cfg(feature = "cuda")]
mod cuda;
mod finish;
mod home;
mod host;
#[cfg(all(feature = "cuda", feature = "measure"))]
#[doc(hidden)]
pub mod measure;
#[cfg(feature = "cuda")]
mod pace;
mod probe;
mod selection;
mod slot;

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::memory::{CopyHold, Slab};
#[cfg(feature = "cuda")]
pub use crate::sys::cuda::StreamView;
pub use crate::sys::stream::RawStream;
pub use finish::{Arrangement, Finishing, Pictures, Real, Turn, Widening};
pub use home::Wake;
pub use probe::{DeviceFacts, DriverFacts, copy_rate, probe};
pub use selection::Device;
pub use slot::DeviceSlot;

/// One contiguous piece of a batch: bytes in pages and where they belong in the slot.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Bytes inside a page that a [`CopyHold`] keeps.
    pub from: &'a [u8],
    /// Offset in the slot.
    pub to: usize,
}

/// A place for batches: opened once per loader.
pub trait Backend: Send + Sync {
    /// What it is, for messages: `host memory`, `cuda:0 (NVIDIA H100)`.
    fn name(&self) -> String;

    /// The NUMA node whose memory is nearest, on a machine with more than one where it is known: for [`Slab::near`].
    fn host_node(&self) -> Option<u32> {
        None
    }

    /// Registers the slab where that helps, and allocates `slots` of `slot_bytes` once and for all.
    ///
    /// # Errors
    /// `Device` when the memory is not there, with what is; `Config` for no slots, or a slab that another engine has.
    fn open(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<Box<dyn Engine>>;
}

/// The copy engine of one device; lives on one thread at a time.
///
/// Dropping it while slots are out is harmless: each frees its memory when it is let go of. Dropping it in the middle of
/// copies waits for them, at most a second.
pub trait Engine: Send {
    /// What works less well than it could, and why: worth telling the user once.
    fn note(&self) -> Option<String> {
        None
    }

    /// Binds the engine to the calling thread until [`Engine::detach`]: each call costs less there. For a thread that has little else
    /// to do; on others the engine works as before.
    ///
    /// # Errors
    /// `Device` when the device's context is gone; `Unsupported` in a forked child.
    fn attach(&mut self) -> Result<()> {
        Ok(())
    }

    /// Puts the thread that [`Engine::attach`] was called on back as it was. To be called there.
    fn detach(&mut self) {}

    /// A slot nobody uses, ready to be filled; `None` while all are held or in flight: ask again after a wake, or
    /// after [`Engine::poll`] has found a batch complete.
    ///
    /// # Errors
    /// `Device`, also when a slot could not be given back properly and is lost.
    fn acquire(&mut self) -> Result<Option<DeviceSlot>>;

    /// Lists copies into the slot, which are issued by [`Engine::seal`] at the latest. The caller keeps the pages until it hands their
    /// holds to that. List segments that follow each other in both memories one after the other: they become one copy. Segments
    /// in ascending order of `to` cost the least; where two overlap, the later one counts.
    ///
    /// # Errors
    /// `Config` for a segment that passes the slot's end, or a slot of another engine; `Device`.
    fn copy(&mut self, slot: &mut DeviceSlot, segments: &[Segment<'_>]) -> Result<()>;

    /// Copies bytes that the host computed (offsets, labels): taken before this returns.
    ///
    /// # Errors
    /// As [`Engine::copy`].
    fn put(&mut self, slot: &mut DeviceSlot, to: usize, bytes: &[u8]) -> Result<()>;

    /// Makes ready for steps, which [`Engine::finish`] then knows by their places in the list. Called once, before the first batch.
    ///
    /// # Errors
    /// `Unsupported` from an engine that has no steps; `Device` when the kernels or their tables cannot be loaded.
    fn prepare(&mut self, steps: &[Finishing]) -> Result<()> {
        if steps.is_empty() {
            return Ok(());
        }
        Err(Error::new(Kind::Unsupported, "this device does not finish columns"))
    }

    /// Enqueues a step behind what was copied into the slot so far.
    ///
    /// # Errors
    /// `Config` for a step that was not prepared, a region that passes the slot's end, meets the other one or begins within an
    /// element, or a slot of another engine; `Device`.
    fn finish(&mut self, slot: &mut DeviceSlot, turn: Turn) -> Result<()> {
        let _ = slot;
        Err(finish::unprepared(turn.step))
    }

    /// No more copies for this batch: `holds` are kept until all of them are complete, then dropped. Whoever fills one slot over a long
    /// time may copy more and seal again: each time the holds of what was copied since.
    ///
    /// # Errors
    /// `Config` for a slot of another engine; `Device`. The holds are kept until the engine is dropped then.
    fn seal(&mut self, slot: &mut DeviceSlot, holds: Vec<CopyHold>) -> Result<()>;

    /// An empty list for [`Engine::seal`], with the room that an earlier one had.
    fn spare_holds(&mut self) -> Vec<CopyHold> {
        Vec::new()
    }

    /// Drops the holds of copies that are complete; says how many batches are still being copied, as far as is known: the device is not
    /// asked more often than [`Engine::look_again`] says.
    ///
    /// # Errors
    /// `Device` when a copy failed; its pages are kept until the engine is dropped.
    fn poll(&mut self) -> Result<usize>;

    /// How long [`Engine::poll`] has no reason to look, while batches are being copied.
    fn look_again(&self) -> Duration {
        Duration::from_micros(200)
    }
}
