//! Where a job stands: a few dozen bytes, the same on every rank.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::epoch::Order;
use super::partition::Partition;
use crate::error::{Error, Kind, Result};

/// The layout of [`State`] and the definition of the order that this version writes.
const VERSION: u32 = 1;

/// How a compact state begins.
const PREFIX: &str = "farfeed";

/// What was consumed, and of which order.
///
/// Serialises to a small map; `Display` and `FromStr` give and take it as one line,
/// `farfeed1:fingerprint:seed:window:lanes:epoch:position`, the fingerprint in hexadecimal. It names neither rank nor world size: any world size
/// that divides the lanes goes on with the same global batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Version of this layout and of the order's definition.
    pub version: u32,
    /// Fingerprint of the dataset.
    pub fingerprint: u64,
    /// Seed of the shuffle.
    pub seed: u64,
    /// Window of the shuffle in samples, over all ranks.
    pub window: u64,
    /// Lanes of the order.
    pub lanes: u32,
    /// Number of the epoch.
    pub epoch: u64,
    /// Samples consumed in this epoch, over all ranks.
    pub position: u64,
}

/// The batch that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    /// Number of the epoch.
    pub epoch: u64,
    /// Number of the batch in it.
    pub batch: u64,
}

impl State {
    /// The state after `position` samples of `epoch`, over all ranks, have been consumed.
    pub fn new(fingerprint: u64, order: &Order, epoch: u64, position: u64) -> Self {
        let shuffle = order.shuffle();
        State {
            version: VERSION,
            fingerprint,
            seed: shuffle.seed_value(),
            window: shuffle.window_samples(),
            lanes: order.lanes(),
            epoch,
            position,
        }
    }

    /// The next batch of a job over the dataset `fingerprint` in `order`. After the last batch of an epoch that is the first of
    /// the next one.
    ///
    /// # Errors
    /// `Unsupported` for another version; `Config` for another dataset, seed or window; `Topology` for another number of lanes or
    /// a global batch that does not divide the position.
    pub fn resume(&self, fingerprint: u64, order: &Order, partition: &Partition) -> Result<ResumePoint> {
        self.check(fingerprint, order)?;
        let (samples, global_batch) = (order.samples(), partition.global_batch());
        let batch = self.position.div_ceil(global_batch);
        if self.position == 0 {
            return Ok(ResumePoint { epoch: self.epoch, batch: 0 });
        }
        let next_epoch = ResumePoint { epoch: self.epoch.saturating_add(1), batch: 0 };
        if self.position == samples {
            return Ok(next_epoch);
        }
        if !self.position.is_multiple_of(global_batch) {
            let context = format!(
                "the state stands after {} samples, not between two batches of {global_batch} over all ranks",
                self.position
            );
            let advice = "resume with the global batch (batch size × world size) that the state was made with";
            return Err(Error::new(Kind::Topology, context).advice(advice));
        }
        // With a last batch that is dropped an epoch ends before its samples do.
        Ok(if batch >= partition.batches(samples) { next_epoch } else { ResumePoint { epoch: self.epoch, batch } })
    }

    fn check(&self, fingerprint: u64, order: &Order) -> Result<()> {
        if self.version != VERSION {
            let context = format!("a state of version {}; this build reads version {VERSION}", self.version);
            return Err(Error::new(Kind::Unsupported, context));
        }
        let shuffle = order.shuffle();
        let mismatch = |what: &str, theirs: &dyn fmt::Display, ours: &dyn fmt::Display| {
            format!("the state has {what} {theirs}, this job has {ours}")
        };
        if self.fingerprint != fingerprint {
            let (theirs, ours) = (format!("{:016x}", self.fingerprint), format!("{fingerprint:016x}"));
            let error = Error::new(Kind::Config, mismatch("dataset fingerprint", &theirs, &ours));
            return Err(error.advice("resume with the dataset that the state was made with, or start a new run"));
        }
        for (what, theirs, ours) in
            [("seed", self.seed, shuffle.seed_value()), ("shuffle window", self.window, shuffle.window_samples())]
        {
            if theirs != ours {
                return Err(Error::new(Kind::Config, mismatch(what, &theirs, &ours)).advice("use the state's value"));
            }
        }
        if self.lanes != order.lanes() {
            let error = Error::new(Kind::Topology, mismatch("lanes", &self.lanes, &order.lanes()));
            return Err(error.advice("build the order with the state's number of lanes"));
        }
        if self.position > order.samples() {
            return Err(Error::new(Kind::Config, mismatch("position", &self.position, &order.samples()) + " samples"));
        }
        Ok(())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { version, fingerprint, seed, window, lanes, epoch, position } = self;
        write!(f, "{PREFIX}{version}:{fingerprint:016x}:{seed}:{window}:{lanes}:{epoch}:{position}")
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            // What was given may be anything, so the message does not repeat it.
            let shape = format!("{PREFIX}{VERSION}:fingerprint:seed:window:lanes:epoch:position");
            Error::new(Kind::Config, format!("not a state: expected {shape}"))
        })
    }
}

fn parse(text: &str) -> Option<State> {
    let mut parts = text.strip_prefix(PREFIX)?.split(':');
    let state = State {
        version: parts.next()?.parse().ok()?,
        fingerprint: u64::from_str_radix(parts.next()?, 16).ok()?,
        seed: parts.next()?.parse().ok()?,
        window: parts.next()?.parse().ok()?,
        lanes: parts.next()?.parse().ok()?,
        epoch: parts.next()?.parse().ok()?,
        position: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(state)
}
