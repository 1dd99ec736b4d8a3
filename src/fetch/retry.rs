//! When to ask again: pure.

use std::time::Duration;

/// How long to go on asking. An outage is measured in time without progress, not in attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Give up when nothing has arrived for this long.
    pub patience: Duration,
    /// A request that brings no byte for this long is dropped and asked again.
    pub idle: Duration,
    /// Longest pause before the first retry; doubles with each.
    pub pause_min: Duration,
    /// Longest pause at all.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            patience: Duration::from_secs(120),
            idle: Duration::from_secs(10),
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// The pause before retry `attempt` (0 first): uniform between half and all of an exponentially growing bound, so that
    /// clients that failed together do not come back together. `uniform` is in [0, 1).
    pub fn pause(&self, attempt: u32, uniform: f64) -> Duration {
        let bound = self.pause_min.saturating_mul(1 << attempt.min(20)).min(self.pause_max);
        bound.mul_f64(0.5 + 0.5 * uniform.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.pause(0, 1.0), Duration::from_millis(50));
        assert_eq!(policy.pause(0, 0.0), Duration::from_millis(25));
        assert_eq!(policy.pause(3, 1.0), Duration::from_millis(400));
        assert_eq!(policy.pause(1000, 1.0), policy.pause_max);
    }
}
