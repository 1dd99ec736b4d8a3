//! When a request is late, and whether asking a second time is worth it: pure.
//!
//! How long requests usually take is learnt from the newest ones, whatever their size: the first byte apart from the pace of what
//! follows. Late is what takes far longer than nearly all of them. A late request is raced by a second one, unless so many are late
//! that it is the link or the store that is slow: asking twice would make that worse.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::retry::Hedge;

/// Requests that are remembered.
const SAMPLES_MAX: usize = 256;
/// With fewer there is no saying what is usual.
const SAMPLES_MIN: usize = 8;
/// The share of requests that are no later than the deadline's base.
const QUANTILE: f64 = 0.95;
/// A deadline is this many times what nearly all requests take, and a little more for whatever else the machine does.
const FACTOR: f64 = 2.0;
/// First bytes vary less than bodies do.
const FIRST_BYTE_FACTOR: f64 = 1.5;
const FLOOR: Duration = Duration::from_millis(10);

/// Bytes that may be asked for twice before so many have arrived that the share allows them: the first seconds' stragglers. It is not
/// added to the share: after 100 MiB the share alone counts.
const BURST_BYTES: u64 = 2 << 20;
/// What a connection that brought nothing may have had on its way when it was closed.
const UNSEEN_BYTES: u64 = 128 << 10;
/// Reads older than this many others in flight may use the whole budget, the others half of it: the oldest batch waits for the former.
const URGENT: usize = 16;

/// Outcomes of the newest requests, a bit each, and how many of them may be late before everything counts as slow.
const RECENT_LATE_MAX: u32 = 8;
/// Of the requests in flight one, and one more for so many, may be late.
const LATE_SHARE: usize = 16;

/// A second request goes out in so many parts at the most, each at least so long: what is idle when it is sent are cold connections, and what a
/// whole read takes over one of them is round trips. More of them at once fill the link's queue, and cost the others more than they gain.
const PARTS_MAX: usize = 4;
const PART_BYTES_MIN: u64 = 64 << 10;

/// Requests in flight, second ones included: a connection each.
const CONNECTIONS_MAX: usize = 256;

/// A request that crawls is told from one whose first bytes were just seen by now.
const CRAWL_MIN: Duration = Duration::from_millis(250);
/// A silent request is not given up sooner, however fast the others are.
const SILENCE_MIN: Duration = Duration::from_secs(1);
/// Requests that must have been served in time meanwhile, for one to be given up as silent.
const SERVED_MIN: u64 = 16;

/// Looks are no closer together and no further apart than this.
const LOOK_MIN: Duration = Duration::from_millis(5);
const LOOK_MAX: Duration = Duration::from_millis(250);
/// How often to look while nothing is known.
const LOOK_BLIND: Duration = Duration::from_millis(20);

/// What is known of the requests to one store.
#[derive(Debug)]
pub(super) struct Tails {
    hedge: Hedge,
    samples: VecDeque<Sample>,
    /// Samples ever taken: tells how old a cached figure is.
    taken: u64,
    /// What is usual, by the power of two that a size lies in.
    usual: Vec<Option<(u64, Usual)>>,
    in_flight: BTreeSet<u64>,
    late_in_flight: usize,
    /// Second requests for those in flight, each part a request.
    racing: usize,
    /// The newest outcomes, the newest in the lowest bit: 1 is late.
    recent: u64,
    in_time: u64,
    late: u64,
    delivered: u64,
    asked_twice: u64,
}

/// A request that was answered in full. Seconds.
#[derive(Clone, Copy, Debug)]
struct Sample {
    bytes: usize,
    first_byte: f64,
    /// Per byte, after the first.
    pace: f64,
}

/// What requests of about one size take. Seconds.
#[derive(Clone, Copy, Debug)]
struct Usual {
    first_byte: f64,
    first_byte_late: f64,
    pace: f64,
    pace_late: f64,
}

