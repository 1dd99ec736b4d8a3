//! What may be read now, from a run's first read to its steady state: pure, it is told the time.
//!
//! What is needed first gets the link first. The first batch's reads have it to themselves until seven eighths of their bytes are
//! here; what is asked for then arrives when the rest has. Later reads compete with those of the next batch: how many of them depth
//! lets in follows the link ([`Controller`]), or where a depth was asked for it grows to that from one batch's bytes, by a quarter with
//! each batch that the consumer had to wait for. And where a rate was asked for, no more is started than that allows.

use std::time::Duration;

use crate::fetch::{BYTES_MIN, Bounds, Controller, HeldBy, Learnt, Observed};
use crate::schedule::Read;

/// Bounds on what is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most reads while they are short: at the cold start.
    pub(super) requests: usize,
    /// The most reads at all.
    pub(super) requests_max: usize,
    /// The most bytes.
    pub(super) bytes: u64,
    /// Whether it is host memory that allows no more bytes.
    pub(super) bytes_by_memory: bool,
    /// Whether the depth follows the link; else it grows to `bytes`.
    pub(super) follows: bool,
    /// Bytes per second that are asked for at the most.
    pub(super) max_rate: Option<u64>,
}

/// What a depth that was asked for grows by with each batch that was waited for.
const GROWTH: f64 = 1.25;
/// A consumer that waited less than this did not wait for the link.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// How much of a rate may be made up for at once, after nothing was asked for: so many seconds of it.
const BURST_S: f64 = 0.1;

/// Why a read was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// All that is listed is in flight.
    Nothing,
    /// Enough bytes are in flight.
    Bytes,
    /// Enough reads are in flight.
    Requests,
    /// The first batch has the link to itself.
    FirstBatch,
    /// No page is free, or those that are left are meant for the window.
    Pages,
    /// The rate that was asked for allows it at this time.
    Rate(Duration),
}

/// How long a crowd takes to disperse by half.
const CROWD_HALVED_S: f64 = 2.0;

/// Decides whether one more read may start.
#[derive(Debug)]
pub(super) struct Admission {
    limits: Limits,
    first_bytes: u64,
    first_left: u64,
    controller: Controller,
    /// The present bound on bytes in flight, where it does not follow the link.
    grown: f64,
    consumer_waited: Duration,
    /// Whether the consumer waited for the last batch that became complete.
    hungry: bool,
    in_flight: usize,
    in_flight_bytes: u64,
    /// Bytes of reads that have ended.
    landed: u64,
    /// The longest read so far, in bytes.
    longest: u64,
    crowd: Crowd,
    bucket: Option<Bucket>,
}

/// How many reads were in flight of late, when they were short.
///
/// The start has two hundred short reads in flight, and each connection's congestion window becomes its share of the link. What
/// follows are long reads: the same bytes in flight are on a sixth of the connections, whose windows together let a part of
/// the link's rate through, and take seconds to grow. So their number falls no faster than that, as far as memory allows.
#[derive(Debug, Default)]
struct Crowd {
    reads: f64,
    at: Duration,
}

