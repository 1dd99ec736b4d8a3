//! What our own client refuses is read by a general one: with the same checks, and it is said.

#![cfg(feature = "cloud")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/suite.rs"]
mod conformance;
#[allow(unused_imports, reason = "servers are shared, and this needs some of them")]
mod fixture;
mod servers;
#[path = "fixture/shards.rs"]
mod shards;
#[path = "fixture/terminator.rs"]
mod terminator;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farfeed::memory::{Landing, Slab};
use farfeed::store::{FallbackStore, HttpOptions, ObjectOptions, ObjectStore, ReadRequest, Store, TlsOptions};
use farfeed::{ByteSize, Field, Kind, Loader};
use fixture::{Asked, Reply, ScriptedServer, pattern, read, request, run};
use servers::S3Server;
use terminator::Terminator;

const KEYS: [(&str, &str); 1] = [("AKIDEXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY")];

fn bucket(server: &S3Server) -> Arc<dyn Store> {
    let options = ObjectOptions::default().endpoint(server.endpoint()).access_key(KEYS[0].0, KEYS[0].1, None);
    ObjectStore::open("s3://bucket", options).unwrap()
}

fn web(url: &str, options: ObjectOptions) -> Arc<dyn Store> {
    FallbackStore::open(url, &options).unwrap()
}

fn slab() -> Slab {
    Slab::new(64 * (64 << 10), 64 << 10).unwrap()
}

/// The range asked for, in chunks of `chunk` bytes.
fn chunked(asked: &Asked, object: &[u8], etag: &str, chunk: usize) -> Reply {
    let (first, last) = asked.range().unwrap();
    let mut bytes = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: {etag}\r\nContent-Range: bytes {first}-{last}/{}\r\nTransfer-Encoding: chunked\r\n\r\n",
        object.len()
    )
    .into_bytes();
    for chunk in object[first..=last].chunks(chunk) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    Reply { bytes, ..Reply::default() }
}

#[test]
fn a_bucket_that_sends_chunks_does_what_every_store_does() {
    let server = S3Server::start(&KEYS);
    server.send_in_chunks(true);
    let store = bucket(&server);
    server.put("first", &pattern(1, 1000));
    run(async {
        let (bytes, arrival) = read(&store, &slab(), &request("first", 10), 990).await.unwrap();
        assert!(bytes == pattern(1, 1000)[10..]);
        assert_eq!((arrival.fallback, arrival.copied), (Some("chunked bodies"), 990));
    });
    conformance::suite(store, |name, bytes| {
        server.put(name, bytes);
        name.to_owned()
    });
}

#[test]
fn both_clients_trust_whom_the_options_say_and_nobody_else() {
    let server = S3Server::start(&KEYS);
    server.put("o", &pattern(8, 5000));
    let secure = Terminator::start(&[server.address()]);
    let open = |tls: TlsOptions| -> Arc<dyn Store> {
        let options = ObjectOptions::default().endpoint(secure.url()).access_key(KEYS[0].0, KEYS[0].1, None);
        ObjectStore::open("s3://bucket", options.http(HttpOptions { tls, ..HttpOptions::default() })).unwrap()
    };
    let trusting = open(TlsOptions { ca_bundle: Some(secure.ca_bundle()), ..TlsOptions::default() });
    run(async {
        assert_eq!(trusting.list("").await.unwrap().len(), 1);
        for in_chunks in [false, true] {
            server.send_in_chunks(in_chunks);
            let (bytes, arrival) = read(&trusting, &slab(), &request("o", 5), 4000).await.unwrap();
            assert!(bytes == pattern(8, 5000)[5..4005] && arrival.fallback.is_some() == in_chunks);
        }
        let wary = open(TlsOptions::default());
        for error in [wary.head("o").await.unwrap_err(), wary.list("").await.unwrap_err()] {
            assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false), "{error}");
        }
    });
}

