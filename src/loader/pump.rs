//! The thread that moves reads from the schedule through the link into pages, and batches on to the copier.
//!
//! It never blocks on one thing: each turn takes what has arrived, passes on the oldest batch if it is complete, admits the
//! reads that fit, and then waits for whatever comes first.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, select};

use super::admission::{Admission, Held, Limits};
use super::copier::Job;
use super::quarantine::OnError;
use super::rows::{Holds, Spent};
use crate::error::{Error, Kind, Result};
use crate::fetch::{Completion, Fetch, FetchRead};
use crate::memory::{Landed, Landing, Slab};
use crate::schedule::{BatchPlan, Read, Schedule, Step};
use crate::telemetry::{Counter, Depth, Stage, Telemetry};

/// Batches that are listed ahead of the oldest one not yet passed on: metadata only.
const BATCHES_LISTED_MAX: usize = 1024;
/// Bytes of memory that their plans take, whatever a batch's rows and fields: some 80 batches of 4,096 rows of three fields.
const PLAN_BYTES_MAX: usize = 32 << 20;
/// Reads that are listed and not yet admitted.
const READS_LISTED_MAX: usize = 256;
/// Empty lists of holds that are kept: those of a batch that waits for the copier, and of the one being copied.
const HOLDS_KEPT: usize = 2;
/// How often a pump that nothing happens to looks around.
const QUIET: Duration = Duration::from_millis(500);
/// And at the least, where a rate holds reads back.
const TURN_MIN: Duration = Duration::from_millis(1);

pub(super) struct Pump {
    pub(super) schedule: Schedule,
    pub(super) on_error: OnError,
    pub(super) slab: Slab,
    pub(super) fetch: Fetch,
    pub(super) limits: Limits,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) completions: Receiver<Completion>,
    pub(super) jobs: Sender<Job>,
    /// Lists of batches that have been copied.
    pub(super) spent: Receiver<Spent>,
    /// Pages came back, or the copier took a job.
    pub(super) wake: Receiver<()>,
    /// Disconnected when the loader stops.
    pub(super) stop: Receiver<()>,
}

/// What the pump keeps track of.
struct Board {
    reads: BTreeMap<u64, Entry>,
    /// Listed, not yet admitted, oldest first.
    listed: VecDeque<u64>,
    items: VecDeque<Item>,
    /// Bytes of memory of the plans in `items`.
    plan_bytes: usize,
    on_error: OnError,
    in_flight: HashMap<u64, UnderWay>,
    /// Empty ones, for the batches that come next.
    spare_holds: Vec<Holds>,
    admission: Admission,
    exhausted: bool,
}

/// A read in flight, and its bytes that have landed.
struct UnderWay {
    read: Read,
    progress: Arc<AtomicU64>,
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
    /// Taken when it is the oldest batch's turn: what comes before it can still be delivered.
    Failed(Option<Error>),
}

enum Item {
    /// A batch, and how many of its pieces were found landed so far.
    Batch(BatchPlan, usize),
    EpochEnd(u64),
}

impl Pump {
    /// Until the schedule ends, a failure, or the stop.
    pub(super) fn run(mut self) {
        let mut board = Board::new(self.limits, self.on_error);
        let mut watch = Watch::new(&self.telemetry);
        if let Err(error) = self.turn_until_done(&mut board, &mut watch) {
            self.pass_on_last(Job::Failed(error));
        }
    }

    fn turn_until_done(&mut self, board: &mut Board, watch: &mut Watch) -> Result<()> {
        loop {
            while let Ok(completion) = self.completions.try_recv() {
                board.land(completion);
            }
            self.list(board)?;
            self.pass_on(board)?;
            self.list(board)?;
            watch.refusals(board, &self.telemetry);
            let held = self.admit(board, watch)?;
            watch.depth(board, held, &self.telemetry);
            if board.exhausted && board.items.is_empty() {
                return Ok(());
            }
            let waited = Instant::now();
            select! {
                recv(self.stop) -> _ => return Ok(()),
                recv(self.wake) -> _ => {}
                recv(self.completions) -> completion => {
                    let gone = |_| Error::new(Kind::Io, "the reactors have stopped");
                    board.land(completion.map_err(gone)?);
                }
                default(watch.patience(held)) => {}
            }
            let counter = match held {
                Held::Nothing => continue,
                Held::Bytes | Held::Requests | Held::FirstBatch => Counter::LinkWaitNs,
                Held::Rate(_) => Counter::RateWaitNs,
                Held::Pages => Counter::PageWaitNs,
            };
            self.telemetry.count(counter, waited.elapsed().as_nanos() as u64);
        }
    }

