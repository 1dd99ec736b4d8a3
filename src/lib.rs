//! farfeed
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod dataset;
pub mod device;
#[cfg(feature = "emulate")]
#[cfg_attr(docsrs, doc(cfg(feature = "emulate")))]
pub mod emulate;
pub mod error;
pub mod fetch;
pub mod loader;
pub mod memory;
pub mod order;
pub mod schedule;
pub mod store;
mod sys;
pub mod telemetry;

pub use error::{Error, Kind, Result};
pub use loader::{Batch, ByteSize, Field, Loader, Tokens};
#[cfg(feature = "bench")]
#[doc(hidden)]
pub use sys::bare;
