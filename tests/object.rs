//! Buckets: against an S3 server that checks every signature, and refuses what it is told to.

#![cfg(feature = "cloud")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/suite.rs"]
mod conformance;
#[allow(unused_imports, reason = "servers are shared, and this needs some of them")]
mod fixture;
mod servers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farfeed::Kind;
use farfeed::memory::Slab;
use farfeed::store::{HttpOptions, ObjectOptions, ObjectStore, ReadRequest, Store};
use fixture::{pattern, read, request, run};
use servers::{Refusal, S3Server, Seen};

const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";
const TOKEN: &str = "IQoJb3JpZ2luX2VjEXAMPLETOKEN";
const KEYS: [(&str, &str); 1] = [(ID, SECRET)];

fn options(server: &S3Server) -> ObjectOptions {
    ObjectOptions::default().endpoint(server.endpoint()).access_key(ID, SECRET, None)
}

fn open(options: ObjectOptions) -> Arc<dyn Store> {
    ObjectStore::open("s3://bucket", options).unwrap()
}

fn slab() -> Slab {
    Slab::new(64 * (64 << 10), 64 << 10).unwrap()
}

/// The text, once it is known to hold none of the secrets.
fn without_secrets(text: impl Into<String>) -> String {
    let text = text.into();
    for secret in [SECRET, TOKEN, "Signature=", "AWS4-HMAC"] {
        assert!(!text.contains(secret), "a secret in: {text}");
    }
    text
}

#[test]
fn it_does_what_every_store_does() {
    let server = S3Server::start(&KEYS);
    conformance::suite(open(options(&server)), |name, bytes| {
        server.put(name, bytes);
        name.to_owned()
    });
}

#[test]
fn bytes_land_in_place_and_one_signature_does_for_all_ranges() {
    let (server, slab) = (S3Server::start(&KEYS), slab());
    let object = pattern(1, 1 << 20);
    server.put("a/b.tar", &object);
    let store = open(options(&server));
    run(async {
        let meta = store.head("a/b.tar").await.unwrap();
        assert_eq!(meta.size, 1 << 20);
        for start in [0, 1000, 200_000] {
            let asked =
                ReadRequest { size: Some(meta.size), version: meta.version.clone(), ..request("a/b.tar", start) };
            let (bytes, arrival) = read(&store, &slab, &asked, 300_000).await.unwrap();
            assert!(bytes == object[start as usize..start as usize + 300_000]);
            assert!(arrival.copied < 4096 && arrival.fallback.is_none(), "{arrival:?}");
        }
    });
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.target == "/bucket/a/b.tar" && seen.header("authorization").is_some()));
    let dates: std::collections::BTreeSet<_> =
        seen.iter().filter(|seen| seen.method == "GET").map(|seen| seen.header("authorization").unwrap()).collect();
    assert_eq!(dates.len(), 1, "signed once");
}

#[test]
fn keys_are_taken_as_they_are() {
    let (server, slab) = (S3Server::start(&KEYS), slab());
    let store = open(options(&server));
    let keys = [
        "a b.tar",
        "100%/25%25.tar",
        "é/ünï-日本.tar",
        "a+b&c=d;e,f.tar",
        "(x)!'*~$@:.tar",
        "what?/n#1.tar",
        "q\"<>|^`{}.tar",
    ];
    for (seed, key) in keys.iter().enumerate() {
        server.put(key, &pattern(seed as u64, 5000));
    }
    run(async {
        for (seed, key) in keys.iter().enumerate() {
            assert_eq!(store.head(key).await.unwrap_or_else(|error| panic!("{key}: {error}")).size, 5000);
            let (bytes, _) = read(&store, &slab, &request(key, 100), 4900).await.unwrap();
            assert!(bytes == pattern(seed as u64, 5000)[100..], "{key}");
        }
        let mut listed: Vec<_> = store.list("").await.unwrap().into_iter().map(|entry| entry.key).collect();
        let mut expected: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        expected.sort();
        listed.sort();
        assert_eq!(listed, expected);
        for key in ["a/../b", "./a", "", "a/.."] {
            let error = store.head(key).await.unwrap_err();
            assert!(matches!(error.kind(), Kind::Unsupported | Kind::Config), "{key}: {error}");
        }
    });
}

