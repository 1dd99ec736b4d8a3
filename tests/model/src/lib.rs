//! The sources of the library's pages and slots, compiled again with loom's locks and counters in the place of the standard
//! library's, and what two and three threads may do with them, in every order of steps.
//!
//! Each function here runs a model to its end, and panics in the first order in which something is lost, counted wrongly, or waited for
//! for ever. `tests/states.rs` calls them. What loom does not see are the counts of `Arc` and crossbeam's channel: each of their
//! operations is one step here. A wait with a deadline never times out, so that a wake-up that is lost is a deadlock, and found.

// The unit tests in these sources are the library's; loom's types are nothing outside of a model.
#![cfg(not(test))]

#[allow(dead_code, missing_docs, reason = "the library's source, of which this is a part")]
#[path = "../../../src/error.rs"]
pub mod error;

#[allow(
    dead_code,
    unfulfilled_lint_expectations,
    unreachable_pub,
    unused_imports,
    reason = "the library's source, of which this is a part"
)]
#[path = "../../../src/memory/mod.rs"]
mod memory;

#[allow(dead_code, unsafe_code, reason = "the library's source, of which this is a part")]
mod sys;

#[allow(dead_code, unreachable_pub, reason = "the library's source, of which this is a part")]
mod device;

pub mod pages;
pub mod slots;

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};

/// What a thread sleeps on: as the library's threads do on a channel of one place, a wake-up before the sleep is not lost.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<(Mutex<bool>, Condvar)>);

impl Bell {
    pub(crate) fn ring(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_one();
    }

    pub(crate) fn wait(&self) {
        let mut rung = lock(&self.0.0);
        while !*rung {
            rung = self.0.1.wait(rung).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *rung = false;
    }
}

fn lock(rung: &Mutex<bool>) -> loom::sync::MutexGuard<'_, bool> {
    rung.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
