//! Bytes through TLS: received many records at a time, decrypted where they were received, and copied to pages once from there.
//!
//! rustls does the cryptography through its unbuffered interface, which touches no socket. Ciphertext goes through buffers that all
//! connections of a reactor share: one is lent from the system call to the last record in it, so few exist, and they stay in the
//! processor's cache. Between two reads a connection keeps a record that has not arrived whole, and no more.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};

use super::plain::Plain;
use super::refusal::{Stage, refusal};
use crate::error::{Error, Kind};
use crate::memory::Landing;
use crate::store::http::security::{Introduction, Security};
use crate::store::http::trust::Trust;
use crate::store::http::url::Authority;

/// Ciphertext received by one system call: enough to spread its cost over many records, little enough to stay in a core's cache
/// (64 KiB cost a quarter more, 512 KiB the same: `docs/design/0006`).
/// Also more than a handshake message may have, 64 KiB, and all that may come with it.
const BUFFER_BYTES: usize = 256 << 10;

/// Buffers kept for the next who needs one. A reactor is one thread and needs one.
const BUFFERS_KEPT: usize = 2;

/// What a record may hold.
const CONTENT_BYTES: usize = 16 << 10;

/// What a record has beside its content, at least: a header and a tag.
const OVERHEAD_BYTES: usize = 5 + 16;

/// A record of the greatest length that there may be, the ciphers' allowance included.
const RECORD_BYTES: usize = 5 + CONTENT_BYTES + 2048;

/// More than an alert needs, encrypted.
const ALERT_BYTES: usize = 64;

/// Reads that an idle connection's unasked records (tickets, new keys) may take.
const IDLE_READS_MAX: usize = 8;

/// Messages of its own that a session has to send at a time, at most.
const MESSAGES_MAX: usize = 16;

/// What both sides have agreed on, and how far they are with that.
pub(super) type Session = UnbufferedClientConnection;

/// One TLS connection.
pub(in crate::store::http) struct Tls {
    plain: Plain,
    session: Session,
    security: Arc<Security>,
    /// A record that has not arrived whole, or a handshake message of several.
    incoming: Vec<u8>,
    /// Encrypted and not yet sent.
    outgoing: Vec<u8>,
    /// Decrypted and not yet asked for: from `taken` on.
    surplus: Vec<u8>,
    taken: usize,
    /// The peer has said that no more will come.
    closed: bool,
}

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// More of the handshake.
    Handshake,
    /// Nothing in particular: it is open.
    Open,
    /// Nothing any more.
    Closed,
}

impl Tls {
    /// Shakes hands; the caller has the deadline.
    pub(super) async fn open(plain: Plain, session: Session, security: &Arc<Security>) -> io::Result<Self> {
        let mut tls = Tls {
            plain,
            session,
            security: Arc::clone(security),
            incoming: Vec::new(),
            outgoing: Vec::new(),
            surplus: Vec::new(),
            taken: 0,
            closed: false,
        };
        tls.shake_hands().await?;
        Ok(tls)
    }

