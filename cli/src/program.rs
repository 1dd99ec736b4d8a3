//! The program that offers the command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// How the command is started: for `demo`, which starts a server beside itself, and for what help says.
#[derive(Clone, Debug)]
pub struct Program {
    executable: PathBuf,
    leading: Vec<OsString>,
    name: String,
}

impl Program {
    /// The running executable, whose arguments are the command's.
    pub fn current() -> Self {
        // Where the system does not say which one that is, it is found as it was.
        let invoked = || std::env::args_os().next().map_or_else(|| "farfeed".into(), PathBuf::from);
        let executable = std::env::current_exe().unwrap_or_else(|_| invoked());
        Program::new(executable, [] as [OsString; 0], "farfeed")
    }

    /// An executable that takes the command's arguments behind `leading`, and how people write that: an interpreter,
    /// `["-m", "farfeed"]` and `python -m farfeed`.
    pub fn new(
        executable: impl Into<PathBuf>,
        leading: impl IntoIterator<Item = impl Into<OsString>>,
        name: impl Into<String>,
    ) -> Self {
        let leading = leading.into_iter().map(Into::into).collect();
        Program { executable: executable.into(), leading, name: name.into() }
    }

    /// As people write it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// To start it once more, before its arguments are told.
    pub(crate) fn again(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.args(&self.leading);
        command
    }
}
