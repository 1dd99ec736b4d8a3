//! Options as Python writes them, and what they stand for in the library.

use std::time::Duration;

use farfeed::dataset::Dtype;
use farfeed::device::Device;
use farfeed::fetch::{Hedge, RetryPolicy};
use farfeed::{ByteSize, OnError};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::errors::{config, or_raise};
use crate::finishing::{Normalize, Steps};
use crate::waiting::detached;

/// How a field's bytes become a column. Made by Bytes(), Int(), Float(), Json() and Array().
#[pyclass(module = "farfeed", frozen, eq, from_py_object)]
#[derive(Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) field: farfeed::Field,
    /// How it was made, for `repr` and pickling.
    written: Written,
}

#[derive(Clone, PartialEq)]
enum Written {
    Plain(&'static str),
    Array(Dtype, Vec<usize>, Steps),
}

#[pymethods]
impl Field {
    fn __repr__(&self) -> String {
        match &self.written {
            Written::Plain(name) => format!("{name}()"),
            Written::Array(dtype, shape, steps) => {
                format!("Array('{}', {}{})", dtype.name(), tuple(shape), steps.shown())
            }
        }
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let package = py.import("farfeed")?;
        match &self.written {
            Written::Plain(name) => (package.getattr(*name)?, ()).into_pyobject(py).map(Bound::into_any),
            Written::Array(dtype, shape, steps) => {
                let (widen, channels_first, normalize) = steps.keywords();
                let arguments = (dtype.name(), shape.clone(), widen, channels_first, normalize);
                (package.getattr("Array")?, arguments).into_pyobject(py).map(Bound::into_any)
            }
        }
    }
}

/// The bytes as they are: a ragged column of uint8.
#[pyfunction]
#[pyo3(name = "Bytes")]
pub(crate) fn bytes() -> Field {
    Field { field: farfeed::Field::bytes(), written: Written::Plain("Bytes") }
}

/// A decimal number in ASCII, as WebDataset's .cls holds it: a dense int64 column of shape [B].
#[pyfunction]
#[pyo3(name = "Int")]
pub(crate) fn int() -> Field {
    Field { field: farfeed::Field::int(), written: Written::Plain("Int") }
}

/// A decimal number in ASCII: a dense float64 column of shape [B].
#[pyfunction]
#[pyo3(name = "Float")]
pub(crate) fn float() -> Field {
    Field { field: farfeed::Field::float(), written: Written::Plain("Float") }
}

/// A JSON document: a ragged column of uint8, checked to be well-formed; Batch.json() and Ragged.json() parse it.
#[pyfunction]
#[pyo3(name = "Json")]
pub(crate) fn json() -> Field {
    Field { field: farfeed::Field::json(), written: Written::Plain("Json") }
}

/// Numbers of a fixed type and shape: a dense column of shape [B, *shape].
///
/// The field's bytes are either exactly the elements, little-endian and in C order, or a .npy file of this type and shape. `dtype` is a
/// name such as "float32", or numpy's or torch's type of that name.
///
/// What follows is done on the device, behind the copy; what travels stays small, and the column has the type and shape of what comes out.
/// `widen` makes integers wider: uint8 and uint16 to int32 or int64, uint32 and int32 to int64. `channels_first` makes [..., H, W, C] into
/// [..., C, H, W]. `normalize` makes uint8 into reals; both together are one pass.
#[pyfunction]
#[pyo3(name = "Array", signature = (dtype, shape, widen = None, channels_first = false, normalize = None))]
pub(crate) fn array(
    py: Python<'_>,
    dtype: &Bound<'_, PyAny>,
    shape: Vec<usize>,
    widen: Option<&Bound<'_, PyAny>>,
    channels_first: bool,
    normalize: Option<Normalize>,
) -> PyResult<Field> {
    let dtype = dtype_of(py, dtype)?;
    let widen = widen.map(|to| dtype_of(py, to)).transpose()?;
    let steps = Steps { widen, channels_first, normalize };
    let field = steps.meant(farfeed::Field::array(dtype, &shape));
    Ok(Field { field, written: Written::Array(dtype, shape, steps) })
}

/// How token files are cut into samples: `tokens` of type `dtype` each.
///
/// A batch is one dense column "tokens" of shape [B, tokens]; with `with_next` it is [B, tokens + 1], each sample bringing the first token
/// of the next one: inputs and targets in one. With `widen` they travel as they are stored and become that type on the device: embeddings
/// want int64.
#[pyclass(module = "farfeed", frozen, eq, from_py_object)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Tokens {
    dtype: Dtype,
    /// Tokens of a sample.
    #[pyo3(get)]
    tokens: usize,
    /// Whether each sample also brings the first token of the next one.
    #[pyo3(get)]
    with_next: bool,
    widen: Option<Dtype>,
}

