//! A batch in the consumer's hands.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::column::Column;
use super::lists::Lent;
use crate::dataset::{Dataset, Dtype, SampleId};
use crate::device::{DeviceSlot, RawStream};
use crate::error::{Error, Kind, Result};

/// One batch of one rank: named columns in a device slot, which goes back to the loader when the batch is dropped.
///
/// Hold at most `batches_ahead + 1` at a time: the loader cannot land the next one when every slot is held.
pub struct Batch {
    /// In front of the slot: whoever waits for that finds these back, too.
    pub(super) lists: Lent,
    pub(super) slot: DeviceSlot,
    pub(super) columns: Arc<[String]>,
    pub(super) left_out: usize,
    pub(super) dataset: Arc<Dataset>,
    pub(super) epoch: u64,
    pub(super) index: u64,
    pub(super) payload: u64,
    /// Set when the consumer takes it.
    pub(super) held: Option<Held>,
}

/// Counts batches in the consumer's hands.
pub(super) struct Held(Arc<AtomicUsize>);

impl Held {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Held(Arc::clone(count))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A dense column.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// `[B, …]`.
    pub shape: &'a [usize],
    /// Address on the device; on the host device an ordinary address.
    pub pointer: u64,
    /// Bytes.
    pub len: usize,
    /// The elements, little-endian, where the host can read them.
    pub bytes: Option<&'a [u8]>,
}

/// A ragged column.
#[derive(Clone, Copy, Debug)]
pub struct Ragged<'a> {
    /// Rows.
    pub rows: usize,
    /// Address of the values (`uint8`) on the device.
    pub values_pointer: u64,
    /// Bytes of all values.
    pub values_len: usize,
    /// Address of the B + 1 offsets (`int64`).
    pub offsets_pointer: u64,
    /// The values, where the host can read them.
    pub values: Option<&'a [u8]>,
    bounds: &'a [usize],
}

impl<'a> Ragged<'a> {
    /// Where each row begins among the values, and behind those where the last one ends: B + 1 numbers, on the host whatever the device.
    pub fn offsets(&self) -> &'a [usize] {
        self.bounds
    }

    /// The value of a row; `None` past the end, or where the host cannot read it.
    pub fn row(&self, row: usize) -> Option<&'a [u8]> {
        self.values?.get(*self.bounds.get(row)?..*self.bounds.get(row + 1)?)
    }

    /// All values in order, where the host can read them.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let column = *self;
        (0..column.rows).map_while(move |row| column.row(row))
    }
}

impl Batch {
    /// Rows.
    pub fn len(&self) -> usize {
        self.lists.rows.len()
    }

    /// Whether there are no rows: the last batch of an epoch, on a rank for which no sample was left; or one whose samples are all
    /// left out.
    pub fn is_empty(&self) -> bool {
        self.lists.rows.is_empty()
    }

    /// Rows that it lacks: bad samples ([`OnError::Skip`](super::OnError::Skip)), and those named beforehand
    /// ([`LoaderBuilder::quarantine`](super::LoaderBuilder::quarantine)). With them it would have `len() + left_out()` rows.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Number in the epoch, from 0; the same on every rank.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Numbers of the samples in the dataset's own order, row by row.
    pub fn ids(&self) -> &[SampleId] {
        &self.lists.rows
    }

