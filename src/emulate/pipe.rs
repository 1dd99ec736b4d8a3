//! One client's connection through a relay: bytes are held here until the link has carried them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout};

use super::fault::{Cut, Effect};
use super::network::{FlowId, Way};
use super::pace::Pace;
use super::station::Hub;

/// How much is read from the server at a time: few calls for many bytes.
const DOWN_PIECE: usize = 256 << 10;
/// And from a client, which asks more than it sends.
const UP_PIECE: usize = 16 << 10;
/// The most that a client's bytes take at a relay before it waits.
const UP_HELD_MAX: usize = 1 << 20;
/// Pieces kept for the next connection.
const SHELF_MAX: usize = 64;
/// How long the server behind the relay may take to let a connection in.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The server behind a relay, and memory for what it sends.
#[derive(Debug)]
pub(super) struct Upstream {
    address: SocketAddr,
    down: Shelf,
    up: Shelf,
}

impl Upstream {
    pub(super) fn new(address: SocketAddr) -> Self {
        Upstream { address, down: Shelf::new(DOWN_PIECE), up: Shelf::new(UP_PIECE) }
    }
}

/// A connection to the relay, its twin to the server, and their place in the network.
pub(super) struct Pipe {
    client: TcpStream,
    upstream: Arc<Upstream>,
    hub: Arc<Hub>,
    flow: FlowId,
    effect: Option<Effect>,
    /// What the server sent, and what the client did.
    down: Held,
    up: Held,
    /// Whether the server's end was no orderly one.
    server_broke: AtomicBool,
}

impl Pipe {
    pub(super) fn new(client: TcpStream, upstream: Arc<Upstream>, hub: Arc<Hub>) -> Self {
        let effect = hub.script().strike("", true, Instant::now());
        if effect.is_some() {
            hub.counters.struck();
        }
        let delay = if let Some(Effect::Delay(time)) = effect { time } else { Duration::ZERO };
        let flow = hub.pacer.open(delay);
        hub.counters.opened();
        let server_broke = AtomicBool::new(false);
        Pipe { client, upstream, hub, flow, effect, down: Held::default(), up: Held::default(), server_broke }
    }

    /// Passes bytes on, both ways, until both sides have ended, one of them breaks, or a fault ends it.
    pub(super) async fn carry(self) {
        let _ = self.client.set_nodelay(true);
        let ended = match timeout(CONNECT_MAX, TcpStream::connect(self.upstream.address)).await {
            Ok(Ok(server)) => {
                let _ = server.set_nodelay(true);
                tokio::try_join!(
                    self.take_from_client(),
                    self.hand_to_server(&server),
                    self.take_from_server(&server),
                    self.hand_to_client()
                )
                .map(drop)
            }
            _ => Err(End::Broken),
        };
        // Nobody is left to tell what went wrong; both sides see that the connection is broken.
        if let Err(End::Broken) = ended {
            let _ = rustix::net::sockopt::set_socket_linger(&self.client, Some(Duration::ZERO));
        }
    }

