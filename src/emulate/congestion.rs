//! How many bytes a sender lets be in flight: slow start, growth, and what a loss means. Pure.
//!
//! Sources: slow start and Reno, RFC 5681; CUBIC, RFC 9438; leaving slow start before the buffer is full (HyStart++),
//! RFC 9406; sending during recovery in proportion to what arrives (PRR), RFC 9937; after idleness Linux's
//! `tcp_cwnd_restart`. Windows are in bytes, as numbers with a fraction.

use std::time::Duration;

use super::link::{Link, PACKET};

/// Which of the two controls a server's system uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Congestion {
    /// Linux's default: slow start ends when the delay grows (HyStart++); a loss takes 30 % of the window, which comes
    /// back along a cubic curve of the time since, or as fast as Reno's where that is faster.
    #[default]
    Cubic,
    /// The textbook's: slow start ends with a loss; a loss takes half of the window, a round trip brings back a packet.
    Reno,
}

const MSS: f64 = PACKET as f64;
/// The least that a loss leaves.
const WINDOW_MIN: f64 = 2.0 * MSS;
/// Linux waits this long beyond the round trip before it takes packets for lost, or a connection for idle.
const TIME_OUT_BEYOND_RTT: Duration = Duration::from_millis(200);

/// CUBIC's constants (RFC 9438, section 4.6 and 5): packets per second³, and what a loss leaves.
const C: f64 = 0.4;
const BETA: f64 = 0.7;
/// Growth in packets per round trip that makes CUBIC's share equal Reno's (section 4.3).
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// HyStart++'s constants (RFC 9406, section 4.3).
const RTT_RISE_MIN: Duration = Duration::from_millis(4);
const RTT_RISE_MAX: Duration = Duration::from_millis(16);
const SAMPLES_MIN: usize = 8;
const CAUTIOUS_ROUNDS: u32 = 5;
const CAUTIOUS_DIVISOR: f64 = 4.0;

/// What came back to the sender.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack {
    pub(super) bytes: usize,
    /// Time since they were sent; `None` for what was sent twice.
    pub(super) rtt: Option<Duration>,
    /// What is still on its way.
    pub(super) in_flight: usize,
    /// Whether the window kept bytes back: only then does it grow.
    pub(super) limited: bool,
}

/// One sender's window.
#[derive(Debug)]
pub(super) struct Window {
    congestion: Congestion,
    size: f64,
    threshold: f64,
    /// Bytes sent and acknowledged since the start: they tell rounds, and the end of a recovery.
    sent: u64,
    acknowledged: u64,
    rtt: Option<Duration>,
    recovery: Option<Recovery>,
    start: HyStart,
    cubic: Cubic,
}

/// Proportional rate reduction.
#[derive(Debug)]
struct Recovery {
    /// It is over when everything up to here is acknowledged.
    until: u64,
    in_flight_then: f64,
    delivered: f64,
    sent: f64,
}

/// What HyStart++ has seen of this round and the last.
#[derive(Debug, Default)]
struct HyStart {
    round_ends: u64,
    samples: usize,
    least: Option<Duration>,
    least_before: Option<Duration>,
    /// The least RTT at the time when the delay seemed to grow, and the rounds of cautious growth since.
    cautious: Option<(Duration, u32)>,
}

/// CUBIC's curve; windows in packets.
#[derive(Debug, Default)]
struct Cubic {
    /// Where the window was at the last loss, less where it is giving way to others.
    most: f64,
    /// The window at the last time that the threshold was set.
    prior: f64,
    /// When growth since the last loss began, and how long it takes to `most`.
    epoch: Option<Duration>,
    k: f64,
    /// What Reno's window would be.
    reno: f64,
    /// Since when the sender has had too little to send.
    idle_since: Option<Duration>,
}

