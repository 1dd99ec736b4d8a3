//! The HTTP store against a real server, and against one that fails on purpose.

#![allow(clippy::unwrap_used, reason = "tests")]

mod fixture;

use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::Kind;
use farfeed::memory::Slab;
use farfeed::store::{FaultStore, HttpOptions, HttpStore, MemoryStore, ReadRequest, Store, Throttle, ThrottleStore};
use fixture::{Asked, FileServer, Reply, ScriptedServer, landing, pattern, read, request, run};

const PAGE: usize = 64 << 10;
const FREE: Throttle = Throttle { latency: Duration::ZERO, bytes_per_second: 0, requests: 0 };

fn open(url: &str) -> Arc<dyn Store> {
    HttpStore::open(url, HttpOptions::default()).unwrap()
}

fn slab(pages: usize) -> Slab {
    Slab::new(pages * PAGE, PAGE).unwrap()
}

/// Waits for what another thread is about to do.
fn soon(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn reads_what_was_put_and_says_what_it_cost() {
    let (server, slab) = (FileServer::start(), slab(64));
    let object = pattern(1, 3 << 20);
    server.put("deep/er/odd name+%é?.bin", &object);
    let store = server.store();
    run(async {
        let key = "deep/er/odd name+%é?.bin";
        let meta = store.head(key).await.unwrap();
        assert_eq!(meta.size, object.len() as u64);
        let version = meta.version.clone().unwrap();
        let whole = ReadRequest { size: Some(meta.size), version: meta.version, ..request(key, 0) };
        let (bytes, arrival) = read(&store, &slab, &whole, object.len()).await.unwrap();
        assert!(bytes == object);
        assert_eq!(arrival.version, Some(version));
        assert!(arrival.copied < 4096 && !arrival.opened && arrival.first_byte > Duration::ZERO, "{arrival:?}");
        let (bytes, arrival) = read(&store, &slab, &request(key, 777), 12_345).await.unwrap();
        assert!(bytes == object[777..777 + 12_345]);
        assert!(arrival.version.is_some() && !arrival.opened);
    });
    assert_eq!(server.accepted(), 1);
    assert_eq!(slab.usage().free, 64);
}

#[test]
fn empty_objects_have_a_size() {
    let server = FileServer::start();
    server.put("empty", b"");
    let refuses_head = ScriptedServer::start(|asked| match asked.line().0 {
        "HEAD" => Reply::new("405 Method Not Allowed", "", b""),
        _ => Reply::new("416 Range Not Satisfiable", "Content-Range: bytes */0\r\nETag: \"e\"\r\n", b""),
    });
    run(async {
        assert_eq!(server.store().head("empty").await.unwrap().size, 0);
        let meta = open(&refuses_head.url()).head("empty").await.unwrap();
        assert_eq!((meta.size, meta.version.unwrap().0.as_ref()), (0, "\"e\""));
    });
}

#[test]
fn size_and_version_come_by_get_where_head_is_refused() {
    let server = ScriptedServer::start(|asked| match (asked.line(), asked.range()) {
        (("HEAD", _), _) => Reply::new("501 Not Implemented", "", b""),
        (("GET", "/ranges"), Some((0, 0))) => Reply::range(asked, &[7; 99], "\"r\""),
        (("GET", "/dated"), Some((0, 0))) => {
            Reply::new("200 OK", "Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\n", &[7; 99])
        }
        _ => Reply::new("404 Not Found", "", b"no"),
    });
    let store = open(&server.url());
    run(async {
        let ranges = store.head("ranges").await.unwrap();
        assert_eq!((ranges.size, ranges.version.unwrap().0.as_ref()), (99, "\"r\""));
        let dated = store.head("dated").await.unwrap();
        assert_eq!((dated.size, dated.version.unwrap().0.as_ref()), (99, "Tue, 15 Nov 1994 12:45:26 GMT, 99 bytes"));
        assert_eq!(store.head("none").await.unwrap_err().kind(), Kind::NotFound);
    });
}

#[test]
fn many_at_once_land_where_they_belong() {
    const READS: usize = 64;
    let (server, slab) = (FileServer::start(), slab(READS * 8));
    let object = Arc::new(pattern(2, 4 << 20));
    server.put("o", &object);
    let store = server.store();
    run(async {
        let meta = store.head("o").await.unwrap();
        for round in 0..3 {
            let mut reads = tokio::task::JoinSet::new();
            for index in 0..READS {
                let draw = |salt: usize, below: usize| {
                    let bytes = pattern((round * 1000 + index * 2 + salt) as u64 + 9, 8);
                    u64::from_le_bytes(bytes.try_into().unwrap()) as usize % below
                };
                let len = 1 + draw(0, if index % 4 == 0 { 8 * PAGE } else { 5000 });
                let start = draw(1, object.len() - len);
                let (store, slab, object) = (Arc::clone(&store), slab.clone(), Arc::clone(&object));
                let request =
                    ReadRequest { size: Some(meta.size), version: meta.version.clone(), ..request("o", start as u64) };
                reads.spawn(async move {
                    let (bytes, _) = read(&store, &slab, &request, len).await.unwrap();
                    assert!(bytes == object[start..start + len], "{len} bytes at {start}");
                });
            }
            while let Some(outcome) = reads.join_next().await {
                outcome.unwrap();
            }
        }
    });
    assert!(server.accepted() <= READS, "{} connections for {READS} reads at once", server.accepted());
    assert_eq!(slab.usage().free, READS * 8);
}

#[test]
fn an_object_that_changed_is_not_mixed_with_what_it_was() {
    let (server, slab) = (FileServer::start(), slab(4));
    server.put("o", &pattern(3, 9000));
    let store = server.store();
    run(async {
        let meta = store.head("o").await.unwrap();
        let known = ReadRequest { size: Some(meta.size), version: meta.version, ..request("o", 100) };
        read(&store, &slab, &known, 8900).await.unwrap();
        server.put("o", &pattern(4, 9000));
        let error = read(&store, &slab, &known, 8900).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Corrupt, false), "{error}");
        assert!(error.to_string().contains("the object changed"), "{error}");
        let error = read(&store, &slab, &request("o", 100), 8901).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains("the object has 9000"), "{error}");
        let error = read(&store, &slab, &request("o", 10_000), 10).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        let error = read(&store, &slab, &request("o", u64::MAX - 5), 10).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error}");
        let resized = ReadRequest { size: Some(9001), ..request("o", 100) };
        let error = read(&store, &slab, &resized, 10).await.unwrap_err();
        assert!(error.kind() == Kind::Corrupt && error.to_string().contains("another version"), "{error}");
        assert_eq!(read(&store, &slab, &request("gone", 0), 1).await.unwrap_err().kind(), Kind::NotFound);
    });
    assert_eq!(slab.usage().free, 4);
}