    /// Takes steps from the schedule until enough is known of the future: at least all reads of one batch.
    fn list(&mut self, board: &mut Board) -> Result<()> {
        for Spent { plan, reads } in self.spent.try_iter() {
            self.schedule.recycle(plan);
            board.keep_holds(reads);
        }
        while !board.exhausted && !board.knows_enough() {
            match self.schedule.advance()? {
                None => board.exhausted = true,
                Some(Step::Read(read)) => {
                    board.admission.listed(&read);
                    board.listed.push_back(read.id);
                    board.reads.insert(read.id, Entry { left: read.uses, read, state: ReadState::Listed });
                }
                Some(Step::Batch(plan)) => {
                    board.plan_bytes += plan.memory_bytes();
                    board.items.push_back(Item::Batch(plan, 0));
                }
                Some(Step::EpochEnd(epoch)) => board.items.push_back(Item::EpochEnd(epoch)),
            }
        }
        Ok(())
    }

    /// Passes complete batches on, oldest first, as long as the copier takes them.
    ///
    /// # Errors
    /// That of a read which the oldest batch needs.
    fn pass_on(&mut self, board: &mut Board) -> Result<()> {
        while !self.jobs.is_full() && board.front_is_complete()? {
            let job = match board.items.pop_front() {
                Some(Item::Batch(plan, _)) => {
                    board.plan_bytes -= plan.memory_bytes();
                    board.admission.batch_complete(self.telemetry.waited(Stage::Consumer));
                    let reads = board.hold(&plan);
                    Job::Assemble { plan, reads }
                }
                Some(Item::EpochEnd(epoch)) => {
                    board.forget_epoch(epoch);
                    Job::EpochEnd(epoch)
                }
                None => break,
            };
            // This thread alone sends, and there was room; a copier that has gone has said why to the consumer.
            if let Err(TrySendError::Disconnected(_)) = self.jobs.try_send(job) {
                board.items.clear();
                board.exhausted = true;
            }
        }
        Ok(())
    }

