//! Objects in a cloud: S3 and what speaks its language, Google Cloud Storage, Azure Blob Storage.
//!
//! The crate `object_store` finds credentials, signs and lists. The bytes come by our own client ([`super::http`]) into pages, with the
//! headers that the signature asks for. What that client does not do, `object_store` reads too: streamed, at the price of a copy.
//!
//! Requests are signed in their headers, not in their URLs: servers and proxies write URLs to logs, and some buckets refuse signed ones.
//! Range is not part of S3's signature, so one is good for all reads of an object.
//!
//! *Deliberately absent*: profile files of AWS (`object_store` does not read them), writing, versions other than the current one.

mod access;
mod azure;
mod connector;
mod fallback;
mod foreign;
mod gcs;
mod list;
mod options;
mod refusal;
mod s3;
mod stream;

use std::fmt;
use std::sync::Arc;

use http::Method;

pub use self::fallback::FallbackStore;
pub use self::options::ObjectOptions;

use self::access::{Access, Entry};
use self::options::Provider;
use self::refusal::{Remedy, in_words, remedy};
use self::stream::Detours;
use super::http::{Asked, Beyond, Client, Refused, Scheme, Security};
use super::{Appetite, Arrival, ConnectCost, ObjectEntry, ObjectMeta, ReadRequest, Route, Store, StoreFuture, any_way};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// A bucket or container, read in ranges.
///
/// Its futures run on a tokio runtime with I/O and time enabled. [`Store::per_reactor`] gives a store with connections of its own; credentials,
/// signatures and what was learnt of the server are shared. Credentials are renewed five minutes before they end, by whichever read
/// comes first; if the server says that they have ended, they are looked for anew, a few times for each read before it fails.
///
/// Versions are ETags. Keys are taken as they are: nothing in them is decoded.
pub struct ObjectStore {
    root: Arc<str>,
    access: Arc<Access>,
    detours: Arc<Detours>,
    client: Arc<Client>,
}

/// How often one read looks for newer credentials: those that others have just found may end too while it waits for the link.
const RENEWALS_MAX: u32 = 3;

/// What one request has tried so far.
#[derive(Default)]
struct Tried {
    renewals: u32,
    moved: bool,
}

