//! Storage across a long link, in this process, without root: a server of byte ranges and a model of the link.
//!
//! *Takes* a [`Site`] (a directory, or objects in memory), a [`Link`] and [`Faults`]. *Gives* an HTTP/1.1 server on
//! loopback that answers as if it were far away. *Owns* one thread, its sockets and a timer. *Bounded* by
//! [`CONNECTIONS_MAX`] connections, 16 KiB of request head, and a window per connection; payload is never copied to
//! user space from a directory. *Fails* at the start, with what to change; afterwards a broken connection is closed
//! and the others go on.
//!
//! Results made with it must say that the link was emulated.
//!
#![doc = include_str!("../../docs/emulate.md")]

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
#[cfg(test)]
pub(crate) mod wire;

pub use fault::{Cut, Effect, Fault, Faults, Token};
pub use link::Link;
pub use server::{CONNECTIONS_MAX, Server, Stats};
pub use site::{Objects, Site};
