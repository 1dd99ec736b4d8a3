//! The farfeed command: everything the library does, at a prompt.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong use.

mod bench;
mod demo;
mod doctor;
mod index;
mod inspect;
mod options;
mod output;
mod plan;
mod probe;
mod progress;
mod rate;
mod reach;
mod serve;
mod sheet;
mod timeline;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use farfeed::Kind;

#[derive(Parser)]
#[command(
    name = "farfeed",
    version,
    max_term_width = 80,
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

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // As with `farfeed plan … | head -1`: who wanted the output has it.
        Err(error) if output::is_reader_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farfeed: {error}");
            ExitCode::from(if matches!(error.kind(), Kind::Config | Kind::Topology) { 2 } else { 1 })
        }
    }
}
