//! What a server and a relay have in common: one thread that listens on some addresses, and runs the network.

use std::future::{Future as _, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout_at};

use super::connection::Connection;
use super::fault::{Faults, Script};
use super::link::Link;
use super::pacer::Pacer;
use super::pipe::{Pipe, Upstream};
use super::site::Site;
use super::stats::{Counters, Stats};
use crate::error::{Error, Kind, Result};
use crate::sys::process::Birthplace;

/// Connections that are open at the most; further ones are closed as soon as they come.
pub const CONNECTIONS_MAX: usize = 1024;

/// Ports that are tried for one that is free on every address.
const PORTS_TRIED: usize = 32;

/// How soon the thread must do what it is told.
const OBEYS_WITHIN: Duration = Duration::from_secs(1);

/// What lies behind the link.
#[derive(Debug)]
pub(super) enum Far {
    Site(Arc<Site>),
    Upstream(Arc<Upstream>),
}

/// The thread, and where it listens. Stops when dropped.
pub(super) struct Station {
    hub: Arc<Hub>,
    thread: Option<JoinHandle<()>>,
    /// The process that has the thread.
    born: Birthplace,
}

impl Station {
    /// Listens on all `addresses`, on one port where they name none.
    pub(super) fn open(addresses: &[SocketAddr], far: Far, link: Link, faults: Faults) -> Result<Self> {
        let named = addresses.first().map_or_else(|| "no address".to_owned(), ToString::to_string);
        let failed = |error: io::Error| {
            Error::new(Kind::Io, format!("cannot serve on {named}"))
                .advice("choose another address or port, or raise the limit of open files")
                .source(error)
        };
        if addresses.is_empty() {
            return Err(Error::new(Kind::Config, "no address to serve on").advice("name one, as in 127.0.0.1:0"));
        }
        let listeners = listen(addresses).map_err(failed)?;
        let (ready, started) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("farfeed-emulate".into())
            .spawn(move || match assemble(&listeners, far, link, faults) {
                Err(error) => drop(ready.send(Err(error))),
                Ok((runtime, hub)) => {
                    let _ = ready.send(Ok(Arc::clone(&hub)));
                    runtime.block_on(run(listeners, hub));
                }
            })
            .map_err(failed)?;
        let hub = started.recv().map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?.map_err(failed)?;
        Ok(Station { hub, thread: Some(thread), born: Birthplace::here() })
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.hub.doors.iter().map(|door| door.address)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.hub.doors[0].address
    }

    pub(super) fn set_link(&self, link: Link) -> Result<()> {
        link.check()?;
        self.hub.pacer.change(link);
        Ok(())
    }

    /// Other faults, which the caller has checked.
    pub(super) fn set_faults(&self, faults: Faults) {
        *self.hub.script() = Script::new(faults, Instant::now());
    }

    /// Closes all doors for so long.
    pub(super) fn refuse_for(&self, time: Duration) -> Result<()> {
        self.hub.doors.iter().try_for_each(|door| self.close_door(door, Some(time)))
    }

    /// Closes the door at `address` for so long, or for good.
    pub(super) fn refuse_at(&self, address: SocketAddr, time: Option<Duration>) -> Result<()> {
        let door = self.hub.doors.iter().find(|door| door.address == address).ok_or_else(|| {
            Error::new(Kind::Config, format!("nothing is served on {address}")).advice("choose one of addresses()")
        })?;
        self.close_door(door, time)
    }

    pub(super) fn silence_for(&self, time: Duration) {
        self.hub.pacer.silence(time);
    }

    pub(super) fn stats(&self) -> Stats {
        self.hub.counters.stats(self.hub.pacer.counts())
    }

    fn close_door(&self, door: &Door, time: Option<Duration>) -> Result<()> {
        let (done, refuses) = sync_channel(1);
        *door.outage() = Some(Outage { time, done });
        door.told.notify_one();
        refuses.recv_timeout(OBEYS_WITHIN).map_err(|error| {
            Error::new(Kind::Stalled, format!("the emulated server did not leave {} within 1 s", door.address))
                .source(error)
        })
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // In a forked child there is no thread, and what the parent serves goes on.
        if !self.born.is_here() {
            std::mem::forget((Arc::clone(&self.hub), self.thread.take()));
            return;
        }
        self.hub.stopping.store(true, Ordering::Release);
        self.hub.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // It ends at its next turn; a panic in it has been reported where it happened.
            let _ = thread.join();
        }
    }
}

/// What the thread, its tasks and its owner share.
pub(super) struct Hub {
    pub(super) pacer: Pacer,
    pub(super) counters: Counters,
    far: Far,
    script: Mutex<Script>,
    doors: Vec<Door>,
    stopping: AtomicBool,
    /// Says that `stopping` was set.
    stop: Notify,
}

