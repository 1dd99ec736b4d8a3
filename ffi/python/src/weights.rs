//! Weights: safetensors files as a dict of columns.

use std::collections::HashMap;
use std::sync::Arc;

use farfeed::device::RawStream;
use farfeed::loader::{LoaderBuilder, Weights};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dlpack::{Column, Memory};
use crate::errors::or_raise;
use crate::options::{self, Retry, Size};
use crate::ours::Ours;
use crate::shards::{Maybe, Reach};
use crate::waiting::on_a_thread;

/// Weights in Python's hands: their memory is freed when the last column, or what was imported from one, lets go.
struct Loaded {
    weights: Ours<Weights>,
    ordinal: Option<u32>,
}

impl Memory for Loaded {
    fn check(&self) -> farfeed::Result<()> {
        self.weights.get().map(drop)
    }

    fn wait_on(&self, stream: RawStream) -> farfeed::Result<()> {
        self.weights.get()?.wait_on(stream)
    }

    fn ordinal(&self) -> Option<u32> {
        self.ordinal
    }
}

/// Streams the tensors of safetensors files to a device. Returns a dict of names to Column, in the order of the files; all are there.
///
/// Import them without a copy, as in `{name: torch.from_dlpack(column) for name, column in tensors.items()}`; they are writable. All lie in
/// one piece of memory, which is freed when nothing holds any of them. `host_memory` bounds what is in flight; `requests` is the most reads at once.
///
/// Raises NotFoundError for a file that is not there, CorruptError for one that is no whole safetensors file, UnsupportedError for an
/// element type other than booleans, integers of 8 to 64 bits, F16, BF16, F32 and F64, ConfigError for two files with tensors of one
/// name, DeviceError where the tensors do not fit.
#[pyfunction]
#[pyo3(signature = (
    urls, *, device = None, host_memory = None, device_memory = None, requests = None, storage_options = None, ca_bundle = None,
    client_certificate = None, retry = None,
))]
#[expect(clippy::too_many_arguments, reason = "one for each option, by keyword")]
pub(crate) fn load_safetensors<'py>(
    py: Python<'py>,
    urls: &Bound<'py, PyAny>,
    device: Option<&Bound<'py, PyAny>>,
    host_memory: Option<Size>,
    device_memory: Option<Size>,
    requests: Option<usize>,
    storage_options: Option<HashMap<String, Bound<'py, PyAny>>>,
    ca_bundle: Option<&Bound<'py, PyAny>>,
    client_certificate: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    retry: Option<Retry>,
) -> PyResult<Bound<'py, PyDict>> {
    let device = options::device(py, device)?;
    let ordinal = device.ordinal();
    let builder = Reach { storage_options, ca_bundle, client_certificate, retry }
        .builder(py, urls)?
        .device(device)
        .maybe(options::size(py, host_memory)?, LoaderBuilder::host_memory)
        .maybe(options::size(py, device_memory)?, LoaderBuilder::device_memory)
        .maybe(requests, LoaderBuilder::requests);
    let weights = on_a_thread(py, move || builder.load_weights(), |_| Ok(()))?;
    let loaded = Arc::new(Loaded { weights: Ours::new(weights), ordinal });
    let tensors = PyDict::new(py);
    for (name, tensor) in or_raise(py, loaded.weights.get())?.tensors() {
        tensors.set_item(name, Column::whole(loaded.clone(), &tensor))?;
    }
    Ok(tensors)
}
