//! One client's connection: reads requests, and hands bytes over when the link has carried them.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use super::fault::{Cut, Effect};
use super::network::{FlowId, Transfer, Way};
use super::pace::Pace;
use super::request::{HEAD_MAX, Method, Parsed, Request, parse};
use super::response::{Response, Rest, respond};
use super::site::{Content, Site};
use super::station::Hub;

/// A connection on which nothing is asked for, or nothing is taken, for this long is closed.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// A connection and its place in the network.
pub(super) struct Connection {
    stream: TcpStream,
    flow: FlowId,
    site: Arc<Site>,
    hub: Arc<Hub>,
    /// What was read and not understood yet.
    unread: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, site: Arc<Site>, hub: Arc<Hub>) -> Self {
        let flow = hub.pacer.open(Duration::ZERO);
        hub.counters.opened();
        Connection { stream, flow, site, hub, unread: Vec::new() }
    }

    /// Answers requests until the client goes, a fault ends it, or nothing happens for long.
    pub(super) async fn serve(mut self) {
        // What goes wrong here is the client's going away: there is nobody left to tell.
        let _ = self.stream.set_nodelay(true);
        while let Ok(Ok(Some(request))) = timeout(IDLE_MAX, self.next_request()).await {
            match self.answer(request).await {
                Ok(None) => {}
                Ok(Some(Cut::Close)) | Err(_) => return,
                Ok(Some(Cut::Reset)) => {
                    let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
                    return;
                }
            }
        }
    }

    /// The next request, or the status that refuses it; `None` when the client has gone.
    async fn next_request(&mut self) -> io::Result<Option<Result<Request, u16>>> {
        loop {
            if !self.unread.is_empty() {
                match parse(&self.unread) {
                    Parsed::Partial => {}
                    Parsed::Refused(status) => return Ok(Some(Err(status))),
                    Parsed::Complete(request, length) => {
                        self.unread.drain(..length);
                        return Ok(Some(Ok(request)));
                    }
                }
            }
            self.stream.readable().await?;
            let mut bytes = [0; 4096];
            let room = bytes.len().min(HEAD_MAX - self.unread.len());
            match self.stream.try_read(&mut bytes[..room]) {
                Ok(0) => return Ok(None),
                Ok(read) => self.unread.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers one request, and says how the connection ends, if it does.
    async fn answer(&self, request: Result<Request, u16>) -> io::Result<Option<Cut>> {
        let (_busy, requests) = self.hub.counters.busy();
        let (response, effect) = self.response(request, requests);
        let ignore_untaken = matches!(effect, Some(Effect::Slow { .. }));
        let delay = if let Some(Effect::Delay(time)) = effect { time } else { Duration::ZERO };
        let asked = self.hub.pacer.request(self.flow, Transfer { bytes: response.bytes(), delay, ignore_untaken });
        let mut pace = Pace::new(effect, asked, response.head.len() as u64);
        let (mut sent, total) = (0, response.bytes());
        while sent < total {
            let (mut credit, at) = self.arrived().await?;
            while credit > 0 {
                let (bytes, due) = pace.next(sent, credit, at);
                if let Some(due) = due {
                    sleep_until(due.into()).await;
                }
                timeout(IDLE_MAX, self.hand_over(&response, sent, bytes)).await??;
                self.hub.pacer.taken(self.flow, bytes);
                (sent, credit) = (sent + bytes as u64, credit - bytes);
            }
        }
        Ok(response.end)
    }

    /// The answer to one of so many requests at a time.
    fn response(&self, request: Result<Request, u16>, requests: usize) -> (Response, Option<Effect>) {
        let hub = &self.hub;
        let request = match request {
            Ok(request) if request.method != Method::Other => request,
            Ok(_) => return (Response::refusal(405), None),
            Err(status) => return (Response::refusal(status), None),
        };
        hub.counters.requested();
        let now = Instant::now();
        let (admitted, effect) = {
            let mut script = hub.script();
            if !script.admits(request.token.as_deref(), now) {
                (false, script.token_refusal())
            } else if script.too_many(requests) {
                (true, Some(Effect::slow_down()))
            } else {
                (true, script.strike(&request.key, request.method == Method::Get, now))
            }
        };
        if !admitted || effect.is_some() {
            hub.counters.struck();
        }
        if !admitted && effect.is_none() {
            return (Response::bare(401, "WWW-Authenticate: Bearer\r\n"), None);
        }
        let object = self.site.object(&request.key);
        let mut response = respond(&request, object, effect.as_ref(), SystemTime::now());
        if request.close {
            response.end = response.end.or(Some(Cut::Close));
        }
        (response, effect)
    }

    /// Bytes that the link has carried, and when.
    async fn arrived(&self) -> io::Result<(usize, Instant)> {
        let mut watched = true;
        poll_fn(|cx| {
            if let Poll::Ready(arrival) = self.hub.pacer.poll_arrived(self.flow, Way::ToClient, cx) {
                return Poll::Ready(Ok(arrival));
            }
            // A client that gave up, as hedging ones do, must not fill the link any longer.
            let mut byte = [0];
            while watched {
                match self.stream.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    // It sent its next request early: that waits.
                    Poll::Ready(Ok(_)) => watched = false,
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Writes `bytes` of the response, from position `from`, to the socket.
    async fn hand_over(&self, response: &Response, from: u64, bytes: usize) -> io::Result<()> {
        let head = response.head.len() as u64;
        let (mut at, end) = (from, from + bytes as u64);
        while at < end {
            if at < head {
                at += self.write(&response.head[at as usize..end.min(head) as usize]).await? as u64;
                continue;
            }
            let most = usize::try_from(end - at).unwrap_or(usize::MAX);
            let rest = match response.rest(at - head).ok_or(io::ErrorKind::UnexpectedEof)? {
                Rest::Made(bytes) => {
                    at += self.write(&bytes[..bytes.len().min(most)]).await? as u64;
                    continue;
                }
                Rest::Object(rest) => rest,
            };
            let position = rest.start;
            let most = most.min(usize::try_from(rest.end - position).unwrap_or(most));
            let written = match response.corrupt {
                Some(wrong) if wrong == position => self.write_wrong(response, position).await?,
                Some(wrong) if wrong > position => {
                    let before = usize::try_from(wrong - position).unwrap_or(usize::MAX);
                    self.write_body(response, position, most.min(before)).await?
                }
                _ => self.write_body(response, position, most).await?,
            };
            at += written as u64;
            self.hub.counters.sent(written as u64);
        }
        Ok(())
    }

    async fn write_body(&self, response: &Response, position: u64, most: usize) -> io::Result<usize> {
        match &response.content {
            Some(Content::Memory(bytes)) => {
                let from = position as usize;
                self.write(bytes.get(from..from + most).ok_or(io::ErrorKind::UnexpectedEof)?).await
            }
            Some(Content::File(file)) => {
                let send = || {
                    let mut offset = position;
                    Ok(rustix::fs::sendfile(&self.stream, file, Some(&mut offset), most)?)
                };
                match self.stream.async_io(Interest::WRITABLE, send).await? {
                    // The file has become shorter since its size was announced.
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    sent => Ok(sent),
                }
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Writes the byte at `position` with one bit flipped.
    async fn write_wrong(&self, response: &Response, position: u64) -> io::Result<usize> {
        let mut byte = [0];
        match &response.content {
            Some(Content::Memory(bytes)) => byte[0] = *bytes.get(position as usize).unwrap_or(&0),
            Some(Content::File(file)) => std::os::unix::fs::FileExt::read_exact_at(file, &mut byte, position)?,
            None => {}
        }
        self.write(&[byte[0] ^ 1]).await
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.async_io(Interest::WRITABLE, || self.stream.try_write(bytes)).await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hub.pacer.close(self.flow);
        self.hub.counters.closed();
    }
}
