//! One connection to a server, and one exchange at a time on it.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dial::dial;
use super::resolver::Resolver;
use super::response::{HEADER_BYTES_MAX, Head, Malformed, header_end, is_interim, parse};
use super::security::{Introduction, Security};
use super::transport::{Greeting, Plain, Transport};
use super::url::{Authority, Target};
use crate::error::Error;
use crate::memory::Landing;
use crate::store::ConnectCost;

/// What most headers fit in.
const USUAL_HEADER_BYTES: usize = 384;
/// What a header fits in but for odd ones.
const SCRATCH_BYTES: usize = 4 << 10;

/// From here on a body's time is mostly that of its bytes.
const LONG_BODY_BYTES: usize = 512 << 10;

const USER_AGENT: &str = concat!("farfeed/", env!("CARGO_PKG_VERSION"));

/// A request, beside where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Bytes of the object; not empty.
    pub(super) range: Option<(u64, u64)>,
    /// A strong ETag.
    pub(super) if_match: Option<&'a str>,
}

/// A request's method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
}

/// Why an exchange came to no header.
#[derive(Debug)]
pub(super) struct Failure {
    /// Nothing had been received: the server may have closed an idle connection just as we used it.
    pub(super) unanswered: bool,
    pub(super) cause: io::Error,
}

/// A connection; whoever drops it closes it, whatever was on its way.
pub(super) struct Connection {
    transport: Transport,
    authority: Arc<Authority>,
    address: SocketAddr,
    /// Whether anything was asked on it.
    used: bool,
    /// The request while it is sent, then the header and what came along with it.
    scratch: Vec<u8>,
    /// Bytes of `scratch` that are the header.
    header: usize,
    /// Whether the exchange was a HEAD, whose answer has no body whatever it says.
    bodiless: bool,
    /// Bytes per second of its last long body; `None` before there was one.
    pace: Option<f64>,
    runtime: tokio::runtime::Id,
}

impl Connection {
    /// Connects to one of the addresses of `authority`, one to `avoid` only if no other answers; says what that cost. The caller has the
    /// deadline, `patience`.
    pub(super) async fn open(
        authority: &Arc<Authority>,
        resolver: &Resolver,
        security: &Arc<Security>,
        avoid: &[SocketAddr],
        patience: Duration,
    ) -> io::Result<(Self, ConnectCost)> {
        let began = Instant::now();
        let addresses = resolver.addresses(authority).await?;
        let resolve = began.elapsed();
        let mut addresses = resolver.in_turn(&addresses, avoid);
        loop {
            // What can fail without the server, fails before it is bothered.
            let greeting = Greeting::prepare(authority, security)?;
            let (plain, address, connect) = dial(&addresses, resolver, Plain::connect).await?;
            let began = Instant::now();
            // One address whose server does not go on leaves time for another.
            let share = if addresses.len() > 1 { patience / 3 } else { patience };
            let failure = match tokio::time::timeout(share, Transport::over(plain, greeting, security)).await {
                Ok(Ok(transport)) => {
                    let secure = transport.is_secure().then(|| began.elapsed());
                    let cost = ConnectCost { address, resolve, connect, secure };
                    return Ok((Connection::over(transport, Arc::clone(authority), address), cost));
                }
                Ok(Err(error)) if is_final(&error) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            resolver.failed(address);
            addresses.retain(|other| *other != address);
            if addresses.is_empty() {
                return Err(failure);
            }
        }
    }

    fn over(transport: Transport, authority: Arc<Authority>, address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Handle::current().id();
        Connection {
            transport,
            authority,
            address,
            used: false,
            scratch: Vec::with_capacity(SCRATCH_BYTES),
            header: 0,
            bodiless: false,
            pace: None,
            runtime,
        }
    }

    /// Sends a request and receives the header of its response; gives the time until the first byte. The caller has the deadline.
    pub(super) async fn exchange(&mut self, target: &Target, request: Request<'_>) -> Result<Duration, Failure> {
        let unanswered = |cause| Failure { unanswered: true, cause };
        self.bodiless = request.method == Method::Head;
        self.used = true;
        self.write_request(target, request).map_err(unanswered)?;
        self.transport.send(&self.scratch).await.map_err(unanswered)?;
        let sent = Instant::now();
        self.scratch.clear();
        self.transport.drop_surplus();
        self.receive_more().await.map_err(unanswered)?;
        let first_byte = sent.elapsed();
        self.receive_header().await.map_err(|cause| Failure { unanswered: false, cause })?;
        Ok(first_byte)
    }

    /// Where it leads.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether anything was asked on it so far.
    pub(super) fn is_used(&self) -> bool {
        self.used
    }

    /// Bytes per second of its last long body, from the request on; `None` before there was one.
    pub(super) fn pace(&self) -> Option<f64> {
        self.pace
    }

    /// Notes how long a body took; short ones tell of round trips, not of the connection.
    pub(super) fn note_body(&mut self, bytes: usize, took: Duration) {
        if bytes >= LONG_BODY_BYTES {
            self.pace = Some(bytes as f64 / took.as_secs_f64().max(1e-6));
        }
    }

    /// The response's header, once [`Connection::exchange`] has succeeded.
    pub(super) fn head(&self) -> Result<Head<'_>, Malformed> {
        parse(self.scratch.get(..self.header).unwrap_or_default())
    }

