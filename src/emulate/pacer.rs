//! Runs the network against the clock: a timer wakes it when something is due, and it wakes connections.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::line::Counts;
use super::link::Link;
use super::network::{FlowId, Network, Transfer, Way};
use crate::sys::timer::Timer;

/// A thread that was held up for longer than this does not catch up: the network stood still with it. Below, bytes
/// that are late come at once, so that the rate is right.
const CATCH_UP_MAX: Duration = Duration::from_millis(50);

/// The network, its clock, and who waits for what.
#[derive(Debug)]
pub(super) struct Pacer {
    state: Mutex<State>,
    timer: Timer,
}

#[derive(Debug)]
struct State {
    network: Network,
    /// The network's start: moved on by what was lost in being held up.
    zero: Instant,
    wakers: HashMap<(FlowId, Way), Waker>,
    /// When the timer goes off.
    armed: Option<Duration>,
}

impl Pacer {
    /// # Errors
    /// When the kernel has no timer to give. To be called within a runtime.
    pub(super) fn new(link: Link) -> io::Result<Self> {
        let state = State { network: Network::new(link), zero: Instant::now(), wakers: HashMap::new(), armed: None };
        Ok(Pacer { state: Mutex::new(state), timer: Timer::new()? })
    }

    /// Runs until dropped.
    ///
    /// # Errors
    /// When the timer fails, which no caller can mend.
    pub(super) async fn run(&self) -> io::Result<()> {
        loop {
            self.turn()?;
            self.timer.expired().await?;
        }
    }

    pub(super) fn change(&self, link: Link) {
        self.with(|network, now| network.change(link, now));
    }

    pub(super) fn silence(&self, time: Duration) {
        self.with(|network, now| network.silence(now, time));
    }

    pub(super) fn counts(&self) -> Counts {
        self.state().network.counts()
    }

    pub(super) fn open(&self, delay: Duration) -> FlowId {
        self.with(|network, now| network.open(delay, now))
    }

    pub(super) fn close(&self, flow: FlowId) {
        let mut state = self.state();
        state.network.close(flow);
        state.wakers.remove(&(flow, Way::ToClient));
        state.wakers.remove(&(flow, Way::ToServer));
    }

    /// Sends a request; gives the time at which it was sent.
    pub(super) fn request(&self, flow: FlowId, transfer: Transfer) -> Instant {
        let asked = Instant::now();
        self.with(|network, now| network.request(flow, transfer, now));
        asked
    }

    /// The server has bytes for a client.
    pub(super) fn offer(&self, flow: FlowId, bytes: usize) {
        self.with(|network, now| network.offer(flow, bytes, now));
    }

    /// A client has bytes for the server; none are its end.
    pub(super) fn upload(&self, flow: FlowId, bytes: usize) {
        self.with(|network, now| network.upload(flow, bytes, now));
    }

    /// How many bytes are worth keeping at the server, one `piece` included.
    pub(super) fn appetite(&self, flow: FlowId, piece: usize) -> usize {
        self.state().network.appetite(flow, piece)
    }

    /// Bytes that arrived, and when (the first of them) did.
    pub(super) fn poll_arrived(&self, flow: FlowId, way: Way, cx: &mut Context<'_>) -> Poll<(usize, Instant)> {
        let mut state = self.state();
        match state.network.take(flow, way) {
            Some((bytes, at)) => Poll::Ready((bytes, state.zero + at)),
            None => {
                state.wakers.insert((flow, way), cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The client's socket took bytes.
    pub(super) fn taken(&self, flow: FlowId, bytes: usize) {
        self.with(|network, now| network.taken(flow, bytes, now));
    }

    /// Does something to the network, and sees that its consequences are not slept over.
    fn with<T>(&self, change: impl FnOnce(&mut Network, Duration) -> T) -> T {
        let mut state = self.state();
        let now = state.now();
        let done = change(&mut state.network, now);
        state.wake();
        // An error here would come back in `run`, at the next turn.
        let _ = self.arm(&mut state, now);
        done
    }

    /// What the timer asks for.
    fn turn(&self) -> io::Result<()> {
        let mut state = self.state();
        let now = state.now();
        state.armed = None;
        state.network.advance(now);
        state.wake();
        self.arm(&mut state, now)
    }

    /// Sets the timer, unless it goes off early enough as it is.
    fn arm(&self, state: &mut State, now: Duration) -> io::Result<()> {
        let Some(at) = state.network.wake_at() else { return Ok(()) };
        if state.armed.is_some_and(|armed| armed <= at) {
            return Ok(());
        }
        self.timer.set(at.saturating_sub(now))?;
        state.armed = Some(at);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Time since the network's start. It stands still while the timer is overdue by too much, and never goes back:
    /// nothing is planned for a time that has passed.
    fn now(&mut self) -> Duration {
        let overdue = self.armed.and_then(|due| self.zero.elapsed().checked_sub(due + CATCH_UP_MAX));
        self.zero += overdue.unwrap_or_default();
        self.zero.elapsed()
    }

    fn wake(&mut self) {
        for awaited in self.network.ready() {
            if let Some(waker) = self.wakers.remove(&awaited) {
                waker.wake();
            }
        }
    }
}