#[test]
fn a_body_cut_at_any_byte_goes_on_where_it_broke() {
    let object = pattern(5, 700);
    let whole = {
        let asked = Asked { connection: 0, request: 0, lines: vec![String::new(), "Range: bytes=100-399".to_owned()] };
        Reply::range(&asked, &object, "\"v\"")
    };
    let header = whole.header_len();
    for cut in 0..whole.bytes.len() {
        let served = object.clone();
        let server = ScriptedServer::start(move |asked| {
            let reply = Reply::range(asked, &served, "\"v\"");
            if asked.connection == 0 { reply.cut(cut) } else { reply }
        });
        let (store, slab) = (open(&server.url()), slab(1));
        run(async {
            let request = ReadRequest {
                size: Some(700),
                version: Some(farfeed::dataset::Version("\"v\"".into())),
                ..request("o", 100)
            };
            let mut landing = landing(&slab, 300);
            let error = store.read(&request, &mut landing).await.unwrap_err();
            assert!(error.is_transient() && error.kind() == Kind::Io, "{error}");
            let filled = cut.saturating_sub(header);
            assert_eq!(landing.filled(), filled, "cut after {cut} bytes");
            store.read(&request, &mut landing).await.unwrap();
            assert!(fixture::bytes(&landing.landed().unwrap()) == object[100..400]);
            let again = server.asked().pop().unwrap();
            assert_eq!((again.range(), again.header("if-match")), (Some((100 + filled, 399)), Some("\"v\"")));
        });
    }
}

