//! The emulated link in front of another server, over real sockets: bytes, delays, rates, back-pressure, faults, outages.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farfeed::Kind;
use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Relay};

/// How late a busy machine may be. What must not be early is checked without it.
const LATE: Duration = Duration::from_millis(400);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

/// A server of one's own protocol: four bytes ask for so many bytes, the last connection's end ends its thread.
struct Far {
    address: SocketAddr,
    written: Arc<AtomicU64>,
}

impl Far {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, written) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&written);
        // Left to the end of the process: it waits in `accept`.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, counted) = (stream.unwrap(), Arc::clone(&counted));
                std::thread::spawn(move || drop(answer(stream, &counted)));
            }
        });
        Far { address, written }
    }

    fn relay(&self, link: Link, faults: impl Into<Faults>) -> Relay {
        Relay::start(self.address, link, faults).unwrap()
    }
}

fn answer(mut stream: TcpStream, written: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0; 4];
    while stream.read_exact(&mut wanted).is_ok() {
        let body = bytes(u32::from_le_bytes(wanted) as usize);
        for piece in body.chunks(16 << 10) {
            stream.write_all(piece)?;
            written.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, size: usize) {
    stream.write_all(&u32::try_from(size).unwrap().to_le_bytes()).unwrap();
}

/// Asks, and gives what came and how it ended.
fn fetch(stream: &mut TcpStream, size: usize) -> (Vec<u8>, Option<ErrorKind>) {
    ask(stream, size);
    let (mut body, mut read) = (vec![0; size], 0);
    while read < size {
        match stream.read(&mut body[read..]) {
            Ok(0) => return (body[..read].to_vec(), Some(ErrorKind::UnexpectedEof)),
            Ok(n) => read += n,
            Err(error) => return (body[..read].to_vec(), Some(error.kind())),
        }
    }
    (body, None)
}

#[test]
fn passes_bytes_on_and_costs_the_round_trips() {
    let far = Far::start();
    let relay = far.relay(Link::rtt(ms(40)), Faults::none());
    let started = Instant::now();
    let mut client = connect(relay.address());
    let mut took = |size: usize| {
        let started = Instant::now();
        assert!(fetch(&mut client, size) == (bytes(size), None));
        started.elapsed()
    };
    // Request and answer; then 10, 20, 40, 80, 160 packets of 300,000 bytes. The first includes the handshake.
    let first = took(100);
    assert!(started.elapsed() >= ms(80) && first < ms(80) + LATE, "{first:?}");
    for (size, rounds) in [(100, 1), (300_000, 5)] {
        let took = took(size);
        assert!(took >= ms(40) * rounds && took < ms(40) * rounds + LATE, "{took:?} for {rounds} rounds");
    }
    let stats = relay.stats();
    assert_eq!((stats.connections, stats.connections_open, stats.requests, stats.faults), (1, 1, 0, 0));
    assert_eq!(relay.upstream(), far.address);
}

#[test]
fn both_ends_pass() {
    // Sends back what it got, once the client has ended.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = Relay::start(listener.local_addr().unwrap(), Link::rtt(ms(4)), Faults::none()).unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let sent = bytes(5 << 20);
    let mut client = connect(relay.address());
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    echo.join().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while relay.stats().connections_open > 0 {
        assert!(Instant::now() < deadline, "ended on both sides and still open");
        std::thread::sleep(ms(1));
    }
}

#[test]
fn connections_share_the_rate() {
    let far = Far::start();
    let rate = 40_000_000;
    let mut best = 0.0_f64;
    // A busy machine may lower the share, so the best of three counts; nothing may raise it.
    for _ in 0..3 {
        let relay = far.relay(Link::rtt(ms(10)).rate(rate), Faults::none());
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    assert!(fetch(&mut connect(relay.address()), 5_000_000) == (bytes(5_000_000), None));
                });
            }
        });
        let share = 40e6 / (started.elapsed() - ms(20)).as_secs_f64() / rate as f64;
        assert!(share <= 1.02 && relay.stats().bytes == 40_000_000, "{share:.3} of the rate");
        best = best.max(share);
        if best >= 0.85 {
            return;
        }
    }
    panic!("{best:.3} of the rate at the best");
}

#[test]
fn a_slow_client_makes_the_server_wait() {
    let far = Far::start();
    let relay = far.relay(Link { window_bytes: 256 << 10, ..Link::rtt(ms(2)) }, Faults::none());
    let mut client = connect(relay.address());
    let size = 256 << 20;
    ask(&mut client, size);
    // The window and a piece in the relay; the rest in the sockets' buffers, some MiB each.
    let mut last = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        std::thread::sleep(ms(200));
        let written = far.written.load(Ordering::Relaxed);
        if written > 0 && written == last {
            break;
        }
        last = written;
        assert!(Instant::now() < deadline, "the server never waited");
    }
    assert!(last < 64 << 20, "{last} bytes were taken for a client that reads nothing");
}

