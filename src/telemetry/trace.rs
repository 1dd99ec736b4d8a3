//! The newest spans of a run, for a timeline.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// What a span shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// A request, from asking to its last byte.
    Fetch,
    /// A batch being assembled on the device.
    Copy,
    /// The consumer at work on a batch.
    Compute,
    /// The consumer waiting for a batch.
    Stall,
}

/// Something that took time. Seconds since the loader was built.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Span {
    /// What it was.
    pub lane: Lane,
    /// Begin.
    pub start_s: f64,
    /// End.
    pub end_s: f64,
    /// Read or batch number.
    pub id: u64,
    /// Payload.
    pub bytes: u64,
}

/// A bounded list of spans: when full, the oldest go. A forked child has none: neither its parent's nor its own.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    capacity: usize,
    /// Whose threads add to it: in a child of that process one of them may hold the lock for ever.
    process: u32,
    spans: Mutex<VecDeque<Span>>,
}

impl Trace {
    pub(super) fn new(started: Instant, capacity: usize) -> Self {
        let spans = Mutex::new(VecDeque::with_capacity(capacity.min(1 << 20)));
        Trace { started, capacity, process: std::process::id(), spans }
    }

    /// Adds a span.
    pub fn add(&self, lane: Lane, start: Instant, end: Instant, id: u64, bytes: u64) {
        if self.capacity == 0 {
            return;
        }
        let since = |at: Instant| at.saturating_duration_since(self.started).as_secs_f64();
        let span = Span { lane, start_s: since(start), end_s: since(end), id, bytes };
        let Some(mut spans) = self.lock() else { return };
        if spans.len() == self.capacity {
            spans.pop_front();
        }
        spans.push_back(span);
    }

    /// The spans kept, in order of their ends.
    pub fn spans(&self) -> Vec<Span> {
        self.lock().map_or_else(Vec::new, |spans| spans.iter().copied().collect())
    }

    /// The list, in the process that has it.
    fn lock(&self) -> Option<MutexGuard<'_, VecDeque<Span>>> {
        (self.process == std::process::id()).then(|| self.spans.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lock is held when the child is forked, and nobody lets go of it there.
    #[test]
    fn a_forked_child_has_no_spans_and_does_not_wait() {
        let start = Instant::now();
        let trace = Trace::new(start, 2);
        trace.add(Lane::Fetch, start, start, 0, 0);
        let held = trace.lock();
        let answer = farfeed_driver_double::in_a_child(std::time::Duration::from_secs(20), || {
            trace.add(Lane::Fetch, start, start, 1, 0);
            format!("{} spans", trace.spans().len())
        });
        assert_eq!(answer.as_deref(), Ok("0 spans"));
        drop(held);
        assert_eq!(trace.spans().len(), 1);
    }

    #[test]
    fn keeps_the_newest() {
        let start = Instant::now();
        let trace = Trace::new(start, 2);
        for id in 0..5 {
            trace.add(Lane::Fetch, start, start, id, 0);
        }
        assert_eq!(trace.spans().iter().map(|span| span.id).collect::<Vec<_>>(), [3, 4]);
    }
}
