//! The link and all connections over it, in simulated time: no sockets, no clock.
//!
//! The caller says what time it is; the network says what has arrived and when to ask again. Events are carried out
//! in the order of their nominal times, so a caller that comes late changes no rate: only bytes are handed over late.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::flow::Flow;
use super::line::{Counts, Line};
use super::link::Link;

/// Names one connection; never used again.
pub(crate) type FlowId = u64;

/// What a request asks of the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    /// Head and body.
    pub(super) bytes: u64,
    /// What the server takes beyond the link's `server_time`.
    pub(super) delay: Duration,
    /// Bytes travel on although the receiver does not take them, and it is told when each chunk came.
    pub(super) ignore_untaken: bool,
}

/// Which way bytes go over the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    ToClient,
    ToServer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The server has the request and starts to answer.
    Answer { flow: FlowId, bytes: u64 },
    /// An acknowledgement is back.
    Acknowledge { flow: FlowId, bytes: usize, sent: Option<Duration> },
    /// The server notices a loss.
    Notice { flow: FlowId },
    /// The server may give a connection more.
    Resume { flow: FlowId },
    /// The link's buffer has room again.
    Admit,
}

/// The shared link, and the connections over it.
#[derive(Debug)]
pub(super) struct Network {
    line: Line,
    flows: HashMap<FlowId, Flow>,
    flows_opened: FlowId,
    arrivals: Agenda<(FlowId, Way)>,
    events: Agenda<Event>,
    /// Flows that the link's buffer had no room for, in turn; an `Admit` is planned while there are any.
    waiting: VecDeque<FlowId>,
    ready: Vec<(FlowId, Way)>,
}

impl Network {
    pub(super) fn new(link: Link) -> Self {
        Network {
            line: Line::new(link),
            flows: HashMap::new(),
            flows_opened: 0,
            arrivals: Agenda::default(),
            events: Agenda::default(),
            waiting: VecDeque::new(),
            ready: Vec::new(),
        }
    }

    /// Another link from now on; what is on its way arrives as it was sent.
    pub(super) fn change(&mut self, link: Link, now: Duration) {
        self.advance(now);
        self.line.change(link, now);
    }

