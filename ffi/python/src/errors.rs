//! The library's errors as Python's: classes that Python code defines, so that they are ordinary, picklable ones.

use farfeed::{Error, Kind};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};

/// The exception for `error`: class by kind; attributes `kind`, `context` and `advice`.
pub(crate) fn raised(py: Python<'_>, error: &Error) -> PyErr {
    make(py, error).unwrap_or_else(|_| PyRuntimeError::new_err(error.to_string()))
}

/// What the library returned, or its error raised.
pub(crate) fn or_raise<T>(py: Python<'_>, result: farfeed::Result<T>) -> PyResult<T> {
    result.map_err(|error| raised(py, &error))
}

/// An error of the options.
pub(crate) fn config(py: Python<'_>, context: impl Into<String>, advice: &'static str) -> PyErr {
    raised(py, &Error::new(Kind::Config, context.into()).advice(advice))
}

fn make(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let named = PyDict::new(py);
    named.set_item("context", error.context())?;
    named.set_item("advice", error.next_step())?;
    let exception = class(py, error.kind())?.call((error.to_string(),), Some(&named))?;
    Ok(PyErr::from_value(exception))
}

fn class(py: Python<'_>, kind: Kind) -> PyResult<Bound<'_, PyAny>> {
    let name = match kind {
        Kind::NotFound => "NotFoundError",
        Kind::Auth => "AuthError",
        Kind::Throttled => "ThrottledError",
        Kind::Stalled => "StalledError",
        Kind::Corrupt => "CorruptError",
        Kind::Config => "ConfigError",
        Kind::Topology => "TopologyError",
        Kind::Device => "DeviceError",
        Kind::Unsupported => "UnsupportedError",
        Kind::Io => "IoError",
        _ => "Error",
    };
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let module = MODULE.get_or_try_init(py, || py.import("farfeed.errors").map(Bound::unbind))?;
    let class = module.bind(py).getattr(name)?;
    Ok(class.cast_into::<PyType>()?.into_any())
}
