//! https: against nginx as people run it, and against a server that misbehaves on purpose.
#![cfg(feature = "https")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unused_imports, reason = "the servers are shared, and this needs some of them")]
mod fixture;
mod servers;
#[path = "fixture/shards.rs"]
mod shards;
#[path = "conformance/suite.rs"]
mod suite;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farfeed::memory::Slab;
use farfeed::order::Shuffle;
use farfeed::store::{ClientCertificate, HttpOptions, HttpStore, ReadRequest, Store, TlsOptions};
use farfeed::{ByteSize, Error, Field, Kind, Loader};
use fixture::{Reply, ScriptedServer, landing, pattern, read, request, run};
use rustls::version::{TLS12, TLS13};
use servers::{Authority, Identity, Nginx, Passing, Relay, Secured, Site, answer, asked, serve};
use tokio::io::AsyncWriteExt;

const PAGE: usize = 64 << 10;

fn open(url: &str, tls: TlsOptions) -> Arc<dyn Store> {
    HttpStore::open(url, HttpOptions { tls, ..HttpOptions::default() }).unwrap()
}

fn slab(pages: usize) -> Slab {
    Slab::new(pages * PAGE, PAGE).unwrap()
}

/// A directory with the certificate of a fresh authority, and a server of loopback that it certifies.
struct Town {
    directory: tempfile::TempDir,
    authority: Authority,
    identity: Identity,
}

impl Town {
    fn new() -> Self {
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new("town"));
        authority.save(directory.path(), "ca.pem");
        let identity = authority.server(&["127.0.0.1", "localhost"]);
        Town { directory, authority, identity }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn trusting(&self) -> TlsOptions {
        TlsOptions { ca_bundle: Some(self.path("ca.pem")), client_certificate: None }
    }

    fn open(&self, server: &Secured) -> Arc<dyn Store> {
        open(&server.url(), self.trusting())
    }
}

fn conforms(site: Site) {
    let nginx = Nginx::start();
    let tls = if site == Site::Mutual { nginx.trusted() } else { nginx.trusting() };
    suite::suite(open(&nginx.url(site), tls), |name, bytes| {
        nginx.put(name, bytes);
        name.to_owned()
    });
    let protocol = match site {
        Site::Http => "-",
        Site::Tls12 => "TLSv1.2",
        _ => "TLSv1.3",
    };
    assert!(nginx.log().iter().all(|logged| logged.port == nginx.port(site) && logged.protocol == protocol));
}

#[test]
fn nginx_conforms() {
    conforms(Site::Http);
}

#[test]
fn nginx_with_tls_1_3_conforms() {
    conforms(Site::Tls13);
}

#[test]
fn nginx_with_tls_1_2_conforms() {
    conforms(Site::Tls12);
}

#[test]
fn nginx_with_mutual_tls_conforms() {
    conforms(Site::Mutual);
}