#[test]
fn wrong_answers_are_refused_before_a_byte_lands() {
    let body = [b'x'; 10];
    let ranged =
        |lines: &str| Reply::new("206 Partial Content", &format!("Content-Range: bytes 5-14/20\r\n{lines}"), &body);
    let chunked = b"HTTP/1.1 206 x\r\nContent-Range: bytes 5-14/20\r\nTransfer-Encoding: chunked\r\n\r\na\r\nxxxxxxxxxx\r\n0\r\n\r\n";
    let cases = [
        (Reply::new("200 OK", "", &[b'x'; 20]), Kind::Unsupported, false, "ignores Range"),
        (Reply::new("206 x", "Content-Range: bytes 0-9/20\r\n", &body), Kind::Corrupt, false, "the server sent 0-9"),
        (Reply::new("206 x", "Content-Range: bytes 5-14/21\r\n", &body), Kind::Corrupt, false, "21 bytes, 20 expected"),
        (ranged("ETag: \"b\"\r\n"), Kind::Corrupt, false, "expected \"a\", found \"b\""),
        (ranged("ETag: \"a\"\r\nContent-Encoding: gzip\r\n"), Kind::Unsupported, false, "gzip"),
        (Reply { bytes: chunked.to_vec(), ..Reply::default() }, Kind::Unsupported, false, "chunked"),
        (Reply::new("403 Forbidden", "", b"no"), Kind::Auth, false, "403"),
        (Reply::new("404 Not Found", "", b"no"), Kind::NotFound, false, "404"),
        (Reply::new("412 x", "", b""), Kind::Corrupt, false, "changed"),
        (Reply::new("503 x", "Retry-After: 3\r\n", b"slow"), Kind::Throttled, true, "wait 3 s"),
        (Reply::new("500 x", "", b""), Kind::Io, true, "500"),
        (Reply { bytes: b"220 mail.example ESMTP\r\n\r\n".to_vec(), ..Reply::default() }, Kind::Io, true, "malformed"),
        (Reply::new("301 x", "", b""), Kind::Unsupported, false, "nowhere"),
        (Reply::new("302 x", "Location: ftp://h/p?secret\r\n", b""), Kind::Unsupported, false, "scheme ftp"),
    ];
    let expected: Vec<_> = cases.iter().map(|(_, kind, transient, word)| (*kind, *transient, *word)).collect();
    let server = ScriptedServer::start(move |asked| cases[asked.line().1[1..].parse::<usize>().unwrap()].0.clone());
    let (store, slab) = (open(&server.url()), slab(1));
    run(async {
        for (number, (kind, transient, word)) in expected.into_iter().enumerate() {
            let version = Some(farfeed::dataset::Version("\"a\"".into()));
            let request = ReadRequest { size: Some(20), version, ..request(&number.to_string(), 5) };
            let mut landing = landing(&slab, 10);
            let error = store.read(&request, &mut landing).await.unwrap_err();
            assert_eq!((error.kind(), error.is_transient()), (kind, transient), "{error}");
            let text = error.to_string();
            assert!(text.contains(word) && text.contains(&server.url()) && !text.contains("secret"), "{text}");
            assert_eq!(error.retry_after(), (word == "wait 3 s").then_some(Duration::from_secs(3)));
            assert_eq!(landing.filled(), 0);
        }
    });
}

