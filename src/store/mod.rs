//! A byte range of an object lands in pages.
//!
//! *Takes* a key, a range and a [`Landing`]. *Gives* the landing filled, and what it cost. *Owns* its connections,
//! descriptors and rings. *Bounded* by what the caller has in flight; idle connections by a cap. *Fails* with a kind,
//! and says whether asking again may help; what had landed before stays in the landing.

mod fault;
mod file;
mod http;
mod memory;
#[cfg(feature = "cloud")]
mod object;
mod route;
mod throttle;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use fault::{Fault, FaultStore};
pub use file::{FileBackend, FileOptions, FileStore};
pub use http::{ClientCertificate, HttpOptions, HttpStore, TlsOptions};
pub use memory::MemoryStore;
#[cfg(feature = "cloud")]
pub use object::{FallbackStore, ObjectOptions, ObjectStore};
pub use route::Route;
pub use throttle::{Throttle, ThrottleStore};

use crate::dataset::Version;
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;

/// A future that a store returns. It may be dropped at any moment: pages the kernel still writes to are not freed by that.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Objects by key, read in ranges.
pub trait Store: fmt::Debug + Send + Sync {
    /// Root of the store as a URL, without credentials or query.
    fn root(&self) -> &str;

    /// What this store likes to be asked for.
    fn appetite(&self) -> Appetite;

    /// Size and version of an object.
    fn head<'a>(&'a self, key: &'a str) -> StoreFuture<'a, ObjectMeta>;

    /// Fills `landing` from `landing.filled()` to its end with the object's bytes at `request.start + landing.filled()` onwards.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when size or version are not those expected, or the range passes the object's end;
    /// others by their kind, transient where asking again may help. Bytes that landed before the error stay counted.
    fn read<'a>(&'a self, request: &'a ReadRequest, landing: &'a mut Landing) -> StoreFuture<'a, Arrival>;

    /// As [`Store::read`], for a store with more than one way to its objects: notes on `route` how far the request has come, and goes
    /// where earlier requests on it have not been.
    fn read_by<'a>(
        &'a self,
        request: &'a ReadRequest,
        landing: &'a mut Landing,
        route: &'a Route,
    ) -> StoreFuture<'a, Arrival> {
        let _ = route;
        self.read(request, landing)
    }

    /// Whether a late request may be raced by a second one for the same bytes: across a network, where the second one goes another way.
    /// Such a store has [`Store::read_by`] note its way, and lets go of a landing when its future is dropped. Default: no.
    fn hedges(&self) -> bool {
        false
    }

    /// Objects whose keys start with `prefix`, sorted by key.
    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectEntry>> {
        let _ = prefix;
        let error = Error::new(Kind::Unsupported, format!("{} cannot list objects", self.root()))
            .advice("name the shards with braces, as in train-{0000..0255}.tar");
        Box::pin(std::future::ready(Err(error)))
    }

    /// Opens connections ahead of the first read, until `connections` are there; gives how many it opened. None where a store has none.
    ///
    /// # Errors
    /// That of the last connection that could not be opened, if none could.
    fn warm(&self, connections: usize) -> StoreFuture<'_, usize> {
        let _ = connections;
        Box::pin(std::future::ready(Ok(0)))
    }

    /// Opens one fresh connection and says what that cost; the connection is kept for the next read.
    ///
    /// # Errors
    /// `Unsupported` where a store has no connections; else why it could not be opened.
    fn connect(&self) -> StoreFuture<'_, ConnectCost> {
        let error = Error::new(Kind::Unsupported, format!("{} has no connections to open", self.root()));
        Box::pin(std::future::ready(Err(error)))
    }

    /// The same store for one more reactor thread, with connections of its own.
    fn per_reactor(self: Arc<Self>) -> Arc<dyn Store>;
}

/// What a store likes to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appetite {
    /// Bytes per request when there is enough to read.
    pub request_bytes: usize,
    /// Requests in flight that it takes to be fast; a seed, not a cap.
    pub requests: usize,
    /// Gap in bytes that is cheaper to read over than to ask around.
    pub gap_bytes: usize,
    /// Reads are widened to multiples of this many bytes (1 where they are not): what pages must have room for.
    pub alignment: usize,
}

/// One range wanted.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// Object.
    pub key: Arc<str>,
    /// Position in the object of the landing's first byte.
    pub start: u64,
    /// Size that the object must have, where known.
    pub size: Option<u64>,
    /// Version that the object must have, where known.
    pub version: Option<Version>,
}

/// What a read brought, beside the bytes.
#[derive(Clone, Debug, Default)]
pub struct Arrival {
    /// Version of the object that the bytes came from, where the store tells.
    pub version: Option<Version>,
    /// Bytes that user space copied on the way.
    pub copied: u64,
    /// From asking to the first byte.
    pub first_byte: Duration,
    /// Whether a connection had to be opened.
    pub opened: bool,
    /// Why the bytes came through the fallback client, if they did.
    pub fallback: Option<&'static str>,
}

/// What it cost to open a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectCost {
    /// Where it leads.
    pub address: SocketAddr,
    /// For finding the address: next to nothing where it was known.
    pub resolve: Duration,
    /// For the TCP handshake with this address: one round trip. What other addresses cost that were tried before is not in it.
    pub connect: Duration,
    /// For the TLS handshake; `None` where there is none.
    pub secure: Option<Duration>,
}

/// Size and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Bytes.
    pub size: u64,
    /// Version, where the store tells.
    pub version: Option<Version>,
}

/// An object found by listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Key, to be passed to `read`.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

/// [`Store::read`] of a store whose [`Store::read_by`] does the work.
pub(crate) fn any_way<'a>(
    store: &'a (impl Store + ?Sized),
    request: &'a ReadRequest,
    landing: &'a mut Landing,
) -> StoreFuture<'a, Arrival> {
    Box::pin(async move { store.read_by(request, landing, &Route::default()).await })
}

/// The error for a range that passes an object's end.
pub(crate) fn past_end(root: &str, key: &str, range: &Range<u64>, size: u64) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("{root}{key}: bytes {}..{} wanted, the object has {size}", range.start, range.end),
    )
    .advice("it was truncated, or the index belongs to another version of it: upload it again, or run `farfeed index`")
    .in_object()
}

/// The error for an object that is not the one expected.
pub(crate) fn changed(root: &str, key: &str, expected: &dyn fmt::Display, found: &dyn fmt::Display) -> Error {
    Error::new(Kind::Corrupt, format!("{root}{key}: the object changed: expected {expected}, found {found}"))
        .advice("restore the object, or run `farfeed index` and start the epoch again")
        .in_object()
}
