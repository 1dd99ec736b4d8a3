//! Which bytes, in what order, against what budget: pure, no I/O, no clock.
//!
//! *Takes* a dataset, an order over it and a place in that order. *Gives* [`Step`]s: reads in the order in which they
//! are needed, and batches as lists of pieces of those reads; and the [`Plan`] that can be printed before any of it
//! happens. *Owns* the blocks of the current window and which of their samples a read covers. *Bounded* by one window
//! of samples, whatever the dataset's size. *Fails* when a sample lacks a field that was asked for.
//!
//! Reads are listed in the order of need and admitted in that order against the page budget. Hence no deadlock: when the
//! oldest unfinished batch lacks a read, every page that is taken belongs to a read listed before it, and those either land
//! or are held by samples of the same window, whose pages [`Budget`] has counted.

mod budget;
mod cover;
mod plan;
mod walk;

pub use budget::Budget;
pub use plan::Plan;
pub(crate) use plan::write_wrapped;
pub use walk::{BatchPlan, Piece, Read, Schedule, Step};

/// What reads look like on this store, in these pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Longest read when there is enough to read, in bytes.
    pub request_bytes: u64,
    /// Longest read while the first batches are waited for: short ones, so that many connections share the work.
    pub cold_request_bytes: u64,
    /// Gap in bytes that is read over rather than asked around.
    pub gap_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Reads are widened to multiples of this many bytes (1: they are not).
    pub alignment: usize,
}

impl Shape {
    /// Longest read of a block that batches already wait for: shorter, since the oldest of them waits for the slowest connection.
    pub fn incomplete_request_bytes(&self) -> u64 {
        (self.request_bytes / 4).max(self.cold_request_bytes)
    }

    /// Pages that a read of `len` bytes takes.
    pub fn pages(&self, len: u64) -> usize {
        let widening = if self.alignment > 1 { 2 * self.alignment as u64 } else { 0 };
        usize::try_from((len + widening).div_ceil(self.page_bytes as u64).max(1)).unwrap_or(usize::MAX)
    }
}
