//! The link in front of somebody else's server.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::fault::Faults;
use super::link::Link;
use super::pipe::Upstream;
use super::station::{Far, Station};
use super::stats::Stats;
use crate::error::Result;

/// Any TCP server (nginx, an S3 server, with TLS or without), moved to the far end of an emulated link: connections
/// to the relay are passed on to it, byte for byte. Stops when dropped.
///
/// Bytes from the server go through the whole model of the [`Link`]; `server_time` is the real server's own, so the
/// link's is left out. Bytes to the server take half a round trip, and share a rate of their own, as high as the
/// link's. A fresh connection costs a round trip before its first byte may pass, a TLS handshake what it takes.
///
/// Of faults a relay knows those that need no HTTP: `Cut`, `Stall`, `Drip`, `Corrupt` and `Delay`. They strike connections
/// and not requests, and their bytes count from the connection's start, towards the client. `Delay` lengthens the handshake.
pub struct Relay {
    upstream: SocketAddr,
    station: Station,
}

impl Relay {
    /// Listens on a free port of 127.0.0.1 and passes connections on to `upstream`.
    ///
    /// # Errors
    /// `Config` when the link or a fault is impossible, `Io` when the system refuses. Whether `upstream` answers is
    /// found out by the first client: its connection is reset if not.
    pub fn start(upstream: SocketAddr, link: Link, faults: impl Into<Faults>) -> Result<Self> {
        Relay::bind_all(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))], upstream, link, faults)
    }

    /// Listens on several addresses, all of one link. Those with port 0 get one free port together.
    ///
    /// # Errors
    /// As [`Relay::start`]; `Config` without an address.
    pub fn bind_all(
        addresses: &[SocketAddr],
        upstream: SocketAddr,
        link: Link,
        faults: impl Into<Faults>,
    ) -> Result<Self> {
        let faults = faults.into();
        link.check()?;
        faults.check_for_relay()?;
        let far = Far::Upstream(Arc::new(Upstream::new(upstream)));
        Ok(Relay { upstream, station: Station::open(addresses, far, link, faults)? })
    }

    /// Where clients connect to: the first address.
    pub fn address(&self) -> SocketAddr {
        self.station.address()
    }

    /// Everywhere that it listens, in the order given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.station.addresses().collect()
    }

    /// Where connections are passed on to.
    pub fn upstream(&self) -> SocketAddr {
        self.upstream
    }

    /// Another link from now on. What is on its way arrives as it was sent.
    ///
    /// # Errors
    /// `Config` when the link is impossible; the old one stays.
    pub fn set_link(&self, link: Link) -> Result<()> {
        self.station.set_link(link)
    }

    /// Other faults from the next connection on. Their counts start now.
    ///
    /// # Errors
    /// `Config` when a fault is impossible, or needs HTTP; the old ones stay.
    pub fn set_faults(&self, faults: impl Into<Faults>) -> Result<()> {
        let faults = faults.into();
        faults.check_for_relay()?;
        self.station.set_faults(faults);
        Ok(())
    }

    /// The server seems gone: connections are closed, and new ones are refused for so long. Replaces an outage
    /// that is under way; zero ends it.
    ///
    /// # Errors
    /// `Stalled` when the relay's thread did not do so within a second.
    pub fn refuse_for(&self, time: Duration) -> Result<()> {
        self.station.refuse_for(time)
    }

    /// As [`Relay::refuse_for`], at one address only.
    ///
    /// # Errors
    /// As there; `Config` when the relay does not listen at `address`.
    pub fn refuse_for_at(&self, address: SocketAddr, time: Duration) -> Result<()> {
        self.station.refuse_at(address, Some(time))
    }

    /// One address goes away for good, unless [`Relay::refuse_for_at`] with a time brings it back.
    ///
    /// # Errors
    /// As [`Relay::refuse_for_at`].
    pub fn kill(&self, address: SocketAddr) -> Result<()> {
        self.station.refuse_at(address, None)
    }

    /// The link goes dead: for so long nothing passes, and nobody is told. Connections stay.
    pub fn silence_for(&self, time: Duration) {
        self.station.silence_for(time);
    }

    /// The numbers so far.
    pub fn stats(&self) -> Stats {
        self.station.stats()
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("address", &self.address())
            .field("upstream", &self.upstream)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