#[test]
fn listing_goes_beyond_a_page() {
    let server = S3Server::start(&KEYS);
    for number in 0..2100 {
        server.put(&format!("many/{number:05}"), b"x");
    }
    server.put("other", b"x");
    let store = open(options(&server));
    run(async {
        let found = store.list("many/").await.unwrap();
        assert_eq!(found.len(), 2100);
        assert!(
            found.iter().enumerate().all(|(number, entry)| entry.key == format!("many/{number:05}") && entry.size == 1)
        );
        assert_eq!(store.list("many/0000").await.unwrap().len(), 10);
    });
    assert!(server.seen().iter().filter(|seen| seen.target.contains("continuation-token")).count() >= 2);
}

#[test]
fn a_wrong_secret_is_an_error_of_its_kind_that_does_not_tell_it() {
    let (server, slab) = (S3Server::start(&KEYS), slab());
    server.put("o", b"bytes");
    let wrong = "another-secret-that-is-wrong";
    let store = open(options(&server).access_key(ID, wrong, Some(TOKEN)));
    run(async {
        for error in [
            store.head("o").await.unwrap_err(),
            read(&store, &slab, &request("o", 0), 3).await.unwrap_err(),
            store.list("").await.unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false), "{error}");
            let text = without_secrets(format!("{error} {error:?}"));
            assert!(text.contains("SignatureDoesNotMatch") && !text.contains(wrong), "{text}");
        }
        let nobody = open(options(&server).access_key("AKIDNOBODY", SECRET, None));
        let error = nobody.head("o").await.unwrap_err();
        assert!(error.kind() == Kind::Auth && error.to_string().contains("does not know the access key"), "{error}");
    });
    without_secrets(format!("{store:?} {:?}", options(&server)));
}

#[test]
fn a_bucket_may_be_part_of_the_servers_name() {
    let (server, slab) = (S3Server::start(&KEYS), slab());
    server.put("deep/o", &pattern(1, 100));
    let loopback = [std::net::SocketAddr::from(([127, 0, 0, 1], 0))].to_vec();
    let http = HttpOptions { resolve: vec![("bucket.s3.test".to_owned(), loopback)], ..HttpOptions::default() };
    let endpoint = format!("http://s3.test:{}", server.address().port());
    let store = open(options(&server).endpoint(endpoint).virtual_hosted(true).http(http));
    run(async {
        assert_eq!(store.head("deep/o").await.unwrap().size, 100);
        assert_eq!(read(&store, &slab, &request("deep/o", 9), 91).await.unwrap().0, pattern(1, 100)[9..]);
        assert_eq!(store.list("deep/").await.unwrap().len(), 1);
    });
    let host = format!("bucket.s3.test:{}", server.address().port());
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.header("host") == Some(&host)), "{seen:?}");
    assert_eq!((seen.len(), seen[0].target.as_str()), (3, "/deep/o"));
}

#[test]
fn missing_objects_and_buckets_are_told_apart() {
    let server = S3Server::start(&KEYS);
    let store = open(options(&server));
    let nowhere = ObjectStore::open("s3://nowhere", options(&server)).unwrap();
    run(async {
        let error = read(&store, &slab(), &request("none", 0), 3).await.unwrap_err();
        assert!(error.kind() == Kind::NotFound && error.to_string().contains("NoSuchKey"), "{error}");
        let error = nowhere.list("").await.unwrap_err();
        assert!(error.kind() == Kind::NotFound && error.to_string().contains("NoSuchBucket"), "{error}");
    });
}

#[test]
fn session_tokens_and_requester_pays_go_along() {
    let (server, slab) = (S3Server::start(&KEYS), slab());
    server.put("o", &pattern(1, 100));
    let store = open(options(&server).access_key(ID, SECRET, Some(TOKEN)).requester_pays());
    run(async {
        store.head("o").await.unwrap();
        read(&store, &slab, &request("o", 0), 100).await.unwrap();
        store.list("").await.unwrap();
    });
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    for seen in seen {
        assert_eq!(seen.header("x-amz-security-token"), Some(TOKEN));
        assert_eq!(seen.header("x-amz-request-payer"), Some("requester"));
        let signed = seen.header("authorization").unwrap();
        assert!(signed.contains("x-amz-request-payer") && signed.contains("x-amz-security-token"), "both are signed");
    }
}

