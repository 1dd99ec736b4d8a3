//! Batches in Python's hands.

use std::sync::{Arc, Mutex, PoisonError};

use farfeed::device::RawStream;
use farfeed::loader::Column as Place;
use farfeed::{Error, Kind};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyIndexError, PyKeyError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::dlpack::{Column, Memory, stream_from};
use crate::errors::{or_raise, raised};
use crate::ours::Ours;
use crate::waiting::on_a_thread;

/// A batch and where it lies. The slot goes back when the last holder lets go: the batch, columns and rows of it, and whatever was
/// imported from those.
pub(crate) struct Held {
    batch: Ours<farfeed::Batch>,
    /// Number of the CUDA device; `None` for host memory.
    ordinal: Option<u32>,
}

impl Held {
    /// The batch; an error in a child of the process that took it.
    pub(crate) fn batch(&self) -> farfeed::Result<&farfeed::Batch> {
        self.batch.get()
    }
}

impl Memory for Held {
    fn check(&self) -> farfeed::Result<()> {
        self.batch().map(drop)
    }

    fn wait_on(&self, stream: RawStream) -> farfeed::Result<()> {
        self.batch()?.wait_on(stream)
    }

    fn ordinal(&self) -> Option<u32> {
        self.ordinal
    }
}

/// One batch of one rank: a mapping of names to columns. Dense columns are Column, others Ragged.
///
/// It lies in a slot of the loader, which goes back when nothing holds it any more: neither the batch, nor columns of it, nor arrays and
/// tensors imported from those. Slots are `batches_ahead` + 2; who holds all of them and asks for more gets an error.
#[pyclass(module = "farfeed", frozen, mapping)]
pub(crate) struct Batch {
    /// `None` once released. In a child of the process that took the batch the lock may be held for ever.
    held: Ours<Mutex<Option<Arc<Held>>>>,
}

impl Batch {
    pub(crate) fn new(batch: farfeed::Batch, ordinal: Option<u32>) -> Self {
        let held = Arc::new(Held { batch: Ours::new(batch), ordinal });
        Batch { held: Ours::new(Mutex::new(Some(held))) }
    }

    fn held(&self, py: Python<'_>) -> PyResult<Arc<Held>> {
        let held = or_raise(py, self.held.get())?.lock().unwrap_or_else(PoisonError::into_inner).clone();
        held.ok_or_else(|| {
            let error =
                Error::new(Kind::Config, "the batch was released").advice("take what you need of it before release()");
            raised(py, &error)
        })
    }

    fn with<T>(&self, py: Python<'_>, ask: impl FnOnce(&farfeed::Batch) -> farfeed::Result<T>) -> PyResult<T> {
        let held = self.held(py)?;
        or_raise(py, held.batch().and_then(ask))
    }

    fn names(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |batch| Ok(batch.columns().to_vec()))
    }

    fn view<'py>(slf: &Bound<'py, Self>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("collections.abc")?.getattr(name)?.call1((slf,))
    }
}

