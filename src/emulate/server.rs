//! The server of objects.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::fault::Faults;
use super::link::Link;
use super::site::Site;
use super::station::{Far, Station};
use super::stats::Stats;
use crate::error::Result;

/// Storage across an emulated link. Stops when dropped.
pub struct Server {
    url: String,
    station: Station,
}

impl Server {
    /// Serves on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// `Config` when the link or a fault is impossible, `NotFound` when there is no such directory, `Io` when the system refuses.
    pub fn start(site: Site, link: Link, faults: impl Into<Faults>) -> Result<Self> {
        Server::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), site, link, faults)
    }

    /// Serves on this address. There is neither encryption nor, without a token, a check of who asks: keep to loopback
    /// unless what is served is public.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn bind(address: SocketAddr, site: Site, link: Link, faults: impl Into<Faults>) -> Result<Self> {
        Server::bind_all(&[address], site, link, faults)
    }

    /// Serves one site across one link on several addresses, as a store does that has many: 127.0.0.1, 127.0.0.2, ….
    /// Those with port 0 get one free port together.
    ///
    /// # Errors
    /// As [`Server::start`]; `Config` without an address.
    pub fn bind_all(addresses: &[SocketAddr], site: Site, link: Link, faults: impl Into<Faults>) -> Result<Self> {
        let faults = faults.into();
        link.check()?;
        faults.check()?;
        let station = Station::open(addresses, Far::Site(Arc::new(site.open()?)), link, faults)?;
        Ok(Server { url: format!("http://{}", station.address()), station })
    }

    /// `http://127.0.0.1:PORT` of the first address, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens: the first address.
    pub fn address(&self) -> SocketAddr {
        self.station.address()
    }

    /// Everywhere that it listens, in the order given.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.station.addresses().collect()
    }

    /// Another link from now on. What is on its way arrives as it was sent.
    ///
    /// # Errors
    /// `Config` when the link is impossible; the old one stays.
    pub fn set_link(&self, link: Link) -> Result<()> {
        self.station.set_link(link)
    }

    /// Other faults from the next request on. Their counts and the token's time start now.
    ///
    /// # Errors
    /// `Config` when a fault is impossible; the old ones stay.
    pub fn set_faults(&self, faults: impl Into<Faults>) -> Result<()> {
        let faults = faults.into();
        faults.check()?;
        self.station.set_faults(faults);
        Ok(())
    }

    /// The server goes away: connections are closed, in mid-body too, and new ones are refused for so long. Replaces
    /// an outage that is under way; zero ends it.
    ///
    /// # Errors
    /// `Stalled` when the server's thread did not do so within a second.
    pub fn refuse_for(&self, time: Duration) -> Result<()> {
        self.station.refuse_for(time)
    }

    /// As [`Server::refuse_for`], at one address only.
    ///
    /// # Errors
    /// As there; `Config` when nothing is served at `address`.
    pub fn refuse_for_at(&self, address: SocketAddr, time: Duration) -> Result<()> {
        self.station.refuse_at(address, Some(time))
    }

    /// The server at one address goes away for good, unless [`Server::refuse_for_at`] with a time brings it back.
    ///
    /// # Errors
    /// As [`Server::refuse_for_at`].
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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("url", &self.url).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