    /// Sends all of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.closed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        match process(&mut self.session, &mut self.incoming, &mut self.outgoing, bytes, |_| {}) {
            Ok((used, _)) => self.incoming.drain(..used),
            Err(error) => return Err(self.failed(error)),
        };
        match self.flush().await {
            // A server that turned us away has said why before it closed.
            Err(error) => Err(self.last_words().unwrap_or(error)),
            done => done,
        }
    }

    /// Receives whatever comes first, up to the length of `into`, which is not empty; 0 when the peer has closed.
    pub(super) async fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.surplus() == 0 && !self.closed {
            // One record at most: what is in it beside a response's header is copied twice.
            self.receive_records(RECORD_BYTES, 1, None).await?;
        }
        let count = into.len().min(self.surplus());
        into[..count].copy_from_slice(&self.surplus[self.taken..self.taken + count]);
        self.take(count);
        Ok(count)
    }

    /// Receives the next bytes of `landing`, and counts them there; 0 when the peer has closed.
    pub(super) async fn receive_into(&mut self, landing: &mut Landing) -> io::Result<usize> {
        let before = landing.filled();
        let count = landing.push(&self.surplus[self.taken..]);
        self.take(count);
        while landing.filled() == before && !self.closed {
            let due = self.due(landing.remaining());
            self.receive_records(BUFFER_BYTES, due, Some(landing)).await?;
        }
        Ok(landing.filled() - before)
    }

    /// Bytes that have been decrypted and not yet asked for.
    pub(super) fn surplus(&self) -> usize {
        self.surplus.len() - self.taken
    }

    /// Forgets what has been decrypted and not yet asked for.
    pub(super) fn drop_surplus(&mut self) {
        (self.surplus, self.taken) = (Vec::new(), 0);
    }

    /// Whether the connection is as it was left. Tickets and new keys may come at any time: they are taken in and change nothing.
    pub(super) fn is_quiet(&mut self) -> bool {
        let unheard = |tls: &Self| tls.surplus() == 0 && tls.incoming.is_empty() && !tls.closed;
        for _ in 0..IDLE_READS_MAX {
            if !unheard(self) {
                return false;
            }
            match self.try_receive_records(RECORD_BYTES, true, None) {
                Ok(Some(_)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
            let sent = if self.outgoing.is_empty() { Ok(0) } else { self.plain.try_send(&self.outgoing) };
            if !sent.is_ok_and(|count| count == self.outgoing.len()) {
                return false;
            }
            self.outgoing.clear();
        }
        false
    }

    /// Whether servers of this store have asked who we are.
    pub(super) fn introduction(&self) -> Introduction {
        self.security.trust().map_or(Introduction::Unasked, Trust::introduction)
    }

    async fn shake_hands(&mut self) -> io::Result<()> {
        let begun = process(&mut self.session, &mut [], &mut self.outgoing, &[], |_| {});
        let (_, mut rest) = begun.map_err(|error| self.failed(error))?;
        self.flush().await?;
        while rest == Rest::Handshake {
            rest = self.receive_records(BUFFER_BYTES, 1, None).await?;
        }
        match rest {
            Rest::Closed => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed during the TLS handshake")),
            _ => Ok(()),
        }
    }

    /// Ciphertext that must still come for `content` bytes, at least.
    fn due(&self, content: usize) -> usize {
        (content + content.div_ceil(CONTENT_BYTES) * OVERHEAD_BYTES).saturating_sub(self.incoming.len())
    }

    /// Receives at most `room` bytes of ciphertext once, of at least `due` that are to come, and takes in what is whole of them.
    async fn receive_records(
        &mut self,
        room: usize,
        due: usize,
        mut landing: Option<&mut Landing>,
    ) -> io::Result<Rest> {
        loop {
            let ready = self.plain.wait(due).await?;
            if let Some(rest) = self.try_receive_records(room, ready, landing.as_deref_mut())? {
                self.flush().await?;
                return Ok(rest);
            }
        }
    }

    /// The same without waiting; `None` if nothing was there. Content goes to the landing as far as that has room, else to the surplus.
    fn try_receive_records(
        &mut self,
        room: usize,
        ready: bool,
        mut landing: Option<&mut Landing>,
    ) -> io::Result<Option<Rest>> {
        let kept = self.incoming.len();
        let mut buffer = self.security.buffers().lend();
        let room = room.min(buffer.len() - kept);
        let Some(count) = self.plain.try_receive(&mut buffer[kept..kept + room], ready)? else { return Ok(None) };
        if count == 0 {
            let what = if room == 0 { "a TLS message without an end" } else { "cut off: closed without close_notify" };
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        buffer[..kept].copy_from_slice(&self.incoming);
        let received = &mut buffer[..kept + count];
        let surplus = &mut self.surplus;
        let outcome = process(&mut self.session, received, &mut self.outgoing, &[], |content| {
            let landed = landing.as_deref_mut().map_or(0, |landing| landing.push(content));
            surplus.extend_from_slice(&content[landed..]);
        });
        match outcome {
            Ok((used, rest)) => {
                self.closed |= rest == Rest::Closed;
                self.incoming.clear();
                // What follows the end means nothing.
                self.incoming.extend_from_slice(if self.closed { &[] } else { &received[used..] });
                Ok(Some(rest))
            }
            Err(error) => {
                drop(buffer);
                Err(self.failed(error))
            }
        }
    }

    /// Sends what the session has to say.
    async fn flush(&mut self) -> io::Result<()> {
        if !self.outgoing.is_empty() {
            self.plain.send(&self.outgoing).await?;
            self.outgoing.clear();
        }
        Ok(())
    }

    /// Counts what has been taken of the surplus. Its memory is given back with the last byte: idle connections keep none.
    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.surplus() == 0 && self.taken > 0 {
            self.drop_surplus();
        }
    }

    /// What the server said before it closed, if it was an alert.
    fn last_words(&mut self) -> Option<io::Error> {
        let error = self.try_receive_records(RECORD_BYTES, false, None).err()?;
        error.get_ref().is_some_and(|inner| inner.is::<Error>()).then_some(error)
    }

    /// The error for what went wrong in the session, which is not used again. Tells the server, if the kernel takes it at once.
    fn failed(&mut self, error: rustls::Error) -> io::Error {
        let stage = if self.session.is_handshaking() { Stage::Handshake } else { Stage::Open };
        self.closed = true;
        for _ in 0..MESSAGES_MAX {
            if !self.session.wants_write() {
                break;
            }
            // What there is to tell comes before anything that is left of what was received.
            if let Ok(ConnectionState::EncodeTlsData(alert)) = self.session.process_tls_records(&mut []).state {
                let _ = encode(alert, &mut self.outgoing);
            }
        }
        let _ = self.plain.try_send(&self.outgoing);
        refusal(error, stage, self.introduction())
    }
}

impl Drop for Tls {
    /// Says that no more will come, as the standard wants it, unless something else is half said.
    fn drop(&mut self) {
        if self.closed || !self.outgoing.is_empty() {
            return;
        }
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.session.process_tls_records(&mut self.incoming).state
        {
            let mut alert = [0; ALERT_BYTES];
            if let Ok(count) = traffic.queue_close_notify(&mut alert) {
                let _ = self.plain.try_send(&alert[..count]);
            }
        }
    }
}

impl fmt::Debug for Tls {
    /// Without what is on its way.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("plain", &self.plain).finish_non_exhaustive()
    }
}

