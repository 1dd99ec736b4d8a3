//! The client that `object_store` uses for what is not bytes, and for the fallback.
//!
//! Ours to make, because its own default has no cryptography compiled in, reads proxies from the environment, and knows nothing of the
//! certificates that the options name.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::client::{HttpClient, HttpConnector};
use object_store::{ClientConfigKey, ClientOptions};
use reqwest::{ClientBuilder, NoProxy, Proxy};
use rustls::{ClientConfig, RootCertStore};

use super::super::HttpOptions;
use super::super::http::Security;
use crate::error::{Error, Kind};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Connections kept for listings, credentials and the fallback, per store.
const IDLE_MAX: usize = 32;

/// Makes clients, all with the same certificates.
#[derive(Clone)]
pub(super) struct Connector {
    http: HttpOptions,
    security: Arc<Security>,
}

impl Connector {
    pub(super) fn new(http: HttpOptions, security: Arc<Security>) -> Self {
        Connector { http, security }
    }

    fn client(&self, options: &ClientOptions) -> Result<reqwest::Client, Failure> {
        let value = |key: ClientConfigKey| options.get_config_value(&key);
        let plain = value(ClientConfigKey::AllowHttp).as_deref() == Some("true");
        let mut builder = ClientBuilder::new()
            .user_agent(concat!("farfeed/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(self.secure(plain)?)
            .https_only(!plain)
            .connect_timeout(self.connect_timeout(value(ClientConfigKey::ConnectTimeout)))
            .read_timeout(self.http.header_timeout)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(self.http.idle_age)
            // Proxies are named by the options; the environment's would be used for these requests and not for the bytes.
            .no_proxy();
        if let Some(headers) = options.get_default_headers() {
            builder = builder.default_headers(headers.clone());
        }
        if let Some(url) = value(ClientConfigKey::ProxyUrl) {
            let excludes = value(ClientConfigKey::ProxyExcludes).and_then(|names| NoProxy::from_string(&names));
            builder = builder.proxy(Proxy::all(url)?.no_proxy(excludes));
        }
        Ok(builder.build()?)
    }

    /// Metadata servers are on the same machine or nowhere, and are given a second.
    fn connect_timeout(&self, said: Option<String>) -> Duration {
        let said = said.as_deref().and_then(|text| text.strip_suffix('s')?.parse().ok()).map(Duration::from_secs);
        said.map_or(self.http.connect_timeout, |said| said.min(self.http.connect_timeout))
    }

    /// Those of our own client. Plain HTTP has to work on machines without any certificate too; https does not then.
    fn secure(&self, plain: bool) -> crate::error::Result<ClientConfig> {
        match self.security.config() {
            Err(_) if plain => {
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
                let builder = builder.map_err(|error| Error::new(Kind::Config, "no cipher for TLS").source(error))?;
                Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
            }
            config => config,
        }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed = |source| object_store::Error::Generic { store: "HTTP client", source };
        Ok(HttpClient::new(self.client(options).map_err(failed)?))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
