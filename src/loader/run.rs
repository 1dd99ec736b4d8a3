//! One uninterrupted stretch of the stream: the threads that carry it, from a start to the end or to a jump elsewhere.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::admission::Limits;
use super::column::ColumnSpec;
use super::copier::{Copier, Delivery};
use super::lists::Shelf;
use super::pump::Pump;
use super::quarantine::Ledger;
use crate::dataset::{Dataset, SampleId};
use crate::device::Engine;
use crate::error::{Error, Kind, Result};
use crate::fetch::{Completion, Fetch, RetryPolicy, Source};
use crate::memory::Slab;
use crate::order::{Order, Partition};
use crate::schedule::{Schedule, Shape};
use crate::sys::process::Birthplace;
use crate::telemetry::Telemetry;

/// What stays the same over all runs of a loader.
pub(super) struct Parts {
    pub(super) dataset: Arc<Dataset>,
    pub(super) order: Order,
    pub(super) partition: Partition,
    pub(super) columns: Arc<[ColumnSpec]>,
    pub(super) names: Arc<[String]>,
    pub(super) sources: Vec<Source>,
    pub(super) slab: Slab,
    pub(super) shape: Shape,
    pub(super) limits: Limits,
    pub(super) policy: RetryPolicy,
    pub(super) reactors: usize,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) slots: usize,
    pub(super) slot_bytes: usize,
    /// What batches say of themselves goes round between copier and consumer.
    pub(super) shelf: Arc<Shelf>,
    pub(super) verify: bool,
    /// What was left out, and whether it may be.
    pub(super) ledger: Ledger,
    /// Samples that are left out from the start, in ascending order.
    pub(super) excluded: Arc<[SampleId]>,
    pub(super) epochs_end: u64,
    /// How long a consumer waits before it is told that something hangs.
    pub(super) patience: Duration,
    /// The engine outlives runs: its slots are allocated once.
    pub(super) engine: Mutex<Option<Box<dyn Engine>>>,
    pub(super) slot_returned: Receiver<()>,
    /// Where copies come from, and what the engine says works less well than it could.
    pub(super) host_node: Option<u32>,
    pub(super) note: Mutex<Option<String>>,
    /// The process that has the threads.
    pub(super) born: Birthplace,
    /// Reactors whose connections were opened when the loader was built, for the first run.
    pub(super) warm: Mutex<Option<Connected>>,
}

/// Lists of batches that are on their way back to the pump: one of the batch before, and one of the next.
const SPENT_MAX: usize = 2;

/// Reactors and where they report to.
pub(super) struct Connected {
    pub(super) fetch: Fetch,
    pub(super) completions: Receiver<Completion>,
}

impl Parts {
    /// Keeps what `engine` has to say, for [`super::Loader::explain`].
    pub(super) fn take_note(&self, engine: &dyn Engine) {
        *lock(&self.note) = engine.note();
    }

    /// Starts reactors and opens their connections.
    pub(super) fn connect(&self) -> Result<Connected> {
        let in_flight_max = self.limits.requests_max;
        let warm = self.limits.requests;
        let (done, completions) = bounded(in_flight_max);
        let sources = self.sources.clone();
        let (policy, telemetry) = (self.policy, Arc::clone(&self.telemetry));
        let fetch = Fetch::start(sources, policy, self.reactors, in_flight_max, warm, telemetry, done)?;
        Ok(Connected { fetch, completions })
    }

    /// What is known when no batch came for too long.
    pub(super) fn diagnose(&self, waited: Duration) -> Error {
        let usage = self.slab.usage();
        let stats = self.telemetry.stats();
        Error::new(
            Kind::Stalled,
            format!(
                "no batch for {waited:.0?}: {} requests so far ({} retried), pages {} free, {} filling, {} ready, {} being copied",
                stats.requests, stats.retries, usage.free, usage.filling, usage.ready, usage.copying
            ),
        )
        .advice(if usage.filling > 0 {
            "requests are under way: the store hangs, or the link is too slow for a batch in this time; `farfeed doctor` tells which"
        } else {
            "this is a bug or a dead device; report it with these numbers"
        })
    }
}