#[test]
fn who_cannot_be_trusted_is_named_and_not_asked_again() {
    let nginx = Nginx::start();
    nginx.put("o", b"secret");
    let refused = |site: Site, tls: TlsOptions| -> Error {
        let store = open(&nginx.url(site), tls);
        let error = run(async { read(&store, &slab(1), &request("o", 0), 6).await.unwrap_err() });
        assert!(error.to_string().contains(&nginx.url(site)), "{error}");
        assert!(!error.is_transient(), "{error}");
        error
    };
    let client = |name: &str| TlsOptions { client_certificate: Some(nginx.client(name)), ..nginx.trusting() };
    let system = TlsOptions::default();
    for (site, tls, kind, words) in [
        (Site::Stranger, nginx.trusting(), Kind::Auth, ["UnknownIssuer", "`ca_bundle`"]),
        (Site::Tls13, system, Kind::Auth, ["UnknownIssuer", "`ca_bundle`"]),
        (Site::Expired, nginx.trusting(), Kind::Auth, ["expired", "clock"]),
        (Site::Misnamed, nginx.trusting(), Kind::Auth, ["not valid for name", "elsewhere.example"]),
        (Site::Mutual, nginx.trusting(), Kind::Auth, ["asks for a client certificate", "`client_certificate`"]),
        (Site::Mutual, client("stranger"), Kind::Auth, ["HTTP 400", "the client certificate"]),
    ] {
        let error = refused(site, tls);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
    // The name is checked as it was written, not as it resolves.
    let by_name = nginx.url(Site::Tls13).replace("127.0.0.1", "localhost");
    assert_eq!(run(async { open(&by_name, nginx.trusting()).head("o").await.unwrap().size }), 6);
    let error = run(async {
        let plain = nginx.url(Site::Http).replace("http:", "https:");
        open(&plain, nginx.trusting()).head("o").await.unwrap_err()
    });
    assert_eq!((error.kind(), error.is_transient()), (Kind::Unsupported, false), "{error}");
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[test]
fn servers_that_refuse_a_client_say_so_by_alert() {
    let town = Town::new();
    let strangers = Authority::new("strangers");
    let (chain, key) = strangers.client("stranger").save(town.directory.path(), "stranger");
    let stranger = TlsOptions { client_certificate: Some(ClientCertificate { chain, key }), ..town.trusting() };
    for version in [&TLS13, &TLS12] {
        let config = Secured::mutual(&town.identity, &town.authority, version);
        let server = Secured::start(config, |stream, _| serve(stream, pattern(1, 100).into()));
        for (tls, word) in [
            (town.trusting(), "the server asks for a client certificate"),
            (stranger.clone(), "the server refused the client certificate"),
        ] {
            let store = open(&server.url(), tls);
            let error = run(async { read(&store, &slab(1), &request("o", 0), 10).await.unwrap_err() });
            assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false), "{error}");
            let text = error.to_string();
            assert!(text.contains(word) && text.contains("received fatal alert"), "{version:?}: {text}");
        }
    }
}

#[test]
fn certificates_that_cannot_be_used_are_refused_when_a_store_is_opened() {
    let town = Town::new();
    let identity = town.authority.client("me");
    let (chain, key) = identity.save(town.directory.path(), "me");
    let (other, _) = town.authority.client("other").save(town.directory.path(), "other");
    let (missing, garbage) = (town.path("missing.pem"), town.path("garbage.pem"));
    std::fs::write(&garbage, "s3cret").unwrap();
    let bundle = |path: &PathBuf| TlsOptions { ca_bundle: Some(path.clone()), client_certificate: None };
    let client = |chain: &PathBuf, key: &PathBuf| TlsOptions {
        client_certificate: Some(ClientCertificate { chain: chain.clone(), key: key.clone() }),
        ..town.trusting()
    };
    for (tls, words) in [
        (bundle(&missing), ["ca_bundle", "missing.pem"]),
        (bundle(&garbage), ["ca_bundle", "no certificate in PEM form"]),
        (client(&missing, &key), ["client_certificate", "missing.pem"]),
        (client(&chain, &garbage), ["garbage.pem", "no unencrypted private key"]),
        (client(&key, &key), ["me.key", "no certificate"]),
        (client(&other, &key), ["other.pem", "do not make an identity"]),
    ] {
        let options = HttpOptions { tls, ..HttpOptions::default() };
        let error = HttpStore::open("https://user:s3cret@h/", options.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)) && !text.contains("s3cret"), "{text}");
        assert!(HttpStore::open("http://h/", options).is_ok(), "plain HTTP needs none of it");
    }
    let shown = format!("{:?}", client(&chain, &key));
    assert!(shown.contains("me.key") && !shown.contains("BEGIN"), "{shown}");
}

