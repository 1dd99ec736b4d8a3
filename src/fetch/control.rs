//! How many bytes and requests to have in flight, following the link: pure, it is told the time.
//!
//! Goodput says whether more in flight brings more, the time to the first byte whether a queue stands on the way:
//!
//! - **Calm**, no first byte is late: the link has room; what limits are losses, or what the server gives one connection. More in
//!   flight is more connections. An increase is kept for a small gain, or as long as goodput lies below what it was of late.
//! - **A queue**: the link is full. What it then wants is a few times goodput × shortest time to the first byte. Up to that, depth
//!   grows without a question, and not beyond. What is beyond it is given back in steps, unless goodput falls with it. The addend in
//!   that sum lets clients that share a link come to even shares.
//! - **Crowded**, a full link that once gave twice as much: others have come, who may have seen no queue because ours was there before
//!   them. Depth grows for as long as that brings goodput, to an even share of two.
//! - **Between**, which is also what a client sees that came to a full link: an increase is kept if half of it arrives as goodput.
//!   Of a link that is shared that holds up to half of it.
//!
//! Whatever the link seems to want, no more is in flight than arrives within seconds: clients of one link who all come to that have even
//! shares of it.
//!
//! A trial is an increase or decrease, one window of time in which it takes effect, and one in which it is measured. Windows in which
//! something else held reads back (pages, the consumer, a rate that was asked for) count for nothing: depth stays as it is.
//!
//! Requests have a bound of their own: the most that is allowed, until the store asks for less. It then falls to four fifths of what
//! was in flight, comes back to that within ten seconds, and goes slowly beyond.

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::Duration;

/// Less in flight than this hides no latency worth hiding: 4 × 130 MB/s × 15 ms.
pub const BYTES_MIN: u64 = 8 << 20;

/// A full link wants so many times goodput × (shortest time to the first byte), and so many bytes more.
const GAIN: f64 = 3.0;
const ADDEND: f64 = (16 << 20) as f64;
/// A window in which goodput has changed by more than this, beyond what a trial may explain: it is another link.
const UPHEAVAL: f64 = 1.5;
/// How far beyond its shortest the middle time to the first byte is when a queue stands, and the longer ones when all is calm.
const QUEUED: (f64, f64) = (1.5, 0.002);
const CALM: (f64, f64) = (1.1, 0.001);
/// What the depth is multiplied by in a trial: at the start, where goodput was better before, later on, and to give back.
const LEAP: f64 = 2.0;
const STRIDE: f64 = 1.5;
const STEP_UP: f64 = 1.25;
const STEP_DOWN: f64 = 0.9;
/// The least part of an increase (of its logarithm) that has to arrive as goodput: 11 % for a doubling of what a calm link carries, or
/// of a small share, and else 41 %.
const WORTH_CALM: f64 = 0.15;
const WORTH: f64 = 0.5;
/// The most of a decrease that goodput may follow: 4 % for a tenth.
const HARMLESS: f64 = 0.4;
/// Goodput below this part of the best one of late, on a calm link: there is more to have.
const LACKING: f64 = 0.93;
/// How long goodput counts as of late, to twice as long.
const LATE_S: f64 = 15.0;
/// How long the shortest time to the first byte and the highest goodput are believed, to twice as long: routes change.
const BELIEVED_S: f64 = 300.0;
/// Goodput below this part of the highest while a queue stands: others have come.
const CROWDED: f64 = 0.5;
/// No more in flight than arrives within so many seconds, and the addend.
const IN_FLIGHT_S: f64 = 4.0;
/// A window in which the depth did not hold reads back for this part of the time says nothing.
const HELD_SHARE: f64 = 0.8;
/// Windows last a few times to the first byte, or some requests' time.
const WINDOW_MIN_S: f64 = 0.05;
const WINDOW_MAX_S: f64 = 2.0;
/// After so long without a window that counted, what was measured before is forgotten.
const STALE_S: f64 = 5.0;
/// How long after a trial that failed the next one may begin: it doubles.
const PAUSE_S: f64 = 1.0;
const PAUSE_UP_MAX_S: f64 = 8.0;
const PAUSE_DOWN_MAX_S: f64 = 60.0;
/// What is left of the requests in flight when the store asks for less, and how long until they are back.
const LEFT_AFTER_THROTTLE: f64 = 0.8;
/// How long requests take to come back after the store asked for less.
const RECOVERY: Duration = Duration::from_secs(10);
/// Time-outs are a sign of overload if within a second there are more than this part of what is in flight; fewer are bad luck.
const TIMED_OUT_SHARE: f64 = 0.05;
/// What the latest read counts for in the time to the first byte of late.
const RECENT_SHARE: f64 = 1.0 / 8.0;
/// Samples kept of a window.
const SAMPLES_MAX: usize = 64;
/// Fewer first bytes than this have no middle.
const SAMPLES_MIN: usize = 3;

