//! Which process something belongs to: a fork copies memory, but neither threads nor what a driver knows.

#[cfg(feature = "cuda")]
use std::sync::OnceLock;
#[cfg(feature = "cuda")]
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Kind, Result};

/// The process that something was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Birthplace(u32);

impl Birthplace {
    /// This process.
    pub(crate) fn here() -> Birthplace {
        Birthplace(std::process::id())
    }

    /// Whether this is it, and not a child of it.
    pub(crate) fn is_here(self) -> bool {
        self.0 == std::process::id()
    }

    /// `Ok` in that process.
    ///
    /// # Errors
    /// `Unsupported` in a child of it, beginning with `what` was done there.
    pub(crate) fn check(self, what: &str) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        let context =
            format!("{what} in process {}, before this one ({}) was forked from it", self.0, std::process::id());
        Err(Error::new(Kind::Unsupported, context)
            .advice("make it in the process that uses it: start workers with spawn or forkserver, or build loaders in the child"))
    }
}

/// A value that is made once for the whole program, when somebody first asks for it.
///
/// Unlike with a bare `OnceLock`, a child that is forked while another thread makes it does not wait for that thread, which it does not have.
#[cfg(feature = "cuda")]
pub(crate) struct Once<T> {
    made: OnceLock<T>,
    /// The process that has begun to make it; 0 before.
    maker: AtomicU32,
}

#[cfg(feature = "cuda")]
impl<T> Once<T> {
    pub(crate) const fn new() -> Once<T> {
        Once { made: OnceLock::new(), maker: AtomicU32::new(0) }
    }

    /// The value; it is made now if nobody has yet.
    ///
    /// # Errors
    /// `Unsupported` in a child that was forked while it was made, beginning with `what` was done then.
    pub(crate) fn get_or_make(&self, what: &str, make: impl FnOnce() -> T) -> Result<&T> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let here = std::process::id();
        let maker = self.maker.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed).err();
        Birthplace(maker.unwrap_or(here)).check(what)?;
        Ok(self.made.get_or_init(make))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "cuda")]
    use std::{sync::mpsc, time::Duration};

    use super::*;

    #[cfg(feature = "cuda")]
    #[test]
    fn who_was_forked_in_the_middle_does_not_wait_for_the_end() {
        let once = &Once::new();
        let ask = |once: &Once<i32>| once.get_or_make("it was being made", || 2).map_err(|error| error.kind()).copied();
        let ask_in_a_child = || {
            let answer = farfeed_driver_double::in_a_child(Duration::from_secs(20), || format!("{:?}", ask(once)));
            answer.unwrap()
        };
        let ((begun, beginning), (end, ending)) = (mpsc::channel(), mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let make = || {
                    begun.send(()).unwrap();
                    ending.recv().unwrap()
                };
                once.get_or_make("it was being made", make).map(drop).unwrap();
            });
            beginning.recv().unwrap();
            assert_eq!(ask_in_a_child(), "Err(Unsupported)");
            end.send(1).unwrap();
        });
        assert_eq!((ask(once), ask_in_a_child().as_str()), (Ok(1), "Ok(1)"));
    }

    #[test]
    fn another_process_is_told_apart() {
        Birthplace::here().check("it was made").unwrap();
        let error = Birthplace(std::process::id() ^ 1).check("it was made").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("it was made in process") && error.next_step().is_some(), "{error}");
    }
}
