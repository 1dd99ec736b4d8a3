//! The threads that a probe reads with: as many as a loader on this machine has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};

/// Processors for each thread, and the most threads: a loader's numbers.
const PROCESSORS_EACH: usize = 8;
const REACTORS_MAX: usize = 4;
/// How often a thread says how busy it was.
const BUSY_TICK: Duration = Duration::from_millis(10);

/// Threads, each with a runtime of its own.
pub(super) struct Reactors {
    all: Vec<Reactor>,
    stop: watch::Sender<bool>,
}

pub(super) struct Reactor {
    pub(super) handle: Handle,
    cpu_ns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Reactors {
    /// Starts the threads.
    ///
    /// # Errors
    /// `Io` when one cannot be started.
    pub(super) fn start() -> Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (stop, _) = watch::channel(false);
        let mut reactors = Reactors { all: Vec::new(), stop };
        for number in 0..processors.div_ceil(PROCESSORS_EACH).min(REACTORS_MAX) {
            let reactor = Reactor::start(number, reactors.stop.subscribe())?;
            reactors.all.push(reactor);
        }
        Ok(reactors)
    }

    /// The reactor of connection `number`.
    pub(super) fn of(&self, number: usize) -> &Reactor {
        &self.all[number % self.all.len()]
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Processor time of each thread so far.
    pub(super) fn cpu(&self) -> Vec<Duration> {
        self.all.iter().map(|reactor| Duration::from_nanos(reactor.cpu_ns.load(Ordering::Relaxed))).collect()
    }

    /// Runs a future on the first thread, and waits for it until a little after `deadline`, which it should keep by itself.
    pub(super) fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = crossbeam_channel::bounded(1);
        drop(self.all[0].handle.spawn(async move { drop(done.send(future.await)) }));
        outcome.recv_deadline(deadline + Duration::from_secs(2)).unwrap_or_else(|_| {
            Err(Error::new(Kind::Stalled, "the store did not answer in time").advice("raise the probe's time"))
        })
    }
}

impl Reactor {
    fn start(number: usize, mut stopped: watch::Receiver<bool>) -> Result<Self> {
        let failed = |error: std::io::Error| Error::new(Kind::Io, "starting a reactor").source(error);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (handle, cpu_ns) = (runtime.handle().clone(), Arc::new(AtomicU64::new(0)));
        let cpu = Arc::clone(&cpu_ns);
        let run = move || {
            runtime.block_on(async {
                loop {
                    cpu.store(thread_cpu_ns(), Ordering::Relaxed);
                    // Ends when told to, and when whoever could tell has gone.
                    if tokio::time::timeout(BUSY_TICK, stopped.changed()).await.is_ok() {
                        return;
                    }
                }
            });
            // Drops the tasks, and with them their landings.
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let thread = std::thread::Builder::new().name(format!("farfeed-probe-{number}")).spawn(run).map_err(failed)?;
        Ok(Reactor { handle, cpu_ns, thread: Some(thread) })
    }
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

impl Drop for Reactors {
    /// Drops every request in flight and ends the threads.
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        for thread in self.all.iter_mut().filter_map(|reactor| reactor.thread.take()) {
            // A panic there was reported by the panic hook; there is nothing left to undo.
            let _ = thread.join();
        }
    }
}
