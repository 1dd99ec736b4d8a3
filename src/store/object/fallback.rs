//! A web server whose answers our client cannot use, read by one that can.

use std::fmt;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use http::header::{AUTHORIZATION, HeaderMap};
use object_store::ClientConfigKey;
use object_store::http::HttpBuilder;

use super::super::http::{Asked, Beyond, HttpStore};
use super::super::{
    Appetite, Arrival, ConnectCost, ObjectEntry, ObjectMeta, ReadRequest, Route, Store, StoreFuture, any_way,
};
use super::access::retry;
use super::connector::Connector;
use super::foreign::cause;
use super::options::ObjectOptions;
use super::stream::{self, Detours};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// An [`HttpStore`], and a general client for what it refuses: bodies in chunks, or a proxy before it.
///
/// Our client is asked first. An object that it could not read is read by the other one from then on, and after a few such objects all
/// are. That costs a copy of each byte; [`Arrival::fallback`] says so.
pub struct FallbackStore {
    direct: Arc<dyn Store>,
    general: Arc<General>,
    detours: Arc<Detours>,
}

/// The other client, made when it is first needed: most servers are read without.
struct General {
    builder: HttpBuilder,
    built: OnceLock<object_store::http::HttpStore>,
}

impl FallbackStore {
    /// A store of the objects under `root`, as [`HttpStore::open`] has it. Of the options those count that mean something to any web server,
    /// such as `proxy_url`.
    ///
    /// # Errors
    /// Those of [`HttpStore::open`]; `Config` for options that mean nothing.
    pub fn open(root: &str, options: &ObjectOptions) -> Result<Arc<Self>> {
        let direct = HttpStore::open(root, options.http.clone())?;
        let mut client = object_store::ClientOptions::new();
        for (key, value) in options.for_web()? {
            client = client.with_config(key, value);
        }
        let (url, authorization, security) = direct.address();
        if let Some(mut value) = authorization.and_then(|value| HeaderValue::from_str(value).ok()) {
            value.set_sensitive(true);
            client = client.with_default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        }
        if url.starts_with("http://") {
            client = client.with_allow_http(true);
        }
        let proxied = client.get_config_value(&ClientConfigKey::ProxyUrl).is_some();
        let detours = if proxied { Detours::everywhere("a proxy") } else { Detours::default() };
        let builder = HttpBuilder::new().with_url(url).with_client_options(client).with_retry(retry());
        let builder = builder.with_http_connector(Connector::new(options.http.clone(), security));
        let general = General { builder, built: OnceLock::new() };
        Ok(Arc::new(FallbackStore { direct, general: Arc::new(general), detours: Arc::new(detours) }))
    }

    fn general(&self, root: &str) -> Result<&dyn object_store::ObjectStore> {
        if let Some(built) = self.general.built.get() {
            return Ok(built);
        }
        let built = self.general.builder.clone().build().map_err(|error| {
            Error::new(Kind::Config, format!("{root}: the options cannot be used: {}", cause(&error)))
        })?;
        Ok(self.general.built.get_or_init(|| built))
    }

    /// Whether it is worth asking the other client after `error`; if so, it is remembered.
    fn takes_over(&self, key: &str, error: &Error) -> Option<&'static str> {
        // A coded body is as coded there.
        let beyond = Beyond::of(error).filter(|beyond| *beyond != Beyond::Coded)?;
        self.detours.note(key, beyond.name());
        Some(beyond.name())
    }

    async fn read_range(&self, request: &ReadRequest, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let why = match self.detours.why(&request.key) {
            Some(why) => why,
            None => match self.direct.read_by(request, landing, route).await {
                Err(error) => self.takes_over(&request.key, &error).ok_or(error)?,
                outcome => return outcome,
            },
        };
        let Some(asked) = Asked::of(self.direct.root(), request, landing)? else { return Ok(Arrival::default()) };
        stream::read(self.general(asked.root)?, &asked, landing, why).await
    }

    async fn look_up(&self, key: &str) -> Result<ObjectMeta> {
        if self.detours.why(key).is_none() {
            match self.direct.head(key).await {
                Err(error) => self.takes_over(key, &error).ok_or(error)?,
                outcome => return outcome,
            };
        }
        let root = self.direct.root();
        stream::head(self.general(root)?, &Asked::meta(root, key)).await
    }
}

impl Store for FallbackStore {
    fn root(&self) -> &str {
        self.direct.root()
    }

    fn appetite(&self) -> Appetite {
        self.direct.appetite()
    }

    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta> {
        Box::pin(self.look_up(key))
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

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectEntry>> {
        self.direct.list(prefix)
    }

    fn warm(&self, connections: usize) -> StoreFuture<'_, usize> {
        // Behind a proxy the server itself may not be reached at all.
        match self.detours.why("") {
            Some(_) => Box::pin(std::future::ready(Ok(0))),
            None => self.direct.warm(connections),
        }
    }

    fn connect(&self) -> StoreFuture<'_, ConnectCost> {
        self.direct.connect()
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        let direct = Arc::clone(&self.direct).per_reactor();
        Arc::new(FallbackStore { direct, general: Arc::clone(&self.general), detours: Arc::clone(&self.detours) })
    }
}

impl fmt::Debug for FallbackStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackStore").field("root", &self.root()).finish_non_exhaustive()
    }
}
