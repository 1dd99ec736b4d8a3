//! Loom's, in the place of the standard library's.

pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize};
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
