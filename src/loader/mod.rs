//! The loader: from shards to batches on the device, in order, ahead of the consumer.
//!
//! *Takes* what the [`LoaderBuilder`] was told. *Gives* [`Batch`]es, [`Plan`], [`Stats`], [`State`]. *Owns* the slab,
//! the device slots and four kinds of threads: the pump, the copier, the reactors, and those of the stores. *Bounded* by
//! host memory, slots and reads in flight, all fixed when it is built. *Fails* on the batch that cannot be delivered; what was
//! delivered before stays good. Dropping it at any moment ends the threads and frees the pages.

mod admission;
mod batch;
mod builder;
mod column;
mod copier;
mod explain;
mod finishing;
mod indexing;
mod lists;
#[cfg(all(feature = "cuda", feature = "measure"))]
mod measured;
mod opened;
mod peek;
mod probing;
mod pump;
mod quarantine;
mod repair;
mod rows;
mod run;
mod scan;
mod source;
mod standing;
mod value;
mod view;
mod weights;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;

use batch::Held;
pub use batch::{Batch, Dense, Ragged};
pub use builder::{BuildStep, ByteSize, LoaderBuilder, Tokens};
pub use column::{Column, Field};
pub use explain::Explained;
pub use finishing::Normalize;
pub use indexing::{IndexProgress, index_location};
pub use peek::Peek;
pub use quarantine::{OnError, Quarantine, Quarantined};
pub use scan::Scanned;
pub use view::{Element, RaggedView, View};
pub use weights::Weights;

use crate::dataset::Dataset;
use crate::error::{Error, Kind, Result};
use crate::memory::{Slab, SlabUse};
use crate::order::{Order, Partition, State};
use crate::schedule::Plan;
use crate::telemetry::{Counter, Lane, Stage, Stats, Telemetry};
use copier::Delivery;
use run::{Parts, Run};
use standing::Standing;

/// Streams the batches of one rank. Made by [`Loader::builder`].
pub struct Loader {
    parts: Arc<Parts>,
    plan: Plan,
    consumer: Mutex<Consumer>,
    /// Which batch comes next; changed with the consumer's lock held.
    standing: Standing,
    waker: Arc<AtomicWaker>,
    held: Arc<AtomicUsize>,
}

/// What [`Loader::next_within`] found.
#[derive(Debug)]
pub enum Next {
    /// The next batch.
    Batch(Batch),
    /// There are no more in this epoch.
    End,
    /// Not there yet.
    Pending,
}

/// What the consumer works with.
struct Consumer {
    run: Option<Run>,
    /// When the consumer got its last batch.
    served: Option<Instant>,
}

/// The slice in which a blocked consumer looks whether it waits for itself.
const LOOK: Duration = Duration::from_millis(50);

impl Loader {
    /// A loader of the shards that `url` names: a path or URL, with braces (`train-{0000..0255}.tar`) or ending in `/`
    /// for all shards there.
    pub fn builder(url: impl Into<String>) -> LoaderBuilder {
        LoaderBuilder::new(url.into())
    }

