//! The link to a dataset, measured without a loader.

use std::sync::Arc;

use super::LoaderBuilder;
use super::indexing::listed_keys;
use super::opened::{CONNECTIONS_MAX, IN_FLIGHT_MAX};
use super::source::shards;
use crate::error::Result;
use crate::fetch::{RetryPolicy, heads};
use crate::probe::{InFlight, ProbeOptions, ProbeProgress, ProbeReport, Target, probe};

/// Of more objects than this, as many are looked at: each costs a round trip.
const OBJECTS_MAX: usize = 64;

impl LoaderBuilder {
    /// Measures the link to the shards, whatever is in them: see [`probe`]. Of the builder's options, those of shards, stores and
    /// retries count. `options.defaults` is set to what a loader has in flight with the builder's options.
    ///
    /// # Errors
    /// `NotFound` for shards, and those of [`probe`].
    pub fn probe(self, mut options: ProbeOptions, on_progress: &mut dyn FnMut(ProbeProgress)) -> Result<ProbeReport> {
        // Nobody waits for a store that is down for longer than the probe would have taken.
        let policy = RetryPolicy { patience: self.policy.patience.min(options.time), ..self.policy };
        let mut stores = self.open_stores(options.connections_max);
        let objects = shards(&self.patterns, &mut stores, |prefix| listed_keys(prefix, policy))?;
        let apart = objects.len().div_ceil(OBJECTS_MAX).max(1);
        let sources: Vec<_> = objects.iter().step_by(apart).map(|object| object.source(None)).collect();
        let metas = heads(&sources, policy)?;
        let targets: Vec<Target> = sources
            .iter()
            .zip(metas)
            .map(|(source, meta)| Target {
                store: Arc::clone(&source.store),
                key: Arc::clone(&source.key),
                size: meta.size,
            })
            .collect();
        options.defaults = InFlight {
            requests: self.requests.unwrap_or(CONNECTIONS_MAX),
            bytes: self.in_flight.map_or(IN_FLIGHT_MAX, |size| size.as_bytes()),
        };
        probe(&targets, &options, on_progress)
    }
}
