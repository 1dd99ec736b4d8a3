//! One request, watched; and a second one beside it when it is late.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::reactor::{Source, note_refusal};
use super::retry::RetryPolicy;
use super::second::Second;
use super::tail::{Look, Seen, Tails, Watch};
use crate::error::{Error, Kind, Result};
use crate::memory::{Landing, Slab};
use crate::store::{Arrival, ReadRequest, Route};
use crate::telemetry::{Counter, Telemetry};

/// Memory for second requests, beside the pages: what they bring is copied where it belongs.
const RESERVE_BYTES: usize = 8 << 20;
const RESERVE_PAGE_BYTES: usize = 64 << 10;

/// How often progress is looked at, at least.
const PROGRESS_TICK: Duration = Duration::from_millis(250);
/// A request that has not been sent after this long, since its connection is being opened, counts as silent from then on.
const SENDING_MAX: Duration = Duration::from_secs(1);

/// Bytes of memory beside the pages that second requests for what is late will take, if there may be any.
pub fn hedge_bytes(sources: &[Source], policy: RetryPolicy) -> u64 {
    let hedges = !policy.hedge.is_off() && sources.iter().any(|source| source.store.hedges());
    if hedges { RESERVE_BYTES as u64 } else { 0 }
}

/// What requests of a [`Fetch`](super::Fetch) to one store have in common.
#[derive(Clone, Debug)]
pub(super) struct Course {
    policy: RetryPolicy,
    tails: Arc<Mutex<Tails>>,
    /// `None` where there are no second requests.
    reserve: Option<Slab>,
    telemetry: Arc<Telemetry>,
}

/// What is asked for, and the way there.
pub(super) struct Ask<'a> {
    pub(super) id: u64,
    pub(super) source: &'a Source,
    pub(super) request: &'a ReadRequest,
    pub(super) route: &'a Route,
    /// Whether the version was known beforehand that the bytes must be of; without, bytes of two answers do not mix.
    pub(super) settled: bool,
    /// Whether it may be given up before its time when others are served.
    pub(super) impatient: bool,
}

/// What happened first.
enum Event {
    First(Result<Arrival>),
    Second(Result<Arrival>),
    Tick,
}

impl Course {
    /// A course for each source: those of one store share it.
    ///
    /// # Errors
    /// `Io` when there is no memory for the reserve.
    pub(super) fn of(sources: &[Source], policy: RetryPolicy, telemetry: &Arc<Telemetry>) -> Result<Vec<Self>> {
        let mut courses: Vec<Course> = Vec::with_capacity(sources.len());
        let mut reserve = None;
        for (number, source) in sources.iter().enumerate() {
            let sibling = sources[..number].iter().position(|other| Arc::ptr_eq(&other.store, &source.store));
            let course = match sibling {
                Some(sibling) => courses[sibling].clone(),
                None => {
                    let hedges = source.store.hedges();
                    if hedges && !policy.hedge.is_off() && reserve.is_none() {
                        reserve = Some(Slab::new(RESERVE_BYTES, RESERVE_PAGE_BYTES)?);
                    }
                    let tails = Arc::new(Mutex::new(Tails::new(policy.hedge)));
                    let reserve = reserve.clone().filter(|_| hedges);
                    Course { policy, tails, reserve, telemetry: Arc::clone(telemetry) }
                }
            };
            courses.push(course);
        }
        Ok(courses)
    }

    /// One request, dropped when no byte comes for too long, or too few; what has landed stays. When it is late, a second one for what
    /// is missing races it.
    pub(super) async fn run(&self, ask: &Ask<'_>, landing: &mut Landing) -> Result<Arrival> {
        let before = landing.filled();
        let mut watch = self.tails().begin(ask.id, landing.remaining());
        let asked = Instant::now();
        let outcome = self.race(ask, landing, &mut watch).await;
        let landed = landing.filled() - before;
        let elapsed = ask.route.progress().0.unwrap_or_else(|| asked.elapsed());
        self.tails().end(watch, landed, outcome.is_ok().then_some(elapsed));
        outcome
    }