impl Window {
    pub(super) fn new(link: &Link) -> Self {
        Window {
            congestion: link.congestion,
            size: link.initial_window.min(link.window_bytes) as f64,
            threshold: f64::INFINITY,
            sent: 0,
            acknowledged: 0,
            rtt: None,
            recovery: None,
            start: HyStart::default(),
            cubic: Cubic::default(),
        }
    }

    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        if let Some(recovery) = &mut self.recovery {
            recovery.sent += bytes as f64;
        }
    }

    pub(super) fn acknowledged(&mut self, link: &Link, ack: Ack, now: Duration) {
        self.acknowledged += ack.bytes as u64;
        if let Some(rtt) = ack.rtt {
            self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
        }
        match &mut self.recovery {
            Some(recovery) if self.acknowledged < recovery.until => {
                self.size = ack.in_flight as f64 + recovery.allows(&ack, self.threshold);
                return;
            }
            Some(_) => {
                self.recovery = None;
                self.size = self.threshold;
            }
            None => {}
        }
        let bytes = ack.bytes as f64;
        if self.size < self.threshold {
            self.start_slowly(&ack, bytes);
        } else if !ack.limited {
            self.cubic.idle_since.get_or_insert(now);
        } else if self.congestion == Congestion::Reno {
            self.size += MSS * bytes / self.size;
        } else {
            let rtt = self.rtt.unwrap_or(link.rtt);
            self.size = MSS * self.cubic.grown(self.size / MSS, bytes / MSS, now, rtt);
        }
        self.size = self.size.min(link.window_bytes as f64);
    }

    /// A byte more for each acknowledged, or a quarter of one when the delay has begun to grow.
    fn start_slowly(&mut self, ack: &Ack, bytes: f64) {
        // Later slow starts know where to end.
        let first = self.threshold.is_infinite() && self.congestion == Congestion::Cubic;
        let over = first && self.start.round_trip(ack, self.acknowledged, self.sent);
        // Linux lets the window be twice what is in flight here, so that a sender with a pace of its own gets going.
        if ack.limited || self.size < 2.0 * (ack.in_flight + ack.bytes) as f64 {
            let divisor = if self.start.cautious.is_some() && first { CAUTIOUS_DIVISOR } else { 1.0 };
            self.size = (self.size + bytes / divisor).min(self.threshold);
        }
        if over {
            self.threshold = self.size;
            self.cubic.prior = self.size / MSS;
        }
    }

    /// A packet was lost: less is sent, once for all losses of a round trip. Says whether this was the first.
    pub(super) fn lost(&mut self, in_flight: usize) -> bool {
        if self.recovery.is_some() {
            return false;
        }
        self.threshold = self.reduced();
        if self.acknowledged < self.sent {
            let in_flight_then = (in_flight as f64).max(MSS);
            self.recovery = Some(Recovery { until: self.sent, in_flight_then, delivered: 0.0, sent: 0.0 });
            self.size = in_flight_then;
        } else {
            self.size = self.threshold;
        }
        true
    }

    /// Starts over, as after a time-out of retransmission.
    pub(super) fn time_out(&mut self, link: &Link) {
        self.threshold = self.reduced();
        self.recovery = None;
        self.size = self.size.min(link.initial_window as f64);
    }

    /// Something is sent after a pause: the window was halved for each time-out that passed in it.
    pub(super) fn wake(&mut self, link: &Link, last_sent: Duration, now: Duration) {
        let time_out = link.rtt + TIME_OUT_BEYOND_RTT;
        let pause = now.saturating_sub(last_sent);
        if let Some(epoch) = &mut self.cubic.epoch {
            // Time in which nothing was asked for is no growth.
            *epoch += pause;
            self.cubic.idle_since = None;
        }
        if !link.idle_restart || pause <= time_out {
            return;
        }
        let restart = self.size.min(link.initial_window as f64);
        if self.threshold.is_finite() {
            self.threshold = self.threshold.max(0.75 * self.size);
        }
        let halvings = (pause.as_secs_f64() / time_out.as_secs_f64()).ceil() - 1.0;
        self.size = (self.size / halvings.min(64.0).exp2()).max(restart);
    }

    /// What a loss leaves of the window.
    fn reduced(&mut self) -> f64 {
        match self.congestion {
            Congestion::Reno => self.size / 2.0,
            Congestion::Cubic => {
                self.cubic.lose(self.size / MSS);
                self.size * BETA
            }
        }
        .max(WINDOW_MIN)
    }
}

impl Recovery {
    /// What may be sent at this acknowledgement: the threshold's share of what arrived, or, where less than the
    /// threshold is in flight, what arrived and a packet more.
    fn allows(&mut self, ack: &Ack, threshold: f64) -> f64 {
        self.delivered += ack.bytes as f64;
        let in_flight = ack.in_flight as f64;
        let allowed = if in_flight > threshold {
            self.delivered * threshold / self.in_flight_then - self.sent
        } else {
            (threshold - in_flight).min((self.delivered - self.sent).max(ack.bytes as f64) + MSS)
        };
        allowed.max(0.0)
    }
}

impl HyStart {
    /// Takes an acknowledgement in; says whether slow start is over.
    fn round_trip(&mut self, ack: &Ack, acknowledged: u64, sent: u64) -> bool {
        if let Some(rtt) = ack.rtt {
            self.samples += ack.bytes.div_ceil(PACKET);
            self.least = Some(self.least.map_or(rtt, |least| least.min(rtt)));
        }
        if let (true, Some(least), Some(before)) = (self.samples >= SAMPLES_MIN, self.least, self.least_before) {
            match self.cautious {
                None if least >= before + (before / 8).clamp(RTT_RISE_MIN, RTT_RISE_MAX) => {
                    self.cautious = Some((least, 0));
                }
                // It was a passing delay.
                Some((baseline, _)) if least < baseline => self.cautious = None,
                _ => {}
            }
        }
        if acknowledged < self.round_ends {
            return false;
        }
        self.round_ends = sent;
        self.samples = 0;
        self.least_before = self.least.take().or(self.least_before);
        let Some((_, rounds)) = &mut self.cautious else { return false };
        *rounds += 1;
        *rounds >= CAUTIOUS_ROUNDS
    }
}

impl Cubic {
    /// Notes a loss at this window.
    fn lose(&mut self, window: f64) {
        // One that did not come back to where it was has company: it leaves room faster (section 4.7).
        self.most = if window < self.most { window * (1.0 + BETA) / 2.0 } else { window };
        self.prior = window;
        self.epoch = None;
    }

    /// The window after `acked` packets more.
    fn grown(&mut self, window: f64, acked: f64, now: Duration, rtt: Duration) -> f64 {
        let idle = self.idle_since.take().map_or(Duration::ZERO, |since| now.saturating_sub(since));
        let epoch = match self.epoch {
            Some(epoch) => epoch + idle,
            None => {
                self.most = self.most.max(window);
                self.k = ((self.most - window) / C).cbrt();
                self.reno = window;
                now
            }
        };
        self.epoch = Some(epoch);
        let time = now.saturating_sub(epoch).as_secs_f64();
        let alpha = if self.reno < self.prior { ALPHA } else { 1.0 };
        self.reno += alpha * acked / window;
        if self.curve(time) < self.reno {
            return self.reno.max(window);
        }
        let target = self.curve(time + rtt.as_secs_f64()).clamp(window, 1.5 * window);
        window + (target - window) / window * acked
    }

    fn curve(&self, time: f64) -> f64 {
        C * (time - self.k).powi(3) + self.most
    }
}

#[cfg(test)]
mod tests;
