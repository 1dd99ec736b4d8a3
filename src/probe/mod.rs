//! What a link does: round trips, first bytes, goodput against connections and sizes of request, and whether it is enough.
//!
//! *Takes* objects of a store and limits. *Gives* a [`ProbeReport`], and for a [`Need`] a [`Verdict`]. *Owns*, while it runs, its
//! threads, connections and a slab that bytes land in and are forgotten. *Bounded* in time, bytes, connections and memory, all by
//! [`ProbeOptions`]. *Fails* where the objects are too small to tell anything, or not a byte can be read.
//!
//! What decides is pure: which point of the grid comes next (`ladder`), what the numbers mean (`analysis`), what is said (`verdict`).
//!
//! *Deliberately absent*: uploads, ICMP (the store's own answers are what counts), and a guess at what the link did yesterday.

mod analysis;
mod ladder;
mod latency;
mod load;
mod reactors;
mod report;
mod text;
mod verdict;
mod walk;
mod words;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::ladder::{Ladder, Left, Slice};
use self::latency::{Latency, Reads};
use self::load::Load;
use self::reactors::Reactors;
pub use self::report::{
    Connects, Depth, Ended, InFlight, Limit, OneConnection, Point, ProbeReport, Sign, Spread, Steady,
};
pub use self::verdict::{Answer, Need, Verdict};
use self::walk::{Walk, for_reactor};
use crate::error::{Error, Kind, Result};
use crate::memory::Slab;
use crate::store::Store;

/// An object to read from.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its store.
    pub store: Arc<dyn Store>,
    /// Its key there.
    pub key: Arc<str>,
    /// Its bytes.
    pub size: u64,
}

/// What a probe may spend, and what it tries.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeOptions {
    /// The most time in all, 1 s or more. It ends sooner when there is nothing more to learn.
    pub time: Duration,
    /// The most bytes in all. Stores that charge for reading charge for these.
    pub bytes: u64,
    /// The most connections, 1 to 256.
    pub connections_max: usize,
    /// Bytes per request that are tried, 16 KiB to 64 MiB each; those that the objects have no room for are left out.
    pub request_sizes: Vec<usize>,
    /// Memory for what is in flight, in bytes. Points of the grid that would need more are left out.
    pub memory_bytes: usize,
    /// What a loader has in flight at the most unless told otherwise, to be compared with.
    pub defaults: InFlight,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        ProbeOptions {
            time: Duration::from_secs(20),
            bytes: 4_000_000_000,
            connections_max: 64,
            request_sizes: vec![256 << 10, 1 << 20, 4 << 20, 8 << 20],
            memory_bytes: 256 << 20,
            defaults: InFlight { requests: 256, bytes: 256 << 20 },
        }
    }
}

/// How far a probe is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeProgress {
    /// What it does now.
    pub stage: ProbeStage,
    /// Since it began.
    pub elapsed: Duration,
    /// Bytes read for goodput so far.
    pub bytes: u64,
}

/// What a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeStage {
    /// Opens connections, and times first bytes.
    FirstBytes,
    /// Measures a point of the grid: connections, bytes per request.
    Grid(usize, usize),
    /// Holds goodput at a point: connections, bytes per request.
    Holding(usize, usize),
}

/// The most connections of a probe: a loader's own limit.
const CONNECTIONS_MAX: usize = 256;
/// Pages of the slab.
const PAGE_BYTES: usize = 256 << 10;
/// What sizes of request may be.
const REQUEST_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=64 << 20;
/// Connections and first bytes get no more than this share of the time.
const LATENCY_SHARE: f64 = 0.25;
/// The share of time and bytes that is kept for holding goodput.
const STEADY_SHARE: f64 = 0.2;
/// Windows of what is held.
const WINDOWS: usize = 12;
/// More refusals than this at a point, and more connections are not tried.
const REFUSED: f64 = 0.05;

