//! When to ask again.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Whether a request that is late is raced by a second one, and how much that may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    per_mille: u32,
}

impl Hedge {
    /// No second requests.
    pub const fn off() -> Self {
        Hedge { per_mille: 0 }
    }

    /// Up to so many bytes may be asked for twice, in thousandths of those that have arrived. 20 is the default.
    pub const fn per_mille(extra: u32) -> Self {
        Hedge { per_mille: extra }
    }

    /// What may be asked for twice, as a share of what has arrived.
    pub fn share(self) -> f64 {
        f64::from(self.per_mille) / 1000.0
    }

    /// Whether there are any.
    pub const fn is_off(self) -> bool {
        self.per_mille == 0
    }

    /// Bytes that may be asked for twice when `delivered` have arrived, `burst` of them before the share comes to as much.
    pub(super) fn budget(self, delivered: u64, burst: u64) -> u64 {
        if self.is_off() { 0 } else { burst.max(delivered.saturating_mul(self.per_mille.into()) / 1000) }
    }
}

impl Default for Hedge {
    fn default() -> Self {
        Hedge::per_mille(20)
    }
}

impl From<bool> for Hedge {
    fn from(on: bool) -> Self {
        if on { Hedge::default() } else { Hedge::off() }
    }
}

/// How long to go on asking. An outage is measured in time without progress, not in attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Give up when nothing has arrived for this long.
    pub patience: Duration,
    /// A request that brings no byte for this long is dropped and asked again.
    pub idle: Duration,
    /// A request that brings fewer bytes per second than this over the time `idle` is dropped, and the rest is asked for again, on another
    /// connection. Where everything is slow it is a quarter of what is usual. 0 is no limit.
    pub rate_min: u64,
    /// Second requests for what is late.
    pub hedge: Hedge,
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
            rate_min: 16 << 10,
            hedge: Hedge::default(),
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

    /// How long to rest before retry `attempt` after `error`, when the last progress was `quiet` ago; `None` to give up:
    /// the error does not pass, or patience would end before the rest does. A store that names a time is not asked sooner.
    pub(super) fn rest_before(&self, error: &Error, attempt: u32, quiet: Duration, uniform: f64) -> Option<Duration> {
        let rest = self.pause(attempt, uniform).max(error.retry_after().unwrap_or_default());
        (error.is_transient() && quiet.saturating_add(rest) < self.patience).then_some(rest)
    }

    /// Rests before retry `attempt`.
    ///
    /// # Errors
    /// `error` again, when it is to be given up.
    pub(super) async fn rest(&self, error: Error, attempt: u32, last_progress: Instant) -> Result<()> {
        let quiet = last_progress.elapsed();
        match self.rest_before(&error, attempt, quiet, fastrand::f64()) {
            Some(rest) => tokio::time::sleep(rest).await,
            None if error.is_transient() => return Err(error.within(format!("no progress for {quiet:.1?}"))),
            None => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn pauses_grow_to_a_bound() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.pause(0, 1.0), Duration::from_millis(50));
        assert_eq!(policy.pause(0, 0.0), Duration::from_millis(25));
        assert_eq!(policy.pause(3, 1.0), Duration::from_millis(400));
        assert_eq!(policy.pause(1000, 1.0), policy.pause_max);
    }

    #[test]
    fn a_store_that_names_a_time_is_not_asked_sooner() {
        let policy = RetryPolicy { patience: Duration::from_secs(10), ..RetryPolicy::default() };
        let rest = |error: Error, quiet| policy.rest_before(&error, 0, Duration::from_secs(quiet), 1.0);
        let busy = |seconds| Error::new(Kind::Throttled, "busy").retry_in(Duration::from_secs(seconds));
        assert_eq!(rest(busy(3), 0), Some(Duration::from_secs(3)));
        assert_eq!(rest(busy(0), 0), Some(policy.pause_min));
        assert_eq!(rest(busy(3), 8), None, "patience ends before that");
        assert_eq!(rest(busy(60), 0), None);
        assert_eq!(rest(Error::new(Kind::NotFound, "gone"), 0), None);
    }
}