impl ObjectStore {
    /// The bucket of `url`: `s3://bucket`, `gs://bucket` or `az://container`. Nothing is connected yet, and no credentials are looked for but
    /// those in the environment.
    ///
    /// # Errors
    /// `Config` for a URL without a bucket, for options that mean nothing or contradict each other, and for an Azure container without an
    /// account; `Unsupported` for other schemes.
    pub fn open(url: &str, options: ObjectOptions) -> Result<Arc<Self>> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let provider = match scheme {
            "s3" => Provider::S3,
            "gs" => Provider::Gcs,
            "az" => Provider::Azure,
            _ => return Err(Error::new(Kind::Unsupported, "a bucket's URL begins with s3://, gs:// or az://")),
        };
        let bucket = rest.split('/').next().unwrap_or_default();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'$');
        if bucket.is_empty() || !bucket.bytes().all(legal) {
            return Err(Error::new(Kind::Config, format!("{scheme}://: no bucket is called that")).advice(
                "write s3://bucket/key; the server is named by the option endpoint, credentials never in the URL",
            ));
        }
        let security = Security::new(options.http.tls.clone());
        let client = Arc::new(Client::new(options.http.clone(), Arc::clone(&security)));
        let access = Access::open(provider, bucket, options, &security)?;
        if access.current().root.authority().scheme == Scheme::Https {
            security.prepare().map_err(|error| error.within(format_args!("{scheme}://{bucket}")))?;
        }
        let detours = access.current().streamed().map_or_else(Detours::default, Detours::everywhere);
        let root = format!("{scheme}://{bucket}/").into();
        Ok(Arc::new(ObjectStore { root, access: Arc::new(access), detours: Arc::new(detours), client }))
    }

    /// The bucket to open and the key in it of the object at `url`, which is taken as it is.
    pub fn split(url: &str) -> (&str, &str) {
        let host = url.find("://").map_or(0, |at| at + 3);
        match url[host..].find('/') {
            Some(at) => (&url[..host + at], &url[host + at + 1..]),
            None => (url, ""),
        }
    }

    async fn read_range(&self, request: &ReadRequest, landing: &mut Landing, route: &Route) -> Result<Arrival> {
        let Some(asked) = Asked::of(&self.root, request, landing)? else { return Ok(Arrival::default()) };
        let mut tried = Tried::default();
        loop {
            let entry = self.access.current();
            let outcome = match self.detours.why(asked.key) {
                Some(why) => stream::read(entry.objects(), &asked, landing, why).await,
                None => match self.access.target(&entry, Method::GET, &asked).await {
                    Ok(target) => self.client.read(target, &asked, landing, route).await,
                    Err(error) => Err(error),
                },
            };
            match outcome {
                Ok(arrival) => return Ok(arrival),
                Err(error) => self.again(error, &entry, asked.key, &mut tried)?,
            }
        }
    }

    async fn look_up(&self, key: &str) -> Result<ObjectMeta> {
        let asked = Asked::meta(&self.root, key);
        let mut tried = Tried::default();
        loop {
            let entry = self.access.current();
            match self.ask_size(&entry, &asked).await {
                Ok(meta) => return Ok(meta),
                Err(error) => self.again(error, &entry, key, &mut tried)?,
            }
        }
    }

    async fn ask_size(&self, entry: &Entry, asked: &Asked<'_>) -> Result<ObjectMeta> {
        if self.detours.why(asked.key).is_some() {
            return stream::head(entry.objects(), asked).await;
        }
        let target = self.access.target(entry, Method::HEAD, asked).await?;
        let error = match self.client.head(target, asked).await {
            Err(error) if Refused::of(&error).is_none_or(|refused| refused.code.is_none()) => error,
            outcome => return outcome,
        };
        // The answer to HEAD has no body, and so no reason: that to GET has one.
        if error.is_transient()
            || matches!(error.kind(), Kind::NotFound | Kind::Corrupt)
            || Beyond::of(&error).is_some()
        {
            return Err(error);
        }
        let target = self.access.target(entry, Method::GET, asked).await?;
        self.client.probe(target, asked).await
    }

    /// Does what helps against `error`, so that asking again makes sense.
    ///
    /// # Errors
    /// `error`, in words, if nothing does.
    fn again(&self, error: Error, entry: &Entry, key: &str, tried: &mut Tried) -> Result<()> {
        // Only our own client says so; others may have noted it meanwhile.
        if let Some(beyond) = Beyond::of(&error) {
            self.detours.note(key, beyond.name());
            return Ok(());
        }
        match remedy(&error) {
            Remedy::Renew if tried.renewals < RENEWALS_MAX && !entry.is_anonymous() => {
                tried.renewals += 1;
                self.access.renew(entry.generation, None)
            }
            // To sign for another region helps wherever the server is; to ask elsewhere only where the region says where.
            Remedy::Move(region)
                if !tried.moved
                    && entry.can_move_to(&region)
                    && (entry.region_is_place() || is_about_signature(&error)) =>
            {
                tried.moved = true;
                self.access.renew(entry.generation, Some(&region))
            }
            _ => Err(in_words(&format!("{}{key}", self.root), error)),
        }
    }
}

/// Whether the region was wrong in the signature only.
fn is_about_signature(error: &Error) -> bool {
    Refused::of(error).is_some_and(|refused| refused.code.as_deref() == Some("AuthorizationHeaderMalformed"))
}

impl Store for ObjectStore {
    fn root(&self) -> &str {
        &self.root
    }

    fn appetite(&self) -> Appetite {
        // As for any server across a link; see HttpStore.
        Appetite { request_bytes: 1 << 20, requests: 16, gap_bytes: 64 << 10, alignment: 1 }
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
        Box::pin(self.list_below(prefix))
    }

    fn warm(&self, connections: usize) -> StoreFuture<'_, usize> {
        Box::pin(async move {
            let entry = self.access.current();
            // The fallback has connections of its own.
            if entry.streamed().is_some() { Ok(0) } else { self.client.warm(entry.root.authority(), connections).await }
        })
    }

    fn connect(&self) -> StoreFuture<'_, ConnectCost> {
        Box::pin(async move { self.client.connect(self.access.current().root.authority()).await })
    }

    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store> {
        let client = Arc::new(self.client.sibling());
        let (root, access, detours) = (Arc::clone(&self.root), Arc::clone(&self.access), Arc::clone(&self.detours));
        Arc::new(ObjectStore { root, access, detours, client })
    }
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore").field("root", &self.root).finish_non_exhaustive()
    }
}