#[pymethods]
impl Batch {
    /// Samples in it.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |batch| Ok(batch.len()))
    }

    /// Number of its epoch, from 0.
    #[getter]
    fn epoch(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |batch| Ok(batch.epoch()))
    }

    /// Its number in the epoch, from 0; the same on every rank.
    #[getter]
    fn index(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |batch| Ok(batch.index()))
    }

    /// Rows that it lacks: bad samples, and those named beforehand in `quarantine`.
    #[getter]
    fn left_out(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |batch| Ok(batch.left_out()))
    }

    /// Payload bytes of all columns.
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |batch| Ok(batch.payload_bytes()))
    }

    /// Where it lies: "cpu" or "cuda:0".
    #[getter]
    fn device(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.held(py)?.device())
    }

    /// Numbers of the samples in the dataset's own order, row by row.
    #[getter]
    fn sample_ids(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.with(py, |batch| Ok(batch.ids().to_vec()))
    }

    /// Keys of the samples, row by row: for WebDataset the name that a sample's files share, else "shard:number".
    #[getter]
    fn sample_keys(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |batch| Ok((0..batch.len()).filter_map(|row| batch.key(row)).map(String::from).collect()))
    }

    /// The documents of a JSON column, parsed; copied to the host where need be.
    fn json<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyList>> {
        documents(&self.bytes(py, name)?)
    }

    /// A dense int64 column of shape [B] as a list of int; copied to the host where need be.
    fn ints(&self, py: Python<'_>, name: &str) -> PyResult<Vec<i64>> {
        self.with(py, |batch| batch.ints(name))
    }

    /// A dense float64 column of shape [B] as a list of float; copied to the host where need be.
    fn floats(&self, py: Python<'_>, name: &str) -> PyResult<Vec<f64>> {
        self.with(py, |batch| batch.floats(name))
    }

    /// Each row of a column as bytes, copied: for checks, not for the training loop.
    fn bytes<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyList>> {
        let held = self.held(py)?;
        let values = or_raise(py, held.batch().and_then(|batch| batch.values(name)))?;
        PyList::new(py, values.iter().map(|value| PyBytes::new(py, value)))
    }

    /// Makes a CUDA stream wait until the batch has landed; the host does not wait. The slot is filled again only after what the
    /// stream has been given to do when the last holder lets go.
    ///
    /// `stream` is a handle, or an object with `cuda_stream` (torch) or `ptr` (cupy). Importing by DLPack does this by itself for the
    /// importer's current stream. Does nothing on the CPU.
    fn wait_on(&self, py: Python<'_>, stream: &Bound<'_, PyAny>) -> PyResult<()> {
        let stream = stream_from(handle(stream)?);
        self.with(py, |batch| batch.wait_on(stream))
    }

    /// Waits on the host until the batch has landed. A loop that launches kernels needs no such wait.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        let held = self.held(py)?;
        if held.ordinal().is_none() {
            return or_raise(py, held.batch().map(drop));
        }
        on_a_thread(py, move || held.batch()?.synchronize(), |_| Ok(()))
    }

    /// Lets go of the batch now; it cannot be used afterwards. Columns and what was imported from them stay good, and hold the slot.
    ///
    /// On a GPU the slot is filled again only after what `stream`, and every stream that has met the batch, has been given to do when
    /// the last holder lets go. `stream` as in wait_on().
    #[pyo3(signature = (stream = None))]
    fn release(&self, py: Python<'_>, stream: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        if let Some(stream) = stream {
            self.wait_on(py, stream)?;
        }
        let held = or_raise(py, self.held.get())?.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(held);
        Ok(())
    }

    /// Names of the columns.
    fn keys<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Batch::view(slf, "KeysView")
    }

    /// The columns.
    fn values<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Batch::view(slf, "ValuesView")
    }

    /// Names and columns.
    fn items<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Batch::view(slf, "ItemsView")
    }

    /// The column `name`, or `default` where there is none.
    #[pyo3(signature = (name, default = None, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.__contains__(py, name)? { self.__getitem__(py, name).map(Some) } else { Ok(default) }
    }

    fn __getitem__<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        let held = self.held(py)?;
        let batch = or_raise(py, held.batch())?;
        match batch.layout(name) {
            Some(Place::Dense { .. }) => or_raise(py, Column::dense(&held, name))?.into_bound_py_any(py),
            Some(Place::Ragged { .. }) => or_raise(py, Ragged::new(&held, name))?.into_bound_py_any(py),
            None => Err(PyKeyError::new_err(format!("{name}: the columns are {}", batch.columns().join(", ")))),
        }
    }

    fn __contains__(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        self.with(py, |batch| Ok(batch.layout(name).is_some()))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(PyList::new(py, self.names(py)?)?.try_iter()?.into_any())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |batch| Ok(batch.columns().len()))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let text = self.with(py, |batch| {
            let (epoch, index, size) = (batch.epoch(), batch.index(), batch.len());
            Ok(format!("<farfeed.Batch {index} of epoch {epoch}: {size} samples; {}>", batch.columns().join(", ")))
        });
        text.unwrap_or_else(|_| "<farfeed.Batch, released>".to_owned())
    }
}

