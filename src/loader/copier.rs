//! The thread that assembles batches on the device.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TryRecvError, select};

use super::batch::Batch;
use super::column::{Column, ColumnSpec, Kind as ColumnKind, align, element_bytes};
use super::run::{Parts, lock};
use super::value;
use crate::dataset::{Dataset, Dtype};
use crate::device::{DeviceSlot, Engine, Segment};
use crate::error::{Error, Kind, Result};
use crate::memory::CopyHold;
use crate::schedule::{BatchPlan, Piece};
use crate::telemetry::{Lane, Stage};

/// The reads of a batch by number, held for its copies.
pub(super) type Holds = HashMap<u64, CopyHold>;

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
    Batch(Box<Batch>),
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
    /// Disconnected when the loader stops.
    pub(super) stop: Receiver<()>,
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

/// How often copies in flight are looked at while nothing else happens.
const POLL: Duration = Duration::from_micros(200);
/// How often a quiet copier looks around.
const QUIET: Duration = Duration::from_secs(1);

impl Copier {
    /// Until the last job, a failure, or the stop; then the engine goes home.
    pub(super) fn run(mut self) {
        let Some(mut engine) = self.engine.take() else { return };
        match self.serve(engine.as_mut()) {
            Ok(()) | Err(Halt::Stopped) => {}
            Err(Halt::Failed(error)) => {
                let _ = self.deliver(engine.as_mut(), Delivery::Failed(error));
            }
        }
        settle(engine.as_mut());
        *lock(&self.home.engine) = Some(engine);
    }

    fn serve(&self, engine: &mut dyn Engine) -> Result<(), Halt> {
        loop {
            let wait = pause(engine)?;
            let job = select! {
                recv(self.stop) -> _ => return Err(Halt::Stopped),
                recv(self.jobs) -> job => match job { Ok(job) => job, Err(_) => return Ok(()) },
                default(wait) => continue,
            };
            (self.wake_pump)();
            let delivery = match job {
                Job::Assemble { plan, reads } => Delivery::Batch(Box::new(self.assemble(engine, plan, reads)?)),
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

    fn assemble(&self, engine: &mut dyn Engine, plan: BatchPlan, reads: Holds) -> Result<Batch, Halt> {
        let home = &*self.home;
        let waited = Instant::now();
        let mut slot = self.free_slot(engine)?;
        let began = Instant::now();
        let rows = Rows { plan: &plan, reads: &reads, dataset: &home.dataset, columns: &home.columns };
        if home.verify {
            rows.verify()?;
        }
        let verified = Instant::now();
        let mut layout = Vec::with_capacity(home.columns.len());
        let mut at = 0;
        for number in 0..home.columns.len() {
            let column = rows.place(number, &mut at, home.slot_bytes)?;
            rows.fill(number, &column, engine, &mut slot)?;
            layout.push(column);
        }
        let payload = rows.payload();
        engine.seal(&mut slot, reads.into_values().collect())?;
        let ended = Instant::now();
        home.telemetry.stage(Stage::Decode, payload, verified - began, Duration::ZERO);
        home.telemetry.stage(Stage::Copy, payload, ended - verified, began - waited);
        home.telemetry.trace().add(Lane::Copy, began, ended, plan.batch, payload);
        Ok(Batch {
            slot,
            columns: Arc::clone(&home.names),
            layout,
            rows: plan.rows,
            dataset: Arc::clone(&home.dataset),
            epoch: plan.epoch,
            index: plan.batch,
            payload,
            held: None,
        })
    }
}

/// Lets go of pages whose copies are complete; says how long to wait before looking again.
fn pause(engine: &mut dyn Engine) -> Result<Duration> {
    Ok(if engine.poll()? > 0 { POLL } else { QUIET })
}

/// Pages must not come back while a copy reads them: waits, briefly, for copies under way.
fn settle(engine: &mut dyn Engine) {
    let deadline = Instant::now() + QUIET;
    while matches!(engine.poll(), Ok(in_copy) if in_copy > 0) && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
}

/// The rows of a batch and the pages that hold them.
struct Rows<'a> {
    plan: &'a BatchPlan,
    reads: &'a Holds,
    dataset: &'a Dataset,
    columns: &'a [ColumnSpec],
}

impl<'a> Rows<'a> {
    fn count(&self) -> usize {
        self.plan.rows.len()
    }

    fn pieces(&self, row: usize, column: usize) -> &'a [Piece] {
        self.plan.pieces_of(row, column, self.columns.len())
    }

    fn len(&self, row: usize, column: usize) -> u64 {
        self.pieces(row, column).iter().map(|piece| piece.len).sum()
    }

    fn payload(&self) -> u64 {
        self.plan.pieces.iter().map(|piece| piece.len).sum()
    }

    /// A field's bytes, slice by slice, in order.
    fn slices(&self, row: usize, column: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let reads = self.reads;
        self.pieces(row, column).iter().flat_map(move |piece| {
            let hold = reads.get(&piece.read);
            hold.into_iter().flat_map(|hold| hold.landed().slices(piece.at as usize, piece.len as usize))
        })
    }

    /// Says which sample and field an error is about, and where its bytes lie.
    fn locate(&self, row: usize, column: usize) -> impl fmt::Display {
        let (sample, spec) = (self.plan.rows[row], &self.columns[column]);
        let place = self.dataset.extent(sample, spec.field).map_or_else(String::new, |extent| {
            let shard = self.dataset.shards().get(extent.shard as usize).map_or("?", |shard| shard.url.as_str());
            format!(" ({shard}, bytes {}..{})", extent.start, extent.end())
        });
        format!("field '{}' of sample {}{place}", spec.name, self.dataset.key(sample))
    }

    /// Checks every field against the digest in the index, where there is one.
    fn verify(&self) -> Result<()> {
        for row in 0..self.count() {
            for (column, spec) in self.columns.iter().enumerate() {
                let Some(expected) = self.dataset.crc32c(self.plan.rows[row], spec.field) else { continue };
                let found = value::crc32c(self.slices(row, column));
                if found != expected {
                    let what = self.locate(row, column);
                    return Err(Error::new(
                        Kind::Corrupt,
                        format!("{what}: crc32c is {found:08x}, the index has {expected:08x}"),
                    )
                    .advice(
                        "the shard was damaged or replaced: restore it, or make its index again with `farfeed index`",
                    )
                    // Or it was damaged on the way.
                    .transient());
                }
            }
        }
        Ok(())
    }

    /// Where a column goes: behind the one before, aligned.
    fn place(&self, number: usize, at: &mut u64, slot_bytes: usize) -> Result<Column> {
        let spec = &self.columns[number];
        let begin = *at;
        let rows = self.count();
        let column = match &spec.kind {
            ColumnKind::Bytes | ColumnKind::Json => {
                let values: u64 = (0..rows).map(|row| self.len(row, number)).sum();
                let offsets_at = begin + align(values);
                *at = offsets_at + align((rows as u64 + 1) * 8);
                Column::Ragged {
                    values_at: begin as usize,
                    values_len: values as usize,
                    offsets_at: offsets_at as usize,
                }
            }
            ColumnKind::Int | ColumnKind::Float => {
                *at = begin + align(rows as u64 * 8);
                let dtype = if spec.kind == ColumnKind::Int { Dtype::I64 } else { Dtype::F64 };
                Column::Dense { dtype, shape: vec![rows], at: begin as usize, len: rows * 8 }
            }
            ColumnKind::Array { dtype, shape } => {
                let len = rows as u64 * element_bytes(*dtype, shape);
                *at = begin + align(len);
                let shape = std::iter::once(rows).chain(shape.iter().copied()).collect();
                Column::Dense { dtype: *dtype, shape, at: begin as usize, len: len as usize }
            }
        };
        if *at > slot_bytes as u64 {
            return Err(Error::new(
                Kind::Device,
                format!("batch {} needs {at} bytes, a device slot has {slot_bytes}", self.plan.batch),
            )
            .advice("lower batch_size, or raise device_memory"));
        }
        Ok(column)
    }

    fn fill(&self, number: usize, column: &Column, engine: &mut dyn Engine, slot: &mut DeviceSlot) -> Result<()> {
        match (&self.columns[number].kind, column) {
            (ColumnKind::Int, Column::Dense { at, .. }) => {
                let parse = |row| value::int(self.slices(row, number)).map_err(|e| e.within(self.locate(row, number)));
                let bytes = self.parsed(|row| parse(row).map(i64::to_le_bytes))?;
                engine.put(slot, *at, &bytes)
            }
            (ColumnKind::Float, Column::Dense { at, .. }) => {
                let parse =
                    |row| value::float(self.slices(row, number)).map_err(|e| e.within(self.locate(row, number)));
                let bytes = self.parsed(|row| parse(row).map(f64::to_le_bytes))?;
                engine.put(slot, *at, &bytes)
            }
            (ColumnKind::Array { dtype, shape }, Column::Dense { at, .. }) => {
                self.gather_array(number, *dtype, shape, *at, engine, slot)
            }
            (kind, Column::Ragged { values_at, offsets_at, .. }) => {
                if *kind == ColumnKind::Json {
                    for row in 0..self.count() {
                        value::check_json(self.slices(row, number)).map_err(|e| e.within(self.locate(row, number)))?;
                    }
                }
                self.gather_ragged(number, *values_at, *offsets_at, engine, slot)
            }
            _ => Err(Error::new(Kind::Config, "a ragged field in a dense column")),
        }
    }

    fn parsed(&self, parse: impl Fn(usize) -> Result<[u8; 8]>) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(self.count() * 8);
        for row in 0..self.count() {
            bytes.extend_from_slice(&parse(row)?);
        }
        Ok(bytes)
    }

