//! A reader that reads as the loader does, a training step after each batch, over the emulated network in simulated time: what slow
//! requests cost a batch.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Look, Seen, Tails, Watch};
use crate::dataset::{BlockCut, Dataset, Dtype, RecordShard, RecordSpec, Shard};
use crate::emulate::Link;
use crate::emulate::wire::Wire;
use crate::fetch::{Bounds, Controller, Hedge, HeldBy};
use crate::order::{Order, Partition, Shuffle};
use crate::schedule::{Read, Schedule, Shape, Step};

/// Header of a response.
const HEADER: u64 = 300;
/// As in the pool: from here on a body tells a connection's pace, one that is slower than the fastest by the factor is closed, and one that
/// was idle for so long, too.
const LONG_BODY: u64 = 512 << 10;
const SLOWER_MAX: f64 = 4.0;
const IDLE_AGE: Duration = Duration::from_secs(4);
/// As the loader: connections that are opened ahead, and host memory.
const WARM: usize = 192;
const MEMORY: u64 = 256 << 20;
/// As the benchmark.
const SAMPLE: usize = 100_000;
const BATCH: u32 = 16;
const WINDOW: u64 = 512;
const SLOWER: f64 = 10.0;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) link: u64,
    pub(super) rtt: Duration,
    /// Bytes that the consumer takes per second, if not all at once.
    pub(super) pace: Option<f64>,
    /// The share of requests that take ten times as long.
    pub(super) slow: f64,
    pub(super) hedge: Hedge,
    pub(super) samples: u64,
    pub(super) seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// From one delivery to the next, seconds.
    pub(super) gaps: Vec<f64>,
    /// Bytes that were asked for twice, of those delivered.
    pub(super) extra: f64,
    pub(super) struck: usize,
}

/// Simulates one epoch.
pub(super) fn run(case: Case) -> Outcome {
    let mut world = World::new(case);
    while !world.is_over() {
        world.turn();
    }
    let extra = world.tails.asked_twice as f64 / world.tails.delivered as f64;
    Outcome { extra, ..world.outcome }
}

struct World {
    case: Case,
    now: Duration,
    wire: Wire,
    random: fastrand::Rng,
    tails: Tails,
    controller: Controller,
    schedule: Schedule,
    listed: VecDeque<Read>,
    batches: VecDeque<BTreeMap<u64, u32>>,
    exhausted: bool,
    reads: HashMap<u64, Resident>,
    requests: HashMap<u64, Request>,
    /// What a connection is busy with.
    flows: HashMap<u64, Exchange>,
    idle: Vec<Idle>,
    /// Bytes of slow requests that are not handed over yet.
    late: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    looks: BinaryHeap<Reverse<(Duration, u64)>>,
    in_flight: u64,
    held_bytes: u64,
    landed: u64,
    first: (u64, u64),
    delivered: Option<Duration>,
    free_at: Duration,
    hungry: bool,
    outcome: Outcome,
}

/// A read that takes memory.
struct Resident {
    read: Read,
    left: u32,
    landed: bool,
}

/// A read in flight.
struct Request {
    watch: Watch,
    sent: Duration,
    flow: u64,
    len: u64,
    landed: u64,
    first_byte: Option<Duration>,
    moved: Duration,
    second: Option<Second>,
}

struct Second {
    asked: Duration,
    from: u64,
    parts: BTreeMap<u64, Part>,
    through: u64,
    len: u64,
    longest: u64,
    first_byte: Duration,
}

struct Part {
    len: u64,
    landed: u64,
    again: bool,
}

struct Exchange {
    read: u64,
    sent: Duration,
    slow: bool,
    header: u64,
    len: u64,
    left: u64,
    first: Option<Duration>,
}

struct Idle {
    flow: u64,
    pace: f64,
    since: Duration,
}

