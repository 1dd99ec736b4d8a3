//! The windows held to the formulas of the RFCs.

use super::*;

const RTT: Duration = Duration::from_millis(100);

fn link(congestion: Congestion, rtt: Duration) -> Link {
    Link { congestion, window_bytes: 1 << 30, ..Link::rtt(rtt) }
}

fn close_to(found: f64, expected: f64, tolerance: f64) {
    let ratio = found / expected;
    assert!((ratio - 1.0).abs() <= tolerance, "{found:.4} found, {expected:.4} expected, ratio {ratio:.3}");
}

/// A sender with a full window, whose round trips are steps.
struct Sender {
    window: Window,
    link: Link,
    now: Duration,
}

impl Sender {
    /// In congestion avoidance with so many packets, without a history.
    fn with(congestion: Congestion, rtt: Duration, packets: f64) -> Self {
        let link = link(congestion, rtt);
        let mut window = Window::new(&link);
        (window.size, window.threshold) = (packets * MSS, packets * MSS);
        Sender { window, link, now: Duration::from_secs(1) }
    }

    fn packets(&self) -> f64 {
        self.window.size / MSS
    }

    /// A window is sent, and acknowledged in sixteen parts over the next round trip.
    fn round(&mut self) {
        let bytes = self.window.size();
        self.window.sent(bytes);
        for part in 1..=16 {
            self.now += self.link.rtt / 16;
            let acked = bytes * part / 16 - bytes * (part - 1) / 16;
            let in_flight = bytes - bytes * part / 16;
            let ack = Ack { bytes: acked, rtt: Some(self.link.rtt), in_flight, limited: true };
            self.window.acknowledged(&self.link, ack, self.now);
        }
    }

    /// Loses a packet of a full window, and recovers for a round trip without anything new to send.
    fn lose(&mut self) {
        let bytes = self.window.size();
        self.window.sent(bytes);
        assert!(self.window.lost(bytes), "one reduction for one loss");
        assert!(!self.window.lost(bytes), "and none for the next of the same round");
        let ack = Ack { bytes, rtt: None, in_flight: 0, limited: false };
        self.window.acknowledged(&self.link, ack, self.now);
        assert!(self.window.recovery.is_none());
    }
}

#[test]
fn cubic_grows_along_its_curve() {
    // RFC 9438, figure 1: W(t) = C (t - K)³ + W_max, K = ∛(W_max (1 - β) / C): 9.1 s for 1,000 packets.
    let mut sender = Sender::with(Congestion::Cubic, RTT, 1000.0);
    sender.lose();
    close_to(sender.packets(), 700.0, 1e-6);
    let k = (1000.0 * 0.3 / 0.4_f64).cbrt();
    let started = sender.now;
    let mut checked = 0;
    while sender.now - started < Duration::from_secs(18) {
        sender.round();
        let time = (sender.now - started).as_secs_f64();
        let curve = 0.4 * (time - k).powi(3) + 1000.0;
        // Its epoch begins with the first acknowledgement, a sixteenth of a round later.
        close_to(sender.packets(), curve, 0.01);
        checked += 1;
    }
    assert!(checked > 170 && sender.packets() > 1200.0, "past the plateau, and faster again: {}", sender.packets());
}

#[test]
fn cubic_is_no_slower_than_reno_on_short_paths() {
    // Section 4.3: at 5 ms and 40 packets the curve takes K = 3.1 s; Reno's share 3 (1 - β) / (1 + β) packets per round.
    let mut sender = Sender::with(Congestion::Cubic, Duration::from_millis(5), 40.0);
    sender.lose();
    for _ in 0..20 {
        sender.round();
    }
    close_to(sender.packets(), 28.0 + 20.0 * ALPHA, 0.02);
    for _ in 0..20 {
        sender.round();
    }
    // Above the old window, a packet per round.
    let reached = ((40.0 - 28.0) / ALPHA).ceil();
    close_to(sender.packets(), 40.0 + (40.0 - reached), 0.03);
}

#[test]
fn regular_loss_gives_the_mean_windows_of_the_rfc() {
    // RFC 9438, tables 1 and 2 (the formula of section 5.1, or Reno's sqrt(3 / 2p) where that is more): packets.
    for (congestion, rtt_ms, loss, expected) in [
        (Congestion::Reno, 100, 1e-3, 38.0),
        (Congestion::Reno, 100, 1e-4, 120.0),
        (Congestion::Cubic, 10, 1e-2, 12.0),
        (Congestion::Cubic, 10, 1e-4, 120.0),
        (Congestion::Cubic, 100, 1e-2, 12.0),
        (Congestion::Cubic, 100, 1e-4, 187.0),
        (Congestion::Cubic, 100, 1e-3, 38.0),
        (Congestion::Cubic, 100, 1e-5, 1054.0),
        (Congestion::Cubic, 100, 1e-6, 5926.0),
    ] {
        let mut sender = Sender::with(congestion, Duration::from_millis(rtt_ms), expected);
        let (mut since_loss, mut sum, mut rounds) = (0.0, 0.0, 0.0);
        for losses in 0..30 {
            while since_loss < 1.0 / loss {
                since_loss += sender.packets();
                sum += if losses > 5 { sender.packets() } else { 0.0 };
                rounds += if losses > 5 { 1.0 } else { 0.0 };
                sender.round();
            }
            since_loss -= 1.0 / loss;
            sender.lose();
        }
        close_to(sum / rounds, expected, 0.15);
    }
}