    /// What will be in flight, and why.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// All effective settings and why each has its value: the plan, and what it has no part in.
    pub fn explain(&self) -> Explained<'_> {
        Explained(self)
    }

    /// Samples, fields and shards.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.parts.dataset
    }

    /// The global order.
    pub fn order(&self) -> &Order {
        &self.parts.order
    }

    /// This rank's share.
    pub fn partition(&self) -> &Partition {
        &self.parts.partition
    }

    /// Batches of an epoch: the same on every rank.
    pub fn batches_per_epoch(&self) -> u64 {
        self.parts.partition.batches(self.parts.order.samples())
    }

    /// The batches of epoch `epoch` that are still to come: all of them, or after [`Loader::resume`] the rest.
    ///
    /// Epochs taken one after the other make one stream: the next one's first bytes are asked for before this one
    /// ends. Any other epoch begins anew.
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        self.seek(epoch);
        Epoch { loader: self, epoch, ended: false }
    }

    /// Goes to epoch `epoch`, unless the loader stands in it already: what [`Loader::epoch`] begins with. In a forked child it does
    /// nothing.
    pub fn seek(&self, epoch: u64) {
        if !self.parts.born.is_here() {
            return;
        }
        let mut consumer = self.lock();
        if self.standing.read().0 == epoch {
            return;
        }
        // From an epoch's last batch the stream goes on to the next epoch, whether or not somebody saw that there are no more.
        if self.comes_next() != (epoch, 0) {
            consumer.run = None;
        }
        self.standing.write(epoch, 0);
    }

    /// Where the consumer stands: counts what was delivered, not what was read ahead. Waits for nobody; in a forked child it is where the
    /// parent's consumer stood when it was forked.
    pub fn state(&self) -> State {
        let (epoch, batch) = self.comes_next();
        let position = self.parts.partition.position(self.parts.order.samples(), batch);
        State::new(self.parts.dataset.fingerprint(), &self.parts.order, epoch, position)
    }

    /// Goes on where `state` was taken, whatever the world size then. Costs one window, not the way there.
    ///
    /// # Errors
    /// `Config` or `Topology` when the state belongs to another dataset, order or global batch, naming both values; `Unsupported` in a
    /// forked child.
    pub fn resume(&self, state: &State) -> Result<()> {
        self.check_process()?;
        let point = state.resume(self.parts.dataset.fingerprint(), &self.parts.order, &self.parts.partition)?;
        let mut consumer = self.lock();
        consumer.run = None;
        consumer.served = None;
        self.standing.write(point.epoch, point.batch);
        Ok(())
    }

    /// The epoch that the next batch belongs to. As [`Loader::state`], it waits for nobody.
    pub fn current_epoch(&self) -> u64 {
        self.comes_next().0
    }

    /// Where time and bytes went so far, and what the limit is.
    pub fn stats(&self) -> Stats {
        self.parts.telemetry.stats()
    }

    /// Counters and, if asked for, the trace.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.parts.telemetry
    }

    /// Samples that were found bad and left out so far, as far ahead as batches have been assembled. Those named beforehand are not among them.
    /// Waits for nobody, also in a forked child.
    pub fn quarantine(&self) -> Quarantine {
        self.parts.ledger.list()
    }

    /// Pages by state.
    pub fn memory(&self) -> SlabUse {
        self.parts.slab.usage()
    }

    /// The slab, to watch it beyond the loader's life.
    pub fn slab(&self) -> &Slab {
        &self.parts.slab
    }

    /// The next batch of the stream, whatever the epoch; `None` after the last epoch. Does not block the thread, but for the
    /// moments in which another one of them takes a batch. A future that is dropped loses nothing. One at a time: of
    /// several that wait, the last alone is woken.
    ///
    /// It knows no patience: requests have their deadlines, and a caller who wants one for a batch sets it around this.
    ///
    /// # Errors
    /// As the iterator's.
    pub async fn next_batch(&self) -> Result<Option<Batch>> {
        let asked = Instant::now();
        std::future::poll_fn(|context| {
            // First: a child has nobody to wake it, and wakes nobody.
            self.check_process()?;
            self.waker.register(context.waker());
            self.poll_batch(asked).map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// The next batch of the stream, an error or its end, if there is one of them now.
    fn poll_batch(&self, asked: Instant) -> Option<Result<Option<Batch>>> {
        let mut consumer = self.lock();
        while !self.finished() {
            let taken = match consumer.start_if_needed(self).and_then(|run| run.try_receive()) {
                Ok(Some(delivery)) => self.accept(&mut consumer, delivery, asked),
                // One that waits for itself would not be woken.
                Ok(None) => return self.check_held().err().map(Err),
                Err(error) => Err(error),
            };
            match taken {
                // The end of an epoch, but not of the stream.
                Ok(None) => {}
                taken => return Some(taken),
            }
        }
        Some(Ok(None))
    }

    fn lock(&self) -> MutexGuard<'_, Consumer> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch of `epoch`, `None` at its end.
    fn next_of(&self, epoch: u64) -> Result<Option<Batch>> {
        let asked = Instant::now();
        loop {
            match self.next_within(epoch, asked, LOOK)? {
                Next::Batch(batch) => return Ok(Some(batch)),
                Next::End => return Ok(None),
                Next::Pending => {}
            }
        }
    }

    /// Waits up to `limit` for the next batch of `epoch`: for callers that have other things to look after meanwhile, as an interpreter
    /// has its signals. Call it again on [`Next::Pending`]; nothing is lost between calls. `asked` is when the caller began to wait for
    /// this batch: stall and patience are counted from there.
    ///
    /// An epoch other than the one that the loader stands in has no batches; [`Loader::epoch`] goes there.
    ///
    /// # Errors
    /// As the iterator's: those of the batch that comes next; `Config` for a consumer that holds every slot; `Stalled` beyond the
    /// loader's patience; `Unsupported` in a forked child, which has none of the loader's threads.
    pub fn next_within(&self, epoch: u64, asked: Instant, limit: Duration) -> Result<Next> {
        self.check_process()?;
        // Let go of between calls, so that others may go elsewhere meanwhile.
        let mut consumer = self.lock();
        let deadline = Instant::now() + limit;
        while self.standing.read().0 == epoch && !self.finished() {
            let left = deadline.saturating_duration_since(Instant::now());
            match consumer.start_if_needed(self)?.receive(left)? {
                Some(delivery) => {
                    if let Some(batch) = self.accept(&mut consumer, delivery, asked)? {
                        return Ok(Next::Batch(batch));
                    }
                }
                None => {
                    drop(consumer);
                    self.check_held()?;
                    if asked.elapsed() > self.parts.patience {
                        return Err(self.parts.diagnose(asked.elapsed()));
                    }
                    return Ok(Next::Pending);
                }
            }
        }
        Ok(Next::End)
    }

    /// Epoch and number of the batch that comes next: behind an epoch's last one, the next epoch's first.
    fn comes_next(&self) -> (u64, u64) {
        let batches = self.batches_per_epoch();
        match self.standing.read() {
            (epoch, batch) if batch > 0 && batch >= batches => (epoch + 1, 0),
            next => next,
        }
    }

    fn finished(&self) -> bool {
        self.standing.read().0 >= self.parts.epochs_end
    }

    /// Takes note of a delivery; `None` for the end of an epoch.
    fn accept(&self, consumer: &mut Consumer, delivery: Delivery, asked: Instant) -> Result<Option<Batch>> {
        match delivery {
            Delivery::Batch(mut batch) => {
                consumer.note_served(asked, &batch, &self.parts.telemetry);
                batch.held = Some(Held::new(&self.held));
                let (epoch, number) = self.standing.read();
                self.standing.write(epoch, number + 1);
                Ok(Some(batch))
            }
            Delivery::EpochEnd(epoch) => {
                // That of an epoch which the consumer has left behind says nothing new.
                if self.standing.read().0 == epoch {
                    self.standing.write(epoch + 1, 0);
                }
                Ok(None)
            }
            Delivery::Failed(error) => {
                consumer.run = None;
                Err(error)
            }
        }
    }

    /// A fork copies no threads, and locks as they are.
    fn check_process(&self) -> Result<()> {
        self.parts.born.check("the loader was built")
    }

    /// A consumer that holds every slot and asks for more would wait for itself.
    fn check_held(&self) -> Result<()> {
        let held = self.held.load(Ordering::Acquire);
        if held < self.parts.slots {
            return Ok(());
        }
        Err(Error::new(
            Kind::Config,
            format!("{held} batches are held, and there are {} device slots", self.parts.slots),
        )
        .advice("drop a batch before asking for the next one, or raise batches_ahead"))
    }
}

impl Consumer {
    fn start_if_needed(&mut self, loader: &Loader) -> Result<&Run> {
        let run = match self.run.take() {
            Some(run) => run,
            None => Run::start(&loader.parts, loader.standing.read(), &loader.waker)?,
        };
        Ok(self.run.insert(run))
    }

    fn note_served(&mut self, asked: Instant, batch: &Batch, telemetry: &Telemetry) {
        let now = Instant::now();
        telemetry.count(Counter::Batches, 1);
        telemetry.count(Counter::Samples, batch.len() as u64);
        telemetry.count(Counter::LeftOut, batch.left_out() as u64);
        // The wait for a run's first batch is the cold start, not a stall; it is reported apart.
        if let Some(served) = self.served {
            telemetry.stage(Stage::Consumer, batch.payload_bytes(), asked - served, now - asked);
            telemetry.trace().add(Lane::Compute, served, asked, batch.index(), 0);
            telemetry.trace().add(Lane::Stall, asked, now, batch.index(), 0);
        } else {
            telemetry.first_batch(now - asked);
            telemetry.stage(Stage::Consumer, batch.payload_bytes(), Duration::ZERO, Duration::ZERO);
        }
        self.served = Some(now);
    }
}

impl Drop for Loader {
    /// In a forked child there is nothing to end: no threads to join, locks that nobody may hold any more. What there is stays until
    /// the child ends.
    fn drop(&mut self) {
        if !self.parts.born.is_here() {
            std::mem::forget((Arc::clone(&self.parts), Arc::clone(&self.waker)));
            std::mem::forget(self.consumer.get_mut().unwrap_or_else(PoisonError::into_inner).run.take());
        }
    }
}

/// The batches of one epoch, in order.
pub struct Epoch<'a> {
    loader: &'a Loader,
    epoch: u64,
    ended: bool,
}

impl Iterator for Epoch<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        if self.ended {
            return None;
        }
        let next = self.loader.next_of(self.epoch).transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("plan", &self.plan).field("memory", &self.memory()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Epoch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("epoch", &self.epoch).field("ended", &self.ended).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Dtype;
    use crate::store::MemoryStore;
    use run::lock;

    /// Every lock of the loader is held when the child is forked, and nobody lets go of them there.
    #[test]
    fn a_forked_child_is_answered_whatever_is_locked() {
        let store = MemoryStore::new();
        store.put("train.bin", vec![1; 6000]);
        let builder = Loader::builder("memory:train.bin").store(store).tokens(Tokens::new(Dtype::U16, 10));
        let loader = builder.batch_size(2).host_memory(ByteSize::mib(8)).build().unwrap();
        assert_eq!(loader.epoch(0).take(3).filter(Result::is_ok).count(), 3);
        let parts = &loader.parts;
        let held = (loader.lock(), lock(&parts.engine), lock(&parts.note), lock(&parts.warm));
        let answer = farfeed_driver_double::in_a_child(Duration::from_secs(20), || {
            let next = loader.next_within(0, Instant::now(), LOOK).map_err(|error| error.kind());
            let resumed = loader.resume(&loader.state()).map_err(|error| error.kind());
            loader.seek(3);
            let text = format!("{} {loader:?} {}", loader.explain(), loader.stats());
            format!("{:?} {} {next:?} {resumed:?} {}", loader.state(), loader.current_epoch(), text.len() > 1000)
        });
        let expected = format!("{:?} 0 Err(Unsupported) Err(Unsupported) true", loader.state());
        assert_eq!((answer, loader.state().position), (Ok(expected), 6));
        drop(held);
    }
}
