//! Objects behind an HTTP server, received by our own client.
//!
//! General clients hand out bodies in buffers of their own, which costs a copy per byte and several times the CPU. This one
//! knows GET and HEAD of ranges over HTTP/1.1 and receives bodies where they belong: in pages.
//!
//! *Deliberately absent*: HTTP/2 (one connection, one window), pipelining (more connections buy the same), chunked bodies
//! (they cannot be received in place), cookies, caches, proxies.

mod client;
mod connection;
mod dial;
mod pool;
mod resolver;
mod response;
mod transport;
mod url;
mod verdict;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use self::client::Client;
use self::url::Root;
use self::verdict::Asked;
use super::{Appetite, Arrival, ConnectCost, ObjectMeta, ReadRequest, Route, Store, StoreFuture, past_end};
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
            resolve: Vec::new(),
        }
    }
}

/// Objects under a URL, read in ranges over plain HTTP/1.1.
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
    /// A store of the objects under `root`, as in `http://host:port/path`; keys are appended to the path. User information is sent as
    /// basic authentication, a query is appended to each request; neither is ever shown. Nothing is connected yet.
    ///
    /// # Errors
    /// `Config` when `root` is malformed or a timeout is zero; `Unsupported` for schemes other than `http`.
    pub fn open(root: &str, options: HttpOptions) -> Result<Arc<Self>> {
        for (name, timeout) in [("connect", options.connect_timeout), ("header", options.header_timeout)] {
            if timeout.is_zero() {
                return Err(Error::new(Kind::Config, format!("a {name} timeout of zero"))
                    .advice("allow at least one round trip"));
            }
        }
        Ok(Arc::new(HttpStore { root: Arc::new(Root::parse(root)?), client: Arc::new(Client::new(options)) }))
    }

    /// The root to open and the key in it of the object at `url`. User information and query, which go with each request,
    /// belong to the root; the path, its percent-encoding undone, is the key.
    pub fn split(url: &str) -> (String, String) {
        url::split(url)
    }

    async fn read_range(&self, request: &ReadRequest, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let (root, key) = (self.root.shown.as_str(), &*request.key);
        let Some(end) = request.start.checked_add(landing.len() as u64) else {
            let context =
                format!("{root}{key}: {} bytes from byte {} on pass any object's end", landing.len(), request.start);
            return Err(Error::new(Kind::Config, context));
        };
        let range = request.start + landing.filled() as u64..end;
        if let Some(size) = request.size.filter(|size| end > *size) {
            return Err(past_end(root, key, &range, size));
        }
        if range.is_empty() {
            return Ok(Arrival::default());
        }
        let asked = Asked { root, key, range, size: request.size, version: request.version.as_ref() };
        self.client.read(self.root.target(key), &asked, landing, route).await
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
            let asked = Asked { root: &self.root.shown, key, range: 0..1, size: None, version: None };
            self.client.head(self.root.target(key), &asked).await
        })
    }

    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival> {
        Box::pin(async move { self.read_range(request, landing, &Route::default()).await })
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
        let client = Arc::new(Client::new(self.client.options().clone()));
        Arc::new(HttpStore { root: Arc::clone(&self.root), client })
    }
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpStore").field("root", &self.root.shown).finish_non_exhaustive()
    }
}
