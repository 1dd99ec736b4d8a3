//! The model held to arithmetic.

use super::super::congestion::Congestion;
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
        for (flow, way) in network.ready().collect::<Vec<_>>() {
            while let Some((bytes, at)) = network.take(flow, way) {
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
    shares_after(1, link, flows, seconds)
}

fn shares_after(spared: u64, link: Link, flows: u64, seconds: u64) -> Vec<u64> {
    let mut network = Network::new(link);
    for _ in 0..flows {
        let flow = network.open(Duration::ZERO, Duration::ZERO);
        network.request(flow, transfer(u64::MAX / 2), Duration::ZERO);
    }
    let mut shares = vec![0; flows as usize];
    run(&mut network, Duration::from_secs(spared + seconds), |flow, bytes, at| {
        if at >= Duration::from_secs(spared) {
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
    let flow = network.open(Duration::ZERO, Duration::ZERO);
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
        let flow = network.open(Duration::ZERO, Duration::ZERO);
        network.request(flow, transfer(1 << 30), Duration::ZERO);
    }
    let mut longest = Duration::ZERO;
    for step in 1..20_000 {
        let now = Duration::from_micros(100) * step;
        network.advance(now);
        for (flow, way) in network.ready().collect::<Vec<_>>() {
            while let Some((bytes, at)) = network.take(flow, way) {
                network.taken(flow, bytes, at.max(now));
            }
        }
        longest = longest.max(network.line.queue(now));
    }
    // One chunk, a millisecond of link, may go beyond.
    assert!(longest <= Duration::from_millis(6), "{longest:?}");
    assert!(longest >= Duration::from_millis(4) && network.counts().drops > 0, "never filled: {longest:?}");
}

/// Mean window in packets of connections that lose packets by chance and have room: goodput times the round trip. The
/// first seconds, in which slow start overshoots, are spared.
fn mean_window(congestion: Congestion, rtt: Duration, loss: f64, seconds: u64) -> f64 {
    let (flows, rate) = (8, 1_250_000_000);
    let link = Link { loss, congestion, seed: 5, window_bytes: 1 << 30, ..Link::rtt(rtt).rate(rate) };
    let bytes = shares_after(20, link, flows, seconds).iter().sum::<u64>() as f64;
    bytes / (seconds * flows) as f64 * rtt.as_secs_f64() / PACKET as f64
}

#[test]
fn loss_bounds_reno_as_mathis_says() {
    // Mathis et al.: sqrt(3 / 2p) packets. Here the queue is empty, so RTT is the link's.
    for loss in [0.001, 0.01] {
        close_to(mean_window(Congestion::Reno, RTT, loss, 20), (1.5_f64 / loss).sqrt(), 0.25);
    }
}

#[test]
fn loss_bounds_cubic_as_its_rfc_says() {
    // RFC 9438, section 5.1 and table 1: (C (3 + β) / 4 (1 - β))^¼ (RTT / p)^¾ packets, and no less than Reno's.
    // The formula is for regular loss; by chance it is a little more.
    for (rtt_ms, loss, seconds) in [(15, 1e-2, 20), (15, 1e-3, 40), (100, 1e-3, 60), (100, 1e-4, 200), (30, 1e-4, 100)]
    {
        let rtt = Duration::from_millis(rtt_ms);
        let curve = (0.4_f64 * 3.7 / 1.2).powf(0.25) * (rtt.as_secs_f64() / loss).powf(0.75);
        let expected = curve.max((1.5 / loss).sqrt());
        close_to(mean_window(Congestion::Cubic, rtt, loss, seconds), expected, 0.2);
    }
}

#[test]
fn cubic_leaves_slow_start_before_the_buffer_is_full() {
    let drops = |congestion| {
        let buffer = Some(Duration::from_millis(80));
        let mut network = Network::new(Link { congestion, buffer, window_bytes: 64 << 20, ..link().rate(125_000_000) });
        let flow = network.open(Duration::ZERO, Duration::ZERO);
        network.request(flow, transfer(1 << 40), Duration::ZERO);
        let mut bytes = 0;
        run(&mut network, Duration::from_millis(300), |_, arrived, _| bytes += arrived);
        (network.counts().drops, bytes as f64 / (0.27 * 125e6))
    };
    let (cubic, reno) = (drops(Congestion::Cubic), drops(Congestion::Reno));
    assert!(cubic.0 == 0 && reno.0 > 0, "{cubic:?} {reno:?}");
    assert!(cubic.1 > 0.6, "{cubic:?} of the link in 0.3 s");
}

#[test]
fn a_connection_gets_no_more_than_its_rate() {
    let link = link().rate(125_000_000).connection_rate(10_000_000);
    let shares = shares(link, 4, 5);
    shares.iter().for_each(|share| close_to(*share as f64, 5.0 * 10e6, 0.01));
    let floor = self::link().connection_rate(10_000_000).transfer_time(2_000_000, 2).unwrap();
    // At its rate 0.1 s each; before that 10, 20, 40 and 80 packets in a round trip that would carry 103.
    let slow = 4.0 - 150.0 * PACKET as f64 / (10e6 * RTT.as_secs_f64());
    close_to(floor.as_secs_f64(), 0.1 + (2.0 + slow) * RTT.as_secs_f64(), 0.02);
}

#[test]
fn a_lost_packet_costs_a_round_trip_and_more_at_the_end() {
    // How much later than without loss a response's last byte is there, over many responses: one, where others follow
    // the lost packet and tell; two, where it was the last; the time-out, where it was alone.
    let late = |bytes: u64| {
        let lossy = Link { loss: 0.01, seed: 11, idle_restart: false, ..link() };
        let mut network = Network::new(lossy);
        let mut late = Vec::new();
        for _ in 0..2000 {
            let mut last = Duration::ZERO;
            let from = network.line.queue(Duration::ZERO).max(Duration::from_secs(10 * late.len() as u64));
            let flow = network.open(Duration::ZERO, from);
            network.request(flow, transfer(bytes), from);
            run(&mut network, from + Duration::from_secs(9), |_, _, at| last = at);
            late.push(last - from - RTT * 2);
            network.close(flow);
        }
        late.retain(|late| !late.is_zero());
        late
    };
    let alone = late(1000);
    assert!((10..35).contains(&alone.len()), "{} of 2000 at 1 %", alone.len());
    assert!(alone.iter().all(|late| *late == RTT + Duration::from_millis(200)), "{alone:?}");
    let ten = late(10 * PACKET as u64);
    let (one, two) =
        (ten.iter().filter(|late| **late == RTT).count(), ten.iter().filter(|late| **late == RTT * 2).count());
    assert!(one > 100 && two > 5 && one > 4 * two && one + two == ten.len(), "{ten:?}");
}

#[test]
fn jitter_delays_and_never_reorders() {
    let link = Link { jitter: Duration::from_millis(5), seed: 9, ..link().rate(12_500_000) };
    let mut network = Network::new(link);
    let flow = network.open(Duration::ZERO, Duration::ZERO);
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
    let flow = network.open(Duration::ZERO, Duration::ZERO);
    network.request(flow, transfer(1 << 30), Duration::ZERO);
    network.advance(Duration::from_secs(5));
    let (held, _) = network.take(flow, Way::ToClient).unwrap();
    assert!((50 * PACKET..=100 * PACKET).contains(&held), "{held}");
    assert!(network.take(flow, Way::ToClient).is_none());
    network.taken(flow, held, Duration::from_secs(5));
    network.advance(Duration::from_secs(6));
    assert!(network.take(flow, Way::ToClient).is_some(), "room in the window moves it on");
}

#[test]
fn nothing_passes_a_dead_link() {
    let mut network = Network::new(link().rate(12_500_000));
    let flow = network.open(Duration::ZERO, Duration::ZERO);
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
        let flow = network.open(Duration::ZERO, Duration::ZERO);
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
        let flow = network.open(Duration::ZERO, Duration::ZERO);
        network.request(flow, transfer(1 << 40), Duration::ZERO);
    }
    let mut sum = 0;
    for step in 1..=700_u32 {
        // Up to 7 ms late, half a round trip, as a busy machine is.
        let now = Duration::from_millis(4 * u64::from(step) + u64::from(step % 3));
        network.advance(now);
        for (flow, way) in network.ready().collect::<Vec<_>>() {
            while let Some((bytes, _)) = network.take(flow, way) {
                sum += if step > 200 { bytes } else { 0 };
                network.taken(flow, bytes, now);
            }
        }
    }
    close_to(sum as f64, 2.0 * 125e6, 0.03);
}