/// Measures the link to `targets`. Blocks for up to `options.time`; `on_progress` is called from this thread, many times a second.
///
/// Ranges are scattered over the objects and none is read twice before all have been, so that caches at the server do not flatter.
///
/// # Errors
/// `Config` where the options contradict themselves or the objects are too small; those of the store where nothing can be read, or
/// something fails that would not pass.
pub fn probe(
    targets: &[Target],
    options: &ProbeOptions,
    on_progress: &mut dyn FnMut(ProbeProgress),
) -> Result<ProbeReport> {
    let sizes = options.check()?;
    let (walk, sizes) = Walk::new(targets, &sizes)?;
    let clock = Clock { began: Instant::now(), time: options.time };
    // A page more for each request: its ends are widened to the store's alignment.
    let most = sizes.iter().max().map_or(0, |bytes| bytes.saturating_mul(options.connections_max));
    let slab_bytes = most.min(options.memory_bytes) + (options.connections_max + 4) * PAGE_BYTES;
    let slab = Slab::new(slab_bytes.max(sizes.iter().max().map_or(0, |bytes| bytes + 8 * PAGE_BYTES)), PAGE_BYTES)?;
    let (walk, reactors) = (Arc::new(walk), Reactors::start()?);

    on_progress(clock.progress(ProbeStage::FirstBytes, 0));
    let reads = Reads { targets: for_reactor(targets).into(), walk: Arc::clone(&walk), slab: slab.clone() };
    let deadline = clock.at(LATENCY_SHARE);
    let latency = reactors.run(deadline, reads.latency(deadline))?;

    let mut climb = Climb { options, clock, first_byte_s: latency.first_byte.p50_s, bytes_before: 0, on_progress };
    let load = Load::new(&reactors, targets, Arc::clone(&walk), slab.clone());
    let (grid, ended) = climb.grid(load, &sizes)?;
    let (Some(best), Some(knee)) = (analysis::best(&grid), analysis::knee(&grid)) else { return Err(nothing(targets)) };
    // Fresh connections: what the grid's last points did to the windows of theirs would take seconds to heal.
    let load = Load::new(&reactors, targets, walk, slab);
    let steady = climb.hold(load, analysis::beyond(&grid, knee))?.unwrap_or_else(|| from_grid(&grid, knee));
    let spent = (clock.began.elapsed(), climb.bytes_before);
    Ok(conclude(targets, options, latency, (grid, ended, best, knee), steady, spent))
}

fn nothing(targets: &[Target]) -> Error {
    let root = targets[0].store.root();
    Error::new(Kind::Config, format!("{root}: too little time or too few bytes to measure anything"))
        .advice("raise the probe's time or bytes")
}

/// What was held, where there was nothing left to hold it with: the slice of the grid.
fn from_grid(grid: &[Point], knee: Depth) -> Steady {
    let point = grid.iter().find(|point| point.depth() == knee);
    Steady {
        connections: knee.connections,
        request_bytes: knee.request_bytes,
        goodput_bytes_s: knee.goodput_bytes_s,
        // A slice is too short to tell how much goodput varies: as much as makes two points differ.
        spread_bytes_s: 0.05 * knee.goodput_bytes_s,
        first_third_bytes_s: knee.goodput_bytes_s,
        last_third_bytes_s: knee.goodput_bytes_s,
        seconds: point.map_or(0.0, |point| point.seconds),
        window_s: point.map_or(0.0, |point| point.seconds),
        // Counted with the grid already.
        requests: 0,
        throttled: 0,
        failed: 0,
        busy: point.map_or(0.0, |point| point.busy),
    }
}

fn conclude(
    targets: &[Target],
    options: &ProbeOptions,
    latency: Latency,
    (grid, ended, best, knee): (Vec<Point>, Ended, Depth, Depth),
    steady: Steady,
    (took, bytes): (Duration, u64),
) -> ProbeReport {
    let Latency { connect, first_byte } = latency;
    let rtt_s = connect.as_ref().map(|connects| analysis::rtt_s(connects, &first_byte));
    // A file has no connections: what one request at a time brings is in the grid.
    let connection = connect.as_ref().and_then(|_| analysis::one_connection(&grid, rtt_s));
    let limit = analysis::limit(&grid, ended, &steady);
    let mut report = ProbeReport {
        store: targets[0].store.root().to_owned(),
        objects: targets.len(),
        object_bytes: targets.iter().map(|target| target.size).sum(),
        seconds: took.as_secs_f64(),
        bytes,
        connect,
        rtt_s,
        first_byte,
        grid,
        best,
        knee,
        ended,
        connection,
        steady,
        limit,
        signs: Vec::new(),
        defaults: options.defaults,
        loader_request_bytes: targets[0].store.appetite().request_bytes,
    };
    report.signs = analysis::signs(&report);
    report
}

impl ProbeOptions {
    /// Refuses what cannot be; gives the sizes of request, smallest first.
    fn check(&self) -> Result<Vec<usize>> {
        let wrong = |what: String, advice: &'static str| Err(Error::new(Kind::Config, what).advice(advice));
        if self.time < Duration::from_secs(1) || self.time > Duration::from_secs(3600) {
            return wrong(format!("a probe of {:?}", self.time), "give it 1 s to an hour");
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max) {
            return wrong(format!("{} connections", self.connections_max), "allow 1 to 256 connections");
        }
        if let Some(bytes) = self.request_sizes.iter().find(|bytes| !REQUEST_BYTES.contains(bytes)) {
            return wrong(format!("requests of {bytes} bytes"), "take sizes of 16 KiB to 64 MiB");
        }
        let mut sizes = self.request_sizes.clone();
        sizes.sort_unstable();
        sizes.dedup();
        match sizes.first() {
            None => wrong("no size of request".to_owned(), "name one or more, as in 1 MiB"),
            Some(smallest) if self.bytes < 16 * *smallest as u64 => {
                wrong(format!("a probe of {} bytes", self.bytes), "allow 16 requests at least")
            }
            Some(_) => Ok(sizes),
        }
    }
}

/// How much time there is.
#[derive(Clone, Copy)]
struct Clock {
    began: Instant,
    time: Duration,
}

