//! The thread that assembles batches on the device.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TryRecvError, select};

use super::batch::Batch;
use super::quarantine::Quarantined;
use super::repair::Repair;
use super::rows::{Flaw, Holds, Rows, Scratch, Spent};
use super::run::{Parts, lock};
use crate::dataset::Extent;
use crate::device::{DeviceSlot, Engine};
use crate::error::{Error, Result};
use crate::memory::Landed;
use crate::schedule::BatchPlan;
use crate::telemetry::{Counter, Lane, Stage};

/// What the pump hands over, in order.
pub(super) enum Job {
    /// Everything is in pages.
    Assemble {
        plan: BatchPlan,
        reads: Holds,
    },
    EpochEnd(u64),
    Failed(Error),
}

/// What the consumer gets, in order.
pub(super) enum Delivery {
    Batch(Batch),
    EpochEnd(u64),
    Failed(Error),
}

/// What the copier works with.
pub(super) struct Copier {
    /// `None` once it was given back.
    pub(super) engine: Option<Box<dyn Engine>>,
    pub(super) home: Arc<Parts>,
    pub(super) jobs: Receiver<Job>,
    pub(super) deliveries: Sender<Delivery>,
    /// Lists that the pump fills again.
    pub(super) spent: Sender<Spent>,
    /// Disconnected when the loader stops.
    pub(super) stop: Receiver<()>,
    /// Made when the first field is read again.
    pub(super) repair: OnceCell<Repair>,
    /// Tells the pump that a job was taken.
    pub(super) wake_pump: Box<dyn Fn() + Send>,
    /// Tells an asynchronous consumer that there is something to take.
    pub(super) wake_consumer: Box<dyn Fn() + Send>,
}

/// Why the copier ended early.
enum Halt {
    /// The loader is being dropped or restarted.
    Stopped,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Failed(error)
    }
}

/// How often a quiet copier looks around.
const QUIET: Duration = Duration::from_secs(1);

impl Copier {
    /// Until the last job, a failure, or the stop; then the engine goes home.
    pub(super) fn run(mut self) {
        let Some(mut engine) = self.engine.take() else { return };
        match engine.attach().map_err(Halt::from).and_then(|()| self.serve(engine.as_mut())) {
            Ok(()) | Err(Halt::Stopped) => {}
            Err(Halt::Failed(error)) => {
                let _ = self.deliver(engine.as_mut(), Delivery::Failed(error));
            }
        }
        settle(engine.as_mut());
        engine.detach();
        self.home.take_note(engine.as_ref());
        *lock(&self.home.engine) = Some(engine);
    }

    fn serve(&self, engine: &mut dyn Engine) -> Result<(), Halt> {
        let mut scratch = Scratch::default();
        let mut batches = 0u64;
        loop {
            let wait = pause(engine)?;
            let job = select! {
                recv(self.stop) -> _ => return Err(Halt::Stopped),
                recv(self.jobs) -> job => match job { Ok(job) => job, Err(_) => return Ok(()) },
                default(wait) => continue,
            };
            (self.wake_pump)();
            let delivery = match job {
                Job::Assemble { plan, reads } => {
                    let batch = self.assemble(engine, plan, reads, &mut scratch)?;
                    // What works less well than it could shows in the first batches.
                    batches += 1;
                    if batches.is_power_of_two() {
                        self.home.take_note(engine);
                    }
                    Delivery::Batch(batch)
                }
                Job::EpochEnd(epoch) => Delivery::EpochEnd(epoch),
                Job::Failed(error) => Delivery::Failed(error),
            };
            self.deliver(engine, delivery)?;
        }
    }

    fn deliver(&self, engine: &mut dyn Engine, delivery: Delivery) -> Result<(), Halt> {
        let mut delivery = delivery;
        loop {
            // A failing device must not keep its own error from the consumer.
            let wait = if matches!(delivery, Delivery::Failed(_)) { QUIET } else { pause(engine)? };
            delivery = match self.deliveries.send_timeout(delivery, wait) {
                Ok(()) => break,
                Err(SendTimeoutError::Disconnected(_)) => return Err(Halt::Stopped),
                Err(SendTimeoutError::Timeout(back)) => back,
            };
            if self.stop.try_recv() == Err(TryRecvError::Disconnected) {
                return Err(Halt::Stopped);
            }
        }
        (self.wake_consumer)();
        Ok(())
    }

    fn free_slot(&self, engine: &mut dyn Engine) -> Result<DeviceSlot, Halt> {
        loop {
            if let Some(slot) = engine.acquire()? {
                return Ok(slot);
            }
            let wait = pause(engine)?;
            select! {
                recv(self.stop) -> _ => return Err(Halt::Stopped),
                recv(self.home.slot_returned) -> _ => {}
                default(wait) => {}
            }
        }
    }