#[test]
fn a_web_server_that_sends_chunks_is_read_and_remembered() {
    let object = pattern(2, 300_000);
    let served = object.clone();
    let server = ScriptedServer::start(move |asked| match asked.line().0 {
        "HEAD" => Reply::new("200 OK", &format!("ETag: \"e\"\r\nX-Size: {}\r\n", served.len()), b""),
        _ => chunked(asked, &served, "\"e\"", 7001),
    });
    let store = web(&server.url(), ObjectOptions::default());
    let slab = slab();
    run(async {
        for start in [0, 1, 12_345] {
            let (bytes, arrival) = read(&store, &slab, &request("o", start), 250_000).await.unwrap();
            assert!(bytes == object[start as usize..start as usize + 250_000]);
            assert_eq!((arrival.fallback, arrival.copied), (Some("chunked bodies"), 250_000));
            assert_eq!(arrival.version.unwrap().0.as_ref(), "\"e\"");
        }
    });
    assert_eq!(server.asked().len(), 4, "our own client is refused once");
    let agents: Vec<_> = server.asked().iter().map(|asked| asked.header("user-agent").unwrap().to_owned()).collect();
    assert!(agents.iter().all(|agent| agent.starts_with("farfeed/")), "{agents:?}");
    assert_eq!(slab.usage().free, 64);
}

#[test]
fn stored_codings_are_metadata_in_a_bucket_and_refused_elsewhere() {
    let object = pattern(7, 9000);
    let served = object.clone();
    let server = ScriptedServer::start(move |asked| {
        let (first, last) = asked.range().unwrap_or((0, 0));
        let headers =
            format!("ETag: \"e\"\r\nContent-Encoding: aws-chunked\r\nContent-Range: bytes {first}-{last}/9000\r\n");
        match asked.line().0 {
            "HEAD" => Reply::new("200 OK", "ETag: \"e\"\r\nContent-Encoding: aws-chunked\r\n", b""),
            _ => Reply::new("206 Partial Content", &headers, &served[first..=last]),
        }
    });
    let options = ObjectOptions::default().endpoint(server.url()).anonymous();
    let store: Arc<dyn Store> = ObjectStore::open("s3://bucket", options).unwrap();
    run(async {
        let (bytes, arrival) = read(&store, &slab(), &request("o", 5), 8000).await.unwrap();
        assert!(bytes == object[5..8005] && arrival.fallback == Some("content codings"));
        assert_eq!(store.head("o").await.unwrap().size, 9000);
        let plain = web(&server.url(), ObjectOptions::default());
        let error = read(&plain, &slab(), &request("o", 5), 8000).await.unwrap_err();
        assert!(error.kind() == Kind::Unsupported && error.to_string().contains("aws-chunked"), "{error}");
    });
}

#[test]
fn after_a_few_objects_the_whole_store_takes_the_detour() {
    let server = ScriptedServer::start(|asked| chunked(asked, &pattern(3, 1000), "\"e\"", 100));
    let store = web(&server.url(), ObjectOptions::default());
    run(async {
        for key in ["a", "b", "c", "d", "e", "f"] {
            read(&store, &slab(), &request(key, 0), 1000).await.unwrap();
        }
    });
    assert_eq!(server.asked().len(), 4 * 2 + 2);
}

#[test]
fn versions_and_ranges_are_checked_there_too() {
    let server = ScriptedServer::start(|asked| match asked.line().1 {
        "/changed" => chunked(asked, &pattern(4, 1000), "\"new\"", 100),
        "/refused" if asked.header("if-match") == Some("\"old\"") => Reply::new("412 Precondition Failed", "", b""),
        "/grown" => chunked(asked, &pattern(4, 2000), "\"old\"", 100),
        "/gone" if asked.header("accept-encoding").is_none() => Reply::new("404 Not Found", "", b""),
        "/secret" if asked.header("accept-encoding").is_none() => Reply::new("403 Forbidden", "", b"no"),
        "/shifted" if asked.header("accept-encoding").is_none() => {
            Reply::new("206 Partial Content", "ETag: \"old\"\r\nContent-Range: bytes 1-10/1000\r\n", &[0; 10])
        }
        _ => chunked(asked, &pattern(4, 1000), "\"old\"", 100),
    });
    let store = web(&server.url(), ObjectOptions::default());
    let version = Some(farfeed::dataset::Version("\"old\"".into()));
    let asked = |key: &str| ReadRequest { size: Some(1000), version: version.clone(), ..request(key, 0) };
    run(async {
        assert_eq!(read(&store, &slab(), &asked("good"), 10).await.unwrap().0, pattern(4, 1000)[..10]);
        for (key, kind) in [
            ("changed", Kind::Corrupt),
            ("refused", Kind::Corrupt),
            ("grown", Kind::Corrupt),
            ("gone", Kind::NotFound),
            ("secret", Kind::Auth),
            ("shifted", Kind::Io),
        ] {
            let error = read(&store, &slab(), &asked(key), 10).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{key}: {error}");
            assert!(error.to_string().contains(key), "it names the object: {error}");
        }
    });
}

