//! The walk along the order: batch after batch, the reads it needs first.
//!
//! A window makes the first batches touch many blocks, and the next ones some more at once. Reading those whole would put a
//! window's worth of bytes in front of the second batch. So at the start reading ahead has an allowance: with each batch that is
//! consumed it grows by a quarter of the batch's bytes more than the batch itself costs. A block is read whole at its first touch if the
//! allowance covers it; else its samples are read one by one as batches need them, and its rest follows, oldest block first, as the
//! allowance comes in. A link that carries the demand and a quarter more is thus never behind. The cold start is over when no rest is
//! left and the allowance has grown to four batches: from then on blocks are read whole, and the lead that was won hides their unevenness.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::Shape;
use super::cover::Cover;
use crate::dataset::{Dataset, Extent, FieldId, SampleId};
use crate::error::{Error, Kind, Result};
use crate::order::{LaneCursor, Order, Partition};

/// Batches at the start that allow nothing to be read ahead: the lead that the link wins over the consumer pays for the round trips
/// and the slow start of the connections.
const HEAD_START_BATCHES: u64 = 4;
/// The most that is read per byte consumed during the cold start.
const ALLOWANCE_PER_BYTE: f64 = 1.25;
/// Where batches are small, this much beyond them at least: 8 ms of a link of 1 Gbit/s.
const ALLOWANCE_MIN: u64 = 1 << 20;

/// What happens next.
#[derive(Debug)]
pub enum Step {
    /// Bytes to fetch.
    Read(Read),
    /// A batch whose reads have all been listed.
    Batch(BatchPlan),
    /// No batch of this epoch follows; reads of it that nothing used (a last batch that was dropped) can go.
    EpochEnd(u64),
}

/// A byte range to be fetched in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Rising in the order of need.
    pub id: u64,
    /// Where the bytes lie.
    pub extent: Extent,
    /// Pages it takes.
    pub pages: usize,
    /// Pieces that will be cut from it: when all have been copied, its pages are free.
    pub uses: u32,
    /// Epoch it is read for.
    pub epoch: u64,
    /// Number of the first batch that can need it, counted over the whole run from 0.
    pub first_batch: u64,
}

/// A part of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Read.
    pub read: u64,
    /// Offset in it.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

/// A batch of this rank.
#[derive(Debug, Default)]
pub struct BatchPlan {
    /// Number since the start of the run, from 0.
    pub sequence: u64,
    /// Epoch.
    pub epoch: u64,
    /// Number in the epoch.
    pub batch: u64,
    /// Samples in order.
    pub rows: Vec<SampleId>,
    /// Pieces of all fields of all rows, row after row, field after field.
    pub pieces: Vec<Piece>,
    /// `pieces[ends[i - 1]..ends[i]]` belong to field `i % fields` of row `i / fields`.
    pub ends: Vec<u32>,
    /// Rows that were left out beforehand ([`Schedule::without`]): `rows` lacks them.
    pub left_out: u32,
}

impl BatchPlan {
    /// Pieces of a row's field, of `fields` in all.
    pub fn pieces_of(&self, row: usize, field: usize, fields: usize) -> &[Piece] {
        let cell = row * fields + field;
        let from = if cell == 0 { 0 } else { self.ends[cell - 1] as usize };
        &self.pieces[from..self.ends[cell] as usize]
    }

    /// The pieces of a row's field, to be pointed elsewhere.
    pub fn pieces_of_mut(&mut self, row: usize, field: usize, fields: usize) -> &mut [Piece] {
        let cell = row * fields + field;
        let from = if cell == 0 { 0 } else { self.ends[cell - 1] as usize };
        &mut self.pieces[from..self.ends[cell] as usize]
    }

    /// Bytes of memory that the lists take, with the room they have.
    pub fn memory_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<SampleId>()
            + self.pieces.capacity() * size_of::<Piece>()
            + self.ends.capacity() * size_of::<u32>()
    }
}

