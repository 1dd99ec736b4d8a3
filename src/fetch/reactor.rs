//! Threads that drive the stores' futures.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tokio::sync::{mpsc, watch};

use super::race::{Ask, Course};
use super::retry::RetryPolicy;
use crate::dataset::Version;
use crate::error::{Error, Kind, Result};
use crate::memory::{Landed, Landing};
use crate::store::{Arrival, ReadRequest, Route, Store};
use crate::telemetry::{Counter, Lane, Stage, Telemetry};

/// Where a shard's bytes come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Store.
    pub store: Arc<dyn Store>,
    /// Key in it.
    pub key: Arc<str>,
    /// Size it must have, where known.
    pub size: Option<u64>,
    /// Version it must have: that of the first answer.
    pub version: VersionPin,
}

/// The version that the first answer to any read of an object told, if it told one: all later answers must be of it. Clones
/// share it.
#[derive(Clone, Debug, Default)]
pub struct VersionPin(Arc<OnceLock<Option<Version>>>);

impl VersionPin {
    fn known(&self) -> Option<Version> {
        self.0.get().cloned().flatten()
    }

    /// Whether an answer has come: without a version after that, the store tells none.
    fn is_settled(&self) -> bool {
        self.0.get().is_some()
    }
}

/// A read to carry out: `landing.len()` bytes of `shard` from `start` on.
#[derive(Debug)]
pub struct FetchRead {
    /// Comes back in the completion.
    pub id: u64,
    /// Index into the sources.
    pub shard: u32,
    /// First byte.
    pub start: u64,
    /// Where the bytes go.
    pub landing: Landing,
}

/// A read that is done.
#[derive(Debug)]
pub struct Completion {
    /// The read's number.
    pub id: u64,
    /// Its bytes, or what went wrong; the pages are free then.
    pub result: Result<Landed>,
    /// What it met with on its way.
    pub observed: Observed,
}

/// What a read met with on its way, over all its requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// From asking to the first byte, of the last request that got one. A connection that had to be opened is not in it.
    pub first_byte: Option<Duration>,
    /// From its start to its end, with the rests between requests.
    pub took: Duration,
    /// Answers that asked for less: 429, 503 and their like.
    pub throttled: u32,
    /// Requests that were given up because nothing came.
    pub timed_out: u32,
}

impl Observed {
    fn note(&mut self, outcome: &Result<Arrival>, telemetry: &Telemetry) {
        match outcome {
            Ok(arrival) => self.first_byte = Some(arrival.first_byte),
            Err(error) => {
                self.throttled += u32::from(error.kind() == Kind::Throttled);
                self.timed_out += u32::from(error.kind() == Kind::Stalled);
                note_refusal(error, telemetry);
            }
        }
    }
}

/// Counts a request that the store refused or did not serve in time, second ones included: depth follows these counts.
pub(super) fn note_refusal(error: &Error, telemetry: &Telemetry) {
    match error.kind() {
        Kind::Throttled => telemetry.count(Counter::Throttled, 1),
        Kind::Stalled => telemetry.count(Counter::TimedOut, 1),
        _ => {}
    }
}

/// Reads in flight on a few reactor threads.
pub struct Fetch {
    reactors: Vec<Reactor>,
    next: AtomicUsize,
}

struct Reactor {
    reads: mpsc::Sender<FetchRead>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What a reactor's tasks share.
struct Shared {
    sources: Vec<Source>,
    /// By source; shared by all reactors.
    courses: Vec<Course>,
    policy: RetryPolicy,
    telemetry: Arc<Telemetry>,
    completions: Sender<Completion>,
}

/// So many requests without progress may be given up early, because others are served; then each has its full time.
const IMPATIENT_ATTEMPTS: u32 = 2;
/// Reads wait no longer than this for connections that are being opened.
const WARM_MAX: Duration = Duration::from_secs(1);
/// Before the first read, connections that were closed meanwhile are opened again this often, while someone looks at the plan or makes
/// a model; and so many times.
const REWARM_AFTER: Duration = Duration::from_secs(2);
const REWARMS_MAX: u32 = 30;

impl Fetch {
    /// Starts `threads` reactors that open `warm` connections to each store ahead of the first read. `in_flight_max` bounds what may be submitted and not yet completed; `completions` must
    /// have room for that many.
    ///
    /// # Errors
    /// `Io` when a thread cannot be started, or there is no memory for second requests.
    pub fn start(
        sources: Vec<Source>,
        policy: RetryPolicy,
        threads: usize,
        in_flight_max: usize,
        warm: usize,
        telemetry: Arc<Telemetry>,
        completions: Sender<Completion>,
    ) -> Result<Self> {
        let courses = Course::of(&sources, policy, &telemetry)?;
        let mut reactors = Vec::with_capacity(threads.max(1));
        for number in 0..threads.max(1) {
            let sources = if number == 0 { sources.clone() } else { for_reactor(&sources) };
            let (courses, telemetry, completions) = (courses.clone(), Arc::clone(&telemetry), completions.clone());
            let shared = Shared { sources, courses, policy, telemetry, completions };
            reactors.push(Reactor::start(
                number,
                Arc::new(shared),
                in_flight_max.max(1),
                warm.div_ceil(threads.max(1)),
            )?);
        }
        Ok(Fetch { reactors, next: AtomicUsize::new(0) })
    }

