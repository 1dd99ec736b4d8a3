//! The ring's thread: takes reads in order, keeps the ring full, hands outcomes back.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use super::span::{Failure, Piece, Step};
use super::task::{Assembly, ReadTask};
use crate::memory::{Filling, Page};
use crate::sys::ring::{Ring, RingDone, RingRead, RingWaker};

/// Longest sleep of an idle thread; reads end it at once.
const IDLE: Duration = Duration::from_secs(10);

/// The way to the ring's thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct RingQueue {
    /// `None` only while being dropped.
    sender: Option<mpsc::Sender<ReadTask>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waker: RingWaker,
    /// Set by the thread before it looks at the channel for the last time and sleeps.
    asleep: AtomicBool,
}

impl RingQueue {
    /// Starts the thread with a ring of `depth` operations.
    ///
    /// # Errors
    /// The errno with which the kernel refuses a ring.
    pub(super) fn start(depth: usize) -> io::Result<Self> {
        let (sender, inbox) = mpsc::channel(depth);
        // The ring is made by the thread that uses it: the kernel serves a ring with a single issuer faster.
        let (ready, made) = std::sync::mpsc::sync_channel(1);
        std::thread::Builder::new().name("farfeed-ring".into()).spawn(move || {
            let ring = match Ring::new(depth) {
                Ok(ring) => ring,
                Err(error) => return drop(ready.send(Err(error))),
            };
            let shared = Arc::new(Shared { waker: ring.waker(), asleep: AtomicBool::new(false) });
            if ready.send(Ok(Arc::clone(&shared))).is_ok() {
                Driver { ring, shared, inbox, depth, queue: VecDeque::new() }.run();
            }
        })?;
        let shared = made.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        Ok(RingQueue { sender: Some(sender), shared })
    }

    /// Hands a read over, waiting while the queue is full. The read comes back if the thread has ended.
    pub(super) async fn send(&self, task: ReadTask) -> Result<(), ReadTask> {
        let Some(sender) = &self.sender else { return Err(task) };
        sender.send(task).await.map_err(|refused| refused.0)?;
        // Pairs with the fence in `patience`: either this sees the thread asleep, or the thread sees the read.
        fence(Ordering::SeqCst);
        if self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.shared.waker.wake();
        }
        Ok(())
    }
}

impl Drop for RingQueue {
    /// Does not wait: the thread cancels what is in flight and frees its pages when the kernel is done with them.
    fn drop(&mut self) {
        self.sender = None;
        self.shared.waker.wake();
    }
}

struct Driver {
    ring: Ring<Page<Filling>, Waiting>,
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<ReadTask>,
    depth: usize,
    /// Pieces that have not started, oldest read first. At most `depth` and the pieces of one read.
    queue: VecDeque<Waiting>,
}

/// A piece and the read it belongs to. While the piece is in flight its pages are with the ring.
struct Waiting {
    read: Rc<RefCell<Assembly>>,
    piece: Piece,
}

impl Driver {
    fn run(mut self) {
        let mut done = Vec::with_capacity(self.depth);
        // Ends when the store is gone, or the ring broken; dropping the ring sees to what is in flight, and the
        // readers of what is not learn it from their dropped replies.
        while self.accept() {
            self.start();
            if self.ring.wait(self.patience(), &mut done).is_err() {
                return;
            }
            self.shared.asleep.store(false, Ordering::SeqCst);
            for ended in done.drain(..) {
                self.land(ended);
            }
        }
    }

    /// Takes reads from the channel while few pieces wait; false when the store is gone.
    fn accept(&mut self) -> bool {
        while self.queue.len() < self.depth {
            match self.inbox.try_recv() {
                Ok(task) => {
                    let (assembly, pieces) = Assembly::begin(task);
                    let read = Rc::new(RefCell::new(assembly));
                    self.queue.extend(pieces.into_iter().map(|piece| Waiting { read: Rc::clone(&read), piece }));
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn start(&mut self) {
        while self.ring.has_room() {
            let Some(Waiting { read, mut piece }) = self.queue.pop_front() else { return };
            if read.borrow().is_over() {
                read.borrow_mut().settle(piece, None);
                continue;
            }
            let (file, offset, span) = piece.operation();
            let file = Arc::clone(file);
            let buffers = std::mem::take(&mut piece.pages);
            let ring_read = RingRead { file, offset, buffers, span, tag: Waiting { read, piece } };
            if let Err(RingRead { buffers, tag: Waiting { read, mut piece }, .. }) = self.ring.submit(ring_read) {
                piece.pages = buffers;
                let refused = io::Error::other("the kernel takes no more operations");
                read.borrow_mut().settle(piece, Some(Failure::System(refused)));
            }
        }
    }

    /// How long the thread may sleep: not at all if a read arrived after `accept` had looked.
    fn patience(&self) -> Duration {
        if self.queue.len() >= self.depth {
            return IDLE;
        }
        self.shared.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.inbox.is_empty() && !self.inbox.is_closed() { IDLE } else { Duration::ZERO }
    }

    fn land(&mut self, ended: RingDone<Page<Filling>, Waiting>) {
        let Waiting { read, mut piece } = ended.tag;
        piece.pages = ended.buffers;
        let failure = match piece.advance(ended.result) {
            // In front of everything that has not started: the oldest read is needed first.
            Step::Again => return self.queue.push_front(Waiting { read, piece }),
            Step::Complete => None,
            Step::Failed(failure) => Some(failure),
        };
        read.borrow_mut().settle(piece, failure);
    }
}
