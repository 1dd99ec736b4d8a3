//! The client that `object_store` uses for what is not bytes, and for the fallback.
//!
//! Ours to make, because its own default has no cryptography compiled in, reads proxies from the environment, and knows nothing of the
//! certificates that the options name.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
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
        for (name, addresses) in &self.http.resolve {
            builder = builder.resolve_to_addrs(name, addresses);
        }
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
        Ok(HttpClient::new(Counting(self.client(options).map_err(failed)?)))
    }
}

/// Says how long a range is where the server does not: `object_store` takes no answer without a length, and a body in chunks has none.
struct Counting(reqwest::Client);

impl HttpService for Counting {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let mut response = HttpService::call(&self.0, request).await?;
            if !response.headers().contains_key(CONTENT_LENGTH)
                && let Some(length) =
                    response.headers().get(CONTENT_RANGE).and_then(|range| length(range.to_str().ok()?))
            {
                response.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            Ok(response)
        })
    }
}

/// Bytes in `bytes first-last/size`.
fn length(range: &str) -> Option<u64> {
    let (first, last) = range.trim().strip_prefix("bytes ")?.split('/').next()?.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    last.checked_sub(first)?.checked_add(1)
}

impl fmt::Debug for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counting").finish_non_exhaustive()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_lengths() {
        assert_eq!(length("bytes 5-14/20"), Some(10));
        assert_eq!(length("bytes 0-0/*"), Some(1));
        for odd in ["bytes */20", "bytes 5-4/20", "items 0-1/2", "bytes 0-18446744073709551615/*", ""] {
            assert_eq!(length(odd), None, "{odd}");
        }
    }
}
