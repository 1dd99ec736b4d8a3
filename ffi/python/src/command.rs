//! `python -m farfeed`: the command, from the same wheel.

use std::ffi::OsString;
use std::path::PathBuf;

use farfeed_cli::Program;
use pyo3::prelude::*;

use crate::waiting::detached;

/// Does what the farfeed command does with `arguments`, and returns its exit code: 0 done, 1 failed, 2 wrong use.
///
/// It writes to the process's own standard output and standard error, and blocks, detached, until done: Ctrl-C ends it where SIGINT has its
/// default effect. `executable` is the interpreter, with which `demo` starts a server beside itself.
#[pyfunction]
pub(crate) fn main(py: Python<'_>, arguments: Vec<OsString>, executable: PathBuf) -> PyResult<u8> {
    let program = Program::new(executable, ["-m", "farfeed"], "python -m farfeed");
    detached(py, move || Ok(farfeed_cli::run(arguments, &program)))
}
