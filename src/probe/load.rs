//! Connections that read without a pause, and what is counted of them while they do.
//!
//! Connections stay from one point of the grid to the next: each goes over to the new size of request when its old request has ended.
//! Nothing is drained, nothing is broken off, and their windows stay as large as they were.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Target;
use super::analysis::{LaneReading, Reading, Tally};
use super::ladder::Slice;
use super::reactors::Reactors;
use super::walk::{Walk, for_reactor};
use crate::error::{Error, Kind, Result};
use crate::memory::{Landing, Slab};
use crate::store::{Arrival, ReadRequest};

/// A request without a byte for this long is dropped.
const PATIENCE: Duration = Duration::from_secs(3);
/// A refused or broken read is repeated after this long, unless the store names a longer time.
const PAUSE: Duration = Duration::from_millis(50);
/// How much longer than planned a slice may take so that every connection has been through a request.
const SLICE_LATER_MAX: Duration = Duration::from_secs(1);
/// How often somebody looks at what has been counted.
const TICK: Duration = Duration::from_millis(10);
/// The most that is remembered of single requests, for each connection and slice.
const TIMES_MAX: usize = 1024;

/// What is to be read with now.
#[derive(Clone, Copy, Debug, Default)]
struct Phase {
    generation: u64,
    connections: usize,
    request_bytes: usize,
}

/// All connections.
pub(super) struct Load<'a> {
    reactors: &'a Reactors,
    /// For each reactor, with stores of its own.
    targets: Vec<Arc<[Target]>>,
    shared: Arc<Shared>,
    phase: watch::Sender<Phase>,
    lanes: Vec<Arc<Lane>>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    walk: Arc<Walk>,
    slab: Slab,
    /// Bytes that may still be asked for.
    allowance: AtomicU64,
    /// Whether somebody wanted more.
    spent: AtomicBool,
    /// What ends the probe.
    fatal: Mutex<Option<Error>>,
    /// The last error that may pass.
    passing: Mutex<Option<Error>>,
}

/// What one connection has done.
#[derive(Default)]
struct Lane(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// Bytes of requests that have ended.
    bytes: u64,
    /// Bytes so far of the one that has not.
    current: Option<Arc<AtomicU64>>,
    /// The phase that the last request began in.
    generation: u64,
    /// When the first and the last request of this slice began, and the bytes of those that ended in between.
    first: Option<Instant>,
    last: Option<Instant>,
    span_bytes: u64,
    /// Bytes that ended since a request last began.
    ended: u64,
    tally: Tally,
}

