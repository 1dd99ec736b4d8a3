//! From a target to a response: the pool, deadlines, redirects, and the one immediate retry.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::HttpOptions;
use super::connection::{Connection, Failure, Method, Request};
use super::pool::Pool;
use super::resolver::Resolver;
use super::response::Malformed;
use super::security::{Introduction, Security};
use super::url::{Authority, Target};
use super::verdict::{Asked, Tag};
use crate::error::{Error, Kind, Result};
use crate::memory::Landing;
use crate::store::{Arrival, ConnectCost, ObjectMeta, Route};

use tokio::sync::Notify;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// A request waits no longer than this for a connection that is being opened ahead; then it opens its own.
const OPENING_MAX: Duration = Duration::from_secs(1);

/// The connections of one reactor, and how they are used.
#[derive(Debug)]
pub(in crate::store) struct Client {
    options: HttpOptions,
    pool: Pool,
    resolver: Resolver,
    security: Arc<Security>,
    /// Connections that are being opened ahead of requests.
    opening: AtomicUsize,
    /// One of them, or another, has become idle; or the last of them has failed.
    idle: Notify,
}

/// One of the connections that are being opened ahead, until it is open or has failed.
struct Ahead(Arc<Client>);

/// A connection whose response's header has been received.
struct Answer {
    connection: Connection,
    first_byte: Duration,
    opened: bool,
}

impl Client {
    pub(in crate::store) fn new(options: HttpOptions, security: Arc<Security>) -> Self {
        let pool = Pool::new(options.idle_connections, options.idle_age);
        let resolver = Resolver::new(options.resolve.clone());
        Client { options, pool, resolver, security, opening: AtomicUsize::new(0), idle: Notify::new() }
    }

    /// The same for another reactor, with connections of its own.
    pub(in crate::store) fn sibling(&self) -> Self {
        Client::new(self.options.clone(), self.security.sibling())
    }

    #[cfg(feature = "cloud")]
    pub(super) fn security(&self) -> Arc<Security> {
        Arc::clone(&self.security)
    }

    /// Fills `landing` with the range `asked` for.
    pub(in crate::store) async fn read(
        &self,
        target: Target,
        asked: &Asked<'_>,
        landing: &mut Landing,
        route: &Route,
    ) -> Result<Arrival> {
        let request = Request {
            method: Method::Get,
            range: Some((asked.range.start, asked.range.end - 1)),
            if_match: asked.if_match(),
        };
        let Answer { mut connection, first_byte, opened } = self.follow(target, request, asked, route).await?;
        let head = connection.head().map_err(|error| malformed(asked, error))?;
        let keep_alive = head.keep_alive && head.content_length.is_some();
        let version = match asked.check_range(&head) {
            Ok(version) => version,
            Err(error) => return Err(self.explained(connection, error).await),
        };
        let (before, began) = (landing.filled(), Instant::now());
        let copied = connection.receive_body(landing).await.map_err(|cause| {
            let (root, key, filled, len) = (asked.root, asked.key, landing.filled(), landing.len());
            named(cause, format!("{root}{key}: the connection broke after {filled} of {len} bytes"), |context| {
                Error::new(Kind::Io, context).transient()
            })
        })?;
        connection.note_body(landing.filled() - before, began.elapsed() + first_byte);
        if keep_alive && connection.is_spent() {
            self.pool.put(connection);
            self.idle.notify_one();
        }
        Ok(Arrival { version, copied, first_byte, opened, fallback: None })
    }

    /// Size and version: by HEAD, or by asking for one byte where the server does not answer that.
    pub(in crate::store) async fn head(&self, target: Target, asked: &Asked<'_>) -> Result<ObjectMeta> {
        let request = Request { method: Method::Head, range: None, if_match: None };
        let Answer { connection, .. } = self.follow(target.clone(), request, asked, &Route::default()).await?;
        let head = connection.head().map_err(|error| malformed(asked, error))?;
        let outcome = match (head.status, head.content_length) {
            (200, Some(size)) => {
                let version = Tag::of(&head, Some(size)).map(Tag::version);
                Some(asked.check_plain(&head).map(|()| ObjectMeta { size, version }))
            }
            (200 | 405 | 501, _) => None,
            _ => Some(Err(asked.refusal(&head))),
        };
        match outcome {
            Some(Err(error)) => Err(self.explained(connection, error).await),
            Some(outcome) => {
                self.keep(connection);
                outcome
            }
            None => {
                self.keep(connection);
                self.probe(target, asked).await
            }
        }
    }

