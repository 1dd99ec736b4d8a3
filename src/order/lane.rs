//! Sliding keys: the shuffle within a lane, streamed and entered anywhere.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::iter::FusedIterator;
use std::ops::Range;

use super::epoch::{EpochOrder, Slot};
use super::random::{Purpose, Stream};

/// Bits of a key behind the point. Without them keys of small windows would tie, and ties keep stream order.
const FRACTION: u32 = 24;

/// The samples of a lane in output order, from some position on.
///
/// Holds the samples that have arrived and not left: at most one window of the lane.
#[derive(Clone, Debug)]
pub struct LaneCursor {
    epoch: EpochOrder,
    stream: Stream,
    /// The lane's part of the epoch's stream.
    range: Range<u64>,
    window: u64,
    /// Lane position of the next output.
    position: u64,
    /// Lane index of the next arrival, in stream order, and where it lies.
    arriving: u64,
    place: u32,
    index: u32,
    waiting: BinaryHeap<Reverse<Waiting>>,
    start: Start,
}

/// A sample that has arrived. Equal keys leave in stream order: that of (place, index).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    key: u64,
    place: u32,
    index: u32,
}

/// What had not been delivered before the cursor's first position: `left`, and everything from `arriving` on.
#[derive(Clone, Debug, Default)]
struct Start {
    arriving: u64,
    /// Lane indices, ascending.
    left: Vec<u64>,
}

impl LaneCursor {
    pub(super) fn new(epoch: EpochOrder, lane: u32, from: u64) -> Self {
        let range = epoch.lane_range(lane);
        let from = from.min(range.end - range.start);
        let window = epoch.order().lane_window();
        // A sample from more than one window before `from` has a key below `from`, and all that can precede it
        // arrived before `from`: it was among the first `from` outputs.
        let arriving = from.saturating_sub(window);
        let (place, index) = epoch.place(range.start + arriving);
        let stream = Stream::new(epoch.order().shuffle().seed_value(), Purpose::Keys, epoch.epoch(), lane);
        let (waiting, start) = (BinaryHeap::new(), Start::default());
        let mut cursor =
            LaneCursor { epoch, stream, range, window, position: arriving, arriving, place, index, waiting, start };
        while cursor.position < from {
            cursor.next();
        }
        cursor.start = cursor.undelivered();
        cursor
    }

    /// Lane position of the sample that comes next. (Not `position`: through a `&mut` that name is `Iterator`'s.)
    pub fn lane_position(&self) -> u64 {
        self.position
    }

    /// Samples that have arrived and not left: what the shuffle holds at this moment.
    pub fn held(&self) -> usize {
        self.waiting.len()
    }

    /// Indices of the samples of `block` that belong to this lane. A block is split where a lane ends inside it.
    pub fn block_span(&self, block: u32) -> Range<u32> {
        let whole = self.epoch.block_range(block);
        let (from, to) = (whole.start.max(self.range.start), whole.end.min(self.range.end));
        if from >= to {
            return 0..0;
        }
        (from - whole.start) as u32..(to - whole.start) as u32
    }

    /// Indices, ascending, of the samples of `block` in this lane that were still to be delivered where the cursor
    /// started: what a resumed loader must read of it. The cursor's own progress since then does not change the answer.
    pub fn pending_at_start(&self, block: u32) -> impl Iterator<Item = u32> + use<'_> {
        let span = self.block_span(block);
        let block_start = self.epoch.block_range(block).start;
        // A span that is not empty begins inside the lane; lane indices are what `Start` speaks of.
        let lane_index = move |index: u32| (block_start + u64::from(index)).saturating_sub(self.range.start);
        let (first, end) = (lane_index(span.start), lane_index(span.end));
        let left = &self.start.left;
        let left = &left[left.partition_point(|at| *at < first)..left.partition_point(|at| *at < end)];
        let fresh = self.start.arriving.clamp(first, end)..end;
        let base = span.start;
        left.iter().copied().chain(fresh).map(move |at| base + (at - first) as u32)
    }

    fn undelivered(&self) -> Start {
        let lane_index = |waiting: &Waiting| {
            self.epoch.block_range(self.epoch.block_at(waiting.place)).start + u64::from(waiting.index)
        };
        let mut left: Vec<u64> =
            self.waiting.iter().map(|Reverse(waiting)| lane_index(waiting) - self.range.start).collect();
        left.sort_unstable();
        Start { arriving: self.arriving, left }
    }

    fn samples(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn arrive(&mut self) {
        while self.index >= self.epoch.samples_at(self.place) {
            (self.place, self.index) = (self.place + 1, 0);
        }
        // Windows and indices are below 2³⁹ each: the sum stays inside 64 bits.
        let shift = self.stream.below(self.arriving, self.window << FRACTION);
        let key = (self.arriving << FRACTION) + shift;
        self.waiting.push(Reverse(Waiting { key, place: self.place, index: self.index }));
        self.arriving += 1;
        self.index += 1;
    }
}

impl Iterator for LaneCursor {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        // The earliest waiting sample may leave once nothing that is still to arrive can have a smaller key.
        while self.arriving < self.samples()
            && self.waiting.peek().is_none_or(|Reverse(first)| first.key > self.arriving << FRACTION)
        {
            self.arrive();
        }
        let Reverse(first) = self.waiting.pop()?;
        self.position += 1;
        Some(Slot { block: self.epoch.block_at(first.place), index: first.index })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.samples() - self.position) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for LaneCursor {}

impl FusedIterator for LaneCursor {}
