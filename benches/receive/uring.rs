//! tokio-uring: sockets through io_uring, with buffers that the kernel owns meanwhile. It takes no pages of ours, so that what it received is
//! copied, and it cannot wait for more than any bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use farfeed::memory::Landing;
use tokio_uring::net::TcpStream;

use super::contender::{Contender, KEY, Part};
use crate::field::clients::Origin;
use crate::field::clients::wire::{body_at, request};

/// For one `recv`: what a connection may have waiting at the most, more or less.
const BUFFER_BYTES: usize = 1 << 20;

pub(crate) struct Uring {
    parts: SyncSender<Vec<Part>>,
    landings: Receiver<Vec<Landing>>,
}

impl Uring {
    pub(crate) fn start(origin: &Origin, connections: usize) -> Self {
        let (parts, to_receive) = sync_channel::<Vec<Part>>(1);
        let (received, landings) = sync_channel(1);
        let address = SocketAddr::from(([127, 0, 0, 1], origin.port));
        thread::spawn(move || {
            tokio_uring::start(async move {
                let mut sockets = Vec::new();
                for _ in 0..connections {
                    let socket = TcpStream::connect(address).await.unwrap();
                    socket.set_nodelay(true).unwrap();
                    sockets.push((Rc::new(socket), vec![0; BUFFER_BYTES]));
                }
                // Nothing else is under way on this thread while it waits here.
                for parts in to_receive {
                    let reads: Vec<_> = parts
                        .into_iter()
                        .zip(sockets.drain(..))
                        .map(|(part, (socket, buffer))| tokio_uring::spawn(receive(socket, part, buffer)))
                        .collect();
                    let mut landings = Vec::new();
                    for read in reads {
                        let (socket, landing, buffer) = read.await.unwrap();
                        sockets.push((socket, buffer));
                        landings.push(landing);
                    }
                    received.send(landings).unwrap();
                }
            });
        });
        Uring { parts, landings }
    }
}

impl Contender for Uring {
    fn receive(&mut self, parts: Vec<Part>) -> (Vec<Landing>, u64) {
        self.parts.send(parts).unwrap();
        let landings = self.landings.recv().unwrap();
        let copied = landings.iter().map(|landing| landing.len() as u64).sum();
        (landings, copied)
    }
}

async fn receive(socket: Rc<TcpStream>, part: Part, mut buffer: Vec<u8>) -> (Rc<TcpStream>, Landing, Vec<u8>) {
    let mut landing = part.landing;
    socket.write_all(request(KEY, part.start, landing.len()).into_bytes()).await.0.unwrap();
    let mut head = Vec::new();
    while landing.remaining() > 0 {
        let (count, read) = socket.read(buffer).await;
        buffer = read;
        let received = &buffer[..count.unwrap()];
        assert!(!received.is_empty(), "the server closed the connection");
        if landing.filled() > 0 {
            landing.push(received);
            continue;
        }
        head.extend_from_slice(received);
        if let Some(body) = body_at(&head) {
            landing.push(&head[body..]);
        }
    }
    (socket, landing, buffer)
}
