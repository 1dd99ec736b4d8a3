//! Bytes to and from a server, and what they go through on the way: nothing, or TLS. The only folder that knows which.

mod plain;
#[cfg(feature = "https")]
mod refusal;
#[cfg(feature = "https")]
mod tls;

use std::io;
use std::sync::Arc;

pub(super) use self::plain::Plain;
#[cfg(feature = "https")]
pub(super) use self::tls::Buffers;
#[cfg(feature = "https")]
use self::tls::{Session, Tls, session};
use super::security::{Introduction, Security};
use super::url::{Authority, Scheme};
use crate::memory::Landing;

/// One connection.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(Plain),
    #[cfg(feature = "https")]
    Tls(Box<Tls>),
}

/// What to begin a connection with.
pub(super) enum Greeting {
    Plain,
    #[cfg(feature = "https")]
    Tls(Box<Session>),
}

impl Greeting {
    /// That for the server of `authority`.
    ///
    /// # Errors
    /// One that wraps an [`crate::Error`] says that trying elsewhere or again is of no use, or what to do.
    pub(super) fn prepare(authority: &Authority, security: &Security) -> io::Result<Self> {
        match authority.scheme {
            Scheme::Http => Ok(Greeting::Plain),
            #[cfg(feature = "https")]
            Scheme::Https => Ok(Greeting::Tls(Box::new(session(authority, security)?))),
            #[cfg(not(feature = "https"))]
            Scheme::Https => match security.prepare() {
                Err(error) => Err(io::Error::other(error)),
                Ok(()) => Err(io::ErrorKind::Unsupported.into()),
            },
        }
    }
}

impl Transport {
    /// Goes on from a TCP connection: shakes hands where there is TLS. The caller has the deadline.
    ///
    /// # Errors
    /// As [`Greeting::prepare`].
    #[cfg_attr(not(feature = "https"), expect(unused_variables, reason = "nobody is to be trusted without TLS"))]
    pub(super) async fn over(plain: Plain, greeting: Greeting, security: &Arc<Security>) -> io::Result<Self> {
        match greeting {
            Greeting::Plain => Ok(Transport::Plain(plain)),
            #[cfg(feature = "https")]
            Greeting::Tls(session) => Ok(Transport::Tls(Box::new(Tls::open(plain, *session, security).await?))),
        }
    }

    /// Whether there is TLS.
    pub(super) fn is_secure(&self) -> bool {
        !matches!(self, Transport::Plain(_))
    }

    /// Sends all of `bytes`.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Transport::Plain(plain) => plain.send(bytes).await,
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.send(bytes).await,
        }
    }

    /// Receives whatever comes first, up to the length of `into`, which is not empty; 0 when the peer has closed.
    pub(super) async fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Plain(plain) => plain.receive(into).await,
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.receive(into).await,
        }
    }

    /// Receives the next bytes of `landing` where they belong, and counts them there; 0 when the peer has closed.
    pub(super) async fn receive_into(&mut self, landing: &mut Landing) -> io::Result<usize> {
        match self {
            Transport::Plain(plain) => plain.receive_into(landing).await,
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.receive_into(landing).await,
        }
    }

    /// Whether user space copies what [`Transport::receive_into`] receives.
    pub(super) fn copies(&self) -> bool {
        match self {
            Transport::Plain(_) => false,
            #[cfg(feature = "https")]
            Transport::Tls(_) => true,
        }
    }

    /// Bytes that have been received and not yet been asked for.
    pub(super) fn surplus(&self) -> usize {
        match self {
            Transport::Plain(_) => 0,
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.surplus(),
        }
    }

    /// Forgets [`Transport::surplus`].
    pub(super) fn drop_surplus(&mut self) {
        match self {
            Transport::Plain(_) => {}
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.drop_surplus(),
        }
    }

    /// Whether the connection is as it was left: the peer has said nothing unasked, and has not closed it.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Transport::Plain(plain) => plain.is_quiet(),
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.is_quiet(),
        }
    }

    /// Whether servers of this store have asked who we are.
    pub(super) fn introduction(&self) -> Introduction {
        match self {
            Transport::Plain(_) => Introduction::Unasked,
            #[cfg(feature = "https")]
            Transport::Tls(tls) => tls.introduction(),
        }
    }
}