#[pymethods]
impl Tokens {
    #[new]
    #[pyo3(signature = (dtype, tokens, with_next = false, widen = None))]
    fn new(
        py: Python<'_>,
        dtype: &Bound<'_, PyAny>,
        tokens: usize,
        with_next: bool,
        widen: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let widen = widen.map(|to| dtype_of(py, to)).transpose()?;
        Ok(Tokens { dtype: dtype_of(py, dtype)?, tokens, with_next, widen })
    }

    /// Name of the type that they become on the device, if they are widened.
    #[getter]
    fn widen(&self) -> Option<&'static str> {
        self.widen.map(Dtype::name)
    }

    /// Name of the type of a token.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    fn __repr__(&self) -> String {
        let next = if self.with_next { ", with_next=True" } else { "" };
        let widen = self.widen.map(|to| format!(", widen='{}'", to.name())).unwrap_or_default();
        format!("Tokens('{}', {}{next}{widen})", self.dtype.name(), self.tokens)
    }

    fn __getnewargs__(&self) -> (&'static str, usize, bool, Option<&'static str>) {
        (self.dtype.name(), self.tokens, self.with_next, self.widen())
    }
}

impl Tokens {
    pub(crate) fn meant(self) -> farfeed::Tokens {
        let tokens = farfeed::Tokens::new(self.dtype, self.tokens);
        let tokens = self.widen.map_or(tokens, |to| tokens.widen(to));
        if self.with_next { tokens.with_next() } else { tokens }
    }
}

/// Order of the samples: blocks are permuted, then samples within a window of `window` samples over all ranks.
#[pyclass(module = "farfeed", frozen, eq, get_all, from_py_object)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Shuffle {
    /// The shuffle's reach in samples, over all ranks.
    window: u64,
    /// Another one gives another order.
    seed: u64,
}

#[pymethods]
impl Shuffle {
    #[new]
    #[pyo3(signature = (window = 16_384, seed = 0))]
    fn new(window: u64, seed: u64) -> Self {
        Shuffle { window, seed }
    }

    fn __repr__(&self) -> String {
        format!("Shuffle(window={}, seed={})", self.window, self.seed)
    }

    fn __getnewargs__(&self) -> (u64, u64) {
        (self.window, self.seed)
    }
}

/// What is written for `shuffle`.
#[derive(FromPyObject)]
pub(crate) enum ShuffleOption {
    #[pyo3(annotation = "bool")]
    Whether(bool),
    #[pyo3(annotation = "Shuffle")]
    Shuffle(Shuffle),
}

impl ShuffleOption {
    /// `seed`, where it is given, counts before that of the shuffle.
    pub(crate) fn meant(option: Option<Self>, seed: Option<u64>) -> farfeed::order::Shuffle {
        let shuffle = match option {
            None | Some(ShuffleOption::Whether(false)) => return farfeed::order::Shuffle::none(),
            Some(ShuffleOption::Whether(true)) => Shuffle::new(16_384, 0),
            Some(ShuffleOption::Shuffle(shuffle)) => shuffle,
        };
        farfeed::order::Shuffle::window(shuffle.window).seed(seed.unwrap_or(shuffle.seed))
    }
}