/// How far ahead of a rate one is: reads are paid for when they start, and may leave a debt.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    /// Bytes that may be asked for at `at`; below zero when the last read was longer than what was left.
    bytes: f64,
    at: Duration,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        let bounds = Bounds { bytes: BYTES_MIN, bytes_max: limits.bytes, requests_max: limits.requests_max };
        Admission {
            limits,
            first_bytes: 0,
            first_left: 0,
            controller: Controller::new(bounds),
            grown: BYTES_MIN as f64,
            consumer_waited: Duration::ZERO,
            hungry: true,
            in_flight: 0,
            in_flight_bytes: 0,
            landed: 0,
            longest: 0,
            crowd: Crowd::default(),
            bucket: limits.max_rate.map(Bucket::of),
        }
    }

    /// A read was listed for the first time.
    pub(super) fn listed(&mut self, read: &Read) {
        if read.first_batch == 0 {
            self.first_bytes += read.extent.len;
            self.first_left += read.extent.len;
            self.controller.begin_with(self.first_bytes);
            self.grown = self.grown.max(self.first_bytes as f64);
        }
    }

    /// Why `read` may not start now, if it may not. With nothing in flight only a rate can hold it back.
    pub(super) fn holds(&mut self, read: &Read, now: Duration) -> Option<Held> {
        if let Some(at) = self.bucket.as_mut().and_then(|bucket| bucket.empty_until(now)) {
            return Some(Held::Rate(at));
        }
        if self.in_flight == 0 {
            return None;
        }
        let bytes = self.in_flight_bytes + read.extent.len;
        if read.first_batch == 0 {
            let most = self.limits.bytes.max(self.first_bytes);
            return if bytes > most { Some(Held::Bytes) } else { self.holds_requests(now) };
        }
        if self.is_first_batch_on_its_way() {
            return Some(Held::FirstBatch);
        }
        if bytes > self.bytes() && !self.takes_longer_reads(bytes, now) {
            return Some(Held::Bytes);
        }
        self.holds_requests(now)
    }

    /// Whether there may be more bytes in flight than the link wants by itself, because they are on fewer connections than of late and
    /// leave it room.
    fn takes_longer_reads(&self, bytes: u64, now: Duration) -> bool {
        let follows = self.limits.follows && bytes <= self.limits.bytes;
        follows && (self.in_flight as f64) < self.crowd.size(now) && self.hungry && self.controller.has_room()
    }

    fn holds_requests(&self, now: Duration) -> Option<Held> {
        (self.in_flight >= self.requests(now)).then_some(Held::Requests)
    }

    fn is_first_batch_on_its_way(&self) -> bool {
        self.first_left * 8 > self.first_bytes
    }

    /// The most bytes in flight at present.
    pub(super) fn bytes(&self) -> u64 {
        if self.limits.follows { self.controller.bytes() } else { self.limits.bytes.min(self.grown as u64) }
    }

    /// The most reads in flight at present.
    pub(super) fn requests(&self, now: Duration) -> usize {
        let most = if self.is_first_batch_on_its_way() { self.limits.requests } else { self.limits.requests_max };
        most.min(self.controller.requests(now))
    }

    /// What was found out about the link.
    pub(super) fn learnt(&self) -> Learnt {
        self.controller.learnt()
    }

    /// Whether `read` would be admitted if host memory were larger.
    pub(super) fn lacks_memory(&self, read: &Read, now: Duration) -> bool {
        let (bytes, grown) = (self.in_flight_bytes + read.extent.len, self.bytes() >= self.limits.bytes);
        self.limits.bytes_by_memory && self.in_flight < self.requests(now) && bytes > self.limits.bytes && grown
    }

    /// A read was started.
    pub(super) fn started(&mut self, read: &Read) {
        self.in_flight += 1;
        self.in_flight_bytes += read.extent.len;
        self.longest = self.longest.max(read.extent.len);
        if let Some(bucket) = &mut self.bucket {
            bucket.bytes -= read.extent.len as f64;
        }
    }

    /// A read that was started has ended, well or not.
    pub(super) fn ended(&mut self, read: &Read, observed: &Observed) {
        self.in_flight -= 1;
        self.in_flight_bytes -= read.extent.len;
        self.landed += read.extent.len;
        self.controller.landed(observed.first_byte, observed.took);
        if read.first_batch == 0 {
            self.first_left = self.first_left.saturating_sub(read.extent.len);
        }
    }

    /// The store asked for less, or did not answer in time, so many times.
    pub(super) fn refused(&mut self, now: Duration, throttled: u64, timed_out: u64) {
        if throttled > 0 {
            self.controller.throttled(now, self.in_flight);
        }
        if timed_out > 0 {
            self.controller.timed_out(now, timed_out as usize, self.in_flight);
        }
    }

    /// From now on reads are held back by this.
    pub(super) fn turned(&mut self, now: Duration, held: Held) {
        let by = match held {
            Held::Bytes => HeldBy::Bytes,
            Held::Requests => HeldBy::Requests,
            Held::Nothing | Held::FirstBatch | Held::Pages | Held::Rate(_) => HeldBy::Other,
        };
        self.controller.turn(now, by);
        if self.in_flight_bytes * 2 < self.longest * self.in_flight as u64 {
            self.crowd.note(self.in_flight, now);
        }
    }

    /// When [`Admission::measure`] wants to be told what has landed.
    pub(super) fn due(&self) -> Duration {
        self.controller.due()
    }

    /// Lets depth follow the link; `partly` bytes of the reads in flight have landed.
    pub(super) fn measure(&mut self, now: Duration, partly: u64) {
        if self.limits.follows {
            self.controller.measure(now, self.landed + partly, self.hungry);
        }
    }

    /// A batch is complete, and the consumer has waited for `consumer_waited` so far, over all batches.
    pub(super) fn batch_complete(&mut self, consumer_waited: Duration) {
        self.hungry = consumer_waited > self.consumer_waited + WAIT_MIN;
        if self.hungry {
            self.grown = (self.grown * GROWTH).min(self.limits.bytes as f64);
        }
        self.consumer_waited = consumer_waited;
    }

    /// Reads in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Crowd {
    fn size(&self, now: Duration) -> f64 {
        self.reads * (-now.saturating_sub(self.at).as_secs_f64() / CROWD_HALVED_S).exp2()
    }

    fn note(&mut self, reads: usize, now: Duration) {
        if reads as f64 > self.size(now) {
            *self = Crowd { reads: reads as f64, at: now };
        }
    }
}

