//! Storage across a long link, in this process, without root: a server of byte ranges and a model of the link.
//!
//! *Takes* a [`Site`] (a directory, or objects in memory), a [`Link`] and [`Faults`]. *Gives* an HTTP/1.1 server on
//! loopback that answers as if it were far away. *Owns* one thread, its sockets and a timer. *Bounded* by
//! [`CONNECTIONS_MAX`] connections, 16 KiB of request head, and a window per connection; payload is never copied to
//! user space from a directory. *Fails* at the start, with what to change; afterwards a broken connection is closed
//! and the others go on.
//!
//! ```
//! use std::time::Duration;
//! use farfeed::emulate::{Faults, Link, Objects, Server, Site};
//!
//! let objects = Objects::default();
//! objects.put("train-0000.tar", vec![7_u8; 1 << 20]);
//! let link = Link { rtt: Duration::from_millis(15), rate_bytes_s: Some(125_000_000), ..Link::default() };
//! let server = Server::start(Site::objects(objects), link, Faults::none())?;
//! assert!(server.url().starts_with("http://127.0.0.1:"));
//! # Ok::<(), farfeed::Error>(())
//! ```
//!
//! What the model holds and what it leaves out is written in `docs/emulate.md`; results made with it must say that
//! the link was emulated.

mod connection;
mod fault;
mod flow;
mod line;
mod link;
mod network;
mod pacer;
mod request;
mod response;
mod server;
mod site;

pub use fault::{Cut, Effect, Fault, Faults, Token};
pub use link::Link;
pub use server::{CONNECTIONS_MAX, Server, Stats};
pub use site::{Objects, Site};
