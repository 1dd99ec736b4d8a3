//! A block of the window: which of its samples are still to come, and which read brings each field of them.

use std::ops::{Range, RangeInclusive};

use super::walk::Piece;
use crate::dataset::Extent;

const UNCOVERED: u32 = u32::MAX;

/// A block, or the part of it that lies in one lane, from its first sample's need to its last one's.
#[derive(Debug)]
pub(super) struct Cover {
    span: Range<u32>,
    fields: usize,
    /// By sample of the span: still to be delivered.
    pending: Vec<bool>,
    left: u32,
    /// By sample and field: the first of `reads` that brings it.
    first_read: Vec<u32>,
    reads: Vec<ReadRef>,
    /// Every pending sample is covered.
    whole: bool,
}

#[derive(Clone, Copy, Debug)]
struct ReadRef {
    id: u64,
    start: u64,
    end: u64,
}

impl Cover {
    pub(super) fn new(span: Range<u32>, fields: usize, pending: impl Iterator<Item = u32>) -> Self {
        let count = span.len();
        let mut cover = Cover {
            pending: vec![false; count],
            left: 0,
            first_read: vec![UNCOVERED; count * fields],
            reads: Vec::new(),
            whole: false,
            span,
            fields,
        };
        for index in pending {
            let at = (index - cover.span.start) as usize;
            cover.left += u32::from(!cover.pending[at]);
            cover.pending[at] = true;
        }
        cover
    }

    /// Fields of pending samples that no read brings yet, as (index in block, field number).
    pub(super) fn uncovered(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.uncovered_in(self.span.start..=self.span.end)
    }

    /// The same of the samples in `range`.
    pub(super) fn uncovered_in(&self, range: RangeInclusive<u32>) -> impl Iterator<Item = (u32, usize)> + '_ {
        let within = (*range.start()).max(self.span.start)..range.end().saturating_add(1).min(self.span.end);
        let pending = within.filter(|index| self.pending[(index - self.span.start) as usize]);
        let fields = self.fields;
        pending
            .flat_map(move |index| (0..fields).map(move |field| (index, field)))
            .filter(|(i, f)| !self.covers(*i, *f))
    }

    pub(super) fn covers(&self, index: u32, field: usize) -> bool {
        self.first_read[self.cell(index, field)] != UNCOVERED
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    pub(super) fn set_whole(&mut self) {
        self.whole = true;
    }

    /// Adds a read of this block; returns its number here. Reads that bring one field together are added one after the other.
    pub(super) fn add_read(&mut self, id: u64, start: u64, end: u64) -> u32 {
        self.reads.push(ReadRef { id, start, end });
        self.reads.len() as u32 - 1
    }

    pub(super) fn set(&mut self, index: u32, field: usize, first_read: u32) {
        let cell = self.cell(index, field);
        self.first_read[cell] = first_read;
    }

    /// The pieces of reads that make up a covered field.
    pub(super) fn pieces(&self, index: u32, field: usize, extent: Extent, mut push: impl FnMut(Piece)) {
        let mut at = extent.start;
        for read in self.reads.iter().skip(self.first_read[self.cell(index, field)] as usize) {
            if at >= extent.end() {
                break;
            }
            let to = extent.end().min(read.end);
            push(Piece { read: read.id, at: at - read.start, len: to - at });
            at = to;
        }
        debug_assert!(at >= extent.end(), "reads of a field are contiguous");
    }

    /// A sample was delivered; true if it was the last one.
    pub(super) fn deliver(&mut self, index: u32) -> bool {
        let at = (index - self.span.start) as usize;
        debug_assert!(self.pending[at], "a sample is delivered once per epoch");
        self.left -= u32::from(self.pending[at]);
        self.pending[at] = false;
        self.left == 0
    }

    fn cell(&self, index: u32, field: usize) -> usize {
        (index - self.span.start) as usize * self.fields + field
    }
}
