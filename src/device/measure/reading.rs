//! A kernel that does nothing but read: what is slowed most by others who use the device's memory.

use std::sync::Arc;

use super::apparatus::{Apparatus, settle};
use super::bay::{Bay, Kept, wrong};
use super::digest::{Tally, digest_behind};
use super::overlap::Work;
use crate::device::RawStream;
use crate::error::Result;
use crate::sys::cuda::bare::{self, Mark};
use crate::sys::cuda::{DeviceMemory, Entered};

/// How many times as much as a bay's bytes it reads: more than any cache of a device holds, and enough for a kernel that takes much longer
/// than its launch.
const TIMES: usize = 4;

/// The digest of memory of its own, again and again.
pub(super) struct Reading {
    memory: Arc<DeviceMemory>,
    tally: Tally,
    /// Of the memory, by the host.
    wanted: u64,
    launched: u64,
    kept: Kept,
}

impl Reading {
    /// Of the bay's bytes, several times over.
    pub(super) fn new(apparatus: &Apparatus, bay: &Bay) -> Result<Reading> {
        let source = bay.source.bytes();
        let memory = Arc::new(DeviceMemory::new(apparatus.context(), TIMES * source.len())?);
        let mut kept = Kept::new(apparatus, vec![Arc::clone(&memory) as _, Arc::clone(&bay.source) as _]);
        kept.also(&bay.streams[0]);
        let entered = apparatus.enter()?;
        let filled = Mark::new(apparatus.context())?;
        for number in 0..TIMES {
            bare::copy(&entered, &bay.streams[0], &memory, source, number * source.len())?;
        }
        filled.record(&entered, &bay.streams[0])?;
        settle(&entered, &filled)?;
        let words = (source.len() / 8) as u64;
        let wanted =
            (0..TIMES as u64).fold(0u64, |sum, number| sum.wrapping_add(digest_behind(number * words, source)));
        Ok(Reading { memory, tally: Tally::new(apparatus, 1)?, wanted, launched: 0, kept })
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }
}

impl Work for Reading {
    fn launch(&mut self, apparatus: &Apparatus, entered: &Entered<'_>, stream: &RawStream) -> Result<()> {
        self.kept.also(stream);
        self.tally.also(stream);
        self.launched += 1;
        let range = (self.memory.pointer(), self.memory.bytes());
        apparatus.launch_digest(entered, stream, range, &self.tally, 0)
    }

    /// Each launch has added the same.
    fn check(&mut self) -> Result<()> {
        let (found, wanted) = (self.tally.read()?[0], self.wanted.wrapping_mul(self.launched));
        if found == wanted {
            return Ok(());
        }
        Err(wrong(format!("{} digests have the sum {found:#x} on the device, not {wanted:#x}", self.launched)))
    }
}