impl<'a> Load<'a> {
    /// With fresh connections, none of which is open yet.
    pub(super) fn new(reactors: &'a Reactors, targets: &[Target], walk: Arc<Walk>, slab: Slab) -> Self {
        let targets = (0..reactors.count()).map(|_| for_reactor(targets).into()).collect();
        let shared = Shared {
            walk,
            slab,
            allowance: AtomicU64::new(0),
            spent: AtomicBool::new(false),
            fatal: Mutex::default(),
            passing: Mutex::default(),
        };
        Load {
            reactors,
            targets,
            shared: Arc::new(shared),
            phase: watch::channel(Phase::default()).0,
            lanes: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Allows so many bytes more.
    pub(super) fn allow(&self, bytes: u64) {
        self.shared.allowance.fetch_add(bytes, Ordering::Relaxed);
        self.shared.spent.store(false, Ordering::Relaxed);
    }

    /// Bytes that may still be asked for.
    pub(super) fn allowance(&self) -> u64 {
        self.shared.allowance.load(Ordering::Relaxed)
    }

    /// Bytes that have arrived so far.
    pub(super) fn bytes(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.lock().arrived()).sum()
    }

    /// The last error that may pass, if there was one.
    pub(super) fn passing_error(&self) -> Option<Error> {
        lock(&self.shared.passing).take()
    }

    /// Reads with so many connections and so many bytes per request, and counts, in so many windows of equal length. `tick` is told how
    /// many bytes have arrived, now and then. `None` where the allowance was used up too soon to count anything.
    ///
    /// # Errors
    /// What a read ended with that will not pass.
    pub(super) fn measure(
        &mut self,
        (connections, request_bytes): (usize, usize),
        slice: Slice,
        windows: usize,
        tick: &mut dyn FnMut(u64),
    ) -> Result<Option<Reading>> {
        self.go_over_to(connections, request_bytes);
        let bytes = self.bytes();
        let warm = Instant::now() + Duration::from_secs_f64(slice.warm_s);
        // Requests of the point before end first; but what hangs is not waited for.
        let late = warm + Duration::from_secs(1);
        while Instant::now() < warm || (Instant::now() < late && !self.has_gone_over(connections)) {
            if self.is_spent(tick)? {
                return Ok(None);
            }
        }
        let before: Vec<u64> = self.lanes.iter().map(|lane| lane.lock().begin_slice()).collect();
        let (cpu, began, bytes_before) = (self.reactors.cpu(), Instant::now(), before.iter().sum::<u64>());
        let measure = Duration::from_secs_f64(slice.measure_s(bytes_before.saturating_sub(bytes)));
        let (mut marks, mut spent) = (vec![(began, bytes_before)], false);
        // A slice is not over before every connection has been through a request in it, but for those that hang or are refused.
        let late = measure + SLICE_LATER_MAX;
        while !spent && (began.elapsed() < measure || (began.elapsed() < late && !self.is_told_by_all(connections))) {
            spent = self.is_spent(tick)?;
            if marks[marks.len() - 1].0.elapsed() >= measure / windows as u32 {
                marks.push((Instant::now(), self.bytes()));
            }
        }
        let elapsed = began.elapsed();
        if elapsed < measure / 2 {
            return Ok(None);
        }
        let window =
            |pair: &[(Instant, u64)]| ((pair[1].0 - pair[0].0).as_secs_f64(), pair[1].1.saturating_sub(pair[0].1));
        Ok(Some(Reading {
            connections,
            request_bytes,
            seconds: elapsed.as_secs_f64(),
            lanes: self.lanes.iter().zip(before).map(|(lane, before)| lane.lock().reading(before)).collect(),
            windows: marks.windows(2).map(window).collect(),
            tally: self.tally(),
            busy: self.busiest(&cpu, elapsed),
        }))
    }

    fn go_over_to(&mut self, connections: usize, request_bytes: usize) {
        while self.lanes.len() < connections {
            let number = self.lanes.len();
            let (lane, reactor) = (Arc::new(Lane::default()), self.reactors.of(number));
            let task = Task {
                number,
                lane: Arc::clone(&lane),
                targets: Arc::clone(&self.targets[number % self.targets.len()]),
                shared: Arc::clone(&self.shared),
                phase: self.phase.subscribe(),
            };
            self.tasks.push(reactor.handle.spawn(task.read_on()));
            self.lanes.push(lane);
        }
        self.phase.send_modify(|phase| {
            *phase = Phase { generation: phase.generation + 1, connections, request_bytes };
        });
    }

    fn has_gone_over(&self, connections: usize) -> bool {
        let generation = self.phase.borrow().generation;
        self.lanes.iter().take(connections).all(|lane| lane.lock().generation == generation)
    }

    /// Whether every connection has brought bytes by a whole request of this slice, and begun another: what was refused tells nothing.
    fn is_told_by_all(&self, connections: usize) -> bool {
        self.lanes.iter().take(connections).all(|lane| lane.lock().span_bytes > 0)
    }

    /// Waits for a moment; says whether the allowance is used up.
    fn is_spent(&self, tick: &mut dyn FnMut(u64)) -> Result<bool> {
        std::thread::sleep(TICK);
        tick(self.bytes());
        match lock(&self.shared.fatal).take() {
            Some(error) => Err(error),
            None => Ok(self.shared.spent.load(Ordering::Relaxed)),
        }
    }

    fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for lane in &self.lanes {
            let Tally { requests, throttled, failed, times } = std::mem::take(&mut lane.lock().tally);
            all.requests += requests;
            all.throttled += throttled;
            all.failed += failed;
            all.times.extend(times);
        }
        all
    }

    fn busiest(&self, before: &[Duration], elapsed: Duration) -> f64 {
        let now = self.reactors.cpu();
        let shares = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before).as_secs_f64());
        shares.fold(0.0, f64::max) / elapsed.as_secs_f64().max(1e-9)
    }
}

impl Drop for Load<'_> {
    /// Drops every request in flight.
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// One connection, or what a store has instead.
struct Task {
    number: usize,
    lane: Arc<Lane>,
    targets: Arc<[Target]>,
    shared: Arc<Shared>,
    phase: watch::Receiver<Phase>,
}

impl Task {
    /// Reads as the phase says, until nobody says any more.
    async fn read_on(mut self) {
        loop {
            let phase = *self.phase.borrow_and_update();
            if self.number >= phase.connections || !self.shared.take(phase.request_bytes) {
                if self.phase.changed().await.is_err() {
                    return;
                }
                continue;
            }
            let Some(pause) = self.request(phase).await else { return };
            if !pause.is_zero() {
                // A store that asks for a long time is not asked again before the next phase.
                let _ = tokio::time::timeout(pause, self.phase.changed()).await;
            }
        }
    }