    /// Key of a row's sample: for WebDataset the name its files share, else `shard:number`.
    pub fn key(&self, row: usize) -> Option<Cow<'_, str>> {
        self.lists.rows.get(row).map(|sample| self.dataset.key(*sample))
    }

    /// Names of the columns, in the order in which fields were asked for.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Where a column lies in the slot.
    pub fn layout(&self, name: &str) -> Option<&Column> {
        let number = self.columns.iter().position(|column| column == name)?;
        self.lists.layout.get(number)
    }

    /// Payload bytes of all columns.
    pub fn payload_bytes(&self) -> u64 {
        self.payload
    }

    /// A dense column.
    ///
    /// # Errors
    /// `NotFound` for a name that was not asked for; `Config` when the column is ragged.
    pub fn dense(&self, name: &str) -> Result<Dense<'_>> {
        match self.column(name)? {
            Column::Dense { dtype, shape, at, len } => Ok(Dense {
                dtype: *dtype,
                shape,
                pointer: self.slot.device_pointer() + *at as u64,
                len: *len,
                bytes: self.host(*at, *len),
            }),
            Column::Ragged { .. } => Err(Error::new(Kind::Config, format!("column '{name}' is ragged"))
                .advice("use batch.ragged, or ask for the field as an array, int or float")),
        }
    }

    /// A ragged column.
    ///
    /// # Errors
    /// `NotFound` for a name that was not asked for; `Config` when the column is dense.
    pub fn ragged(&self, name: &str) -> Result<Ragged<'_>> {
        match self.column(name)? {
            Column::Ragged { values_at, values_len, offsets_at, bounds } => Ok(Ragged {
                rows: self.len(),
                values_pointer: self.slot.device_pointer() + *values_at as u64,
                values_len: *values_len,
                offsets_pointer: self.slot.device_pointer() + *offsets_at as u64,
                values: self.host(*values_at, *values_len),
                bounds,
            }),
            Column::Dense { .. } => {
                Err(Error::new(Kind::Config, format!("column '{name}' is dense")).advice("use batch.dense"))
            }
        }
    }

    /// A dense int64 column as numbers, read back to the host where need be.
    ///
    /// # Errors
    /// As [`Batch::dense`]; `Config` when the elements are not int64; `Device` when they cannot be read back.
    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        self.eight_byte_elements(name, Dtype::I64).map(|elements| elements.map(i64::from_le_bytes).collect())
    }

    /// A dense float64 column as numbers, read back to the host where need be.
    ///
    /// # Errors
    /// As [`Batch::ints`].
    pub fn floats(&self, name: &str) -> Result<Vec<f64>> {
        self.eight_byte_elements(name, Dtype::F64).map(|elements| elements.map(f64::from_le_bytes).collect())
    }

    /// A JSON column's documents.
    ///
    /// # Errors
    /// As [`Batch::ragged`]; `Corrupt` where a document does not parse; `Device` when it cannot be read back.
    pub fn json(&self, name: &str) -> Result<Vec<serde_json::Value>> {
        let parse = |row: usize, bytes: &[u8]| {
            serde_json::from_slice(bytes).map_err(|e| {
                let key = self.key(row).unwrap_or_default();
                Error::new(Kind::Corrupt, format!("field '{name}' of sample {key} is not JSON")).source(e)
            })
        };
        self.values(name)?.iter().enumerate().map(|(row, value)| parse(row, value)).collect()
    }

    /// Each row's bytes of any column, read back to the host where need be: for checks, not for the training loop.
    ///
    /// # Errors
    /// `NotFound` for a name that was not asked for; `Device` when the bytes cannot be read back.
    pub fn values(&self, name: &str) -> Result<Vec<Cow<'_, [u8]>>> {
        match self.column(name)? {
            Column::Dense { at, len, .. } => {
                let row = len / self.len().max(1);
                let cut = |n: usize| self.read(at + n * row, row);
                (0..self.len()).map(cut).collect()
            }
            Column::Ragged { values_at, bounds, .. } => {
                bounds.windows(2).map(|bounds| self.read(values_at + bounds[0], bounds[1] - bounds[0])).collect()
            }
        }
    }

    /// Has a stream of the batch's device wait until the batch has landed: `batch.wait_on(&stream)` with cudarc's `Arc<CudaStream>`, or a
    /// [`RawStream`] with any other. Does nothing on the host device.
    ///
    /// Who waits for whom: what is enqueued in `stream` *after* this call waits for the batch's copies, the host does not. The batch remembers the
    /// stream, and when it is let go of, by drop or by [`Batch::release`], its slot is refilled only after what has been enqueued in `stream` *by then*.
    /// So enqueue all that uses the batch before it is let go of; nothing has to be waited for.
    ///
    /// # Errors
    /// `Config` for more than eight different streams, or one that is known to be another device's; `Device` when the driver refuses.
    pub fn wait_on(&self, stream: impl Into<RawStream>) -> Result<()> {
        self.slot.wait_on(stream.into())
    }

    /// Waits on the host until the batch has landed. A loop that launches kernels wants [`Batch::wait_on`] instead.
    ///
    /// # Errors
    /// `Device` when the copy failed; `Stalled` when it does not end.
    pub fn synchronize(&self) -> Result<()> {
        self.slot.synchronize()
    }

    /// Gives the slot back. It is refilled once the work that has been enqueued so far is done, in `stream` and in every stream that
    /// [`Batch::wait_on`] or [`View::on`](super::View::on) was told of. Nothing is waited for here.
    ///
    /// Dropping the batch does the same without naming one more stream: `release` is for a stream that the batch has not heard of (one that waited for
    /// another which did), and for those who want the driver's refusal now instead of with a later batch.
    ///
    /// # Errors
    /// `Config` for a stream that is known to be another device's: the slot goes back as if none had been named. `Device` when the driver refuses: the
    /// slot is lost, and the next batch says so, too.
    pub fn release(self, stream: impl Into<RawStream>) -> Result<()> {
        self.slot.release(Some(stream.into()))
    }

    pub(super) fn column(&self, name: &str) -> Result<&Column> {
        self.layout(name).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("no column '{name}'"))
                .advice(format!("there are: {}", self.columns.join(", ")))
        })
    }

    fn host(&self, at: usize, len: usize) -> Option<&[u8]> {
        self.slot.bytes()?.get(at..at + len)
    }

    fn read(&self, at: usize, len: usize) -> Result<Cow<'_, [u8]>> {
        match self.host(at, len) {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => self.slot.read_back(at, len).map(Cow::Owned),
        }
    }

    fn eight_byte_elements(&self, name: &str, wanted: Dtype) -> Result<impl Iterator<Item = [u8; 8]>> {
        let column = self.dense(name)?;
        if column.dtype != wanted {
            let error = format!("column '{name}' holds {}, not {}", column.dtype.name(), wanted.name());
            return Err(Error::new(Kind::Config, error));
        }
        let at = (column.pointer - self.slot.device_pointer()) as usize;
        let bytes = self.read(at, column.len)?.into_owned();
        Ok((0..bytes.len() / 8).map(move |i| le_u64(&bytes[i * 8..i * 8 + 8]).to_le_bytes()))
    }
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("epoch", &self.epoch)
            .field("index", &self.index)
            .field("rows", &self.len())
            .field("columns", &self.columns)
            .finish()
    }
}
