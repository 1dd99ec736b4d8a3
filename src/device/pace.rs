//! How often to ask whether a copy is done: often enough that pages come back soon, seldom enough that asking costs nothing.

use std::time::{Duration, Instant};

/// Questions are no closer than this, however short batches are: 8 MB take 145 µs on PCIe 5.
const LOOK_MIN: Duration = Duration::from_micros(50);
/// And no further apart, however long: what is late by this costs a page for 2 ms, and asking 500 times per second
/// costs a thousandth of a processor.
const LOOK_MAX: Duration = Duration::from_millis(2);

/// When to look at the oldest batch: first at three quarters of the time that the last one took, then each eighth of it. That is two or
/// three questions per batch, whether it takes the link's time or waits for a slot's consumer, until the bound above.
pub(super) struct Pace {
    /// What the last batch took from its turn to the look that found it landed.
    took: Duration,
    /// When the oldest batch's turn came: when it was sealed, or when the one before had landed.
    turn: Instant,
    next: Instant,
}

impl Pace {
    pub(super) fn new() -> Pace {
        let now = Instant::now();
        Pace { took: LOOK_MIN, turn: now, next: now }
    }

    /// A batch was sealed; `behind` others or alone.
    pub(super) fn sealed(&mut self, now: Instant, behind: bool) {
        if !behind {
            self.begin(now);
        }
    }

    /// The oldest batch has landed; whether there are `more`.
    pub(super) fn landed(&mut self, now: Instant, more: bool) {
        self.took = now.saturating_duration_since(self.turn);
        if more {
            self.begin(now);
        }
    }

    /// The oldest batch has not landed yet.
    pub(super) fn not_yet(&mut self, now: Instant) {
        self.next = now + (self.took / 8).clamp(LOOK_MIN, LOOK_MAX);
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// How long there is nothing to look at.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now).max(LOOK_MIN)
    }

    fn begin(&mut self, now: Instant) {
        self.turn = now;
        self.next = now + (self.took * 3 / 4).clamp(LOOK_MIN, LOOK_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks when it is time to until a batch that takes `takes` has landed; how often, and how late.
    fn follow(pace: &mut Pace, start: Instant, takes: Duration) -> (usize, Duration) {
        pace.sealed(start, false);
        for look in 1.. {
            let now = pace.next;
            assert!(pace.is_due(now) && !pace.is_due(now - Duration::from_nanos(1)));
            if now >= start + takes {
                pace.landed(now, false);
                return (look, now - start - takes);
            }
            pace.not_yet(now);
        }
        unreachable!("there is always a next look")
    }

    #[test]
    fn batches_alike_are_asked_about_a_few_times() {
        for micros in [20, 145, 600, 2_000, 2_600] {
            let (mut pace, takes) = (Pace::new(), Duration::from_micros(micros));
            let mut start = Instant::now();
            let mut looks = Vec::new();
            for _ in 0..40 {
                let (count, late) = follow(&mut pace, start, takes);
                assert!(late <= (takes / 4).max(LOOK_MIN * 2), "{takes:?}: {late:?} late");
                start += takes * 2;
                looks.push(count);
            }
            let settled: usize = looks[10..].iter().sum();
            assert!(settled <= 30 * 4, "{takes:?}: {looks:?}");
        }
    }

    #[test]
    fn a_long_wait_is_looked_at_at_a_bounded_rate_and_forgotten_soon() {
        let (mut pace, start) = (Pace::new(), Instant::now());
        for batch in 0..3 {
            let (looks, late) = follow(&mut pace, start + Duration::from_secs(batch), Duration::from_millis(300));
            assert!(looks <= 320 && late <= LOOK_MAX, "{looks} looks, {late:?} late");
        }
        let (_, late) = follow(&mut pace, start + Duration::from_secs(9), Duration::from_micros(150));
        assert!(late <= LOOK_MAX, "{late:?}");
        assert!(follow(&mut pace, start + Duration::from_secs(10), Duration::from_micros(150)).1 <= LOOK_MAX);
    }

    #[test]
    fn a_batch_behind_another_begins_when_that_has_landed() {
        let mut pace = Pace::new();
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        pace.sealed(start, false);
        pace.sealed(at(10), true);
        pace.landed(at(800), true);
        assert_eq!(pace.next, at(800 + 600));
        pace.landed(at(1_600), false);
        assert_eq!((pace.took, pace.wait(at(1_600))), (Duration::from_micros(800), LOOK_MIN));
    }
}
