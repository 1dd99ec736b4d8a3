//! What a connection costs, and how long a first byte takes, with little else on the link.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Target;
use super::report::{Connects, Spread};
use super::walk::Walk;
use crate::error::{Error, Kind, Result};
use crate::memory::{Landing, Slab};
use crate::store::{Arrival, ReadRequest};

/// Fresh connections that are opened, one after the other.
const FRESH: usize = 8;
/// A connection may take this long: a server that needs more is down.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a small read: within the first packets, so that it is one round trip.
const SMALL_BYTES: usize = 4 << 10;
/// Small reads at a time, each on a connection of its own: nothing that a link or a server would notice.
const SIDE_BY_SIDE: usize = 4;
/// Small reads that are timed. The last percentile of fewer than 100 is the longest.
const SAMPLES: usize = 200;
/// A refused or broken read is repeated after this long, unless the store names a longer time.
const PAUSE: Duration = Duration::from_millis(50);

/// What connections and first bytes cost.
pub(super) struct Latency {
    pub(super) connect: Option<Connects>,
    pub(super) first_byte: Spread,
}

/// What the tasks share.
#[derive(Clone)]
pub(super) struct Reads {
    pub(super) targets: Arc<[Target]>,
    pub(super) walk: Arc<Walk>,
    pub(super) slab: Slab,
}

impl Reads {
    /// Opens fresh connections, then times small reads on used ones, until `deadline` at the latest.
    ///
    /// # Errors
    /// Why no connection could be opened, or no byte read.
    pub(super) async fn latency(self, deadline: Instant) -> Result<Latency> {
        let began = Instant::now();
        let connect = self.fresh_connections(began + (deadline - began) / 2).await?;
        let first_byte = self.first_bytes(deadline).await?;
        Ok(Latency { connect, first_byte })
    }

    /// `None` where the store has no connections.
    async fn fresh_connections(&self, deadline: Instant) -> Result<Option<Connects>> {
        let (mut resolve, mut tcp, mut tls, mut first) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut addresses, mut failure) = (BTreeSet::new(), None);
        for _ in 0..FRESH {
            // A copy knows neither an address nor a connection.
            let mut target = self.targets[0].clone();
            target.store = Arc::clone(&target.store).per_reactor();
            let patience = CONNECT_PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
            match tokio::time::timeout(patience, target.store.connect()).await {
                Ok(Ok(cost)) => {
                    addresses.insert(cost.address);
                    resolve.push(cost.resolve.as_secs_f64());
                    tcp.push(cost.connect.as_secs_f64());
                    tls.extend(cost.secure.map(|time| time.as_secs_f64()));
                    if let Ok(Ok(arrival)) = tokio::time::timeout(patience, self.small_read(&target, 0)).await
                        && !arrival.opened
                    {
                        first.push(arrival.first_byte.as_secs_f64());
                    }
                }
                Ok(Err(error)) if error.kind() == Kind::Unsupported => return Ok(None),
                Ok(Err(error)) if !error.is_transient() => return Err(error),
                Ok(Err(error)) => failure = Some(error),
                Err(_) => failure = Some(no_answer(&target, patience)),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        let spreads = (Spread::of(&mut resolve), Spread::of(&mut tcp));
        let (Some(resolve), Some(tcp)) = spreads else { return Err(failure.unwrap_or_else(|| self.nothing())) };
        let addresses = addresses.into_iter().collect();
        Ok(Some(Connects { addresses, resolve, tcp, tls: Spread::of(&mut tls), first_byte: Spread::of(&mut first) }))
    }

    /// Times small reads, a few side by side.
    async fn first_bytes(&self, deadline: Instant) -> Result<Spread> {
        let mut tasks = JoinSet::new();
        for _ in 0..SIDE_BY_SIDE {
            tasks.spawn(self.clone().some_first_bytes(deadline));
        }
        let (mut seconds, mut failure) = (Vec::new(), None);
        while let Some(joined) = tasks.join_next().await {
            let (some, failed) = joined.map_err(|error| Error::new(Kind::Io, "timing first bytes").source(error))?;
            seconds.extend(some);
            failure = failed.or(failure);
        }
        match failure {
            Some(error) if !error.is_transient() => Err(error),
            failure => Spread::of(&mut seconds).ok_or_else(|| failure.unwrap_or_else(|| self.nothing())),
        }
    }

    /// One after the other; and the last error, which ends them if it will not pass.
    async fn some_first_bytes(self, deadline: Instant) -> (Vec<f64>, Option<Error>) {
        let (mut seconds, mut failure, mut is_used) = (Vec::with_capacity(SAMPLES / SIDE_BY_SIDE), None, false);
        while seconds.len() < SAMPLES / SIDE_BY_SIDE {
            let left = deadline.saturating_duration_since(Instant::now());
            let place = self.walk.next(SMALL_BYTES);
            let target = &self.targets[place.target];
            let Ok(outcome) = tokio::time::timeout(left, self.small_read(target, place.start)).await else {
                failure = failure.or_else(|| Some(no_answer(target, left)));
                break;
            };
            match outcome {
                // The first one opens the connection, or warms it up.
                Ok(arrival) if arrival.opened || !is_used => is_used = true,
                Ok(arrival) => seconds.push(arrival.first_byte.as_secs_f64()),
                Err(error) => {
                    let (passes, pause) = (error.is_transient(), error.retry_after().unwrap_or(PAUSE).max(PAUSE));
                    failure = Some(error);
                    if !passes {
                        break;
                    }
                    tokio::time::sleep(pause.min(left)).await;
                }
            }
        }
        (seconds, failure)
    }

    async fn small_read(&self, target: &Target, start: u64) -> Result<Arrival> {
        let pages = super::load::pages(&self.slab, SMALL_BYTES, target.store.appetite().alignment);
        let pages = self.slab.take(pages).ok_or_else(|| Error::new(Kind::Config, "a slab too small to probe with"))?;
        let mut landing = Landing::new(pages, SMALL_BYTES);
        let request = ReadRequest { key: Arc::clone(&target.key), start, size: Some(target.size), version: None };
        target.store.read(&request, &mut landing).await
    }

    fn nothing(&self) -> Error {
        Error::new(Kind::Stalled, format!("{}: no time left to open a connection", self.targets[0].store.root()))
            .advice("raise the probe's time")
    }
}

fn no_answer(target: &Target, patience: Duration) -> Error {
    let what = format!("{}{}: no answer within {patience:.1?}", target.store.root(), target.key);
    Error::new(Kind::Stalled, what).advice("check that the server is up; or raise the probe's time").transient()
}
