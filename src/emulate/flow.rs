//! One connection as its sender and its receiver see it. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::congestion::{Ack, Window};
use super::link::{Link, PACKET};

/// One connection. Times count from the network's start.
#[derive(Debug)]
pub(super) struct Flow {
    /// When the handshake is over.
    pub(super) established: Duration,
    /// Bytes of the response that wait for the window.
    pub(super) pending: u64,
    /// Bytes sent whose acknowledgement is not back.
    pub(super) in_flight: usize,
    /// Sizes of the chunks on their way, in order.
    pub(super) on_the_way: VecDeque<usize>,
    /// What has arrived and was not yet taken: when, and how much.
    pub(super) arrived: VecDeque<(Duration, usize)>,
    /// The same of what the client sends.
    up_on_the_way: VecDeque<usize>,
    pub(super) up_arrived: VecDeque<(Duration, usize)>,
    pub(super) up_last_delivery: Duration,
    /// Bytes sent that the client's socket has not taken yet: they fill its receive window.
    pub(super) untaken: usize,
    /// Whether the receive window is left out.
    pub(super) ignore_untaken: bool,
    /// Whether the flow queues for room in the link's buffer.
    pub(super) waiting: bool,
    /// No chunk arrives before the last one: bytes are delivered in order.
    pub(super) last_delivery: Duration,
    /// When the chunk that the link's buffer dropped is sent again.
    pub(super) resent_at: Option<Duration>,
    /// What the server gives one connection, if that is limited: nothing more before this time.
    pub(super) paced_until: Duration,
    /// Whether its turn after that is planned.
    pub(super) pausing: bool,
    window: Window,
    /// Whether the window kept bytes back.
    limited: bool,
    last_sent: Duration,
}

impl Flow {
    pub(super) fn new(link: &Link, delay: Duration, now: Duration) -> Self {
        Flow {
            established: now + link.rtt + delay,
            pending: 0,
            in_flight: 0,
            on_the_way: VecDeque::new(),
            arrived: VecDeque::new(),
            up_on_the_way: VecDeque::new(),
            up_arrived: VecDeque::new(),
            up_last_delivery: now,
            untaken: 0,
            ignore_untaken: false,
            waiting: false,
            last_delivery: now,
            resent_at: None,
            paced_until: Duration::ZERO,
            pausing: false,
            window: Window::new(link),
            limited: false,
            last_sent: now,
        }
    }

    /// More bytes to send, after a pause that may have closed the window.
    pub(super) fn add(&mut self, link: &Link, bytes: u64, now: Duration) {
        if self.pending == 0 && self.in_flight == 0 {
            self.window.wake(link, self.last_sent, now);
        }
        self.pending += bytes;
    }

    /// Bytes that the window lets go now, if it is worth the while.
    pub(super) fn next_chunk(&mut self, link: &Link) -> Option<usize> {
        if self.pending == 0 {
            self.limited = false;
            return None;
        }
        let window = self.window().min(link.window_bytes);
        let untaken = if self.ignore_untaken { 0 } else { self.untaken };
        let room = window.saturating_sub(self.in_flight).min(link.window_bytes.saturating_sub(untaken));
        // Half a window at most, so that acknowledgements keep coming while the other half travels; a sixteenth at
        // least, so that chunks stay few.
        let most = link.chunk_max().min((window / 2).max(PACKET));
        let most = most.min(usize::try_from(self.pending).unwrap_or(most));
        let least = most.min((window / 16).max(PACKET));
        self.limited = room < least;
        (!self.limited).then_some(most.min(room))
    }

    pub(super) fn sent(&mut self, bytes: usize, now: Duration) {
        self.pending -= bytes as u64;
        self.in_flight += bytes;
        self.untaken += bytes;
        self.last_sent = now;
        self.window.sent(bytes);
        self.on_the_way.push_back(bytes);
    }

    /// The oldest chunk on its way is there.
    pub(super) fn arrive(&mut self, at: Duration) {
        let Some(bytes) = self.on_the_way.pop_front() else { return };
        match self.arrived.back_mut() {
            Some((last, sum)) if *last == at || !self.ignore_untaken => *sum += bytes,
            _ => self.arrived.push_back((at, bytes)),
        }
    }

    /// The client sent bytes that are at the server `at`; none are its end, which stays apart.
    pub(super) fn up_sent(&mut self, bytes: usize, at: Duration) {
        self.up_on_the_way.push_back(bytes);
        self.up_last_delivery = at;
    }

    /// The oldest of them are there.
    pub(super) fn up_arrive(&mut self, at: Duration) {
        if let Some(bytes) = self.up_on_the_way.pop_front() {
            self.up_arrived.push_back((at, bytes));
        }
    }

    /// What the window lets be in flight.
    pub(super) fn window(&self) -> usize {
        self.window.size()
    }

    /// Bytes are acknowledged, sent so long ago unless they were sent twice.
    pub(super) fn acknowledged(&mut self, link: &Link, bytes: usize, rtt: Option<Duration>, now: Duration) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        let ack = Ack { bytes, rtt, in_flight: self.in_flight, limited: self.limited };
        self.window.acknowledged(link, ack, now);
    }

    /// The sender hears that a packet was lost. Says whether it sends less for it.
    pub(super) fn lost(&mut self) -> bool {
        self.window.lost(self.in_flight)
    }

    /// Starts over, as after a time-out of retransmission.
    pub(super) fn time_out(&mut self, link: &Link) {
        self.window.time_out(link);
    }
}