    fn assemble(
        &self,
        engine: &mut dyn Engine,
        plan: BatchPlan,
        reads: Holds,
        scratch: &mut Scratch,
    ) -> Result<Batch, Halt> {
        let home = &*self.home;
        let waited = Instant::now();
        let mut slot = self.free_slot(engine)?;
        let began = Instant::now();
        let mut rows = Rows::new(plan, reads, &home.dataset, &home.columns, home.verify, std::mem::take(scratch));
        // All is looked at before anything is copied: where a row goes depends on those that go before it.
        let flaws = rows.check_all();
        if !flaws.is_empty() {
            self.mend(engine, &mut rows, flaws)?;
        }
        let verified = Instant::now();
        let mut lent = home.shelf.take();
        let mut at = 0;
        for number in 0..home.columns.len() {
            let column = rows.place(number, &mut at, home.slot_bytes, lent.lists.take_memory(number))?;
            rows.fill(number, &column, engine, &mut slot)?;
            lent.lists.set(number, column);
        }
        rows.finish(&lent.layout, engine, &mut slot)?;
        lent.lists.rows.clear();
        lent.lists.rows.extend(rows.samples());
        let (payload, left_out) = (rows.payload(), rows.left_out());
        let (epoch, index) = (rows.plan().epoch, rows.plan().batch);
        let mut holds = engine.spare_holds();
        let (spent, used) = rows.into_parts(&mut holds);
        *scratch = used;
        engine.seal(&mut slot, holds)?;
        // A pump that has gone, or has as many as it can use, makes its own.
        drop(self.spent.try_send(spent));
        let ended = Instant::now();
        home.telemetry.stage(Stage::Decode, payload, verified - began, Duration::ZERO);
        home.telemetry.stage(Stage::Copy, payload, ended - verified, began - waited);
        home.telemetry.trace().add(Lane::Copy, began, ended, index, payload);
        Ok(Batch {
            slot,
            columns: Arc::clone(&home.names),
            lists: lent,
            left_out,
            dataset: Arc::clone(&home.dataset),
            epoch,
            index,
            payload,
            held: None,
        })
    }

    /// Reads what is wrong once more, unless its bytes are known to be the right ones. Rows that are still bad are left out, where that is
    /// allowed.
    fn mend(&self, engine: &mut dyn Engine, rows: &mut Rows<'_>, flaws: Vec<Flaw>) -> Result<(), Halt> {
        let mut again = self.read_again(engine, rows, &flaws)?.into_iter();
        let mut bad: Vec<usize> = Vec::new();
        for flaw in flaws {
            let (row, column) = (flaw.row, flaw.column);
            let error = match if flaw.certain { None } else { again.next() } {
                None => flaw.error,
                Some(Ok(landed)) => {
                    rows.replace(row, column, &landed);
                    match rows.check(row, column) {
                        Ok(()) => continue,
                        Err(flaw) => flaw.error,
                    }
                }
                // What the link does says nothing of the sample.
                Some(Err(error)) if !error.is_in_object() => return Err(error.within(rows.locate(row, column)).into()),
                Some(Err(error)) => error,
            };
            if bad.last() != Some(&row) {
                self.leave_out(rows, row, column, error)?;
                bad.push(row);
            }
        }
        rows.leave_out(&bad);
        Ok(())
    }

    /// What the store answers when fields are read once more, in the order of those flaws that are not certain.
    fn read_again(
        &self,
        engine: &mut dyn Engine,
        rows: &Rows<'_>,
        flaws: &[Flaw],
    ) -> Result<Vec<Result<Landed>>, Halt> {
        let uncertain = flaws.iter().filter(|flaw| !flaw.certain);
        let extents: Vec<Extent> = uncertain.filter_map(|flaw| rows.extent(flaw.row, flaw.column)).collect();
        if extents.is_empty() {
            return Ok(Vec::new());
        }
        self.home.telemetry.count(Counter::FieldsReadAgain, extents.len() as u64);
        self.repair()?.read(&extents, &self.stop, || pause(engine))?.ok_or(Halt::Stopped)
    }

    fn repair(&self) -> Result<&Repair> {
        if let Some(repair) = self.repair.get() {
            return Ok(repair);
        }
        let started = Repair::start(&self.home)?;
        Ok(self.repair.get_or_init(|| started))
    }

    fn leave_out(&self, rows: &Rows<'_>, row: usize, column: usize, error: Error) -> Result<()> {
        let (home, sample) = (&*self.home, rows.sample(row));
        let extent = rows.extent(row, column);
        let entry = Quarantined::new(&home.dataset, sample, &home.columns[column].name, extent, &error);
        home.ledger.leave_out(rows.plan().epoch, sample, entry, error.within(rows.locate(row, column)))
    }
}

/// Lets go of pages whose copies are complete; says how long to wait before looking again.
fn pause(engine: &mut dyn Engine) -> Result<Duration> {
    Ok(if engine.poll()? > 0 { engine.look_again() } else { QUIET })
}

/// Pages must not come back while a copy reads them: waits, briefly, for copies under way.
fn settle(engine: &mut dyn Engine) {
    let deadline = Instant::now() + QUIET;
    while matches!(engine.poll(), Ok(in_copy) if in_copy > 0) && Instant::now() < deadline {
        std::thread::sleep(engine.look_again());
    }
}
