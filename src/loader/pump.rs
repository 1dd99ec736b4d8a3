//! The thread that moves reads from the schedule through the link into pages, and batches on to the copier.
//!
//! It never blocks on one thing: each turn takes what has arrived, passes on the oldest batch if it is complete, admits the
//! reads that fit, and then waits for whatever comes first.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, select};

use super::copier::Job;
use crate::error::{Error, Kind, Result};
use crate::fetch::{Completion, Fetch, FetchRead};
use crate::memory::{CopyHold, Landed, Landing, Slab};
use crate::schedule::{BatchPlan, Read, Schedule, Step};
use crate::telemetry::{Counter, Telemetry};

/// Bounds on what is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) requests: usize,
    pub(super) bytes: u64,
}

/// Batches that are listed ahead of the oldest one not yet passed on: metadata only.
const BATCHES_LISTED_MAX: usize = 1024;
/// Reads that are listed and not yet admitted.
const READS_LISTED_MAX: usize = 256;
/// How often a pump that nothing happens to looks around.
const QUIET: Duration = Duration::from_millis(500);

pub(super) struct Pump {
    pub(super) schedule: Schedule,
    pub(super) slab: Slab,
    pub(super) fetch: Fetch,
    pub(super) limits: Limits,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) completions: Receiver<Completion>,
    pub(super) jobs: Sender<Job>,
    /// Pages came back, or the copier took a job.
    pub(super) wake: Receiver<()>,
    /// Disconnected when the loader stops.
    pub(super) stop: Receiver<()>,
}

/// What the pump keeps track of.
#[derive(Default)]
struct Board {
    reads: BTreeMap<u64, Entry>,
    /// Listed, not yet admitted, oldest first.
    listed: VecDeque<u64>,
    items: VecDeque<Item>,
    in_flight: usize,
    in_flight_bytes: u64,
    /// The run's first batch has been passed on.
    first_passed: bool,
    exhausted: bool,
}

struct Entry {
    read: Read,
    /// Pieces still to be copied out of it.
    left: u32,
    state: ReadState,
}

enum ReadState {
    Listed,
    InFlight,
    Landed(Landed),
}

enum Item {
    /// A batch, and how many of its pieces were found landed so far.
    Batch(BatchPlan, usize),
    EpochEnd(u64),
}

/// Why no further read was admitted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// All that is listed is in flight.
    Nothing,
    /// Enough is in flight.
    Link,
    /// No page is free.
    Pages,
}

impl Pump {
    /// Until the schedule ends, a failure, or the stop.
    pub(super) fn run(mut self) {
        let mut board = Board::default();
        if let Err(error) = self.turn_until_done(&mut board) {
            self.pass_on_last(Job::Failed(error));
        }
    }

    fn turn_until_done(&mut self, board: &mut Board) -> Result<()> {
        loop {
            while let Ok(completion) = self.completions.try_recv() {
                board.land(completion)?;
            }
            self.list(board)?;
            self.pass_on(board);
            self.list(board)?;
            let held = self.admit(board)?;
            if board.exhausted && board.items.is_empty() {
                return Ok(());
            }
            let waited = Instant::now();
            select! {
                recv(self.stop) -> _ => return Ok(()),
                recv(self.wake) -> _ => {}
                recv(self.completions) -> completion => {
                    let gone = |_| Error::new(Kind::Io, "the reactors have stopped");
                    board.land(completion.map_err(gone)?)?;
                }
                default(QUIET) => {}
            }
            let counter = match held {
                Held::Nothing => continue,
                Held::Link => Counter::LinkWaitNs,
                Held::Pages => Counter::PageWaitNs,
            };
            self.telemetry.count(counter, waited.elapsed().as_nanos() as u64);
        }
    }

    /// Takes steps from the schedule until enough is known of the future.
    fn list(&mut self, board: &mut Board) -> Result<()> {
        while !board.exhausted && board.listed.len() < READS_LISTED_MAX && board.items.len() < BATCHES_LISTED_MAX {
            match self.schedule.advance()? {
                None => board.exhausted = true,
                Some(Step::Read(read)) => {
                    board.listed.push_back(read.id);
                    board.reads.insert(read.id, Entry { left: read.uses, read, state: ReadState::Listed });
                }
                Some(Step::Batch(plan)) => board.items.push_back(Item::Batch(plan, 0)),
                Some(Step::EpochEnd(epoch)) => board.items.push_back(Item::EpochEnd(epoch)),
            }
        }
        Ok(())
    }

    /// Passes complete batches on, oldest first, as long as the copier takes them.
    fn pass_on(&mut self, board: &mut Board) {
        while !self.jobs.is_full() && board.front_is_complete() {
            let job = match board.items.pop_front() {
                Some(Item::Batch(plan, _)) => {
                    board.first_passed = true;
                    let reads = board.hold(&plan);
                    Job::Assemble { plan, reads }
                }
                Some(Item::EpochEnd(epoch)) => {
                    board.forget_epoch(epoch);
                    Job::EpochEnd(epoch)
                }
                None => return,
            };
            // This thread alone sends, and there was room; a copier that has gone has said why to the consumer.
            if let Err(TrySendError::Disconnected(_)) = self.jobs.try_send(job) {
                board.items.clear();
                board.exhausted = true;
            }
        }
    }

