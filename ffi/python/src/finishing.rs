//! What arrays become on the device, as Python writes it.

use farfeed::dataset::Dtype;
use pyo3::prelude::*;

use crate::options::{dtype_of, tuple};

/// Bytes made into reals: `(value / 255 - mean) / std`, channel by channel, as torchvision's ToTensor and Normalize do it, to the last bit.
///
/// `mean` and `std` are of values from 0 to 1, one for each channel or one for all. `dtype` is what comes out: "float32", "float16" or
/// "bfloat16"; all is computed in float32, and rounded once more where the type is shorter, to nearest even. The array's last extent is its
/// channels; with `channels_first` its shape ends in C, H, W instead.
#[pyclass(module = "farfeed", frozen, eq, from_py_object)]
#[derive(Clone, PartialEq)]
pub(crate) struct Normalize {
    /// Means by channel.
    #[pyo3(get)]
    mean: Vec<f32>,
    /// Standard deviations by channel.
    #[pyo3(get)]
    std: Vec<f32>,
    dtype: Dtype,
    /// Whether the array's channels are first already.
    #[pyo3(get)]
    channels_first: bool,
}

#[pymethods]
impl Normalize {
    #[new]
    #[pyo3(signature = (mean, std, dtype = None, channels_first = false))]
    fn new(
        py: Python<'_>,
        mean: Vec<f32>,
        std: Vec<f32>,
        dtype: Option<&Bound<'_, PyAny>>,
        channels_first: bool,
    ) -> PyResult<Self> {
        Ok(Normalize { mean, std, dtype: real(py, dtype)?, channels_first })
    }

    /// The three channels of ImageNet: means 0.485, 0.456, 0.406, deviations 0.229, 0.224, 0.225.
    #[staticmethod]
    #[pyo3(signature = (dtype = None, channels_first = false))]
    fn imagenet(py: Python<'_>, dtype: Option<&Bound<'_, PyAny>>, channels_first: bool) -> PyResult<Self> {
        let (mean, std) = (vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]);
        Ok(Normalize { mean, std, dtype: real(py, dtype)?, channels_first })
    }

    /// Only scaled, to values from 0 to 1.
    #[staticmethod]
    #[pyo3(signature = (dtype = None))]
    fn scaled(py: Python<'_>, dtype: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        Ok(Normalize { mean: vec![0.0], std: vec![1.0], dtype: real(py, dtype)?, channels_first: false })
    }

    /// Name of the type that comes out.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.dtype.name()
    }

    fn __repr__(&self) -> String {
        // Singles, by the fewest digits that give them back.
        let first = if self.channels_first { ", channels_first=True" } else { "" };
        format!("Normalize({}, {}, '{}'{first})", tuple(&self.mean), tuple(&self.std), self.dtype.name())
    }

    fn __getnewargs__(&self) -> (Vec<f32>, Vec<f32>, &'static str, bool) {
        (self.mean.clone(), self.std.clone(), self.dtype.name(), self.channels_first)
    }
}

impl Normalize {
    pub(crate) fn meant(&self) -> farfeed::loader::Normalize {
        let normalize = farfeed::loader::Normalize::new(&self.mean, &self.std).to(self.dtype);
        if self.channels_first { normalize.of_channels_first() } else { normalize }
    }
}

fn real(py: Python<'_>, dtype: Option<&Bound<'_, PyAny>>) -> PyResult<Dtype> {
    dtype.map_or(Ok(Dtype::F32), |dtype| dtype_of(py, dtype))
}

/// The steps of an array.
#[derive(Clone, PartialEq, Default)]
pub(crate) struct Steps {
    pub(crate) widen: Option<Dtype>,
    pub(crate) channels_first: bool,
    pub(crate) normalize: Option<Normalize>,
}

/// The keywords of Array() that say the same, for pickling.
type Keywords = (Option<&'static str>, bool, Option<Normalize>);

impl Steps {
    pub(crate) fn meant(&self, mut field: farfeed::Field) -> farfeed::Field {
        if let Some(to) = self.widen {
            field = field.widen(to);
        }
        if self.channels_first {
            field = field.channels_first();
        }
        match &self.normalize {
            Some(normalize) => field.normalize(normalize.meant()),
            None => field,
        }
    }

    pub(crate) fn keywords(&self) -> Keywords {
        (self.widen.map(Dtype::name), self.channels_first, self.normalize.clone())
    }

    /// As they are written behind other arguments.
    pub(crate) fn shown(&self) -> String {
        let widen = self.widen.map(|to| format!(", widen='{}'", to.name()));
        let first = self.channels_first.then(|| ", channels_first=True".to_owned());
        let normalize = self.normalize.as_ref().map(|normalize| format!(", normalize={}", normalize.__repr__()));
        [widen, first, normalize].into_iter().flatten().collect()
    }
}
