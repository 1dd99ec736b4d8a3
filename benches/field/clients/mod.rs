//! Clients by name.

mod farfeed;
mod hyper;
mod object_store;
mod reqwest;
pub(crate) mod rustls;
pub(crate) mod wire;

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use ::farfeed::memory::Landing;
use ::rustls::ClientConfig;
use ::rustls::RootCertStore;
use ::rustls::pki_types::CertificateDer;
use ::rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

/// Puts a range of an object into pages. One that cannot fails the benchmark.
pub(crate) trait Client: Send + Sync {
    /// Fills `landing` with the object's bytes from `start` on; gives how many of them user space is known to have copied.
    fn read<'a>(&'a self, key: &'a str, start: u64, landing: &'a mut Landing) -> Reading<'a>;
}

/// The bytes copied, once the landing is full.
pub(crate) type Reading<'a> = Pin<Box<dyn Future<Output = u64> + Send + 'a>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scheme {
    Http,
    Https,
    S3,
}

impl Scheme {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::S3 => "s3",
        }
    }
}

impl std::str::FromStr for Scheme {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = [Scheme::Http, Scheme::Https, Scheme::S3].into_iter().find(|scheme| scheme.name() == name);
        found.ok_or_else(|| format!("{name}: http, https or s3"))
    }
}

/// Where the objects are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    /// On 127.0.0.1.
    pub(crate) port: u16,
    /// The authority that signed the server's certificate, as PEM.
    pub(crate) authority: Option<PathBuf>,
}

/// What the certificate is for.
pub(crate) const HOST: &str = "127.0.0.1";
/// The first part of a path, where there are buckets.
pub(crate) const BUCKET: &str = "bench";
const REGION: &str = "us-east-1";
/// Both halves of the access key.
const KEY: &str = "bench";

impl Origin {
    pub(crate) fn plain(port: u16) -> Self {
        Origin { scheme: Scheme::Http, port, authority: None }
    }

    /// Of the server, without a slash at the end. Buckets are found by path.
    pub(crate) fn url(&self) -> String {
        match self.scheme {
            Scheme::Http | Scheme::S3 => format!("http://{HOST}:{}", self.port),
            Scheme::Https => format!("https://{HOST}:{}", self.port),
        }
    }

    fn authority(&self) -> Vec<u8> {
        fs::read(self.authority.as_ref().unwrap()).unwrap()
    }

    /// TLS as rustls does it by default, trusting this origin's authority only.
    pub(crate) fn tls(&self) -> Option<Arc<ClientConfig>> {
        let authority = self.authority.as_ref()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        Some(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
    }
}

pub(crate) const OURS: &str = "farfeed";
pub(crate) const STREAMED: &str = "object_store streamed";
pub(crate) const WHOLE: &str = "object_store get_range";
pub(crate) const HYPER: &str = "hyper";
pub(crate) const REQWEST: &str = "reqwest";

/// The client of this name; `None` if there is none for such an origin.
pub(crate) fn open(name: &str, origin: &Origin) -> Option<Arc<dyn Client>> {
    let buckets = origin.scheme == Scheme::S3;
    Some(match name {
        OURS => Arc::new(farfeed::Ours::open(origin)),
        STREAMED => Arc::new(object_store::Streamed(object_store::open(origin))),
        WHOLE => Arc::new(object_store::Whole(object_store::open(origin))),
        HYPER if !buckets => Arc::new(hyper::Hyper::open(origin)),
        REQWEST if !buckets => Arc::new(reqwest::Reqwest::open(origin)),
        _ => return None,
    })
}

/// Cryptography for those who take the process's: ring, for all alike.
pub(crate) fn install_cryptography() {
    let _ = ::rustls::crypto::ring::default_provider().install_default();
}