#[test]
fn connections_break_stall_and_drip() {
    let far = Far::start();
    for (how, expected) in [(Cut::Close, ErrorKind::UnexpectedEof), (Cut::Reset, ErrorKind::ConnectionReset)] {
        let relay = far.relay(Link::default(), Fault::new(Effect::Cut { after: 1000, how }).nth(2));
        assert!(fetch(&mut connect(relay.address()), 5000) == (bytes(5000), None));
        let (got, end) = fetch(&mut connect(relay.address()), 5000);
        assert_eq!((got.len(), end), (1000, Some(expected)));
        assert_eq!((got, relay.stats().faults), (bytes(5000)[..1000].to_vec(), 1));
    }

    let relay = far.relay(Link::default(), Fault::new(Effect::Corrupt { at: 70_000 }));
    let (got, _) = fetch(&mut connect(relay.address()), 200_000);
    let right = bytes(200_000);
    let wrong: Vec<_> = (0..200_000).filter(|n| got.get(*n) != Some(&right[*n])).collect();
    assert_eq!(wrong, [70_000]);

    for (effect, floor) in [
        (Effect::Stall { after: 10, pause: ms(200) }, ms(199)),
        (Effect::Drip { bytes_s: 20_000 }, ms(230)),
        (Effect::Delay(ms(200)), ms(199)),
    ] {
        let relay = far.relay(Link::default(), Fault::new(effect.clone()));
        let started = Instant::now();
        assert!(fetch(&mut connect(relay.address()), 5000) == (bytes(5000), None));
        let took = started.elapsed();
        assert!(took >= floor && took < floor + LATE, "{effect:?} took {took:?}, not {floor:?}");
    }
}

#[test]
fn faults_of_http_are_refused() {
    let far = Far::start();
    for faults in [
        Faults::from(Fault::new(Effect::unavailable())),
        Faults::from(Fault::new(Effect::Delay(ms(1))).on("key")),
        Faults::none().token("t", None),
    ] {
        let error = Relay::start(far.address, Link::default(), faults).unwrap_err();
        assert!(error.kind() == Kind::Config && error.next_step().unwrap().contains("Drip"), "{error}");
    }
}

#[test]
fn a_server_that_is_not_there_resets() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relay = Relay::start(gone, Link::default(), Faults::none()).unwrap();
    let mut client = connect(relay.address());
    let error = client.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn addresses_go_away_apart() {
    let far = Far::start();
    let addresses = ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"].map(|address| address.parse().unwrap());
    let relay = Relay::bind_all(&addresses, far.address, Link::rtt(ms(2)), Faults::none()).unwrap();
    let [a, b, c] = relay.addresses()[..] else { panic!("three addresses") };
    assert!(a.port() == b.port() && b.port() == c.port() && a.ip() != b.ip());
    let mut clients = [a, b, c].map(connect);
    for client in &mut clients {
        assert!(fetch(client, 10) == (bytes(10), None));
    }

    relay.kill(b).unwrap();
    relay.refuse_for_at(c, ms(300)).unwrap();
    let started = Instant::now();
    assert!(fetch(&mut clients[0], 10) == (bytes(10), None), "the others go on");
    assert_eq!(clients[1].read(&mut [0]).unwrap_or(0), 0, "open connections end");
    for address in [b, c] {
        let refused = TcpStream::connect(address).unwrap_err();
        assert!(refused.kind() == ErrorKind::ConnectionRefused || started.elapsed() > ms(300));
    }
    while TcpStream::connect(c).is_err() {
        assert!(started.elapsed() < Duration::from_secs(5), "never came back");
        std::thread::sleep(ms(5));
    }
    assert!(started.elapsed() >= ms(290), "{:?}", started.elapsed());
    assert!(TcpStream::connect(b).is_err());
    relay.refuse_for_at(b, Duration::ZERO).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(b).is_err() {
        assert!(Instant::now() < deadline, "never revived");
    }
    let elsewhere = relay.kill(far.address).unwrap_err();
    assert_eq!(elsewhere.kind(), Kind::Config);
}

#[test]
fn it_stops_within_a_second_whatever_goes_on() {
    let far = Far::start();
    let relay = far.relay(Link::rtt(ms(100)).rate(1_000_000), Faults::none());
    let mut clients: Vec<_> = (0..20).map(|_| connect(relay.address())).collect();
    clients.iter_mut().for_each(|client| ask(client, 1 << 20));
    clients[0].read_exact(&mut [0; 100]).unwrap();
    let address = relay.address();
    relay.kill(address).unwrap();
    let started = Instant::now();
    drop(relay);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(TcpStream::connect(address).is_err());
}
