//! Whom an https connection trusts, and who it says it is.

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "https")]
use super::transport::Buffers;
#[cfg(feature = "https")]
use super::trust::Trust;
use crate::error::Result;

/// How `https://` servers are checked, and how they may check us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// A file of certificates (PEM), in place of the system's roots: servers must be certified by one of these.
    pub ca_bundle: Option<PathBuf>,
    /// What servers are shown that ask who we are (mutual TLS).
    pub client_certificate: Option<ClientCertificate>,
}

/// A certificate and its key, in files.
///
/// Both are read again when they change: certificates that live for an hour may be replaced in the middle of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and those that lead to its authority (PEM), its own first.
    pub chain: PathBuf,
    /// Its private key (PEM, unencrypted).
    pub key: PathBuf,
}

/// Whether servers have asked who we are, and been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "https"), expect(dead_code, reason = "nobody asks without https"))]
pub(super) enum Introduction {
    Unasked,
    /// There is no certificate to show.
    Refused,
    Given,
}

/// What the https connections of one reactor have in common.
#[derive(Debug)]
pub(in crate::store) struct Security {
    shared: Arc<Shared>,
    #[cfg(feature = "https")]
    buffers: Buffers,
}

/// What all reactors of a store have in common, sessions to be resumed among it.
#[derive(Debug)]
struct Shared {
    #[cfg_attr(not(feature = "https"), expect(dead_code, reason = "said, but of no use without https"))]
    options: TlsOptions,
    /// Made when it is first needed: a store of plain HTTP reads no certificates.
    #[cfg(feature = "https")]
    trust: std::sync::OnceLock<Trust>,
}

impl Security {
    pub(in crate::store) fn new(options: TlsOptions) -> Arc<Self> {
        Self::over(Arc::new(Shared {
            options,
            #[cfg(feature = "https")]
            trust: std::sync::OnceLock::new(),
        }))
    }

    /// The same for another reactor.
    pub(super) fn sibling(&self) -> Arc<Self> {
        Self::over(Arc::clone(&self.shared))
    }

    fn over(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Security {
            shared,
            #[cfg(feature = "https")]
            buffers: Buffers::default(),
        })
    }
}

#[cfg(feature = "https")]
impl Security {
    /// Reads certificates now, where whoever opens a store expects it, and not at its first connection.
    ///
    /// # Errors
    /// `Config` for files that are missing or hold something else.
    pub(in crate::store) fn prepare(&self) -> Result<()> {
        self.trust().map(|_| ())
    }

    /// Reads files only the first time. That is while a request waits only if a plain HTTP server redirected it to https.
    pub(super) fn trust(&self) -> Result<&Trust> {
        let shared = &*self.shared;
        match shared.trust.get() {
            Some(trust) => Ok(trust),
            None => {
                let trust = Trust::new(&shared.options)?;
                Ok(shared.trust.get_or_init(|| trust))
            }
        }
    }

    /// What other clients of the same store are to use.
    #[cfg(feature = "cloud")]
    pub(in crate::store) fn config(&self) -> Result<rustls::ClientConfig> {
        self.trust().map(|trust| (*trust.config).clone())
    }

    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }
}

#[cfg(not(feature = "https"))]
impl Security {
    /// # Errors
    /// `Unsupported`, always.
    pub(in crate::store) fn prepare(&self) -> Result<()> {
        Err(crate::error::Error::new(crate::error::Kind::Unsupported, "this build has no TLS")
            .advice("build farfeed with its feature `https`"))
    }
}