/// How long to go on asking a store that fails; times in seconds.
///
/// Gives up when nothing has arrived for `patience`. A request that brings no byte for `idle`, or fewer than `rate_min` bytes per second
/// over that time, is dropped and asked again after a pause of `pause_min`, doubled each time up to `pause_max`.
#[pyclass(module = "farfeed", frozen, eq, get_all, from_py_object)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Retry {
    /// Gives up when nothing has arrived for so many seconds.
    patience: f64,
    /// A request that brings nothing for so many seconds is asked again.
    idle: f64,
    /// A request that brings fewer bytes per second is asked again; 0 is no limit.
    rate_min: u64,
    /// Seconds before the first retry, at the most.
    pause_min: f64,
    /// Seconds before any retry, at the most.
    pause_max: f64,
}

#[pymethods]
impl Retry {
    #[new]
    #[pyo3(signature = (patience = 120.0, idle = 10.0, rate_min = 16_384, pause_min = 0.05, pause_max = 5.0))]
    fn new(patience: f64, idle: f64, rate_min: u64, pause_min: f64, pause_max: f64) -> Self {
        Retry { patience, idle, rate_min, pause_min, pause_max }
    }

    fn __repr__(&self) -> String {
        let Retry { patience, idle, rate_min, pause_min, pause_max } = self;
        format!(
            "Retry(patience={patience}, idle={idle}, rate_min={rate_min}, pause_min={pause_min}, pause_max={pause_max})"
        )
    }

    fn __getnewargs__(&self) -> (f64, f64, u64, f64, f64) {
        (self.patience, self.idle, self.rate_min, self.pause_min, self.pause_max)
    }
}

impl Retry {
    pub(crate) fn meant(self, py: Python<'_>) -> PyResult<RetryPolicy> {
        Ok(RetryPolicy {
            patience: seconds(py, "retry.patience", self.patience)?,
            idle: seconds(py, "retry.idle", self.idle)?,
            rate_min: self.rate_min,
            pause_min: seconds(py, "retry.pause_min", self.pause_min)?,
            pause_max: seconds(py, "retry.pause_max", self.pause_max)?,
            ..RetryPolicy::default()
        })
    }
}

/// Leaves bad samples out of their batches: at most `limit` in an epoch and rank, one more is an error.
#[pyclass(module = "farfeed", frozen, eq, get_all, from_py_object)]
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Skip {
    /// The most samples that may be left out in an epoch by a rank.
    limit: u64,
}

#[pymethods]
impl Skip {
    #[new]
    #[pyo3(signature = (limit = 1000))]
    fn new(limit: u64) -> Self {
        Skip { limit }
    }

    fn __repr__(&self) -> String {
        format!("Skip(limit={})", self.limit)
    }

    fn __getnewargs__(&self) -> (u64,) {
        (self.limit,)
    }
}

/// What is written for `on_error`.
#[derive(FromPyObject)]
pub(crate) enum OnErrorOption {
    #[pyo3(annotation = "Skip")]
    Skip(Skip),
    #[pyo3(annotation = "str")]
    Named(String),
}

impl OnErrorOption {
    pub(crate) fn meant(&self, py: Python<'_>) -> PyResult<OnError> {
        match self {
            OnErrorOption::Skip(skip) => Ok(OnError::Skip { limit: skip.limit }),
            OnErrorOption::Named(name) => match name.as_str() {
                "raise" => Ok(OnError::Fail),
                "skip" => Ok(OnError::skip()),
                _ => Err(config(py, format!("on_error={name:?}"), "write \"raise\", \"skip\" or Skip(limit=…)")),
            },
        }
    }
}

/// A number of bytes, or text such as "4GiB".
#[derive(FromPyObject)]
pub(crate) enum Size {
    #[pyo3(annotation = "int")]
    Bytes(u64),
    #[pyo3(annotation = "str")]
    Text(String),
}

