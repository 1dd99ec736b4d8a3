//! The loader: options in, batches out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use farfeed::loader::{LoaderBuilder, Next};
use farfeed::order::State;
use farfeed::{Error, Kind, Quarantine};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::batch::Batch;
use crate::errors::{config, or_raise, raised};
use crate::options::{self, Field, HedgeOption, OnErrorOption, Retry, ShuffleOption, Size, Tokens};
use crate::ours::Ours;
use crate::report::{plain, report};
use crate::shards::{Maybe, Progress, Reach};
use crate::waiting::{SLICE, detached, on_a_thread};

/// Streams the batches of one rank from distant storage.
///
/// `urls` is a path or URL, or a list of them, with braces as in train-{0000..0255}.tar, or ending in / for all shards there: files of
/// tar (WebDataset), .npy or .bin (tokens) at a path, http(s)://, s3://, gs:// or az://. Options have defaults, which plan() and explain() show.
/// Sizes are bytes or text such as "4GiB", times are seconds.
///
/// A `for` loop gives the batches of one epoch that are still to come: the whole epoch, or after load_state_dict() its rest; the next loop
/// gives the next epoch. Waiting lets other threads run and hears Ctrl-C.
///
/// Raises a subclass of farfeed.Error that says what, where and what to do about it: ConfigError for options that contradict each other or
/// the dataset, NotFoundError for shards and fields, TopologyError for ranks, DeviceError for a device that cannot hold the slots.
#[pyclass(module = "farfeed", frozen)]
pub(crate) struct Loader {
    handle: Arc<Handle>,
}

/// The library's loader, shared with iterators, until it is closed.
struct Handle {
    loader: Ours<Mutex<Option<Arc<farfeed::Loader>>>>,
    ordinal: Option<u32>,
}

impl Handle {
    /// The loader, if it is open and this process made it.
    fn get(&self, py: Python<'_>) -> PyResult<Arc<farfeed::Loader>> {
        let slot = or_raise(py, self.loader.get())?;
        let loader = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loader.ok_or_else(|| config(py, "the loader is closed", "build another one"))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let slot = or_raise(py, self.loader.get())?;
        let loader = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        detached(py, || {
            drop(loader);
            Ok(())
        })
    }
}

