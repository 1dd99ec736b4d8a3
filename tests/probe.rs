//! The probe against links whose numbers are known, because they are emulated.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::time::{Duration, Instant};

use farfeed::emulate::{Effect, Fault, Faults, Link, Objects, Server, Site};
use farfeed::probe::{Answer, Ended, Limit, Need, ProbeOptions, ProbeReport, ProbeStage, Sign};
use farfeed::{Error, Kind, Loader};

#[path = "fixture/terminator.rs"]
#[allow(unreachable_pub, unfulfilled_lint_expectations, reason = "shared by tests that use more and less of it")]
mod terminator;

const RTT: Duration = Duration::from_millis(15);
const MIB: usize = 1 << 20;

fn server(link: Link, faults: Faults) -> Server {
    let objects = Objects::from_iter([("a.tar", vec![7_u8; 40 * MIB]), ("b.tar", vec![8_u8; 24 * MIB])]);
    Server::start(Site::objects(objects), link, faults).unwrap()
}

fn options(seconds: f64, connections_max: usize) -> ProbeOptions {
    ProbeOptions {
        time: Duration::from_secs_f64(seconds),
        bytes: 400_000_000,
        connections_max,
        request_sizes: vec![256 << 10, MIB],
        ..ProbeOptions::default()
    }
}

fn probe(url: &str, options: ProbeOptions) -> Result<ProbeReport, Error> {
    Loader::builder(url).probe(options, &mut |_| {})
}

fn probe_server(server: &Server, options: ProbeOptions) -> ProbeReport {
    probe(&format!("{}/{{a,b}}.tar", server.url()), options).unwrap()
}

#[test]
fn a_link_with_capped_connections_has_its_knee_where_they_fill_it() {
    // A window of 128 KiB carries 8.7 MB/s at 15 ms; four of them carry less than 30 MB/s, eight more than 40 if the link did.
    let link = Link { window_bytes: 128 << 10, ..Link::rtt(RTT).rate(40_000_000) };
    let server = server(link, Faults::none());
    let (began, mut stages) = (Instant::now(), Vec::new());
    let report = Loader::builder(format!("{}/{{a,b}}.tar", server.url()))
        .probe(options(6.0, 16), &mut |progress| stages.push(progress.stage))
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert!(stages.contains(&ProbeStage::FirstBytes) && stages.iter().any(|s| matches!(s, ProbeStage::Holding(..))));
    eprintln!("{report:#?}");

    let rtt = report.rtt_s.unwrap();
    assert!((0.014..0.022).contains(&rtt), "round trip of {rtt} s");
    let connect = report.connect.as_ref().unwrap();
    assert!(connect.tcp.samples >= 2 && connect.tls.is_none() && connect.addresses == [server.address()]);
    assert!(report.first_byte.samples >= 50 && report.first_byte.p50_s >= 0.0149, "{:?}", report.first_byte);
    assert!(report.first_byte.p99_s >= report.first_byte.p50_s);

    assert!((4..=16).contains(&report.knee.connections), "{:?}", report.knee);
    let connection = report.connection.unwrap();
    assert!(connection.capped, "{connection:?}");
    assert!((4e6..9.5e6).contains(&connection.body_bytes_s), "{connection:?}");
    assert!(report.best.goodput_bytes_s < 42e6 && report.steady.goodput_bytes_s < 42e6);
    assert!(report.steady.goodput_bytes_s > 15e6, "{:?}", report.steady);
    assert_eq!((report.objects, report.object_bytes), (2, 64 << 20));
    assert!(report.bytes <= 400_000_000);

    let no = report.verdict(Need { bytes_s: 500e6, sample_bytes: None });
    assert_eq!(no.answer, Answer::No);
    assert!(no.text.contains("you need 500: no."), "{no}");
    let yes = report.verdict(Need { bytes_s: 5e6, sample_bytes: Some(50e3) });
    assert_eq!(yes.answer, Answer::Yes);
    assert!(
        yes.text.contains("samples/s") && yes.text.contains("defaults (256 requests, 256 MiB in flight) suffice"),
        "{yes}"
    );
    serde_json::to_string(&report).unwrap();
}

#[test]
fn goodput_that_still_rises_is_told_from_a_full_link() {
    let link = Link { window_bytes: 256 << 10, ..Link::rtt(RTT) };
    let report = probe_server(&server(link, Faults::none()), options(4.0, 4));
    assert_eq!((report.best.connections, report.ended, report.limit), (4, Ended::Connections, Limit::Connections));
    let verdict = report.verdict(Need { bytes_s: 1e9, sample_bytes: None });
    assert!(verdict.text.contains("Goodput still rose at 4 connections"), "{verdict}");
}

