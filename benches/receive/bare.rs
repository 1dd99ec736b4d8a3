//! The floor: a blocking thread per connection that does nothing but `recv`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use farfeed::memory::Landing;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};

use super::contender::{Contender, KEY, Part};
use crate::field::clients::Origin;
use crate::field::clients::wire::{HEAD_MAX, body_at, request};

/// How a thread waits for bytes.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    /// For any.
    Any,
    /// For all of a page.
    All,
    /// For this many, or the rest.
    LowWater(usize),
}

pub(crate) struct Bare {
    threads: Vec<(SyncSender<Part>, Receiver<Landing>)>,
}

impl Bare {
    pub(crate) fn start(origin: &Origin, connections: usize, wait: Wait) -> Self {
        let start = |port: u16| {
            let (to_thread, parts) = sync_channel::<Part>(1);
            let (done, from_thread) = sync_channel(1);
            let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
            socket.set_nodelay(true).unwrap();
            thread::spawn(move || {
                for mut part in parts {
                    receive(&mut socket, &mut part, wait);
                    done.send(part.landing).unwrap();
                }
            });
            (to_thread, from_thread)
        };
        Bare { threads: (0..connections).map(|_| start(origin.port)).collect() }
    }
}

impl Contender for Bare {
    fn receive(&mut self, parts: Vec<Part>) -> (Vec<Landing>, u64) {
        for ((to_thread, _), part) in self.threads.iter().zip(parts) {
            to_thread.send(part).unwrap();
        }
        (self.threads.iter().map(|(_, from_thread)| from_thread.recv().unwrap()).collect(), 0)
    }
}

fn receive(socket: &mut TcpStream, part: &mut Part, wait: Wait) {
    let landing = &mut part.landing;
    socket.write_all(request(KEY, part.start, landing.len()).as_bytes()).unwrap();
    let (mut scratch, mut here) = ([0; HEAD_MAX], 0);
    let body = loop {
        here += socket.read(&mut scratch[here..]).unwrap();
        if let Some(body) = body_at(&scratch[..here]) {
            break body;
        }
    };
    landing.push(&scratch[body..here]);
    match wait {
        Wait::Any => take(socket, landing, RecvFlags::empty()),
        Wait::All => take(socket, landing, RecvFlags::WAITALL),
        Wait::LowWater(bytes) => take_by_mark(socket, landing, bytes),
    }
}

fn take(socket: &TcpStream, landing: &mut Landing, flags: RecvFlags) {
    while landing.remaining() > 0 {
        let (count, _) = recv(socket, landing.spare(), flags).unwrap();
        assert!(count > 0, "the server closed the connection");
        landing.advance(count);
    }
}

/// Sleeps in `poll`: a `recv` that sleeps takes what there is, and then waits for as much again, which may never come.
fn take_by_mark(socket: &TcpStream, landing: &mut Landing, mark: usize) {
    let mut set = 1;
    while landing.remaining() > 0 {
        let wanted = mark.min(landing.remaining());
        if wanted != set {
            farfeed::bare::set_receive_low_water(socket, wanted).unwrap();
            set = wanted;
        }
        poll(&mut [PollFd::new(socket, PollFlags::IN)], None).unwrap();
        while landing.remaining() > 0 {
            let room = landing.spare().len();
            let Ok((count, _)) = recv(socket, landing.spare(), RecvFlags::DONTWAIT) else { break };
            assert!(count > 0, "the server closed the connection");
            landing.advance(count);
            if count < room {
                break;
            }
        }
    }
    farfeed::bare::set_receive_low_water(socket, 1).unwrap();
}
