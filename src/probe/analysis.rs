//! What the numbers mean. Pure.

use super::report::{Connects, Depth, Ended, InFlight, Limit, OneConnection, Point, ProbeReport, Sign, Spread, Steady};

/// Within this of the best is as good as the best.
const AS_GOOD: f64 = 0.95;
/// A network thread that is busier than this is the limit.
const BUSY: f64 = 0.85;
/// More refusals than this and the store is the limit; fewer are weather.
const REFUSED: f64 = 0.02;
/// Goodput that falls below so much of its best with fewer connections has fallen.
const FALLS: f64 = 0.75;
/// Goodput that is held at less than so much of the best was only now and then the best.
const HELD_LESS: f64 = 0.85;
/// Several connections that carry so many times what one does show that one is capped.
const CAPPED: f64 = 1.5;

/// What was counted in one slice.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) connections: usize,
    pub(super) request_bytes: usize,
    pub(super) seconds: f64,
    pub(super) lanes: Vec<LaneReading>,
    /// Length and bytes of each window, where it was divided.
    pub(super) windows: Vec<(f64, u64)>,
    pub(super) tally: Tally,
    /// The busiest network thread's share of its time.
    pub(super) busy: f64,
}

/// What one connection did in one slice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LaneReading {
    /// Bytes that were seen to arrive. The kernel gathers up to a megabyte, or a tenth of a second, before it tells.
    pub(super) bytes: u64,
    /// From the beginning of its first request in the slice to that of its last one.
    pub(super) span_s: f64,
    /// Bytes of the requests that ended in between.
    pub(super) span_bytes: u64,
}

/// What became of requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) throttled: u64,
    pub(super) failed: u64,
    /// Seconds to the first byte, and to the last one, of those that ended well: no more than fit.
    pub(super) times: Vec<(f64, f64)>,
}

/// The span of whole requests says something, if it is so much of the slice.
const SPAN_SHARE: f64 = 0.3;
/// The most that the kernel gathers, and the longest that it does so, before it tells.
const LUMP_BYTES: usize = 1 << 20;
const LUMP_S: f64 = 0.1;
/// With so many lumps the one that is half gathered does not count for more than 3 %: 0.41 / 14.
const LUMPS: f64 = 14.0;

impl Reading {
    /// Bytes per second: of what was seen to arrive, if that was enough for half gathered lumps not to count; else of whole requests,
    /// which leaves out the slow one at the end now and then.
    fn goodput(&self) -> f64 {
        if self.seconds <= 0.0 || self.lanes.is_empty() {
            return 0.0;
        }
        let (lanes, seen) =
            (self.connections.max(1) as f64, self.lanes.iter().map(|lane| lane.bytes as f64).sum::<f64>());
        let lump = (LUMP_S * seen / self.seconds / lanes).min(LUMP_BYTES.min(self.request_bytes) as f64);
        if seen > LUMPS * lump * lanes.sqrt() {
            return seen / self.seconds;
        }
        let rate = |lane: &LaneReading| match lane.span_s > SPAN_SHARE * self.seconds {
            true => lane.span_bytes as f64 / lane.span_s,
            false => lane.bytes as f64 / self.seconds,
        };
        self.lanes.iter().map(rate).sum()
    }

    pub(super) fn point(&self) -> Point {
        let mut firsts: Vec<f64> = self.tally.times.iter().map(|(first, _)| *first).collect();
        let mut wholes: Vec<f64> = self.tally.times.iter().map(|(_, whole)| *whole).collect();
        Point {
            connections: self.connections,
            request_bytes: self.request_bytes,
            goodput_bytes_s: self.goodput(),
            seconds: self.seconds,
            requests: self.tally.requests,
            throttled: self.tally.throttled,
            failed: self.tally.failed,
            first_byte: Spread::of(&mut firsts),
            request_p50_s: Spread::of(&mut wholes).map(|spread| spread.p50_s),
            busy: self.busy,
        }
    }

    pub(super) fn steady(&self) -> Steady {
        let third = self.windows.len().div_ceil(3);
        Steady {
            connections: self.connections,
            request_bytes: self.request_bytes,
            goodput_bytes_s: self.goodput(),
            spread_bytes_s: mean_and_deviation(&self.windows).1,
            first_third_bytes_s: mean_and_deviation(&self.windows[..third]).0,
            last_third_bytes_s: mean_and_deviation(&self.windows[self.windows.len() - third..]).0,
            seconds: self.seconds,
            window_s: self.seconds / self.windows.len().max(1) as f64,
            requests: self.tally.requests,
            throttled: self.tally.throttled,
            failed: self.tally.failed,
            busy: self.busy,
        }
    }
}