/// A session for a new connection to the server of `authority`.
pub(super) fn session(authority: &Authority, security: &Security) -> io::Result<Session> {
    let trust = security.trust().map_err(io::Error::other)?;
    let name = ServerName::try_from(authority.host.clone()).map_err(|error| {
        let what = format!("{} cannot be the name of an https server", authority.host);
        io::Error::other(Error::new(Kind::Config, what).source(error))
    })?;
    UnbufferedClientConnection::new(Arc::clone(&trust.config), name)
        .map_err(|error| refusal(error, Stage::Handshake, Introduction::Unasked))
}

/// Takes in the whole records that `incoming` starts with, handing out their content, and encrypts `content` once the session is open.
/// Gives how many bytes have been used up, and what the session waits for. What it has to send is in `outgoing` then.
fn process(
    session: &mut Session,
    incoming: &mut [u8],
    outgoing: &mut Vec<u8>,
    content: &[u8],
    mut hand_out: impl FnMut(&[u8]),
) -> Result<(usize, Rest), rustls::Error> {
    let (mut used, mut messages) = (0, 0);
    loop {
        // Never moved: the next records are looked for behind those used up.
        let UnbufferedStatus { mut discard, state, .. } = session.process_tls_records(&mut incoming[used..]);
        let rest = match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    hand_out(record.payload);
                }
                None
            }
            ConnectionState::EncodeTlsData(message) => {
                messages += 1;
                encode(message, outgoing)?;
                None
            }
            // It is on its way as soon as whoever called has flushed.
            ConnectionState::TransmitTlsData(message) => {
                message.done();
                None
            }
            ConnectionState::WriteTraffic(_) if content.is_empty() => Some(Rest::Open),
            ConnectionState::WriteTraffic(traffic) => {
                encrypt(traffic, content, outgoing)?;
                Some(Rest::Open)
            }
            ConnectionState::BlockedHandshake => Some(Rest::Handshake),
            ConnectionState::PeerClosed | ConnectionState::Closed => Some(Rest::Closed),
            _ => return Err(rustls::Error::General("a state that clients do not have".into())),
        };
        used += discard;
        match rest {
            Some(rest) => return Ok((used, rest)),
            None if messages > MESSAGES_MAX => return Err(rustls::Error::General("too much to say".into())),
            None => {}
        }
    }
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), rustls::Error> {
    append(outgoing, |into| {
        message.encode(into).map_err(|error| match error {
            EncodeError::InsufficientSize(InsufficientSizeError { required_size }) => Some(required_size),
            EncodeError::AlreadyEncoded => None,
        })
    })
}

fn encrypt<D>(mut traffic: WriteTraffic<'_, D>, content: &[u8], outgoing: &mut Vec<u8>) -> Result<(), rustls::Error> {
    append(outgoing, |into| {
        traffic.encrypt(content, into).map_err(|error| match error {
            EncryptError::InsufficientSize(InsufficientSizeError { required_size }) => Some(required_size),
            EncryptError::EncryptExhausted => None,
        })
    })
}

/// Appends what `write` writes, which says how much room it needs if that is too little.
fn append(
    outgoing: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), rustls::Error> {
    let end = outgoing.len();
    let written = match write(&mut []) {
        Err(Some(needed)) => {
            outgoing.resize(end + needed, 0);
            write(&mut outgoing[end..])
        }
        done => done,
    };
    outgoing.truncate(end + written.as_ref().map_or(0, |count| *count));
    match written {
        Ok(_) => Ok(()),
        Err(_) => Err(rustls::Error::EncryptError),
    }
}

/// Buffers for ciphertext, lent while records are taken in.
#[derive(Default)]
pub(in crate::store::http) struct Buffers {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A buffer of [`BUFFER_BYTES`], the one used last if there is one: it is the warmest.
    fn lend(&self) -> Lent<'_> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Lent { bytes: spare.unwrap_or_else(|| vec![0; BUFFER_BYTES]), buffers: self }
    }
}

impl fmt::Debug for Buffers {
    /// Without what was received into them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffers").finish_non_exhaustive()
    }
}

/// A buffer until it is dropped.
struct Lent<'a> {
    bytes: Vec<u8>,
    buffers: &'a Buffers,
}

impl Deref for Lent<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut spare = self.buffers.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < BUFFERS_KEPT {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}
