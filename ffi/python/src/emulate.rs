//! Storage across an emulated link, for users' own tests.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Site};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::errors::{config, or_raise};
use crate::options::{self, Size, location};
use crate::ours::Ours;
use crate::report::plain;
use crate::waiting::detached;

/// Bytes of a body that are sent before a fault strikes in it.
const BEFORE_FAULT: u64 = 50_000;

/// A server of a directory across an emulated link, in this process: made by farfeed.emulate.serve().
///
/// As a context manager it gives its URL, and ends with the block.
#[pyclass(module = "farfeed", frozen)]
pub(crate) struct Server {
    server: Ours<Mutex<Option<farfeed::emulate::Server>>>,
    url: String,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (
        path, *, rtt_ms = 0.0, rate = None, connection_rate = None, loss = 0.0, jitter_ms = 0.0, server_time_ms = 0.0,
        unavailable = 0.0, cut = 0.0, reset = 0.0, stall = 0.0, stall_s = 3.0, slow = 0.0, corrupt = 0.0, chunked = false, seed = 0,
    ))]
    #[expect(clippy::too_many_arguments, reason = "one for each option, by keyword")]
    fn new(
        py: Python<'_>,
        path: &Bound<'_, PyAny>,
        rtt_ms: f64,
        rate: Option<Size>,
        connection_rate: Option<Size>,
        loss: f64,
        jitter_ms: f64,
        server_time_ms: f64,
        unavailable: f64,
        cut: f64,
        reset: f64,
        stall: f64,
        stall_s: f64,
        slow: f64,
        corrupt: f64,
        chunked: bool,
        seed: u64,
    ) -> PyResult<Self> {
        let rates = (options::size(py, rate)?, options::size(py, connection_rate)?);
        let link = Link {
            rtt: milliseconds(py, "rtt_ms", rtt_ms)?,
            rate_bytes_s: rates.0.map(|rate| rate.as_bytes()),
            connection_rate: rates.1.map(|rate| rate.as_bytes()),
            loss,
            jitter: milliseconds(py, "jitter_ms", jitter_ms)?,
            server_time: milliseconds(py, "server_time_ms", server_time_ms)?,
            seed,
            ..Link::default()
        };
        let pause = options::seconds(py, "stall_s", stall_s)?;
        let faults = faults(
            py,
            seed,
            [
                ("unavailable", unavailable, Effect::unavailable()),
                ("cut", cut, Effect::Cut { after: BEFORE_FAULT, how: Cut::Close }),
                ("reset", reset, Effect::Cut { after: BEFORE_FAULT, how: Cut::Reset }),
                ("stall", stall, Effect::Stall { after: BEFORE_FAULT, pause }),
                ("slow", slow, Effect::Slow { factor: 5.0 }),
                ("corrupt", corrupt, Effect::Corrupt { at: 0 }),
            ],
        )?;
        let site = Site::directory(location(path)?);
        let site = if chunked { site.chunked() } else { site };
        let server = detached(py, || farfeed::emulate::Server::start(site, link, faults))?;
        let url = server.url().to_owned();
        Ok(Server { server: Ours::new(Mutex::new(Some(server))), url })
    }

    /// "http://127.0.0.1:PORT", without a slash at the end.
    #[getter]
    fn url(&self) -> &str {
        &self.url
    }

    /// What it has done so far: a dict with `connections`, `connections_open`, `requests`, `bytes`, `faults`, `losses` and `drops`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self.with(py, |server| Ok(server.stats()))?;
        plain(py, &stats)
    }

    /// The server goes away for so long: connections are closed, in mid-body too, and new ones are refused.
    fn refuse_for(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let time = options::seconds(py, "seconds", seconds)?;
        self.with(py, |server| server.refuse_for(time))
    }

    /// The link goes dead: for so long nothing passes, and nobody is told.
    fn silence_for(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let time = options::seconds(py, "seconds", seconds)?;
        self.with(py, |server| {
            server.silence_for(time);
            Ok(())
        })
    }

    /// Ends the server.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let slot = or_raise(py, self.server.get())?;
        let server = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        detached(py, || {
            drop(server);
            Ok(())
        })
    }

    fn __enter__(&self) -> &str {
        &self.url
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __repr__(&self) -> String {
        format!("<farfeed.emulate server at {}>", self.url)
    }
}

impl Server {
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&farfeed::emulate::Server) -> farfeed::Result<T> + Send,
    ) -> PyResult<T> {
        let slot = or_raise(py, self.server.get())?;
        let answer = detached(py, || {
            let server = slot.lock().unwrap_or_else(PoisonError::into_inner);
            server.as_ref().map(ask).transpose()
        })?;
        answer.ok_or_else(|| config(py, "the server is closed", "start another one"))
    }
}

fn faults<const N: usize>(py: Python<'_>, seed: u64, by_chance: [(&str, f64, Effect); N]) -> PyResult<Faults> {
    by_chance.into_iter().try_fold(Faults::none().seed(seed), |faults, (name, probability, effect)| {
        if !(0.0..=1.0).contains(&probability) {
            return Err(config(py, format!("{name}={probability} is no probability"), "write a number from 0 to 1"));
        }
        Ok(if probability > 0.0 { faults.with(Fault::new(effect).probability(probability)) } else { faults })
    })
}

fn milliseconds(py: Python<'_>, name: &str, number: f64) -> PyResult<Duration> {
    options::seconds(py, name, number / 1e3)
}
