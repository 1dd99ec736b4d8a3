//! Bytes to and from a socket, as they are.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::time::Duration;

use rustix::io::{Errno, read, readv};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::memory::Landing;
use crate::sys::socket::set_receive_low_water;

/// Bytes that the kernel gathers before it wakes us: wake-ups are what receiving costs beside the kernel's copy.
const LOW_WATER_BYTES: usize = 1 << 20;

/// With less to come than this the two system calls that set and reset the mark cost what the wake-ups would.
const LOW_WATER_BYTES_MIN: usize = 32 << 10;

/// How long bytes below the mark may wait: on a slow link the mark takes seconds to reach, and what has arrived by then should be
/// seen as progress, and kept if the read is given up.
const LOW_WATER_PATIENCE: Duration = Duration::from_millis(100);

/// Pages that one system call fills: a low-water mark's worth of the smallest usual pages, 64 KiB.
const SLICES: usize = 16;

/// One TCP connection.
#[derive(Debug)]
pub(in crate::store::http) struct Plain {
    socket: TcpStream,
    /// What the kernel was last told.
    low_water: usize,
}

impl Plain {
    /// Connects; the caller has the deadline.
    pub(in crate::store::http) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        // A request is one small segment: Nagle would hold back the second of two.
        // The receive buffer's size is never set: that would turn the kernel's autotuning off.
        socket.set_nodelay(true)?;
        Ok(Plain { socket, low_water: 1 })
    }

    /// Sends all of `bytes`.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.socket.try_write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what the kernel takes at once; gives how much that was.
    #[cfg(feature = "https")]
    pub(super) fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.try_write(bytes)
    }

    /// Receives whatever comes first, up to the length of `into`, which is not empty; 0 when the peer has closed.
    pub(super) async fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let ready = self.wait(1).await?;
            if let Some(count) = self.try_receive(into, ready)? {
                return Ok(count);
            }
        }
    }

    /// Receives the next bytes of `landing` where they belong, and counts them there; 0 when the peer has closed.
    pub(super) async fn receive_into(&mut self, landing: &mut Landing) -> io::Result<usize> {
        loop {
            let ready = self.wait(landing.remaining()).await?;
            if let Some(count) = self.try_receive_into(landing, ready)? {
                landing.advance(count);
                return Ok(count);
            }
        }
    }

    /// Waits until as much is there as is worth a wake-up with `due` bytes still to come, or for as long as that may take; says whether
    /// the reactor thinks that there is something. If not, there may be bytes below the mark.
    pub(super) async fn wait(&mut self, due: usize) -> io::Result<bool> {
        // Never more than is still to come: the kernel would wait for it.
        self.set_low_water(if due < LOW_WATER_BYTES_MIN { 1 } else { due.min(LOW_WATER_BYTES) })?;
        if self.low_water == 1 {
            self.socket.readable().await?;
            return Ok(true);
        }
        match tokio::time::timeout(LOW_WATER_PATIENCE, self.socket.readable()).await {
            Ok(ready) => ready.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// What is there, in one read; `None` if that is nothing, 0 when the peer has closed. `ready` is what [`Plain::wait`] said.
    pub(super) fn try_receive(&self, into: &mut [u8], ready: bool) -> io::Result<Option<usize>> {
        self.receive_once(into.len(), ready, || read(&self.socket, &mut *into))
    }

    /// Whether the connection is as it was left: nothing arrived unasked, and the peer has not closed it.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.try_receive(&mut [0], true), Ok(None))
    }

    fn try_receive_into(&self, landing: &mut Landing, ready: bool) -> io::Result<Option<usize>> {
        let mut spare = [const { None }; SLICES];
        let count = landing.spare_vectored(&mut spare);
        let mut slices = spare.map(|slice| slice.unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let slices = &mut slices[..count];
        let room = slices.iter().map(|slice| slice.len()).sum();
        self.receive_once(room, ready, || readv(&self.socket, slices))
    }

    /// One system call that receives, and what the reactor is to know of it.
    fn receive_once(
        &self,
        room: usize,
        ready: bool,
        mut receive: impl FnMut() -> Result<usize, Errno>,
    ) -> io::Result<Option<usize>> {
        let mut received = None;
        let mut receive = || {
            let count = receive()?;
            received = Some(count);
            // Fewer than there was room for: the queue is empty, and asking again would cost a system call to hear so.
            // (A close is not lost by this: the reactor keeps that state.)
            if (1..room).contains(&count) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        };
        match if ready { self.socket.try_io(Interest::READABLE, receive) } else { receive() } {
            Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(error),
            _ => Ok(received),
        }
    }

    fn set_low_water(&mut self, bytes: usize) -> io::Result<()> {
        if self.low_water != bytes {
            set_receive_low_water(&self.socket, bytes)?;
            self.low_water = bytes;
        }
        Ok(())
    }
}