fn schedule(case: &Case) -> Schedule {
    const SHARDS: u64 = 8;
    let shard = |number| {
        let bytes = case.samples / SHARDS * SAMPLE as u64;
        RecordShard { shard: Shard { url: format!("{number}.bin"), size: bytes, version: None }, start: 0, bytes }
    };
    let spec = RecordSpec::rows(Dtype::U8, vec![SAMPLE]).unwrap();
    let dataset = Dataset::records((0..SHARDS).map(shard).collect(), spec, BlockCut { bytes: 4 << 20 }).unwrap();
    let samples: Arc<[u32]> = dataset.blocks().iter().map(|block| block.samples).collect();
    let order = Order::new(samples, Shuffle::window(WINDOW).seed(case.seed), 1, None).unwrap();
    let shape = Shape {
        request_bytes: 1 << 20,
        cold_request_bytes: 43_800,
        gap_bytes: 64 << 10,
        page_bytes: 128 << 10,
        alignment: 1,
    };
    let partition = Partition::new(0, 1, BATCH, false).unwrap();
    Schedule::new(Arc::new(dataset), order, partition, vec![0], shape, (0, 0), 1)
}

impl World {
    fn new(case: Case) -> Self {
        let link = Link { seed: case.seed, ..Link::rtt(case.rtt).rate(case.link) };
        let mut wire = Wire::new(link);
        let idle = (0..WARM).map(|_| Idle { flow: wire.open(Duration::ZERO).0, pace: 0.0, since: case.rtt }).collect();
        World {
            case,
            now: 2 * case.rtt,
            wire,
            random: fastrand::Rng::with_seed(case.seed),
            tails: Tails::new(case.hedge),
            controller: Controller::new(Bounds { bytes: 8 << 20, bytes_max: 200 << 20, requests_max: 256 }),
            schedule: schedule(&case),
            listed: VecDeque::new(),
            batches: VecDeque::new(),
            exhausted: false,
            reads: HashMap::new(),
            requests: HashMap::new(),
            flows: HashMap::new(),
            idle,
            late: BinaryHeap::new(),
            looks: BinaryHeap::new(),
            in_flight: 0,
            held_bytes: 0,
            landed: 0,
            first: (0, 0),
            delivered: None,
            free_at: Duration::ZERO,
            hungry: true,
            outcome: Outcome::default(),
        }
    }

    fn is_over(&self) -> bool {
        self.exhausted && self.batches.is_empty()
    }

    fn turn(&mut self) {
        self.list();
        self.deliver();
        self.list();
        self.admit();
        let consumer = (self.now < self.free_at).then_some(self.free_at);
        let late = self.late.peek().map(|Reverse((at, ..))| *at);
        let look = self.looks.peek().map(|Reverse((at, _))| *at);
        let next = [consumer, late, look, self.wire.wake_at()].into_iter().flatten().min();
        let Some(next) = next.filter(|_| !self.is_over()) else { return };
        self.now = self.now.max(next);
        let mut arrived = Vec::new();
        self.wire.advance(self.now, &mut arrived);
        for (flow, bytes, at) in arrived {
            match self.flows.get(&flow) {
                Some(exchange) if exchange.slow => {
                    let at = exchange.sent + at.saturating_sub(exchange.sent).mul_f64(SLOWER);
                    self.late.push(Reverse((at, flow, bytes)));
                }
                _ => self.arrive(flow, bytes as u64, at),
            }
        }
        while let Some(Reverse((at, flow, bytes))) = self.late.peek().copied().filter(|late| late.0.0 <= self.now) {
            self.late.pop();
            self.arrive(flow, bytes as u64, at);
        }
        while let Some(Reverse((_, read))) = self.looks.peek().copied().filter(|look| look.0.0 <= self.now) {
            self.looks.pop();
            self.look(read);
        }
    }

    fn list(&mut self) {
        while !self.exhausted && (self.listed.len() < 256 || self.batches.is_empty()) {
            match self.schedule.advance().unwrap() {
                None => self.exhausted = true,
                Some(Step::Read(read)) => {
                    if read.first_batch == 0 {
                        self.first = (self.first.0 + read.extent.len, self.first.1 + read.extent.len);
                        self.controller.begin_with(self.first.0);
                    }
                    self.listed.push_back(read);
                    self.reads.insert(read.id, Resident { read, left: read.uses, landed: false });
                }
                Some(Step::Batch(plan)) => {
                    let mut pieces = BTreeMap::new();
                    plan.pieces.iter().for_each(|piece| *pieces.entry(piece.read).or_default() += 1);
                    self.batches.push_back(pieces);
                }
                Some(Step::EpochEnd(_)) => {}
            }
        }
    }