#[test]
fn a_body_that_is_cut_is_an_error_and_goes_on_where_it_broke() {
    let town = Town::new();
    let object: Arc<[u8]> = pattern(2, 300_000).into();
    for closes in [false, true] {
        let served = Arc::clone(&object);
        let config = Secured::config(&town.identity, &TLS13);
        let server = Secured::start(config, move |mut stream, number| {
            let object = Arc::clone(&served);
            async move {
                if number > 0 {
                    return serve(stream, object).await;
                }
                let range = asked(&mut stream).await?.unwrap();
                let (header, body) = answer(&object, range);
                stream.write_all(header.as_bytes()).await?;
                stream.write_all(&body[..150_000]).await?;
                stream.flush().await?;
                // With a close_notify, or without a word.
                if closes { stream.shutdown().await } else { Ok(()) }
            }
        });
        let (store, slab) = (town.open(&server), slab(5));
        run(async {
            let wanted = request("o", 1000);
            let mut landing = landing(&slab, 290_000);
            let error = store.read(&wanted, &mut landing).await.unwrap_err();
            assert_eq!((error.kind(), error.is_transient()), (Kind::Io, true), "{error}");
            assert_eq!(error.to_string().contains("closed without close_notify"), !closes, "{error}");
            assert_eq!(landing.filled(), 150_000);
            store.read(&wanted, &mut landing).await.unwrap();
            assert!(fixture::bytes(&landing.landed().unwrap()) == object[1000..291_000]);
        });
    }
}

#[test]
fn bytes_changed_on_the_way_never_land() {
    let town = Town::new();
    let object: Arc<[u8]> = pattern(3, 1 << 20).into();
    let served = Arc::clone(&object);
    let server =
        Secured::start(Secured::config(&town.identity, &TLS13), move |stream, _| serve(stream, served.clone()));
    // A relay that flips a bit in the middle of the first connection's body.
    let relay = Relay::start(&server, Passing::default(), |connection, at, bytes| {
        if connection == 0 && (at..at + bytes.len()).contains(&500_000) {
            bytes[500_000 - at] ^= 1;
        }
    });
    let store = open(&relay.url(), town.trusting());
    let slab = slab(16);
    run(async {
        let mut landing = landing(&slab, 1 << 20);
        let wanted = request("o", 0);
        let error = store.read(&wanted, &mut landing).await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Io, true), "{error}");
        assert!(error.to_string().contains("cannot decrypt"), "{error}");
        assert!((400_000..500_000).contains(&landing.filled()), "{}", landing.filled());
        store.read(&wanted, &mut landing).await.unwrap();
        assert!(fixture::bytes(&landing.landed().unwrap()) == *object);
    });
}

#[test]
fn a_secure_connection_costs_one_round_trip_beyond_tcps() {
    const ONE_WAY: Duration = Duration::from_millis(150);
    let town = Town::new();
    for (version, first, later) in [(&TLS13, 1, 1), (&TLS12, 2, 1)] {
        let config = Secured::config(&town.identity, version);
        let server = Secured::start(config, |stream, _| serve(stream, pattern(10, 100).into()));
        let relay = Relay::start(&server, Passing { one_way: ONE_WAY, ..Passing::default() }, |_, _, _| {});
        let (store, slab) = (open(&relay.url(), town.trusting()), slab(1));
        run(async {
            for trips in [first, later] {
                let cost = store.connect().await.unwrap().secure.unwrap();
                let trip = 2 * ONE_WAY;
                assert!((trip * trips..trip * (trips + 1)).contains(&cost), "{version:?}: {cost:?}");
                // Takes the connection, and its tickets.
                let began = Instant::now();
                read(&store, &slab, &request("o", 0), 100).await.unwrap();
                assert!((trip..trip * 2).contains(&began.elapsed()), "{version:?}: {:?}", began.elapsed());
            }
        });
    }
}

#[test]
fn records_and_handshakes_may_trickle() {
    let town = Town::new();
    let object: Arc<[u8]> = pattern(11, 30_000).into();
    for (version, piece) in [(&TLS13, 1), (&TLS13, 7), (&TLS12, 3), (&TLS13, 1000)] {
        let (served, mut config) = (Arc::clone(&object), Secured::config(&town.identity, version));
        // Handshake messages of several records.
        config.max_fragment_size = Some(100);
        let server = Secured::start(config, move |stream, _| serve(stream, served.clone()));
        let relay = Relay::start(&server, Passing { piece, ..Passing::default() }, |_, _, _| {});
        let (store, slab) = (open(&relay.url(), town.trusting()), slab(1));
        run(async {
            for start in [0, 25_000] {
                let (bytes, _) = read(&store, &slab, &request("o", start), 5000).await.unwrap();
                assert!(bytes == object[start as usize..][..5000]);
            }
        });
    }
}

