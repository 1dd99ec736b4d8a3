//! The server of the demo: a process of its own, so that the loader's CPU time is the loader's alone.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use farfeed::{Error, Kind, Result};

use crate::program::Program;
use crate::rate::Rate;
use crate::serve::Announcement;

/// How long the server may take to start.
const START_MAX: Duration = Duration::from_secs(20);
/// How long it may take to end by itself.
const END_MAX: Duration = Duration::from_secs(1);

/// `farfeed serve` in a child process, ended when dropped, and by itself should this process die.
pub(super) struct Distant {
    child: Child,
    url: String,
}

impl Distant {
    /// Serves `directory` across `rtt_ms` milliseconds at `rate`.
    ///
    /// # Errors
    /// `Io` when the process does not start or says nothing.
    pub(super) fn start(program: &Program, directory: &Path, rtt_ms: f64, rate: Rate) -> Result<Distant> {
        let child = program
            .again()
            .arg("serve")
            .arg(directory)
            .args(["--rtt", &rtt_ms.to_string(), "--rate", &rate.bytes_s().to_string()])
            .args(["--json", "--until-stdin-closes"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::new(Kind::Io, "starting this program as the server").source(e))?;
        let mut distant = Distant { child, url: String::new() };
        distant.url = distant.announced()?;
        Ok(distant)
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Waits for the server to say where it is.
    fn announced(&mut self) -> Result<String> {
        let silent = || Error::new(Kind::Stalled, "the demo's server did not start").advice("try `farfeed serve .`");
        let stdout = self.child.stdout.take().ok_or_else(silent)?;
        let (say, said) = sync_channel(1);
        // A pipe has no deadline, a channel does. The thread ends with the child.
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = say.send(BufReader::new(stdout).read_line(&mut line).map(|_| line));
        });
        let line = said.recv_timeout(START_MAX).map_err(|_| silent())?.map_err(|e| silent().source(e))?;
        let announcement: Announcement = serde_json::from_str(&line).map_err(|e| silent().source(e))?;
        Ok(announcement.url)
    }
}

impl Drop for Distant {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