/// The threads of a run.
pub(super) struct Run {
    deliveries: Option<Receiver<Delivery>>,
    /// Dropped to stop.
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Run {
    pub(super) fn start(parts: &Arc<Parts>, start: (u64, u64), waker: &Arc<AtomicWaker>) -> Result<Self> {
        let warm = lock(&parts.warm).take();
        // What can fail comes before the engine is taken, so that the next try finds it.
        let connected = warm.map_or_else(|| parts.connect(), Ok)?;
        let engine = lock(&parts.engine).take().ok_or_else(|| {
            Error::new(Kind::Device, "the copy engine was lost")
                .advice("build the loader again; what ended it was said before")
        })?;
        // Nothing is ever sent. With room for nothing the channel would allocate for each wait.
        let (stop, stopped) = bounded::<()>(1);
        let (jobs, jobs_taken) = bounded(1);
        let (spend, spent) = bounded(SPENT_MAX);
        let (deliver, deliveries) = bounded(parts.slots);
        let (wake, woken) = bounded::<()>(1);
        let wake_of_pages = wake.clone();
        parts.slab.watch(move || {
            let _ = wake_of_pages.try_send(());
        });
        let pump = Pump {
            schedule: Schedule::new(
                Arc::clone(&parts.dataset),
                parts.order.clone(),
                parts.partition,
                parts.columns.iter().map(|column| column.field).collect(),
                parts.shape,
                start,
                parts.epochs_end,
            )
            .without(Arc::clone(&parts.excluded)),
            on_error: parts.ledger.on_error(),
            slab: parts.slab.clone(),
            fetch: connected.fetch,
            limits: parts.limits,
            telemetry: Arc::clone(&parts.telemetry),
            completions: connected.completions,
            jobs,
            spent,
            wake: woken,
            stop: stopped.clone(),
        };
        let waker = Arc::clone(waker);
        let copier = Copier {
            engine: Some(engine),
            home: Arc::clone(parts),
            jobs: jobs_taken,
            deliveries: deliver,
            spent: spend,
            stop: stopped,
            repair: OnceCell::new(),
            wake_pump: Box::new(move || {
                let _ = wake.try_send(());
            }),
            wake_consumer: Box::new(move || waker.wake()),
        };
        let mut run = Run { deliveries: Some(deliveries), stop: Some(stop), threads: Vec::with_capacity(2) };
        run.spawn("farfeed-copy", move || copier.run())?;
        run.spawn("farfeed-pump", move || pump.run())?;
        Ok(run)
    }

    /// The next delivery, `None` if there is none after `patience`.
    ///
    /// # Errors
    /// `Io` when the threads ended without saying why.
    pub(super) fn receive(&self, patience: Duration) -> Result<Option<Delivery>> {
        use crossbeam_channel::RecvTimeoutError;
        match self.deliveries.as_ref().map(|deliveries| deliveries.recv_timeout(patience)) {
            Some(Ok(delivery)) => Ok(Some(delivery)),
            Some(Err(RecvTimeoutError::Timeout)) => Ok(None),
            Some(Err(RecvTimeoutError::Disconnected)) | None => Err(ended()),
        }
    }

    /// The next delivery if there is one now.
    ///
    /// # Errors
    /// As [`Run::receive`].
    pub(super) fn try_receive(&self) -> Result<Option<Delivery>> {
        use crossbeam_channel::TryRecvError;
        match self.deliveries.as_ref().map(Receiver::try_recv) {
            Some(Ok(delivery)) => Ok(Some(delivery)),
            Some(Err(TryRecvError::Empty)) => Ok(None),
            Some(Err(TryRecvError::Disconnected)) | None => Err(ended()),
        }
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(|e| Error::new(Kind::Io, format!("starting thread {name}")).source(e))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Run {
    /// Ends the threads: each sees its channels close within a turn. Requests in flight are dropped.
    fn drop(&mut self) {
        self.stop = None;
        self.deliveries = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ended() -> Error {
    Error::new(Kind::Io, "the loader's threads ended without a word")
        .advice("this is a bug; the threads' panic message says more")
}