#[test]
fn redirects_are_followed_until_they_lead_in_circles() {
    let object = pattern(6, 5000);
    let served = object.clone();
    let far = ScriptedServer::start(move |asked| match asked.line().1 {
        "/signed/o?token=secret" => Reply::range(asked, &served, "\"v\""),
        _ => Reply::new("404 Not Found", "", b""),
    });
    let far_url = far.url();
    let near = ScriptedServer::start(move |asked| match asked.line().1 {
        "/o" => Reply::new("307 x", &format!("Location: {far_url}signed/o?token=secret\r\n"), b"over there"),
        "/gone" => Reply::new("301 x", &format!("Location: {far_url}nowhere?token=secret\r\n"), b""),
        _ => Reply::new("302 x", "Location: /circle?token=secret\r\n", b""),
    });
    let (store, slab) = (open(&near.url().replace("://", "://user:secret@")), slab(1));
    run(async {
        for _ in 0..2 {
            let (bytes, _) = read(&store, &slab, &request("o", 10), 4000).await.unwrap();
            assert!(bytes == object[10..4010]);
        }
        let error = read(&store, &slab, &request("circle", 0), 10).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Unsupported, false));
        assert!(error.to_string().contains("redirect loop") && !error.to_string().contains("secret"), "{error}");
        let error = read(&store, &slab, &request("gone", 0), 10).await.unwrap_err();
        assert!(error.kind() == Kind::NotFound && !error.to_string().contains("secret"), "{error}");
    });
    let (near, far) = (near.asked(), far.asked());
    assert_eq!(near.iter().filter(|asked| asked.line().1.starts_with("/circle")).count(), 6);
    assert!(near.iter().all(|asked| asked.connection == 0 && asked.header("authorization").is_some()));
    assert!(far.iter().all(|asked| asked.connection == 0 && asked.header("authorization").is_none()));
}

#[test]
fn secrets_are_sent_and_never_shown() {
    let server = ScriptedServer::start(|_| Reply::new("403 Forbidden", "", b""));
    let url = format!("{}base?sig=s3cret", server.url().replace("://", "://us3r:s3cret@"));
    let store = open(&url);
    let error = run(async { store.head("k").await.unwrap_err() });
    assert_eq!(error.kind(), Kind::Auth);
    for text in [error.to_string(), format!("{error:?}"), format!("{store:?}"), store.root().to_owned()] {
        assert!(!text.contains("s3cret") && !text.contains("us3r"), "{text}");
    }
    let asked = server.asked().remove(0);
    assert_eq!(
        (asked.line(), asked.header("authorization")),
        (("HEAD", "/base/k?sig=s3cret"), Some("Basic dXMzcjpzM2NyZXQ="))
    );
}

#[test]
fn headers_may_trickle_and_interim_ones_are_passed_over() {
    let object = pattern(7, 100);
    let served = object.clone();
    let server = ScriptedServer::start(move |asked| {
        let mut reply = Reply::range(asked, &served, "\"v\"");
        reply.bytes.splice(0..0, *b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        Reply { piece: 1, pause: Duration::from_micros(200), ..reply }
    });
    let (store, slab) = (open(&server.url()), slab(1));
    run(async {
        for _ in 0..2 {
            let (bytes, _) = read(&store, &slab, &request("o", 20), 70).await.unwrap();
            assert!(bytes == object[20..90]);
        }
    });
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn endless_headers_are_bounded_in_bytes_and_in_time() {
    let bomb = |line: &[u8]| [b"HTTP/1.1 206 x\r\n", line.repeat((1 << 20) / line.len()).as_slice()].concat();
    let bombs = [bomb(b"X-Filler: y\r\n"), bomb(b"y"), b"HTTP/1.1 100 Continue\r\n\r\n".repeat(20_000)];
    let server = ScriptedServer::start(move |asked| match asked.line().1[1..].parse::<usize>() {
        Ok(number) => Reply { bytes: bombs[number].clone(), ..Reply::default() },
        Err(_) => Reply { bytes: b"HTTP/1.1 206 x\r\n".to_vec(), ..Reply::default() },
    });
    let options = HttpOptions { header_timeout: Duration::from_secs(2), ..HttpOptions::default() };
    let store: Arc<dyn Store> = HttpStore::open(&server.url(), options).unwrap();
    let slab = slab(1);
    run(async {
        for key in ["0", "1", "2"] {
            let error = read(&store, &slab, &request(key, 0), 10).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported, "{error}");
            assert!(error.to_string().contains("more than 16384 bytes"), "{error}");
        }
        let began = Instant::now();
        let error = read(&store, &slab, &request("silent", 0), 10).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Stalled, true), "{error}");
        assert!((2..10).contains(&began.elapsed().as_secs()));
    });
}

