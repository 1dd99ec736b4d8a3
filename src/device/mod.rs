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
mod host;
mod probe;
mod selection;
mod slot;

use std::sync::Arc;

use crate::error::Result;
use crate::memory::{CopyHold, Slab};
#[cfg(feature = "cuda")]
pub use crate::sys::cuda::StreamView;
pub use crate::sys::stream::RawStream;
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

/// Called from any thread when a slot has come back.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A place for batches: opened once per loader.
pub trait Backend: Send + Sync {
    /// What it is, for messages: `host memory`, `cuda:0 (NVIDIA H100)`.
    fn name(&self) -> String;

    /// Registers the slab where that helps, and allocates `slots` of `slot_bytes` once and for all.
    ///
    /// # Errors
    /// `Device` when the memory is not there, with what is; `Config` for no slots, or a slab that another engine has.
    fn open(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<Box<dyn Engine>>;
}

/// The copy engine of one device; lives on one thread.
///
/// Dropping it while slots are out is harmless: each frees its memory when it is let go of. Dropping it in the middle of
/// copies waits for them, at most a second.
pub trait Engine: Send {
    /// What works less well than it could, and why: worth telling the user once.
    fn note(&self) -> Option<String> {
        None
    }

    /// A slot nobody uses, ready to be filled; `None` while all are held or in flight: ask again after a wake, or
    /// after [`Engine::poll`] has found a batch complete.
    ///
    /// # Errors
    /// `Device`, also when a slot could not be given back properly and is lost.
    fn acquire(&mut self) -> Result<Option<DeviceSlot>>;

    /// Enqueues copies into the slot. The caller keeps the pages until it hands their holds to [`Engine::seal`]. List
    /// segments that follow each other in both memories one after the other: they become one copy.
    ///
    /// # Errors
    /// `Config` for a segment that passes the slot's end, or a slot of another engine; `Device`.
    fn copy(&mut self, slot: &mut DeviceSlot, segments: &[Segment<'_>]) -> Result<()>;

    /// Copies bytes that the host computed (offsets, labels): taken before this returns.
    ///
    /// # Errors
    /// As [`Engine::copy`].
    fn put(&mut self, slot: &mut DeviceSlot, to: usize, bytes: &[u8]) -> Result<()>;

    /// No more copies for this batch: `holds` are kept until all of them are complete, then dropped.
    ///
    /// # Errors
    /// `Config` for a slot of another engine; `Device`. The holds are kept until the engine is dropped then.
    fn seal(&mut self, slot: &mut DeviceSlot, holds: Vec<CopyHold>) -> Result<()>;

    /// Drops the holds of copies that are complete; says how many batches are still being copied.
    ///
    /// # Errors
    /// `Device` when a copy failed; its pages are kept until the engine is dropped.
    fn poll(&mut self) -> Result<usize>;
}
