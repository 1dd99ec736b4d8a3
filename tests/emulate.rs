//! The emulated link over real sockets: delays, rates, ranges, faults, shutdown.

#![expect(clippy::unwrap_used, reason = "a test may")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use farfeed::Kind;
use farfeed::emulate::{Cut, Effect, Fault, Faults, Link, Objects, Server, Site};

/// How late a busy machine may be. What must not be early is checked without it.
const LATE: Duration = Duration::from_millis(400);

const SIZE: usize = 300_000;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

fn server(link: Link, faults: impl Into<Faults>) -> Server {
    let objects = Objects::from_iter([("a/b.tar", bytes(SIZE))]);
    Server::start(Site::objects(objects), link, faults).unwrap()
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// How the body ended, if not as announced.
    broken: Option<std::io::ErrorKind>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// The simplest client that can show everything.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::with_capacity(64 << 10, stream))
    }

    fn send(&mut self, method: &str, target: &str, headers: &str) {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    fn head(&mut self) -> (u16, String, usize) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "closed in the head: {head:?}");
        }
        let status = head[9..12].parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let length = length.parse().unwrap();
        (status, head, length)
    }

    /// A body in chunks, put together, with their sizes.
    fn get_chunked(&mut self, target: &str, headers: &str) -> (String, Vec<u8>, Vec<usize>) {
        self.send("GET", target, headers);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "closed in the head: {head:?}");
        }
        let (mut body, mut sizes) = (Vec::new(), Vec::new());
        while sizes.last() != Some(&0) {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.0.read_exact(&mut chunk).unwrap();
            assert!(chunk.ends_with(b"\r\n"));
            body.extend_from_slice(&chunk[..size]);
            sizes.push(size);
        }
        (head, body, sizes)
    }

    fn get(&mut self, target: &str, headers: &str) -> Reply {
        self.send("GET", target, headers);
        let (status, head, length) = self.head();
        let mut body = vec![0; length];
        let (mut read, mut broken) = (0, None);
        while read < length {
            match self.0.read(&mut body[read..]) {
                Ok(0) => {
                    broken = Some(std::io::ErrorKind::UnexpectedEof);
                    break;
                }
                Ok(n) => read += n,
                Err(error) => {
                    broken = Some(error.kind());
                    break;
                }
            }
        }
        body.truncate(read);
        Reply { status, head, body, broken }
    }
}

fn get(server: &Server, headers: &str) -> Reply {
    Client::connect(server.address()).get("/a/b.tar", headers)
}

#[test]
fn serves_ranges_of_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("x")).unwrap();
    std::fs::write(directory.path().join("x/a b.tar"), bytes(SIZE)).unwrap();
    let server = Server::start(Site::directory(directory.path()), Link::default(), Faults::none()).unwrap();
    let mut client = Client::connect(server.address());

    let whole = client.get("/x/a%20b.tar?signature=1", "");
    assert_eq!((whole.status, whole.header("Content-Length")), (200, Some("300000")));
    assert!(whole.body == bytes(SIZE));
    let etag = whole.header("ETag").unwrap().to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'));

    let range = client.get("/x/a%20b.tar", &format!("Range: bytes=1000-200999\r\nIf-Match: {etag}\r\n"));
    assert_eq!((range.status, range.header("Content-Range")), (206, Some("bytes 1000-200999/300000")));
    assert!(range.body == bytes(SIZE)[1000..201_000] && range.header("ETag") == Some(&etag));
    assert_eq!(client.get("/x/a%20b.tar", "Range: bytes=-7\r\n").body, bytes(SIZE)[SIZE - 7..]);
    let past = client.get("/x/a%20b.tar", "Range: bytes=300000-\r\n");
    assert_eq!((past.status, past.header("Content-Range")), (416, Some("bytes */300000")));
    assert_eq!(client.get("/x/a%20b.tar", "If-Match: \"other\"\r\n").status, 412);
    assert_eq!(client.get("/x/none", "").status, 404);
    assert_eq!(client.get("/x/../../etc/passwd", "").status, 404);

    client.send("HEAD", "/x/a%20b.tar", "");
    let (status, _, length) = client.head();
    assert_eq!((status, length), (200, SIZE));
    // The next answer follows directly: the one to HEAD had no body. All this was one connection.
    assert_eq!(client.get("/x/a%20b.tar", "Range: bytes=0-0\r\n").body.len(), 1);
    // The last byte is counted once it is sent, which may be after it was received.
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.stats().bytes < 300_000 + 200_000 + 7 + 1 && Instant::now() < deadline {
        std::thread::sleep(ms(1));
    }
    let stats = server.stats();
    assert_eq!((stats.connections, stats.requests, stats.faults), (1, 9, 0));
    assert_eq!(stats.bytes, 300_000 + 200_000 + 7 + 1);

    std::fs::write(directory.path().join("x/a b.tar"), bytes(5)).unwrap();
    assert_eq!(client.get("/x/a%20b.tar", &format!("If-Match: {etag}\r\n")).status, 412);
}

