//! Work in a process of its own: one that crashes, hangs, or leaves the driver in ruins takes nothing of the others with it.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// How long a process that was killed may take to be gone: one that waits for the driver may stay for good.
const END_MAX: Duration = Duration::from_secs(5);

/// What became of it.
pub(crate) struct Ended {
    /// `None` for one that was killed because it took too long.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) output: String,
    /// Empty unless the command had it piped.
    pub(crate) errors: String,
    pub(crate) seconds: f64,
}

impl Ended {
    pub(crate) fn well(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it ended, in words.
    pub(crate) fn how(&self) -> String {
        match self.status {
            Some(status) => status.to_string(),
            None => format!("not over after {:.0} s", self.seconds),
        }
    }
}

/// Runs `command` for `limit` at most, and takes what it prints.
///
/// # Errors
/// Those of starting it.
pub(crate) fn run(mut command: Command, limit: Duration) -> io::Result<Ended> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    // Read on threads: a pipe that nobody empties holds its writer up, and one that a grandchild keeps open never ends.
    let (output, errors) = (child.stdout.take().map(drained), child.stderr.take().map(drained));
    let status = wait(&mut child, limit)?;
    let seconds = begun.elapsed().as_secs_f64();
    let text = |drained: Option<Receiver<Vec<u8>>>| {
        let bytes = drained.and_then(|drained| drained.recv_timeout(END_MAX).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(Ended { status, output: text(output), errors: text(errors), seconds })
}

/// Waits, and kills it when that takes too long.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = wait_until(child, Instant::now() + limit)? {
        return Ok(Some(status));
    }
    child.kill()?;
    wait_until(child, Instant::now() + END_MAX).map(|_| None)
}

fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        match child.try_wait()? {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            told => return Ok(told),
        }
    }
}

fn drained(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (say, said) = sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = say.send(bytes);
    });
    said
}