/// Mean rate of all parts, and the standard deviation of the parts' own.
fn mean_and_deviation(parts: &[(f64, u64)]) -> (f64, f64) {
    let seconds: f64 = parts.iter().map(|(seconds, _)| seconds).sum();
    if seconds <= 0.0 {
        return (0.0, 0.0);
    }
    let mean = parts.iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / seconds;
    let apart = |(seconds, bytes): &(f64, u64)| (*bytes as f64 / seconds.max(1e-9) - mean).powi(2);
    let freedoms = parts.len().saturating_sub(1).max(1) as f64;
    (mean, (parts.iter().map(apart).sum::<f64>() / freedoms).sqrt())
}

/// The round trip: the shortest handshake, unless the first answer on a fresh connection shows that it was shaken with somebody nearer.
pub(super) fn rtt_s(connects: &Connects, first_byte: &Spread) -> f64 {
    let tcp = connects.tcp.min_s;
    // Of the middle ones: a handshake that we hear of late hides a part of the shortest.
    let later = connects.first_byte.map_or(0.0, |fresh| fresh.p50_s - first_byte.p50_s);
    // A server's first answer on a connection may take a little longer for reasons of its own.
    if later > 3.0 * tcp + 1e-3 { later } else { tcp }
}

/// The highest goodput.
pub(super) fn best(grid: &[Point]) -> Option<Depth> {
    grid.iter().map(Point::depth).max_by(|a, b| a.goodput_bytes_s.total_cmp(&b.goodput_bytes_s))
}

/// The fewest connections, and of those the smallest requests, that are as good as the best.
pub(super) fn knee(grid: &[Point]) -> Option<Depth> {
    let enough = AS_GOOD * best(grid)?.goodput_bytes_s;
    let good = grid.iter().filter(|point| point.goodput_bytes_s >= enough);
    good.map(Point::depth).min_by_key(|depth| (depth.connections, depth.request_bytes))
}

/// Where goodput is held for longer: a doubling beyond the knee, so that a lucky slice does not decide; the knee where that was not
/// measured, or was worse.
pub(super) fn beyond(grid: &[Point], knee: Depth) -> Depth {
    let further = grid.iter().filter(|point| {
        let refused = point.throttled as f64 > REFUSED * point.requests as f64;
        point.request_bytes == knee.request_bytes && point.connections > knee.connections && !refused
    });
    let next = further.map(Point::depth).min_by_key(|depth| depth.connections);
    next.filter(|next| next.goodput_bytes_s >= AS_GOOD * knee.goodput_bytes_s).unwrap_or(knee)
}

/// What one connection carries, by its largest requests.
pub(super) fn one_connection(grid: &[Point], rtt_s: Option<f64>) -> Option<OneConnection> {
    let alone = grid.iter().filter(|point| point.connections == 1 && point.requests > 0);
    let alone = alone.max_by_key(|point| point.request_bytes)?;
    let body_s = alone.request_p50_s? - alone.first_byte?.p50_s;
    let body_bytes_s = alone.request_bytes as f64 / body_s.max(1e-6);
    // What comes while the request is on its way cannot be more than what comes in all.
    let body_bytes_s = body_bytes_s.max(alone.goodput_bytes_s);
    Some(OneConnection {
        goodput_bytes_s: alone.goodput_bytes_s,
        body_bytes_s,
        window_bytes: rtt_s.map(|rtt| body_bytes_s * rtt),
        capped: best(grid)?.goodput_bytes_s > CAPPED * body_bytes_s,
    })
}

/// What holds goodput where it is.
pub(super) fn limit(grid: &[Point], ended: Ended, steady: &Steady) -> Limit {
    let Some(best) = best(grid) else { return Limit::Link };
    let (throttled, requests) = refusals(grid, steady);
    let busy = grid.iter().filter(|point| point.depth() == best).map(|point| point.busy).fold(steady.busy, f64::max);
    // The last doubling still paid, and not only in comparison with requests of the same size.
    let fewer = grid.iter().filter(|point| point.connections < best.connections).map(|point| point.goodput_bytes_s);
    let further = |point: &&Point| point.request_bytes == best.request_bytes && point.connections > best.connections;
    let rises =
        fewer.fold(0.0, f64::max) * super::ladder::WORTH < best.goodput_bytes_s && !grid.iter().any(|p| further(&p));
    if throttled as f64 > REFUSED * requests as f64 {
        Limit::Throttling
    } else if busy >= BUSY {
        Limit::Machine
    } else if rises && ended != Ended::Flat {
        Limit::Connections
    } else {
        Limit::Link
    }
}

/// Requests that were refused, and all.
pub(super) fn refusals(grid: &[Point], steady: &Steady) -> (u64, u64) {
    let held = (steady.throttled, steady.requests);
    grid.iter().fold(held, |(throttled, requests), point| (throttled + point.throttled, requests + point.requests))
}

