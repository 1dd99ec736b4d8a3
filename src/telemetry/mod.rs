//! Where time and bytes go, stage by stage, and what the limit was.
//!
//! *Takes* counts and spans from every stage. *Gives* [`Stats`] and a bounded [`Trace`]. *Owns* only numbers.
//! *Bounded*: counters are fixed, the trace keeps the newest spans. *Fails* never.

mod stats;
mod trace;

pub use stats::{Counter, Depth, Limit, Stage, StageStats, Stats, Telemetry};
pub use trace::{Lane, Span, Trace};