impl Hub {
    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One address, and what its owner wants of it.
struct Door {
    address: SocketAddr,
    outage: Mutex<Option<Outage>>,
    /// Says that `outage` was set.
    told: Notify,
}

struct Outage {
    /// For good, if `None`.
    time: Option<Duration>,
    done: SyncSender<()>,
}

impl Door {
    fn outage(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener for each address. Where the first names no port, one is looked for that is free on all.
fn listen(addresses: &[SocketAddr]) -> io::Result<Vec<StdListener>> {
    let mut tried = 0;
    loop {
        match listen_once(addresses) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && addresses[0].port() == 0 && tried < PORTS_TRIED =>
            {
                tried += 1;
            }
            listening => return listening,
        }
    }
}

fn listen_once(addresses: &[SocketAddr]) -> io::Result<Vec<StdListener>> {
    let mut port = 0;
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        let mut address = *address;
        if address.port() == 0 {
            address.set_port(port);
        }
        let listener = StdListener::bind(address)?;
        // The standard library lets 128 clients queue; one beyond is heard a second later, when its system asks again.
        rustix::net::listen(&listener, CONNECTIONS_MAX as i32)?;
        listener.set_nonblocking(true)?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

fn assemble(
    listeners: &[StdListener],
    far: Far,
    link: Link,
    faults: Faults,
) -> io::Result<(tokio::runtime::Runtime, Arc<Hub>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pacer = {
        let _within = runtime.enter();
        Pacer::new(link)?
    };
    let door = |listener: &StdListener| {
        Ok(Door { address: listener.local_addr()?, outage: Mutex::new(None), told: Notify::new() })
    };
    let hub = Hub {
        pacer,
        counters: Counters::default(),
        far,
        script: Mutex::new(Script::new(faults, Instant::now())),
        doors: listeners.iter().map(door).collect::<io::Result<_>>()?,
        stopping: AtomicBool::new(false),
        stop: Notify::new(),
    };
    Ok((runtime, Arc::new(hub)))
}

/// Serves until told to stop. Whatever is still open then is closed with the runtime.
async fn run(listeners: Vec<StdListener>, hub: Arc<Hub>) {
    let mut tasks = JoinSet::new();
    let pacer = Arc::clone(&hub);
    tasks.spawn(async move { drop(pacer.pacer.run().await) });
    for (door, listener) in listeners.into_iter().enumerate() {
        tasks.spawn(keep_door(door, listener, Arc::clone(&hub)));
    }
    while !hub.stopping.load(Ordering::Acquire) {
        hub.stop.notified().await;
    }
}

/// Lets clients in at one address, but not during an outage.
async fn keep_door(door: usize, listener: StdListener, hub: Arc<Hub>) {
    let door = &hub.doors[door];
    let mut connections = JoinSet::new();
    let mut listener = TcpListener::from_std(listener).ok();
    while let Some(listening) = &listener {
        while connections.try_join_next().is_some() {}
        match next_client(listening, &door.told).await {
            Some(Ok(_)) if hub.counters.open() >= CONNECTIONS_MAX as u64 => {}
            Some(Ok(stream)) => let_in(stream, &hub, &mut connections),
            // Out of descriptors, or the client has gone already: both pass.
            Some(Err(_)) => sleep(Duration::from_millis(10)).await,
            None => {
                let outage = door.outage().take();
                if let Some(outage) = outage {
                    drop(listener.take());
                    connections.shutdown().await;
                    listener = Some(sit_out(door, outage).await);
                }
            }
        }
    }
}

/// Counts the client before its task runs, so that the limit holds for those who come all at once.
fn let_in(stream: TcpStream, hub: &Arc<Hub>, connections: &mut JoinSet<()>) {
    let hub = Arc::clone(hub);
    match &hub.far {
        Far::Site(site) => {
            let site = Arc::clone(site);
            connections.spawn(Connection::new(stream, site, hub).serve());
        }
        Far::Upstream(upstream) => {
            let upstream = Arc::clone(upstream);
            connections.spawn(Pipe::new(stream, upstream, hub).carry());
        }
    }
}

/// The next client; `None` when there is something else to do.
async fn next_client(listener: &TcpListener, told: &Notify) -> Option<io::Result<TcpStream>> {
    let mut told = pin!(told.notified());
    poll_fn(|cx| match told.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream))),
    })
    .await
}

/// Lets the outage pass, or the one that replaces it, and listens again.
async fn sit_out(door: &Door, outage: Outage) -> TcpListener {
    let ends = |time: Option<Duration>| time.map(|time| tokio::time::Instant::now() + time);
    let mut until = ends(outage.time);
    let _ = outage.done.send(());
    loop {
        let now = tokio::time::Instant::now();
        if until.is_some_and(|until| until <= now) {
            // Somebody else may hold the port for a moment.
            if let Ok(listener) = TcpListener::bind(door.address).await {
                return listener;
            }
        }
        // Without an end it sleeps until told; the hour is only there so that both are one wait.
        let wakes = until.unwrap_or(now + Duration::from_secs(3600)).max(now + Duration::from_millis(10));
        let _ = timeout_at(wakes, door.told.notified()).await;
        if let Some(outage) = door.outage().take() {
            until = ends(outage.time);
            let _ = outage.done.send(());
        }
    }
}