/// What looks like throttling, or would make the figures doubtful.
pub(super) fn signs(report: &ProbeReport) -> Vec<Sign> {
    let mut signs = Vec::new();
    let (throttled, requests) = refusals(&report.grid, &report.steady);
    let failed = report.grid.iter().map(|point| point.failed).sum::<u64>() + report.steady.failed;
    if throttled > 0 {
        signs.push(Sign::Refused { throttled, requests });
    }
    if failed > 0 {
        signs.push(Sign::Failed { failed, requests });
    }
    signs.extend(falls(&report.grid));
    signs.extend(queues(&report.grid, &report.first_byte, report.knee));
    let Steady { goodput_bytes_s, spread_bytes_s, first_third_bytes_s, last_third_bytes_s, .. } = report.steady;
    if last_third_bytes_s < 0.8 * first_third_bytes_s {
        signs.push(Sign::Fades { from_bytes_s: first_third_bytes_s, to_bytes_s: last_third_bytes_s });
    } else if spread_bytes_s > 0.2 * goodput_bytes_s {
        signs.push(Sign::Uneven { share: spread_bytes_s / goodput_bytes_s.max(1.0) });
    }
    if goodput_bytes_s < HELD_LESS * report.best.goodput_bytes_s {
        let best_bytes_s = report.best.goodput_bytes_s;
        signs.push(Sign::HeldLess { best_bytes_s, held_bytes_s: goodput_bytes_s });
    }
    let times = report.bytes as f64 / report.object_bytes.max(1) as f64;
    if times > 1.0 {
        signs.push(Sign::Reread { times });
    }
    if let Some(connects) = &report.connect
        && report.first_byte.min_s > 10.0 * connects.tcp.min_s + 1e-3
    {
        signs.push(Sign::Nearer { tcp_s: connects.tcp.min_s, first_byte_s: report.first_byte.min_s });
    }
    signs
}

/// The size of request whose goodput falls the most beyond its best, if it falls by more than one slice differs from another.
fn falls(grid: &[Point]) -> Option<Sign> {
    let drop = |to: &Point| {
        let fewer = grid.iter().filter(|p| p.request_bytes == to.request_bytes && p.connections < to.connections);
        let from = fewer.max_by(|a, b| a.goodput_bytes_s.total_cmp(&b.goodput_bytes_s))?;
        (to.goodput_bytes_s < FALLS * from.goodput_bytes_s).then(|| (from.depth(), to.depth()))
    };
    let share = |(from, to): &(Depth, Depth)| to.goodput_bytes_s / from.goodput_bytes_s;
    let most = grid.iter().filter_map(drop).min_by(|a, b| share(a).total_cmp(&share(b)));
    most.map(|(from, to)| Sign::Falls { from, to })
}

/// The point up to a doubling beyond the knee's connections whose first bytes are the latest, if they make up most of a request and come
/// far later than alone. Further on the link's own queue is to be expected.
fn queues(grid: &[Point], alone: &Spread, knee: Depth) -> Option<Sign> {
    let late = |point: &&Point| {
        let (Some(first), Some(whole)) = (point.first_byte, point.request_p50_s) else { return false };
        first.p50_s > 3.0 * alone.p50_s + 0.01 && first.p50_s > 0.5 * whole && point.in_reach_of(knee)
    };
    let first = |point: &Point| point.first_byte.map_or(0.0, |first| first.p50_s);
    let latest = grid.iter().filter(late).max_by(|a, b| first(a).total_cmp(&first(b)))?;
    Some(Sign::Queues { connections: latest.connections, first_byte_s: first(latest), alone_s: alone.p50_s })
}

impl Point {
    fn in_reach_of(&self, knee: Depth) -> bool {
        self.connections <= 2 * knee.connections
    }
}

/// The most that any loader has in flight.
const REQUESTS_MAX: usize = 256;

/// What a loader should be allowed to have in flight for `need` bytes per second, or for as much as there is: twice what the smallest
/// point that brought it took, since a loader's requests are not all alike and the next day's link is not this one. `None` where no
/// point with requests of the loader's size brought it.
pub(super) fn suggestion(report: &ProbeReport, need: Option<f64>) -> Option<InFlight> {
    let most = AS_GOOD * report.best.goodput_bytes_s;
    let wanted = need.map_or(most, |need| (1.05 * need).min(most));
    let bytes = report.loader_request_bytes;
    let enough = report.grid.iter().filter(|p| p.request_bytes == bytes && p.goodput_bytes_s >= wanted);
    let connections = enough.map(|point| point.connections).min()?;
    let requests = (2 * connections).min(REQUESTS_MAX);
    Some(InFlight { requests, bytes: requests as u64 * bytes as u64 })
}

#[cfg(test)]
mod tests;
