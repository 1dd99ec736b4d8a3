//! Pinned host memory: one slab, made once, cut into pages that move between owners.
//!
//! *Takes* a size in bytes. *Gives* [`Page`]s. *Owns* the slab. *Bounded* hard: a page that is not free is not
//! given, and the caller waits. *Fails* when the slab cannot be mapped.
//!
//! A page's life is in its type: free (inside the [`Slab`]) → [`Page<Filling>`], written by a store or by the
//! kernel on its behalf → [`Landed`], read-only, its samples waiting for their batches → [`CopyHold`], read by a
//! device → free again. Whatever is dropped, the page comes back; while the kernel may still write to it, the
//! ring that started the read owns it, and nobody else can drop it.

mod free;
mod landing;
mod page;
mod slab;

pub use landing::{CopyHold, Landed, Landing};
pub use page::{Filling, Page, Ready};
pub use slab::{Slab, SlabUse};