/// The list of what to do, made as far ahead as it is asked for.
pub struct Schedule {
    dataset: Arc<Dataset>,
    order: Order,
    partition: Partition,
    fields: Vec<FieldId>,
    shape: Shape,
    epochs_end: u64,
    epoch: u64,
    batch: u64,
    walk: Option<EpochWalk>,
    next_read: u64,
    sequence: u64,
    cold: bool,
    /// Bytes that may be read ahead of need during the cold start; below zero after a batch that cost more than it allows.
    allowance: i64,
    largest_block: u64,
    /// Samples that are not read, in ascending order.
    excluded: Arc<[SampleId]>,
    steps: VecDeque<Step>,
    scratch: Scratch,
    /// Plans that are done with: the next ones use their memory.
    spare: Vec<BatchPlan>,
}

/// Plans that are kept to be used again: some in any case, and more where they are small. They are listed in bursts where one read serves many
/// batches.
const SPARE_MIN: usize = 4;
const SPARE_BYTES_MAX: usize = 4 << 20;

/// What listing a batch needs, and the next one needs again.
#[derive(Default)]
struct Scratch {
    rows: Vec<Row>,
    /// What the rows lack.
    needed: Vec<Target>,
    /// What blocks lack that are read whole.
    whole: Vec<Target>,
    run: Run,
}

/// Neighbouring targets, and those in the gaps between them.
#[derive(Default)]
struct Run {
    targets: Vec<Target>,
    /// By sample and field, in ascending order: those that the gaps are between.
    known: Vec<(u32, usize)>,
}

/// An epoch under way.
struct EpochWalk {
    /// This rank's lanes, in ascending order.
    lanes: Vec<u32>,
    cursors: Vec<LaneCursor>,
    /// By lane (its place in `lanes`) and block.
    covers: BTreeMap<(usize, u32), Cover>,
    rests: VecDeque<(usize, u32)>,
}

/// A field of a sample that is to be covered by a read.
#[derive(Clone, Copy)]
struct Target {
    extent: Extent,
    lane: usize,
    block: u32,
    index: u32,
    field: usize,
}

#[derive(Clone, Copy)]
struct Row {
    lane: usize,
    block: u32,
    index: u32,
}

impl Schedule {
    /// From batch `batch` of epoch `epoch` to the end of epoch `epochs_end - 1`.
    ///
    /// `fields` are those to be read, in the order in which batches will list them.
    pub fn new(
        dataset: Arc<Dataset>,
        order: Order,
        partition: Partition,
        fields: Vec<FieldId>,
        shape: Shape,
        (epoch, batch): (u64, u64),
        epochs_end: u64,
    ) -> Self {
        let largest_block = dataset.blocks().iter().map(|block| block.extent.len).max().unwrap_or(0);
        Schedule {
            dataset,
            order,
            partition,
            fields,
            shape,
            epochs_end,
            epoch,
            batch,
            walk: None,
            next_read: 0,
            sequence: 0,
            cold: true,
            allowance: 0,
            largest_block,
            excluded: Arc::from([]),
            steps: VecDeque::new(),
            scratch: Scratch::default(),
            spare: Vec::new(),
        }
    }

    /// Takes back a plan that is done with, so that one to come needs no memory of its own.
    pub fn recycle(&mut self, plan: BatchPlan) {
        let count = self.spare.len();
        if count < SPARE_MIN || (count + 1) * plan.memory_bytes().max(1 << 12) <= SPARE_BYTES_MAX {
            self.spare.push(plan);
        }
    }

    /// Leaves these samples, in ascending order, out of the batches that they belong to: they are not read. All other samples keep
    /// their places, and there are as many batches as with them.
    pub fn without(mut self, excluded: Arc<[SampleId]>) -> Self {
        debug_assert!(excluded.is_sorted());
        self.excluded = excluded;
        self
    }

