//! Waiting in Python: detached, so that other threads run, and in slices, so that Ctrl-C is heard.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use farfeed::{Error, Kind, Result};
use pyo3::prelude::*;

use crate::errors::{or_raise, raised};

/// How long is waited between two looks at signals.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// Calls the library, detached from the interpreter: `work` does not take long, or looks after its time itself.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    let result = py.detach(|| catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked())));
    or_raise(py, result)
}

/// Carries out `work`, which may take long and knows nothing of interruptions, on a thread of its own; `look` is called here between
/// slices, and at the end. When a signal handler or `look` raises, what `work` returns later is dropped.
pub(crate) fn on_a_thread<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    look: impl Fn(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    let (done, result) = bounded(1);
    let body = move || {
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()));
        let _ = done.send(result);
    };
    let spawned = thread::Builder::new().name("farfeed-call".into()).spawn(body);
    spawned.map_err(|error| raised(py, &Error::new(Kind::Io, "starting a thread").source(error)))?;
    loop {
        match py.detach(|| result.recv_timeout(SLICE)) {
            Ok(result) => {
                let value = or_raise(py, result)?;
                look(py)?;
                return Ok(value);
            }
            Err(RecvTimeoutError::Disconnected) => return Err(raised(py, &panicked())),
            Err(RecvTimeoutError::Timeout) => {
                py.check_signals()?;
                look(py)?;
            }
        }
    }
}

fn panicked() -> Error {
    Error::new(Kind::Io, "the library panicked").advice("this is a bug: the message on standard error says more")
}