impl Clock {
    /// When so much of the time will be over.
    fn at(&self, share: f64) -> Instant {
        self.began + self.time.mul_f64(share)
    }

    fn progress(&self, stage: ProbeStage, bytes: u64) -> ProbeProgress {
        ProbeProgress { stage, elapsed: self.began.elapsed(), bytes }
    }
}

/// Points of the grid, and the one that is held.
struct Climb<'a> {
    options: &'a ProbeOptions,
    clock: Clock,
    first_byte_s: f64,
    /// Read by loads that are over.
    bytes_before: u64,
    on_progress: &'a mut dyn FnMut(ProbeProgress),
}

impl Climb<'_> {
    fn grid(&mut self, mut load: Load<'_>, sizes: &[usize]) -> Result<(Vec<Point>, Ended)> {
        load.allow((self.options.bytes as f64 * (1.0 - STEADY_SHARE)) as u64);
        let mut grid = Vec::new();
        let ended = self.climb(&mut load, sizes, &mut grid)?;
        self.bytes_before += load.bytes();
        if grid.iter().all(|point| point.goodput_bytes_s <= 0.0) {
            // Not a byte: the reason is of more use than a report.
            return load.passing_error().map_or(Ok((Vec::new(), ended)), Err);
        }
        Ok((grid, ended))
    }

    fn climb(&mut self, load: &mut Load<'_>, sizes: &[usize], grid: &mut Vec<Point>) -> Result<Ended> {
        let mut ladder = Ladder::new(sizes, self.options.connections_max, self.options.memory_bytes);
        let (end, mut round_s) = (self.clock.at(1.0 - STEADY_SHARE), 0.0);
        while let Some(at) = ladder.next() {
            let seconds = end.saturating_duration_since(Instant::now()).as_secs_f64();
            let left = Left { seconds, bytes: load.allowance(), points: ladder.left() };
            let slice = match ladder::slice(left, ladder.best(), self.first_byte_s, round_s) {
                Ok(slice) => slice,
                Err(ended) => return Ok(ended),
            };
            let Some(reading) = self.measure(load, ProbeStage::Grid(at.0, at.1), at, slice, 1)? else {
                return Ok(Ended::Bytes);
            };
            let mut point = reading.point();
            if ladder.has_fallen(point.goodput_bytes_s) {
                // A hiccup, of the link or of this machine, does not come twice; what the store does to many connections does.
                let again = self.measure(load, ProbeStage::Grid(at.0, at.1), at, slice, 1)?;
                let again = again.map(|reading| reading.point());
                point = again.filter(|again| again.goodput_bytes_s > point.goodput_bytes_s).unwrap_or(point);
            }
            ladder.note(point.goodput_bytes_s, point.throttled as f64 > REFUSED * point.requests as f64);
            // A point without a byte, all of whose requests were refused, says nothing of how long a round takes.
            let rate = if point.goodput_bytes_s > 0.0 { point.goodput_bytes_s } else { ladder.best() };
            round_s = if rate > 0.0 { (point.depth().in_flight_bytes() as f64 / rate).min(1.0) } else { 0.0 };
            grid.push(point);
        }
        Ok(ladder.ended())
    }

    /// Holds goodput at a point for the rest of the time, but no longer than what was kept for it.
    fn hold(&mut self, mut load: Load<'_>, at: Depth) -> Result<Option<Steady>> {
        let kept = self.clock.time.mul_f64(STEADY_SHARE);
        let left = kept.min(self.clock.at(1.0).saturating_duration_since(Instant::now())).as_secs_f64();
        load.allow((self.options.bytes as f64 * STEADY_SHARE) as u64);
        let by_bytes = load.allowance() as f64 / at.goodput_bytes_s.max(1.0);
        let warm_s = (10.0 * self.first_byte_s).clamp(0.04, 0.25 * left.max(0.16));
        // What is left of the bytes is used up a little later than it would be at exactly this rate: requests end apart.
        let measure_s = (left - warm_s).min(0.9 * by_bytes - warm_s);
        if measure_s < 0.05 {
            return Ok(None);
        }
        let slice = Slice { warm_s, measure_s, least_s: measure_s, bytes: f64::INFINITY };
        let (connections, request_bytes) = (at.connections, at.request_bytes);
        let stage = ProbeStage::Holding(connections, request_bytes);
        // Windows that are not much longer than what the kernel gathers before it tells us would vary by that alone.
        let windows = ((measure_s / 0.25) as usize).clamp(3, WINDOWS);
        let reading = self.measure(&mut load, stage, (connections, request_bytes), slice, windows)?;
        self.bytes_before += load.bytes();
        Ok(reading.map(|reading| reading.steady()))
    }

    fn measure(
        &mut self,
        load: &mut Load<'_>,
        stage: ProbeStage,
        at: (usize, usize),
        slice: Slice,
        windows: usize,
    ) -> Result<Option<analysis::Reading>> {
        let (clock, before, on_progress) = (self.clock, self.bytes_before, &mut *self.on_progress);
        load.measure(at, slice, windows, &mut |bytes| on_progress(clock.progress(stage, before + bytes)))
    }
}
