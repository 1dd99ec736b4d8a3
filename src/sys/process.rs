//! Which process something belongs to: a fork copies memory, but neither threads nor what a driver knows.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_is_told_apart() {
        Birthplace::here().check("it was made").unwrap();
        let error = Birthplace(std::process::id() ^ 1).check("it was made").unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("it was made in process") && error.next_step().is_some(), "{error}");
    }
}
