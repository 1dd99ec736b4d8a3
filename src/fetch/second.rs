//! A second request for what is missing of a late one: in parts, each on a connection of its own.
//!
//! Connections that are idle when a request is late are those that nobody needed: their congestion windows are small, and a whole read
//! over one of them takes as many round trips as a fresh one's slow start. Parts share the round trips, and get the oldest read more of a
//! full link than one connection's share. One part may be late in its turn: while others are answered it is dropped, and asked for again.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::memory::Landing;
use crate::store::{Arrival, ReadRequest, Route, Store};

/// A second request under way. Dropping it closes its connections.
pub(super) struct Second {
    store: Arc<dyn Store>,
    request: ReadRequest,
    parts: Vec<Part>,
    /// Of all parts that are through.
    arrival: Arrival,
    opened: u64,
    asked: Instant,
    from: usize,
}

struct Part {
    start: u64,
    len: usize,
    route: Arc<Route>,
    progress: Arc<AtomicU64>,
    again: bool,
    state: State,
}

enum State {
    Running(Pin<Box<dyn Future<Output = (Result<Arrival>, Landing)> + Send>>),
    Through(Landing),
}

impl Second {
    /// Asks for what comes after byte `from` of `request`, one part for each of `landings`, away from where `route` has been.
    pub(super) fn start(
        store: &Arc<dyn Store>,
        request: &ReadRequest,
        route: &Route,
        from: usize,
        landings: Vec<Landing>,
    ) -> Self {
        let mut start = request.start + from as u64;
        let parts = landings.into_iter().map(|landing| {
            let part = Part::ask(store, request, start, route.fork(), landing);
            start += part.len as u64;
            part
        });
        Second {
            parts: parts.collect(),
            store: Arc::clone(store),
            request: request.clone(),
            arrival: Arrival::default(),
            opened: 0,
            asked: Instant::now(),
            from,
        }
    }

    /// Until all parts are through, or one has failed. It may be dropped and called again.
    pub(super) async fn through(&mut self) -> Result<Arrival> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Bytes that have landed.
    pub(super) fn progress(&self) -> u64 {
        self.parts.iter().map(Part::landed).sum()
    }

    /// Whether all parts have begun to land.
    pub(super) fn is_answered(&self) -> bool {
        self.parts.iter().all(|part| part.landed() > 0)
    }

    /// The number and the length of a part that was sent so long ago and has brought nothing, while others have; each is named until it has been asked
    /// for again, once.
    pub(super) fn late_part(&self, deadline: Duration) -> Option<(usize, usize)> {
        let late = |part: &Part| {
            let sent = part.route.progress().0;
            part.landed() == 0 && !part.again && sent.is_some_and(|sent| sent >= deadline)
        };
        let place = self.parts.iter().position(late)?;
        (self.progress() > 0).then(|| (place, self.parts[place].len))
    }

    /// Drops a part and asks for it again, into another landing of its length.
    pub(super) fn again(&mut self, place: usize, landing: Landing) {
        if let Some(part) = self.parts.get_mut(place) {
            *part = Part::ask(&self.store, &self.request, part.start, part.route.fork(), landing);
            part.again = true;
        }
    }

    /// Where in the first request's landing it begins.
    pub(super) fn from(&self) -> usize {
        self.from
    }

    /// Bytes asked for.
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.len).sum()
    }

    /// Bytes of the longest part.
    pub(super) fn longest(&self) -> usize {
        self.parts.iter().map(|part| part.len).max().unwrap_or_default()
    }

    /// Connections that had to be opened for it.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// Since it was asked.
    pub(super) fn elapsed(&self) -> Duration {
        self.asked.elapsed()
    }

    /// Moves what it brought behind what has landed; gives the bytes copied.
    ///
    /// # Errors
    /// `Io`, transient, when a part lacks bytes.
    pub(super) fn append_to(self, landing: &mut Landing) -> Result<u64> {
        let unfinished = || Error::new(Kind::Io, "a second request ended before all its bytes had landed").transient();
        let (mut begin, mut copied) = (self.from, 0);
        for part in self.parts {
            let State::Through(brought) = part.state else { return Err(unfinished()) };
            let brought = brought.landed().ok_or_else(unfinished)?;
            let skip = landing.filled().saturating_sub(begin).min(part.len);
            copied += brought.slices(skip, part.len - skip).map(|slice| landing.push(slice) as u64).sum::<u64>();
            begin += part.len;
        }
        Ok(copied)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arrival>> {
        let mut all = true;
        for part in &mut self.parts {
            let State::Running(running) = &mut part.state else { continue };
            let Poll::Ready((outcome, landing)) = running.as_mut().poll(cx) else {
                all = false;
                continue;
            };
            part.state = State::Through(landing);
            let arrival = match outcome {
                Ok(arrival) => arrival,
                Err(error) => return Poll::Ready(Err(error)),
            };
            self.opened += u64::from(arrival.opened);
            let copied = self.arrival.copied + arrival.copied;
            let first_byte = self.arrival.first_byte.max(arrival.first_byte);
            self.arrival = Arrival { copied, first_byte, opened: false, ..arrival };
        }
        if all { Poll::Ready(Ok(self.arrival.clone())) } else { Poll::Pending }
    }
}

impl Part {
    fn ask(store: &Arc<dyn Store>, request: &ReadRequest, start: u64, route: Route, mut landing: Landing) -> Self {
        let (store, route) = (Arc::clone(store), Arc::new(route));
        let (len, progress) = (landing.len(), landing.progress());
        let (request, way) = (ReadRequest { start, ..request.clone() }, Arc::clone(&route));
        let running = Box::pin(async move {
            let outcome = store.read_by(&request, &mut landing, &way).await;
            (outcome, landing)
        });
        Part { start, len, route, progress, again: false, state: State::Running(running) }
    }

    fn landed(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}
