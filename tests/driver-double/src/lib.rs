//! A stand-in for `libcuda` with sixteen devices that share nothing: a test takes one for itself, breaks it, and looks at it.
//!
//! **What it does**
//! - Device memory is host memory that the host may not touch: its address allows no access. It is filled with 0xDB when
//!   allocated, and with 0xDD when freed under work that still uses it.
//! - A stream is a queue with a thread. A copy first fills its destination with 0xEE, then takes its time on a link that
//!   all copies of the device share, and only then reads its source: a page that is recycled too early shows as wrong bytes.
//!   Pageable memory is read before the call returns; in a batch as its attributes say.
//! - The legacy default stream waits for all blocking streams, and they for it. Each thread has its own default stream.
//! - Kernels are looked for in PTX; what one does a *twin* does, a function that a test registers under the kernel's name.
//! - In a process that was forked off, every call is refused, and counted.
//!
//! **What it finds**: `DoubleDevice::violations`, a line each. A process that ends with a report that nobody has read ends with
//! status [`UNREAD`], and prints it: no test passes because it did not ask.
//! - *Races*: uses of one byte that nothing orders, by vector clocks and whatever the timing. See `checker.rs` for what orders them.
//! - *Early writes*, by the guard: host memory that a copy reads is read-only until the host has observed that it is over. See
//!   `guard.rs`.
//! - Memory that is freed twice or still used, contexts that are used after their release (which destroys what is left in them), kernels without a twin, modules
//!   unloaded under their kernels, `DoubleDevice::consume` that finds other bytes than it was told to expect.
//! - *Calls*, counted by name: `DoubleDevice::calls`; what exists: `DoubleDevice::live`.
//!
//! **What goes wrong** can be told by the tests, or before the process begins by the environment variable `FARFEED_DOUBLE`, for
//! all devices, as pairs with commas between them: `version=12040`, `init=802` (what `cuInit` says), `ptx=218` (what is said of any
//! PTX), `rate=200000000` (bytes a second), `device-memory=3` and `host-memory=1` (the allocation, or registration, that fails), `copy=5` (the copy
//! that fails, and with it everything after), `operation=100` (the call with which a device is lost) and `loss=719` (what it
//! says then), `guard=die` or `guard=off`. And `devices=1` has fewer of them, `twins=measure` the twins in [`kernels`].
//!
//! **What it simplifies.** One link for copies in both directions and within the device. Kernels of two streams run at once, however many.
//! A batch that may read its sources at any time reads them in the stream's order. Streams take as much work as they are given: a real
//! one has its caller wait when it holds some thousand. Freeing memory, or ending its registration, has the host wait for all of the device's
//! work, and orders nothing: what a real driver may wait for silently is a race here. Nothing is captured into a graph, but calls can be
//! held against a capture that is said to be under way (`DoubleDevice::capture_elsewhere`). No managed memory, no pools, no peers.
//!
//! Beside it lies what other tests of a process need: `Counting` allocations, and a real fork (`in_a_child`).
//!
//! `Driver` makes the driver's calls for tests, on the double or on the machine's own driver: `on_gpu`.

mod allocations;
mod calls;
mod checker;
mod control;
mod device;
mod driver;
mod ending;
mod faults;
mod fork;
mod guard;
mod host;
pub mod kernels;
mod memory;
mod module;
mod raw;
mod stream;
mod twin;

pub use allocations::{Allocated, Counting};
pub use calls::Calls;
pub use control::{Double, DoubleDevice, Live, library};
pub use ending::UNREAD;
pub use fork::in_a_child;
pub use raw::{Code, Driver, HostMemory, Piece, SourceOrder, on_gpu};
pub use twin::Launch;