    fn gather_ragged(
        &self,
        number: usize,
        values_at: usize,
        offsets_at: usize,
        engine: &mut dyn Engine,
        slot: &mut DeviceSlot,
    ) -> Result<()> {
        let mut offsets = Vec::with_capacity((self.count() + 1) * 8);
        let mut segments = Vec::with_capacity(self.count());
        let mut to = 0;
        offsets.extend_from_slice(&0u64.to_le_bytes());
        for row in 0..self.count() {
            for from in self.slices(row, number) {
                segments.push(Segment { from, to: values_at + to });
                to += from.len();
            }
            offsets.extend_from_slice(&(to as u64).to_le_bytes());
        }
        engine.copy(slot, &segments)?;
        engine.put(slot, offsets_at, &offsets)
    }

    fn gather_array(
        &self,
        number: usize,
        dtype: Dtype,
        shape: &[usize],
        at: usize,
        engine: &mut dyn Engine,
        slot: &mut DeviceSlot,
    ) -> Result<()> {
        let row_bytes = element_bytes(dtype, shape);
        let mut segments = Vec::with_capacity(self.count());
        for row in 0..self.count() {
            let mut skip = value::array_header(self.slices(row, number), self.len(row, number), row_bytes, dtype, shape)
                .map_err(|e| e.within(self.locate(row, number)))? as usize;
            let mut to = at + row * row_bytes as usize;
            for from in self.slices(row, number) {
                let skipped = skip.min(from.len());
                let from = &from[skipped..];
                skip -= skipped;
                if !from.is_empty() {
                    segments.push(Segment { from, to });
                    to += from.len();
                }
            }
        }
        engine.copy(slot, &segments)
    }
}
