//! Threads for calls that block: opening, looking up, listing; and reading, where there is no ring.

use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::ROOT;
use super::span::{Failure, Piece, Step};
use super::task::{Assembly, ReadTask};
use crate::error::{Error, Kind, Result};
use crate::memory::{Filling, Page};
use crate::sys::process::Birthplace;

/// Calls that may wait for a thread; who asks for more waits to ask.
const QUEUE: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that end when this is dropped and their queue is done.
#[derive(Debug)]
pub(super) struct Workers {
    jobs: mpsc::Sender<Job>,
    /// The process that has the threads.
    born: Birthplace,
}

impl Workers {
    /// Starts `threads`, at least one.
    ///
    /// # Errors
    /// `Io` when the system has no thread left.
    pub(super) fn start(threads: usize) -> Result<Self> {
        let (sender, inbox) = mpsc::channel::<Job>(QUEUE);
        let inbox = Arc::new(Mutex::new(inbox));
        for index in 0..threads.max(1) {
            let inbox = Arc::clone(&inbox);
            let work = move || {
                // One thread at a time waits on the channel, the others on the lock.
                let next = || inbox.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
                while let Some(job) = next() {
                    job();
                }
            };
            std::thread::Builder::new()
                .name(format!("farfeed-file-{index}"))
                .spawn(work)
                .map_err(|error| Error::new(Kind::Io, "starting a thread for files").source(error))?;
        }
        Ok(Workers { jobs: sender, born: Birthplace::here() })
    }

    /// `Ok` where the threads are.
    ///
    /// # Errors
    /// `Unsupported` in a forked child.
    pub(super) fn check_process(&self) -> Result<()> {
        self.born.check("a store of files was opened")
    }

    /// Runs `call` on one of the threads. Dropping the future leaves a call that has begun to its end.
    pub(super) async fn run<T: Send + 'static>(&self, call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.check_process()?;
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            if !reply.is_closed() {
                let _ = reply.send(call());
            }
        });
        self.jobs.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Hands a read over, waiting while the queue is full.
    pub(super) async fn read(&self, task: ReadTask) -> Result<()> {
        self.jobs.send(Box::new(move || read(task))).await.map_err(|_| gone())
    }
}

fn gone() -> Error {
    Error::new(Kind::Io, format!("{ROOT}: a thread of the file store has ended"))
}

/// Reads piece after piece.
fn read(task: ReadTask) {
    let (mut assembly, pieces) = Assembly::begin(task);
    for mut piece in pieces {
        let failure = if assembly.is_over() { None } else { fill(&mut piece) };
        assembly.settle(piece, failure);
    }
}

fn fill(piece: &mut Piece) -> Option<Failure> {
    loop {
        let mut pages = std::mem::take(&mut piece.pages);
        let (file, offset, span) = piece.operation();
        let result = rustix::io::preadv(&**file, &mut slices(&mut pages, span), offset).map_err(Into::into);
        piece.pages = pages;
        match piece.advance(result) {
            Step::Again => {}
            Step::Complete => return None,
            Step::Failed(failure) => return Some(failure),
        }
    }
}

/// The part `span` of the concatenated pages.
fn slices(pages: &mut [Page<Filling>], span: Range<usize>) -> Vec<IoSliceMut<'_>> {
    let mut start = 0;
    let mut slices = Vec::with_capacity(pages.len());
    for page in pages {
        let bytes = page.len();
        let (from, to) = (span.start.max(start), span.end.min(start + bytes));
        if from < to {
            slices.push(IoSliceMut::new(&mut page[from - start..to - start]));
        }
        start += bytes;
    }
    slices
}