#[test]
fn public_buckets_are_asked_without_credentials() {
    let (server, slab) = (S3Server::start(&[]), slab());
    server.put("o", &pattern(1, 100));
    let store = open(ObjectOptions::default().endpoint(server.endpoint()).anonymous());
    run(async {
        assert_eq!(store.list("").await.unwrap().len(), 1);
        assert_eq!(read(&store, &slab, &request("o", 1), 99).await.unwrap().0, pattern(1, 100)[1..]);
    });
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

/// The token that the server takes now.
fn token_of(seen: &Seen, good: &AtomicUsize) -> Option<Refusal> {
    let wanted = format!("token-{}-{TOKEN}", good.load(Ordering::SeqCst));
    let sent = seen.header("x-amz-security-token")?.to_owned();
    let detail = format!("<Token-0>{sent}</Token-0>");
    (sent != wanted).then(|| Refusal { detail, ..Refusal::new(400, "ExpiredToken") })
}

#[test]
fn a_token_that_has_ended_is_an_error_that_says_so() {
    let server = S3Server::scripted(&KEYS, |seen| token_of(seen, &AtomicUsize::new(1)));
    server.put("o", &pattern(1, 100));
    let store = open(options(&server).access_key(ID, SECRET, Some(TOKEN)));
    run(async {
        for error in [
            store.head("o").await.unwrap_err(),
            read(&store, &slab(), &request("o", 0), 10).await.unwrap_err(),
            store.list("").await.unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false), "{error}");
            let text = without_secrets(format!("{error:?}"));
            assert!(text.contains("the session token has expired") && text.contains("ExpiredToken"), "{text}");
        }
    });
}

#[test]
fn a_region_that_the_server_names_is_taken() {
    let server = S3Server::scripted(&KEYS, |seen| {
        let signed = seen.header("authorization")?;
        let detail = "<Region>eu-test-7</Region>".to_owned();
        (!signed.contains("/eu-test-7/s3/"))
            .then(|| Refusal { detail, ..Refusal::new(400, "AuthorizationHeaderMalformed") })
    });
    server.put("o", &pattern(1, 100));
    for first in ["head", "list"] {
        let store = open(options(&server));
        run(async {
            match first {
                "head" => assert_eq!(store.head("o").await.unwrap().size, 100),
                _ => assert_eq!(store.list("").await.unwrap().len(), 1),
            }
            read(&store, &slab(), &request("o", 0), 10).await.unwrap();
        });
    }
}

#[test]
fn a_bucket_elsewhere_is_an_error_that_names_the_region() {
    let server = S3Server::scripted(&KEYS, |_| {
        Some(Refusal { region: Some("eu-test-7"), ..Refusal::new(301, "PermanentRedirect") })
    });
    let store = open(options(&server));
    run(async {
        for error in [
            store.head("o").await.unwrap_err(),
            read(&store, &slab(), &request("o", 0), 10).await.unwrap_err(),
            store.list("").await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Config, "{error}");
            assert!(error.to_string().contains("set the region to eu-test-7"), "{error}");
        }
    });
}

#[test]
fn a_server_that_asks_to_slow_down_is_asked_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let server = S3Server::scripted(&KEYS, move |_| {
        (asked.fetch_add(1, Ordering::SeqCst) == 0).then(|| Refusal::new(503, "SlowDown"))
    });
    server.put("o", &pattern(1, 100));
    let store = open(options(&server));
    run(async {
        let error = read(&store, &slab(), &request("o", 0), 10).await.unwrap_err();
        assert!(error.kind() == Kind::Throttled && error.is_transient(), "{error}");
        assert!(error.to_string().contains("SlowDown"), "{error}");
        read(&store, &slab(), &request("o", 0), 10).await.unwrap();
    });
}

#[test]
fn nonsense_is_refused_when_the_store_is_opened() {
    for (url, options) in [
        ("s3://", ObjectOptions::default()),
        ("s3://user:secret@bucket", ObjectOptions::default()),
        ("s3://bucket", ObjectOptions::default().set("aws_regoin", "secret")),
        ("s3://bucket", ObjectOptions::default().endpoint("http://a b/secret")),
        ("s3://bucket", ObjectOptions::default().endpoint("http://1.2.3.999")),
        ("s3://bucket", ObjectOptions::default().set("aws_access_key_id", "secret")),
        ("az://container", ObjectOptions::default()),
    ] {
        let error = ObjectStore::open(url, options).unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{url}: {error}");
        assert!(!error.to_string().contains("secret") || error.to_string().contains("secret_access"), "{error}");
    }
    let odd = open(ObjectOptions::default().endpoint("http://127.0.0.1:9").access_key("id", "s", Some("line\nbreak")));
    let error = run(odd.head("o")).unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error}");
}