#[test]
fn a_store_that_refuses_is_found_and_not_pressed() {
    let faults = Faults::none().with(Fault::new(Effect::unavailable()).probability(0.3)).seed(3);
    let server = server(Link::rtt(Duration::from_millis(4)).rate(100_000_000), faults);
    let report = probe_server(&server, options(3.0, 64));
    assert_eq!(report.limit, Limit::Throttling);
    let refused = report.signs.iter().find_map(|sign| match sign {
        Sign::Refused { throttled, requests } => Some(*throttled as f64 / *requests as f64),
        _ => None,
    });
    assert!((0.05..0.75).contains(&refused.unwrap()), "{:?}", report.signs);
    let most = report.grid.iter().map(|point| point.connections).max().unwrap();
    assert!(most <= 8, "pressed on with {most} connections");
    let verdict = report.verdict(Need { bytes_s: 1e9, sample_bytes: None });
    assert!(verdict.text.contains("it refused"), "{verdict}");
}

#[test]
fn bytes_are_a_hard_limit() {
    let server = server(Link::rtt(Duration::from_millis(1)).rate(200_000_000), Faults::none());
    let report = probe_server(&server, ProbeOptions { bytes: 30_000_000, ..options(10.0, 16) });
    assert!(report.bytes <= 30_000_000, "{} bytes", report.bytes);
    assert!(server.stats().bytes <= 33_000_000, "{:?}", server.stats());
    assert!(report.steady.goodput_bytes_s > 1e6);
}

#[test]
fn tls_has_a_price_of_its_own() {
    let server = server(Link::rtt(Duration::from_millis(2)).rate(100_000_000), Faults::none());
    let front = terminator::Terminator::start(&[server.address()]);
    let report = Loader::builder(format!("{}/{{a,b}}.tar", front.url()))
        .ca_bundle(front.ca_bundle())
        .probe(options(2.0, 4), &mut |_| {})
        .unwrap();
    let connect = report.connect.as_ref().unwrap();
    let tls = connect.tls.unwrap();
    assert!(tls.samples == connect.tcp.samples && tls.min_s > 0.0 && report.best.goodput_bytes_s > 1e6, "{connect:?}");
    assert!(report.to_string().contains(" for TLS"), "{report}");
}

#[test]
fn a_file_has_no_connections_but_a_goodput() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.bin");
    std::fs::write(&path, vec![1_u8; 32 * MIB]).unwrap();
    let report = probe(path.to_str().unwrap(), options(2.0, 8)).unwrap();
    assert!(report.connect.is_none() && report.rtt_s.is_none());
    assert!(report.best.goodput_bytes_s > 1e6 && report.first_byte.samples >= 50);
    assert!(report.signs.iter().any(|sign| matches!(sign, Sign::Reread { .. })) || report.bytes <= 32 << 20);
}

#[test]
fn what_cannot_be_probed_is_refused() {
    let server = server(Link::default(), Faults::none());
    let fails = |url: String, options: ProbeOptions| probe(&url, options).unwrap_err();
    let url = format!("{}/a.tar", server.url());
    let small = ProbeOptions { request_sizes: vec![8 * MIB], ..options(2.0, 4) };
    let error = fails(url.clone(), small);
    assert!(error.kind() == Kind::Config && error.to_string().contains("67108864 bytes or more"), "{error}");
    assert_eq!(fails(url.clone(), options(0.5, 4)).kind(), Kind::Config);
    assert_eq!(fails(url.clone(), options(2.0, 0)).kind(), Kind::Config);
    assert_eq!(fails(url, ProbeOptions { request_sizes: vec![], ..options(2.0, 4) }).kind(), Kind::Config);
    assert_eq!(fails(format!("{}/none.tar", server.url()), options(2.0, 4)).kind(), Kind::NotFound);
    let (address, url) = (server.address(), format!("{}/a.tar", server.url()));
    drop(server);
    let began = Instant::now();
    assert_eq!(fails(url, options(1.0, 4)).kind(), Kind::Io);
    let gone = probe_target(&format!("http://{address}/"), "a.tar", options(2.0, 4));
    assert_eq!(gone.kind(), Kind::Io);
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// The error of a probe of a server that is not there.
fn probe_target(root: &str, key: &str, options: ProbeOptions) -> Error {
    use farfeed::store::{HttpOptions, HttpStore};
    let store = HttpStore::open(root, HttpOptions::default()).unwrap();
    let target = farfeed::probe::Target { store, key: key.into(), size: 64 << 20 };
    farfeed::probe::probe(&[target], &options, &mut |_| {}).unwrap_err()
}
