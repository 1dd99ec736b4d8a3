//! What belongs to the process that made it: a fork copies memory, but no threads.

use std::mem;
use std::process;

use farfeed::{Error, Kind, Result};

/// A value with threads or a device behind it. In a child of the process that made it, using it is an error, and dropping it does
/// nothing: there are no threads there to join, and locks may be held by them for ever.
pub(crate) struct Ours<T> {
    /// `None` only inside `Drop`.
    value: Option<T>,
    process: u32,
}

impl<T> Ours<T> {
    pub(crate) fn new(value: T) -> Self {
        Ours { value: Some(value), process: process::id() }
    }

    /// The value, in the process that made it.
    ///
    /// # Errors
    /// `Unsupported` in a child of it.
    pub(crate) fn get(&self) -> Result<&T> {
        if let (true, Some(value)) = (self.is_here(), &self.value) {
            return Ok(value);
        }
        let what = format!("made in process {}, and used in its child {}", self.process, process::id());
        Err(Error::new(Kind::Unsupported, what).advice(
            "a fork copies no threads: make the loader in the process that uses it, or start processes with spawn",
        ))
    }

    fn is_here(&self) -> bool {
        self.process == process::id()
    }
}

impl<T> Drop for Ours<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if !self.is_here() {
            mem::forget(value);
        }
    }
}