/// Between what the controller moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes in flight to begin with.
    pub bytes: u64,
    /// The most bytes.
    pub bytes_max: u64,
    /// The most requests.
    pub requests_max: usize,
}

/// What keeps the next read from being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldBy {
    /// The bound on bytes in flight.
    Bytes,
    /// The bound on requests in flight.
    Requests,
    /// Nothing that the controller moves: pages, the consumer, a rate that was asked for, or there is nothing to read.
    Other,
}

/// What the controller has found out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learnt {
    /// Bytes per second in the last window that counted; 0 before there was one.
    pub goodput: f64,
    /// The shortest time from asking to the first byte, but for one in ten; zero before there was one.
    pub first_byte: Duration,
}

/// Decides how much may be in flight.
#[derive(Debug)]
pub struct Controller {
    bounds: Bounds,
    bytes: f64,
    starting: bool,
    trial: Option<Trial>,
    /// Goodput at the present depth.
    base: Option<f64>,
    best: Extreme,
    highest: Extreme,
    crowded: bool,
    window: Window,
    latency: Latency,
    up: Pause,
    down: Pause,
    throttle: Option<Throttle>,
    /// When the second began in which time-outs are counted, and how many there were.
    timed_out: (f64, f64),
    goodput: f64,
    /// When a window last counted.
    counted_at: f64,
}

/// A change of depth that is being looked at.
#[derive(Clone, Copy, Debug)]
struct Trial {
    from: f64,
    factor: f64,
    /// Goodput before.
    base: f64,
    /// Windows over so far: in the first the change takes effect.
    windows: u32,
    /// The least part of an increase that has to arrive as goodput.
    worth: f64,
}

/// What is seen in a stretch of time.
#[derive(Debug)]
struct Window {
    /// `None` before the first one.
    began: Option<f64>,
    landed: u64,
    /// Seconds in which reads were held back by the bound on bytes, on requests, and by anything else.
    held_s: [f64; 3],
    hungry: bool,
    held: HeldBy,
    turned: f64,
    first_bytes: Vec<f64>,
    tooks: Vec<f64>,
}

/// Times of requests, in seconds.
#[derive(Debug)]
struct Latency {
    /// The middle time to the first byte in the last window.
    first_byte: f64,
    /// Most of them were no longer than this.
    first_byte_high: f64,
    /// The same, a mean in which each read counts for less than the next.
    recent: f64,
    shortest: Extreme,
    /// The middle time of whole requests.
    took: f64,
}

/// When something may be tried again.
#[derive(Debug)]
struct Pause {
    until: f64,
    next_s: f64,
    most_s: f64,
}

/// When the store last asked for less, and how many requests were in flight then.
#[derive(Clone, Copy, Debug)]
struct Throttle {
    at: f64,
    in_flight: f64,
}

/// The largest value of the last one to two spans of time.
#[derive(Debug)]
struct Extreme {
    span_s: f64,
    since: f64,
    now: Option<f64>,
    before: Option<f64>,
}

impl Controller {
    /// At its start.
    pub fn new(bounds: Bounds) -> Self {
        Controller {
            bounds,
            bytes: bounds.bytes.min(bounds.bytes_max) as f64,
            starting: true,
            trial: None,
            base: None,
            best: Extreme::over(LATE_S),
            highest: Extreme::over(BELIEVED_S),
            crowded: false,
            window: Window::new(),
            latency: Latency {
                first_byte: 0.0,
                first_byte_high: 0.0,
                recent: 0.0,
                shortest: Extreme::over(BELIEVED_S),
                took: 0.0,
            },
            up: Pause { until: 0.0, next_s: PAUSE_S, most_s: PAUSE_UP_MAX_S },
            down: Pause { until: 0.0, next_s: PAUSE_S, most_s: PAUSE_DOWN_MAX_S },
            throttle: None,
            timed_out: (0.0, 0.0),
            goodput: 0.0,
            counted_at: 0.0,
        }
    }