#[test]
fn cubic_gives_way_to_newcomers() {
    let mut sender = Sender::with(Congestion::Cubic, RTT, 1000.0);
    sender.lose();
    assert_eq!(sender.window.cubic.most, 1000.0);
    sender.lose();
    // Section 4.7: W_max is the window times (1 + β) / 2 when that window lies below the last W_max.
    close_to(sender.window.cubic.most, 700.0 * 0.85, 1e-6);
    close_to(sender.packets(), 490.0, 1e-6);
}

#[test]
fn a_pause_is_no_growth() {
    let grown = |pause: u64| {
        let mut sender = Sender::with(Congestion::Cubic, RTT, 1000.0);
        sender.link.idle_restart = false;
        sender.lose();
        (0..20).for_each(|_| sender.round());
        let last_sent = sender.now;
        sender.now += Duration::from_secs(pause);
        sender.window.wake(&sender.link, last_sent, sender.now);
        (0..20).for_each(|_| sender.round());
        sender.packets()
    };
    close_to(grown(30), grown(0), 0.005);
}

#[test]
fn reno_halves_and_grows_by_a_packet() {
    let mut sender = Sender::with(Congestion::Reno, RTT, 1000.0);
    sender.lose();
    close_to(sender.packets(), 500.0, 1e-6);
    (0..100).for_each(|_| sender.round());
    close_to(sender.packets(), 600.0, 0.01);
}

#[test]
fn recovery_sends_in_proportion() {
    // RFC 9937: of what arrives in a round trip, the threshold's share is sent, evenly, so that nothing halts.
    for (congestion, share) in [(Congestion::Cubic, 0.7), (Congestion::Reno, 0.5)] {
        let mut sender = Sender::with(congestion, RTT, 1000.0);
        let mut in_flight = sender.window.size();
        sender.window.sent(in_flight);
        sender.window.lost(in_flight);
        let (mut sent, mut acked) = (0, 0);
        for _ in 0..500 {
            (in_flight, acked) = (in_flight - PACKET, acked + PACKET);
            let ack = Ack { bytes: PACKET, rtt: Some(RTT), in_flight, limited: true };
            sender.window.acknowledged(&sender.link, ack, sender.now);
            let allowed = sender.window.size().saturating_sub(in_flight);
            sender.window.sent(allowed);
            (in_flight, sent) = (in_flight + allowed, sent + allowed);
            assert!((sent as f64 - share * acked as f64).abs() <= 2.0 * MSS, "{sent} sent after {acked}");
        }
        assert!(in_flight as f64 >= share * 1000.0 * MSS);
    }
}

#[test]
fn a_growing_delay_ends_the_first_slow_start() {
    let run = |congestion: Congestion, rise_ms: u64| {
        let mut sender = Sender::with(congestion, RTT, 10.0);
        sender.window.threshold = f64::INFINITY;
        let (mut sizes, mut in_flight) = (Vec::new(), 0);
        for round in 0..12_u64 {
            // From the fifth round on there is a queue.
            let rtt = RTT + Duration::from_millis(rise_ms * round.saturating_sub(4));
            let fill = |window: &mut Window, in_flight: &mut usize| {
                window.sent(window.size() - *in_flight);
                *in_flight = window.size();
            };
            fill(&mut sender.window, &mut in_flight);
            let round_trip = in_flight;
            for part in 1..=20 {
                sender.now += rtt / 20;
                let bytes = round_trip * part / 20 - round_trip * (part - 1) / 20;
                in_flight -= bytes;
                let ack = Ack { bytes, rtt: Some(rtt), in_flight, limited: true };
                sender.window.acknowledged(&sender.link, ack, sender.now);
                fill(&mut sender.window, &mut in_flight);
            }
            sizes.push(sender.packets().round());
        }
        (sizes, sender.window.threshold / MSS)
    };
    let (sizes, threshold) = run(Congestion::Reno, 20);
    assert!(sizes[11] == 40_960.0 && threshold.is_infinite(), "{sizes:?}");
    let (sizes, threshold) = run(Congestion::Cubic, 0);
    assert!(sizes[11] == 40_960.0 && threshold.is_infinite(), "{sizes:?}");
    let (sizes, threshold) = run(Congestion::Cubic, 20);
    assert_eq!(sizes[..5], [20.0, 40.0, 80.0, 160.0, 320.0]);
    // The rest of the round in which it was noticed counts: a quarter as fast for four to five rounds, 1.25⁵ = 3.05.
    assert!(
        threshold > 1.25_f64.powi(4) * 320.0 && threshold < 1.25_f64.powi(5) * 640.0,
        "{threshold} after {sizes:?}"
    );
    assert!(sizes[11] < 1.1 * threshold, "{sizes:?}");
}

#[test]
fn idleness_halves_the_window_for_each_time_out() {
    // Linux's tcp_cwnd_restart: a time-out is 300 ms here, and 1.0 s have three beyond the first.
    for (pause_ms, expected) in [(299, 160.0), (450, 80.0), (1000, 20.0), (60_000, 10.0)] {
        let mut sender = Sender::with(Congestion::Cubic, RTT, 160.0);
        let last_sent = sender.now;
        sender.window.wake(&sender.link, last_sent, last_sent + Duration::from_millis(pause_ms));
        close_to(sender.packets(), expected, 1e-6);
        // It comes back in slow start.
        close_to(sender.window.threshold, 160.0 * MSS, 1e-6);
    }
}
