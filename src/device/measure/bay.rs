//! Host memory to copy from, device memory to copy to, and who may still be using them.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apparatus::{Apparatus, settle_within};
use super::digest::{digest, mixed};
use crate::device::RawStream;
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::bare::{self, PinnedMemory};
use crate::sys::cuda::{self, Context, Copies, DeviceMemory, Entered, Registration, Together};
use crate::sys::map::{Chunk, Map};

/// How long teardown waits for the device before it gives memory up that the device may still use.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(1);

/// Memory that work in streams uses: freed when they are idle; given up where they do not become so.
pub(super) struct Kept {
    memory: Vec<Arc<dyn Any + Send + Sync>>,
    streams: Vec<RawStream>,
    context: Arc<Context>,
}

impl Kept {
    pub(super) fn new(apparatus: &Apparatus, memory: Vec<Arc<dyn Any + Send + Sync>>) -> Kept {
        Kept { memory, streams: Vec::new(), context: Arc::clone(apparatus.context()) }
    }

    /// `stream` uses it from now on.
    pub(super) fn also(&mut self, stream: &RawStream) {
        if !self.streams.contains(stream) {
            self.streams.push(stream.clone());
        }
    }

    /// Waits until the streams are idle, at most a minute.
    pub(super) fn settle(&self) -> Result<()> {
        let entered = self.context.enter()?;
        settle_within(Duration::from_secs(60), || self.is_idle(&entered))
    }

    fn is_idle(&self, entered: &Entered<'_>) -> Result<bool> {
        for stream in &self.streams {
            if !cuda::stream_idle(entered, stream)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let deadline = Instant::now() + TEARDOWN_PATIENCE;
        let idle = self.context.enter().is_ok_and(|entered| {
            // A device that fails has stopped, and uses nothing any more.
            cuda::wait_until(deadline, || self.is_idle(&entered)).unwrap_or(true)
        });
        if !idle {
            std::mem::forget(std::mem::take(&mut self.memory));
        }
    }
}

/// Page-locked host memory, by its origin.
pub(super) enum Source {
    /// As a slab is: huge pages of the device's NUMA node, registered.
    Slab { _registration: Registration, chunk: Chunk },
    /// As the driver gives it.
    Driver(PinnedMemory),
}

impl Source {
    /// `bytes` as a slab is made, filled with words that differ.
    pub(super) fn slab(apparatus: &Apparatus, bytes: usize) -> Result<Source> {
        let chunk = Map::near(bytes, apparatus.host_node())?.into_chunks(bytes).into_iter().next();
        let mut chunk = chunk.ok_or_else(|| Error::new(Kind::Io, "an empty mapping"))?;
        let registration = Registration::new(apparatus.context(), &chunk.map())?;
        fill(&mut chunk, 1);
        Ok(Source::Slab { _registration: registration, chunk })
    }

    /// `bytes` of the driver's.
    pub(super) fn driver(apparatus: &Apparatus, bytes: usize) -> Result<Source> {
        let mut memory = PinnedMemory::new(apparatus.context(), bytes)?;
        fill(&mut memory, 2);
        Ok(Source::Driver(memory))
    }

    /// The mapping, if it is one of ours.
    pub(super) fn map(&self) -> Option<Arc<Map>> {
        match self {
            Source::Slab { chunk, .. } => Some(chunk.map()),
            Source::Driver(_) => None,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Source::Slab { chunk, .. } => chunk,
            Source::Driver(memory) => memory,
        }
    }
}

/// Words that tell their position, different for each `salt`.
pub(super) fn fill(bytes: &mut [u8], salt: u64) {
    for (position, word) in (0u64..).zip(bytes.chunks_mut(8)) {
        let value = mixed(position + (salt << 48)).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

/// A source and a destination of the same size, and the streams between them.
pub(super) struct Bay {
    pub(super) source: Arc<Source>,
    pub(super) destination: Arc<DeviceMemory>,
    pub(super) streams: Vec<RawStream>,
    wanted: u64,
    kept: Kept,
}

impl Bay {
    pub(super) fn new(apparatus: &Apparatus, source: Source, streams: usize) -> Result<Bay> {
        let source = Arc::new(source);
        let destination = Arc::new(DeviceMemory::new(apparatus.context(), source.bytes().len())?);
        let streams = (0..streams).map(|_| apparatus.stream()).collect::<Result<Vec<_>>>()?;
        let mut kept = Kept::new(apparatus, vec![Arc::clone(&source) as _, Arc::clone(&destination) as _]);
        streams.iter().for_each(|stream| kept.also(stream));
        let wanted = digest(source.bytes());
        Ok(Bay { source, destination, streams, wanted, kept })
    }

    pub(super) fn len(&self) -> usize {
        self.source.bytes().len()
    }

    /// Makes all of the destination zero.
    pub(super) fn clear(&self, apparatus: &Apparatus) -> Result<()> {
        const ZEROS: usize = 4 << 20;
        let zeros = vec![0; ZEROS.min(self.len())];
        apparatus.timed(&self.streams, |entered| {
            for to in (0..self.len()).step_by(zeros.len()) {
                let piece = &zeros[..zeros.len().min(self.len() - to)];
                bare::copy(entered, &self.streams[0], &self.destination, piece, to)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Enqueues one copy of everything, `size` bytes at a time, the first `streams` streams taking turns.
    pub(super) fn copy_all(&self, entered: &Entered<'_>, size: usize, streams: usize) -> Result<()> {
        let chunks = self.source.bytes().chunks(size).zip((0..).step_by(size));
        for (number, (piece, to)) in chunks.enumerate() {
            bare::copy(entered, &self.streams[number % streams], &self.destination, piece, to)?;
        }
        Ok(())
    }

    /// As [`Bay::copy_all`], by two calls: every other piece, so that no two of a call are one, and then the rest.
    pub(super) fn copy_all_together(
        &self,
        entered: &Entered<'_>,
        size: usize,
        copies: &mut Copies,
        together: &mut Together,
    ) -> Result<()> {
        for first in 0..2 {
            for (piece, to) in self.source.bytes().chunks(size).zip((0..).step_by(size)).skip(first).step_by(2) {
                copies.add(piece, to)?;
            }
            self.destination.issue(entered, &self.streams[0], copies, together)?;
        }
        Ok(())
    }

    /// Whether the destination holds what the source does, by a digest on the device, after all that was enqueued.
    pub(super) fn check(&self, apparatus: &Apparatus) -> Result<()> {
        self.kept.settle()?;
        let found = apparatus.digest_of(&self.streams[0], &self.destination, self.len())?;
        if found == self.wanted {
            return Ok(());
        }
        Err(wrong(format!("{} bytes on the device have the digest {found:#x}, not {:#x}", self.len(), self.wanted)))
    }
}

/// The error for bytes or numbers that are not what they must be.
pub(super) fn wrong(context: String) -> Error {
    Error::new(Kind::Corrupt, context).advice("test the device and the memory of this machine; then tell us")
}