    /// Opens connections until `count` are idle; gives how many it opened, and succeeds if it could open any.
    pub(in crate::store) async fn warm(self: &Arc<Self>, authority: &Arc<Authority>, count: usize) -> Result<usize> {
        let count = count.min(self.options.idle_connections).saturating_sub(self.pool.open_count());
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (ahead, authority) = (Ahead::of(self), Arc::clone(authority));
            opening.spawn(async move { ahead.0.connect(&authority).await });
        }
        let (mut opened, mut failure) = (0, None);
        while let Some(outcome) = opening.join_next().await {
            match outcome {
                Ok(Ok(_)) => opened += 1,
                Ok(Err(error)) => failure = Some(error),
                Err(error) => failure = Some(Error::new(Kind::Io, "opening connections").source(error)),
            }
        }
        match failure {
            Some(error) if opened == 0 => Err(error),
            _ => Ok(opened),
        }
    }

    /// Opens a connection and keeps it; says what it cost.
    pub(in crate::store) async fn connect(&self, authority: &Arc<Authority>) -> Result<ConnectCost> {
        let (connection, cost) = self.open(authority, &[]).await?;
        self.pool.put(connection);
        Ok(cost)
    }

    /// Asks for the first byte: the answer tells the size of the whole.
    pub(in crate::store) async fn probe(&self, target: Target, asked: &Asked<'_>) -> Result<ObjectMeta> {
        use super::response::ContentRange::{Satisfied, Unsatisfied};
        let request = Request { method: Method::Get, range: Some((0, 0)), if_match: None };
        let Answer { connection, .. } = self.follow(target, request, asked, &Route::default()).await?;
        let head = connection.head().map_err(|error| malformed(asked, error))?;
        let size = match (head.status, head.content_range, head.content_length) {
            (206, Some(Satisfied { size: Some(size), .. }), _) => Some(size),
            // An empty object has no first byte.
            (206 | 416, Some(Unsatisfied { size: 0 }), _) => Some(0),
            (200, _, Some(size)) => Some(size),
            _ => None,
        };
        let outcome = match size {
            Some(size) => asked
                .check_plain(&head)
                .map(|()| ObjectMeta { size, version: Tag::of(&head, Some(size)).map(Tag::version) }),
            None if matches!(head.status, 200 | 206) => Err(asked
                .error(Kind::Unsupported, "the server does not tell the object's size")
                .advice("use a server that serves byte ranges")),
            None => Err(asked.refusal(&head)),
        };
        match outcome {
            Err(error) => Err(self.explained(connection, error).await),
            outcome => {
                self.keep(connection);
                outcome
            }
        }
    }

    /// Asks, and asks elsewhere as long as the answer is a redirect.
    async fn follow(
        &self,
        mut target: Target,
        request: Request<'_>,
        asked: &Asked<'_>,
        route: &Route,
    ) -> Result<Answer> {
        for _ in 0..=REDIRECTS_MAX {
            let answer = self
                .ask(&target, request, route)
                .await
                .map_err(|error| error.within(format_args!("{}{}", asked.root, asked.key)))?;
            let head = answer.connection.head().map_err(|error| malformed(asked, error))?;
            if let Some(error) = unintroduced(asked, head.status, answer.connection.introduction()) {
                return Err(error);
            }
            if !matches!(head.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let Some(location) = head.location else {
                let error = asked.error(Kind::Unsupported, "redirected to nowhere");
                return Err(self.explained(answer.connection, error).await);
            };
            target = target.redirected(location).map_err(|why| asked.error(Kind::Unsupported, why))?;
            self.keep(answer.connection);
        }
        Err(asked
            .error(Kind::Unsupported, format!("redirect loop: more than {REDIRECTS_MAX} redirects"))
            .advice("open the store at the address that the redirects should lead to"))
    }

    /// One exchange. A connection that was idle may have been closed by the server just now: if it fails before anything was
    /// received, the request goes out again on a fresh one, once.
    async fn ask(&self, target: &Target, request: Request<'_>, route: &Route) -> Result<Answer> {
        let (hung, avoid) = route.begin();
        if let Some(address) = hung {
            self.resolver.failed(address);
            self.pool.forget(address);
        }
        // After a loss of the link what was sent on old connections is sent again later and later, and some may be dead: a fresh one
        // answers as soon as there is an answer.
        let mut idle = if hung.is_some() { None } else { self.idle_soon(&target.authority, &avoid).await };
        loop {
            let (mut connection, opened) = match idle.take() {
                Some(connection) => (connection, false),
                None => (self.open(&target.authority, &avoid).await?.0, true),
            };
            route.sent(connection.address());
            let patience = self.options.header_timeout;
            match tokio::time::timeout(patience, connection.exchange(target, request)).await {
                Ok(Ok(first_byte)) => {
                    route.answered();
                    return Ok(Answer { connection, first_byte, opened });
                }
                Ok(Err(Failure { unanswered: true, .. })) if !opened => {}
                Ok(Err(Failure { cause, .. })) => {
                    return Err(named(cause, format!("asking {}", target.authority.name), |context| {
                        Error::new(Kind::Io, context).transient()
                    }));
                }
                Err(_) => {
                    route.hangs();
                    let context = format!("no response header from {} within {patience:?}", target.authority.name);
                    return Err(Error::new(Kind::Stalled, context).transient());
                }
            }
        }
    }

    /// An idle connection, or the first one to become idle while some are being opened ahead.
    async fn idle_soon(&self, authority: &Arc<Authority>, avoid: &[SocketAddr]) -> Option<Connection> {
        let mut patience = pin!(tokio::time::sleep(OPENING_MAX));
        loop {
            let mut idle = pin!(self.idle.notified());
            // Before looking, so that none is missed that becomes idle meanwhile.
            idle.as_mut().enable();
            let connection = self.idle(authority, avoid).await;
            if connection.is_some() || self.opening.load(Ordering::Acquire) == 0 {
                return connection;
            }
            tokio::select! {
                () = idle => {}
                () = &mut patience => return None,
            }
        }
    }

    /// An idle connection; one to an address to `avoid` only where there is no other.
    async fn idle(&self, authority: &Arc<Authority>, avoid: &[SocketAddr]) -> Option<Connection> {
        if !avoid.is_empty() {
            let connection = self.pool.take(authority, |address| !avoid.contains(&address));
            let elsewhere = async || {
                let addresses = self.resolver.addresses(authority).await;
                addresses.is_ok_and(|addresses| addresses.iter().any(|address| !avoid.contains(address)))
            };
            if connection.is_some() || elsewhere().await {
                return connection;
            }
        }
        self.pool.take(authority, |_| true)
    }

    async fn open(&self, authority: &Arc<Authority>, avoid: &[SocketAddr]) -> Result<(Connection, ConnectCost)> {
        let patience = self.options.connect_timeout;
        let stalled = || {
            Error::new(Kind::Stalled, format!("no connection to {} within {patience:?}", authority.name)).transient()
        };
        let opening = Connection::open(authority, &self.resolver, &self.security, avoid, patience);
        match tokio::time::timeout(patience, opening).await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(cause)) if cause.kind() == io::ErrorKind::TimedOut => Err(stalled()),
            Ok(Err(cause)) if cause.kind() == io::ErrorKind::NotFound => {
                Err(named(cause, format!("looking up {}", authority.name), |context| {
                    Error::new(Kind::Io, context).advice("check the host's name: it has had no address so far")
                }))
            }
            Ok(Err(cause)) => Err(named(cause, format!("connecting to {}", authority.name), |context| {
                Error::new(Kind::Io, context).advice("check the host's name and port, and that it is up").transient()
            })),
            Err(_) => Err(stalled()),
        }
    }

    /// Keeps a connection whose response needs no more receiving; others are closed, for to wait for the rest of an error page may take long.
    pub(super) fn keep(&self, connection: Connection) {
        if connection.head().is_ok_and(|head| connection.is_through(&head)) {
            self.pool.put(connection);
            self.idle.notify_one();
        }
    }
}