#[test]
fn garbage_at_any_place_is_an_error_and_never_a_panic() {
    const PLACES: usize = 60;
    let town = Town::new();
    let object: Arc<[u8]> = pattern(12, 20_000).into();
    for version in [&TLS13, &TLS12] {
        let (served, mut config) = (Arc::clone(&object), Secured::config(&town.identity, version));
        config.max_fragment_size = Some(100);
        let server = Secured::start(config, move |stream, _| serve(stream, served.clone()));
        // Each connection is changed somewhere else: mostly in the handshake, which is some hundred bytes long.
        let relay = Relay::start(&server, Passing::default(), |connection, at, bytes| {
            let place = connection * 41;
            if (at..at + bytes.len()).contains(&place) {
                bytes[place - at] ^= 1 << (connection % 8);
            }
        });
        let (slab, mut unnoticed) = (slab(1), 0);
        run(async {
            for place in 0..PLACES {
                let options = HttpOptions {
                    header_timeout: Duration::from_millis(300),
                    connect_timeout: Duration::from_millis(300),
                    tls: town.trusting(),
                    ..HttpOptions::default()
                };
                let store: Arc<dyn Store> = HttpStore::open(&relay.url(), options).unwrap();
                let mut landing = landing(&slab, 20_000);
                let wanted = request("o", 0);
                // A length that grew is waited for; who reads has a deadline for that.
                let patience = Duration::from_millis(500);
                let outcome = tokio::time::timeout(patience, store.read(&wanted, &mut landing)).await;
                if matches!(outcome, Ok(Ok(_))) {
                    // Receivers must not look at the version in a record's header.
                    unnoticed += 1;
                    assert!(fixture::bytes(&landing.landed().unwrap()) == *object, "{version:?}: connection {place}");
                }
            }
        });
        assert!(unnoticed < PLACES / 10, "{version:?}: {unnoticed} changes were not noticed");
        assert_eq!(slab.usage().free, 1);
    }
}

#[test]
fn a_server_that_is_silent_in_the_handshake_has_a_deadline() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let options = HttpOptions { connect_timeout: Duration::from_millis(300), ..HttpOptions::default() };
    let store = HttpStore::open(&url, options).unwrap();
    run(async {
        let began = Instant::now();
        let error = store.head("o").await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Stalled, true), "{error}");
        assert!((300..10_000).contains(&began.elapsed().as_millis()));
    });
}

#[test]
fn records_of_every_size_keys_that_change_and_late_tickets_are_taken_in() {
    const LEN: usize = 700_000;
    let town = Town::new();
    let object: Arc<[u8]> = pattern(4, LEN).into();
    for (version, fragment, piece) in
        [(&TLS13, None, 50_000), (&TLS12, None, 50_000), (&TLS13, Some(64), 3000), (&TLS13, Some(4097), 5000)]
    {
        let served = Arc::clone(&object);
        let mut config = Secured::config(&town.identity, version);
        config.max_fragment_size = fragment;
        let server = Secured::start(config, move |mut stream, _| {
            let object = Arc::clone(&served);
            async move {
                while let Some(range) = asked(&mut stream).await? {
                    let (header, body) = answer(&object, range);
                    stream.write_all(header.as_bytes()).await?;
                    for part in body.chunks(piece) {
                        // Each asks us to change ours too.
                        let _ = stream.get_mut().1.refresh_traffic_keys();
                        stream.write_all(part).await?;
                    }
                    stream.flush().await?;
                }
                Ok(())
            }
        });
        let (store, slab) = (town.open(&server), slab(11));
        run(async {
            for (start, len) in [(0, LEN), (1, 1), (5, PAGE), (123, 400_001), (LEN - 17, 17)] {
                let (bytes, arrival) = read(&store, &slab, &request("o", start as u64), len).await.unwrap();
                assert!(bytes == object[start..start + len], "{len} bytes from {start}, records of {fragment:?}");
                assert_eq!(arrival.opened, start == 0, "one connection is enough");
                assert!(arrival.copied >= len as u64);
            }
        });
        assert_eq!(server.accepted(), 1);
    }
}