    /// Starts a read. Completions come in any order.
    ///
    /// # Errors
    /// `Io` when more is in flight than was agreed, or the reactors have stopped: a mistake of the caller.
    pub fn submit(&self, read: FetchRead) -> Result<()> {
        let reactor = self.next.fetch_add(1, Ordering::Relaxed) % self.reactors.len();
        self.reactors[reactor].reads.try_send(read).map_err(|error| {
            let why = match error {
                mpsc::error::TrySendError::Full(_) => "more reads in flight than agreed",
                mpsc::error::TrySendError::Closed(_) => "the reactor has stopped",
            };
            Error::new(Kind::Io, why)
        })
    }
}

impl Drop for Fetch {
    /// Drops every request in flight and ends the threads. Pages come back as the stores let go of them.
    fn drop(&mut self) {
        for reactor in &self.reactors {
            let _ = reactor.stop.send(true);
        }
        for thread in self.reactors.iter_mut().filter_map(|reactor| reactor.thread.take()) {
            // A panic there was reported by the panic hook; there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("reactors", &self.reactors.len()).finish()
    }
}

/// The same sources with connections of their own; shards of one store go on sharing it.
pub(crate) fn for_reactor(sources: &[Source]) -> Vec<Source> {
    let mut copies: Vec<(Arc<dyn Store>, Arc<dyn Store>)> = Vec::new();
    let mut copy_of = |store: &Arc<dyn Store>| {
        if let Some((_, copy)) = copies.iter().find(|(original, _)| Arc::ptr_eq(original, store)) {
            return Arc::clone(copy);
        }
        let copy = Arc::clone(store).per_reactor();
        copies.push((Arc::clone(store), Arc::clone(&copy)));
        copy
    };
    sources.iter().map(|source| Source { store: copy_of(&source.store), ..source.clone() }).collect()
}

impl Reactor {
    fn start(number: usize, shared: Arc<Shared>, capacity: usize, warm: usize) -> Result<Self> {
        let (reads, mut incoming) = mpsc::channel::<FetchRead>(capacity);
        let (stop, mut stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::new(Kind::Io, "starting a reactor").source(e))?;
        let run = move || {
            runtime.block_on(async {
                let mut warming = pin!(shared.warm(warm));
                let mut warmed = false;
                let mut rewarms = if warm > 0 { REWARMS_MAX } else { 0 };
                loop {
                    tokio::select! {
                        biased;
                        _ = stopped.changed() => break,
                        // Before the first read: it waits for one of these connections, and opens none beside them.
                        () = &mut warming, if !warmed => warmed = true,
                        read = incoming.recv() => match read {
                            Some(read) => {
                                rewarms = 0;
                                drop(tokio::spawn(carry_out(Arc::clone(&shared), read)));
                            }
                            None => break,
                        },
                        () = tokio::time::sleep(REWARM_AFTER), if rewarms > 0 => {
                            rewarms -= 1;
                            let shared = Arc::clone(&shared);
                            drop(tokio::spawn(async move { shared.warm(warm).await }));
                        }
                    }
                }
            });
            // Drops the tasks, and with them their landings.
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let thread = std::thread::Builder::new()
            .name(format!("farfeed-net-{number}"))
            .spawn(run)
            .map_err(|e| Error::new(Kind::Io, "starting a reactor thread").source(e))?;
        Ok(Reactor { reads, stop, thread: Some(thread) })
    }
}

async fn carry_out(shared: Arc<Shared>, read: FetchRead) {
    let FetchRead { id, shard, start, mut landing } = read;
    let mut report =
        Report { id, completions: shared.completions.clone(), result: None, observed: Observed::default() };
    let began = Instant::now();
    let result = shared.until_landed(id, shard, start, &mut landing, &mut report.observed).await;
    report.observed.took = began.elapsed();
    let bytes = landing.filled() as u64;
    shared.telemetry.trace().add(Lane::Fetch, began, Instant::now(), id, bytes);
    // Either way the landing's pages are where they belong before the completion says so.
    let landed = result.and(Ok(landing)).map(Landing::landed);
    let unfinished = || Error::new(Kind::Io, format!("read {id} ended before all its bytes had landed"));
    report.result = Some(landed.and_then(|landed| landed.ok_or_else(unfinished)));
}

/// Completes a read whatever ends it: a read that is never completed would be waited for.
struct Report {
    id: u64,
    completions: Sender<Completion>,
    result: Option<Result<Landed>>,
    observed: Observed,
}

impl Drop for Report {
    fn drop(&mut self) {
        let broken = || Err(Error::new(Kind::Io, format!("read {} was given up by its reactor", self.id)));
        let result = self.result.take().unwrap_or_else(broken);
        // The receiver is gone only when the loader is being dropped; then nobody waits for this.
        let _ = self.completions.try_send(Completion { id: self.id, result, observed: self.observed });
    }
}

impl Shared {
    /// Opens connections before the first read, which would else open its own beside those on their way. One that cannot be opened is
    /// no error yet: the read that needs it will say so.
    async fn warm(&self, connections: usize) {
        let mut opening: Vec<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = Vec::new();
        let mut warmed: Vec<&Arc<dyn Store>> = Vec::new();
        for source in self.sources.iter().filter(|_| connections > 0) {
            if !warmed.iter().any(|store| Arc::ptr_eq(store, &source.store)) {
                warmed.push(&source.store);
                opening.push(Box::pin(async {
                    let opened = source.store.warm(connections).await.unwrap_or(0);
                    self.telemetry.count(Counter::ConnectionsOpened, opened as u64);
                }));
            }
        }
        // All of them are under way when this has been polled once.
        let all = poll_fn(|cx| {
            opening.retain_mut(|opening| opening.as_mut().poll(cx).is_pending());
            if opening.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        // Past the deadline what is still being opened is dropped, and reads open what they need.
        let _ = tokio::time::timeout(WARM_MAX, all).await;
    }

    async fn until_landed(
        &self,
        id: u64,
        shard: u32,
        start: u64,
        landing: &mut Landing,
        observed: &mut Observed,
    ) -> Result<()> {
        let source =
            self.sources.get(shard as usize).ok_or_else(|| Error::new(Kind::Io, format!("no shard {shard}")))?;
        let mut request = ReadRequest { key: Arc::clone(&source.key), start, size: source.size, version: None };
        let (mut last_progress, mut furthest, mut attempt) = (Instant::now(), landing.filled(), 0);
        let mut broke_off_unsettled = false;
        let (course, route) = (&self.courses[shard as usize], Route::default());
        loop {
            let settled = source.version.is_settled();
            request.version = source.version.known();
            // Bytes of an answer that broke off before any version was known are of nobody knows which, and the rest may come from
            // another. One byte tells the version; what follows is held to it, and can be gone on from.
            if broke_off_unsettled {
                landing.restart();
            }
            let bytes = if broke_off_unsettled && !settled { 1 } else { usize::MAX };
            broke_off_unsettled = false;
            let impatient = attempt < IMPATIENT_ATTEMPTS;
            let ask = Ask { id, source, request: &request, route: &route, settled, impatient };
            let error = match self.request(course, &ask, landing, bytes, observed).await {
                Ok(()) if landing.remaining() == 0 => return Ok(()),
                Ok(()) => continue,
                Err(error) => error,
            };
            if !error.is_transient() {
                return Err(error);
            }
            if landing.filled() > furthest {
                (last_progress, furthest, attempt) = (Instant::now(), landing.filled(), 0);
            }
            broke_off_unsettled = !settled;
            let at = start + landing.filled() as u64;
            let rest = self.policy.rest(error, attempt, last_progress).await;
            rest.map_err(|error| error.within(format!("gave up on bytes {at}..")))?;
            self.telemetry.count(Counter::Retries, 1);
            attempt += 1;
        }
    }

    /// Asks once, for at most `bytes` more.
    async fn request(
        &self,
        course: &Course,
        ask: &Ask<'_>,
        landing: &mut Landing,
        bytes: usize,
        observed: &mut Observed,
    ) -> Result<()> {
        let (before, asked) = (landing.filled(), Instant::now());
        self.telemetry.count(Counter::Requests, 1);
        let mut part = landing.shorten(bytes);
        let outcome = course.run(ask, &mut part).await;
        observed.note(&outcome, &self.telemetry);
        landing.rejoin(part);
        self.account(&outcome, (landing.filled() - before) as u64, asked.elapsed());
        check_version(ask.source, ask.request, outcome?)
    }

    fn account(&self, outcome: &Result<Arrival>, received: u64, busy: Duration) {
        let first_byte = outcome.as_ref().map_or(Duration::ZERO, |arrival| arrival.first_byte);
        self.telemetry.stage(Stage::Fetch, received, busy, first_byte);
        if let Ok(arrival) = outcome {
            if received > 0 {
                self.telemetry.first_byte(arrival.first_byte);
            }
            self.telemetry.count(Counter::BytesCopiedByUserSpace, arrival.copied);
            self.telemetry.count(Counter::ConnectionsOpened, u64::from(arrival.opened));
            if let Some(why) = arrival.fallback {
                self.telemetry.fallback(why);
            }
        }
    }
}

/// The first answer's version is the one that all later ones must have.
fn check_version(source: &Source, request: &ReadRequest, arrival: Arrival) -> Result<()> {
    let pinned = source.version.0.get_or_init(|| arrival.version.clone());
    match (pinned, &arrival.version) {
        (Some(pinned), Some(found)) if request.version.is_none() && pinned != found => {
            Err(crate::store::changed(source.store.root(), &source.key, pinned, found))
        }
        _ => Ok(()),
    }
}
