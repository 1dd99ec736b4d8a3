//! The shared link itself: one queue served at the link's rate, with loss and jitter. Pure.

use std::time::Duration;

use super::flow::Flow;
use super::link::{Link, PACKET, time_for};

/// What happened to packets, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Packets lost by chance.
    pub(super) losses: u64,
    /// Chunks that found the link's buffer full.
    pub(super) drops: u64,
}

/// The least time-out of retransmission beyond the round trip, in Linux.
const TIME_OUT_BEYOND_RTT: Duration = Duration::from_millis(200);

/// When a chunk is handed to the client, and when the server hears of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carried {
    pub(super) delivered: Duration,
    pub(super) acknowledged: Duration,
    pub(super) lost: Option<Lost>,
}

/// A part of a chunk that had to be sent again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub(super) bytes: usize,
    /// When the sender knows, and sends it again.
    pub(super) noticed: Duration,
    pub(super) acknowledged: Duration,
}

/// The link and what it is busy with.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) link: Link,
    /// Nothing passes before.
    pub(super) dead_until: Duration,
    pub(super) counts: Counts,
    /// When everything that was given to the link has left it.
    free_at: Duration,
    /// The same towards the server, which has a line of its own.
    up_free_at: Duration,
    /// Bytes in flight, and the flows that have some.
    in_flight: usize,
    sharers: usize,
    chance: Chance,
    packets_to_loss: u64,
}

impl Line {
    pub(super) fn new(link: Link) -> Self {
        let mut chance = Chance(link.seed);
        Line {
            packets_to_loss: chance.packets_to_loss(link.loss),
            link,
            dead_until: Duration::ZERO,
            counts: Counts::default(),
            free_at: Duration::ZERO,
            up_free_at: Duration::ZERO,
            in_flight: 0,
            sharers: 0,
            chance,
        }
    }

    pub(super) fn change(&mut self, link: Link, now: Duration) {
        self.packets_to_loss = self.chance.packets_to_loss(link.loss);
        if link.rate_bytes_s.is_none() {
            self.free_at = self.free_at.min(now);
            self.up_free_at = self.up_free_at.min(now);
        }
        self.link = link;
    }

    /// How long a chunk given to the link now would wait.
    pub(super) fn queue(&self, now: Duration) -> Duration {
        self.free_at.saturating_sub(now)
    }

    /// Whether the link's buffer has room for one more chunk.
    pub(super) fn admits(&self, now: Duration) -> bool {
        now >= self.dead_until && self.queue(now) <= self.link.queue_max()
    }

    /// When it has.
    pub(super) fn admits_at(&self) -> Duration {
        self.free_at.saturating_sub(self.link.queue_max()).max(self.dead_until)
    }

    /// Drops a chunk at the full buffer: its sender hears of it a round trip later, sends it again, and slows down.
    /// A flow with less than its share of what is in flight is spared, as by a router that queues fairly: otherwise
    /// chance in the first round trips decides for seconds who gets how much.
    pub(super) fn drop_chunk(&mut self, flow: &mut Flow, now: Duration) {
        if flow.in_flight * self.sharers < self.in_flight {
            return;
        }
        self.counts.drops += 1;
        let round = self.queue(now) + self.link.rtt;
        if flow.lost() {
            flow.resent_at = Some(now + round);
        }
    }