    /// Lets nothing pass for a time: neither requests, bytes nor acknowledgements.
    pub(super) fn silence(&mut self, now: Duration, time: Duration) {
        self.advance(now);
        self.line.dead_until = self.line.dead_until.max(now + time);
        for flow in self.flows.values_mut() {
            flow.time_out(&self.line.link);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        self.line.counts
    }

    /// A client connects; its handshake takes so much longer than the round trip.
    pub(super) fn open(&mut self, delay: Duration, now: Duration) -> FlowId {
        self.advance(now);
        self.flows_opened += 1;
        self.flows.insert(self.flows_opened, Flow::new(&self.line.link, delay, now));
        self.flows_opened
    }

    /// A connection is gone; what it had given to the link still takes its time.
    pub(super) fn close(&mut self, flow: FlowId) {
        if let Some(flow) = self.flows.remove(&flow) {
            self.line.forget(&flow);
        }
    }

    /// A client sends a request, to be answered with so many bytes.
    pub(super) fn request(&mut self, id: FlowId, transfer: Transfer, now: Duration) {
        self.advance(now);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.ignore_untaken = transfer.ignore_untaken;
        let link = &self.line.link;
        let sent = now.max(flow.established).max(self.line.dead_until);
        let at = sent + link.half_way() + link.server_time + transfer.delay;
        self.events.plan(at, Event::Answer { flow: id, bytes: transfer.bytes });
    }

    /// The server has bytes for a client, which nobody had to announce. It hears of the client when the handshake's
    /// last packet has come.
    pub(super) fn offer(&mut self, id: FlowId, bytes: usize, now: Duration) {
        self.advance(now);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let at = now.max(flow.established + self.line.link.half_way());
        self.events.plan(at, Event::Answer { flow: id, bytes: bytes as u64 });
    }

    /// A client has bytes for the server; none of them are its end.
    pub(super) fn upload(&mut self, id: FlowId, bytes: usize, now: Duration) {
        self.advance(now);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let at = self.line.carry_up(flow, bytes, now);
        self.arrivals.plan(at, (id, Way::ToServer));
    }

    /// How many bytes of a flow are worth keeping at the server: what its window asks for, and as much again, as
    /// Linux sizes a socket's buffer; one more piece so that it never runs dry.
    pub(super) fn appetite(&self, id: FlowId, piece: usize) -> usize {
        self.flows.get(&id).map_or(0, |flow| (2 * flow.window()).min(self.line.link.window_bytes) + piece)
    }

    /// Bytes that arrived and were not taken yet, and when (the first of them) did. Towards the server none of them
    /// are the client's end.
    pub(super) fn take(&mut self, flow: FlowId, way: Way) -> Option<(usize, Duration)> {
        let flow = self.flows.get_mut(&flow)?;
        let arrived = if way == Way::ToClient { &mut flow.arrived } else { &mut flow.up_arrived };
        let (at, bytes) = arrived.pop_front()?;
        Some((bytes, at))
    }

    /// The client's socket took bytes, which makes room in the window.
    pub(super) fn taken(&mut self, id: FlowId, bytes: usize, now: Duration) {
        self.advance(now);
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.untaken = flow.untaken.saturating_sub(bytes);
        self.transmit(id, now);
    }

    /// When to call [`Network::advance`] at the latest, so that nothing is handed over late. What the server does
    /// shows half a round trip later, so it need not be done on the dot.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        let event = self.events.next().map(|at| at + self.line.link.half_way());
        [self.arrivals.next(), event].into_iter().flatten().min()
    }

