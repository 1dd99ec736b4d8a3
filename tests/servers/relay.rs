//! In the way of a server: passes bytes on later, in pieces, and changed.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::Secured;

/// How bytes are passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passing {
    pub(crate) one_way: Duration,
    /// Most bytes that are passed on in one.
    pub(crate) piece: usize,
}

impl Default for Passing {
    fn default() -> Self {
        Passing { one_way: Duration::ZERO, piece: 8192 }
    }
}

/// Relays until it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Relay {
    /// `change` is given what `server` sends on a connection: its number, the place of the first byte, and the bytes.
    pub(crate) fn start(
        server: &Secured,
        passing: Passing,
        change: impl Fn(usize, usize, &mut [u8]) + Send + Sync + 'static,
    ) -> Self {
        let upstream = server.address();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay { address: listener.local_addr().unwrap(), over: Arc::default() };
        let (over, change) = (Arc::clone(&relay.over), Arc::new(change));
        std::thread::spawn(move || {
            for (connection, near) in listener.incoming().flatten().enumerate() {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                let far = TcpStream::connect(upstream).unwrap();
                let change = Arc::clone(&change);
                pass_on(near.try_clone().unwrap(), far.try_clone().unwrap(), passing, |_, _| {});
                pass_on(far, near, passing, move |at, bytes| change(connection, at, bytes));
            }
        });
        relay
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}/", self.address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Two threads: what one receives, the other sends when it is time. They end with their connection.
fn pass_on(
    mut from: TcpStream,
    mut to: TcpStream,
    passing: Passing,
    change: impl Fn(usize, &mut [u8]) + Send + 'static,
) {
    to.set_nodelay(true).unwrap();
    let (sender, receiver) = channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        let (mut buffer, mut at) = (vec![0; passing.piece], 0);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            change(at, &mut buffer[..count]);
            at += count;
            if sender.send((Instant::now() + passing.one_way, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
