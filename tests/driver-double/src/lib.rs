//! A stand-in for `libcuda` with sixteen devices that share nothing: a test takes one for itself, breaks it, and looks at it.
//!
//! - Device memory is host memory that the host may not touch: its address allows no access. It is filled with 0xDB when
//!   allocated, and with 0xDD when freed under work that still uses it.
//! - A stream is a queue with a thread. A copy first fills its destination with 0xEE, then takes its time on a link that
//!   all copies of the device share, and only then reads its source: a page that is recycled too early shows as wrong bytes.
//!   Pageable memory is read before the call returns, as by the real one; in a batch as its attributes say.
//! - The legacy default stream waits for all blocking streams, and they for it.
//! - Kernels are looked for in PTX; what one does a *twin* does, a function that a test registers under the kernel's name.
//! - Calls are counted, by name.
//! - What must not happen (memory freed or unregistered under a copy, freed twice, a consumer that finds other bytes) is
//!   written down as a violation.
//!
//! What goes wrong can be told by the tests, or before the process begins by the environment variable `FARFEED_DOUBLE`, for
//! all devices, as pairs with commas between them: `version=12040`, `init=802` (what `cuInit` says), `rate=200000000`
//! (bytes a second), `device-memory=3` and `host-memory=1` (the allocation, or registration, that fails), `copy=5` (the copy
//! that fails, and with it everything after), `operation=100` (the call with which a device is lost) and `loss=719` (what it says then).

mod calls;
mod control;
mod device;
mod driver;
mod faults;
mod memory;
mod module;
mod stream;
mod twin;

pub use calls::Calls;
pub use control::{Double, DoubleDevice, Live};
pub use twin::Launch;
