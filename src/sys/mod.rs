//! The only room that may say `unsafe`: memory maps, io_uring, socket options, CUDA driver calls.
//!
//! *Takes* sizes, descriptors and owned buffers; *gives* safe types over them. *Owns* mappings, rings and
//! registrations. *Bounded* by what the caller asks for, once. *Fails* with the errno's meaning and what to do.
#![allow(unsafe_code, reason = "this is the room for it; every block carries its argument")]

#[cfg(feature = "bench")]
pub mod bare;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod map;
pub(crate) mod numa;
pub(crate) mod plain;
pub(crate) mod process;
pub(crate) mod ring;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod sync;
#[cfg(feature = "emulate")]
pub(crate) mod timer;
