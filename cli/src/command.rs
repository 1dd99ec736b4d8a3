//! Which command is meant, and what its end means for the process.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use farfeed::{Kind, Result};

use crate::program::Program;
use crate::{bench, demo, doctor, index, inspect, output, plan, probe, serve, verify};

/// Exit codes, as of the process.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const WRONG_USE: u8 = 2;

#[derive(Parser)]
#[command(
    name = "farfeed",
    version,
    max_term_width = 80,
    no_binary_name = true,
    about = "Feed a GPU from storage 1,000 km away, as if it were in the next rack"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job: a dataset across an emulated link of 0, 15 and 30 ms, with a table and a picture of the timeline
    Demo(demo::Args),
    /// Stream a dataset past a simulated step, and say what it cost
    Bench(bench::Args),
    /// Make the index of tar shards, at the speed of the link
    Index(index::Args),
    /// Show shards, fields and a few samples
    Inspect(inspect::Args),
    /// Show what would be in flight and why, without reading samples
    Plan(plan::Args),
    /// Measure the link: round trips, goodput against connections, the knee; and say whether it is enough
    Probe(probe::Args),
    /// Serve a directory across an emulated link
    Serve(serve::Args),
    /// Hold every byte of tar shards against their index, and list what is bad
    Verify(verify::Args),
    /// Say what this machine offers, and what to change
    Doctor(doctor::Args),
}

/// Does what `arguments` say, those behind the program's name, and gives the exit code: 0 done, 1 failed, 2 wrong use.
///
/// Results go to standard output, all else to standard error. Blocks until done; `serve` until it is told to end. While `demo` and
/// `serve` run they listen for signals of the process that ask it to end; elsewhere those have the effect that they had.
pub fn run(arguments: impl IntoIterator<Item = OsString>, program: &Program) -> u8 {
    let parsed = Cli::command().bin_name(program.name()).try_get_matches_from(arguments);
    let command = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli.command,
        Err(told) => {
            // Help and version, too. Who does not read it has nothing to be told.
            let _ = told.print();
            return if told.use_stderr() { WRONG_USE } else { DONE };
        }
    };
    match command.run(program) {
        Ok(()) => DONE,
        // As with `farfeed plan … | head -1`: who wanted the output has it.
        Err(error) if output::is_reader_gone(&error) => DONE,
        Err(error) => {
            eprintln!("farfeed: {error}");
            if matches!(error.kind(), Kind::Config | Kind::Topology) { WRONG_USE } else { FAILED }
        }
    }
}

impl Command {
    fn run(&self, program: &Program) -> Result<()> {
        match self {
            Command::Demo(args) => demo::run(args, program),
            Command::Bench(args) => bench::run(args),
            Command::Index(args) => index::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Plan(args) => plan::run(args),
            Command::Probe(args) => probe::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Doctor(args) => doctor::run(args),
        }
    }
}