    /// The next step, `None` after the last epoch.
    ///
    /// # Errors
    /// `Config` when a sample lacks a field that was asked for.
    pub fn advance(&mut self) -> Result<Option<Step>> {
        while self.steps.is_empty() {
            if self.epoch >= self.epochs_end {
                return Ok(None);
            }
            if self.batch >= self.partition.batches(self.order.samples()) {
                self.steps.push_back(Step::EpochEnd(self.epoch));
                (self.epoch, self.batch, self.walk) = (self.epoch + 1, 0, None);
                break;
            }
            let mut walk = match self.walk.take() {
                Some(walk) => walk,
                None => self.begin_epoch(),
            };
            let mut scratch = std::mem::take(&mut self.scratch);
            let walked = self.walk_batch(&mut walk, &mut scratch);
            self.scratch = scratch;
            walked?;
            self.walk = Some(walk);
            self.batch += 1;
            self.sequence += 1;
        }
        Ok(self.steps.pop_front())
    }

    fn begin_epoch(&self) -> EpochWalk {
        let order = self.order.epoch(self.epoch);
        let lanes: Vec<u32> = self.partition.lanes(order.order().lanes()).collect();
        let position = self.partition.position(self.order.samples(), self.batch);
        let cursors = lanes.iter().map(|lane| order.lane(*lane, self.order.lane_position(*lane, position))).collect();
        EpochWalk { lanes, cursors, covers: BTreeMap::new(), rests: VecDeque::new() }
    }

    fn walk_batch(&mut self, walk: &mut EpochWalk, scratch: &mut Scratch) -> Result<()> {
        let Scratch { rows, needed, whole, run } = scratch;
        self.next_rows(walk, rows)?;
        let all = rows.len();
        rows.retain(|row| !self.is_excluded(row.block, row.index));
        let left_out = (all - rows.len()) as u32;
        needed.clear();
        whole.clear();
        for row in &*rows {
            self.touch(walk, *row, needed, whole)?;
        }
        let head_start = self.sequence < HEAD_START_BATCHES;
        let cap = if head_start { self.shape.cold_request_bytes } else { self.shape.incomplete_request_bytes() };
        let needed = self.list_reads(walk, needed, run, cap, self.sequence)?;
        let listed = needed + self.list_reads(walk, whole, run, self.shape.request_bytes, self.sequence)?;
        let plan = self.batch_plan(walk, rows, left_out)?;
        let payload: u64 = plan.pieces.iter().map(|piece| piece.len).sum();
        self.steps.push_back(Step::Batch(plan));
        if self.cold && !head_start {
            let allowed = (payload as f64 * ALLOWANCE_PER_BYTE).max((payload + ALLOWANCE_MIN) as f64);
            self.allowance += allowed as i64 - listed as i64;
            self.list_rests(walk, whole, run)?;
            self.cold = !walk.rests.is_empty() || self.allowance < 4 * payload.max(self.largest_block) as i64;
        }
        Ok(())
    }

    /// The rows of the next batch, in order of their global positions.
    fn next_rows(&self, walk: &mut EpochWalk, rows: &mut Vec<Row>) -> Result<()> {
        let count = self.partition.rows(self.order.samples(), self.batch);
        rows.clear();
        rows.reserve(count as usize);
        for row in 0..count {
            let place = self.partition.locate(self.order.lanes(), self.batch, row);
            let lane = walk.lanes.binary_search(&place.lane).ok();
            let slot = lane.and_then(|lane| Some((lane, walk.cursors[lane].next()?)));
            let Some((lane, slot)) = slot else {
                return Err(Error::new(
                    Kind::Topology,
                    format!(
                        "rank {} has no row {row} in batch {} of epoch {}",
                        self.partition.rank(),
                        self.batch,
                        self.epoch
                    ),
                ));
            };
            rows.push(Row { lane, block: slot.block, index: slot.index });
        }
        Ok(())
    }

