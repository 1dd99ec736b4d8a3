//! Azure Blob Storage, as Azurite has it.

#![cfg(feature = "cloud")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "conformance/suite.rs"]
mod conformance;
#[allow(unused_imports, reason = "servers are shared, and this needs some of them")]
mod fixture;
mod servers;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use farfeed::memory::Slab;
use farfeed::store::{ObjectOptions, ObjectStore, ReadRequest, Store};
use farfeed::{Kind, Loader};
use object_store::ClientOptions;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::signer::Signer;

use fixture::{pattern, read, request, run};
use servers::{ACCOUNT, Azurite, KEY};

fn options(azurite: &Azurite) -> ObjectOptions {
    ObjectOptions::default().endpoint(azurite.endpoint()).set("account_name", ACCOUNT)
}

fn open(options: ObjectOptions) -> Arc<dyn Store> {
    ObjectStore::open("az://container", options).unwrap()
}

fn slab() -> Slab {
    Slab::new(16 * (64 << 10), 64 << 10).unwrap()
}

#[test]
fn azure_does_what_every_store_does() {
    let azurite = Azurite::start();
    conformance::suite(open(options(&azurite).set("access_key", KEY)), |name, bytes| {
        azurite.put(name, bytes);
        name.to_owned()
    });
}

#[test]
fn keys_of_all_kinds_are_signed_and_listed() {
    let (azurite, slab) = (Azurite::start(), slab());
    let store = open(options(&azurite).set("access_key", KEY));
    let keys = ["a b.tar", "100%/25%25.tar", "é/ünï-日本.tar", "a+b&c=d;e,f.tar", "what?/n#1.tar"];
    for (seed, key) in keys.iter().enumerate() {
        azurite.put(key, &pattern(seed as u64, 5000));
    }
    run(async {
        for (seed, key) in keys.iter().enumerate() {
            let meta = store.head(key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
            let asked = ReadRequest { size: Some(meta.size), version: meta.version, ..request(key, 100) };
            let (bytes, arrival) = read(&store, &slab, &asked, 4900).await.unwrap();
            assert!(bytes == pattern(seed as u64, 5000)[100..], "{key}");
            assert!(arrival.copied < 4096 && arrival.fallback.is_none(), "{arrival:?}");
        }
        let mut expected: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        expected.sort();
        let listed: Vec<_> = store.list("").await.unwrap().into_iter().map(|entry| entry.key).collect();
        assert_eq!(listed, expected);
    });
}

#[test]
fn a_wrong_key_and_no_account_are_errors_of_their_kinds() {
    let azurite = Azurite::start();
    azurite.put("o", b"bytes");
    let wrong = "d3Jvbmcta2V5LXRoYXQtaXMtbm90LXRoZS1yaWdodC1vbmU=";
    let store = open(options(&azurite).set("access_key", wrong));
    let good = open(options(&azurite).set("access_key", KEY));
    run(async {
        for error in [
            store.head("o").await.unwrap_err(),
            read(&store, &slab(), &request("o", 0), 3).await.unwrap_err(),
            store.list("").await.unwrap_err(),
        ] {
            assert_eq!((error.kind(), error.is_transient()), (Kind::Auth, false), "{error}");
            assert!(!format!("{error:?} {store:?}").contains(wrong), "{error:?}");
        }
        let error = good.head("none").await.unwrap_err();
        assert!(error.kind() == Kind::NotFound && error.to_string().contains("BlobNotFound"), "{error}");
        let nowhere: Arc<dyn Store> =
            ObjectStore::open("az://nowhere", options(&azurite).set("access_key", KEY)).unwrap();
        let error = nowhere.list("").await.unwrap_err();
        assert!(error.kind() == Kind::NotFound && error.to_string().contains("ContainerNotFound"), "{error}");
    });
}

/// For signing without a network.
#[derive(Debug)]
struct Nobody;

impl HttpConnector for Nobody {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Nobody))
    }
}

impl HttpService for Nobody {
    fn call<'a, 'b>(
        &'a self,
        _: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::pending())
    }
}

/// A shared access signature for reading one blob.
fn shared_access(azurite: &Azurite, key: &str) -> String {
    let store = MicrosoftAzureBuilder::new()
        .with_account(ACCOUNT)
        .with_access_key(KEY)
        .with_container_name("container")
        .with_endpoint(azurite.endpoint())
        .with_allow_http(true)
        .with_http_connector(Nobody)
        .build()
        .unwrap();
    let url = run(store.signed_url(http::Method::GET, &key.into(), Duration::from_secs(600))).unwrap();
    url.query().unwrap().to_owned()
}

#[test]
fn shared_access_signatures_go_along_and_are_never_shown() {
    let azurite = Azurite::start();
    azurite.put("a.tar", &pattern(1, 5000));
    azurite.put("b.tar", &pattern(2, 5000));
    let signature = shared_access(&azurite, "a.tar");
    let store = open(options(&azurite).set("sas_token", &signature));
    run(async {
        let meta = store.head("a.tar").await.unwrap();
        assert_eq!(meta.size, 5000);
        assert_eq!(read(&store, &slab(), &request("a.tar", 9), 4000).await.unwrap().0, pattern(1, 5000)[9..4009]);
        for error in [store.head("b.tar").await.unwrap_err(), store.list("").await.unwrap_err()] {
            assert_eq!(error.kind(), Kind::Auth, "{error}");
            let text = format!("{error:?} {store:?}");
            assert!(!text.contains("sig=") && !text.contains(signature.split("sig=").nth(1).unwrap()), "{text}");
        }
    });
    let error = Loader::builder(format!("az://container/a.tar?{signature}")).build().unwrap_err();
    assert!(error.kind() == Kind::Config && !error.to_string().contains("sig="), "{error}");
}

#[test]
fn a_loader_reads_from_a_container() {
    let azurite = Azurite::start();
    let tokens: Vec<u8> = (0..20_000u32).flat_map(|token| (token as u16).to_le_bytes()).collect();
    azurite.put("corpus/a.bin", &tokens[..20_000]);
    azurite.put("corpus/b.bin", &tokens[20_000..]);
    let loader = Loader::builder("az://container/corpus/")
        .store_option("azure_endpoint", azurite.endpoint())
        .store_option("azure_storage_account_name", ACCOUNT)
        .store_option("azure_storage_account_key", KEY)
        .tokens(farfeed::Tokens::new(farfeed::dataset::Dtype::U16, 100))
        .batch_size(50)
        .host_memory(farfeed::ByteSize::mib(16))
        .epochs(1)
        .build()
        .unwrap();
    let read: Vec<u8> =
        loader.epoch(0).flat_map(|batch| batch.unwrap().dense("tokens").unwrap().bytes.unwrap().to_vec()).collect();
    assert!(read == tokens);
}
