//! The server: one thread that listens on loopback and runs the network.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::Connection;
use super::fault::{Faults, Script};
use super::link::Link;
use super::pacer::Pacer;
use super::site::Site;
use crate::error::{Error, Kind, Result};

/// Connections that are open at the most; further ones are closed as soon as they come.
pub const CONNECTIONS_MAX: usize = 1024;

/// Storage across an emulated link. Stops when dropped.
pub struct Server {
    url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
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
        let faults = faults.into();
        link.check()?;
        faults.check()?;
        let site = site.open()?;
        let failed = |error: io::Error| {
            Error::new(Kind::Io, format!("cannot serve on {address}"))
                .advice("choose another address or port, or raise the limit of open files")
                .source(error)
        };
        let listener = StdListener::bind(address).map_err(failed)?;
        // The standard library lets 128 clients queue; one beyond is heard a second later, when its system asks again.
        rustix::net::listen(&listener, CONNECTIONS_MAX as i32).map_err(|errno| failed(errno.into()))?;
        let address = listener.local_addr().map_err(failed)?;
        let (ready, started) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("farfeed-emulate".into())
            .spawn(move || match assemble(&listener, site, link, faults) {
                Err(error) => drop(ready.send(Err(error))),
                Ok((runtime, shared)) => {
                    let _ = ready.send(Ok(Arc::clone(&shared)));
                    runtime.block_on(run(listener, address, shared));
                }
            })
            .map_err(failed)?;
        let shared = started.recv().map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?.map_err(failed)?;
        Ok(Server { url: format!("http://{address}"), address, shared, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Another link from now on. What is on its way arrives as it was sent.
    ///
    /// # Errors
    /// `Config` when the link is impossible; the old one stays.
    pub fn set_link(&self, link: Link) -> Result<()> {
        link.check()?;
        self.shared.pacer.change(link);
        Ok(())
    }

    /// Other faults from the next request on. Their counts and the token's time start now.
    ///
    /// # Errors
    /// `Config` when a fault is impossible; the old ones stay.
    pub fn set_faults(&self, faults: impl Into<Faults>) -> Result<()> {
        let faults = faults.into();
        faults.check()?;
        *self.shared.script() = Script::new(faults, Instant::now());
        Ok(())
    }

    /// The server goes away: connections are closed, in mid-body too, and new ones are refused for so long.
    ///
    /// # Errors
    /// `Stalled` when the server's thread did not do so within a second.
    pub fn refuse_for(&self, time: Duration) -> Result<()> {
        let (done, refuses) = sync_channel(1);
        *self.shared.outage() = Some(Outage { time, done });
        self.shared.control.notify_one();
        refuses.recv_timeout(Duration::from_secs(1)).map_err(|error| {
            Error::new(Kind::Stalled, "the emulated server did not stop listening within 1 s").source(error)
        })
    }

    /// The link goes dead: for so long nothing passes, and nobody is told. Connections stay.
    pub fn silence_for(&self, time: Duration) {
        self.shared.pacer.silence(time);
    }

    /// The numbers so far.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        let counts = self.shared.pacer.counts();
        Stats {
            connections: counters.connections.load(Ordering::Relaxed),
            connections_open: counters.open.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            faults: counters.faults.load(Ordering::Relaxed),
            losses: counts.losses,
            drops: counts.drops,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.control.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends at its next turn; a panic in it has been reported where it happened.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("url", &self.url).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What a server has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub connections_open: u64,
    /// Requests answered, with whatever status.
    pub requests: u64,
    /// Bytes of bodies handed to clients.
    pub bytes: u64,
    /// Requests that a fault struck, or that lacked the token.
    pub faults: u64,
    /// Packets lost by chance.
    pub losses: u64,
    /// Times that a connection found the link's buffer full and slowed down.
    pub drops: u64,
}

/// What the server's thread and its owner share.
pub(super) struct Shared {
    pub(super) site: Site,
    pub(super) pacer: Pacer,
    pub(super) counters: Counters,
    script: Mutex<Script>,
    outage: Mutex<Option<Outage>>,
    stopping: AtomicBool,
    /// Says that `outage` or `stopping` was set.
    control: Notify,
}

struct Outage {
    time: Duration,
    done: SyncSender<()>,
}

impl Shared {
    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    requests: AtomicU64,
    bytes: AtomicU64,
    faults: AtomicU64,
}

impl Counters {
    pub(super) fn opened(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn requested(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn struck(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn assemble(
    listener: &StdListener,
    site: Site,
    link: Link,
    faults: Faults,
) -> io::Result<(tokio::runtime::Runtime, Arc<Shared>)> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pacer = {
        let _within = runtime.enter();
        Pacer::new(link)?
    };
    let shared = Shared {
        site,
        pacer,
        counters: Counters::default(),
        script: Mutex::new(Script::new(faults, Instant::now())),
        outage: Mutex::new(None),
        stopping: AtomicBool::new(false),
        control: Notify::new(),
    };
    Ok((runtime, Arc::new(shared)))
}

/// Serves until told to stop. Whatever is still open then is closed with the runtime.
async fn run(listener: StdListener, address: SocketAddr, shared: Arc<Shared>) {
    let pacer = Arc::clone(&shared);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(pacer.pacer.run().await) });
    let mut connections = JoinSet::new();
    let mut listener = TcpListener::from_std(listener).ok();
    while !shared.stopping.load(Ordering::Acquire) {
        let Some(listening) = &listener else { return };
        while connections.try_join_next().is_some() {}
        match next_client(listening, &shared.control).await {
            Some(Ok(_)) if connections.len() >= CONNECTIONS_MAX => {}
            Some(Ok(stream)) => drop(connections.spawn(Connection::new(stream, Arc::clone(&shared)).serve())),
            // Out of descriptors, or the client has gone already: both pass.
            Some(Err(_)) => sleep(Duration::from_millis(10)).await,
            None => {
                let outage = shared.outage().take();
                if let Some(Outage { time, done }) = outage {
                    drop(listener.take());
                    connections.shutdown().await;
                    let _ = done.send(());
                    listener = refuse(address, time, &shared).await;
                }
            }
        }
    }
}

/// The next client; `None` when there is something else to do.
async fn next_client(listener: &TcpListener, control: &Notify) -> Option<io::Result<TcpStream>> {
    let mut told = pin!(control.notified());
    poll_fn(|cx| match told.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream))),
    })
    .await
}

/// Lets the time pass and listens again, unless told to stop.
async fn refuse(address: SocketAddr, time: Duration, shared: &Shared) -> Option<TcpListener> {
    let until = tokio::time::Instant::now() + time;
    while !shared.stopping.load(Ordering::Acquire) {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        if left.is_zero() {
            // Somebody else may hold the port for a moment.
            if let Ok(listener) = TcpListener::bind(address).await {
                return Some(listener);
            }
        }
        let _ = timeout(left.max(Duration::from_millis(10)), shared.control.notified()).await;
    }
    None
}