    /// One request; gives how long to pause after it, or `None` when there is no sense in another one.
    async fn request(&self, phase: Phase) -> Option<Duration> {
        let place = self.shared.walk.next(phase.request_bytes);
        let target = &self.targets[place.target];
        let pages = pages(&self.shared.slab, phase.request_bytes, target.store.appetite().alignment);
        let Some(pages) = self.shared.slab.take(pages) else {
            // Requests of the point before are still holding theirs.
            self.shared.allowance.fetch_add(phase.request_bytes as u64, Ordering::Relaxed);
            return Some(TICK);
        };
        let mut landing = Landing::new(pages, phase.request_bytes);
        self.lane.lock().begin(phase.generation, landing.progress());
        let asked = Instant::now();
        let outcome = patiently(target, place.start, &mut landing).await;
        self.lane.lock().end(&outcome, landing.filled() as u64, asked.elapsed());
        // What did not arrive was not used up.
        self.shared.allowance.fetch_add(landing.remaining() as u64, Ordering::Relaxed);
        match outcome {
            Ok(_) => Some(Duration::ZERO),
            Err(error) if error.is_transient() => {
                let pause = error.retry_after().unwrap_or(PAUSE).max(PAUSE);
                *lock(&self.shared.passing) = Some(error);
                Some(pause)
            }
            Err(error) => {
                *lock(&self.shared.fatal) = Some(error);
                None
            }
        }
    }
}

/// A read that is dropped when no byte comes for too long.
async fn patiently(target: &Target, start: u64, landing: &mut Landing) -> Result<Arrival> {
    let request = ReadRequest { key: Arc::clone(&target.key), start, size: Some(target.size), version: None };
    let progress = landing.progress();
    let read = target.store.read(&request, landing);
    tokio::pin!(read);
    let mut seen = 0;
    loop {
        if let Ok(outcome) = tokio::time::timeout(PATIENCE, &mut read).await {
            return outcome;
        }
        let now = progress.load(Ordering::Relaxed);
        if now == seen {
            let what = format!("{}{}: no byte for {PATIENCE:?}", target.store.root(), target.key);
            return Err(Error::new(Kind::Stalled, what).transient());
        }
        seen = now;
    }
}

impl Shared {
    /// Takes `bytes` of the allowance, if they are there.
    fn take(&self, bytes: usize) -> bool {
        let taken =
            self.allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes as u64));
        if taken.is_err() {
            self.spent.store(true, Ordering::Relaxed);
        }
        taken.is_ok()
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.0)
    }
}

impl Counts {
    /// Forgets what was counted; gives the bytes so far.
    fn begin_slice(&mut self) -> u64 {
        (self.first, self.last, self.ended, self.span_bytes) = (None, None, 0, 0);
        self.tally = Tally::default();
        self.arrived()
    }

    /// What was counted since there were `before` bytes.
    fn reading(&self, before: u64) -> LaneReading {
        let span_s = self.first.zip(self.last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        LaneReading { bytes: self.arrived().saturating_sub(before), span_s, span_bytes: self.span_bytes }
    }

    fn begin(&mut self, generation: u64, progress: Arc<AtomicU64>) {
        self.generation = generation;
        self.current = Some(progress);
        let ended = std::mem::take(&mut self.ended);
        if self.first.is_none() {
            self.first = Some(Instant::now());
        } else {
            (self.last, self.span_bytes) = (Some(Instant::now()), self.span_bytes + ended);
        }
    }

    fn end(&mut self, outcome: &Result<Arrival>, bytes: u64, took: Duration) {
        self.current = None;
        self.bytes += bytes;
        self.ended += bytes;
        self.tally.requests += 1;
        match outcome {
            Ok(arrival) if self.tally.times.len() < TIMES_MAX => {
                self.tally.times.push((arrival.first_byte.as_secs_f64(), took.as_secs_f64()));
            }
            Ok(_) => {}
            Err(error) if error.kind() == Kind::Throttled => self.tally.throttled += 1,
            Err(_) => self.tally.failed += 1,
        }
    }

    fn arrived(&self) -> u64 {
        self.bytes + self.current.as_ref().map_or(0, |progress| progress.load(Ordering::Relaxed))
    }
}

/// Pages for a read of `bytes`, widened to the store's alignment at either end.
pub(super) fn pages(slab: &Slab, bytes: usize, alignment: usize) -> usize {
    let widening = if alignment > 1 { 2 * alignment } else { 0 };
    (bytes + widening).div_ceil(slab.page_bytes())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
