//! How much may be in flight, from a run's first read to its steady state: pure.
//!
//! What is needed first gets the link first. The first batch's reads have it to themselves until seven eighths of their bytes are
//! here; what is asked for then arrives when the rest has. Later reads compete with those of the next batch, and more in flight than
//! the link's queues hold costs losses, so depth grows only where it is needed: from one batch's bytes, by a quarter with each batch
//! that the consumer had to wait for, to the plan's bound.

use std::time::Duration;

use crate::schedule::Read;

/// Bounds on what is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) requests: usize,
    pub(super) bytes: u64,
    /// Whether it is host memory that allows no more bytes.
    pub(super) bytes_by_memory: bool,
}

/// Less in flight than this hides no latency worth hiding: 4 × 130 MB/s × 15 ms.
const BYTES_MIN: u64 = 8 << 20;
/// What the bound grows by with each batch that was waited for.
const GROWTH: f64 = 1.25;

/// A consumer that waited less than this did not wait for the link.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// Decides whether one more read may start.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    first_bytes: u64,
    first_left: u64,
    /// The present bound on bytes in flight.
    bytes: f64,
    consumer_waited: Duration,
    in_flight: usize,
    in_flight_bytes: u64,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Admission {
            limits,
            first_bytes: 0,
            first_left: 0,
            bytes: BYTES_MIN as f64,
            consumer_waited: Duration::ZERO,
            in_flight: 0,
            in_flight_bytes: 0,
        }
    }

    /// A read was listed for the first time.
    pub(super) fn listed(&mut self, read: &Read) {
        if read.first_batch == 0 {
            self.first_bytes += read.extent.len;
            self.first_left += read.extent.len;
            self.bytes = self.bytes.max(self.first_bytes as f64);
        }
    }

    /// Whether `read` may start now. With nothing in flight it always may.
    pub(super) fn admits(&self, read: &Read) -> bool {
        if self.in_flight == 0 {
            return true;
        }
        if self.in_flight >= self.limits.requests {
            return false;
        }
        let bytes = self.in_flight_bytes + read.extent.len;
        if read.first_batch == 0 {
            return bytes <= self.limits.bytes.max(self.first_bytes);
        }
        self.first_left * 8 <= self.first_bytes && bytes <= self.limits.bytes.min(self.bytes as u64)
    }

    /// Whether `read` would be admitted if host memory were larger.
    pub(super) fn lacks_memory(&self, read: &Read) -> bool {
        let (bytes, grown) = (self.in_flight_bytes + read.extent.len, self.bytes as u64 >= self.limits.bytes);
        self.limits.bytes_by_memory && self.in_flight < self.limits.requests && bytes > self.limits.bytes && grown
    }

    /// A read was started.
    pub(super) fn started(&mut self, read: &Read) {
        self.in_flight += 1;
        self.in_flight_bytes += read.extent.len;
    }

    /// A read that was started has ended, well or not.
    pub(super) fn ended(&mut self, read: &Read) {
        self.in_flight -= 1;
        self.in_flight_bytes -= read.extent.len;
        if read.first_batch == 0 {
            self.first_left = self.first_left.saturating_sub(read.extent.len);
        }
    }

    /// A batch is complete, and the consumer has waited for `consumer_waited` so far, over all batches.
    pub(super) fn batch_complete(&mut self, consumer_waited: Duration) {
        if consumer_waited > self.consumer_waited + WAIT_MIN {
            self.bytes = (self.bytes * GROWTH).min(self.limits.bytes as f64);
        }
        self.consumer_waited = consumer_waited;
    }

    /// Reads in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Extent;

    fn read(first_batch: u64, len: u64) -> Read {
        Read { id: 0, extent: Extent { shard: 0, start: 0, len }, pages: 1, uses: 1, epoch: 0, first_batch }
    }

    fn with_first_batch(reads: usize) -> Admission {
        let mut admission = Admission::new(Limits { requests: 100, bytes: 64 << 20, bytes_by_memory: false });
        for _ in 0..reads {
            admission.listed(&read(0, 1 << 20));
            admission.started(&read(0, 1 << 20));
        }
        admission
    }

    #[test]
    fn the_first_batch_has_the_link_to_itself() {
        let mut admission = with_first_batch(8);
        for left in (1..8).rev() {
            assert!(!admission.admits(&read(1, 1)) && admission.admits(&read(0, 1)), "{left} left");
            admission.ended(&read(0, 1 << 20));
        }
        assert!(admission.admits(&read(1, 1)));
    }

    #[test]
    fn the_bound_grows_while_it_is_waited_for() {
        let mut admission = with_first_batch(16);
        (0..16).for_each(|_| admission.ended(&read(0, 1 << 20)));
        admission.started(&read(1, 1));
        assert!(admission.admits(&read(1, (16 << 20) - 1)) && !admission.admits(&read(1, 16 << 20)));
        (0..100).for_each(|_| admission.batch_complete(Duration::ZERO));
        assert!(!admission.admits(&read(1, 16 << 20)), "nobody waited");
        (1..=100).for_each(|batch| admission.batch_complete(Duration::from_millis(2 * batch)));
        assert!(admission.admits(&read(1, (64 << 20) - 1)) && !admission.admits(&read(1, 64 << 20)));
    }

    #[test]
    fn what_memory_refuses_is_told_from_what_the_link_does() {
        let limits = Limits { requests: 3, bytes: 4 << 20, bytes_by_memory: true };
        let mut admission = Admission::new(limits);
        admission.started(&read(0, 4 << 20));
        assert!(!admission.admits(&read(1, 1)) && admission.lacks_memory(&read(1, 1)));
        let mut elsewhere = Admission::new(Limits { bytes_by_memory: false, ..limits });
        elsewhere.started(&read(0, 4 << 20));
        assert!(!elsewhere.lacks_memory(&read(1, 1)));
        (0..2).for_each(|_| admission.started(&read(0, 1)));
        assert!(!admission.lacks_memory(&read(1, 1)), "three are in flight");
    }

    #[test]
    fn something_is_always_in_flight() {
        let mut admission = Admission::new(Limits { requests: 1, bytes: 1, bytes_by_memory: false });
        assert!(admission.admits(&read(7, 1 << 40)));
        admission.started(&read(7, 1 << 40));
        assert!(!admission.admits(&read(7, 1)));
    }
}
