//! The folder that the demo works in, and that nothing is left of.

use std::path::{Path, PathBuf};
use std::time::Duration;

use farfeed::{Error, Kind, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

/// How often a folder is tried that the main thread still writes to.
const REMOVALS_MAX: usize = 20;

/// A temporary folder, removed when dropped and on Ctrl-C.
pub(super) struct Scratch(TempDir);

impl Scratch {
    /// # Errors
    /// `Io` when there is no place for it.
    pub(super) fn new() -> Result<Scratch> {
        let failed = |e| {
            let error = Error::new(Kind::Io, format!("making a folder in {}", std::env::temp_dir().display()));
            error.advice("set TMPDIR to a place that can be written to").source(e)
        };
        let folder = tempfile::Builder::new().prefix("farfeed-demo-").tempdir().map_err(failed)?;
        remove_when_interrupted(folder.path().to_owned())?;
        Ok(Scratch(folder))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves the folder where it is.
    pub(super) fn keep(self) -> PathBuf {
        self.0.keep()
    }
}

/// Ends the process on Ctrl-C, but not before the folder is gone. The server sees its pipe close and ends by itself.
fn remove_when_interrupted(folder: PathBuf) -> Result<()> {
    let failed = |e| Error::new(Kind::Io, "listening for Ctrl-C").source(e);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else { return };
        for _ in 0..REMOVALS_MAX {
            if std::fs::remove_dir_all(&folder).is_ok() || !folder.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::process::exit(128 + signal);
    };
    let thread = std::thread::Builder::new().name("farfeed-signals".to_owned()).spawn(wait);
    thread.map(drop).map_err(failed)
}
