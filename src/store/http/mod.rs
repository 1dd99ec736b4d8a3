//! Objects behind an HTTP server, received by our own client.
//!
//! General clients hand out bodies in buffers of their own, which costs a copy per byte and several times the CPU. This one
//! knows GET and HEAD of ranges over HTTP/1.1 and receives bodies where they belong: in pages.
//!
//! *Deliberately absent*: HTTP/2 (one connection, one window), pipelining (more connections buy the same), chunked bodies
//! (they cannot be received in place), cookies, caches, proxies.

#[cfg(feature = "https")]
mod acquaintance;
mod client;
mod connection;
mod dial;
mod pool;
mod refused;
mod resolver;
mod response;
mod security;
mod transport;
#[cfg(feature = "https")]
mod trust;
mod url;
mod verdict;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub(super) use self::client::Client;
#[cfg(feature = "cloud")]
pub(super) use self::refused::{Beyond, Refused};
pub(super) use self::security::Security;
pub use self::security::{ClientCertificate, TlsOptions};
#[cfg(feature = "cloud")]
pub(super) use self::url::Target;
pub(super) use self::url::{Root, Scheme};
pub(super) use self::verdict::Asked;
#[cfg(feature = "cloud")]
pub(super) use self::verdict::Tag;
use super::{Appetite, Arrival, ConnectCost, ObjectMeta, ReadRequest, Route, Store, StoreFuture, any_way};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// Deadlines and limits of an [`HttpStore`].
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// For resolving the name and connecting, all addresses together.
    pub connect_timeout: Duration,
    /// From sending a request to the end of the response's header.
    pub header_timeout: Duration,
    /// Idle connections kept per reactor; also the most that are opened ahead.
    pub idle_connections: usize,
    /// Idle connections older than this are closed: servers do it after about 5 s, and a request sent just then is lost. Servers wait
    /// longer for a connection's first request, and so does this: four times as long.
    pub idle_age: Duration,
    /// Whom `https://` connections trust, and who they say they are.
    pub tls: TlsOptions,
    /// Names whose addresses are told here, before the system is asked. Port 0 stands for that of the URL.
    pub resolve: Vec<(String, Vec<SocketAddr>)>,
}

impl Default for HttpOptions {
    fn default() -> Self {
        HttpOptions {
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            idle_connections: 256,
            idle_age: Duration::from_secs(4),
            tls: TlsOptions::default(),
            resolve: Vec::new(),
        }
    }
}

/// Objects under a URL, read in ranges over HTTP/1.1, plain or through TLS.
///
/// Its futures run on a tokio runtime with I/O and time enabled. Connections belong to the runtime that opened them: one
/// store per reactor, by [`Store::per_reactor`], shares nothing with the others but the options.
///
/// Versions are ETags as sent; where there are none, Last-Modified and the size.
pub struct HttpStore {
    root: Arc<Root>,
    client: Arc<Client>,
}

impl HttpStore {
    /// A store of the objects under `root`, as in `https://host:port/path`; keys are appended to the path. User information is sent as
    /// basic authentication, a query is appended to each request; neither is ever shown. Nothing is connected yet; certificates
    /// are read, if `root` is `https`.
    ///
    /// # Errors
    /// `Config` when `root` is malformed, a timeout is zero, or certificates cannot be used; `Unsupported` for schemes other than
    /// `http` and `https`, and for `https` in a build without the feature of that name.
    pub fn open(root: &str, options: HttpOptions) -> Result<Arc<Self>> {
        for (name, timeout) in [("connect", options.connect_timeout), ("header", options.header_timeout)] {
            if timeout.is_zero() {
                return Err(Error::new(Kind::Config, format!("a {name} timeout of zero"))
                    .advice("allow at least one round trip"));
            }
        }
        let root = Arc::new(Root::parse(root)?);
        let security = Security::new(options.tls.clone());
        if root.authority().scheme == Scheme::Https {
            security.prepare().map_err(|error| error.within(&root.shown))?;
        }
        Ok(Arc::new(HttpStore { root, client: Arc::new(Client::new(options, security)) }))
    }

    /// The root to open and the key in it of the object at `url`. User information and query, which go with each request,
    /// belong to the root; the path, its percent-encoding undone, is the key.
    pub fn split(url: &str) -> (String, String) {
        url::split(url)
    }

    /// The URL of the root with its query, the Authorization header, and whom to trust: for another client, never to be shown.
    #[cfg(feature = "cloud")]
    pub(super) fn address(&self) -> (String, Option<&str>, Arc<Security>) {
        let (url, authorization) = self.root.address();
        (url, authorization, self.client.security())
    }

    async fn read_range(&self, request: &ReadRequest, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let Some(asked) = Asked::of(&self.root.shown, request, landing)? else { return Ok(Arrival::default()) };
        self.client.read(self.root.target(asked.key), &asked, landing, route).await
    }
}

impl Store for HttpStore {
    fn root(&self) -> &str {
        &self.root.shown
    }

    fn appetite(&self) -> Appetite {
        // Asking twice costs a second round trip on some connection: 1.5 MB at 100 MB/s and 15 ms, if that connection had nothing else to
        // carry. Others carry on meanwhile, so only a small part of it is worth being read over.
        Appetite { request_bytes: 1 << 20, requests: 16, gap_bytes: 64 << 10, alignment: 1 }
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        Box::pin(async move {
            let asked = Asked::meta(&self.root.shown, key);
            self.client.head(self.root.target(key), &asked).await
        })
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        any_way(self, request, landing)
    }

    fn read_by<'a>(
        &'a self,
        request: &'a ReadRequest,
        landing: &'a mut Landing,
        route: &'a Route,
    ) -> StoreFuture<'a, Arrival> {
        Box::pin(self.read_range(request, landing, route))
    }

    fn hedges(&self) -> bool {
        true
    }

    fn warm(&self, connections: usize) -> StoreFuture<'_, usize> {
        Box::pin(self.client.warm(self.root.authority(), connections))
    }

    fn connect(&self) -> StoreFuture<'_, ConnectCost> {
        Box::pin(self.client.connect(self.root.authority()))
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        Arc::new(HttpStore { root: Arc::clone(&self.root), client: Arc::new(self.client.sibling()) })
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore").field("root", &self.root.shown).finish_non_exhaustive()
    }
}
