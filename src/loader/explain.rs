//! The settings that the plan does not show, each with what it means.

use std::fmt;

use super::column::{ColumnSpec, Kind as ColumnKind};
use super::run::lock;
use super::{ByteSize, Loader, OnError};
use crate::schedule::write_wrapped;

/// A loader's effective settings with their reasons: its plan, and below it what the plan has no part in. Made by [`Loader::explain`].
pub struct Explained<'a>(pub(super) &'a Loader);

impl fmt::Display for Explained<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explained(loader) = self;
        write!(f, "{}", loader.plan)?;
        let sections = [
            ("shuffle", self.shuffle_text()),
            ("epochs", self.epochs_text()),
            ("retries", self.retries_text()),
            ("late reads", self.late_text()),
            ("bad samples", self.bad_samples_text()),
            (
                "patience",
                format!("a consumer that gets no batch for {:?} is told what is under way", loader.parts.patience),
            ),
            ("copies", self.copies_text()),
            ("threads", self.threads_text()),
        ];
        let finishing = self.finishing_text();
        for (label, text) in sections.into_iter().chain(finishing.map(|text| ("finishing", text))) {
            writeln!(f)?;
            write_wrapped(f, label, &text)?;
        }
        Ok(())
    }
}

impl Explained<'_> {
    fn shuffle_text(&self) -> String {
        let shuffle = self.0.parts.order.shuffle();
        match shuffle.window_samples() {
            0 => "none was asked for".into(),
            window => format!("window {window}, seed {}: both are part of a state", shuffle.seed_value()),
        }
    }

    fn epochs_text(&self) -> String {
        match self.0.parts.epochs_end {
            u64::MAX => "no end: the next epoch's first reads start before one ends".into(),
            end => format!("{end}: the stream ends then"),
        }
    }

    fn retries_text(&self) -> String {
        let policy = &self.0.parts.policy;
        let rate = match policy.rate_min {
            0 => String::new(),
            rate => format!(", or less than {} per second over that time,", ByteSize::bytes(rate)),
        };
        format!(
            "a store is asked again until nothing has arrived for {:?}; a request that brings no byte for {:?}{rate} is dropped, and the \
             rest is asked for elsewhere. Pauses grow from {:?} to {:?}",
            policy.patience, policy.idle, policy.pause_min, policy.pause_max
        )
    }

    fn late_text(&self) -> String {
        match self.0.parts.policy.hedge.share() {
            0.0 => "not raced by second requests".into(),
            share => format!("raced by second requests, for up to {:.1} % of the bytes", 100.0 * share),
        }
    }

    fn bad_samples_text(&self) -> String {
        let parts = &self.0.parts;
        let found = if parts.verify {
            "checked against the index's digests, where it has them"
        } else {
            "not checked: verify is off"
        };
        let excluded = match parts.excluded.len() {
            0 => String::new(),
            count => format!("; {count} named beforehand are left out"),
        };
        match parts.ledger.on_error() {
            OnError::Fail => format!("{found}; a bad one is an error{excluded}"),
            OnError::Skip { limit } => format!("{found}; bad ones are left out, at most {limit} in an epoch{excluded}"),
        }
    }

    fn finishing_text(&self) -> Option<String> {
        let step = |column: &ColumnSpec| {
            let (ColumnKind::Array { dtype, shape }, Some(finished)) = (&column.kind, &column.finished) else {
                return None;
            };
            let (from, to) = (dtype.name(), finished.dtype.name());
            Some(format!("'{}' travels as {from} {shape:?} and becomes {to} {:?}", column.name, finished.shape))
        };
        let steps: Vec<_> = self.0.parts.columns.iter().filter_map(step).collect();
        (!steps.is_empty()).then(|| format!("on the device, {}", steps.join("; ")))
    }

    fn copies_text(&self) -> String {
        let parts = &self.0.parts;
        let near = match parts.host_node {
            Some(node) => format!("out of host memory of NUMA node {node}, which is next to the device"),
            None => "out of host memory as it comes".into(),
        };
        // Whoever was writing it down when a child was forked will not let go of the lock there.
        if !parts.born.is_here() {
            return format!("{near}; of how well they go the parent knows more");
        }
        match &*lock(&parts.note) {
            Some(note) => format!("{near}; {note}"),
            None => near,
        }
    }

    fn threads_text(&self) -> String {
        let reactors = self.0.parts.reactors;
        format!("pump, copier, {reactors} for sockets (one for each 8 processors, at most 4), and those of file stores")
    }
}
