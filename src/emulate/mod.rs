//! Storage across a long link, in this process, without root: a server of byte ranges and a model of the link.
//!
//! *Takes* a [`Site`] (a directory, or objects in memory) or the address of somebody else's server, a [`Link`] and
//! [`Faults`]. *Gives* an HTTP/1.1 [`Server`] on loopback that answers as if it were far away, or a [`Relay`] to the
//! other server as if that were. *Owns* one thread, its sockets and a timer. *Bounded* by [`CONNECTIONS_MAX`] connections,
//! 16 KiB of request head, and a window (in a relay half a MiB more) per connection; payload is never copied to user
//! space from a directory. *Fails* at the start, with what to change; afterwards a broken connection is closed and
//! the others go on.
//!
//! Results made with it must say that the link was emulated.
//!
#![doc = include_str!("../../docs/emulate.md")]

mod congestion;
mod connection;
mod fault;
mod flow;
mod line;
mod link;
mod network;
mod pace;
mod pacer;
mod pipe;
mod relay;
mod request;
mod response;
mod server;
mod site;
mod station;
mod stats;
#[cfg(test)]
pub(crate) mod wire;

pub use congestion::Congestion;
pub use fault::{Cut, Effect, Fault, Faults, Token};
pub use link::Link;
pub use relay::Relay;
pub use server::Server;
pub use site::{Objects, Site};
pub use station::CONNECTIONS_MAX;
pub use stats::Stats;
