//! A stand-in for `libcuda` with sixteen devices that share nothing: a test takes one for itself, breaks it, and looks at it.
//!
//! - Device memory is host memory, filled with 0xDB when allocated and with 0xDD when freed.
//! - A stream is a queue with a thread. A copy out of registered memory first fills its destination with 0xEE, then
//!   takes its time, and only then reads its source: a page that is recycled too early shows as wrong bytes.
//!   Pageable memory is read before the call returns, as the real one does.
//! - What must not happen (memory freed or unregistered under a copy, freed twice, a consumer that finds other bytes) is
//!   written down as a violation.
//!
//! Simplified: the legacy default stream is a stream like any other, and waits for none.

mod control;
mod device;
mod driver;

pub use control::{Double, DoubleDevice, Live};
