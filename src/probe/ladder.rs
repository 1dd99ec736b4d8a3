//! Which point of the grid is measured next, and for how long. Pure.
//!
//! Connections double from level to level; at each level the sizes of request take turns, so that when time or bytes run out every size
//! has got equally far, and slow changes of the link do not favour one of them.

use super::report::Ended;

/// A doubling that brings less than this has brought nothing.
pub(super) const WORTH: f64 = 1.05;
/// After so many doublings that brought nothing, a size is done.
const FLAT_MAX: u32 = 2;
/// Less than this share of the best so far, and a point is measured again.
const FALLEN: f64 = 0.9;
/// A point whose requests would take longer than this to go round is left out: it is far beyond the knee, and cannot be ended quickly.
const ROUND_S: f64 = 1.0;

/// The points still to come.
#[derive(Clone, Debug)]
pub(super) struct Ladder {
    rungs: Vec<Rung>,
    connections: usize,
    connections_max: usize,
    memory_bytes: usize,
    /// The first rung that has not had its turn at this level.
    turn: usize,
}

/// A size of request.
#[derive(Clone, Debug)]
struct Rung {
    request_bytes: usize,
    best: f64,
    flat: u32,
}

impl Ladder {
    /// For requests of `sizes` bytes, smallest first.
    pub(super) fn new(sizes: &[usize], connections_max: usize, memory_bytes: usize) -> Self {
        let rungs = sizes.iter().map(|bytes| Rung { request_bytes: *bytes, best: 0.0, flat: 0 }).collect();
        Ladder { rungs, connections: 1, connections_max: connections_max.max(1), memory_bytes, turn: 0 }
    }

    /// Connections and bytes per request to measure next; `None` at the end. Asked again before [`Ladder::note`] it says the same.
    pub(super) fn next(&mut self) -> Option<(usize, usize)> {
        loop {
            while self.turn < self.rungs.len() {
                if self.is_due(&self.rungs[self.turn], self.connections) {
                    return Some((self.connections, self.rungs[self.turn].request_bytes));
                }
                self.turn += 1;
            }
            if self.connections >= self.connections_max || self.rungs.iter().all(Rung::is_flat) {
                return None;
            }
            self.connections = (2 * self.connections).min(self.connections_max);
            self.turn = 0;
        }
    }

    /// What the point that [`Ladder::next`] gave brought, in bytes per second; and whether the store refused many of its requests, of
    /// which more connections would only bring more.
    pub(super) fn note(&mut self, goodput: f64, refused: bool) {
        if let Some(rung) = self.rungs.get_mut(self.turn) {
            let rose = goodput > rung.best * WORTH && !refused;
            rung.flat = if rose { 0 } else { rung.flat + 1 };
            rung.best = rung.best.max(goodput);
            self.turn += 1;
        }
    }

    /// Whether the point that [`Ladder::next`] gave brought less than fewer connections did: a hiccup, if measuring it again brings more.
    pub(super) fn has_fallen(&self, goodput: f64) -> bool {
        self.rungs.get(self.turn).is_some_and(|rung| goodput < FALLEN * rung.best)
    }

    /// The most points that may still come.
    pub(super) fn left(&self) -> usize {
        let levels = |rung: usize| {
            let (mut connections, mut count) = (self.connections, usize::from(rung >= self.turn));
            while connections < self.connections_max {
                connections = (2 * connections).min(self.connections_max);
                count += usize::from(self.fits(self.rungs[rung].request_bytes, connections));
            }
            count
        };
        (0..self.rungs.len()).filter(|rung| !self.rungs[*rung].is_flat()).map(levels).sum()
    }

    /// Why there is no next point.
    pub(super) fn ended(&self) -> Ended {
        let rising = || self.rungs.iter().filter(|rung| !rung.is_flat());
        if rising().any(|rung| self.is_due(rung, self.connections)) {
            Ended::Connections
        } else if rising().any(|rung| !self.fits(rung.request_bytes, self.connections)) {
            Ended::Memory
        } else {
            Ended::Flat
        }
    }