#[test]
fn distance_costs_its_round_trips() {
    let server = server(Link::rtt(ms(40)), Faults::none());
    let mut client = Client::connect(server.address());
    let mut took = |headers: &str| {
        let started = Instant::now();
        assert_eq!(client.get("/a/b.tar", headers).broken, None);
        started.elapsed()
    };
    // Handshake and request; then a request each; then 10, 20, 40, 80, 160 packets of 300,000 bytes.
    for (headers, rounds) in [("Range: bytes=0-99\r\n", 2), ("Range: bytes=0-99\r\n", 1), ("", 5)] {
        let took = took(headers);
        // The client's clock starts a little before the server's.
        assert!(took >= ms(40) * rounds - ms(1) && took < ms(40) * rounds + LATE, "{took:?} for {rounds} rounds");
    }

    let early = Client::connect(server.address());
    std::thread::sleep(ms(60));
    let (mut early, started) = (early, Instant::now());
    early.get("/a/b.tar", "Range: bytes=0-99\r\n");
    let took = started.elapsed();
    assert!(took >= ms(39) && took < ms(40) + LATE, "a connection opened ahead costs one: {took:?}");
}

#[test]
fn all_connections_share_the_rate() {
    // A busy machine may lower the share, so the best of three counts; nothing may raise it.
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let share = share_of_the_rate(60_000_000, 8);
        assert!(share <= 1.02, "{share:.3} of the rate");
        best = best.max(share);
        if best >= 0.9 {
            return;
        }
    }
    panic!("{best:.3} of the rate at the best");
}

/// Goodput of `clients` that read 1 MiB ranges for 1.2 s, as a share of `rate`.
fn share_of_the_rate(rate: u64, clients: usize) -> f64 {
    const RANGE: usize = 1 << 20;
    let expected = bytes(32 * RANGE);
    let link = Link::rtt(ms(10)).rate(rate);
    let objects = Objects::from_iter([("big", expected.clone())]);
    let server = Server::start(Site::objects(objects), link, Faults::none()).unwrap();
    let started = Instant::now();
    let reads = &|client: usize| {
        let mut connection = Client::connect(server.address());
        let mut read = 0_u64;
        for range in (0..32).cycle().skip(client * 4) {
            let (first, last) = (range * RANGE, (range + 1) * RANGE - 1);
            let reply = connection.get("/big", &format!("Range: bytes={first}-{last}\r\n"));
            assert!(reply.status == 206 && reply.body == expected[first..=last]);
            read += RANGE as u64;
            if started.elapsed() > ms(1200) {
                break;
            }
        }
        read
    };
    let read = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|client| scope.spawn(move || reads(client))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u64>()
    });
    // Two round trips pass before the first byte.
    let seconds = (started.elapsed() - ms(20)).as_secs_f64();
    // The server counts what it has handed over, and its thread may not have come to that yet.
    let counted = || server.stats().connections == clients as u64 && server.stats().bytes == read;
    let deadline = Instant::now() + ms(5000);
    while !counted() {
        assert!(Instant::now() < deadline, "{read} bytes read, {:?}", server.stats());
        std::thread::sleep(ms(1));
    }
    read as f64 / seconds / rate as f64
}

#[test]
fn the_link_can_change_on_the_way() {
    let server = server(Link::default(), Faults::none());
    let mut client = Client::connect(server.address());
    assert_eq!(client.get("/a/b.tar", "").status, 200);
    server.set_link(Link::rtt(ms(150))).unwrap();
    let started = Instant::now();
    assert_eq!(client.get("/a/b.tar", "Range: bytes=0-0\r\n").status, 206);
    assert!(started.elapsed() >= ms(149), "{:?}", started.elapsed());
    let error = server.set_link(Link { loss: 2.0, ..Link::default() }).unwrap_err();
    assert!(error.kind() == Kind::Config && error.to_string().contains("loss lies between"), "{error}");
}

#[test]
fn a_dead_link_says_nothing_and_comes_back() {
    let server = server(Link::rtt(ms(5)), Faults::none());
    let mut client = Client::connect(server.address());
    client.get("/a/b.tar", "Range: bytes=0-0\r\n");
    server.silence_for(ms(300));
    let started = Instant::now();
    let reply = client.get("/a/b.tar", "");
    let took = started.elapsed();
    assert!(reply.body == bytes(SIZE) && took >= ms(299) && took < ms(340) + LATE, "{took:?}");
}