#[test]
fn a_fresh_connection_says_what_it_cost_and_is_kept() {
    let server = FileServer::start();
    server.put("o", &pattern(14, 10));
    run(async {
        let store = ThrottleStore::new(FaultStore::scripted(open(&server.url()), []), FREE);
        for count in 1..=3 {
            let cost = store.connect().await.unwrap();
            assert!(server.url().contains(&cost.address.to_string()), "{cost:?}");
            assert!(cost.connect > Duration::ZERO && cost.secure.is_none(), "{cost:?}");
            soon("the server has accepted it", || server.accepted() == count);
        }
        store.head("o").await.unwrap();
        assert_eq!(server.accepted(), 3, "the read took one of those");
        assert_eq!(MemoryStore::new().connect().await.unwrap_err().kind(), Kind::Unsupported);
    });
}

#[test]
fn connecting_has_a_deadline_and_a_refusal_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // With a backlog this short, and full, the kernel leaves further connections unanswered.
    rustix::net::listen(&listener, 0).unwrap();
    let _full = std::net::TcpStream::connect(address).unwrap();
    let options = HttpOptions { connect_timeout: Duration::from_millis(300), ..HttpOptions::default() };
    let store = HttpStore::open(&format!("http://{address}"), options).unwrap();
    run(async {
        let began = Instant::now();
        let error = store.head("k").await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Stalled, true), "{error}");
        assert!((300..5000).contains(&began.elapsed().as_millis()));
    });
    drop(listener);
    run(async {
        let error = open(&format!("http://{address}")).head("k").await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Io, true), "{error}");
        let error = open(&format!("http://{address}")).warm(3).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Io, true), "{error}");
    });
}

#[test]
fn a_connection_closed_while_idle_is_replaced_at_once_and_once() {
    let object = pattern(8, 100);
    let served = object.clone();
    let server = ScriptedServer::start(move |asked| match (asked.connection, asked.request) {
        // Closed without a word when it is used again.
        (0, 1) => Reply::default().closing(),
        // Closed behind the client's back, after it was promised to stay open.
        (1, 1) => Reply::range(asked, &served, "\"v\"").closing(),
        (3, _) => Reply::default().closing(),
        _ => Reply::range(asked, &served, "\"v\""),
    });
    let (store, slab) = (open(&server.url()), slab(1));
    run(async {
        let opened = async || {
            read(&store, &slab, &request("o", 0), 100).await.map(|(bytes, arrival)| {
                assert!(bytes == object);
                arrival.opened
            })
        };
        assert!(opened().await.unwrap());
        assert!(opened().await.unwrap(), "connection 0 failed, 1 was opened");
        assert!(!opened().await.unwrap());
        soon("connection 1 is closed by the server", || server.closed() == 2);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(opened().await.unwrap(), "connection 1 is seen to be closed, 2 was opened");
        assert_eq!(server.asked().len(), 5, "nothing was sent on a connection known to be closed");
        // A fresh connection that closes without a word is no reason to ask again.
        let sibling = Arc::clone(&store).per_reactor();
        let error = read(&sibling, &slab, &request("o", 0), 100).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Io, true), "{error}");
        assert_eq!(server.asked().len(), 6);
    });
}