/// One request in flight.
#[derive(Debug)]
pub(super) struct Watch {
    id: u64,
    bytes: usize,
    /// How many had been served in time, and late, when it began.
    in_time_before: u64,
    late_before: u64,
    is_late: bool,
    late_since: Option<Duration>,
    /// Parts of its second request; there is one at the most.
    hedged: usize,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Since it was sent.
    pub(super) elapsed: Duration,
    /// Whether the answer has begun.
    pub(super) answered: bool,
    /// Bytes that it brought.
    pub(super) landed: usize,
    /// Since it last brought any, or was sent.
    pub(super) quiet: Duration,
    /// Whether several answers may be put together.
    pub(super) splits: bool,
}

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Look again after so long.
    Wait(Duration),
    /// Ask a second time for what is missing, in at most so many parts; the bytes are reserved.
    Hedge { parts: usize },
    /// Nothing comes, while others are served: ask elsewhere.
    GiveUp,
}

impl Tails {
    pub(super) fn new(hedge: Hedge) -> Self {
        Tails {
            hedge,
            samples: VecDeque::with_capacity(SAMPLES_MAX),
            taken: 0,
            usual: vec![None; usize::BITS as usize + 1],
            in_flight: BTreeSet::new(),
            late_in_flight: 0,
            racing: 0,
            recent: 0,
            in_time: 0,
            late: 0,
            delivered: 0,
            asked_twice: 0,
        }
    }

    /// A request for `bytes` bytes begins. Of two requests, that with the smaller `id` is needed first.
    pub(super) fn begin(&mut self, id: u64, bytes: usize) -> Watch {
        self.in_flight.insert(id);
        let (in_time_before, late_before) = (self.in_time, self.late);
        Watch { id, bytes, in_time_before, late_before, is_late: false, late_since: None, hedged: 0 }
    }

    /// It has ended with `landed` bytes, after `elapsed`; `None` when it failed.
    pub(super) fn end(&mut self, mut watch: Watch, landed: usize, elapsed: Option<Duration>) {
        let usual = self.usual(&watch);
        self.mark(&mut watch, false);
        self.in_flight.remove(&watch.id);
        self.racing -= watch.hedged;
        self.delivered += landed as u64;
        let Some(elapsed) = elapsed else { return };
        let late = usual.is_some_and(|usual| elapsed >= usual.deadline(watch.bytes));
        self.recent = self.recent << 1 | u64::from(late);
        *(if late { &mut self.late } else { &mut self.in_time }) += 1;
    }

    /// A request for `bytes` bytes took this long; also one that was overtaken after as many, and would have taken longer.
    pub(super) fn sample(&mut self, bytes: usize, elapsed: Duration, first_byte: Duration) {
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        let body = elapsed.saturating_sub(first_byte).as_secs_f64();
        let (first_byte, pace) = (first_byte.as_secs_f64(), body / bytes.max(1) as f64);
        self.samples.push_back(Sample { bytes, first_byte, pace });
        self.taken += 1;
    }

    /// What to do about a request that has come so far.
    pub(super) fn look(&mut self, watch: &mut Watch, seen: Seen) -> Look {
        let Some(usual) = self.usual(watch) else {
            self.mark(watch, false);
            return Look::Wait((seen.elapsed / 8).clamp(LOOK_BLIND, LOOK_MAX));
        };
        let due = usual.due(watch.bytes, seen);
        if seen.elapsed < due {
            self.mark(watch, false);
            return Look::Wait((due - seen.elapsed).clamp(LOOK_MIN, LOOK_MAX));
        }
        self.mark(watch, true);
        if self.is_alone_in_silence(watch, &usual, seen) {
            return Look::GiveUp;
        }
        // If everything is slow, others will be late by then, too.
        let beat = due / 8;
        let since = watch.late_since.unwrap_or(seen.elapsed);
        watch.late_since = Some(since);
        if seen.elapsed < since + beat {
            return Look::Wait((since + beat - seen.elapsed).clamp(LOOK_MIN, LOOK_MAX));
        }
        let missing = (watch.bytes - seen.landed.min(watch.bytes)) as u64;
        let sensible = missing > 0 && watch.hedged == 0 && usual.is_worth_it(watch.bytes, seen) && self.is_calm();
        if sensible && self.reserve(watch, missing) {
            watch.hedged = self.parts(missing, seen.splits);
            self.racing += watch.hedged;
            return Look::Hedge { parts: watch.hedged };
        }
        Look::Wait(beat.clamp(LOOK_MIN, LOOK_MAX))
    }