impl Size {
    pub(crate) fn meant(&self, py: Python<'_>) -> PyResult<ByteSize> {
        match self {
            Size::Bytes(bytes) => Ok(ByteSize::bytes(*bytes)),
            Size::Text(text) => or_raise(py, text.parse()),
        }
    }
}

/// A size that may have been left out.
pub(crate) fn size(py: Python<'_>, size: Option<Size>) -> PyResult<Option<ByteSize>> {
    size.map(|size| size.meant(py)).transpose()
}

/// Whether, or how much at the most as a share of the bytes.
#[derive(FromPyObject)]
pub(crate) enum HedgeOption {
    #[pyo3(annotation = "bool")]
    Whether(bool),
    #[pyo3(annotation = "float")]
    Share(f64),
}

impl HedgeOption {
    pub(crate) fn meant(&self, py: Python<'_>) -> PyResult<Hedge> {
        match self {
            HedgeOption::Whether(on) => Ok(Hedge::from(*on)),
            HedgeOption::Share(share) if (0.0..=1.0).contains(share) => {
                Ok(Hedge::per_mille((share * 1000.0).round() as u32))
            }
            HedgeOption::Share(share) => {
                Err(config(py, format!("hedge={share}"), "write True, False or a share of the bytes, such as 0.02"))
            }
        }
    }
}

/// A length of time.
pub(crate) fn seconds(py: Python<'_>, name: &str, number: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(number)
        .map_err(|_| config(py, format!("{name}={number} is no time"), "write seconds, 0 or more"))
}

/// A length of time that may have been left out.
pub(crate) fn optional_seconds(py: Python<'_>, name: &str, number: Option<f64>) -> PyResult<Option<Duration>> {
    number.map(|number| seconds(py, name, number)).transpose()
}

/// A device by its name, or a framework's device; "cuda" alone is the one that the framework has chosen, if one is there.
pub(crate) fn device(py: Python<'_>, device: Option<&Bound<'_, PyAny>>) -> PyResult<Device> {
    let Some(device) = device else { return Ok(Device::host()) };
    let name: String = py.import("farfeed.surroundings")?.getattr("device")?.call1((device,))?.extract()?;
    // May load a driver and open a context.
    detached(py, || name.parse())
}

/// Text, `pathlib.Path` and their like, or several of them.
pub(crate) fn locations(urls: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    match location(urls) {
        Ok(url) => Ok(vec![url]),
        Err(_) => urls
            .try_iter()
            .map_err(|_| PyTypeError::new_err("urls: a path or URL, or a list of them"))?
            .map(|url| location(&url?))
            .collect(),
    }
}

/// A path or URL.
pub(crate) fn location(url: &Bound<'_, PyAny>) -> PyResult<String> {
    let path = url.py().import("os")?.call_method1("fspath", (url,))?;
    path.extract::<String>().map_err(|_| PyTypeError::new_err("a path or URL is text, not bytes"))
}

/// The type that `dtype` names: text, or numpy's or torch's type.
pub(crate) fn dtype_of(py: Python<'_>, dtype: &Bound<'_, PyAny>) -> PyResult<Dtype> {
    let name = match dtype.extract::<String>() {
        Ok(name) => name,
        // numpy.dtype has a name, numpy.uint16 is a class, torch.uint16 has only its text.
        Err(_) => match dtype.getattr("name").or_else(|_| dtype.getattr("__name__")) {
            Ok(name) => name.extract()?,
            Err(_) => dtype.str()?.to_string(),
        },
    };
    or_raise(py, name.trim_start_matches("torch.").parse())
}

/// A shape as Python writes it.
pub(crate) fn tuple(shape: &[impl ToString]) -> String {
    let extents: Vec<_> = shape.iter().map(ToString::to_string).collect();
    let comma = if extents.len() == 1 { "," } else { "" };
    format!("({}{comma})", extents.join(", "))
}
