//! The rows of a batch: checked where they landed, then laid out in a slot and copied there.

use std::fmt;

use super::column::{Column, ColumnSpec, Kind as ColumnKind, align, element_bytes};
use super::finishing::Finished;
use super::value;
use crate::dataset::{Dataset, Dtype, Extent, SampleId};
use crate::device::{DeviceSlot, Engine, Segment, Turn};
use crate::error::{Error, Kind, Result};
use crate::memory::{CopyHold, Landed};
use crate::schedule::{BatchPlan, Piece};

/// The reads of a batch, held for its copies. There are few: found by halving, in memory that the next batch uses again.
#[derive(Default)]
pub(super) struct Holds {
    /// In the order of their numbers.
    by_number: Vec<(u64, CopyHold)>,
}

impl Holds {
    pub(super) fn get(&self, read: u64) -> Option<&CopyHold> {
        self.find(read).ok().map(|place| &self.by_number[place].1)
    }

    /// Adds a read, unless it is there.
    pub(super) fn add(&mut self, read: u64, hold: impl FnOnce() -> CopyHold) {
        if let Err(place) = self.find(read) {
            self.by_number.insert(place, (read, hold()));
        }
    }

    /// Lets go of nothing: moves all holds behind those in `holds`.
    fn move_to(&mut self, holds: &mut Vec<CopyHold>) {
        holds.extend(self.by_number.drain(..).map(|(_, hold)| hold));
    }

    fn find(&self, read: u64) -> Result<usize, usize> {
        self.by_number.binary_search_by_key(&read, |(number, _)| *number)
    }
}

/// Numbers from here on are of fields that were read again.
const READ_AGAIN: u64 = 1 << 63;

/// The lists of a batch that has been copied, on their way back to the pump.
pub(super) struct Spent {
    pub(super) plan: BatchPlan,
    /// Empty.
    pub(super) reads: Holds,
}

/// The rows of a batch and the pages that hold them.
pub(super) struct Rows<'a> {
    plan: BatchPlan,
    reads: Holds,
    dataset: &'a Dataset,
    columns: &'a [ColumnSpec],
    /// Whether fields are held against the digests of the index.
    verify: bool,
    scratch: Scratch,
}

/// What assembling a batch needs and the next one needs again: kept by the copier, so that it does not allocate it for each.
#[derive(Default)]
pub(super) struct Scratch {
    /// What was parsed, by column and row of the plan: the bits of a number, or the bytes in front of an array's elements.
    parsed: Vec<Vec<u64>>,
    /// The rows of the plan that will be delivered.
    kept: Vec<usize>,
    /// A column that the host computes.
    bytes: Vec<u8>,
    segments: Vec<Segment<'static>>,
}

impl Scratch {
    fn begin(&mut self, rows: usize, columns: &[ColumnSpec]) {
        self.parsed.resize_with(columns.len(), Vec::new);
        for (parsed, column) in self.parsed.iter_mut().zip(columns) {
            parsed.clear();
            parsed.resize(if is_parsed(&column.kind) { rows } else { 0 }, 0);
        }
        self.kept.clear();
        self.kept.extend(0..rows);
    }
}

/// The list's memory as an empty list for other borrows: collecting in place keeps it.
fn emptied<'b>(mut segments: Vec<Segment<'_>>) -> Vec<Segment<'b>> {
    segments.clear();
    segments.into_iter().map_while(|_| None).collect()
}

