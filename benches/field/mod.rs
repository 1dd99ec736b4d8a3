//! The field: what else could read the same bytes, and what both benchmarks need to compare it.
//!
//! Each client is used as its documentation recommends for large ranges, keeps its connections, and ends with the bytes in the same kind
//! of landing as ours. What it copies to get them there is a part of what it costs: that is what a loader on top of it would do.

pub(crate) mod chart;
pub(crate) mod clients;
pub(crate) mod machine;
pub(crate) mod measure;
pub(crate) mod options;
pub(crate) mod process;
