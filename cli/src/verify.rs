//! `farfeed verify`: holds every byte of tar shards against their index, and lists what is bad.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farfeed::fetch::RetryPolicy;
use farfeed::loader::{Quarantined, Scanned};
use farfeed::{Error, Kind, Loader, Quarantine, Result};
use indicatif::DecimalBytes;
use serde::Serialize;
use tempfile::NamedTempFile;

use crate::index::new_file;
use crate::output::{self, counted};
use crate::progress::{self, Opening};
use crate::reach::Reach;

/// Bad fields that are printed; the file has all of them.
const SHOWN_MAX: usize = 20;

#[derive(clap::Args)]
#[command(after_help = "\
Every byte of the shards is read once, in order, and each field is held against
its digest in the index; one that fails is read once more. Exit status 1 if
anything is bad. The list has a line of JSON for each bad field, and one for
each shard that is gone or of another size; loaders leave out what it names.

Examples:
  farfeed verify http://host/train-{00..63}.tar -o bad.jsonl
  farfeed bench http://host/train-{00..63}.tar --quarantine bad.jsonl")]
pub(crate) struct Args {
    /// Path or URL of tar shards, with braces as in train-{0000..0255}.tar, or ending in / for all shards there
    #[arg(value_name = "URL")]
    url: String,
    /// Index of the shards; default: beside them
    #[arg(long, value_name = "URL")]
    index: Option<String>,
    /// Write the list of what is bad there, also if nothing is
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Give up when the store has sent nothing for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u32,
    #[command(flatten)]
    reach: Reach,
    /// Print one line of JSON, and no bar
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    let mut list = List::create(args.output.as_deref())?;
    let policy = RetryPolicy { patience: Duration::from_secs(u64::from(args.patience)), ..RetryPolicy::default() };
    let mut builder = args.reach.apply(Loader::builder(&args.url)).retry(policy);
    if let Some(index) = &args.index {
        builder = builder.index(index);
    }
    let bar = progress::bar(
        args.json,
        "verifying {bar:20} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {msg}",
    );
    let opening = Opening::new(args.json);
    let heard = opening.heard();
    let show = |so_far: Scanned| {
        heard();
        bar.set_length(so_far.bytes_total);
        bar.set_position(so_far.bytes);
        bar.set_message(format!("{} of {} shards, {} bad", so_far.shards, so_far.shards_total, so_far.bad));
    };
    let scanned = opening.watch(policy.patience, || builder.scan(show, |entry| list.add(entry)));
    bar.finish_and_clear();
    let scanned = scanned?;
    list.finish()?;
    let report = Report::new(args, &scanned, &list, began.elapsed());
    if args.json {
        output::print_json(&report)?
    } else {
        output::print(&report.text(&list))?
    }
    report.verdict()
}

/// What is bad: the first of it to be shown, all of it in the file.
struct List {
    file: Option<(NamedTempFile, PathBuf)>,
    shown: Vec<Quarantined>,
    fields: u64,
}

impl List {
    /// The file appears under its name when all is in it.
    fn create(path: Option<&Path>) -> Result<Self> {
        let file = path.map(|path| Ok::<_, Error>((new_file(path)?, path.to_owned()))).transpose()?;
        Ok(List { file, shown: Vec::new(), fields: 0 })
    }

    fn add(&mut self, entry: Quarantined) -> Result<()> {
        self.fields += 1;
        if let Some((file, path)) = &mut self.file {
            let line = Quarantine::from_iter([entry.clone()]).to_json_lines();
            file.write_all(line.as_bytes()).map_err(|error| failed(path, error))?;
        }
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(entry);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let Some((file, path)) = self.file.take() else { return Ok(()) };
        file.persist(&path).map(drop).map_err(|error| failed(&path, error.error))
    }
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(Kind::Io, format!("{}: writing the list", path.display())).source(error)
}

#[derive(Serialize)]
struct Report<'a> {
    shards: usize,
    samples: u64,
    bytes: u64,
    seconds: f64,
    mb_s: f64,
    /// Samples.
    bad: u64,
    /// Lines of the list.
    entries: u64,
    /// The first of them.
    first: &'a [Quarantined],
    list: Option<String>,
}

impl<'a> Report<'a> {
    fn new(args: &Args, scanned: &Scanned, list: &'a List, took: Duration) -> Self {
        let seconds = took.as_secs_f64();
        Report {
            shards: scanned.shards,
            samples: scanned.samples,
            bytes: scanned.bytes,
            seconds: output::rounded(seconds),
            mb_s: output::rounded(scanned.bytes as f64 / 1e6 / seconds.max(1e-9)),
            bad: scanned.bad,
            entries: list.fields,
            first: &list.shown,
            list: args.output.as_ref().map(|path| path.display().to_string()),
        }
    }

    fn text(&self, list: &List) -> String {
        let shards = counted(self.shards as u64, "shard");
        let (samples, bytes) = (counted(self.samples, "sample"), DecimalBytes(self.bytes));
        let mut lines = vec![format!("read      {shards}, {samples}, {bytes} at {:.1} MB/s", self.mb_s)];
        lines.push(format!("bad       {}", if self.bad == 0 { "none".into() } else { counted(self.bad, "sample") }));
        lines.extend(list.shown.iter().map(|entry| format!("          {entry}")));
        if self.entries > list.shown.len() as u64 {
            lines.push(format!("          and {} more", self.entries - list.shown.len() as u64));
        }
        lines.extend(self.list.as_ref().map(|path| format!("wrote     {path} ({})", counted(self.entries, "line"))));
        lines.join("\n")
    }

    fn verdict(&self) -> Result<()> {
        if self.bad == 0 {
            return Ok(());
        }
        let advice = match &self.list {
            Some(path) => format!("restore the shards, or leave these samples out with --quarantine {path}"),
            None => "restore the shards; -o writes a list with which loaders leave these samples out".into(),
        };
        let what = format!("{} of {} are bad", self.bad, counted(self.samples, "sample"));
        Err(Error::new(Kind::Corrupt, what).advice(advice))
    }
}
