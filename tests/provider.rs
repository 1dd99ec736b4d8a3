//! The application's cryptography is used where it has installed one. A process has one, so this is a process of its own.
#![cfg(feature = "https")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(unused_imports, reason = "the servers are shared, and this needs none of them")]
mod fixture;
mod servers;

use std::sync::{Arc, Mutex};

use farfeed::store::{HttpOptions, HttpStore, Store, TlsOptions};
use fixture::run;
use rustls::CipherSuite;
use rustls::crypto::ring;
use rustls::version::TLS13;
use servers::{Authority, Secured};

#[test]
fn an_installed_provider_comes_before_ours() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let tls = TlsOptions { ca_bundle: Some(authority.save(directory.path(), "ca.pem")), client_certificate: None };
    let suites: Arc<Mutex<Vec<CipherSuite>>> = Arc::default();
    let seen = Arc::clone(&suites);
    let config = Secured::config(&authority.server(&["127.0.0.1"]), &TLS13);
    let server = Secured::start(config, move |stream, _| {
        seen.lock().unwrap().push(stream.get_ref().1.negotiated_cipher_suite().unwrap().suite());
        async { Ok(()) }
    });
    let connect = || {
        let store = HttpStore::open(&server.url(), HttpOptions { tls: tls.clone(), ..HttpOptions::default() }).unwrap();
        run(async { store.connect().await.unwrap() });
        store
    };
    let before = connect();
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    provider.install_default().unwrap();
    let _after = connect();
    // A store that was opened before stays what it was.
    run(async { before.connect().await.unwrap() });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while suites.lock().unwrap().len() < 3 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (ours, theirs) = (CipherSuite::TLS13_AES_128_GCM_SHA256, CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    assert_eq!(*suites.lock().unwrap(), [ours, theirs, ours]);
}
