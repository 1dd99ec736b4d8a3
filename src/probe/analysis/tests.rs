//! Curves whose knee, cap and limit are known.

use proptest::prelude::*;

use super::super::report::{Ended, InFlight, Limit, ProbeReport, Sign, Spread};
use super::super::verdict::{Answer, Need};
use super::*;

const KIB_256: usize = 256 << 10;
const MIB: usize = 1 << 20;

fn point(connections: usize, request_bytes: usize, goodput_bytes_s: f64) -> Point {
    let request_s = connections as f64 * request_bytes as f64 / goodput_bytes_s.max(1.0);
    let first_s = request_s.min(0.015);
    let first_byte = Spread { samples: 10, min_s: first_s, p50_s: first_s, p99_s: first_s };
    Point {
        connections,
        request_bytes,
        goodput_bytes_s,
        seconds: 0.5,
        requests: 100,
        throttled: 0,
        failed: 0,
        first_byte: Some(first_byte),
        request_p50_s: Some(request_s),
        busy: 0.1,
    }
}

/// A link of `rate`, 15 ms away, whose connections carry `cap`.
fn curve(rate: f64, cap: f64, sizes: &[usize], connections: &[usize]) -> Vec<Point> {
    let goodput = |c: usize, s: usize| (c as f64 * s as f64 / (0.015 + s as f64 / cap)).min(rate);
    connections.iter().flat_map(|c| sizes.iter().map(move |s| point(*c, *s, goodput(*c, *s)))).collect()
}

fn report(grid: Vec<Point>, ended: Ended) -> ProbeReport {
    let (best, knee) = (best(&grid).unwrap(), knee(&grid).unwrap());
    let bytes = |share: f64| (best.goodput_bytes_s / 2.0 * share) as u64;
    let lane = LaneReading { bytes: 0, span_s: 1.0, span_bytes: best.goodput_bytes_s as u64 };
    let reading = Reading {
        connections: 1,
        request_bytes: knee.request_bytes,
        seconds: 1.0,
        lanes: vec![lane],
        windows: vec![(0.5, bytes(0.98)), (0.5, bytes(1.02))],
        ..Reading::default()
    };
    let steady = reading.steady();
    let connects = Connects {
        addresses: vec![],
        resolve: Spread::default(),
        tcp: Spread { samples: 4, min_s: 0.015, p50_s: 0.015, p99_s: 0.016 },
        tls: None,
        first_byte: None,
    };
    let connection = one_connection(&grid, Some(0.015));
    let limit = limit(&grid, ended, &steady);
    ProbeReport {
        store: "http://host/".to_owned(),
        objects: 1,
        object_bytes: 1 << 40,
        seconds: 10.0,
        bytes: 1 << 30,
        connect: Some(connects),
        rtt_s: Some(0.015),
        first_byte: Spread { samples: 100, min_s: 0.015, p50_s: 0.015, p99_s: 0.016 },
        grid,
        best,
        knee,
        ended,
        connection,
        steady,
        limit,
        signs: vec![],
        defaults: InFlight { requests: 192, bytes: 64 << 20 },
        loader_request_bytes: MIB,
    }
}

fn need(mb_s: f64) -> Need {
    Need { bytes_s: mb_s * 1e6, sample_bytes: None }
}

#[test]
fn a_link_that_is_full_is_the_limit() {
    let report = report(curve(250e6, 280e6, &[KIB_256, MIB], &[1, 2, 4, 8, 16, 32]), Ended::Flat);
    // 8 × 1 MiB need 18.7 ms for what takes 33.6 ms at 250 MB/s.
    assert_eq!((report.knee.connections, report.knee.request_bytes, report.limit), (8, MIB, Limit::Link));
    let no = report.verdict(need(500.0));
    assert_eq!((no.answer, no.in_flight), (Answer::No, Some(InFlight { requests: 16, bytes: 16 << 20 })));
    assert!(no.text.starts_with("sustains 250 MB/s ± 7, you need 500: no. The limit is the link"), "{no}");
    assert!(no.text.contains("8 connections of 1 MiB carry 95 % of the best of up to 32"), "{no}");
    let yes = report.verdict(need(100.0));
    assert_eq!(yes.answer, Answer::Yes);
    assert!(
        yes.text.contains("yes, with 2.50 × to spare. farfeed's defaults (192 requests, 64 MiB in flight) suffice"),
        "{yes}"
    );
    assert_eq!(report.verdict(need(245.0)).answer, Answer::Barely);
    assert!(signs(&report).is_empty(), "{:?}", signs(&report));
}