#[pymethods]
impl Loader {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "one for each option, by keyword")]
    #[pyo3(signature = (
        urls, *, fields = None, tokens = None, index = None, batch_size = 1, drop_last = false, shuffle = None, seed = None,
        shrink_window = false, lanes = None, rank = None, world_size = None, epochs = None, state = None, device = None,
        batches_ahead = 2, device_memory = None, host_memory = None, page_size = None, block_size = None, requests = None,
        in_flight = None, max_rate = None, retry = None, hedge = None, verify = true, on_error = None, quarantine = None,
        patience = None, storage_options = None, ca_bundle = None, client_certificate = None, trace = 0, progress = None,
    ))]
    fn new(
        py: Python<'_>,
        urls: &Bound<'_, PyAny>,
        fields: Option<&Bound<'_, PyDict>>,
        tokens: Option<Tokens>,
        index: Option<&Bound<'_, PyAny>>,
        batch_size: u32,
        drop_last: bool,
        shuffle: Option<ShuffleOption>,
        seed: Option<u64>,
        shrink_window: bool,
        lanes: Option<u32>,
        rank: Option<u32>,
        world_size: Option<u32>,
        epochs: Option<u64>,
        state: Option<&Bound<'_, PyAny>>,
        device: Option<&Bound<'_, PyAny>>,
        batches_ahead: usize,
        device_memory: Option<Size>,
        host_memory: Option<Size>,
        page_size: Option<Size>,
        block_size: Option<Size>,
        requests: Option<usize>,
        in_flight: Option<Size>,
        max_rate: Option<Size>,
        retry: Option<Retry>,
        hedge: Option<HedgeOption>,
        verify: bool,
        on_error: Option<OnErrorOption>,
        quarantine: Option<&Bound<'_, PyAny>>,
        patience: Option<f64>,
        storage_options: Option<HashMap<String, Bound<'_, PyAny>>>,
        ca_bundle: Option<&Bound<'_, PyAny>>,
        client_certificate: Option<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
        trace: usize,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let reach = Reach { storage_options, ca_bundle, client_certificate, retry };
        let builder = reach.builder(py, urls)?;
        let (rank, world_size) = ranks(py, rank, world_size)?;
        let device = options::device(py, device)?;
        let ordinal = device.ordinal();
        let builder = builder
            .batch_size(batch_size)
            .drop_last(drop_last)
            .shuffle(ShuffleOption::meant(shuffle, seed))
            .shrink_window(shrink_window)
            .rank(rank, world_size)
            .device(device)
            .batches_ahead(batches_ahead)
            .verify(verify)
            .trace(trace);
        let builder = fields_of(builder, fields)?
            .maybe(tokens.map(Tokens::meant), LoaderBuilder::tokens)
            .maybe(index.map(options::location).transpose()?, LoaderBuilder::index)
            .maybe(lanes, LoaderBuilder::lanes)
            .maybe(epochs, LoaderBuilder::epochs)
            .maybe(state.map(state_from).transpose()?, LoaderBuilder::resume)
            .maybe(options::size(py, device_memory)?, LoaderBuilder::device_memory)
            .maybe(options::size(py, host_memory)?, LoaderBuilder::host_memory)
            .maybe(options::size(py, page_size)?, LoaderBuilder::page_size)
            .maybe(options::size(py, block_size)?, LoaderBuilder::block_size)
            .maybe(requests, LoaderBuilder::requests)
            .maybe(options::size(py, in_flight)?, LoaderBuilder::in_flight)
            .maybe(options::size(py, max_rate)?, LoaderBuilder::max_rate)
            .maybe(hedge.map(|hedge| hedge.meant(py)).transpose()?, LoaderBuilder::hedge)
            .maybe(on_error.map(|on_error| on_error.meant(py)).transpose()?, LoaderBuilder::on_error)
            .maybe(quarantine.map(quarantine_from).transpose()?, LoaderBuilder::quarantine)
            .maybe(options::optional_seconds(py, "patience", patience)?, LoaderBuilder::patience);
        let progress = Progress::new(progress);
        let builder = builder.on_index_progress(progress.listener());
        let loader = on_a_thread(py, move || builder.build(), |py| progress.tell(py))?;
        let loader = Ours::new(Mutex::new(Some(Arc::new(loader))));
        Ok(Loader { handle: Arc::new(Handle { loader, ordinal }) })
    }

    /// Batches of an epoch: the same number on every rank.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.handle.get(py)?.batches_per_epoch() as usize)
    }

    /// The batches of the epoch that the loader stands in that are still to come.
    fn __iter__(&self, py: Python<'_>) -> PyResult<Epoch> {
        let loader = self.handle.get(py)?;
        let epoch = detached(py, || {
            let epoch = loader.current_epoch();
            // Behind an epoch's last batch this steps into the next one.
            loader.seek(epoch);
            Ok(epoch)
        })?;
        Ok(Epoch { handle: Arc::clone(&self.handle), epoch, ended: AtomicBool::new(false) })
    }

    /// The batches of epoch `number` that are still to come: all of them, unless the loader stands in that epoch already.
    ///
    /// Epochs taken one after the other make one stream; any other epoch begins anew.
    fn epoch(&self, py: Python<'_>, number: u64) -> PyResult<Epoch> {
        self.set_epoch(py, number, false)?;
        Ok(Epoch { handle: Arc::clone(&self.handle), epoch: number, ended: AtomicBool::new(false) })
    }

    /// Goes to epoch `number`. Where the loader stands in it already, as after load_state_dict() or when epochs are taken in turn,
    /// nothing changes, unless `from_start` asks for its first batch.
    ///
    /// Not needed for epochs in turn: they advance by themselves.
    #[pyo3(signature = (number, *, from_start = false))]
    fn set_epoch(&self, py: Python<'_>, number: u64, from_start: bool) -> PyResult<()> {
        let loader = self.handle.get(py)?;
        detached(py, || {
            loader.seek(number);
            if from_start {
                loader.resume(&State { epoch: number, position: 0, ..loader.state() })?;
            }
            Ok(())
        })
    }

    /// Where the consumer stands: a small dict of numbers, the same on every rank, which JSON can hold. Counts the batches that
    /// were taken, not those read ahead; costs no more than a lock.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let loader = self.handle.get(py)?;
        let state = detached(py, || Ok(loader.state()))?;
        plain(py, &state)
    }

    /// Goes on where `state` was taken, whatever the world size was: the next loop gives the rest of that epoch.
    ///
    /// Raises ConfigError for a state of another dataset, seed or window, and TopologyError for other lanes or another global
    /// batch, naming both values. Give the state to the constructor as `state` to take over its lanes.
    fn load_state_dict(&self, py: Python<'_>, state: &Bound<'_, PyAny>) -> PyResult<()> {
        let (loader, state) = (self.handle.get(py)?, state_from(state)?);
        detached(py, || loader.resume(&state))
    }

    /// Where time and bytes went so far, and what the limit is: a farfeed.Report, a dict of plain numbers (seconds, bytes) whose `str` is one
    /// line.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.handle.get(py)?.stats();
        report(py, &stats, &stats.to_string())
    }

    /// What will be in flight, and why: a farfeed.Report, a dict whose `str` shows the arithmetic.
    fn plan<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let loader = self.handle.get(py)?;
        report(py, loader.plan(), &loader.plan().to_string())
    }

    /// The effective settings, each with the reason for its value.
    fn explain(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.handle.get(py)?.explain().to_string())
    }

    /// Samples that were found bad and left out so far, the first 1,000 of them: a list of dicts with `shard`, `key`, `number`, `field`,
    /// `start`, `bytes` and `reason`. It can be given to a loader as `quarantine`.
    fn quarantined<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        plain(py, &self.handle.get(py)?.quarantine().entries())
    }

    /// The newest spans of the run, if `trace` asked for some: a list of dicts with `lane`, `start_s`, `end_s`, `id` and `bytes`.
    fn trace<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        plain(py, &self.handle.get(py)?.telemetry().trace().spans())
    }

    /// The epoch that the next batch belongs to.
    #[getter]
    fn current_epoch(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.handle.get(py)?.current_epoch())
    }

    /// This process's rank.
    #[getter]
    fn rank(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.handle.get(py)?.plan().rank)
    }

    /// How many ranks there are.
    #[getter]
    fn world_size(&self, py: Python<'_>) -> PyResult<u32> {
        Ok(self.handle.get(py)?.plan().world_size)
    }

    /// Samples per batch and rank.
    #[getter]
    fn batch_size(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.handle.get(py)?.plan().batch_size)
    }

    /// Samples of the dataset.
    #[getter]
    fn samples(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.handle.get(py)?.plan().samples)
    }

    /// Where batches go: "cpu" or "cuda:0".
    #[getter]
    fn device(&self) -> String {
        self.handle.ordinal.map_or_else(|| "cpu".to_owned(), |ordinal| format!("cuda:{ordinal}"))
    }

    /// Ends the loader's threads and gives its memory back, but for slots that are held. Iterators of it end with an error.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.close(py)
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __reduce__(&self) -> PyResult<()> {
        let what =
            "a loader lives in the process that made it: make it there, or send its options and its state_dict()";
        Err(PyTypeError::new_err(what))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        match self.handle.get(py) {
            Ok(loader) => {
                let plan = loader.plan();
                let (batches, size) = (plan.batches_per_epoch, plan.batch_size);
                format!("<farfeed.Loader of {}: {batches} batches of {size} on {}>", plan.dataset, self.device())
            }
            Err(_) => "<farfeed.Loader, closed>".to_owned(),
        }
    }
}