    async fn take_from_client(&self) -> Result<(), End> {
        loop {
            self.up.room(|held| held < UP_HELD_MAX).await;
            self.client.readable().await?;
            match self.up.fill(&self.upstream.up, |piece| self.client.try_read(piece)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
                Ok(read) => {
                    self.hub.pacer.upload(self.flow, read);
                    if read == 0 {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn hand_to_server(&self, server: &TcpStream) -> Result<(), End> {
        loop {
            let (mut credit, _) = self.arrived(Way::ToServer).await;
            if credit == 0 {
                let _ = rustix::net::shutdown(server, Shutdown::Write);
                return Ok(());
            }
            while credit > 0 {
                server.writable().await?;
                match self.up.drain(&self.upstream.up, credit, |piece| server.try_write(piece)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => credit -= written?,
                }
            }
        }
    }

    /// Reads ahead of the window, and no further: the server then waits, as it would for a distant client.
    async fn take_from_server(&self, server: &TcpStream) -> Result<(), End> {
        loop {
            let wanted = || self.hub.pacer.appetite(self.flow, DOWN_PIECE);
            self.down.room(|held| held + DOWN_PIECE / 2 < wanted()).await;
            server.readable().await?;
            match self.down.fill(&self.upstream.down, |piece| server.try_read(piece)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(read) if read > 0 => self.hub.pacer.offer(self.flow, read),
                ended => {
                    self.server_broke.store(ended.is_err(), Ordering::Relaxed);
                    // The end takes its place behind the bytes, as in TCP.
                    self.hub.pacer.offer(self.flow, 1);
                    return Ok(());
                }
            }
        }
    }

    async fn hand_to_client(&self) -> Result<(), End> {
        let mut pace = Pace::new(self.effect.clone(), Instant::now(), 0);
        let mut sent = 0;
        loop {
            let (mut credit, at) = self.arrived(Way::ToClient).await;
            while credit > 0 {
                if self.down.held() == 0 {
                    return self.end();
                }
                let (bytes, due) = pace.next(sent, credit, at);
                if let Some(due) = due {
                    sleep_until(due.into()).await;
                }
                let written = self.write(sent, bytes).await?;
                self.hub.pacer.taken(self.flow, written);
                self.hub.counters.sent(written as u64);
                (sent, credit) = (sent + written as u64, credit - written);
            }
        }
    }

    /// Writes some of `bytes`, from position `sent` of what the client gets.
    async fn write(&self, sent: u64, bytes: usize) -> Result<usize, End> {
        let (mut most, mut flip) = (bytes, 0);
        match self.effect {
            Some(Effect::Cut { after, how }) => match usize::try_from(after.saturating_sub(sent)) {
                Ok(0) if how == Cut::Reset => return Err(End::Broken),
                Ok(0) => return Err(End::Cut),
                left => most = most.min(left.unwrap_or(most)),
            },
            Some(Effect::Corrupt { at }) if at >= sent => {
                flip = u8::from(at == sent);
                most = most.min(usize::try_from(at - sent).unwrap_or(most).max(1));
            }
            _ => {}
        }
        loop {
            self.client.writable().await?;
            let write = |piece: &[u8]| match flip {
                0 => self.client.try_write(piece),
                flip => self.client.try_write(&[piece[0] ^ flip]),
            };
            match self.down.drain(&self.upstream.down, most, write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Ok(written?),
            }
        }
    }

    /// What the server's end means for the client.
    fn end(&self) -> Result<(), End> {
        if self.server_broke.load(Ordering::Relaxed) {
            return Err(End::Broken);
        }
        let _ = rustix::net::shutdown(&self.client, Shutdown::Write);
        Ok(())
    }

    async fn arrived(&self, way: Way) -> (usize, Instant) {
        poll_fn(|cx| self.hub.pacer.poll_arrived(self.flow, way, cx)).await
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.hub.pacer.close(self.flow);
        self.hub.counters.closed();
    }
}

/// How a connection ends before its time.
enum End {
    /// With a reset.
    Broken,
    /// In order, as a fault wants it.
    Cut,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Broken
    }
}

/// Bytes that wait for the link, oldest first. The lock is never held across a wait.
#[derive(Default)]
struct Held {
    queue: Mutex<Queue>,
    /// Says that there is more room.
    drained: Notify,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

struct Piece {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Held {
    fn held(&self) -> usize {
        self.queue().bytes
    }

    /// Waits until so many bytes may be held.
    async fn room(&self, enough: impl Fn(usize) -> bool) {
        while !enough(self.held()) {
            self.drained.notified().await;
        }
    }

    /// Reads into the room behind the newest byte; the shelf gives more when that is short.
    fn fill(&self, shelf: &Shelf, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut queue = self.queue();
        let Queue { pieces, bytes } = &mut *queue;
        if pieces.back().is_none_or(|last| last.memory.len() - last.end < shelf.piece / 4) {
            pieces.push_back(Piece { memory: shelf.take(), start: 0, end: 0 });
        }
        let Some(last) = pieces.back_mut() else { return Ok(0) };
        let filled = read(&mut last.memory[last.end..]);
        let read = *filled.as_ref().unwrap_or(&0);
        (last.end, *bytes) = (last.end + read, *bytes + read);
        if last.end == 0 {
            pieces.pop_back().into_iter().for_each(|piece| shelf.put(piece.memory));
        }
        filled
    }

    /// Writes at most so many of the oldest bytes.
    fn drain(&self, shelf: &Shelf, most: usize, write: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut queue = self.queue();
        let Queue { pieces, bytes } = &mut *queue;
        let Some(first) = pieces.front_mut() else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let written = write(&first.memory[first.start..first.end.min(first.start + most)])?;
        (first.start, *bytes) = (first.start + written, *bytes - written);
        if first.start == first.end {
            pieces.pop_front().into_iter().for_each(|piece| shelf.put(piece.memory));
        }
        self.drained.notify_one();
        Ok(written)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pieces of memory that no connection needs now.
#[derive(Debug)]
struct Shelf {
    piece: usize,
    kept: Mutex<Vec<Box<[u8]>>>,
}

impl Shelf {
    fn new(piece: usize) -> Self {
        Shelf { piece, kept: Mutex::new(Vec::new()) }
    }

    fn take(&self) -> Box<[u8]> {
        self.kept().pop().unwrap_or_else(|| vec![0; self.piece].into_boxed_slice())
    }

    fn put(&self, memory: Box<[u8]>) {
        let mut kept = self.kept();
        if kept.len() < SHELF_MAX {
            kept.push(memory);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
