//! Reads in flight: many at once, in any order of arrival, retried until they are right or out of time.
//!
//! *Takes* reads with the pages they will fill. *Gives* a [`Completion`] for each, exactly one. *Owns* the reactor
//! threads, the memory of second requests and, through the stores, the connections. *Bounded*: the caller bounds what is in flight, retries are bounded
//! in time, not in number, so that an outage of a minute is survived, second requests by a share of the bytes. *Fails* with the store's last error, saying for how long
//! it was tried.

mod control;
mod race;
mod reactor;
mod retry;
mod second;
mod stream;
mod tail;

pub use control::{BYTES_MIN, Bounds, Controller, HeldBy, Learnt};
pub use race::hedge_bytes;
pub(crate) use reactor::for_reactor;
pub use reactor::{Completion, Fetch, FetchRead, Observed, Source, VersionPin};
pub use retry::{Hedge, RetryPolicy};
pub use stream::{extents, heads, list, stream};