#[test]
fn samples_are_counted_where_their_size_is_known() {
    let report = report(curve(250e6, 280e6, &[MIB], &[1, 2, 4, 8, 16, 32]), Ended::Flat);
    let verdict = report.verdict(Need { bytes_s: 500e6, sample_bytes: Some(100e3) });
    assert!(
        verdict.text.starts_with("sustains 2,500 samples/s ± 71 (250 MB/s ± 7), you need 5,000 (500 MB/s): no"),
        "{verdict}"
    );
}

#[test]
fn connections_that_are_capped_are_told_from_a_link_that_is_full() {
    let report = report(curve(10e9, 20e6, &[KIB_256, MIB], &[1, 2, 4, 8, 16]), Ended::Connections);
    assert_eq!(report.limit, Limit::Connections);
    let connection = report.connection.unwrap();
    assert!(connection.capped && (connection.body_bytes_s - 20e6).abs() < 1e5, "{connection:?}");
    assert!((connection.window_bytes.unwrap() - 300e3).abs() < 2e3);
    let verdict = report.verdict(need(1000.0));
    assert!(
        verdict.text.contains("still rose at 16 connections, as many as the probe was allowed, by about")
            && verdict.text.contains("about 71 connections"),
        "{verdict}"
    );
    let small = report.verdict(need(200.0));
    assert!(small.text.contains("defaults"), "{small}");
}

#[test]
fn a_grid_that_ended_early_does_not_blame_the_link() {
    // Time was over when only the smallest requests had been tried at 4.
    let mut grid = curve(1e9, 280e6, &[KIB_256, 8 * MIB], &[1, 2, 4]);
    grid.pop();
    let report = report(grid, Ended::Time);
    assert_eq!((report.best.connections, report.limit), (2, Limit::Connections));
    let verdict = report.verdict(need(900.0));
    assert!(
        verdict.text.contains("when the probe's time was used up") && verdict.text.contains("a larger probe"),
        "{verdict}"
    );
}

#[test]
fn a_store_that_needs_more_than_the_defaults_is_given_it() {
    let connections: Vec<usize> = (0..9).map(|n| 1 << n).collect();
    let report = report(curve(3e9, 20e6, &[MIB], &connections), Ended::Flat);
    let verdict = report.verdict(need(1500.0));
    // 128 carry 1.99 GB/s; twice that is in reach.
    assert_eq!(verdict.in_flight, Some(InFlight { requests: 256, bytes: 256 << 20 }));
    assert!(verdict.text.ends_with("Set requests to 256 and in_flight to 256MiB."), "{verdict}");
}

#[test]
fn refusals_falls_queues_and_fading_are_signs() {
    let mut grid = curve(250e6, 280e6, &[MIB], &[1, 2, 4, 8, 16, 32]);
    grid[5].throttled = 50;
    grid[5].goodput_bytes_s = 100e6;
    grid[3].first_byte = Some(Spread { samples: 9, min_s: 0.1, p50_s: 0.3, p99_s: 0.4 });
    grid[3].request_p50_s = Some(0.31);
    let mut report = report(grid, Ended::Flat);
    report.steady.last_third_bytes_s = 0.5 * report.steady.first_third_bytes_s;
    report.bytes = 3 << 40;
    let signs = signs(&report);
    assert!(signs.contains(&Sign::Refused { throttled: 50, requests: 600 }), "{signs:?}");
    let falls = signs.iter().any(|sign| matches!(sign, Sign::Falls { from, to } if to.connections == 32));
    let queues = signs.iter().any(|sign| matches!(sign, Sign::Queues { connections: 8, .. }));
    assert!(falls && queues && signs.iter().any(|sign| matches!(sign, Sign::Fades { .. })), "{signs:?}");
    assert!(signs.contains(&Sign::Reread { times: 3.0 }));
    assert_eq!(report.limit, Limit::Throttling);
    let text: Vec<String> = signs.iter().map(Sign::to_string).collect();
    assert!(text[0].contains("50 of 600 requests (8.33 %) were refused"), "{text:?}");
    assert!(report.verdict(need(500.0)).text.contains("it refused 8.33 % of the requests"));
}