    /// The most bytes that may be in flight now.
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Begins from at least so many bytes: what the first batch needs at once.
    pub fn begin_with(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes as f64).min(self.bounds.bytes_max as f64);
    }

    /// The most requests that may be in flight now.
    pub fn requests(&self, now: Duration) -> usize {
        let most = self.bounds.requests_max;
        let Some(throttle) = self.throttle else { return most };
        // A cubic through what was too much: most of the way back quickly, then flat, then faster again.
        let turns = (now.as_secs_f64() - throttle.at) / RECOVERY.as_secs_f64() - 1.0;
        let share = 1.0 + (1.0 - LEFT_AFTER_THROTTLE) * turns.powi(3);
        ((throttle.in_flight * share) as usize).clamp(1, most)
    }

    /// What was found out so far.
    pub fn learnt(&self) -> Learnt {
        let shortest = self.latency.shortest();
        Learnt { goodput: self.goodput, first_byte: Duration::from_secs_f64(shortest.unwrap_or_default()) }
    }

    /// Whether the link, whose depth was found, could carry more just now: over the last few reads no first byte was late.
    pub fn has_room(&self) -> bool {
        !self.starting && !self.latency.is_late(self.latency.recent)
    }

    /// A read has landed: how long its first byte took, and the whole of it.
    pub fn landed(&mut self, first_byte: Option<Duration>, took: Duration) {
        if let Some(first_byte) = first_byte {
            self.latency.recent += (first_byte.as_secs_f64() - self.latency.recent) * RECENT_SHARE;
        }
        let samples = [(&mut self.window.first_bytes, first_byte), (&mut self.window.tooks, Some(took))];
        for (samples, time) in samples {
            if let Some(time) = time.filter(|_| samples.len() < SAMPLES_MAX) {
                samples.push(time.as_secs_f64());
            }
        }
    }

    /// The store asked for less while so many requests were in flight.
    pub fn throttled(&mut self, now: Duration, in_flight: usize) {
        let now = now.as_secs_f64();
        // What was sent before the last decrease may still be refused.
        let settled = |last: Throttle| now - last.at >= (2.0 * self.latency.took).clamp(0.2, WINDOW_MAX_S);
        if self.throttle.is_none_or(settled) {
            self.throttle = Some(Throttle { at: now, in_flight: in_flight as f64 });
        }
    }

    /// Requests got no answer in time while so many were in flight.
    pub fn timed_out(&mut self, now: Duration, requests: usize, in_flight: usize) {
        let seconds = now.as_secs_f64();
        if seconds - self.timed_out.0 > 1.0 {
            self.timed_out = (seconds, 0.0);
        }
        self.timed_out.1 += requests as f64;
        if self.timed_out.1 > 1.0 && self.timed_out.1 > TIMED_OUT_SHARE * in_flight as f64 {
            self.timed_out.1 = 0.0;
            self.throttled(now, in_flight);
        }
    }

    /// From now on reads are held back by this.
    pub fn turn(&mut self, now: Duration, held: HeldBy) {
        self.window.turn(now.as_secs_f64(), held);
    }

    /// When [`Controller::measure`] has something to do; before, it is free to call.
    pub fn due(&self) -> Duration {
        self.window.began.map_or(Duration::ZERO, |began| Duration::from_secs_f64(began + self.window_s()))
    }

    /// Looks at what has landed so far, in bytes over the whole run, and changes the depth if that is called for. `hungry` tells whether
    /// the consumer has waited of late.
    pub fn measure(&mut self, now: Duration, landed: u64, hungry: bool) {
        let seconds = now.as_secs_f64();
        let Some(began) = self.window.began else { return self.window.restart(seconds, landed) };
        self.window.hungry |= hungry;
        let lasted = seconds - began;
        let telling = self.window.first_bytes.len() >= SAMPLES_MIN || lasted >= WINDOW_MAX_S;
        if lasted < self.window_s() || !telling {
            return;
        }
        self.window.turn(seconds, self.window.held);
        self.latency.note(seconds, &mut self.window);
        let goodput = landed.saturating_sub(self.window.landed) as f64 / lasted;
        let counts = self.window.counts();
        self.window.restart(seconds, landed);
        if let Some(by) = counts {
            self.step(seconds, goodput, by);
        }
    }

    /// How long the present window is to be.
    fn window_s(&self) -> f64 {
        let taking_effect = self.trial.is_some_and(|trial| trial.windows == 0);
        let Latency { first_byte, took, .. } = self.latency;
        let seconds = match (self.starting, taking_effect) {
            (true, true) if self.is_quick(self.wanted(self.goodput)) => first_byte,
            (true, false) if self.is_quick(self.wanted(self.goodput)) => 2.0 * first_byte,
            (true, _) | (_, true) => took.max(3.0 * first_byte),
            (false, false) => 2.0 * took.max(3.0 * first_byte),
        };
        seconds.clamp(WINDOW_MIN_S, WINDOW_MAX_S)
    }

    /// A window is over in which one of the bounds held reads back.
    fn step(&mut self, now: f64, goodput: f64, by: HeldBy) {
        if now - self.counted_at > STALE_S {
            (self.trial, self.base) = (None, None);
        }
        (self.goodput, self.counted_at) = (goodput, now);
        self.best.note(now, goodput);
        self.highest.note(now, goodput);
        match self.trial.take() {
            Some(trial) => self.judge(now, goodput, Trial { windows: trial.windows + 1, ..trial }, by),
            None => self.decide(now, goodput, by),
        }
    }

    /// Begins a trial if there is a reason for one.
    fn decide(&mut self, now: f64, goodput: f64, by: HeldBy) {
        let base = match self.base {
            Some(base) if !self.starting && !is_upheaval(goodput / base) => base + 0.3 * (goodput - base),
            _ => goodput,
        };
        self.base = Some(base);
        let (queued, wanted, most) = (self.latency.is_queued(), self.wanted(base), self.most(base));
        self.look_around(now, base);
        if !self.starting && self.bytes > 1.02 * most {
            // Not a trial: what it costs the others win, or it was asked for far too early.
            self.bytes = most.max(STEP_DOWN * self.bytes);
            return;
        }
        let top = if queued && !self.crowded { wanted.min(most) } else { most };
        // Where requests are at their bound, more bytes could not be asked for.
        if self.bytes < 0.98 * top && by == HeldBy::Bytes {
            let lacking = self.latency.is_calm() && self.falls_short(base);
            if self.starting || lacking || now >= self.up.until {
                let leap = match (self.starting && self.is_quick(wanted), lacking || self.crowded) {
                    (true, _) => LEAP,
                    (false, true) => STRIDE,
                    (false, false) => STEP_UP,
                };
                return self.attempt(base, leap.min(top / self.bytes));
            }
        } else if self.starting {
            self.settle(now);
        }
        if queued && self.bytes > 1.02 * wanted && now >= self.down.until {
            self.attempt(base, STEP_DOWN.max(wanted / self.bytes));
        }
    }

    fn attempt(&mut self, base: f64, factor: f64) {
        let worth = if self.latency.is_calm() || self.crowded { WORTH_CALM } else { WORTH };
        self.trial = Some(Trial { from: self.bytes, factor, base, windows: 0, worth });
        self.bytes = (self.bytes * factor).min(self.bounds.bytes_max as f64);
    }

    fn judge(&mut self, now: f64, goodput: f64, trial: Trial, by: HeldBy) {
        let up = trial.factor > 1.0;
        if !up && is_upheaval(goodput / trial.base) {
            (self.bytes, self.base) = (trial.from, None);
            return self.decide(now, goodput, by);
        }
        // 1: goodput went with the depth. 0: it did not care.
        let followed = (goodput / trial.base).ln() / trial.factor.ln();
        let harms = !up && followed >= WORTH;
        if trial.windows == 1 && !harms {
            self.trial = Some(trial);
            return;
        }
        let keep = if up {
            let lacking = self.latency.is_calm() && self.falls_short(goodput);
            let wanted = self.bytes <= 1.02 * self.wanted(goodput) && followed > -WORTH_CALM;
            // Base is a mean from before goodput fell, and while it did: what brought it back has won more than it seems.
            let restored = self.falls_short(trial.base) && !self.falls_short(goodput);
            followed >= trial.worth || lacking || wanted || restored
        } else {
            followed < HARMLESS
        };
        if keep {
            self.base = Some(goodput);
            if !up && self.crowded {
                // Others would have taken it: the link itself has become slower.
                self.highest = Extreme::over(BELIEVED_S);
            }
            let pause = if up { &mut self.up } else { &mut self.down };
            pause.end(now);
            return self.decide(now, goodput, by);
        }
        // Connections may still be getting faster: at the start, one more look.
        if up && self.starting && trial.windows == 2 {
            self.trial = Some(trial);
            return;
        }
        let pause = if up { &mut self.up } else { &mut self.down };
        pause.lengthen(now);
        if self.starting {
            // Depth is given back in steps from here: were it halved, what is in flight would be the slow half, and nothing would be
            // asked for until that has landed.
            self.base = Some(goodput);
            return self.settle(now);
        }
        (self.bytes, self.base) = (trial.from, Some(trial.base));
    }

    fn settle(&mut self, now: f64) {
        self.starting = false;
        (self.up.until, self.down.until) = (now + PAUSE_S, now);
    }

    /// Whether depth may grow in leaps, looked at only briefly: nobody else is hurt by that.
    fn is_quick(&self, wanted: f64) -> bool {
        self.latency.is_calm() || self.bytes <= wanted
    }

    /// Notices when others come, or go.
    fn look_around(&mut self, now: f64, goodput: f64) {
        let crowded =
            self.latency.is_queued() && self.highest.largest().is_some_and(|highest| goodput < CROWDED * highest);
        if crowded && !self.crowded {
            // What failed before they came says nothing now.
            self.up.end(now);
        }
        self.crowded = crowded;
    }

    /// The most to have in flight at this goodput, whatever the link.
    fn most(&self, goodput: f64) -> f64 {
        (IN_FLIGHT_S * goodput + ADDEND).min(self.bounds.bytes_max as f64)
    }

    /// What a full link of this goodput wants in flight.
    fn wanted(&self, goodput: f64) -> f64 {
        GAIN * goodput * self.latency.shortest().unwrap_or_default() + ADDEND
    }

    fn falls_short(&self, goodput: f64) -> bool {
        self.best.largest().is_some_and(|best| goodput < LACKING * best)
    }
}