    /// Notes what must be read for a row: its whole block if the allowance covers that, else itself alone.
    fn touch(&self, walk: &mut EpochWalk, row: Row, needed: &mut Vec<Target>, whole: &mut Vec<Target>) -> Result<()> {
        let key = (row.lane, row.block);
        let fields = self.fields.len();
        if !walk.covers.contains_key(&key) {
            let cursor = &walk.cursors[row.lane];
            let pending = cursor.pending_at_start(row.block).filter(|index| !self.is_excluded(row.block, *index));
            let cover = Cover::new(cursor.block_span(row.block), fields, pending);
            walk.covers.insert(key, cover);
            let planned: u64 = whole.iter().map(|target| target.extent.len).sum();
            let block = self.dataset.blocks()[row.block as usize].extent.len;
            if !self.cold || (planned + block) as i64 <= self.allowance {
                self.want_rest(walk, key, whole)?;
            } else {
                walk.rests.push_back(key);
            }
        }
        if !walk.covers[&key].is_whole() {
            for field in 0..fields {
                if !walk.covers[&key].covers(row.index, field) {
                    needed.extend(self.target(key, row.index, field)?);
                }
            }
        }
        Ok(())
    }

    fn want_rest(&self, walk: &mut EpochWalk, key: (usize, u32), targets: &mut Vec<Target>) -> Result<()> {
        let Some(cover) = walk.covers.get_mut(&key) else { return Ok(()) };
        for (index, field) in cover.uncovered() {
            targets.extend(self.target(key, index, field)?);
        }
        cover.set_whole();
        Ok(())
    }

    /// Rests of blocks that were touched and are incomplete, as far as the allowance goes.
    fn list_rests(&mut self, walk: &mut EpochWalk, targets: &mut Vec<Target>, run: &mut Run) -> Result<()> {
        while self.allowance > 0 {
            let Some(key) = walk.rests.pop_front() else { break };
            targets.clear();
            self.want_rest(walk, key, targets)?;
            let cap = self.shape.incomplete_request_bytes();
            self.allowance -= self.list_reads(walk, targets, run, cap, self.sequence + 1)? as i64;
        }
        Ok(())
    }

    fn target(&self, (lane, block): (usize, u32), index: u32, field: usize) -> Result<Option<Target>> {
        let extent = self.extent(block, index, field)?;
        // A value of no bytes needs no read.
        Ok((extent.len > 0).then_some(Target { extent, lane, block, index, field }))
    }

    fn extent(&self, block: u32, index: u32, field: usize) -> Result<Extent> {
        let sample = self.sample(block, index);
        let field = self.fields[field];
        self.dataset.extent(sample, field).ok_or_else(|| {
            let name = &self.dataset.fields()[field].name;
            Error::new(Kind::Config, format!("sample {} has no field '{name}'", self.dataset.key(sample)))
                .advice("leave the field out, or the sample out of the dataset")
        })
    }

    fn sample(&self, block: u32, index: u32) -> SampleId {
        self.dataset.blocks()[block as usize].first + u64::from(index)
    }

    fn is_excluded(&self, block: u32, index: u32) -> bool {
        !self.excluded.is_empty() && self.excluded.binary_search(&self.sample(block, index)).is_ok()
    }

    /// Lists reads of at most `cap` bytes that cover `targets`, neighbours together; returns their bytes.
    fn list_reads(
        &mut self,
        walk: &mut EpochWalk,
        targets: &mut Vec<Target>,
        run: &mut Run,
        cap: u64,
        first_batch: u64,
    ) -> Result<u64> {
        targets.sort_unstable_by_key(|t| (t.lane, t.block, t.extent, t.index, t.field));
        targets.dedup_by_key(|t| (t.lane, t.block, t.index, t.field));
        let gap = self.shape.gap_bytes;
        let mut bytes = 0;
        let mut rest = &targets[..];
        while let Some(first) = rest.first() {
            let mut end = first.extent.end();
            let joined = rest.iter().take_while(|next| {
                let joins = (next.lane, next.block) == (first.lane, first.block) && next.extent.start <= end + gap;
                if joins {
                    end = end.max(next.extent.end());
                }
                joins
            });
            let (joined, others) = rest.split_at(joined.count().max(1));
            rest = others;
            bytes += end - first.extent.start;
            self.with_gaps(walk, joined, end, run)?;
            self.list_run(walk, &run.targets, end, cap, first_batch);
        }
        Ok(bytes)
    }