    /// The highest goodput so far.
    pub(super) fn best(&self) -> f64 {
        self.rungs.iter().map(|rung| rung.best).fold(0.0, f64::max)
    }

    fn is_due(&self, rung: &Rung, connections: usize) -> bool {
        let round = (connections * rung.request_bytes) as f64 / self.best().max(1.0);
        // Nothing is known before the first point, and the smallest requests are always short enough.
        let is_short = self.best() == 0.0 || round <= ROUND_S || rung.request_bytes == self.rungs[0].request_bytes;
        !rung.is_flat() && is_short && self.fits(rung.request_bytes, connections)
    }

    fn fits(&self, request_bytes: usize, connections: usize) -> bool {
        connections == 1 || connections.saturating_mul(request_bytes) <= self.memory_bytes
    }
}

impl Rung {
    fn is_flat(&self) -> bool {
        self.flat >= FLAT_MAX
    }
}

/// What there is left to spend on the grid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    pub(super) points: usize,
}

/// How long to warm up and to measure, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) warm_s: f64,
    pub(super) measure_s: f64,
    /// Measuring is cut short, to no less than this, when more than `bytes` would arrive in all.
    pub(super) least_s: f64,
    pub(super) bytes: f64,
}

impl Slice {
    /// How long to measure if so many bytes arrived while warming up.
    pub(super) fn measure_s(&self, warm_bytes: u64) -> f64 {
        let rate = warm_bytes as f64 / self.warm_s.max(1e-3);
        ((self.bytes - warm_bytes as f64) / rate.max(1.0)).min(self.measure_s).max(self.least_s)
    }
}

/// The longest slice: more would tell no more.
const MEASURE_S_MAX: f64 = 1.5;