    /// Carries a chunk of `flow`.
    pub(super) fn carry(&mut self, flow: &mut Flow, bytes: usize, now: Duration) -> Carried {
        let half = self.link.half_way();
        let alone = flow.in_flight == 0 && bytes <= PACKET;
        self.free_at = self.free_at.max(now) + self.link.busy(bytes);
        let mut reaches = self.free_at + half + self.chance.up_to(self.link.jitter);
        if let Some(rate) = self.link.connection_rate {
            flow.paced_until = flow.paced_until.max(now) + time_for(bytes, rate);
        }
        if let Some(resent_at) = flow.resent_at.take() {
            reaches = reaches.max(resent_at + half);
        }
        let acknowledged = reaches + half;
        self.sharers += usize::from(flow.in_flight == 0);
        self.in_flight += bytes;
        flow.sent(bytes, now);
        let lost = self.lost(bytes.div_ceil(PACKET) as u64).map(|(packets, last)| {
            self.counts.losses += packets;
            self.free_at += self.link.busy(packets as usize * PACKET);
            // What follows tells the sender. Where nothing does, it asks by itself (RFC 8985's tail loss probe) two round
            // trips after the last packet; a packet that was alone waits for the time-out.
            let silence = match (last && flow.pending == 0, alone) {
                (false, _) => Duration::ZERO,
                (true, false) => self.link.rtt,
                (true, true) => TIME_OUT_BEYOND_RTT,
            };
            let noticed = acknowledged + silence;
            // The rest of the flow goes on arriving, and waits at the receiver until this is there.
            reaches = noticed + half;
            Lost { bytes: bytes.min(packets as usize * PACKET), noticed, acknowledged: reaches + half }
        });
        flow.last_delivery = flow.last_delivery.max(reaches);
        Carried { delivered: flow.last_delivery, acknowledged, lost }
    }

    /// Carries bytes from the client to the server, at the link's rate and without loss; says when they are there.
    pub(super) fn carry_up(&mut self, flow: &mut Flow, bytes: usize, now: Duration) -> Duration {
        self.up_free_at = self.up_free_at.max(now) + self.link.busy(bytes);
        let sent = self.up_free_at.max(flow.established).max(self.dead_until);
        let reaches = (sent + self.link.half_way()).max(flow.up_last_delivery);
        flow.up_sent(bytes, reaches);
        reaches
    }

    /// Bytes of `flow` are acknowledged.
    pub(super) fn acknowledged(&mut self, flow: &mut Flow, bytes: usize, rtt: Option<Duration>, now: Duration) {
        flow.acknowledged(&self.link, bytes, rtt, now);
        self.in_flight -= bytes;
        self.sharers -= usize::from(flow.in_flight == 0);
    }

    /// `flow` is gone, and nobody waits for its acknowledgements.
    pub(super) fn forget(&mut self, flow: &Flow) {
        self.in_flight -= flow.in_flight;
        self.sharers -= usize::from(flow.in_flight > 0);
    }

    /// How many of the next packets are lost, if any, and whether the last of them is.
    fn lost(&mut self, packets: u64) -> Option<(u64, bool)> {
        let (mut lost, mut left) = (0, packets);
        while left > self.packets_to_loss {
            left -= self.packets_to_loss + 1;
            lost += 1;
            self.packets_to_loss = self.chance.packets_to_loss(self.link.loss);
        }
        self.packets_to_loss = self.packets_to_loss.saturating_sub(left);
        (lost > 0).then_some((lost, left == 0))
    }
}

/// Seeded chance (splitmix64): the same seed, the same losses.
#[derive(Clone, Debug)]
pub(super) struct Chance(pub(super) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform, 0 ≤ x < 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn up_to(&mut self, limit: Duration) -> Duration {
        if limit.is_zero() { Duration::ZERO } else { limit.mul_f64(self.unit()) }
    }

    /// Packets that pass before the next loss: geometric, so that chance is asked per loss and not per packet.
    fn packets_to_loss(&mut self, loss: f64) -> u64 {
        if loss <= 0.0 {
            return u64::MAX;
        }
        // 1 - unit lies in (0, 1]: its logarithm is finite.
        ((1.0 - self.unit()).ln() / (1.0 - loss).ln()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loses_what_it_is_told_to() {
        let mut line = Line::new(Link { loss: 0.01, seed: 3, ..Link::default() });
        let lost: u64 = (0..100_000).filter_map(|_| line.lost(10)).map(|(packets, _)| packets).sum();
        assert!((9_500..10_500).contains(&lost), "{lost} of 1,000,000 at 1 %");
        assert_eq!(Line::new(Link::default()).lost(1_000_000), None);
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let losses = |seed| {
            let mut line = Line::new(Link { loss: 0.05, seed, ..Link::default() });
            (0..200).map(|_| line.lost(3)).collect::<Vec<_>>()
        };
        assert_eq!(losses(1), losses(1));
        assert_ne!(losses(1), losses(2));
    }
}