/// A field that is not what it should be.
pub(super) struct Flaw {
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) error: Error,
    /// Its bytes are those that the index says: to read them again would change nothing.
    pub(super) certain: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        plan: BatchPlan,
        reads: Holds,
        dataset: &'a Dataset,
        columns: &'a [ColumnSpec],
        verify: bool,
        mut scratch: Scratch,
    ) -> Self {
        scratch.begin(plan.rows.len(), columns);
        Rows { plan, reads, dataset, columns, verify, scratch }
    }

    /// Looks at every field of every row, and gives those that are not what they should be, row by row.
    pub(super) fn check_all(&mut self) -> Vec<Flaw> {
        let cells = (0..self.plan.rows.len()).flat_map(|row| (0..self.columns.len()).map(move |column| (row, column)));
        cells.filter_map(|(row, column)| self.check(row, column).err()).collect()
    }

    /// Holds a field against its digest in the index, where there is one, and parses what is to be parsed.
    pub(super) fn check(&mut self, row: usize, column: usize) -> Result<(), Flaw> {
        let empty = self.len(row, column) == 0;
        let flaw = |error, certain| Flaw { row, column, error, certain: certain || empty };
        if !self.pieces(row, column).iter().all(|piece| self.reads.get(piece.read).is_some()) {
            return Err(flaw(Error::new(Kind::Io, "its read failed"), false));
        }
        let sample = self.plan.rows[row];
        let digest = self.verify.then(|| self.dataset.crc32c(sample, self.columns[column].field)).flatten();
        if let Some(expected) = digest {
            let found = value::crc32c(self.slices(row, column));
            if found != expected {
                let what = format!("crc32c is {found:08x}, the index has {expected:08x}");
                return Err(flaw(
                    Error::new(Kind::Corrupt, what).advice(
                        "the shard was damaged or replaced: restore it, or make its index again with `farfeed index`",
                    ),
                    false,
                ));
            }
        }
        let parsed = self.parse(row, column).map_err(|error| flaw(error, digest.is_some()))?;
        if let Some(place) = self.scratch.parsed[column].get_mut(row) {
            *place = parsed;
        }
        Ok(())
    }

    /// Puts a field that was read again in the place of what there was.
    pub(super) fn replace(&mut self, row: usize, column: usize, landed: &Landed) {
        let id = READ_AGAIN + (row * self.columns.len() + column) as u64;
        let mut at = 0;
        for piece in self.plan.pieces_of_mut(row, column, self.columns.len()) {
            *piece = Piece { read: id, at, len: piece.len };
            at += piece.len;
        }
        self.reads.add(id, || landed.hold());
    }

    /// Rows that are not in `bad`, which ascends, are those that will be delivered.
    pub(super) fn leave_out(&mut self, bad: &[usize]) {
        self.scratch.kept.retain(|row| bad.binary_search(row).is_err());
    }

    /// Rows that will be delivered.
    pub(super) fn count(&self) -> usize {
        self.scratch.kept.len()
    }

    /// Rows that will not be.
    pub(super) fn left_out(&self) -> usize {
        self.plan.left_out as usize + self.plan.rows.len() - self.scratch.kept.len()
    }

    /// Bytes of the values that will be delivered.
    pub(super) fn payload(&self) -> u64 {
        let of_row = |row: &usize| (0..self.columns.len()).map(|column| self.len(*row, column)).sum::<u64>();
        self.scratch.kept.iter().map(of_row).sum()
    }

    pub(super) fn plan(&self) -> &BatchPlan {
        &self.plan
    }

    pub(super) fn sample(&self, row: usize) -> SampleId {
        self.plan.rows[row]
    }

    pub(super) fn extent(&self, row: usize, column: usize) -> Option<Extent> {
        self.dataset.extent(self.sample(row), self.columns[column].field)
    }

    /// Says which sample and field an error is about, and where its bytes lie.
    pub(super) fn locate(&self, row: usize, column: usize) -> impl fmt::Display + use<> {
        let (sample, spec) = (self.sample(row), &self.columns[column]);
        let place = self.extent(row, column).map_or_else(String::new, |extent| {
            let shard = self.dataset.shards().get(extent.shard as usize).map_or("?", |shard| shard.url.as_str());
            format!(" ({shard}, bytes {}..{})", extent.start, extent.end())
        });
        format!("field '{}' of sample {}{place}", spec.name, self.dataset.key(sample))
    }

    /// Where a column goes: behind the one before, aligned. `list` is empty; its memory becomes the column's.
    pub(super) fn place(&self, number: usize, at: &mut u64, slot_bytes: usize, mut list: Vec<usize>) -> Result<Column> {
        let spec = &self.columns[number];
        let begin = *at;
        let rows = self.count();
        let column = match &spec.kind {
            ColumnKind::Bytes | ColumnKind::Json => {
                let mut values = 0;
                list.reserve(rows + 1);
                list.push(0);
                for row in &self.scratch.kept {
                    values += self.len(*row, number);
                    list.push(values as usize);
                }
                let offsets_at = begin + align(values);
                *at = offsets_at + align((rows as u64 + 1) * 8);
                Column::Ragged {
                    values_at: begin as usize,
                    values_len: values as usize,
                    offsets_at: offsets_at as usize,
                    bounds: list,
                }
            }
            ColumnKind::Int | ColumnKind::Float => {
                *at = begin + align(rows as u64 * 8);
                let dtype = if spec.kind == ColumnKind::Int { Dtype::I64 } else { Dtype::F64 };
                list.push(rows);
                Column::Dense { dtype, shape: list, at: begin as usize, len: rows * 8 }
            }
            ColumnKind::Array { dtype, shape } => {
                let landed = rows as u64 * element_bytes(*dtype, shape);
                *at = begin + align(landed);
                let (dtype, shape, len) = match &spec.finished {
                    None => (*dtype, shape, landed),
                    Some(Finished { finishing, dtype, shape }) => {
                        let len = rows as u64 * finishing.finished_bytes() as u64;
                        *at += align(len);
                        (*dtype, shape, len)
                    }
                };
                list.push(rows);
                list.extend(shape);
                Column::Dense { dtype, shape: list, at: begin as usize, len: len as usize }
            }
        };
        if *at > slot_bytes as u64 {
            return Err(Error::new(
                Kind::Device,
                format!("batch {} needs {at} bytes, a device slot has {slot_bytes}", self.plan.batch),
            )
            .advice("lower batch_size, or raise device_memory"));
        }
        Ok(column)
    }

    /// Enqueues the copies of a column.
    pub(super) fn fill(
        &mut self,
        number: usize,
        column: &Column,
        engine: &mut dyn Engine,
        slot: &mut DeviceSlot,
    ) -> Result<()> {
        match (&self.columns[number].kind, column) {
            (ColumnKind::Int | ColumnKind::Float, Column::Dense { at, .. }) => {
                let Scratch { parsed, kept, bytes, .. } = &mut self.scratch;
                bytes.clear();
                bytes.extend(kept.iter().flat_map(|row| parsed[number][*row].to_le_bytes()));
                engine.put(slot, *at, bytes)
            }
            (ColumnKind::Array { dtype, shape }, Column::Dense { at, len, .. }) => {
                let to = if self.columns[number].finished.is_some() { landing(*at, *len) } else { *at };
                self.gather_array(number, element_bytes(*dtype, shape), to, engine, slot)
            }
            (_, Column::Ragged { values_at, offsets_at, bounds, .. }) => {
                self.gather_ragged(number, *values_at, engine, slot)?;
                let bytes = &mut self.scratch.bytes;
                bytes.clear();
                bytes.extend(bounds.iter().flat_map(|bound| (*bound as u64).to_le_bytes()));
                engine.put(slot, *offsets_at, bytes)
            }
            _ => Err(Error::new(Kind::Config, "a ragged field in a dense column")),
        }
    }

    /// Enqueues the steps of columns that are to be finished, behind all copies: those are then issued together.
    pub(super) fn finish(&self, layout: &[Column], engine: &mut dyn Engine, slot: &mut DeviceSlot) -> Result<()> {
        for (spec, column) in self.columns.iter().zip(layout) {
            if let (Some(_), Column::Dense { at, len, .. }) = (&spec.finished, column) {
                let turn = Turn { step: spec.step, from: landing(*at, *len), to: *at, rows: self.count() };
                engine.finish(slot, turn)?;
            }
        }
        Ok(())
    }

    /// The numbers of the samples that are delivered.
    pub(super) fn samples(&self) -> impl Iterator<Item = SampleId> {
        self.scratch.kept.iter().map(|row| self.plan.rows[*row])
    }

    /// Puts what holds the samples' bytes behind `holds`, and gives what the next batch uses again: the pump's lists, and the copier's.
    pub(super) fn into_parts(self, holds: &mut Vec<CopyHold>) -> (Spent, Scratch) {
        let Rows { plan, scratch, mut reads, .. } = self;
        reads.move_to(holds);
        (Spent { plan, reads }, scratch)
    }

    fn pieces(&self, row: usize, column: usize) -> &[Piece] {
        self.plan.pieces_of(row, column, self.columns.len())
    }

    fn len(&self, row: usize, column: usize) -> u64 {
        self.pieces(row, column).iter().map(|piece| piece.len).sum()
    }

    /// A field's bytes, slice by slice, in order.
    fn slices(&self, row: usize, column: usize) -> impl Iterator<Item = &[u8]> {
        self.pieces(row, column).iter().flat_map(|piece| {
            let hold = self.reads.get(piece.read);
            hold.into_iter().flat_map(|hold| hold.landed().slices(piece.at as usize, piece.len as usize))
        })
    }

    fn parse(&self, row: usize, column: usize) -> Result<u64> {
        let slices = || self.slices(row, column);
        match &self.columns[column].kind {
            ColumnKind::Bytes => Ok(0),
            ColumnKind::Int => value::int(slices()).map(|number| number as u64),
            ColumnKind::Float => value::float(slices()).map(f64::to_bits),
            ColumnKind::Json => value::check_json(slices()).map(|()| 0),
            ColumnKind::Array { dtype, shape } => {
                value::array_header(slices(), self.len(row, column), element_bytes(*dtype, shape), *dtype, shape)
            }
        }
    }

    fn gather_ragged(
        &mut self,
        number: usize,
        values_at: usize,
        engine: &mut dyn Engine,
        slot: &mut DeviceSlot,
    ) -> Result<()> {
        let mut segments = emptied(std::mem::take(&mut self.scratch.segments));
        let mut to = values_at;
        for from in self.scratch.kept.iter().flat_map(|row| self.slices(*row, number)) {
            segments.push(Segment { from, to });
            to += from.len();
        }
        let copied = engine.copy(slot, &segments);
        self.scratch.segments = emptied(segments);
        copied
    }

    fn gather_array(
        &mut self,
        number: usize,
        row_bytes: u64,
        at: usize,
        engine: &mut dyn Engine,
        slot: &mut DeviceSlot,
    ) -> Result<()> {
        let mut segments = emptied(std::mem::take(&mut self.scratch.segments));
        for (place, row) in self.scratch.kept.iter().enumerate() {
            let mut skip = self.scratch.parsed[number][*row] as usize;
            let mut to = at + place * row_bytes as usize;
            for from in self.slices(*row, number) {
                let skipped = skip.min(from.len());
                let from = &from[skipped..];
                skip -= skipped;
                if !from.is_empty() {
                    segments.push(Segment { from, to });
                    to += from.len();
                }
            }
        }
        let copied = engine.copy(slot, &segments);
        self.scratch.segments = emptied(segments);
        copied
    }
}

/// Where what is to be finished lands: behind what it becomes.
fn landing(at: usize, len: usize) -> usize {
    at + align(len as u64) as usize
}

fn is_parsed(kind: &ColumnKind) -> bool {
    matches!(kind, ColumnKind::Int | ColumnKind::Float | ColumnKind::Array { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_list_keeps_its_memory() {
        let bytes = [0u8; 8];
        let mut segments = Vec::with_capacity(100);
        segments.push(Segment { from: &bytes[..], to: 0 });
        let place = segments.as_ptr() as usize;
        let segments: Vec<Segment<'static>> = emptied(segments);
        assert_eq!((segments.len(), segments.capacity(), segments.as_ptr() as usize), (0, 100, place));
    }
}
