//! Faults of time: when bytes that the link has carried are handed over.

use std::time::{Duration, Instant};

use super::fault::Effect;

/// When bytes that have arrived are handed over: at once, unless a fault holds them back.
pub(super) struct Pace {
    effect: Option<Effect>,
    asked: Instant,
    /// Bytes of the head, which faults of the body spare.
    head: u64,
    /// When the body began, or the pause.
    first: Option<Instant>,
}

impl Pace {
    /// For what was asked for at `asked`, and starts with so many bytes of head.
    pub(super) fn new(effect: Option<Effect>, asked: Instant, head: u64) -> Self {
        Pace { effect, asked, head, first: None }
    }

    /// Of `credit` bytes at position `sent`, which arrived `at`: how many to hand over, and not before when.
    pub(super) fn next(&mut self, sent: u64, credit: usize, at: Instant) -> (usize, Option<Instant>) {
        match self.effect {
            Some(Effect::Slow { factor }) => {
                let late = (at - self.asked).mul_f64(factor);
                (credit, Some(self.asked + late))
            }
            Some(Effect::Stall { after, pause }) => {
                let before = (self.head + after).saturating_sub(sent);
                match (before, self.first) {
                    (0, None) => {
                        let resumes = Instant::now() + pause;
                        self.first = Some(resumes);
                        (credit, Some(resumes))
                    }
                    (0, Some(_)) => (credit, None),
                    (before, _) => (usize::try_from(before).unwrap_or(credit).min(credit), None),
                }
            }
            Some(Effect::Drip { bytes_s }) if sent >= self.head => {
                let first = *self.first.get_or_insert_with(Instant::now);
                // A twentieth of a second's worth at a time.
                let bytes = usize::try_from(bytes_s.div_ceil(20)).unwrap_or(credit).min(credit);
                let done = sent - self.head + bytes as u64;
                (bytes, Some(first + Duration::from_secs_f64(done as f64 / bytes_s as f64)))
            }
            Some(Effect::Drip { .. }) => (usize::try_from(self.head - sent).unwrap_or(credit).min(credit), None),
            _ => (credit, None),
        }
    }
}