    fn deliver(&mut self) {
        while let Some(batch) = self.batches.front() {
            if self.now < self.free_at || !batch.keys().all(|read| self.reads[read].landed) {
                return;
            }
            self.hungry = self.delivered.is_none_or(|_| self.now > self.free_at + Duration::from_millis(1));
            let batch = self.batches.pop_front().unwrap();
            for (id, pieces) in batch {
                let resident = self.reads.get_mut(&id).unwrap();
                resident.left -= pieces;
                if resident.left == 0 {
                    self.held_bytes -= resident.read.extent.len;
                    self.reads.remove(&id);
                }
            }
            if let Some(last) = self.delivered.replace(self.now) {
                self.outcome.gaps.push((self.now - last).as_secs_f64());
            }
            let step = self.case.pace.map_or(0.0, |pace| f64::from(BATCH) * SAMPLE as f64 / pace);
            self.free_at = self.now + Duration::from_secs_f64(step);
        }
    }

    fn admit(&mut self) {
        let held = loop {
            let Some(read) = self.listed.front().copied() else { break HeldBy::Other };
            let (len, requests) = (read.extent.len, self.requests.len());
            let most = if self.first.1 * 8 > self.first.0 { WARM } else { 256 };
            if requests > 0 {
                if read.first_batch > 0 && self.first.1 * 8 > self.first.0 {
                    break HeldBy::Other;
                }
                if read.first_batch > 0 && self.in_flight + len > self.controller.bytes() {
                    break HeldBy::Bytes;
                }
                if requests >= most.min(self.controller.requests(self.now)) {
                    break HeldBy::Requests;
                }
                if self.held_bytes + len > MEMORY {
                    break HeldBy::Other;
                }
            }
            self.listed.pop_front();
            self.start(read);
        };
        self.controller.turn(self.now, held);
        let partly: u64 = self.requests.values().map(|request| request.landed).sum();
        self.controller.measure(self.now, self.landed + partly, self.hungry);
    }

    fn start(&mut self, read: Read) {
        let len = read.extent.len;
        (self.in_flight, self.held_bytes) = (self.in_flight + len, self.held_bytes + len);
        let watch = self.tails.begin(read.id, len as usize);
        let (flow, sent) = self.ask(read.id, len);
        let (landed, first_byte, moved, second) = (0, None, self.now, None);
        self.requests.insert(read.id, Request { watch, sent, flow, len, landed, first_byte, moved, second });
        self.looks.push(Reverse((self.now + super::LOOK_BLIND, read.id)));
    }

    /// Sends a request over the fastest idle connection, or a fresh one; says over which, and when.
    fn ask(&mut self, read: u64, len: u64) -> (u64, Duration) {
        let now = self.now;
        self.idle.retain(|idle| idle.since + if idle.pace > 0.0 { IDLE_AGE } else { 4 * IDLE_AGE } > now);
        let fastest = (0..self.idle.len()).max_by(|a, b| self.idle[*a].pace.total_cmp(&self.idle[*b].pace));
        let (flow, sent) = match fastest {
            Some(place) => (self.idle.remove(place).flow, now),
            None => self.wire.open(now),
        };
        let slow = self.random.f64() < self.case.slow;
        self.outcome.struck += usize::from(slow);
        self.wire.request(flow, HEADER + len, now);
        self.flows.insert(flow, Exchange { read, sent, slow, header: HEADER, len, left: len, first: None });
        (flow, sent)
    }

    fn close(&mut self, flow: u64) {
        self.flows.remove(&flow);
        self.wire.close(flow);
    }