    /// Neighbouring targets, and those that lie wholly in the gaps that are read over: what was read once is not read again.
    fn with_gaps(&self, walk: &EpochWalk, joined: &[Target], end: u64, run: &mut Run) -> Result<()> {
        let Run { targets, known } = run;
        targets.clear();
        targets.extend_from_slice(joined);
        let (first, start) = (joined[0], joined[0].extent.start);
        let key = (first.lane, first.block);
        known.clear();
        known.extend(joined.iter().map(|target| (target.index, target.field)));
        known.sort_unstable();
        // Samples of a block lie one behind the other.
        let (Some((lowest, _)), Some((highest, _))) = (known.first(), known.last()) else { return Ok(()) };
        let Some(cover) = walk.covers.get(&key) else { return Ok(()) };
        let unknown = |cell: &(u32, usize)| known.binary_search(cell).is_err();
        for (index, field) in cover.uncovered_in(*lowest..=*highest).filter(unknown) {
            let target = self.target(key, index, field)?;
            targets.extend(target.filter(|target| target.extent.start >= start && target.extent.end() <= end));
        }
        Ok(())
    }

    /// One run of neighbouring targets of a block, in as few reads of about equal length as `cap` allows.
    fn list_run(&mut self, walk: &mut EpochWalk, run: &[Target], end: u64, cap: u64, first_batch: u64) {
        let (first, start) = (run[0], run[0].extent.start);
        let Some(cover) = walk.covers.get_mut(&(first.lane, first.block)) else { return };
        let count = (end - start).div_ceil(cap.max(1));
        let len = (end - start).div_ceil(count.max(1));
        let mut first_number = None;
        for at in (start..end).step_by(len as usize) {
            let to = end.min(at + len);
            let number = cover.add_read(self.next_read, at, to);
            first_number.get_or_insert(number);
            let id = self.next_read;
            self.next_read += 1;
            let uses = run.iter().filter(|target| target.extent.start < to && target.extent.end() > at).count() as u32;
            let extent = Extent { shard: first.extent.shard, start: at, len: to - at };
            if uses == 0 {
                // It lies in a gap that is read over: nothing would ever free its pages.
                continue;
            }
            self.steps.push_back(Step::Read(Read {
                id,
                extent,
                pages: self.shape.pages(extent.len),
                uses,
                epoch: self.epoch,
                first_batch,
            }));
        }
        for target in run {
            let number = first_number.unwrap_or(0) + ((target.extent.start - start) / len) as u32;
            cover.set(target.index, target.field, number);
        }
    }

    fn batch_plan(&mut self, walk: &mut EpochWalk, rows: &[Row], left_out: u32) -> Result<BatchPlan> {
        let BatchPlan { rows: mut samples, mut pieces, mut ends, .. } = self.spare.pop().unwrap_or_default();
        let cells = rows.len() * self.fields.len();
        samples.clear();
        samples.reserve(rows.len());
        pieces.clear();
        pieces.reserve(cells);
        ends.clear();
        ends.reserve(cells);
        for row in rows {
            samples.push(self.sample(row.block, row.index));
            let key = (row.lane, row.block);
            let Some(cover) = walk.covers.get_mut(&key) else { continue };
            for field in 0..self.fields.len() {
                let extent = self.extent(row.block, row.index, field)?;
                if extent.len > 0 {
                    cover.pieces(row.index, field, extent, |piece| pieces.push(piece));
                }
                ends.push(pieces.len() as u32);
            }
            if cover.deliver(row.index) {
                walk.covers.remove(&key);
            }
        }
        let (sequence, epoch, batch) = (self.sequence, self.epoch, self.batch);
        Ok(BatchPlan { sequence, epoch, batch, rows: samples, pieces, ends, left_out })
    }
}
