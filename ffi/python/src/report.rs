//! The library's reports as plain Python values.

use farfeed::{Error, Kind};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde::Serialize;
use serde_json::Value;

use crate::errors::raised;

/// A report as `farfeed.Report`: a dict of plain values, whose `str` is `summary`.
pub(crate) fn report<'py>(py: Python<'py>, value: &impl Serialize, summary: &str) -> PyResult<Bound<'py, PyAny>> {
    let fields = plain(py, value)?;
    fields.cast::<PyDict>()?.set_item("summary", summary)?;
    py.import("farfeed.report")?.getattr("Report")?.call1((fields,))
}

/// Dicts, lists, strings and numbers that say what `value` says.
pub(crate) fn plain<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let value = serde_json::to_value(value)
        .map_err(|error| raised(py, &Error::new(Kind::Io, "writing a report").source(error)))?;
    converted(py, &value)
}

fn converted<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(value) => value.into_bound_py_any(py),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into_bound_py_any(py),
            (None, Some(number)) => number.into_bound_py_any(py),
            (None, None) => number.as_f64().into_bound_py_any(py),
        },
        Value::String(text) => text.into_bound_py_any(py),
        Value::Array(values) => {
            let list = PyList::empty(py);
            values.iter().try_for_each(|value| list.append(converted(py, value)?))?;
            Ok(list.into_any())
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            fields.iter().try_for_each(|(name, value)| dict.set_item(name, converted(py, value)?))?;
            Ok(dict.into_any())
        }
    }
}