#[test]
fn tickets_that_come_while_a_connection_rests_do_not_end_it_and_words_do() {
    let town = Town::new();
    let object: Arc<[u8]> = pattern(5, 5000).into();
    let served = Arc::clone(&object);
    let server = Secured::start(Secured::config(&town.identity, &TLS13), move |mut stream, number| {
        let object = Arc::clone(&served);
        async move {
            if number == 1 {
                stream.write_all(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").await?;
                stream.flush().await?;
            }
            serve(stream, object).await
        }
    });
    let (store, slab) = (town.open(&server), slab(1));
    run(async {
        let cost = store.connect().await.unwrap();
        assert!(cost.secure.is_some_and(|secure| secure > Duration::ZERO) && cost.connect > Duration::ZERO, "{cost:?}");
        // Its tickets arrive now.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (bytes, arrival) = read(&store, &slab, &request("o", 10), 4000).await.unwrap();
        assert!(bytes == object[10..4010] && !arrival.opened);
        let sibling = Arc::clone(&store).per_reactor();
        sibling.connect().await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (bytes, arrival) = read(&sibling, &slab, &request("o", 10), 4000).await.unwrap();
        assert!(bytes == object[10..4010] && arrival.opened, "an answer that nobody asked for is not taken for one");
    });
    assert_eq!(server.accepted(), 3);
}

#[test]
fn later_connections_resume_the_session_of_the_first() {
    let nginx = Nginx::start();
    nginx.put("o", &pattern(6, 1000));
    for site in [Site::Tls13, Site::Tls12] {
        let store = open(&nginx.url(site), nginx.trusting());
        run(async {
            store.head("o").await.unwrap();
            // Connections of another reactor too.
            for store in [Arc::clone(&store).per_reactor(), Arc::clone(&store).per_reactor()] {
                store.head("o").await.unwrap();
            }
        });
        let mine = || nginx.log().into_iter().filter(|logged| logged.port == nginx.port(site)).collect::<Vec<_>>();
        let deadline = Instant::now() + Duration::from_secs(10);
        while mine().len() < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let resumed: Vec<bool> = mine().iter().map(|logged| logged.resumed).collect();
        assert_eq!(resumed, [false, true, true], "{site:?}");
    }
}

#[test]
fn a_client_certificate_that_was_replaced_is_shown_at_the_next_connection() {
    let town = Town::new();
    let successors = Authority::new("successors");
    let (chain, key) = successors.client("me").save(town.directory.path(), "me");
    let tls = TlsOptions { client_certificate: Some(ClientCertificate { chain, key }), ..town.trusting() };
    let config = Secured::mutual(&town.identity, &town.authority, &TLS13);
    let server = Secured::start(config, |stream, _| serve(stream, pattern(7, 100).into()));
    let (store, slab) = (open(&server.url(), tls), slab(1));
    run(async {
        let error = read(&store, &slab, &request("o", 0), 10).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Auth, "{error}");
        // Half of a replacement changes nothing.
        let fresh = town.authority.client("me");
        std::fs::write(town.path("me.pem"), &fresh.certificate).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(read(&store, &slab, &request("o", 0), 10).await.unwrap_err().kind(), Kind::Auth);
        std::fs::write(town.path("me.key"), &fresh.key).unwrap();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(read(&store, &slab, &request("o", 0), 10).await.is_ok());
    });
}

