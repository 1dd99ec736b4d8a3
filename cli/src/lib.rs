//! The farfeed command as a library, so that more than one program can offer it: the binary `farfeed`, and `python -m farfeed`.
//!
//! [`run`] is all of it. It writes to the process's standard output and standard error, and some of its commands listen for signals: it is
//! the whole of a program, not a part of one. What programs link is the crate `farfeed`.

mod bench;
mod command;
mod demo;
mod doctor;
mod index;
mod inspect;
mod options;
mod output;
mod plan;
mod probe;
mod program;
mod progress;
mod rate;
mod reach;
mod serve;
mod sheet;
mod timeline;
mod verify;

pub use command::run;
pub use program::Program;