#[test]
fn idle_connections_are_few_young_and_of_this_reactor() {
    let server = FileServer::start();
    server.put("o", &pattern(9, 10));
    let options = HttpOptions { idle_age: Duration::from_secs(1), idle_connections: 4, ..HttpOptions::default() };
    let store = HttpStore::open(&server.url(), options).unwrap();
    run(async {
        assert_eq!(store.warm(100).await.unwrap(), 4);
        soon("four connections are accepted", || server.accepted() == 4);
        assert_eq!(store.warm(4).await.unwrap(), 0, "there are four");
        store.head("o").await.unwrap();
        assert_eq!(server.accepted(), 4);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(store.warm(4).await.unwrap(), 1, "the one that was used had grown too old");
        tokio::time::sleep(Duration::from_millis(4100)).await;
        store.head("o").await.unwrap();
        assert_eq!(server.accepted(), 6, "now all had");
        store.head("o").await.unwrap();
        assert_eq!(server.accepted(), 6);
    });
    // Another reactor cannot use the connections of one that is gone.
    run(async { store.head("o").await.unwrap() });
    assert_eq!(server.accepted(), 7);
    run(async {
        store.head("o").await.unwrap();
        let sibling = Arc::clone(&store).per_reactor();
        assert_eq!(sibling.root(), store.root());
        sibling.head("o").await.unwrap();
        store.head("o").await.unwrap();
    });
    assert_eq!(server.accepted(), 9, "one more for the reactor, one for the sibling's own pool");
}