impl Window {
    fn new() -> Self {
        Window {
            began: None,
            landed: 0,
            held_s: [0.0; 3],
            hungry: false,
            held: HeldBy::Other,
            turned: 0.0,
            first_bytes: Vec::with_capacity(SAMPLES_MAX),
            tooks: Vec::with_capacity(SAMPLES_MAX),
        }
    }

    fn restart(&mut self, now: f64, landed: u64) {
        (self.began, self.landed, self.turned) = (Some(now), landed, now);
        (self.held_s, self.hungry) = ([0.0; 3], false);
        self.first_bytes.clear();
        self.tooks.clear();
    }

    fn turn(&mut self, now: f64, held: HeldBy) {
        self.held_s[self.held as usize] += (now - self.turned).max(0.0);
        (self.held, self.turned) = (held, now);
    }

    /// What held reads back, if it was the depth for most of the time, and for a consumer that wanted more.
    fn counts(&self) -> Option<HeldBy> {
        let [bytes, requests, other] = self.held_s;
        let by = if requests > bytes { HeldBy::Requests } else { HeldBy::Bytes };
        (self.hungry && bytes + requests >= HELD_SHARE * (bytes + requests + other)).then_some(by)
    }
}

impl Latency {
    fn note(&mut self, now: f64, window: &mut Window) {
        if window.first_bytes.len() >= SAMPLES_MIN
            && let Some(middle) = middle(&mut window.first_bytes)
        {
            self.first_byte = middle;
            let sorted = &window.first_bytes;
            self.first_byte_high = sorted[sorted.len() * 2 / 3];
            // The largest of the negatives is the shortest. One in ten may be shorter: a first byte that came too early to be true.
            self.shortest.note(now, -sorted[sorted.len() / 10]);
        }
        if let Some(middle) = middle(&mut window.tooks) {
            self.took = middle;
        }
    }