    async fn race(&self, ask: &Ask<'_>, landing: &mut Landing, watch: &mut Watch) -> Result<Arrival> {
        let (start, progress) = (landing.filled(), landing.progress());
        let mut pulse = Pulse::new(self.policy.idle.min(self.policy.patience));
        let mut first = ask.source.store.read_by(ask.request, landing, ask.route);
        let mut second: Option<Second> = None;
        let mut failure: Option<Error> = None;
        let mut pause = self.pause(Duration::ZERO);
        let (arrival, won) = loop {
            let event = tokio::select! {
                biased;
                outcome = &mut first, if failure.is_none() => Event::First(outcome),
                outcome = async {
                    match &mut second {
                        Some(second) => second.through().await,
                        None => std::future::pending().await,
                    }
                } => Event::Second(outcome),
                () = tokio::time::sleep(pause) => Event::Tick,
            };
            let here = progress.load(Ordering::Relaxed) as usize;
            match event {
                Event::First(Ok(arrival)) => {
                    self.first_wins(ask, &arrival, watch.bytes(), second.as_ref());
                    return Ok(arrival);
                }
                Event::First(Err(error)) if second.is_none() || !error.is_transient() => return Err(error),
                Event::First(Err(error)) => failure = Some(error),
                Event::Second(Ok(arrival)) => {
                    let Some(won) = second.take() else { continue };
                    self.second_wins(ask, &arrival, &won, here, here - start);
                    break (arrival, won);
                }
                // The first one is still under way, or has failed before.
                Event::Second(Err(error)) => {
                    second = None;
                    self.second_fails(&error);
                    if let Some(error) = failure {
                        return Err(error);
                    }
                }
                Event::Tick => {
                    let twice = second.as_ref().map_or(0, Second::progress);
                    let quiet = pulse.beat(here as u64 + twice);
                    self.check(ask, watch, &mut pulse, quiet, here)?;
                    if let Some(second) = &mut second {
                        self.look_at_second(second, watch);
                        pause = self.pause(if second.is_answered() { quiet } else { Duration::ZERO });
                        continue;
                    }
                    pause = match self.look(ask, watch, here - start, quiet) {
                        Look::Wait(wait) => wait.min(self.pause(quiet)),
                        Look::GiveUp => {
                            return Err(stalled(ask, here, &format!("no byte for {quiet:.1?} while others came")));
                        }
                        Look::Hedge { parts } => {
                            second = self.second(ask, watch, here, start, parts);
                            self.pause(Duration::ZERO)
                        }
                    };
                }
            }
        };
        drop(first);
        if let Some(error) = failure {
            note_refusal(&error, &self.telemetry);
        }
        // Bytes whose version is not known make way for those of one whole answer.
        if !ask.settled {
            landing.restart();
        }
        let copied = won.append_to(landing)?;
        Ok(Arrival { copied: arrival.copied + copied, ..arrival })
    }

    /// Until the next look, at most: not past the time at which silence is given up.
    fn pause(&self, quiet: Duration) -> Duration {
        let first = if self.reserve.is_some() { Duration::from_millis(20) } else { PROGRESS_TICK };
        let idle = self.policy.idle.min(self.policy.patience).saturating_sub(quiet);
        if quiet.is_zero() { first.min(idle) } else { PROGRESS_TICK.min(idle).max(Duration::from_millis(1)) }
    }

    /// Whether enough comes.
    ///
    /// # Errors
    /// `Stalled`, transient, if not.
    fn check(&self, ask: &Ask<'_>, watch: &Watch, pulse: &mut Pulse, quiet: Duration, here: usize) -> Result<()> {
        let idle = pulse.idle;
        if quiet >= idle {
            return Err(stalled(ask, here, &format!("no byte for {idle:?}")));
        }
        if !ask.source.store.hedges() {
            return Ok(());
        }
        let floor = || self.tails().rate_floor(watch, self.policy.rate_min);
        match pulse.rate().filter(|rate| *rate < floor()) {
            Some(rate) => Err(stalled(ask, here, &format!("{rate} bytes per second for {idle:?}"))),
            None => Ok(()),
        }
    }

    fn look(&self, ask: &Ask<'_>, watch: &mut Watch, landed: usize, quiet: Duration) -> Look {
        if !ask.source.store.hedges() {
            return Look::Wait(PROGRESS_TICK);
        }
        let (sent, first_byte) = ask.route.progress();
        let elapsed = sent.unwrap_or_else(|| quiet.saturating_sub(SENDING_MAX));
        let answered = first_byte.is_some();
        let seen = Seen { elapsed, answered, landed, quiet: quiet.min(elapsed), splits: ask.settled };
        match self.tails().look(watch, seen) {
            Look::GiveUp if !ask.impatient => Look::Wait(PROGRESS_TICK),
            look => look,
        }
    }

    /// Asks for what is missing a second time, in so many parts, into memory of its own; `None` if that is not to be had now.
    fn second(&self, ask: &Ask<'_>, watch: &mut Watch, here: usize, start: usize, parts: usize) -> Option<Second> {
        let missing = watch.bytes() - (here - start);
        let Some(landings) = self.landings(ask.settled || here == 0, missing, parts) else {
            self.tails().unsent(watch, missing as u64);
            return None;
        };
        self.telemetry.count(Counter::Hedges, 1);
        self.telemetry.count(Counter::Requests, landings.len() as u64);
        Some(Second::start(&ask.source.store, ask.request, ask.route, here, landings))
    }

