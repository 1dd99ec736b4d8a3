//! farfeed
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod dataset;
pub mod device;
pub mod error;
pub mod memory;
pub mod store;
mod sys;
pub mod telemetry;

pub use error::{Error, Kind, Result};
#[cfg(feature = "bench")]
#[doc(hidden)]
pub use sys::bare;
