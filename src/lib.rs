//! Streams training data from distant storage into GPU memory, so that the distance disappears behind compute.
//!
//! ```text
//!  order ──▶ schedule ──▶ fetch ═══▶ pages ═══▶ copy ═══▶ device slot ═══▶ Batch
//!  which     which bytes,  requests    pinned     gather by   HBM, or host   the user's
//!  sample    in what order, in flight  memory     DMA on its  memory where   stream waits
//!  when      what budget   on the link            own stream  there's no GPU on an event
//!  └─ pure: no I/O, no clock ─┘            ▲ pages return when their copy's event has passed ▼
//! ```
//!
//! A buffer has one owner at any moment — pool, kernel, or copy stream — and it moves; it is never shared. Memory, slots,
//! connections and reads in flight are fixed when a [`Loader`] is built, and [`Loader::plan`] says what they are and why.
//! The same seed gives the same batches, whatever the distance, the world size and the interruptions.
//!
//! ```
//! use farfeed::dataset::Dtype;
//! use farfeed::order::Shuffle;
//! use farfeed::store::MemoryStore;
//! use farfeed::{ByteSize, Loader, Tokens};
//!
//! let store = MemoryStore::new(); // Without one: a path, or https://host/train-{0000..0255}.tar.
//! store.put("train.bin", (0..20_000u16).flat_map(u16::to_le_bytes).collect::<Vec<_>>());
//!
//! let loader = Loader::builder("memory:train.bin")
//!     .store(store)
//!     .tokens(Tokens::new(Dtype::U16, 100).with_next())
//!     .batch_size(8)
//!     .shuffle(Shuffle::window(64).seed(7))
//!     .host_memory(ByteSize::mib(16)) // a hard bound; the rest is derived
//!     .build()?;
//! println!("{}", loader.plan());
//!
//! let mut samples = Vec::new();
//! for batch in loader.epoch(0) {
//!     let batch = batch?;
//!     let tokens = batch.dense("tokens")?; // type, shape, pointer on the device
//!     assert_eq!(tokens.shape, [batch.len(), 101]);
//!     samples.extend_from_slice(batch.ids());
//! }
//! assert_eq!(samples.len(), 199); // each once; the last one lacks its next token
//! println!("{}", loader.stats()); // bound by: …
//! # samples.sort_unstable();
//! # assert!(samples.into_iter().eq(0..199));
//! # Ok::<(), farfeed::Error>(())
//! ```
//!
//! # Rooms
//!
//! | | |
//! |---|---|
//! | [`loader`] | [`Loader`], its builder, epochs, batches: start here |
//! | [`dataset`] | what samples exist and where their bytes lie; the index |
//! | [`order`] | which sample comes when: shuffle, lanes, ranks, resume state |
//! | [`schedule`] | which bytes, in what order, against what budget; the plan |
//! | [`store`] | a byte range of an object lands in pages: files, HTTP, HTTPS, memory, your own |
//! | [`fetch`] | reads in flight: how many, deadlines, retries |
//! | [`memory`] | one slab of pinned pages, whose state is their type |
//! | [`device`] | slots where batches are assembled: host memory or CUDA |
//! | [`telemetry`] | where time and bytes went, and what the limit was |
//! | [`probe`] | what a link does: round trips, goodput against connections, a verdict |
//! | `emulate` | storage across a long link, in this process: for tests and demonstrations |
//! | [`error`] | one error: kind, context, what to do |
//!
//! # Features
//!
//! - `cuda` (default): batches on NVIDIA GPUs. Needs no toolkit: the driver is loaded when it is first asked for.
//! - `https` (default): `https://`, by rustls; cryptography is the process's default provider's, or ring's.
//! - `half`: float16 and bfloat16 columns as the types of the crate `half`.
//! - `emulate`: the emulated link, for tests of one's own. Pulls in no further crates.
//!
//! Linux only. The command is in the package `farfeed-cli`.
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
pub mod probe;
pub mod schedule;
pub mod store;
mod sys;
pub mod telemetry;

/// The CUDA bindings whose streams and kernels batches are handed to: its types are part of this interface, so use this version of it.
#[cfg(feature = "cuda")]
#[cfg_attr(docsrs, doc(cfg(feature = "cuda")))]
#[doc(no_inline)]
pub use cudarc;
pub use error::{Error, Kind, Result};
pub use loader::{Batch, ByteSize, Field, Loader, OnError, Quarantine, Tokens};
#[cfg(feature = "bench")]
#[doc(hidden)]
pub use sys::bare;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(all(doctest, feature = "cuda"))]
#[doc = include_str!("../docs/kernels.md")]
struct Kernels;