/// The batches of one epoch, in order.
#[pyclass(module = "farfeed", frozen)]
pub(crate) struct Epoch {
    handle: Arc<Handle>,
    epoch: u64,
    ended: AtomicBool,
}

#[pymethods]
impl Epoch {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        if self.ended.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let next = self.wait(py);
        if !matches!(next, Ok(Some(_))) {
            self.ended.store(true, Ordering::Relaxed);
        }
        next
    }
}

impl Epoch {
    fn wait(&self, py: Python<'_>) -> PyResult<Option<Batch>> {
        let asked = Instant::now();
        loop {
            // Asked for anew in each turn, so that a loader which another thread closes is let go of.
            let loader = self.handle.get(py)?;
            match detached(py, || loader.next_within(self.epoch, asked, SLICE))? {
                Next::Batch(batch) => return Ok(Some(Batch::new(batch, self.handle.ordinal))),
                Next::End => return Ok(None),
                Next::Pending => py.check_signals()?,
            }
        }
    }
}

fn fields_of(mut builder: LoaderBuilder, fields: Option<&Bound<'_, PyDict>>) -> PyResult<LoaderBuilder> {
    for (name, field) in fields.iter().flat_map(|fields| fields.iter()) {
        let (name, field): (String, Field) = (name.extract()?, field.extract()?);
        builder = builder.field(name, field.field);
    }
    Ok(builder)
}