#[test]
fn a_body_that_breaks_off_is_gone_on_with() {
    let object = pattern(5, 200_000);
    let (served, count) = (object.clone(), AtomicUsize::new(0));
    let server = ScriptedServer::start(move |asked| {
        let reply = chunked(asked, &served, "\"e\"", 5000);
        // The third is the general client's first; it asks again itself, and is cut off again.
        if (1..6).contains(&count.fetch_add(1, Ordering::SeqCst)) { reply.cut(60_000) } else { reply }
    });
    let (store, slab) = (web(&server.url(), ObjectOptions::default()), slab());
    run(async {
        let mut landing = Landing::new(slab.take(4).unwrap(), object.len());
        let (mut breaks, asked) = (0, request("o", 0));
        while let Err(error) = store.read(&asked, &mut landing).await {
            assert!(error.is_transient() && error.kind() == Kind::Io, "{error}");
            breaks += 1;
            assert!(breaks < 10);
        }
        assert!(fixture::bytes(&landing.landed().unwrap()) == object);
    });
    let firsts: Vec<_> = server.asked().iter().map(|asked| asked.range().unwrap().0).collect();
    assert!(firsts.windows(2).skip(1).all(|pair| pair[0] < pair[1]), "each asks for the rest: {firsts:?}");
}

#[test]
fn behind_a_proxy_everything_goes_through_it() {
    let object = pattern(6, 50_000);
    let served = object.clone();
    let proxy = ScriptedServer::start(move |asked| match asked.line() {
        (_, target) if !target.starts_with("http://far.test/data/") => Reply::new("400 Bad Request", "", b""),
        _ => Reply::range(asked, &served, "\"p\""),
    });
    let store = web("http://user:hidden@far.test/data", ObjectOptions::default().set("proxy_url", proxy.url()));
    run(async {
        let meta = store.head("o p.tar").await.unwrap();
        assert_eq!(meta.size, 50_000);
        assert_eq!(store.warm(4).await.unwrap(), 0, "nobody connects past the proxy");
        let (bytes, arrival) = read(&store, &slab(), &request("o p.tar", 3), 40_000).await.unwrap();
        assert!(bytes == object[3..40_003] && arrival.fallback == Some("a proxy"));
    });
    let asked = proxy.asked();
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some("Basic dXNlcjpoaWRkZW4=")), "{asked:?}");
    assert!(!format!("{store:?}").contains("hidden"));
}

#[test]
fn a_loader_says_how_many_reads_took_the_detour() {
    let server = S3Server::start(&KEYS);
    server.send_in_chunks(true);
    let dataset = shards::webdataset(2, 50, 5000);
    for (name, bytes) in &dataset.shards {
        server.put(&format!("data/{name}"), bytes);
    }
    let loader = Loader::builder(dataset.pattern("s3://bucket/"))
        .store_option("aws_endpoint", server.endpoint())
        .store_option("aws_access_key_id", KEYS[0].0)
        .store_option("aws_secret_access_key", KEYS[0].1)
        .field("jpg", Field::bytes())
        .field("cls", Field::int())
        .batch_size(16)
        .host_memory(ByteSize::mib(32))
        .epochs(1)
        .build()
        .unwrap();
    let mut samples = 0;
    for batch in loader.epoch(0) {
        let batch = batch.unwrap();
        dataset.check(&batch);
        samples += batch.len();
    }
    assert_eq!(samples, 100);
    let stats = loader.stats();
    assert!(stats.fallback_reads > 0 && stats.fallback_reason == Some("chunked bodies"), "{stats:?}");
    assert!(stats.to_string().contains("reads through the fallback client: chunked bodies"), "{stats}");
    assert!(stats.copies_per_byte > 0.5, "{stats:?}");
}