impl Bucket {
    fn of(rate: u64) -> Self {
        Bucket { rate: rate.max(1) as f64, bytes: 0.0, at: Duration::ZERO }
    }

    /// Until when nothing may be asked for, if not now.
    fn empty_until(&mut self, now: Duration) -> Option<Duration> {
        let earned = self.rate * now.saturating_sub(self.at).as_secs_f64();
        self.bytes = (self.bytes + earned).min(self.rate * BURST_S);
        self.at = self.at.max(now);
        (self.bytes < 0.0).then(|| now + Duration::from_secs_f64(-self.bytes / self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Extent;

    const LIMITS: Limits = Limits {
        requests: 100,
        requests_max: 100,
        bytes: 64 << 20,
        bytes_by_memory: false,
        follows: false,
        max_rate: None,
    };
    const START: Duration = Duration::ZERO;

    fn read(first_batch: u64, len: u64) -> Read {
        Read { id: 0, extent: Extent { shard: 0, start: 0, len }, pages: 1, uses: 1, epoch: 0, first_batch }
    }

    fn with_first_batch(reads: usize, limits: Limits) -> Admission {
        let mut admission = Admission::new(limits);
        for _ in 0..reads {
            admission.listed(&read(0, 1 << 20));
            admission.started(&read(0, 1 << 20));
        }
        admission
    }

    fn admits(admission: &mut Admission, read: &Read) -> bool {
        admission.holds(read, START).is_none()
    }

    fn end(admission: &mut Admission, read: &Read) {
        admission.ended(read, &Observed::default());
    }

    #[test]
    fn the_first_batch_has_the_link_to_itself() {
        for limits in [LIMITS, Limits { follows: true, ..LIMITS }] {
            let mut admission = with_first_batch(8, limits);
            for left in (1..8).rev() {
                assert_eq!(admission.holds(&read(1, 1), START), Some(Held::FirstBatch), "{left} left");
                assert!(admits(&mut admission, &read(0, 1)), "{left} left");
                end(&mut admission, &read(0, 1 << 20));
            }
            assert!(admits(&mut admission, &read(1, 1)));
        }
    }

    #[test]
    fn the_cold_start_has_fewer_reads_than_what_follows() {
        let mut admission = with_first_batch(8, Limits { requests: 8, ..LIMITS });
        assert_eq!(admission.holds(&read(0, 1), START), Some(Held::Requests));
        (0..7).for_each(|_| end(&mut admission, &read(0, 1 << 20)));
        (0..90).for_each(|_| admission.started(&read(1, 1)));
        assert!(admits(&mut admission, &read(1, 1)));
    }

    #[test]
    fn a_depth_that_was_asked_for_grows_while_it_is_waited_for() {
        let mut admission = with_first_batch(16, LIMITS);
        (0..16).for_each(|_| end(&mut admission, &read(0, 1 << 20)));
        admission.started(&read(1, 1));
        assert!(admits(&mut admission, &read(1, (16 << 20) - 1)) && !admits(&mut admission, &read(1, 16 << 20)));
        (0..100).for_each(|_| admission.batch_complete(Duration::ZERO));
        assert!(!admits(&mut admission, &read(1, 16 << 20)), "nobody waited");
        (1..=100).for_each(|batch| admission.batch_complete(Duration::from_millis(2 * batch)));
        assert!(admits(&mut admission, &read(1, (64 << 20) - 1)) && !admits(&mut admission, &read(1, 64 << 20)));
    }

    /// Reads of a mebibyte for ten seconds, each landing 40 ms after it was started, and the consumer waits for every batch or for none.
    fn after_ten_seconds(waits: bool) -> u64 {
        let mut admission = Admission::new(Limits { follows: true, ..LIMITS });
        let observed = Observed { first_byte: Some(Duration::from_millis(20)), ..Observed::default() };
        let mut under_way = std::collections::VecDeque::new();
        for tick in 0..10_000_u64 {
            let now = Duration::from_millis(tick);
            while under_way.front().is_some_and(|landed| *landed <= now) {
                under_way.pop_front();
                admission.ended(&read(1, 1 << 20), &observed);
            }
            let held = loop {
                match admission.holds(&read(1, 1 << 20), now) {
                    Some(held) => break held,
                    None => admission.started(&read(1, 1 << 20)),
                }
                under_way.push_back(now + Duration::from_millis(40));
            };
            if tick % 25 == 0 {
                admission.batch_complete(if waits { Duration::from_millis(2 * tick) } else { START });
            }
            admission.turned(now, held);
            admission.measure(now, 0);
        }
        admission.bytes()
    }

    #[test]
    fn the_depth_follows_the_link_while_it_is_waited_for() {
        assert_eq!(after_ten_seconds(true), 64 << 20, "a link without an end");
        assert_eq!(after_ten_seconds(false), BYTES_MIN);
    }

    /// Most reads of a mebibyte in flight in each second after three of short ones. A link of 100 MB/s and 20 ms, on which a queue stood
    /// while reads were short; the connections of the long ones, which take half a second for one, do not fill it.
    fn in_flight_after_short_reads(short: u64) -> Vec<usize> {
        const LONG: u64 = 1 << 20;
        let mut admission = Admission::new(Limits { follows: true, requests_max: 256, ..LIMITS });
        let mut under_way: Vec<(Duration, Read, Observed)> = Vec::new();
        let (mut free_at, mut most) = (START, vec![0; 12]);
        for now in (0..15_000).map(Duration::from_millis) {
            let ended = under_way.extract_if(.., |(at, ..)| *at <= now);
            ended.for_each(|(_, read, observed)| admission.ended(&read, &observed));
            let len = if now.as_secs() < 3 { short } else { LONG };
            let held = loop {
                if let Some(held) = admission.holds(&read(1, len), now) {
                    break held;
                }
                admission.started(&read(1, len));
                free_at = free_at.max(now) + Duration::from_secs_f64(len as f64 / 100e6);
                let first_byte = Duration::from_millis(20) + if len < LONG { free_at - now } else { START };
                let took = if len < LONG { first_byte } else { Duration::from_millis(500) };
                under_way.push((
                    now + took,
                    read(1, len),
                    Observed { first_byte: Some(first_byte), took, ..Observed::default() },
                ));
            };
            if let Some(most) = most.get_mut((now.as_secs() as usize).wrapping_sub(3)) {
                *most = under_way.iter().filter(|(_, read, _)| read.extent.len == LONG).count().max(*most);
            }
            admission.batch_complete(2 * now);
            admission.turned(now, held);
            admission.measure(now, 0);
        }
        most
    }

    #[test]
    fn longer_reads_keep_the_connections_busy_that_short_ones_had() {
        let (after_short, after_long) =
            (in_flight_after_short_reads(64 << 10), in_flight_after_short_reads((1 << 20) - 1));
        assert!(after_short[1] > after_long[1] + 10, "{after_short:?}, {after_long:?}");
        assert!(after_short.iter().all(|reads| *reads <= 64), "{after_short:?}: no more than memory allows");
    }

    #[test]
    fn a_crowd_disperses() {
        let at = Duration::from_secs_f64;
        let mut crowd = Crowd::default();
        assert_eq!(crowd.size(at(1.0)), 0.0);
        crowd.note(200, at(1.0));
        crowd.note(100, at(2.9));
        assert_eq!((crowd.size(at(1.0)), crowd.size(at(3.0)), crowd.size(at(5.0))), (200.0, 100.0, 50.0));
        crowd.note(60, at(5.0));
        assert_eq!(crowd.size(at(5.0)), 60.0);
    }

    #[test]
    fn what_memory_refuses_is_told_from_what_the_link_does() {
        let limits = Limits { requests: 3, requests_max: 3, bytes: 4 << 20, bytes_by_memory: true, ..LIMITS };
        let mut admission = Admission::new(limits);
        admission.started(&read(0, 4 << 20));
        assert!(!admits(&mut admission, &read(1, 1)) && admission.lacks_memory(&read(1, 1), START));
        let mut elsewhere = Admission::new(Limits { bytes_by_memory: false, ..limits });
        elsewhere.started(&read(0, 4 << 20));
        assert!(!elsewhere.lacks_memory(&read(1, 1), START));
        (0..2).for_each(|_| admission.started(&read(0, 1)));
        assert!(!admission.lacks_memory(&read(1, 1), START), "three are in flight");
    }

    #[test]
    fn something_is_always_in_flight() {
        let mut admission = Admission::new(Limits { requests: 1, requests_max: 1, bytes: 1, ..LIMITS });
        assert!(admits(&mut admission, &read(7, 1 << 40)));
        admission.started(&read(7, 1 << 40));
        assert!(!admits(&mut admission, &read(7, 1)));
    }

    #[test]
    fn a_store_that_throttles_is_asked_for_less() {
        let mut admission = Admission::new(LIMITS);
        (0..10).for_each(|_| admission.started(&read(1, 1)));
        assert!(admits(&mut admission, &read(1, 1)));
        admission.refused(START, 1, 0);
        assert_eq!(admission.holds(&read(1, 1), START), Some(Held::Requests));
        assert_eq!(admission.requests(START), 8);
    }

    /// Bytes started in each millisecond of ten seconds, by a client that would always read on, but for the second and third second.
    fn started_by_millisecond(max_rate: u64, len: u64) -> Vec<u64> {
        let mut admission = Admission::new(Limits { max_rate: Some(max_rate), ..LIMITS });
        let starts = |millisecond: u64| {
            let now = Duration::from_millis(millisecond);
            let mut started = 0;
            while !(1000..3000).contains(&millisecond) {
                match admission.holds(&read(1, len), now) {
                    None => {
                        admission.started(&read(1, len));
                        end(&mut admission, &read(1, len));
                        started += len;
                    }
                    Some(Held::Rate(at)) => {
                        assert!(at > now);
                        break;
                    }
                    Some(held) => panic!("held by {held:?}"),
                }
            }
            started
        };
        (0..10_000).map(starts).collect()
    }

    #[test]
    fn a_rate_that_was_asked_for_is_never_passed_and_used_in_full() {
        let rate = 50_000_000;
        for len in [4 << 10, 1 << 20, 8 << 20] {
            let started = started_by_millisecond(rate, len);
            for window in [100, 1000, 5000] {
                let allowed = rate as f64 * (window as f64 / 1e3 + BURST_S) + len as f64;
                let most = started.windows(window).map(|within| within.iter().sum::<u64>()).max().unwrap();
                assert!(most as f64 <= allowed, "{most} bytes in {window} ms, reads of {len}: {allowed} are allowed");
            }
            let later = started[4000..].iter().sum::<u64>() as f64;
            assert!((later / (6.0 * rate as f64) - 1.0).abs() < 0.03, "{later} bytes in 6 s, reads of {len}");
        }
    }
}
