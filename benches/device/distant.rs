//! The epoch's server: a process of its own, so that processor time and stalls are the loader's.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use farfeed::emulate::{Faults, Link, Objects, Server, Site};
use farfeed::{Error, Kind, Result};

use super::apart;
use super::epoch::{Scene, words};

/// How long it may take to make its bytes and to listen.
const START_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const END_MAX: Duration = Duration::from_secs(2);

/// In front of its URL.
const SERVING: &str = "serving ";

/// Serves the scene until standard input closes, that is until the one who started it has ended.
pub(crate) fn serve(scene: &Scene) -> Result<()> {
    let site = Site::objects(Objects::from_iter([("train.bin", words(scene.bytes()))]));
    let server = Server::start(site, Link::rtt(scene.rtt).rate(scene.rate_bytes_s), Faults::none())?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{SERVING}{}", server.url())
        .and_then(|()| stdout.flush())
        .map_err(|e| Error::new(Kind::Io, "writing to standard output").source(e))?;
    drop(stdout);
    let mut ignored = [0; 256];
    while matches!(std::io::stdin().read(&mut ignored), Ok(read) if read > 0) {}
    Ok(())
}

/// A process that does so, ended when this is dropped.
pub(crate) struct Distant {
    child: Child,
    pub(crate) url: String,
}

impl Distant {
    /// Of `command`, which calls [`serve`] with the scene that is meant.
    ///
    /// # Errors
    /// `Io` when it does not start; `Stalled` when it says nothing.
    pub(crate) fn start(mut command: Command) -> Result<Distant> {
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::new(Kind::Io, "starting this program as the server").source(e))?;
        let mut distant = Distant { child, url: String::new() };
        let silent = || Error::new(Kind::Stalled, "the epoch's server did not start");
        let stdout = distant.child.stdout.take().ok_or_else(silent)?;
        let (say, said) = sync_channel(1);
        // A pipe has no deadline, a channel does. The thread ends with the child.
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(std::result::Result::ok);
            let url = lines.find_map(|line| Some(line.split_once(SERVING)?.1.to_owned()));
            let _ = say.send(url);
            lines.for_each(drop);
        });
        distant.url = said.recv_timeout(START_MAX).ok().flatten().ok_or_else(silent)?;
        Ok(distant)
    }
}

impl Drop for Distant {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = apart::wait(&mut self.child, END_MAX);
    }
}
