//! The farfeed command: everything the library does, at a prompt.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong use.

mod bench;
mod demo;
mod doctor;
mod index;
mod inspect;
mod options;
mod plan;
mod rate;
mod serve;
mod timeline;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use farfeed::Kind;

#[derive(Parser)]
#[command(name = "farfeed", version, about = "Feed a GPU from storage 1,000 km away, as if it were in the next rack")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job: a dataset across an emulated link of 0, 15 and 30 ms, with a table and a picture of the timeline
    Demo(demo::Args),
    /// Stream a dataset with a simulated compute step, and print what it cost as one line of JSON
    Bench(bench::Args),
    /// Make the index of tar shards, at link speed
    Index(index::Args),
    /// Show shards, fields and a few samples
    Inspect(inspect::Args),
    /// Show what would be in flight and why, without reading any sample
    Plan(plan::Args),
    /// Serve a directory across an emulated link
    Serve(serve::Args),
    /// Say what this machine offers: io_uring, locked memory, huge pages, driver, copy rate
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("farfeed: {error}");
            ExitCode::from(if matches!(error.kind(), Kind::Config | Kind::Topology) { 2 } else { 1 })
        }
    }
}