#[test]
fn large_objects_arrive_whole_over_many_connections() {
    const SIZE: usize = 64 << 20;
    const READS: usize = 24;
    let nginx = Nginx::start();
    let object = Arc::new(pattern(8, SIZE));
    nginx.put("o", &object);
    for site in [Site::Tls13, Site::Tls12] {
        let store = open(&nginx.url(site), nginx.trusting());
        let slab = slab(READS * 33);
        run(async {
            assert_eq!(store.warm(READS).await.unwrap(), READS);
            let meta = store.head("o").await.unwrap();
            let mut reads = tokio::task::JoinSet::new();
            for index in 0..READS * 2 {
                let draw = u64::from_le_bytes(pattern(index as u64 + 99, 8).try_into().unwrap()) as usize;
                let len = 1 + draw % (2 << 20);
                let start = (draw >> 24) % (SIZE - len);
                let (store, slab, object) = (Arc::clone(&store), slab.clone(), Arc::clone(&object));
                let request =
                    ReadRequest { size: Some(meta.size), version: meta.version.clone(), ..request("o", start as u64) };
                if reads.len() == READS {
                    reads.join_next().await.unwrap().unwrap();
                }
                reads.spawn(async move {
                    let (bytes, _) = read(&store, &slab, &request, len).await.unwrap();
                    assert!(bytes == object[start..start + len], "{len} bytes at {start}");
                });
            }
            while let Some(outcome) = reads.join_next().await {
                outcome.unwrap();
            }
        });
        assert_eq!(slab.usage().free, READS * 33);
    }
    let connections = nginx.log().iter().map(|logged| logged.connection).max().unwrap();
    assert!(connections < 3 * READS as u64, "{connections} connections");
}

#[test]
fn redirects_lead_to_https_and_not_away_from_it() {
    let nginx = Nginx::start();
    nginx.put("o", &pattern(9, 100));
    let secure = nginx.url(Site::Tls13);
    let plain = ScriptedServer::start(move |_| Reply::new("302 x", &format!("Location: {secure}o\r\n"), b""));
    let plain_url = plain.url();
    let town = Town::new();
    let back = Secured::start(Secured::config(&town.identity, &TLS13), move |mut stream, _| {
        let header = format!("HTTP/1.1 302 x\r\nLocation: {plain_url}?token=secret\r\nContent-Length: 0\r\n\r\n");
        async move {
            while asked(&mut stream).await?.is_some() {
                stream.write_all(header.as_bytes()).await?;
                stream.flush().await?;
            }
            Ok(())
        }
    });
    run(async {
        let (store, slab) = (open(&plain.url(), nginx.trusting()), slab(1));
        let (bytes, _) = read(&store, &slab, &request("o", 10), 50).await.unwrap();
        assert!(bytes == pattern(9, 100)[10..60]);
        let before = plain.asked().len();
        let error = town.open(&back).head("o").await.unwrap_err();
        assert_eq!((error.kind(), error.is_transient()), (Kind::Unsupported, false), "{error}");
        assert!(error.to_string().contains("from https to http") && !error.to_string().contains("secret"), "{error}");
        assert_eq!(plain.asked().len(), before, "nothing went there");
    });
}

#[test]
fn an_epoch_over_https_is_the_epoch_over_http() {
    let nginx = Nginx::start();
    let dataset = shards::webdataset(4, 100, 20_000);
    for (name, bytes) in &dataset.shards {
        nginx.put(&format!("data/{name}"), bytes);
    }
    nginx.put(shards::INDEX, &dataset.index().encode());
    let ids = |site: Site| {
        let client = nginx.client("client");
        let loader = Loader::builder(dataset.pattern(&nginx.url(site)))
            .ca_bundle(nginx.ca())
            .client_certificate(client.chain, client.key)
            .field("jpg", Field::bytes())
            .field("cls", Field::int())
            .batch_size(32)
            .block_size(ByteSize::bytes(400_000))
            .shuffle(Shuffle::window(150).seed(3))
            .host_memory(ByteSize::mib(64))
            .epochs(1)
            .build()
            .unwrap();
        let mut ids = Vec::new();
        for batch in loader.epoch(0) {
            let batch = batch.unwrap();
            // Keys, bytes and labels are those of the samples.
            dataset.check(&batch);
            ids.extend_from_slice(batch.ids());
        }
        let slab = loader.slab().clone();
        drop(loader);
        assert_eq!(slab.usage().free, slab.pages());
        ids
    };
    let expected = ids(Site::Http);
    assert_eq!(expected.len(), dataset.samples.len());
    for site in [Site::Tls13, Site::Tls12, Site::Mutual] {
        assert_eq!(ids(site), expected, "{site:?}");
    }
    assert!(nginx.log().iter().all(|logged| logged.status == 206 || logged.status == 200));
}
