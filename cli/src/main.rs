//! The farfeed command: everything the library does, at a prompt.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong use.

use std::process::ExitCode;

use farfeed_cli::Program;

fn main() -> ExitCode {
    ExitCode::from(farfeed_cli::run(std::env::args_os().skip(1), &Program::current()))
}