    fn shortest(&self) -> Option<f64> {
        self.shortest.largest().map(|negative| -negative)
    }

    fn is_calm(&self) -> bool {
        self.shortest().is_some_and(|shortest| self.first_byte_high <= CALM.0 * shortest + CALM.1)
    }

    fn is_queued(&self) -> bool {
        self.is_late(self.first_byte)
    }

    fn is_late(&self, first_byte: f64) -> bool {
        self.shortest().is_some_and(|shortest| first_byte > QUEUED.0 * shortest + QUEUED.1)
    }
}

impl Pause {
    fn end(&mut self, now: f64) {
        (self.until, self.next_s) = (now, PAUSE_S);
    }

    fn lengthen(&mut self, now: f64) {
        self.next_s = (2.0 * self.next_s).min(self.most_s);
        self.until = now + self.next_s;
    }
}

impl Extreme {
    fn over(span_s: f64) -> Self {
        Extreme { span_s, since: 0.0, now: None, before: None }
    }

    fn note(&mut self, now: f64, value: f64) {
        if now - self.since > self.span_s {
            (self.since, self.before, self.now) = (now, self.now, None);
        }
        self.now = Some(self.now.map_or(value, |largest| largest.max(value)));
    }

    fn largest(&self) -> Option<f64> {
        let both = [self.now, self.before].into_iter().flatten();
        both.reduce(f64::max)
    }
}

fn is_upheaval(ratio: f64) -> bool {
    !(1.0 / UPHEAVAL..=UPHEAVAL).contains(&ratio)
}

fn middle(samples: &mut [f64]) -> Option<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