impl Ahead {
    fn of(client: &Arc<Client>) -> Self {
        client.opening.fetch_add(1, Ordering::AcqRel);
        Ahead(Arc::clone(client))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let Client { opening, idle, .. } = &*self.0;
        if opening.fetch_sub(1, Ordering::AcqRel) > 1 { idle.notify_one() } else { idle.notify_waiters() }
    }
}

/// The error for `cause`, which may know better what it is than `otherwise` does.
fn named(cause: io::Error, context: String, otherwise: impl FnOnce(String) -> Error) -> Error {
    match cause.downcast::<Error>() {
        Ok(error) => error.within(context),
        Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {
            Error::new(Kind::Unsupported, context).source(cause)
        }
        Err(cause) => otherwise(context).source(cause),
    }
}

/// The error for a status that is about the client certificate, or the lack of it. nginx gives 400 for both, apache 403.
fn unintroduced(asked: &Asked<'_>, status: u16, introduction: Introduction) -> Option<Error> {
    match (status, introduction) {
        (400 | 401 | 403, Introduction::Refused) => Some(
            asked
                .error(Kind::Auth, format!("the server asks for a client certificate (HTTP {status})"))
                .advice("name one with `client_certificate`"),
        ),
        (400, Introduction::Given) => Some(
            asked
                .error(Kind::Auth, "the server refused the request, or the client certificate (HTTP 400)")
                .advice("check that it has not expired, and that the server trusts the authority that signed it"),
        ),
        _ => None,
    }
}

fn malformed(asked: &Asked<'_>, Malformed(what): Malformed) -> Error {
    asked
        .error(Kind::Io, format!("the server's answer is malformed: {what}"))
        .advice("check that the port is that of an HTTP server")
        .transient()
}
