//! From certificates in files to what rustls wants to know.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::client::{ClientConfig, ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore, SignatureScheme};

use super::acquaintance::Acquaintance;
use super::security::{ClientCertificate, Introduction, TlsOptions};
use crate::error::{Error, Kind, Result};

/// Sessions kept to be resumed: those of a few hosts, each with several tickets.
const SESSIONS: usize = 256;

/// How often a client certificate's files are looked at, at most.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

/// Whom we trust and who we are, as rustls takes it.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) config: Arc<ClientConfig>,
    identity: Arc<Identity>,
}

impl Trust {
    pub(super) fn new(options: &TlsOptions) -> Result<Self> {
        let provider = provider();
        let roots = match &options.ca_bundle {
            Some(bundle) => Arc::new(bundled_roots(bundle)?),
            None => system_roots()?,
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier = verifier.map_err(|error| {
            Error::new(Kind::Config, "the trusted certificates cannot be used to verify others").source(error)
        })?;
        let shown = match &options.client_certificate {
            Some(files) => Some(Shown::new(files.clone(), Arc::clone(&provider))?),
            None => None,
        };
        let identity = Arc::new(Identity { shown, asked: AtomicBool::new(false) });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| {
                Error::new(Kind::Config, "the process's cryptography provider has no cipher for TLS 1.2 or 1.3")
                    .source(error)
            })?
            // Not dangerous: it verifies as rustls does by itself, once for connections that are opened together.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Acquaintance::new(verifier)))
            .with_client_cert_resolver(Arc::clone(&identity) as Arc<dyn ResolvesClientCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Trust { config: Arc::new(config), identity })
    }

    /// Whether servers have asked for a client certificate, as far as is known: a session that is resumed does not ask again.
    pub(super) fn introduction(&self) -> Introduction {
        match (self.identity.asked.load(Ordering::Relaxed), &self.identity.shown) {
            (false, _) => Introduction::Unasked,
            (true, None) => Introduction::Refused,
            (true, Some(_)) => Introduction::Given,
        }
    }
}

/// What the application installed for the whole process; else ring's, which was the fastest where it was measured. AES-128 comes first
/// there: no attack on it is known, and decrypting is most of what receiving costs.
fn provider() -> Arc<CryptoProvider> {
    if let Some(installed) = CryptoProvider::get_default() {
        return Arc::clone(installed);
    }
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
    Arc::new(provider)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// The system's roots, read once per process: there are over a hundred, and they are the same for every store.
fn system_roots() -> Result<Arc<RootCertStore>> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(Arc::clone(roots));
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let error = Error::new(Kind::Config, "this system has no root certificates, so no https server can be trusted")
            .advice("install the package ca-certificates, or name a file of certificates with `ca_bundle`");
        return Err(match found.errors.into_iter().next() {
            Some(cause) => error.source(cause),
            None => error,
        });
    }
    Ok(Arc::clone(ROOTS.get_or_init(|| Arc::new(roots))))
}

fn bundled_roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, "ca_bundle")? {
        roots.add(certificate).map_err(|error| {
            Error::new(Kind::Config, format!("ca_bundle {}: not a certificate authority", path.display())).source(error)
        })?;
    }
    Ok(roots)
}

/// All certificates in a file; at least one.
fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |error| unreadable(path, option, "certificate", error);
    let found = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let found: Vec<_> = found.collect::<std::result::Result<_, _>>().map_err(unreadable)?;
    if found.is_empty() { Err(unreadable(pem::Error::NoItemsFound)) } else { Ok(found) }
}

/// The cause is named by its kind only: what a file holds is nobody's business.
fn unreadable(path: &Path, option: &str, what: &str, error: pem::Error) -> Error {
    let path = path.display();
    match error {
        pem::Error::Io(cause) => Error::new(Kind::Config, format!("{option} {path} cannot be read")).source(cause),
        _ => Error::new(Kind::Config, format!("{option} {path}: no {what} in PEM form"))
            .advice("a PEM file has lines such as -----BEGIN CERTIFICATE-----"),
    }
}

/// Answers servers that ask who we are.
#[derive(Debug)]
struct Identity {
    shown: Option<Shown>,
    /// Whether a server has asked.
    asked: AtomicBool,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.shown.as_ref().map(Shown::current)
    }

    fn has_certs(&self) -> bool {
        self.shown.is_some()
    }
}

/// A client certificate, read again when its files have changed.
struct Shown {
    files: ClientCertificate,
    provider: Arc<CryptoProvider>,
    known: Mutex<Known>,
}

struct Known {
    key: Arc<CertifiedKey>,
    stamps: Stamps,
    looked: Instant,
}

/// When each of the two files was written, and its size; `None` for one that is not there.
type Stamps = [Option<(SystemTime, u64)>; 2];

impl Shown {
    fn new(files: ClientCertificate, provider: Arc<CryptoProvider>) -> Result<Self> {
        // Before they are read: what changes meanwhile is seen the next time.
        let stamps = stamps(&files);
        let key = Arc::new(certified_key(&files, &provider)?);
        Ok(Shown { files, provider, known: Mutex::new(Known { key, stamps, looked: Instant::now() }) })
    }

    /// Files that cannot be used, or do not fit each other because one of them has yet to be replaced, leave things as they were.
    fn current(&self) -> Arc<CertifiedKey> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() >= LOOKED_AT_EVERY {
            known.looked = Instant::now();
            let stamps = stamps(&self.files);
            if stamps != known.stamps
                && let Ok(key) = certified_key(&self.files, &self.provider)
            {
                (known.key, known.stamps) = (Arc::new(key), stamps);
            }
        }
        Arc::clone(&known.key)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &ClientCertificate) -> Stamps {
    [&files.chain, &files.key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn certified_key(files: &ClientCertificate, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let option = "client_certificate";
    let chain = certificates(&files.chain, option)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable(&files.key, option, "unencrypted private key", error))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let (chain, key) = (files.chain.display(), files.key.display());
        Error::new(Kind::Config, format!("client_certificate {chain} and key {key} do not make an identity"))
            .source(error)
            .advice("the first certificate in the file must be the one that the key belongs to")
    })
}
