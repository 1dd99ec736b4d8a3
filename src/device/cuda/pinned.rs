//! Host memory that the device copies from: the slab's pages, and what waits in staging memory.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::memory::Slab;
use crate::sys::cuda::{Context, Registration};
use crate::sys::map::{Chunk, Map};

/// Page-locked bytes per slot for what the host computes; more is added where a batch needs it.
const STAGING_BYTES: usize = 256 << 10;

/// Where each staged copy begins: a cache line, and what the copy engine likes.
const STAGING_ALIGNMENT: usize = 64;

/// The slab, page-locked for as long as copies may read from it.
pub(super) struct PinnedSlab {
    /// `None` where the system refused: the driver then copies through memory of its own, and makes the engine's thread wait.
    registration: Option<Registration>,
    /// What refused, if something did.
    refusal: Option<Error>,
    slab: Slab,
}

impl PinnedSlab {
    pub(super) fn new(context: &Arc<Context>, slab: &Slab) -> Result<PinnedSlab> {
        let (registration, refusal) = match Registration::new(context, slab.map()) {
            Ok(registration) => (Some(registration), None),
            // Best effort, and not a reason to refuse: the bytes are the same, only later.
            Err(error) if error.kind() == Kind::Device => (None, Some(error)),
            Err(error) => return Err(error),
        };
        Ok(PinnedSlab { registration, refusal, slab: slab.clone() })
    }

    pub(super) fn note(&self) -> Option<String> {
        let refusal = self.refusal.as_ref()?;
        Some(format!("host memory is not page-locked, so copies are slower and do not overlap: {refusal}"))
    }

    /// What copies may be made from, and whether it is page-locked.
    pub(super) fn source(&self) -> (Arc<Map>, bool) {
        (Arc::clone(self.slab.map()), self.registration.is_some())
    }
}

/// Memory that host bytes wait in until their copy is done; page-locked where the system allows it.
pub(super) struct Staging {
    registration: Option<Arc<Registration>>,
    chunk: Chunk,
    used: usize,
}

impl Staging {
    /// One for each slot, cut from one mapping, on the NUMA node `node` if there is a choice.
    pub(super) fn shared(context: &Arc<Context>, slots: usize, node: Option<u32>) -> Result<Vec<Staging>> {
        let each = |whole: usize| whole / slots / STAGING_ALIGNMENT * STAGING_ALIGNMENT;
        let mut staging = Staging::cut(context, slots * STAGING_BYTES, node, each)?;
        staging.truncate(slots);
        Ok(staging)
    }

    /// One of at least `bytes`.
    pub(super) fn single(context: &Arc<Context>, bytes: usize, node: Option<u32>) -> Result<Staging> {
        let mut staging = Staging::cut(context, bytes, node, |whole| whole)?;
        staging.pop().ok_or_else(|| Error::new(Kind::Io, "an empty mapping"))
    }

    fn cut(
        context: &Arc<Context>,
        bytes: usize,
        node: Option<u32>,
        each: impl Fn(usize) -> usize,
    ) -> Result<Vec<Staging>> {
        let map = Map::near(bytes, node)?;
        let whole = map.bytes();
        let chunks = map.into_chunks(each(whole));
        // Pageable staging works as well: the driver takes the bytes before its call returns.
        let map = chunks.first().map(Chunk::map);
        let registration = map.and_then(|map| Registration::new(context, &map).ok()).map(Arc::new);
        let staged = |chunk| Staging { registration: registration.clone(), chunk, used: 0 };
        Ok(chunks.into_iter().map(staged).collect())
    }

    pub(super) fn bytes(&self) -> usize {
        self.chunk.len()
    }

    /// As [`PinnedSlab::source`].
    pub(super) fn source(&self) -> (Arc<Map>, bool) {
        (self.chunk.map(), self.registration.is_some())
    }

    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.chunk.len() - self.used >= bytes
    }

    /// Takes `bytes` in; returns where they wait. The caller has made sure that there is room.
    pub(super) fn take(&mut self, bytes: &[u8]) -> &[u8] {
        let (from, to) = (self.used, self.used + bytes.len());
        self.used = to.next_multiple_of(STAGING_ALIGNMENT).min(self.chunk.len());
        self.chunk[from..to].copy_from_slice(bytes);
        &self.chunk[from..to]
    }

    /// Its bytes have been copied: there is room again.
    pub(super) fn empty(&mut self) {
        self.used = 0;
    }
}
