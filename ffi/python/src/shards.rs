//! What is done with shards without a loader: their index, and a probe of the link to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use farfeed::Loader;
use farfeed::loader::{IndexProgress, LoaderBuilder};
use farfeed::probe::{Need, ProbeOptions};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde_json::json;

use crate::errors::config;
use crate::options::{self, Retry, Size, location, locations};
use crate::report::{plain, report};
use crate::waiting::on_a_thread;

/// Where the index of the dataset that `url` names is looked for: beside its shards.
#[pyfunction]
pub(crate) fn index_location(url: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(farfeed::loader::index_location(&location(url)?))
}

/// Reads every byte of tar shards once. Returns their index, as bytes, and what was found, as a dict; farfeed.index() writes it to a file.
#[pyfunction]
#[pyo3(signature = (urls, *, storage_options = None, ca_bundle = None, client_certificate = None, retry = None, progress = None))]
pub(crate) fn make_index<'py>(
    py: Python<'py>,
    urls: &Bound<'py, PyAny>,
    storage_options: Option<HashMap<String, Bound<'py, PyAny>>>,
    ca_bundle: Option<&Bound<'py, PyAny>>,
    client_certificate: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    retry: Option<Retry>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyAny>)> {
    let builder = Reach { storage_options, ca_bundle, client_certificate, retry }.builder(py, urls)?;
    let progress = Progress::new(progress);
    let builder = builder.on_index_progress(progress.listener());
    let index = on_a_thread(py, move || builder.make_index(), |py| progress.tell(py))?;
    let found = json!({
        "shards": index.shards().len(),
        "samples": index.shards().iter().map(|shard| shard.samples()).sum::<usize>(),
        "bytes": index.shards().iter().map(|shard| shard.shard.size).sum::<u64>(),
        "skipped": index.shards().iter().map(|shard| shard.skipped.total()).sum::<u64>(),
    });
    Ok((PyBytes::new(py, &index.encode()), plain(py, &found)?))
}

/// Measures the link to the shards, whatever is in them: round trips, first bytes, goodput against connections and request size.
///
/// Returns a farfeed.Report: a dict of plain numbers (seconds, bytes, bytes per second) whose `str` says it in lines. `seconds` and
/// `bytes` are the most that it takes. With `need`, bytes per second, there is a `verdict`: a dict with `answer` and `text`.
#[pyfunction]
#[pyo3(signature = (
    urls, *, need = None, sample_bytes = None, seconds = None, bytes = None, connections = None, storage_options = None,
    ca_bundle = None, client_certificate = None, retry = None,
))]
#[expect(clippy::too_many_arguments, reason = "one for each option, by keyword")]
pub(crate) fn probe<'py>(
    py: Python<'py>,
    urls: &Bound<'py, PyAny>,
    need: Option<Size>,
    sample_bytes: Option<f64>,
    seconds: Option<f64>,
    bytes: Option<Size>,
    connections: Option<usize>,
    storage_options: Option<HashMap<String, Bound<'py, PyAny>>>,
    ca_bundle: Option<&Bound<'py, PyAny>>,
    client_certificate: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    retry: Option<Retry>,
) -> PyResult<Bound<'py, PyAny>> {
    let builder = Reach { storage_options, ca_bundle, client_certificate, retry }.builder(py, urls)?;
    let mut limits = ProbeOptions::default();
    if let Some(time) = options::optional_seconds(py, "seconds", seconds)? {
        limits.time = time;
    }
    if let Some(bytes) = options::size(py, bytes)? {
        limits.bytes = bytes.as_bytes();
    }
    limits.connections_max = connections.unwrap_or(limits.connections_max);
    let need = options::size(py, need)?;
    let found = on_a_thread(py, move || builder.probe(limits, &mut |_| {}), |_| Ok(()))?;
    let verdict = need.map(|need| found.verdict(Need { bytes_s: need.as_bytes() as f64, sample_bytes }));
    let text = match &verdict {
        Some(verdict) => format!("{found}\n{verdict}"),
        None => found.to_string(),
    };
    let all = report(py, &found, &text)?;
    if let Some(verdict) = verdict {
        all.cast::<PyDict>()?.set_item("verdict", plain(py, &verdict)?)?;
    }
    Ok(all)
}

/// Options of how stores are reached.
pub(crate) struct Reach<'a, 'py> {
    pub(crate) storage_options: Option<HashMap<String, Bound<'py, PyAny>>>,
    pub(crate) ca_bundle: Option<&'a Bound<'py, PyAny>>,
    pub(crate) client_certificate: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    pub(crate) retry: Option<Retry>,
}

impl Reach<'_, '_> {
    /// A builder of what `urls` name, reached in this way.
    pub(crate) fn builder(self, py: Python<'_>, urls: &Bound<'_, PyAny>) -> PyResult<LoaderBuilder> {
        let mut urls = locations(urls)?.into_iter();
        let first = urls.next().ok_or_else(|| config(py, "urls is empty", "name a shard"))?;
        let mut builder = urls.fold(Loader::builder(first), LoaderBuilder::and);
        for (name, value) in self.storage_options.into_iter().flatten() {
            // True and 1 are written as they are in a configuration: "true", "1".
            let text = match value.extract::<bool>() {
                Ok(value) => value.to_string(),
                Err(_) => value.str()?.to_string(),
            };
            builder = builder.store_option(name, text);
        }
        if let Some((chain, key)) = self.client_certificate {
            builder = builder.client_certificate(location(&chain)?, location(&key)?);
        }
        Ok(builder
            .maybe(self.ca_bundle.map(location).transpose()?, LoaderBuilder::ca_bundle)
            .maybe(self.retry.map(|retry| retry.meant(py)).transpose()?, LoaderBuilder::retry))
    }
}

/// Options that may have been left out.
pub(crate) trait Maybe: Sized {
    /// `set` with the value, if there is one.
    fn maybe<T>(self, value: Option<T>, set: impl FnOnce(Self, T) -> Self) -> Self {
        match value {
            Some(value) => set(self, value),
            None => self,
        }
    }
}

impl Maybe for LoaderBuilder {}

/// What an index in the making has come to, and who wants to know.
///
/// The library tells it on its own thread; the callback is called on the user's, between waits: it may touch what it likes, and raise.
pub(crate) struct Progress<'py> {
    callback: Option<Bound<'py, PyAny>>,
    newest: Arc<Mutex<Option<IndexProgress>>>,
}

impl<'py> Progress<'py> {
    pub(crate) fn new(callback: Option<Bound<'py, PyAny>>) -> Self {
        Progress { callback, newest: Arc::default() }
    }

    /// For the library.
    pub(crate) fn listener(&self) -> impl Fn(IndexProgress) + Send + Sync + 'static {
        let newest = Arc::clone(&self.newest);
        move |progress| *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress)
    }

    /// Calls the callback if there is anything new.
    pub(crate) fn tell(&self, py: Python<'_>) -> PyResult<()> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(callback), Some(newest)) = (&self.callback, newest) else { return Ok(()) };
        let IndexProgress { bytes, bytes_total, shards, shards_total, samples } = newest;
        let class = py.import("farfeed.report")?.getattr("IndexProgress")?;
        callback.call1((class.call1((bytes, bytes_total, shards, shards_total, samples))?,)).map(drop)
    }
}