#[test]
fn a_word_spoken_out_of_turn_is_not_taken_for_an_answer() {
    let server = ScriptedServer::start(|asked| {
        let mut reply = Reply::range(asked, &[b'x'; 50], "\"v\"");
        if asked.connection == 0 {
            (reply.piece, reply.pause) = (reply.bytes.len(), Duration::from_millis(50));
            reply.bytes.extend_from_slice(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n");
        }
        reply
    });
    let (store, slab) = (open(&server.url()), slab(1));
    run(async {
        read(&store, &slab, &request("o", 0), 50).await.unwrap();
        soon("the server has spoken", || server.asked().len() == 1);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (bytes, arrival) = read(&store, &slab, &request("o", 10), 20).await.unwrap();
        assert_eq!((bytes, arrival.opened), (vec![b'x'; 20], true));
    });
}

#[test]
fn a_connection_of_a_reactor_that_rests_is_left_alone() {
    let server = FileServer::start();
    server.put("o", &pattern(13, 10));
    let store = server.store();
    let reactors = [0, 1].map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    for reactor in &reactors {
        let head = async { tokio::time::timeout(Duration::from_secs(10), store.head("o")).await };
        assert_eq!(reactor.block_on(head).unwrap().unwrap().size, 10);
    }
    assert_eq!(server.accepted(), 2);
}

#[test]
fn a_read_dropped_in_flight_closes_its_connection_and_gives_its_pages_back() {
    let object = pattern(10, 3 * PAGE);
    let served = object.clone();
    let server = ScriptedServer::start(move |asked| {
        let reply = Reply::range(asked, &served, "\"v\"");
        let half = reply.header_len() + 100_000;
        if asked.connection == 0 { Reply { close_after: None, ..reply.cut(half) } } else { reply }
    });
    let (store, slab) = (open(&server.url()), slab(3));
    run(async {
        let request = request("o", 0);
        let mut landing = landing(&slab, 3 * PAGE);
        let progress = landing.progress();
        let read = store.read(&request, &mut landing);
        let patience = tokio::time::timeout(Duration::from_secs(1), read);
        assert!(patience.await.is_err(), "the server sends no more");
        let filled = landing.filled();
        assert_eq!(progress.load(std::sync::atomic::Ordering::Relaxed), filled as u64);
        assert_eq!(filled, 100_000, "what has arrived counts, although the kernel was asked to gather more");
        soon("the server sees the connection closed", || server.closed() == 1);
        store.read(&request, &mut landing).await.unwrap();
        assert!(fixture::bytes(&landing.landed().unwrap()) == object);
        assert_eq!(server.asked()[1].range(), Some((filled, 3 * PAGE - 1)));

        let mut again = fixture::landing(&slab, PAGE);
        drop(tokio::time::timeout(Duration::from_millis(1), store.read(&request, &mut again)).await);
        drop(again);
    });
    assert_eq!(slab.usage().free, 3);
}

#[test]
fn bodies_of_every_length_in_pieces_of_every_length_come_to_an_end() {
    const LARGEST: usize = (2 << 20) + 5;
    let object = pattern(11, LARGEST);
    let served = object.clone();
    let server = ScriptedServer::start(move |asked| {
        let piece = asked.line().1[1..].parse().unwrap();
        Reply { piece, pause: Duration::from_micros(50), ..Reply::range(asked, &served, "\"v\"") }
    });
    let (store, slab) = (open(&server.url()), slab(LARGEST / PAGE + 1));
    let (mark, least) = (1 << 20, 32 << 10);
    run(async {
        let around = [least - 1, least, least + 5000, mark - 1, mark, mark + 1, mark + least, 2 * mark - 1, LARGEST];
        for len in [1, 4095, 4096].into_iter().chain(around) {
            let mut quickest = Duration::MAX;
            for piece in [1460, 50_000, 1_000_000, 1_000_000, 1_000_000] {
                let wanted = request(&piece.to_string(), (LARGEST - len) as u64);
                let began = Instant::now();
                let (bytes, _) = read(&store, &slab, &wanted, len).await.unwrap();
                quickest = quickest.min(began.elapsed());
                assert!(bytes == object[LARGEST - len..], "{len} bytes in pieces of {piece}");
            }
            assert!(quickest < Duration::from_millis(90), "{len} bytes: the kernel waited for more than was to come");
        }
    });
    assert_eq!(server.asked().last().unwrap().connection, 0);
}

#[test]
fn a_body_that_ends_with_the_connection_is_taken_and_the_connection_not_kept() {
    let server = ScriptedServer::start(|asked| {
        let (first, last) = asked.range().unwrap();
        let header = format!("HTTP/1.0 206 x\r\nContent-Range: bytes {first}-{last}/50\r\n\r\n");
        Reply { bytes: [header.as_bytes(), &[b'z'; 50][first..=last]].concat(), ..Reply::default() }.closing()
    });
    let (store, slab) = (open(&server.url()), slab(1));
    run(async {
        for _ in 0..2 {
            let (bytes, arrival) = read(&store, &slab, &request("o", 10), 40).await.unwrap();
            assert_eq!((bytes, arrival.opened, arrival.version), (vec![b'z'; 40], true, None));
        }
    });
}

#[test]
fn versions_from_an_index_cannot_smuggle_headers() {
    let object = pattern(12, 100);
    let server = ScriptedServer::start(move |asked| Reply::range(asked, &object, "W/\"weak\""));
    let (store, slab) = (open(&server.url()), slab(1));
    run(async {
        for (version, fits) in [("W/\"weak\"", true), ("\"a\r\nX-Evil: 1\r\n\"", false)] {
            let request = ReadRequest {
                version: Some(farfeed::dataset::Version(version.into())),
                ..request("k\r\nX-Evil: 1", 0)
            };
            assert_eq!(read(&store, &slab, &request, 100).await.is_ok(), fits);
        }
    });
    for asked in server.asked() {
        assert_eq!((asked.header("if-match"), asked.header("x-evil")), (None, None));
        assert_eq!(asked.line().1, "/k%0D%0AX-Evil%3A%201");
    }
}
