//! Fields that are read a second time: on a connection of their own, into memory of their own.
//!
//! What is wrong with a field may have been done to it on the way, or on the connection, or in the read that brought it with
//! others. So the field alone is asked for again, and what comes is held against the index like the first time. It is rare, and waits for nobody's
//! pages: the batch that it belongs to already holds some, and the window the rest.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};

use super::run::Parts;
use crate::dataset::Extent;
use crate::error::{Error, Kind, Result};
use crate::fetch::{Completion, Fetch, FetchRead, for_reactor};
use crate::memory::{Landed, Landing, Slab};

/// Reads in flight.
const IN_FLIGHT: usize = 16;
/// No page is smaller; many fields are.
const PAGE_BYTES: usize = 4096;

/// Reactor and connections for what is read again; made when the first field is.
pub(super) struct Repair {
    fetch: Fetch,
    completions: Receiver<Completion>,
    alignment: usize,
}

impl Repair {
    /// # Errors
    /// `Io` when the reactor cannot be started.
    pub(super) fn start(home: &Parts) -> Result<Self> {
        let (done, completions) = bounded(IN_FLIGHT);
        let sources = for_reactor(&home.sources);
        let alignment = sources.iter().map(|source| source.store.appetite().alignment).max().unwrap_or(1);
        let fetch = Fetch::start(sources, home.policy, 1, IN_FLIGHT, 0, Arc::clone(&home.telemetry), done)?;
        Ok(Repair { fetch, completions, alignment })
    }

    /// Reads each extent: its bytes, or why not. Takes memory for all of them: at most a batch's, until their copies are done.
    ///
    /// `pause` is called between looks and says how long the next one may last. `None` when `stop` closes.
    ///
    /// # Errors
    /// `Io` when the memory is not to be had, or the reactor has stopped; those of `pause`.
    pub(super) fn read(
        &self,
        extents: &[Extent],
        stop: &Receiver<()>,
        mut pause: impl FnMut() -> Result<Duration>,
    ) -> Result<Option<Vec<Result<Landed>>>> {
        let page_bytes = PAGE_BYTES.max(self.alignment.next_power_of_two());
        let pages = |extent: &Extent| (extent.len as usize + 2 * self.alignment).div_ceil(page_bytes);
        let slab = Slab::new(extents.iter().map(pages).sum::<usize>() * page_bytes, page_bytes)?;
        let mut answers: Vec<Option<Result<Landed>>> = extents.iter().map(|_| None).collect();
        let (mut asked, mut answered) = (0, 0);
        while answered < extents.len() {
            while asked < extents.len() && asked - answered < IN_FLIGHT {
                let extent = &extents[asked];
                let landing = Landing::new(slab.take(pages(extent)).ok_or_else(too_few)?, extent.len as usize);
                let (id, shard) = (asked as u64, extent.shard);
                self.fetch.submit(FetchRead { id, shard, start: extent.start, landing })?;
                asked += 1;
            }
            let wait = pause()?;
            select! {
                recv(stop) -> _ => return Ok(None),
                recv(self.completions) -> completion => {
                    let completion = completion.map_err(|_| Error::new(Kind::Io, "the reactor has stopped"))?;
                    if let Some(answer) = answers.get_mut(completion.id as usize) {
                        *answer = Some(completion.result);
                        answered += 1;
                    }
                }
                default(wait) => {}
            }
        }
        Ok(Some(answers.into_iter().flatten().collect()))
    }
}

fn too_few() -> Error {
    Error::new(Kind::Io, "fewer pages than were counted for fields that are read again")
}