    /// Flows for which bytes arrived since this was last asked.
    pub(super) fn ready(&mut self) -> impl Iterator<Item = (FlowId, Way)> + '_ {
        self.ready.drain(..)
    }

    /// Carries out everything that is due, in the order of its time.
    pub(super) fn advance(&mut self, now: Duration) {
        loop {
            let arrival = self.arrivals.next().unwrap_or(Duration::MAX);
            let event = self.events.next().unwrap_or(Duration::MAX);
            if arrival.min(event) > now {
                return;
            }
            if arrival <= event {
                let Some((at, (flow, way))) = self.arrivals.pop() else { return };
                self.arrive(flow, way, at);
            } else {
                let Some((at, event)) = self.events.pop() else { return };
                self.happen(event, at);
            }
        }
    }

    fn arrive(&mut self, id: FlowId, way: Way, at: Duration) {
        if at < self.line.dead_until {
            self.arrivals.plan(self.line.dead_until + self.line.link.half_way(), (id, way));
            return;
        }
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match way {
            Way::ToClient => flow.arrive(at),
            Way::ToServer => flow.up_arrive(at),
        }
        self.ready.push((id, way));
    }

    fn happen(&mut self, event: Event, at: Duration) {
        if at < self.line.dead_until {
            self.events.plan(self.line.dead_until + self.line.link.half_way(), event);
            return;
        }
        match event {
            Event::Answer { flow: id, bytes } => {
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.add(&self.line.link, bytes, at);
                    self.transmit(id, at);
                }
            }
            Event::Acknowledge { flow: id, bytes, sent } => {
                if let Some(flow) = self.flows.get_mut(&id) {
                    self.line.acknowledged(flow, bytes, sent.map(|sent| at.saturating_sub(sent)), at);
                    self.transmit(id, at);
                }
            }
            Event::Notice { flow } => {
                self.flows.get_mut(&flow).map(Flow::lost);
            }
            Event::Resume { flow: id } => {
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.pausing = false;
                    self.transmit(id, at);
                }
            }
            Event::Admit => self.admit(at),
        }
    }

    /// Sends what the flow's window and the link's buffer have room for.
    fn transmit(&mut self, id: FlowId, now: Duration) {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.waiting) else { return };
        while let Some(bytes) = flow.next_chunk(&self.line.link) {
            if flow.paced_until > now {
                if !std::mem::replace(&mut flow.pausing, true) {
                    self.events.plan(flow.paced_until, Event::Resume { flow: id });
                }
                return;
            }
            if self.line.admits(now) {
                let carried = self.line.carry(flow, bytes, now);
                self.arrivals.plan(carried.delivered, (id, Way::ToClient));
                let whole = bytes - carried.lost.map_or(0, |lost| lost.bytes);
                if let Some(lost) = carried.lost {
                    self.events.plan(lost.noticed, Event::Notice { flow: id });
                    let event = Event::Acknowledge { flow: id, bytes: lost.bytes, sent: None };
                    self.events.plan(lost.acknowledged, event);
                }
                if whole > 0 {
                    let event = Event::Acknowledge { flow: id, bytes: whole, sent: Some(now) };
                    self.events.plan(carried.acknowledged, event);
                }
                continue;
            }
            if now >= self.line.dead_until {
                self.line.drop_chunk(flow, now);
            }
            // Where the window is full, acknowledgements bring the flow back; where not, its turn does.
            if flow.next_chunk(&self.line.link).is_some() {
                flow.waiting = true;
                self.waiting.push_back(id);
                if self.waiting.len() == 1 {
                    self.events.plan(self.line.admits_at(), Event::Admit);
                }
            }
            return;
        }
    }

    /// Gives the longest waiting flow its turn: one chunk each, so that the buffer is shared evenly.
    fn admit(&mut self, now: Duration) {
        while let Some(id) = self.waiting.front().copied() {
            if !self.line.admits(now) {
                self.events.plan(self.line.admits_at(), Event::Admit);
                return;
            }
            self.waiting.pop_front();
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.waiting = false;
            let others_wait = !self.waiting.is_empty();
            self.transmit(id, now);
            if !others_wait {
                return;
            }
        }
    }

    /// Runs `connections` fresh connections that share `bytes` evenly, and says when the last byte arrives.
    pub(super) fn transfer_time(mut self, bytes: u64, connections: usize) -> Duration {
        let connections = connections.max(1) as u64;
        for n in 0..connections {
            let flow = self.open(Duration::ZERO, Duration::ZERO);
            let bytes = bytes / connections + u64::from(n < bytes % connections);
            self.request(flow, Transfer { bytes, delay: Duration::ZERO, ignore_untaken: false }, Duration::ZERO);
        }
        let (mut last, mut left) = (Duration::ZERO, bytes);
        while left > 0 {
            let Some(now) = self.wake_at() else { break };
            self.advance(now);
            for (flow, way) in self.ready().collect::<Vec<_>>() {
                while let Some((bytes, at)) = self.take(flow, way) {
                    (last, left) = (at, left - bytes as u64);
                    self.taken(flow, bytes, at);
                }
            }
        }
        last
    }
}

/// What is planned, the earliest first, and what was planned for one time in the order of planning.
#[derive(Debug)]
struct Agenda<T> {
    heap: BinaryHeap<Reverse<(Duration, u64, T)>>,
    planned: u64,
}

impl<T: Ord> Default for Agenda<T> {
    fn default() -> Self {
        Agenda { heap: BinaryHeap::new(), planned: 0 }
    }
}

impl<T: Ord> Agenda<T> {
    fn plan(&mut self, at: Duration, item: T) {
        self.planned += 1;
        self.heap.push(Reverse((at, self.planned, item)));
    }

    fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    fn pop(&mut self) -> Option<(Duration, T)> {
        self.heap.pop().map(|Reverse((at, _, item))| (at, item))
    }
}

#[cfg(test)]
mod tests;