    /// The second request for `reserved` bytes was not sent after all.
    pub(super) fn unsent(&mut self, watch: &mut Watch, reserved: u64) {
        self.racing -= std::mem::take(&mut watch.hedged);
        self.asked_twice -= reserved.min(self.asked_twice);
    }

    /// The second request overtook the first, which had brought `twice` bytes meanwhile, of `reserved`. When the first one wins,
    /// all that was reserved stays charged: it may have been on its way.
    pub(super) fn overtaken(&mut self, reserved: u64, twice: u64) {
        let cost = twice.saturating_add(UNSEEN_BYTES).min(reserved);
        self.asked_twice -= (reserved - cost).min(self.asked_twice);
    }

    /// Whether so many bytes may be asked for once more for this request; they are reserved then.
    pub(super) fn reserve(&mut self, watch: &Watch, bytes: u64) -> bool {
        let affords = self.affords(watch, bytes);
        self.asked_twice += if affords { bytes } else { 0 };
        affords
    }

    /// When the answer to a request should have begun, if that is known.
    pub(super) fn first_byte_due(&mut self, watch: &Watch) -> Option<Duration> {
        self.usual(watch).map(|usual| usual.first_byte_due())
    }

    /// The second request is being answered: it was only the first one that was late.
    pub(super) fn answered(&mut self, watch: &mut Watch) {
        self.mark(watch, false);
    }

    /// The store refused a second request: it has no room for them. None is sent until most of the newest requests were in time again.
    pub(super) fn refused(&mut self) {
        self.recent = u64::MAX;
    }

    /// Bytes per second below which a request is dropped: what the caller allows, but no more than a quarter of what is usual.
    pub(super) fn rate_floor(&mut self, watch: &Watch, rate_min: u64) -> u64 {
        let usual = self.usual(watch).map_or(f64::INFINITY, |usual| 1.0 / usual.pace.max(1e-12));
        rate_min.min((usual / 4.0) as u64)
    }

    fn mark(&mut self, watch: &mut Watch, late: bool) {
        match (watch.is_late, late) {
            (false, true) => self.late_in_flight += 1,
            (true, false) => self.late_in_flight -= 1,
            _ => {}
        }
        watch.is_late = late;
        if !late {
            watch.late_since = None;
        }
    }

    /// What requests of this size usually take; `None` while too few are known. Those that end first are the fast ones: what ended
    /// tells little of what did not as long as there are more of the latter.
    fn usual(&mut self, watch: &Watch) -> Option<Usual> {
        let here = self.samples.len();
        let enough = here >= SAMPLES_MIN && (here == SAMPLES_MAX || here >= 2 * self.elders(watch));
        if !enough {
            return None;
        }
        let class = watch.bytes.checked_ilog2().map_or(0, |log| log as usize + 1);
        let stale = |taken: u64| self.taken - taken > (here / 16) as u64;
        if let Some((taken, usual)) = self.usual[class]
            && !stale(taken)
        {
            return Some(usual);
        }
        let usual = Usual::of(&self.samples, watch.bytes);
        self.usual[class] = Some((self.taken, usual));
        Some(usual)
    }

    /// Requests in flight that are needed no later than this one, itself included.
    fn elders(&self, watch: &Watch) -> usize {
        self.in_flight.range(..=watch.id).count()
    }

    fn connections(&self) -> usize {
        self.in_flight.len() + self.racing
    }