    /// Asks again for a part of it that is late in its turn.
    fn look_at_second(&self, second: &mut Second, watch: &mut Watch) {
        if second.progress() == 0 {
            return;
        }
        self.tails().answered(watch);
        let due = self.tails().first_byte_due(watch);
        let Some((place, len)) = due.and_then(|due| second.late_part(due)) else { return };
        let landing = self.landings(true, len, 1).and_then(|mut landings| landings.pop());
        if let Some(landing) = landing
            && self.tails().reserve(watch, len as u64)
        {
            self.telemetry.count(Counter::Requests, 1);
            second.again(place, landing);
        }
    }

    /// Memory for `len` bytes in at most so many parts, if there may be any.
    fn landings(&self, may_be: bool, len: usize, parts: usize) -> Option<Vec<Landing>> {
        let reserve = self.reserve.as_ref().filter(|_| may_be)?;
        let part = len.div_ceil(parts.max(1)).next_multiple_of(RESERVE_PAGE_BYTES);
        let parts = (0..len).step_by(part).map(|at| {
            let len = part.min(len - at);
            Some(Landing::new(reserve.take(len.div_ceil(RESERVE_PAGE_BYTES))?, len))
        });
        parts.collect()
    }

    fn first_wins(&self, ask: &Ask<'_>, arrival: &Arrival, bytes: usize, second: Option<&Second>) {
        if let Some(second) = second {
            self.telemetry.count(Counter::BytesWasted, second.progress());
        }
        if let (Some(elapsed), _) = ask.route.progress() {
            self.tails().sample(bytes, elapsed, arrival.first_byte);
        }
    }

    fn second_wins(&self, ask: &Ask<'_>, arrival: &Arrival, won: &Second, here: usize, landed: usize) {
        let twice = (here - won.from()) as u64;
        self.telemetry.count(Counter::HedgesWon, 1);
        self.telemetry.count(Counter::BytesWasted, twice);
        self.telemetry.count(Counter::ConnectionsOpened, won.opened());
        let mut tails = self.tails();
        tails.overtaken(won.len() as u64, twice);
        tails.sample(won.longest(), won.elapsed(), arrival.first_byte);
        // What was overtaken would have taken longer.
        let (elapsed, first_byte) = ask.route.progress();
        let elapsed = elapsed.unwrap_or_default();
        tails.sample(landed, elapsed, first_byte.unwrap_or(elapsed));
    }

    /// A store that refuses it is asked for less, as by any other request that it refuses.
    fn second_fails(&self, error: &Error) {
        note_refusal(error, &self.telemetry);
        if error.kind() == Kind::Throttled {
            self.tails().refused();
        }
    }

    fn tails(&self) -> MutexGuard<'_, Tails> {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stalled(ask: &Ask<'_>, here: usize, what: &str) -> Error {
    ask.route.hangs();
    let at = ask.request.start + here as u64;
    Error::new(Kind::Stalled, format!("{}{}: {what} at byte {at}", ask.source.store.root(), ask.source.key))
        .advice("the store or the link hangs; `farfeed doctor` and the server's log may say why")
        .transient()
}

/// When bytes last came, and how many over a time.
struct Pulse {
    idle: Duration,
    bytes: u64,
    since: Instant,
    span_began: Instant,
    span_bytes: u64,
}

impl Pulse {
    fn new(idle: Duration) -> Self {
        let now = Instant::now();
        Pulse { idle, bytes: u64::MAX, since: now, span_began: now, span_bytes: 0 }
    }

    /// `bytes` have come so far; gives the time since there were fewer.
    fn beat(&mut self, bytes: u64) -> Duration {
        if self.bytes == u64::MAX {
            (self.bytes, self.span_bytes) = (bytes, bytes);
        } else if bytes != self.bytes {
            (self.bytes, self.since) = (bytes, Instant::now());
        }
        self.since.elapsed()
    }

    /// Bytes per second over a time `idle`, once at its end.
    fn rate(&mut self) -> Option<u64> {
        let elapsed = self.span_began.elapsed();
        if elapsed < self.idle {
            return None;
        }
        let rate = self.bytes.saturating_sub(self.span_bytes) as f64 / elapsed.as_secs_f64().max(1e-3);
        (self.span_began, self.span_bytes) = (Instant::now(), self.bytes);
        Some(rate as u64)
    }
}

#[cfg(test)]
mod tests;