/// Rank and world size: as given, or as the process's surroundings say.
fn ranks(py: Python<'_>, rank: Option<u32>, world_size: Option<u32>) -> PyResult<(u32, u32)> {
    match (rank, world_size) {
        (Some(rank), Some(world_size)) => Ok((rank, world_size)),
        (None, None) => py.import("farfeed.surroundings")?.getattr("ranks")?.call0()?.extract(),
        _ => Err(config(py, "rank or world_size alone", "give both, or neither to have them found out")),
    }
}

/// A state as `state_dict` gave it.
fn state_from(state: &Bound<'_, PyAny>) -> PyResult<State> {
    let py = state.py();
    let wrong = |what: &str| {
        let error = Error::new(Kind::Config, format!("not a state: {what}"));
        raised(py, &error.advice("give back what state_dict() returned"))
    };
    let state = state.cast::<PyDict>().map_err(|_| wrong("not a dict"))?;
    let number = |name: &str| {
        let value = state.get_item(name)?.ok_or_else(|| wrong(&format!("it has no {name}")))?;
        value.extract::<u64>().map_err(|_| wrong(&format!("{name} is no number of its kind")))
    };
    let short = |name: &str| {
        number(name).and_then(|value| value.try_into().map_err(|_| wrong(&format!("{name} is too large"))))
    };
    Ok(State {
        version: short("version")?,
        fingerprint: number("fingerprint")?,
        seed: number("seed")?,
        window: number("window")?,
        lanes: short("lanes")?,
        epoch: number("epoch")?,
        position: number("position")?,
    })
}

/// A list as `quarantined` gave it, or the path of a file of JSON lines.
fn quarantine_from(list: &Bound<'_, PyAny>) -> PyResult<Quarantine> {
    let py = list.py();
    let Ok(entries) = list.cast::<PyList>() else {
        let path = options::location(list)?;
        return detached(py, || Quarantine::read(path));
    };
    let dumps = py.import("json")?.getattr("dumps")?;
    let lines: PyResult<Vec<String>> = entries.iter().map(|entry| dumps.call1((entry,))?.extract()).collect();
    or_raise(py, lines?.join("\n").parse())
}
