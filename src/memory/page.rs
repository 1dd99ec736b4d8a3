//! A page and its states.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::slab::SlabInner;
use crate::sys::map::Chunk;

/// State of a page that is being written to.
#[derive(Debug)]
pub enum Filling {}

/// State of a page whose bytes have landed; nobody writes to it again before it was free.
#[derive(Debug)]
pub enum Ready {}

/// What the type system needs to know of a state.
pub trait State: sealed::Sealed {}
impl State for Filling {}
impl State for Ready {}

mod sealed {
    pub trait Sealed {
        const READY: bool;
    }
    impl Sealed for super::Filling {
        const READY: bool = false;
    }
    impl Sealed for super::Ready {
        const READY: bool = true;
    }
}

/// A page of the slab, owned; dropping it frees it.
pub struct Page<S: State> {
    /// `None` only between taking the chunk out and forgetting the page.
    chunk: Option<Chunk>,
    home: Arc<SlabInner>,
    state: PhantomData<S>,
}

impl Page<Filling> {
    pub(super) fn new(chunk: Chunk, home: Arc<SlabInner>) -> Self {
        Page { chunk: Some(chunk), home, state: PhantomData }
    }

    /// The bytes have landed: from now on the page is read only.
    pub fn ready(mut self) -> Page<Ready> {
        self.home.ready.fetch_add(1, Ordering::Relaxed);
        Page { chunk: self.chunk.take(), home: Arc::clone(&self.home), state: PhantomData }
    }
}

impl Page<Ready> {
    pub(super) fn begin_copy(&self) {
        self.home.copying.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_copy(&self) {
        self.home.copying.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: State> Deref for Page<S> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.chunk.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Page<Filling> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.chunk.as_deref_mut().unwrap_or_default()
    }
}

impl<S: State> Drop for Page<S> {
    fn drop(&mut self) {
        if let Some(chunk) = self.chunk.take() {
            if S::READY {
                self.home.ready.fetch_sub(1, Ordering::Relaxed);
            }
            self.home.put_back(chunk);
        }
    }
}

impl<S: State> fmt::Debug for Page<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("bytes", &self.len()).field("ready", &S::READY).finish()
    }
}
