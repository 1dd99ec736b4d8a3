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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The server has the request and starts to answer.
    Answer { flow: FlowId, bytes: u64 },
    /// An acknowledgement is back.
    Acknowledge { flow: FlowId, bytes: usize },
    /// The link's buffer has room again.
    Admit,
}

/// The shared link, and the connections over it.
#[derive(Debug)]
pub(super) struct Network {
    line: Line,
    flows: HashMap<FlowId, Flow>,
    flows_opened: FlowId,
    arrivals: Agenda<FlowId>,
    events: Agenda<Event>,
    /// Flows that the link's buffer had no room for, in turn; an `Admit` is planned while there are any.
    waiting: VecDeque<FlowId>,
    ready: Vec<FlowId>,
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

    /// A client connects.
    pub(super) fn open(&mut self, now: Duration) -> FlowId {
        self.advance(now);
        self.flows_opened += 1;
        self.flows.insert(self.flows_opened, Flow::new(&self.line.link, now));
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

    /// Bytes that arrived and were not taken yet, and when (the first of them) did.
    pub(super) fn take(&mut self, flow: FlowId) -> Option<(usize, Duration)> {
        let (at, bytes) = self.flows.get_mut(&flow)?.arrived.pop_front()?;
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
    pub(super) fn ready(&mut self) -> impl Iterator<Item = FlowId> + '_ {
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
                let Some((at, flow)) = self.arrivals.pop() else { return };
                self.arrive(flow, at);
            } else {
                let Some((at, event)) = self.events.pop() else { return };
                self.happen(event, at);
            }
        }
    }

    fn arrive(&mut self, id: FlowId, at: Duration) {
        if at < self.line.dead_until {
            self.arrivals.plan(self.line.dead_until + self.line.link.half_way(), id);
            return;
        }
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Some(bytes) = flow.on_the_way.pop_front() else { return };
        match flow.arrived.back_mut() {
            Some((last, sum)) if *last == at || !flow.ignore_untaken => *sum += bytes,
            _ => flow.arrived.push_back((at, bytes)),
        }
        self.ready.push(id);
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
            Event::Acknowledge { flow: id, bytes } => {
                if let Some(flow) = self.flows.get_mut(&id) {
                    self.line.acknowledged(flow, bytes);
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
            if self.line.admits(now) {
                let carried = self.line.carry(flow, bytes, now);
                self.arrivals.plan(carried.delivered, id);
                self.events.plan(carried.acknowledged, Event::Acknowledge { flow: id, bytes });
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
            let flow = self.open(Duration::ZERO);
            let bytes = bytes / connections + u64::from(n < bytes % connections);
            self.request(flow, Transfer { bytes, delay: Duration::ZERO, ignore_untaken: false }, Duration::ZERO);
        }
        let (mut last, mut left) = (Duration::ZERO, bytes);
        while left > 0 {
            let Some(now) = self.wake_at() else { break };
            self.advance(now);
            for flow in self.ready().collect::<Vec<_>>() {
                while let Some((bytes, at)) = self.take(flow) {
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
mod tests {
    use super::super::link::PACKET;
    use super::*;

    const RTT: Duration = Duration::from_millis(15);

    fn transfer(bytes: u64) -> Transfer {
        Transfer { bytes, delay: Duration::ZERO, ignore_untaken: false }
    }

    fn link() -> Link {
        Link::rtt(RTT)
    }

    /// Runs until `until`; every arrival is taken at once and reported.
    fn run(network: &mut Network, until: Duration, mut report: impl FnMut(FlowId, usize, Duration)) {
        while let Some(now) = network.wake_at().filter(|at| *at <= until) {
            network.advance(now);
            for flow in network.ready().collect::<Vec<_>>() {
                while let Some((bytes, at)) = network.take(flow) {
                    report(flow, bytes, at);
                    network.taken(flow, bytes, at);
                }
            }
            assert!(network.line.queue(now) <= network.line.link.queue_max() + RTT, "the queue grows");
        }
        network.advance(until);
    }

    /// Bytes per flow that `flows` endless transfers get in `seconds`, the first second apart.
    fn shares(link: Link, flows: u64, seconds: u64) -> Vec<u64> {
        let mut network = Network::new(link);
        for _ in 0..flows {
            let flow = network.open(Duration::ZERO);
            network.request(flow, transfer(u64::MAX / 2), Duration::ZERO);
        }
        let mut shares = vec![0; flows as usize];
        run(&mut network, Duration::from_secs(seconds + 1), |flow, bytes, at| {
            if at >= Duration::from_secs(1) {
                shares[flow as usize - 1] += bytes as u64;
            }
        });
        shares
    }

    fn close_to(found: f64, expected: f64, tolerance: f64) {
        let ratio = found / expected;
        assert!((ratio - 1.0).abs() <= tolerance, "{found:.4} found, {expected:.4} expected, ratio {ratio:.3}");
    }

    #[test]
    fn a_fresh_connection_costs_two_round_trips_and_a_warm_one_one() {
        let mut network = Network::new(link());
        let flow = network.open(Duration::ZERO);
        let mut arrivals = Vec::new();
        network.request(flow, transfer(100), Duration::ZERO);
        run(&mut network, RTT * 10, |_, bytes, at| arrivals.push((bytes, at)));
        network.request(flow, transfer(200), RTT * 10);
        run(&mut network, RTT * 20, |_, bytes, at| arrivals.push((bytes, at)));
        assert_eq!(arrivals, [(100, RTT * 2), (200, RTT * 11)]);
    }

    #[test]
    fn slow_start_takes_its_rounds() {
        for (bytes, connections) in [(10_000, 1), (1 << 20, 1), (6_900_000, 8), (6_900_000, 32), (1 << 28, 8)] {
            // 10, 20, 40 … packets per round and connection.
            let rounds = (bytes as f64 / connections as f64 / (10 * PACKET) as f64 + 1.0).log2().ceil() as u32;
            let link = Link { window_bytes: 1 << 30, ..link() };
            let found = link.transfer_time(bytes, connections).unwrap();
            assert_eq!(found, RTT * (1 + rounds), "{bytes} bytes over {connections} connections");
        }
    }

    #[test]
    fn the_rate_bounds_a_long_transfer() {
        let link = link().rate(125_000_000);
        for connections in [1, 8, 32, 200] {
            let found = link.transfer_time(250_000_000, connections).unwrap().as_secs_f64();
            assert!(found > 2.0 + 0.03, "{found} s for 2 s of link and 2 RTT");
            // Each has its part from the start: the last one to end has the link for itself, and a small window.
            close_to(found, 2.03, 0.15);
        }
    }

    #[test]
    fn the_window_bounds_one_connection() {
        let link = Link { window_bytes: 1 << 20, ..link() };
        let share = shares(link, 1, 4)[0] as f64 / 4.0;
        close_to(share, (1 << 20) as f64 / RTT.as_secs_f64(), 0.02);
    }

    #[test]
    fn connections_share_the_link_evenly_and_fill_it() {
        for (rate, flows) in [(125_000_000, 2), (125_000_000, 8), (12_500_000, 8), (1_250_000_000, 32)] {
            let shares = shares(link().rate(rate), flows, 8);
            close_to(shares.iter().sum::<u64>() as f64, 8.0 * rate as f64, 0.04);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(*most as f64 <= 1.4 * *least as f64, "{shares:?}");
        }
    }

    #[test]
    fn the_buffer_bounds_the_queue() {
        let link = Link { buffer: Some(Duration::from_millis(5)), ..link().rate(12_500_000) };
        let mut network = Network::new(link);
        for _ in 0..64 {
            let flow = network.open(Duration::ZERO);
            network.request(flow, transfer(1 << 30), Duration::ZERO);
        }
        let mut longest = Duration::ZERO;
        for step in 1..20_000 {
            let now = Duration::from_micros(100) * step;
            network.advance(now);
            for flow in network.ready().collect::<Vec<_>>() {
                while let Some((bytes, at)) = network.take(flow) {
                    network.taken(flow, bytes, at.max(now));
                }
            }
            longest = longest.max(network.line.queue(now));
        }
        // One chunk, a millisecond of link, may go beyond.
        assert!(longest <= Duration::from_millis(6), "{longest:?}");
        assert!(longest >= Duration::from_millis(4) && network.counts().drops > 0, "never filled: {longest:?}");
    }

    #[test]
    fn loss_bounds_a_connection_as_mathis_says() {
        // Mathis et al.: MSS / RTT · sqrt(3 / 2p). Here the queue is empty, so RTT is the link's.
        for loss in [0.001, 0.01] {
            let link = Link { loss, seed: 5, ..link().rate(1_250_000_000) };
            let flows = 8;
            let found = shares(link, flows, 20).iter().sum::<u64>() as f64 / (20 * flows) as f64;
            let expected = PACKET as f64 / RTT.as_secs_f64() * (1.5 / loss).sqrt();
            close_to(found, expected, 0.25);
        }
    }

    #[test]
    fn jitter_delays_and_never_reorders() {
        let link = Link { jitter: Duration::from_millis(5), seed: 9, ..link().rate(12_500_000) };
        let mut network = Network::new(link);
        let flow = network.open(Duration::ZERO);
        network.request(flow, transfer(1 << 20), Duration::ZERO);
        let (mut last, mut sum) = (Duration::ZERO, 0);
        run(&mut network, Duration::from_secs(2), |_, bytes, at| {
            assert!(at >= last);
            (last, sum) = (at, sum + bytes);
        });
        assert_eq!(sum, 1 << 20);
        assert!(last > link_floor(1 << 20), "{last:?}");
    }

    fn link_floor(bytes: u64) -> Duration {
        link().rate(12_500_000).transfer_time(bytes, 1).unwrap()
    }

    #[test]
    fn a_receiver_that_takes_nothing_fills_one_window() {
        let mut network = Network::new(Link { window_bytes: 100 * PACKET, ..link() });
        let flow = network.open(Duration::ZERO);
        network.request(flow, transfer(1 << 30), Duration::ZERO);
        network.advance(Duration::from_secs(5));
        let (held, _) = network.take(flow).unwrap();
        assert!((50 * PACKET..=100 * PACKET).contains(&held), "{held}");
        assert!(network.take(flow).is_none());
        network.taken(flow, held, Duration::from_secs(5));
        network.advance(Duration::from_secs(6));
        assert!(network.take(flow).is_some(), "room in the window moves it on");
    }

    #[test]
    fn nothing_passes_a_dead_link() {
        let mut network = Network::new(link().rate(12_500_000));
        let flow = network.open(Duration::ZERO);
        network.request(flow, transfer(5_000_000), Duration::ZERO);
        let (from, until) = (Duration::from_millis(200), Duration::from_millis(1200));
        run(&mut network, from, |_, _, _| {});
        network.silence(from, until - from);
        let (mut first, mut last) = (None, Duration::ZERO);
        run(&mut network, Duration::from_secs(9), |_, _, at| {
            first.get_or_insert(at);
            last = at;
        });
        assert!(first.unwrap() >= until && first.unwrap() < until + RTT * 3, "{first:?}");
        // 0.4 s of link, of which a part was done, after the second that was lost.
        assert!(last > Duration::from_millis(1380) && last < Duration::from_millis(1700), "{last:?}");
    }

    #[test]
    fn idleness_closes_the_window_if_told_to() {
        let second_takes = |idle_restart| {
            let mut network = Network::new(Link { idle_restart, ..link() });
            let flow = network.open(Duration::ZERO);
            let mut last = Duration::ZERO;
            network.request(flow, transfer(1 << 20), Duration::ZERO);
            run(&mut network, Duration::from_secs(2), |_, _, at| last = at);
            assert_eq!(last, RTT * 8);
            network.request(flow, transfer(1 << 20), Duration::from_secs(2));
            run(&mut network, Duration::from_secs(4), |_, _, at| last = at);
            last - Duration::from_secs(2)
        };
        assert_eq!(second_takes(true), RTT * 7);
        assert!(second_takes(false) <= RTT * 2, "{:?}", second_takes(false));
    }

    #[test]
    fn coming_late_changes_no_rate() {
        let mut network = Network::new(link().rate(125_000_000));
        for _ in 0..8 {
            let flow = network.open(Duration::ZERO);
            network.request(flow, transfer(1 << 40), Duration::ZERO);
        }
        let mut sum = 0;
        for step in 1..=700_u32 {
            // Up to 7 ms late, half a round trip, as a busy machine is.
            let now = Duration::from_millis(4 * u64::from(step) + u64::from(step % 3));
            network.advance(now);
            for flow in network.ready().collect::<Vec<_>>() {
                while let Some((bytes, _)) = network.take(flow) {
                    sum += if step > 200 { bytes } else { 0 };
                    network.taken(flow, bytes, now);
                }
            }
        }
        close_to(sum as f64, 2.0 * 125e6, 0.03);
    }
}