/// A fair share of what is left, or why there is too little left: of time or of bytes. `rate` is the best goodput so far, 0 if none;
/// `first_byte_s` is what a request takes to its first byte, and `round_s` what the requests of the point before need to end.
pub(super) fn slice(left: Left, rate: f64, first_byte_s: f64, round_s: f64) -> Result<Slice, Ended> {
    // A window grows from ten packets to a few megabytes in eight round trips.
    let warm_s = (10.0 * first_byte_s).clamp(0.04, 0.6).max(round_s);
    let least_s = (4.0 * first_byte_s).clamp(0.06, 0.4);
    let points = left.points.max(1) as f64;
    if left.seconds < warm_s + least_s {
        return Err(Ended::Time);
    }
    if (left.bytes as f64) < rate * (warm_s + least_s) || left.bytes == 0 {
        return Err(Ended::Bytes);
    }
    let measure_s = (left.seconds / points - warm_s).clamp(least_s, MEASURE_S_MAX);
    Ok(Slice { warm_s, measure_s, least_s, bytes: left.bytes as f64 / points })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZES: [usize; 3] = [256 << 10, 1 << 20, 8 << 20];

    /// A link of `rate` whose connections carry `cap` each; a request costs `rtt` before its bytes.
    fn goodput(rate: f64, cap: f64, rtt: f64, (connections, bytes): (usize, usize)) -> f64 {
        (connections as f64 * bytes as f64 / (rtt + bytes as f64 / cap)).min(rate)
    }

    fn climb(ladder: &mut Ladder, mut goodput: impl FnMut((usize, usize)) -> f64) -> Vec<(usize, usize)> {
        let mut points = Vec::new();
        while let Some(point) = ladder.next() {
            assert!(points.len() < 100 && ladder.left() > 0);
            assert_eq!(ladder.next(), Some(point), "asking changes nothing");
            points.push(point);
            ladder.note(goodput(point), false);
        }
        points
    }

    #[test]
    fn each_size_stops_when_its_goodput_does() {
        let mut ladder = Ladder::new(&SIZES, 64, 1 << 30);
        let points = climb(&mut ladder, |point| goodput(250e6, 280e6, 0.015, point));
        let most = |bytes: usize| points.iter().filter(|point| point.1 == bytes).map(|point| point.0).max().unwrap();
        // 16, 8 and 2 carry it; two doublings more say so.
        assert_eq!(SIZES.map(most), [64, 32, 8]);
        assert_eq!(ladder.ended(), Ended::Flat);
        assert_eq!(points[0], (1, SIZES[0]));
    }

    #[test]
    fn a_ladder_may_end_before_goodput_does() {
        let mut ladder = Ladder::new(&SIZES, 12, 1 << 30);
        let points = climb(&mut ladder, |point| goodput(10e9, 10e6, 0.015, point));
        assert_eq!((points.last(), ladder.ended()), (Some(&(12, SIZES[2])), Ended::Connections));
        let mut ladder = Ladder::new(&SIZES[2..], 64, 32 << 20);
        let points = climb(&mut ladder, |point| goodput(10e9, 100e6, 0.015, point));
        assert_eq!((points, ladder.ended()), (vec![(1, SIZES[2]), (2, SIZES[2]), (4, SIZES[2])], Ended::Memory));
    }

    #[test]
    fn a_store_that_refuses_is_not_pressed() {
        let mut ladder = Ladder::new(&SIZES, 64, 1 << 30);
        let mut most = 0;
        while let Some((connections, _)) = ladder.next() {
            most = most.max(connections);
            ladder.note(1e6 * connections as f64, connections >= 4);
        }
        assert_eq!((most, ladder.ended()), (8, Ended::Flat));
    }

    #[test]
    fn only_what_brings_less_than_before_has_fallen() {
        let mut ladder = Ladder::new(&SIZES[..1], 8, 1 << 30);
        ladder.next();
        assert!(!ladder.has_fallen(0.0), "nothing was before");
        ladder.note(100.0, false);
        ladder.next();
        assert!(ladder.has_fallen(80.0) && !ladder.has_fallen(95.0));
    }

    #[test]
    fn long_rounds_are_left_out() {
        let mut ladder = Ladder::new(&SIZES, 64, 1 << 30);
        let points = climb(&mut ladder, |point| goodput(5e6, 1e9, 0.015, point));
        assert!(points.iter().all(|(connections, bytes)| *bytes == SIZES[0] || connections * bytes <= 5_000_000));
    }

    #[test]
    fn slices_are_fair_shares() {
        let left = |seconds, bytes, points| Left { seconds, bytes, points };
        let even = slice(left(20.0, 1 << 40, 20), 100e6, 0.015, 0.0).unwrap();
        assert!((even.warm_s - 0.15).abs() < 1e-9 && (even.measure_s - 0.85).abs() < 1e-9);
        assert_eq!(even.measure_s(15_000_000), even.measure_s);
        assert_eq!(slice(left(20.0, 1 << 40, 20), 100e6, 0.015, 0.4).unwrap().warm_s, 0.4);
        // Of 50 MB for this point 40 ms have brought 10; 160 ms more bring the rest.
        let short = slice(left(20.0, 1_000_000_000, 20), 250e6, 0.0, 0.0).unwrap();
        assert!((short.measure_s(10_000_000) - 0.16).abs() < 1e-9);
        assert_eq!(short.measure_s(60_000_000), short.least_s);
        assert_eq!(slice(left(0.1, 1 << 40, 1), 0.0, 0.015, 0.0), Err(Ended::Time));
        assert_eq!(slice(left(20.0, 1_000_000, 1), 1e9, 0.015, 0.0), Err(Ended::Bytes));
        assert!(slice(left(1e6, 1 << 60, 1), 1.0, 0.0, 0.0).unwrap().measure_s <= MEASURE_S_MAX);
    }

    proptest! {
        #[test]
        fn a_ladder_ends_and_keeps_its_limits(
            max in 1usize..300,
            memory in 1usize << 20..1 << 30,
            goodputs in proptest::collection::vec(0.0..1e9f64, 200),
        ) {
            let mut ladder = Ladder::new(&SIZES, max, memory);
            let bound = ladder.left();
            let mut goodputs = goodputs.into_iter();
            let points = climb(&mut ladder, |_| goodputs.next().unwrap());
            prop_assert!(points.len() <= bound);
            prop_assert!(points.iter().all(|(c, b)| *c <= max && (*c == 1 || c * b <= memory)));
            let mut once = points.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(once.len(), points.len());
        }
    }
}