#[test]
fn a_machine_that_is_busy_is_the_limit() {
    let mut grid = curve(250e6, 280e6, &[MIB], &[1, 2, 4, 8, 16, 32]);
    grid.iter_mut().for_each(|point| point.busy = 0.97);
    let report = report(grid, Ended::Flat);
    assert_eq!(report.limit, Limit::Machine);
    assert!(report.verdict(need(500.0)).text.contains("busy for 97 % of the time"));
}

#[test]
fn a_handshake_with_somebody_nearer_is_no_round_trip() {
    let spread = |min_s| Spread { samples: 5, min_s, p50_s: min_s, p99_s: min_s };
    let connects = |tcp, fresh| Connects {
        addresses: vec![],
        resolve: spread(0.0),
        tcp: spread(tcp),
        tls: None,
        first_byte: Some(spread(fresh)),
    };
    assert_eq!(rtt_s(&connects(0.015, 0.0155), &spread(0.0152)), 0.015);
    assert!((rtt_s(&connects(0.0001, 0.0302), &spread(0.0151)) - 0.0151).abs() < 1e-9);
}

#[test]
fn thirds_tell_whether_it_faded() {
    let windows = (0..9).map(|n| (0.5, if n < 3 { 100 } else { 40 })).collect();
    let steady = Reading { windows, ..Reading::default() }.steady();
    assert_eq!((steady.first_third_bytes_s, steady.last_third_bytes_s), (200.0, 80.0));
    let nothing = Reading::default();
    assert_eq!((nothing.steady().goodput_bytes_s, nothing.point().goodput_bytes_s), (0.0, 0.0));
}

#[test]
fn whole_requests_count_where_too_little_was_seen() {
    let periodic = LaneReading { bytes: 0, span_s: 0.4, span_bytes: 4_000_000 };
    let hanging = LaneReading { bytes: 500_000, span_s: 0.1, span_bytes: 9_000_000 };
    let lanes = vec![periodic, hanging];
    let reading = Reading { connections: 2, request_bytes: MIB, seconds: 0.5, lanes, ..Reading::default() };
    assert_eq!(reading.point().goodput_bytes_s, 10e6 + 1e6);
    let lane = LaneReading { bytes: 50_000_000, span_s: 0.4, span_bytes: 44_000_000 };
    let reading = Reading { connections: 1, lanes: vec![lane], ..reading };
    assert_eq!(reading.point().goodput_bytes_s, 100e6);
}

proptest! {
    #[test]
    fn the_knee_is_as_good_as_the_best_and_nothing_smaller_is(goodputs in proptest::collection::vec(0.0..1e9f64, 1..28)) {
        let places = (0..).flat_map(|level| [KIB_256, MIB, 4 * MIB].map(|bytes| (1usize << level, bytes)));
        let grid: Vec<Point> = goodputs.iter().zip(places).map(|(goodput, (c, s))| point(c, s, *goodput)).collect();
        let (best, knee) = (best(&grid).unwrap(), knee(&grid).unwrap());
        prop_assert!(knee.goodput_bytes_s >= AS_GOOD * best.goodput_bytes_s && knee.connections <= best.connections);
        for point in &grid {
            let smaller = (point.connections, point.request_bytes) < (knee.connections, knee.request_bytes);
            prop_assert!(!smaller || point.goodput_bytes_s < AS_GOOD * best.goodput_bytes_s);
        }
        let beyond = beyond(&grid, knee);
        prop_assert!(beyond.goodput_bytes_s >= AS_GOOD * knee.goodput_bytes_s);
    }

    #[test]
    fn the_verdict_follows_what_was_held(rate in 1e6..5e9f64, times in 0.01..10.0f64) {
        let report = report(curve(rate, 280e6, &[KIB_256, MIB], &[1, 2, 4, 8, 16, 32, 64]), Ended::Flat);
        let verdict = report.verdict(Need { bytes_s: times * report.steady.goodput_bytes_s, sample_bytes: None });
        let expected = match times {
            t if t > 1.0 => Answer::No,
            t if t < 0.92 => Answer::Yes,
            _ => return Ok(()),
        };
        prop_assert_eq!(verdict.answer, expected);
        prop_assert!(!verdict.text.contains("NaN") && !verdict.text.contains("inf") && !verdict.text.contains('?'));
        if let Some(in_flight) = verdict.in_flight {
            prop_assert!(in_flight.requests <= REQUESTS_MAX);
        }
    }
}
