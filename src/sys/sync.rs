//! What threads share in the rooms whose states are model-checked: the standard library's. `tests/model` compiles the same sources with loom's
//! types under these names, which go through every order of steps that threads can take.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
