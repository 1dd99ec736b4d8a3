//! Batches are assembled where they are consumed: host memory, or a GPU's.
//!
//! *Takes* a slab and copies out of its pages. *Gives* [`DeviceSlot`]s holding a batch each. *Owns* the slots and, on a
//! GPU, a stream and a pool of events. *Bounded*: a fixed number of slots of fixed size. *Fails* with `Device`, naming
//! the driver's own word for it.

use std::sync::Arc;

use crate::error::Result;
use crate::memory::{CopyHold, Slab};

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
    /// `Device` when the memory is not there, with what is.
    fn open(&self, slab: &Slab, slots: usize, slot_bytes: usize, wake: Wake) -> Result<Box<dyn Engine>>;
}

/// The copy engine of one device; lives on one thread. `S` below is a slot being filled.
pub trait Engine: Send {
    /// A slot nobody uses, ready to be filled; `None` while all are held or in flight.
    fn acquire(&mut self) -> Result<Option<DeviceSlot>>;

    /// Enqueues copies into the slot. The caller keeps the pages until it hands their holds to [`Engine::seal`].
    fn copy(&mut self, slot: &mut DeviceSlot, segments: &[Segment<'_>]) -> Result<()>;

    /// Copies bytes that the host computed (offsets, labels): taken before this returns.
    fn put(&mut self, slot: &mut DeviceSlot, to: usize, bytes: &[u8]) -> Result<()>;

    /// No more copies for this batch: `holds` are kept until all of them are complete, then dropped.
    fn seal(&mut self, slot: &mut DeviceSlot, holds: Vec<CopyHold>) -> Result<()>;

    /// Drops the holds of copies that are complete; says how many batches are still being copied.
    fn poll(&mut self) -> Result<usize>;
}

/// Placeholder until the backends land.
pub struct DeviceSlot {}