/// Values of any size, row by row: `values`, all bytes one after the other, and `offsets`, where each row begins.
///
/// `ragged[i]` is a view of row i, a Column of uint8 with shape [length].
#[pyclass(module = "farfeed", frozen, sequence)]
pub(crate) struct Ragged {
    held: Arc<Held>,
    name: String,
    values: Column,
}

impl Ragged {
    fn new(held: &Arc<Held>, name: &str) -> farfeed::Result<Self> {
        let values = Column::values(held, name)?;
        Ok(Ragged { held: Arc::clone(held), name: name.to_owned(), values })
    }

    fn column(&self, py: Python<'_>) -> PyResult<farfeed::loader::Ragged<'_>> {
        or_raise(py, self.held.batch().and_then(|batch| batch.ragged(&self.name)))
    }
}

#[pymethods]
impl Ragged {
    /// All values one after the other: uint8, of shape [bytes].
    #[getter]
    fn values(&self, py: Python<'_>) -> PyResult<Column> {
        or_raise(py, Column::values(&self.held, &self.name))
    }

    /// Where each row begins in `values`, and behind those where the last one ends: int64, of shape [B + 1].
    #[getter]
    fn offsets(&self, py: Python<'_>) -> PyResult<Column> {
        or_raise(py, Column::offsets(&self.held, &self.name))
    }

    /// Where it lies: "cpu" or "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.held.device()
    }

    /// A view of each row: no bytes are copied.
    fn list<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let bounds = self.column(py)?.offsets();
        let rows = bounds.windows(2).map(|bounds| self.values.part(bounds[0], bounds[1]));
        PyList::new(py, rows.collect::<Option<Vec<Column>>>().unwrap_or_default())
    }

    /// The rows as JSON documents, parsed; copied to the host where need be.
    fn json<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        documents(&self.bytes(py)?)
    }

    /// Each row as bytes, copied.
    fn bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let values = or_raise(py, self.held.batch().and_then(|batch| batch.values(&self.name)))?;
        PyList::new(py, values.iter().map(|value| PyBytes::new(py, value)))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.column(py)?.rows)
    }

    fn __getitem__(&self, py: Python<'_>, row: isize) -> PyResult<Column> {
        let column = self.column(py)?;
        let wanted = if row < 0 { row + column.rows as isize } else { row };
        let found = usize::try_from(wanted).ok().and_then(|row| match column.offsets().get(row..row + 2) {
            Some([from, to]) => self.values.part(*from, *to),
            _ => None,
        });
        found.ok_or_else(|| PyIndexError::new_err(format!("row {row} of {}", column.rows)))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.list(py)?.try_iter()?.into_any())
    }

    fn __repr__(&self) -> String {
        let rows = self.held.batch().map_or(0, farfeed::Batch::len);
        format!("<farfeed.Ragged '{}': {rows} rows on {}>", self.name, self.device())
    }
}

/// A CUDA stream's handle: a number, or an object of torch or cupy.
fn handle(stream: &Bound<'_, PyAny>) -> PyResult<usize> {
    let attribute = stream.getattr("cuda_stream").or_else(|_| stream.getattr("ptr"));
    attribute.as_ref().unwrap_or(stream).extract()
}

fn documents<'py>(texts: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyList>> {
    let py = texts.py();
    let loads = py.import("json")?.getattr("loads")?;
    let documents: PyResult<Vec<_>> = texts.iter().map(|text| loads.call1((text,))).collect();
    PyList::new(py, documents?)
}
