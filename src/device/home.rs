//! The way home of a slot: back to the engine that fills it, from whatever thread lets go of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Kind, Result};
use crate::sys::process::Birthplace;
use crate::sys::sync::{AtomicBool, Mutex};

/// Called from any thread when a slot has come back.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Where slots of one engine go when they are let go of.
pub(crate) struct Home<S> {
    /// Room for every slot, so that giving back never waits.
    returns: Sender<S>,
    wake: Wake,
    lost: AtomicBool,
    reason: Mutex<String>,
    pub(crate) born: Birthplace,
}

impl<S> Home<S> {
    /// A home for `slots` slots, and where they arrive.
    pub(crate) fn new(slots: usize, wake: Wake) -> (Arc<Home<S>>, Receiver<S>) {
        let (returns, arrivals) = bounded(slots);
        let home =
            Home { returns, wake, lost: AtomicBool::new(false), reason: Mutex::default(), born: Birthplace::here() };
        (Arc::new(home), arrivals)
    }

    /// Why a slot will not come back, if that has happened.
    pub(crate) fn loss(&self) -> Result<()> {
        if !self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(Error::new(Kind::Device, format!("a slot was lost when it was let go of: {reason}"))
            .advice("release batches on a stream of their own device, while that stream is alive"))
    }

    pub(crate) fn take_back(&self, slot: S) {
        // Refused only when the engine is gone: the slot is dropped here then, and frees its memory.
        drop(self.returns.try_send(slot));
        (self.wake)();
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "host memory is never lost"))]
    pub(crate) fn lose(&self, error: &Error) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
        self.lost.store(true, Ordering::Release);
        (self.wake)();
    }
}
