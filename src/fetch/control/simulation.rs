//! Clients that read as the loader does, over the emulated network in simulated time.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::{Bounds, Controller, HeldBy};
use crate::emulate::Link;
use crate::emulate::wire::Wire;

/// What a request asks for, once blocks are read whole.
pub(super) const REQUEST: u64 = 1 << 20;
/// Header of a response; all that a refusal is.
const HEADER: u64 = 300;
/// As in the pool: from here on a body tells a connection's pace, and one that is slower than the fastest by the factor is closed.
const LONG_BODY: u64 = 512 << 10;
const SLOWER_MAX: f64 = 4.0;
/// As the loader: a batch's bytes, and the seed's growth with each.
const BATCH: u64 = 6_400_000;

/// How a client chooses its depth.
#[expect(clippy::large_enum_variant, reason = "a few of them in a test")]
pub(super) enum Depth {
    /// The same bytes and requests from start to end.
    Fixed(u64, usize),
    /// From 8 MiB by a quarter with each batch to the given bytes: what the loader did before it had a controller.
    Seed(u64),
    Controlled(Controller),
}

impl Depth {
    /// A controller with the loader's bounds.
    pub(super) fn controlled() -> Self {
        Depth::Controlled(Controller::new(Bounds { bytes: 8 << 20, bytes_max: 256 << 20, requests_max: 256 }))
    }
}

/// Clients of one server over one link.
pub(super) struct World {
    wire: Wire,
    pub(super) now: Duration,
    pub(super) clients: Vec<Client>,
    owners: HashMap<u64, usize>,
    /// The server refuses what goes beyond this many requests at once.
    pub(super) served_at_once: usize,
    served: usize,
    pub(super) refusals: u64,
}

/// One loader.
pub(super) struct Client {
    pub(super) depth: Depth,
    /// When it begins.
    pub(super) from: Duration,
    /// Bytes per second that the consumer takes, if not everything at once, from how many bytes that wait for it.
    pub(super) consumer: Option<f64>,
    pub(super) pages: u64,
    consumed: f64,
    consumed_at: Duration,
    /// Idle connections and their pace.
    idle: Vec<(u64, f64)>,
    established: HashMap<u64, Duration>,
    reads: HashMap<u64, Read>,
    resting: BTreeMap<(Duration, u64), Read>,
    rests: u64,
    in_flight: u64,
    pub(super) landed: u64,
    /// Bytes that landed in each tenth of a second.
    pub(super) tenths: Vec<u64>,
}

struct Read {
    asked: Duration,
    began: Duration,
    left: u64,
    first_byte: Option<Duration>,
    attempts: u32,
    refused: bool,
}

impl World {
    pub(super) fn new(link: Link, depths: impl IntoIterator<Item = Depth>) -> Self {
        World {
            wire: Wire::new(link),
            now: Duration::ZERO,
            clients: depths.into_iter().map(Client::new).collect(),
            owners: HashMap::new(),
            served_at_once: usize::MAX,
            served: 0,
            refusals: 0,
        }
    }

    pub(super) fn change(&mut self, link: Link) {
        self.wire.change(link, self.now);
    }

    pub(super) fn run(&mut self, until: Duration) {
        let mut arrived = Vec::new();
        loop {
            for client in 0..self.clients.len() {
                self.admit(client);
            }
            let timers = self.clients.iter().filter_map(|client| client.timer(self.now));
            let next = timers.chain(self.wire.wake_at()).min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            self.wire.advance(self.now, &mut arrived);
            for (flow, bytes, at) in arrived.drain(..) {
                self.arrive(flow, bytes as u64, at);
            }
        }
        self.now = until;
    }

    /// Starts what a client may start, as the loader's pump does.
    fn admit(&mut self, number: usize) {
        let now = self.now;
        if now < self.clients[number].from {
            return;
        }
        while let Some(entry) = self.clients[number].resting.first_entry().filter(|entry| entry.key().0 <= now) {
            let read = entry.remove();
            self.ask(number, read);
        }
        loop {
            let client = &mut self.clients[number];
            client.consume(now);
            let held = client.held(now);
            if let Some(held) = held {
                let (landed, hungry) = (client.landed, client.is_hungry());
                if let Depth::Controlled(controller) = &mut client.depth {
                    controller.turn(now, held);
                    controller.measure(now, landed, hungry);
                }
                return;
            }
            client.in_flight += REQUEST;
            let read = Read { asked: now, began: now, left: 0, first_byte: None, attempts: 0, refused: false };
            self.ask(number, read);
        }
    }

    fn ask(&mut self, number: usize, read: Read) {
        let client = &mut self.clients[number];
        let fastest = (0..client.idle.len()).max_by(|a, b| client.idle[*a].1.total_cmp(&client.idle[*b].1));
        let flow = match fastest {
            Some(place) => client.idle.remove(place).0,
            None => {
                let (flow, established) = self.wire.open(self.now);
                client.established.insert(flow, established);
                self.owners.insert(flow, number);
                flow
            }
        };
        let refused = self.served >= self.served_at_once;
        self.served += usize::from(!refused);
        self.refusals += u64::from(refused);
        let left = if refused { HEADER } else { HEADER + REQUEST };
        self.wire.request(flow, left, self.now);
        let asked = self.now.max(client.established[&flow]);
        client.reads.insert(flow, Read { asked, left, refused, first_byte: None, ..read });
    }