    /// Receives the body into `landing` until that is full; gives the bytes that were copied to get there.
    pub(super) async fn receive_body(&mut self, landing: &mut Landing) -> io::Result<u64> {
        let mut copied = landing.push(&self.scratch[self.header..]);
        self.header += copied;
        while landing.remaining() > 0 {
            match self.transport.receive_into(landing).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count if self.transport.copies() => copied += count,
                _ => {}
            }
        }
        Ok(copied as u64)
    }

    /// Receives the body of an answer that is not what was asked for, as far as `ended` wants it.
    pub(super) async fn receive_page(&mut self, ended: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        while !self.bodiless && !ended(self.page()) && self.scratch.len() < HEADER_BYTES_MAX {
            self.receive_more().await?;
        }
        Ok(())
    }

    /// What has been received of such a body.
    pub(super) fn page(&self) -> &[u8] {
        &self.scratch[self.header..]
    }

    /// Whether a response with `head` has been taken in to its last byte, as far as [`Connection::receive_body`] was not asked to.
    pub(super) fn is_through(&self, head: &Head<'_>) -> bool {
        let here = (self.scratch.len() - self.header + self.transport.surplus()) as u64;
        let body =
            if self.bodiless || head.status == 304 || head.status == 204 { Some(0) } else { head.content_length };
        head.keep_alive && !head.transfer_coded && body == Some(here)
    }

    /// Whether nothing is left over after the body has landed.
    pub(super) fn is_spent(&self) -> bool {
        self.header == self.scratch.len() && self.transport.surplus() == 0
    }

    /// Whether it leads to `authority` and belongs to the reactor `runtime`.
    pub(super) fn suits(&self, authority: &Authority, runtime: tokio::runtime::Id) -> bool {
        self.is_of(runtime) && *self.authority == *authority
    }

    /// Whether it belongs to the reactor `runtime`: no other may touch it.
    pub(super) fn is_of(&self, runtime: tokio::runtime::Id) -> bool {
        self.runtime == runtime
    }

    /// Whether nothing arrived unasked, a close included.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.transport.is_quiet()
    }

    /// Whether servers of this store have asked who we are.
    pub(super) fn introduction(&self) -> Introduction {
        self.transport.introduction()
    }

    fn write_request(&mut self, target: &Target, request: Request<'_>) -> io::Result<()> {
        let text = &mut self.scratch;
        text.clear();
        let method = match request.method {
            Method::Get => "GET",
            Method::Head => "HEAD",
        };
        write!(text, "{method} {} HTTP/1.1\r\nHost: {}\r\n", target.path, target.authority.name)?;
        write!(text, "User-Agent: {USER_AGENT}\r\nAccept: */*\r\nAccept-Encoding: identity\r\n")?;
        if let Some((first, last)) = request.range {
            write!(text, "Range: bytes={first}-{last}\r\n")?;
        }
        if let Some(tag) = request.if_match {
            write!(text, "If-Match: {tag}\r\n")?;
        }
        if let Some(authorization) = &target.authorization {
            write!(text, "Authorization: {authorization}\r\n")?;
        }
        if let Some(lines) = &target.lines {
            text.write_all(lines.as_bytes())?;
        }
        text.write_all(b"\r\n")
    }

    async fn receive_header(&mut self) -> io::Result<()> {
        let (mut seen, mut dropped) = (0, 0);
        loop {
            match header_end(&self.scratch, seen) {
                Some(end) if is_interim(&self.scratch) => {
                    self.scratch.drain(..end);
                    dropped += end;
                    seen = 0;
                    continue;
                }
                Some(end) => {
                    self.header = end;
                    return Ok(());
                }
                None => seen = self.scratch.len(),
            }
            if dropped + self.scratch.len() >= HEADER_BYTES_MAX {
                let what = format!("response header of more than {HEADER_BYTES_MAX} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            self.receive_more().await?;
        }
    }

    /// Receives more: at first no more than a header usually has, since body bytes that come along are copied; then up to a scratch's worth.
    async fn receive_more(&mut self) -> io::Result<()> {
        let here = self.scratch.len();
        let room = match here {
            0 => USUAL_HEADER_BYTES,
            _ if here < SCRATCH_BYTES => SCRATCH_BYTES,
            _ => HEADER_BYTES_MAX,
        };
        self.scratch.resize(room, 0);
        let received = self.transport.receive(&mut self.scratch[here..]).await;
        self.scratch.truncate(here + received.as_ref().map_or(0, |count| *count));
        if received? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Whether the host's other addresses would say the same: they have one certificate, and ask for one.
fn is_final(error: &io::Error) -> bool {
    let known = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    known.is_some_and(|error| !error.is_transient())
}

impl fmt::Debug for Connection {
    /// Without the scratch: it may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("authority", &self.authority.name).finish_non_exhaustive()
    }
}