#[test]
fn a_server_that_goes_away_refuses_and_returns() {
    let server = server(Link::default(), Faults::none());
    let mut client = Client::connect(server.address());
    client.get("/a/b.tar", "Range: bytes=0-0\r\n");
    server.refuse_for(ms(400)).unwrap();
    let started = Instant::now();
    assert_eq!(client.0.read(&mut [0]).unwrap_or(0), 0, "open connections end");
    let refused = TcpStream::connect(server.address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    while TcpStream::connect(server.address()).is_err() {
        assert!(started.elapsed() < Duration::from_secs(5), "never came back");
        std::thread::sleep(ms(5));
    }
    assert!(started.elapsed() >= ms(350), "{:?}", started.elapsed());
    assert_eq!(get(&server, "").body, bytes(SIZE));
}

#[test]
fn faults_of_the_head_are_seen() {
    let unavailable = Effect::Status { status: 503, retry_after: Some(Duration::from_secs(2)) };
    let faults = Faults::none()
        .with(Fault::new(unavailable).nth(1))
        .with(Fault::new(Effect::Status { status: 429, retry_after: None }).nth(2))
        .with(Fault::new(Effect::WrongETag).nth(3))
        .with(Fault::new(Effect::WrongContentRange).nth(4))
        .with(Fault::new(Effect::IgnoreRange).nth(5))
        .with(Fault::new(Effect::RedirectLoop).nth(6));
    let server = server(Link::default(), faults);
    let mut client = Client::connect(server.address());
    let replies: Vec<_> = (0..7).map(|_| client.get("/a/b.tar", "Range: bytes=1-3\r\n")).collect();
    let status: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(status, [503, 429, 206, 206, 200, 302, 206]);
    assert_eq!(replies[0].header("Retry-After"), Some("2"));
    assert_ne!(replies[2].header("ETag"), replies[6].header("ETag"));
    assert_eq!(replies[3].header("Content-Range"), Some("bytes 2-4/300001"));
    assert!(replies[4].body == bytes(SIZE));
    assert_eq!(replies[5].header("Location"), Some("/a/b.tar"));
    assert_eq!(replies[6].body, bytes(SIZE)[1..4]);
    assert_eq!(server.stats().faults, 6);
}

#[test]
fn bodies_are_cut() {
    for (how, expected) in
        [(Cut::Close, std::io::ErrorKind::UnexpectedEof), (Cut::Reset, std::io::ErrorKind::ConnectionReset)]
    {
        let server = server(Link::default(), Fault::new(Effect::Cut { after: 1000, how }).nth(1));
        let reply = get(&server, "");
        assert_eq!((reply.status, reply.header("Content-Length"), reply.broken), (200, Some("300000"), Some(expected)));
        assert_eq!(reply.body, bytes(SIZE)[..1000]);
        assert_eq!(get(&server, "").body, bytes(SIZE), "only the first was to be cut");
    }
}

#[test]
fn bodies_are_corrupted() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), bytes(SIZE)).unwrap();
    let fault = || Faults::from(Fault::new(Effect::Corrupt { at: 70_000 }));
    let from_disk = Server::start(Site::directory(directory.path()), Link::default(), fault()).unwrap();
    let replies = [get(&server(Link::default(), fault()), ""), Client::connect(from_disk.address()).get("/f", "")];
    for reply in replies {
        let right = bytes(SIZE);
        let wrong: Vec<_> = (0..SIZE).filter(|n| reply.body[*n] != right[*n]).collect();
        assert_eq!(wrong, [70_000]);
    }
}

#[test]
fn bodies_stall_drip_and_straggle() {
    let took = |effect, headers: &str| {
        let server = server(Link::rtt(ms(20)), Fault::new(effect));
        let mut client = Client::connect(server.address());
        std::thread::sleep(ms(30));
        let started = Instant::now();
        let reply = client.get("/a/b.tar", headers);
        assert!(reply.status == 206 && reply.broken.is_none() && bytes(SIZE).starts_with(&reply.body));
        started.elapsed()
    };
    for (effect, size, floor) in [
        (Effect::Stall { after: 10, pause: ms(200) }, 1000, ms(219)),
        (Effect::Drip { bytes_s: 20_000 }, 5000, ms(268)),
        (Effect::Delay(ms(200)), 1000, ms(219)),
        // Four rounds: 10, 20, 40, 80 packets of 200,000 bytes.
        (Effect::Slow { factor: 3.0 }, 200_000, ms(20 * 4 * 3 - 3)),
    ] {
        let took = took(effect.clone(), &format!("Range: bytes=0-{}\r\n", size - 1));
        assert!(took >= floor && took < floor + LATE, "{effect:?} took {took:?}, not {floor:?}");
    }
}

