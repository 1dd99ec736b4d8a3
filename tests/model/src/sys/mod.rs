//! The part of the library's `sys` that pages and slots are made with.

#[path = "../../../../src/sys/map.rs"]
pub(crate) mod map;
#[path = "../../../../src/sys/numa.rs"]
pub(crate) mod numa;
#[path = "../../../../src/sys/process.rs"]
pub(crate) mod process;
pub(crate) mod sync;