    /// Starts reads in the order of need while they fit.
    fn admit(&mut self, board: &mut Board, watch: &Watch) -> Result<Held> {
        let now = watch.now();
        while let Some(id) = board.listed.front().copied() {
            let Some(entry) = board.reads.get(&id) else {
                board.listed.pop_front();
                continue;
            };
            let read = entry.read;
            if let Some(held) = board.admission.holds(&read, now) {
                let lacks_memory = held == Held::Bytes && board.admission.lacks_memory(&read, now);
                return Ok(if lacks_memory { Held::Pages } else { held });
            }
            let Some(pages) = self.slab.take(read.pages) else {
                // Pages that neither are free nor hold what has landed are on their way back: being copied, or with the kernel.
                let free = self.slab.usage().free;
                let returning = free + board.resident_pages() < self.slab.pages();
                // And a complete batch waits for the consumer alone.
                if board.admission.in_flight() > 0 || returning || board.front_is_complete()? {
                    return Ok(Held::Pages);
                }
                if let Some(rereads) = board.make_room_for_oldest() {
                    self.telemetry.count(Counter::Rereads, rereads);
                    continue;
                }
                // They may have come back just now.
                if free >= read.pages {
                    continue;
                }
                return Err(board.too_small(&self.slab));
            };
            board.listed.pop_front();
            let landing = Landing::new(pages, read.extent.len as usize);
            board.start(read, landing.progress());
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

/// The pump's clock, and what it has seen so far of what others count.
struct Watch {
    began: Instant,
    throttled: u64,
    timed_out: u64,
}

impl Watch {
    fn new(telemetry: &Telemetry) -> Self {
        let (throttled, timed_out) = (telemetry.counter(Counter::Throttled), telemetry.counter(Counter::TimedOut));
        Watch { began: Instant::now(), throttled, timed_out }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Refusals are heard of at once, not when the reads that met them have landed.
    fn refusals(&mut self, board: &mut Board, telemetry: &Telemetry) {
        let (throttled, timed_out) = (telemetry.counter(Counter::Throttled), telemetry.counter(Counter::TimedOut));
        if (throttled, timed_out) != (self.throttled, self.timed_out) {
            board.admission.refused(self.now(), throttled - self.throttled, timed_out - self.timed_out);
            (self.throttled, self.timed_out) = (throttled, timed_out);
        }
    }

    /// Lets the depth follow what the link does.
    fn depth(&self, board: &mut Board, held: Held, telemetry: &Telemetry) {
        let now = self.now();
        board.admission.turned(now, held);
        if now < board.admission.due() {
            return;
        }
        board.admission.measure(now, board.partly_landed());
        let learnt = board.admission.learnt();
        telemetry.depth(Depth {
            bytes: board.admission.bytes(),
            requests: board.admission.requests(now) as u64,
            goodput: learnt.goodput,
            first_byte_s: learnt.first_byte.as_secs_f64(),
        });
    }

    /// How long the pump may sleep if nothing happens.
    fn patience(&self, held: Held) -> Duration {
        match held {
            Held::Rate(at) => at.saturating_sub(self.now()).clamp(TURN_MIN, QUIET),
            _ => QUIET,
        }
    }
}

impl Board {
    fn new(limits: Limits, on_error: OnError) -> Self {
        Board {
            reads: BTreeMap::new(),
            listed: VecDeque::new(),
            items: VecDeque::new(),
            plan_bytes: 0,
            on_error,
            in_flight: HashMap::new(),
            spare_holds: Vec::new(),
            admission: Admission::new(limits),
            exhausted: false,
        }
    }

    /// Whether no more is to be listed for now.
    fn knows_enough(&self) -> bool {
        let full = self.listed.len() >= READS_LISTED_MAX
            || self.items.len() >= BATCHES_LISTED_MAX
            || self.plan_bytes >= PLAN_BYTES_MAX;
        full && !self.items.is_empty()
    }

    fn start(&mut self, read: Read, progress: Arc<AtomicU64>) {
        self.in_flight.insert(read.id, UnderWay { read, progress });
        self.admission.started(&read);
        if let Some(entry) = self.reads.get_mut(&read.id) {
            entry.state = ReadState::InFlight;
        }
    }

    fn land(&mut self, completion: Completion) {
        let Completion { id, result, observed } = completion;
        if let Some(UnderWay { read, .. }) = self.in_flight.remove(&id) {
            self.admission.ended(&read, &observed);
        }
        // Without an entry its epoch has ended: dropping the bytes frees their pages.
        if let Some(entry) = self.reads.get_mut(&id) {
            entry.state = match result {
                Ok(landed) => ReadState::Landed(landed),
                Err(error) => ReadState::Failed(Some(error)),
            };
        }
    }

    fn front_is_complete(&mut self) -> Result<bool> {
        let Some(Item::Batch(plan, found)) = self.items.front_mut() else { return Ok(!self.items.is_empty()) };
        while let Some(piece) = plan.pieces.get(*found) {
            match self.reads.get_mut(&piece.read).map(|entry| &mut entry.state) {
                Some(ReadState::Landed(_)) => *found += 1,
                // The copier asks for what the batch needs of it, and decides.
                Some(ReadState::Failed(Some(error))) if self.on_error.skips(error) => *found += 1,
                Some(ReadState::Failed(error)) => {
                    return Err(error.take().unwrap_or_else(|| Error::new(Kind::Io, "a read failed before")));
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Bytes of the reads in flight that have landed.
    fn partly_landed(&self) -> u64 {
        self.in_flight.values().map(|under_way| under_way.progress.load(Ordering::Relaxed)).sum()
    }

    fn resident_pages(&self) -> usize {
        let landed = |entry: &Entry| if let ReadState::Landed(landed) = &entry.state { landed.page_count() } else { 0 };
        self.reads.values().map(landed).sum()
    }

    /// Holds the pages of a complete batch; reads whose last piece this is are let go of.
    fn hold(&mut self, plan: &BatchPlan) -> Holds {
        let mut holds = self.spare_holds.pop().unwrap_or_default();
        for piece in &plan.pieces {
            let Some(entry) = self.reads.get_mut(&piece.read) else { continue };
            if let ReadState::Landed(landed) = &entry.state {
                holds.add(piece.read, || landed.hold());
            }
            entry.left -= 1;
            if entry.left == 0 {
                self.reads.remove(&piece.read);
            }
        }
        holds
    }

    /// Keeps as many as there are batches between here and the copier.
    fn keep_holds(&mut self, holds: Holds) {
        if self.spare_holds.len() < HOLDS_KEPT {
            self.spare_holds.push(holds);
        }
    }

    /// Reads of an epoch that has ended, kept for samples of a last batch that was dropped.
    fn forget_epoch(&mut self, epoch: u64) {
        self.reads.retain(|_, entry| entry.read.epoch != epoch);
    }

    /// Puts what the oldest batch lacks in front; where it is there already, frees the newest resident read that this batch does
    /// not use, to be read again. Gives the number of reads freed; `None` if nothing helps.
    ///
    /// Needed only where the window's pages hold less than they were counted for: fragments of the cold start, each rounded up to
    /// whole pages. Some bytes are then read twice, but the order stays what it was, and each turn brings the oldest batch nearer
    /// to its end.
    fn make_room_for_oldest(&mut self) -> Option<u64> {
        let Some(Item::Batch(plan, _)) = self.items.front() else { return None };
        let oldest: BTreeSet<u64> = plan.pieces.iter().map(|piece| piece.read).collect();
        if self.listed.front().is_none_or(|first| !oldest.contains(first)) {
            let lacking = self.listed.iter().any(|id| oldest.contains(id));
            self.list_first(&oldest);
            return lacking.then_some(0);
        }
        let resident = |entry: &Entry| matches!(entry.state, ReadState::Landed(_));
        let newest = self.reads.iter_mut().rev().find(|(id, entry)| resident(entry) && !oldest.contains(id));
        let (id, entry) = newest?;
        entry.state = ReadState::Listed;
        self.listed.push_back(*id);
        for item in &mut self.items {
            if let Item::Batch(_, found) = item {
                *found = 0;
            }
        }
        self.list_first(&oldest);
        Some(1)
    }

    /// The oldest batch's reads first, then by need.
    fn list_first(&mut self, oldest: &BTreeSet<u64>) {
        self.listed.make_contiguous().sort_unstable_by_key(|id| (!oldest.contains(id), *id));
    }

    /// The error when even the oldest batch alone finds no room.
    fn too_small(&self, slab: &Slab) -> Error {
        let mut reads = BTreeSet::new();
        if let Some(Item::Batch(plan, _)) = self.items.front() {
            reads.extend(plan.pieces.iter().map(|piece| piece.read));
        }
        let pages: usize = reads.iter().filter_map(|id| self.reads.get(id)).map(|entry| entry.read.pages).sum();
        let what = format!("a batch of {} reads takes {pages} pages, host memory has {}", reads.len(), slab.pages());
        Error::new(Kind::Config, what).advice("raise host_memory, or lower batch_size")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Piece;

    #[test]
    fn what_is_listed_has_a_bound_in_bytes() {
        let limits =
            Limits { requests: 1, requests_max: 1, bytes: 1, bytes_by_memory: false, follows: false, max_rate: None };
        let mut board = Board::new(limits, OnError::Fail);
        // 4,096 rows of eight fields.
        let cells = 8 * 4096;
        while !board.knows_enough() {
            let (rows, ends) = (vec![0; 4096], vec![0; cells]);
            let pieces = vec![Piece { read: 0, at: 0, len: 1 }; cells];
            let plan = BatchPlan { sequence: 0, epoch: 0, batch: 0, rows, pieces, ends, left_out: 0 };
            board.plan_bytes += plan.memory_bytes();
            board.items.push_back(Item::Batch(plan, 0));
        }
        assert_eq!((board.items.len(), board.plan_bytes / 1_000_000), (36, 34));
        // One is always known, however large.
        board.items.clear();
        assert!(!board.knows_enough());
    }
}