#[test]
fn tokens_are_asked_for_and_expire() {
    let server = server(Link::default(), Faults::none().token("secret", Some(ms(400))));
    let set = Instant::now();
    assert_eq!(get(&server, "").status, 401);
    assert_eq!(get(&server, "Authorization: Bearer wrong\r\n").status, 401);
    let right = || get(&server, "Authorization: Bearer secret\r\n").status;
    let first = right();
    assert!(first == 200 || set.elapsed() > ms(400));
    std::thread::sleep(ms(410));
    assert_eq!(right(), 401);
    server.set_faults(Faults::none().token("secret", None)).unwrap();
    assert_eq!(right(), 200);
    assert!(!format!("{:?}", Faults::none().token("secret", None)).contains("secret"));
}

#[test]
fn tokens_of_s3_are_asked_for_and_expire() {
    let faults = Faults::none().token("a/b", Some(ms(400))).token_refusal(Effect::expired_token());
    let server = server(Link::default(), faults);
    let set = Instant::now();
    let mut client = Client::connect(server.address());
    for (target, headers) in
        [("/a/b.tar?X-Amz-Security-Token=a%2Fb", ""), ("/a/b.tar", "x-amz-security-token: a/b\r\n")]
    {
        let first = client.get(target, headers);
        assert!(first.status == 200 || set.elapsed() > ms(400));
    }
    std::thread::sleep(ms(410));
    let refused = client.get("/a/b.tar?X-Amz-Security-Token=a%2Fb", "");
    let body = String::from_utf8(refused.body.clone()).unwrap();
    assert!(refused.status == 400 && body.contains("<Code>ExpiredToken</Code>") && !body.contains("a/b"), "{body}");
    assert_eq!(refused.header("Content-Type"), Some("application/xml"));
}

#[test]
fn bodies_come_in_chunks() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), bytes(SIZE)).unwrap();
    let site = Site::directory(directory.path()).chunked();
    let always = Server::start(site, Link::rtt(ms(2)).rate(50_000_000), Faults::none()).unwrap();
    let mut client = Client::connect(always.address());
    for headers in ["", "Range: bytes=1000-200999\r\n"] {
        let (head, body, sizes) = client.get_chunked("/f", headers);
        let expected = if headers.is_empty() { 0..SIZE } else { 1000..201_000 };
        assert!(body == bytes(SIZE)[expected], "{} bytes, {head}", body.len());
        assert!(head.contains("Transfer-Encoding: chunked") && !head.contains("Content-Length"), "{head}");
        assert!(sizes.len() > 3 && sizes[..sizes.len() - 2].iter().all(|size| *size == 64 << 10), "{sizes:?}");
    }
    let once = server(Link::default(), Fault::new(Effect::Chunked).nth(1));
    let mut client = Client::connect(once.address());
    assert!(client.get_chunked("/a/b.tar", "").1 == bytes(SIZE));
    assert!(client.get("/a/b.tar", "").body == bytes(SIZE), "only the first was to be in chunks");
}

#[test]
fn too_many_requests_at_a_time_are_told_to_slow_down() {
    let server = server(Link::rtt(ms(300)), Faults::none().max_concurrent(2));
    let mut clients: Vec<_> = (0..5).map(|_| Client::connect(server.address())).collect();
    clients.iter_mut().for_each(|client| client.send("GET", "/a/b.tar", "Range: bytes=0-9\r\n"));
    let mut status: Vec<_> = clients.iter_mut().map(|client| client.head().0).collect();
    status.sort_unstable();
    assert_eq!(status, [206, 206, 503, 503, 503]);
    assert_eq!(server.stats().faults, 3);
    // One after the other they are let in again.
    let started = Instant::now();
    while get(&server, "").status != 200 {
        assert!(started.elapsed() < Duration::from_secs(10), "they are still counted");
    }
}