    /// Starts reads in the order of need while they fit.
    fn admit(&mut self, board: &mut Board) -> Result<Held> {
        while let Some(id) = board.listed.front().copied() {
            let Some(entry) = board.reads.get(&id) else {
                board.listed.pop_front();
                continue;
            };
            let (read, len) = (entry.read, entry.read.extent.len);
            // What the first batch needs gets the link to itself.
            let waits_for_first = !board.first_passed && read.first_batch > 0 && board.in_flight > 0;
            let full = board.in_flight >= self.limits.requests || board.in_flight_bytes + len > self.limits.bytes;
            if waits_for_first || (full && board.in_flight > 0) {
                return Ok(Held::Link);
            }
            let Some(pages) = self.slab.take(read.pages) else {
                if read.pages > self.slab.pages() {
                    return Err(too_large(&read, &self.slab));
                }
                // Nothing in flight, nothing being copied, nothing complete: only resident reads hold pages.
                let stuck = board.in_flight == 0 && self.jobs.is_empty() && self.slab.usage().copying == 0;
                if stuck && board.make_room_for_oldest() {
                    self.telemetry.count(Counter::Rereads, 1);
                    continue;
                }
                return Ok(Held::Pages);
            };
            board.listed.pop_front();
            board.start(id, len);
            let landing = Landing::new(pages, len as usize);
            self.fetch.submit(FetchRead { id, shard: read.extent.shard, start: read.extent.start, landing })?;
        }
        Ok(Held::Nothing)
    }

    fn pass_on_last(&self, job: Job) {
        select! {
            send(self.jobs, job) -> _ => {}
            recv(self.stop) -> _ => {}
        }
    }
}

impl Board {
    fn start(&mut self, id: u64, len: u64) {
        self.in_flight += 1;
        self.in_flight_bytes += len;
        if let Some(entry) = self.reads.get_mut(&id) {
            entry.state = ReadState::InFlight;
        }
    }

    fn land(&mut self, completion: Completion) -> Result<()> {
        let landed = completion.result?;
        self.in_flight -= 1;
        self.in_flight_bytes -= landed.len() as u64;
        // Without an entry its epoch has ended: dropping the bytes frees their pages.
        if let Some(entry) = self.reads.get_mut(&completion.id) {
            entry.state = ReadState::Landed(landed);
        }
        Ok(())
    }

    fn front_is_complete(&mut self) -> bool {
        match self.items.front_mut() {
            None => false,
            Some(Item::EpochEnd(_)) => true,
            Some(Item::Batch(plan, found)) => {
                let landed = |piece: &crate::schedule::Piece| {
                    matches!(self.reads.get(&piece.read), Some(Entry { state: ReadState::Landed(_), .. }))
                };
                *found += plan.pieces[*found..].iter().take_while(|piece| landed(piece)).count();
                *found == plan.pieces.len()
            }
        }
    }

    /// Holds the pages of a complete batch; reads whose last piece this is are let go of.
    fn hold(&mut self, plan: &BatchPlan) -> HashMap<u64, CopyHold> {
        let mut holds = HashMap::new();
        for piece in &plan.pieces {
            let Some(entry) = self.reads.get_mut(&piece.read) else { continue };
            if let ReadState::Landed(landed) = &entry.state {
                holds.entry(piece.read).or_insert_with(|| landed.hold());
            }
            entry.left -= 1;
            if entry.left == 0 {
                self.reads.remove(&piece.read);
            }
        }
        holds
    }

    /// Reads of an epoch that has ended, kept for samples of a last batch that was dropped.
    fn forget_epoch(&mut self, epoch: u64) {
        self.reads.retain(|_, entry| entry.read.epoch != epoch);
    }

    /// Puts what the oldest batch lacks in front, and frees the newest resident read that it does not use, to be read again.
    /// False if there is none.
    ///
    /// Needed only where a window's pages were counted too low: fragments of the cold start. Some bytes are then read twice,
    /// but the order stays what it was, and each turn brings the oldest batch nearer to its end.
    fn make_room_for_oldest(&mut self) -> bool {
        let Some(Item::Batch(plan, _)) = self.items.front() else { return false };
        let oldest: BTreeSet<u64> = plan.pieces.iter().map(|piece| piece.read).collect();
        let resident = |entry: &Entry| matches!(entry.state, ReadState::Landed(_));
        let newest = self.reads.iter_mut().rev().find(|(id, entry)| resident(entry) && !oldest.contains(id));
        let Some((id, entry)) = newest else { return false };
        entry.state = ReadState::Listed;
        self.listed.push_back(*id);
        // The oldest batch's first, then by need.
        self.listed.make_contiguous().sort_unstable_by_key(|id| (!oldest.contains(id), *id));
        for item in &mut self.items {
            if let Item::Batch(_, found) = item {
                *found = 0;
            }
        }
        true
    }
}

fn too_large(read: &Read, slab: &Slab) -> Error {
    Error::new(
        Kind::Config,
        format!("a read of {} bytes takes {} pages, host memory has {}", read.extent.len, read.pages, slab.pages()),
    )
    .advice("raise host_memory")
}