    fn arrive(&mut self, flow: u64, bytes: u64, at: Duration) {
        let client = &mut self.clients[self.owners[&flow]];
        let Some(read) = client.reads.get_mut(&flow) else { return };
        read.first_byte.get_or_insert(at.saturating_sub(read.asked));
        read.left -= bytes;
        let (refused, over) = (read.refused, read.left == 0);
        if !refused {
            client.note(bytes, at);
        }
        if !over {
            return;
        }
        let Some(read) = client.reads.remove(&flow) else { return };
        if refused {
            client.idle.push((flow, 0.0));
            client.refuse(read, at);
            return;
        }
        self.served -= 1;
        client.in_flight -= REQUEST;
        if let Depth::Controlled(controller) = &mut client.depth {
            controller.landed(read.first_byte, at.saturating_sub(read.began));
        }
        let pace = REQUEST as f64 / at.saturating_sub(read.asked).as_secs_f64().max(1e-6);
        let fastest = client.idle.iter().map(|(_, pace)| *pace).fold(0.0, f64::max);
        if REQUEST >= LONG_BODY && pace < fastest / SLOWER_MAX {
            self.wire.close(flow);
        } else {
            client.idle.push((flow, pace));
        }
    }
}

impl Client {
    fn new(depth: Depth) -> Self {
        Client {
            depth,
            from: Duration::ZERO,
            consumer: None,
            pages: 512 << 20,
            consumed: 0.0,
            consumed_at: Duration::ZERO,
            idle: Vec::new(),
            established: HashMap::new(),
            reads: HashMap::new(),
            resting: BTreeMap::new(),
            rests: 0,
            in_flight: 0,
            landed: 0,
            tenths: Vec::new(),
        }
    }

    /// Mean bytes per second between two moments.
    pub(super) fn goodput(&self, from: Duration, to: Duration) -> f64 {
        let tenth = |time: Duration| (time.as_secs_f64() * 10.0).round() as usize;
        let bytes: u64 = (tenth(from)..tenth(to)).filter_map(|place| self.tenths.get(place)).sum();
        bytes as f64 / (to - from).as_secs_f64()
    }

    pub(super) fn depth_bytes(&self) -> u64 {
        match &self.depth {
            Depth::Fixed(bytes, _) => *bytes,
            Depth::Seed(most) => (8u64 << 20).max(self.grown(*most)),
            Depth::Controlled(controller) => controller.bytes(),
        }
    }

    fn grown(&self, most: u64) -> u64 {
        let batches = (self.landed / BATCH).min(100) as i32;
        ((8u64 << 20) as f64 * 1.25f64.powi(batches)).min(most as f64) as u64
    }

    pub(super) fn depth_requests(&self, now: Duration) -> usize {
        match &self.depth {
            Depth::Fixed(_, requests) => *requests,
            Depth::Seed(_) => 192,
            Depth::Controlled(controller) => controller.requests(now),
        }
    }

    /// Reads under way, resting ones included.
    pub(super) fn requests_in_flight(&self) -> usize {
        self.reads.len() + self.resting.len()
    }

    fn held(&self, now: Duration) -> Option<HeldBy> {
        let untaken = self.landed.saturating_sub(self.consumed as u64);
        if self.consumer.is_some() && untaken + self.in_flight + REQUEST > self.pages {
            Some(HeldBy::Other)
        } else if self.in_flight > 0 && self.in_flight + REQUEST > self.depth_bytes() {
            Some(HeldBy::Bytes)
        } else if self.requests_in_flight() >= self.depth_requests(now) {
            Some(HeldBy::Requests)
        } else {
            None
        }
    }

    fn is_hungry(&self) -> bool {
        self.consumer.is_none() || self.consumed >= self.landed as f64
    }

    fn consume(&mut self, now: Duration) {
        let seconds = (now - self.consumed_at).as_secs_f64();
        self.consumed = match self.consumer {
            Some(rate) => (self.consumed + rate * seconds).min(self.landed as f64),
            None => self.landed as f64,
        };
        self.consumed_at = now;
    }

    /// When it has to look around although nothing arrives.
    fn timer(&self, now: Duration) -> Option<Duration> {
        if now < self.from {
            return Some(self.from);
        }
        let rested = self.resting.keys().next().map(|(at, _)| *at);
        let consumed = self.consumer.map(|_| now + Duration::from_millis(20));
        rested.into_iter().chain(consumed).min()
    }

    fn refuse(&mut self, read: Read, at: Duration) {
        let in_flight = self.requests_in_flight() + 1;
        if let Depth::Controlled(controller) = &mut self.depth {
            controller.throttled(at, in_flight);
        }
        let pause = crate::fetch::RetryPolicy::default().pause(read.attempts, 0.5);
        self.rests += 1;
        self.resting.insert((at + pause, self.rests), Read { attempts: read.attempts + 1, ..read });
    }

    fn note(&mut self, bytes: u64, at: Duration) {
        self.landed += bytes;
        let tenth = (at.as_secs_f64() * 10.0) as usize;
        if self.tenths.len() <= tenth {
            self.tenths.resize(tenth + 1, 0);
        }
        self.tenths[tenth] += bytes;
    }
}