#[test]
fn half_of_the_servers_can_be_dead() {
    let addresses: Vec<SocketAddr> = (1..=4).map(|n| format!("127.0.0.{n}:0").parse().unwrap()).collect();
    let objects = Objects::from_iter([("a/b.tar", bytes(SIZE))]);
    let server = Server::bind_all(&addresses, Site::objects(objects), Link::rtt(ms(1)), Faults::none()).unwrap();
    let bound = server.addresses();
    assert!(bound.len() == 4 && bound.iter().all(|address| address.port() == bound[0].port()), "{bound:?}");
    assert_eq!((server.address(), server.url()), (bound[0], format!("http://{}", bound[0]).as_str()));
    for dead in &bound[2..] {
        server.kill(*dead).unwrap();
    }
    for (n, address) in bound.iter().enumerate() {
        assert_eq!(TcpStream::connect(address).is_ok(), n < 2, "{address}");
    }
    assert!(Client::connect(bound[1]).get("/a/b.tar", "").body == bytes(SIZE));
    // All of them, dead and alive, are gone and come back together.
    server.refuse_for(ms(50)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !bound.iter().all(|address| TcpStream::connect(address).is_ok()) {
        assert!(Instant::now() < deadline, "not all came back");
        std::thread::sleep(ms(5));
    }
    let nowhere = Server::bind_all(&[], Site::objects(Objects::default()), Link::default(), Faults::none());
    assert_eq!(nowhere.unwrap_err().kind(), Kind::Config);
}

#[test]
fn one_connection_gets_its_rate_only() {
    let server = server(Link::rtt(ms(2)).connection_rate(1_000_000), Faults::none());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert!(get(&server, "").body == bytes(SIZE)));
        }
    });
    let took = started.elapsed();
    assert!(took >= ms(290) && took < ms(310) + LATE, "{took:?} for 0.3 s of each connection");
}

#[test]
fn bad_requests_are_refused_and_bounded() {
    let server = server(Link::default(), Faults::none());
    let status = |request: &[u8]| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request).unwrap();
        let mut reply = Vec::new();
        // A reset is fine where not everything was read.
        let _ = stream.read_to_end(&mut reply);
        reply.get(9..12).map(|status| String::from_utf8_lossy(status).into_owned())
    };
    assert_eq!(status(b"PUT /a HTTP/1.1\r\n\r\n").as_deref(), Some("405"));
    assert_eq!(status(b"nonsense\r\n\r\n").as_deref(), Some("400"));
    assert_eq!(status(&vec![b'x'; 16 << 10]).as_deref(), Some("431"));
    assert_eq!(get(&server, "").status, 200);
}

#[test]
fn a_client_that_leaves_frees_the_link() {
    let objects = Objects::from_iter([("big", vec![0; 64 << 20])]);
    let link = Link::rtt(ms(5)).rate(10_000_000);
    let server = Server::start(Site::objects(objects), link, Faults::none()).unwrap();
    let mut client = Client::connect(server.address());
    client.send("GET", "/big", "");
    client.head();
    client.0.get_ref().shutdown(Shutdown::Both).unwrap();
    drop(client);
    let started = Instant::now();
    while server.stats().connections_open > 0 {
        assert!(started.elapsed() < Duration::from_secs(3), "the server goes on");
        std::thread::sleep(ms(2));
    }
    assert!(server.stats().bytes < 16 << 20);
}

#[test]
fn it_stops_within_a_second_whatever_goes_on() {
    let objects = Objects::from_iter([("big", vec![0; 64 << 20])]);
    let link = Link::rtt(ms(100)).rate(1_000_000);
    let server = Server::start(Site::objects(objects), link, Fault::new(Effect::Delay(ms(100)))).unwrap();
    let address = server.address();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(address)).collect();
    clients.iter_mut().for_each(|client| client.send("GET", "/big", ""));
    clients[0].head();
    let started = Instant::now();
    drop(server);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert!(TcpStream::connect(address).is_err());

    let server = self::server(Link::default(), Faults::none());
    server.refuse_for(Duration::from_secs(60)).unwrap();
    let started = Instant::now();
    drop(server);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?} in an outage", started.elapsed());
}

#[test]
fn what_cannot_be_served_is_refused_at_the_start() {
    let start = |site, link| Server::start(site, link, Faults::none()).unwrap_err().kind();
    assert_eq!(start(Site::directory("/no/such/directory"), Link::default()), Kind::NotFound);
    let objects = || Site::objects(Objects::default());
    for link in [
        Link { window_bytes: 10, ..Link::default() },
        Link { rate_bytes_s: Some(0), ..Link::default() },
        Link { loss: f64::NAN, ..Link::default() },
        Link::rtt(Duration::from_secs(3600)),
    ] {
        assert_eq!(start(objects(), link), Kind::Config);
    }
    let taken = server(Link::default(), Faults::none());
    let error = Server::bind(taken.address(), objects(), Link::default(), Faults::none()).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
}