    /// How many requests share what is asked for twice: the more, the sooner they are through.
    fn parts(&self, bytes: u64, splits: bool) -> usize {
        let most = if splits { PARTS_MAX.min(CONNECTIONS_MAX - self.connections()) } else { 1 };
        ((bytes / PART_BYTES_MIN) as usize).clamp(1, most)
    }

    fn is_calm(&self) -> bool {
        self.connections() < CONNECTIONS_MAX
            && self.late_in_flight <= 1 + self.in_flight.len() / LATE_SHARE
            && self.recent.count_ones() <= RECENT_LATE_MAX
    }

    fn affords(&self, watch: &Watch, bytes: u64) -> bool {
        let budget = self.hedge.budget(self.delivered, BURST_BYTES);
        let budget = if self.elders(watch) <= URGENT { budget } else { budget / 2 };
        self.asked_twice + bytes <= budget
    }

    fn is_alone_in_silence(&self, watch: &Watch, usual: &Usual, seen: Seen) -> bool {
        let silence = SILENCE_MIN.max(seconds(4.0 * FACTOR * usual.first_byte_late));
        let (in_time, late) = (self.in_time - watch.in_time_before, self.late - watch.late_before);
        seen.quiet >= silence && in_time >= SERVED_MIN && in_time >= 4 * late
    }
}

impl Watch {
    /// Bytes asked for.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Usual {
    /// Of requests of at least a quarter of that size, if there are some; short ones tell more of round trips than of pace.
    fn of(samples: &VecDeque<Sample>, bytes: usize) -> Self {
        let of_size = |least: usize| samples.iter().filter(move |sample| sample.bytes >= least);
        let least = if of_size(bytes / 4).count() >= SAMPLES_MIN { bytes / 4 } else { 1 };
        let mut first_bytes: Vec<f64> = samples.iter().map(|sample| sample.first_byte).collect();
        let mut paces: Vec<f64> = of_size(least).map(|sample| sample.pace).collect();
        Usual {
            first_byte: quantile(&mut first_bytes, 0.5),
            first_byte_late: quantile(&mut first_bytes, QUANTILE),
            pace: quantile(&mut paces, 0.5),
            pace_late: quantile(&mut paces, QUANTILE),
        }
    }

    /// When all bytes should be here.
    fn deadline(&self, bytes: usize) -> Duration {
        FLOOR + seconds(FACTOR * (self.first_byte_late + self.pace_late * bytes as f64))
    }

    /// When the first of them should be here.
    fn first_byte_due(&self) -> Duration {
        FLOOR + seconds(FIRST_BYTE_FACTOR * self.first_byte_late)
    }

    /// When a request that has come so far is late.
    fn due(&self, bytes: usize, seen: Seen) -> Duration {
        let due = self.deadline(bytes);
        if !seen.answered && seen.landed == 0 {
            return due.min(self.first_byte_due());
        }
        // Half its time has gone, and at this pace the other half will not do: what is seen of a body lags behind by some moments.
        let crawls = || seen.elapsed.as_secs_f64() * bytes as f64 > due.as_secs_f64() * seen.landed as f64;
        let half = due.div_f64(2.0).max(CRAWL_MIN).min(due);
        if seen.elapsed >= half && seen.landed < bytes && crawls() { half } else { due }
    }

    /// Whether a second request would be through well before the first.
    fn is_worth_it(&self, bytes: usize, seen: Seen) -> bool {
        if seen.landed == 0 {
            return true;
        }
        let missing = bytes.saturating_sub(seen.landed) as f64;
        let left = seen.quiet.as_secs_f64().max(seen.elapsed.as_secs_f64() * missing / seen.landed as f64);
        left > 1.5 * (self.first_byte + self.pace * missing)
    }
}

/// The value that the share `at` of all values does not exceed; they are reordered. 0 without any.
fn quantile(values: &mut [f64], at: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let (_, value, _) = values.select_nth_unstable_by((at * last as f64).ceil() as usize, f64::total_cmp);
    *value
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 16)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