    fn arrive(&mut self, flow: u64, bytes: u64, at: Duration) {
        let Some(exchange) = self.flows.get_mut(&flow) else { return };
        let first = *exchange.first.get_or_insert(at - exchange.sent);
        let header = bytes.min(exchange.header);
        exchange.header -= header;
        exchange.left -= bytes - header;
        let (id, over, len, sent) =
            (exchange.read, exchange.left == 0 && exchange.header == 0, exchange.len, exchange.sent);
        if over {
            self.flows.remove(&flow);
            let pace = if len >= LONG_BODY { len as f64 / (at - sent).as_secs_f64() } else { 0.0 };
            let fastest = self.idle.iter().map(|idle| idle.pace).fold(0.0, f64::max);
            if pace > 0.0 && pace < fastest / SLOWER_MAX {
                self.wire.close(flow);
            } else {
                self.idle.push(Idle { flow, pace, since: at });
            }
        }
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.moved = at;
        if request.flow == flow {
            request.first_byte.get_or_insert(first);
            request.landed += bytes - header;
            if over {
                self.tails.sample(len as usize, at - sent, first);
                self.end(id, at, first);
            }
            return;
        }
        let Some(second) = &mut request.second else { return };
        let Some(part) = second.parts.get_mut(&flow) else { return };
        part.landed += bytes - header;
        second.first_byte = second.first_byte.max(first);
        second.through += if over { part.len } else { 0 };
        if second.through == second.len {
            let twice = request.landed - second.from;
            self.tails.overtaken(second.len, twice);
            self.tails.sample(second.longest as usize, at - second.asked, second.first_byte);
            self.tails.sample(
                request.landed as usize,
                at - request.sent,
                request.first_byte.unwrap_or(at - request.sent),
            );
            let first = second.first_byte;
            self.end(id, at, first);
        }
    }

    /// A read has landed.
    fn end(&mut self, id: u64, at: Duration, first_byte: Duration) {
        let request = self.requests.remove(&id).unwrap();
        let (len, took) = (request.len, at - request.sent);
        let flows = request.second.iter().flat_map(|second| second.parts.keys().copied());
        let busy: Vec<_> =
            flows.chain([request.flow]).filter(|flow| self.flows.get(flow).is_some_and(|on| on.read == id)).collect();
        busy.into_iter().for_each(|flow| self.close(flow));
        self.tails.end(request.watch, len as usize, Some(took));
        (self.in_flight, self.landed) = (self.in_flight - len, self.landed + len);
        self.controller.landed(Some(first_byte), took);
        let resident = self.reads.get_mut(&id).unwrap();
        resident.landed = true;
        if resident.read.first_batch == 0 {
            self.first.1 -= len;
        }
    }

    fn look(&mut self, id: u64) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        if let Some(second) = &mut request.second {
            if second.parts.values().any(|part| part.landed > 0) {
                self.tails.answered(&mut request.watch);
                let due = self.tails.first_byte_due(&request.watch);
                let silent = second.parts.iter().find(|(_, part)| part.landed == 0 && !part.again);
                let late = silent.filter(|_| due.is_some_and(|due| now >= second.asked + due));
                if let Some((flow, len)) = late.map(|(flow, part)| (*flow, part.len))
                    && self.tails.reserve(&request.watch, len)
                {
                    self.close(flow);
                    let (again, _) = self.ask(id, len);
                    let second = self.requests.get_mut(&id).and_then(|request| request.second.as_mut()).unwrap();
                    second.parts.remove(&flow);
                    second.parts.insert(again, Part { len, landed: 0, again: true });
                }
            }
            self.looks.push(Reverse((now + super::LOOK_BLIND, id)));
            return;
        }
        let (answered, landed) = (request.first_byte.is_some(), request.landed as usize);
        let seen = Seen {
            elapsed: now.saturating_sub(request.sent),
            answered,
            landed,
            quiet: now - request.moved,
            splits: true,
        };
        let wait = match self.tails.look(&mut request.watch, seen) {
            Look::Wait(wait) => wait.min(if seen.quiet.is_zero() { super::LOOK_BLIND } else { super::LOOK_MAX }),
            Look::GiveUp => super::LOOK_MAX,
            Look::Hedge { parts } => {
                let (from, missing) = (request.landed, request.len - request.landed);
                let part = missing.div_ceil(parts as u64).next_multiple_of(64 << 10);
                let lens: Vec<u64> = (0..missing).step_by(part as usize).map(|at| part.min(missing - at)).collect();
                let parts = lens.iter().map(|len| (self.ask(id, *len).0, Part { len: *len, landed: 0, again: false }));
                let parts = parts.collect();
                let second = Second {
                    asked: now,
                    from,
                    parts,
                    through: 0,
                    len: missing,
                    longest: part,
                    first_byte: Duration::ZERO,
                };
                self.requests.get_mut(&id).unwrap().second = Some(second);
                super::LOOK_BLIND
            }
        };
        self.looks.push(Reverse((now + wait, id)));
    }
}
