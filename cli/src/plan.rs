//! `farfeed plan`: what a loader would do, and why.

use farfeed::Result;

use crate::options::Stream;
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Memory is set aside and the device opened, so that what is printed is known to
fit. Tar shards without an index are read once to make it.

Example:
  farfeed plan http://host/train-{0000..0255}.tar --batch-size 256 \\
      --window 16384 --host-memory 2GiB")]
pub(crate) struct Args {
    #[command(flatten)]
    stream: Stream,
    /// Print one line of JSON, sizes in bytes
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let loader = args.stream.open(args.json, |builder| builder)?;
    if args.json { output::print_json(loader.plan()) } else { output::print(&loader.plan().to_string()) }
}
