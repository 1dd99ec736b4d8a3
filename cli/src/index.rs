//! `farfeed index`: reads tar shards once and keeps what lies where.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use farfeed::dataset::{BlockCut, Dataset, Index, Skipped, shown};
use farfeed::fetch::RetryPolicy;
use farfeed::loader::index_location;
use farfeed::{Error, Kind, Loader, Result};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use crate::output::{self, counted};
use crate::progress::{self, Opening};
use crate::reach::Reach;

#[derive(clap::Args)]
#[command(after_help = "\
Every byte of the shards is read once. The index holds the place and a digest of
each field, about 16 bytes per sample and field; loaders look for it beside the
shards. It is written whole or not at all.

Examples:
  farfeed index data/train-{00..63}.tar
      writes data/train.ffindex
  farfeed index http://host/train-{00..63}.tar
      writes train.ffindex into the working directory, to be put at
      http://host/train.ffindex")]
pub(crate) struct Args {
    /// Paths or URLs of tar shards, with braces as in train-{0000..0255}.tar, or ending in / for all shards there
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Where to write the index; default: beside the shards, or the working directory if those are not files
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    reach: Reach,
    /// Print one line of JSON, and no bar
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    let target = Target::of(args);
    target.check()?;
    let bar = progress::index_bar(args.json);
    let shown_by = bar.clone();
    let opening = Opening::new(args.json);
    let heard = opening.heard();
    let policy = RetryPolicy::default();
    let builder = args.urls[1..].iter().fold(Loader::builder(&args.urls[0]), |builder, url| builder.and(url));
    let builder = args.reach.apply(builder).retry(policy).on_index_progress(move |so_far| {
        heard();
        progress::show_index(&shown_by, &so_far);
    });
    let made = opening.watch(policy.patience, || builder.make_index());
    bar.finish_and_clear();
    let made = made?;
    let skipped = skipped(&made);
    if made.shards().iter().all(|shard| shard.samples() == 0) {
        let found = skipped.to_string();
        let found = if found.is_empty() { "they are empty".to_owned() } else { format!("they hold {found}") };
        return Err(Error::new(
            Kind::NotFound,
            format!("no sample in {}: {found}", counted(made.shards().len() as u64, "shard")),
        )
        .advice("a sample is one or more files named KEY.FIELD"));
    }
    let encoded = made.encode();
    let dataset = Dataset::members(made, BlockCut::default())?;
    write(&target.path, &encoded)?;
    let seconds = began.elapsed().as_secs_f64();
    let report = Report::new(&target, encoded.len(), &dataset, skipped, seconds);
    if args.json { output::print_json(&report) } else { output::print(&report.text(&target)) }
}

/// Where the index goes, and where loaders will look for it.
struct Target {
    path: PathBuf,
    /// Where the shards are, if that is not where the index goes.
    looked_for_at: Option<String>,
}

impl Target {
    fn of(args: &Args) -> Self {
        let beside = index_location(&args.urls[0]);
        let local = match beside.split_once("://") {
            None => Some(beside.as_str()),
            Some(("file", path)) => Some(path),
            Some(_) => None,
        };
        match (&args.output, local) {
            (Some(path), Some(local)) if path == Path::new(local) => Target { path: path.clone(), looked_for_at: None },
            (Some(path), _) => Target { path: path.clone(), looked_for_at: Some(shown(&beside).into_owned()) },
            (None, Some(local)) => Target { path: local.into(), looked_for_at: None },
            (None, None) => {
                let shown = shown(&beside).into_owned();
                let name = shown.rsplit('/').next().unwrap_or(&shown).to_owned();
                Target { path: name.into(), looked_for_at: Some(shown) }
            }
        }
    }

    /// Refuses what cannot be written before all bytes are read, not after.
    fn check(&self) -> Result<()> {
        if self.path.is_dir() {
            let error = Error::new(Kind::Config, format!("{}: a directory", self.path.display()));
            return Err(error.advice("name the file to write with -o"));
        }
        new_file(&self.path).map(drop)
    }
}

/// A file without a name that others see, in the directory of `path`.
pub(crate) fn new_file(path: &Path) -> Result<tempfile::NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        let error = Error::new(Kind::NotFound, format!("{}: no directory {}", path.display(), directory.display()));
        return Err(error.advice("make it, or name another place with -o"));
    }
    // The user's umask decides who may read it, as with any other file.
    let everybody = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(".ffindex-").permissions(everybody).tempfile_in(directory).map_err(|error| {
        Error::new(Kind::Io, format!("{}: cannot be written", path.display()))
            .source(std::io::Error::from(error.kind()))
            .advice("name another place with -o")
    })
}

/// Writes the file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = new_file(path)?;
    let written = file.write_all(bytes).and_then(|()| file.as_file().sync_all());
    written
        .and_then(|()| file.persist(path).map(drop).map_err(|error| error.error))
        .map_err(|error| Error::new(Kind::Io, format!("{}: writing the index", path.display())).source(error))
}

fn skipped(index: &Index) -> SkippedMembers {
    index.shards().iter().fold(SkippedMembers::default(), |sum, shard| {
        let Skipped { directories, links, others, meta, unnamed } = shard.skipped;
        SkippedMembers {
            directories: sum.directories + directories,
            links: sum.links + links,
            others: sum.others + others,
            meta: sum.meta + meta,
            unnamed: sum.unnamed + unnamed,
        }
    })
}

/// Members that belong to no sample, over all shards.
#[derive(Clone, Copy, Default, Serialize)]
struct SkippedMembers {
    directories: u64,
    links: u64,
    others: u64,
    meta: u64,
    unnamed: u64,
}

impl std::fmt::Display for SkippedMembers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = [
            (self.directories, "directory", "directories"),
            (self.links, "link", "links"),
            (self.others, "device or the like", "devices and the like"),
            (self.meta, "__meta__ file", "__meta__ files"),
            (self.unnamed, "file without a key or an extension", "files without a key or an extension"),
        ];
        let there = kinds.iter().filter(|(count, ..)| *count > 0);
        let named =
            there.map(|(count, one, many)| format!("{} {}", HumanCount(*count), if *count == 1 { one } else { many }));
        f.write_str(&named.collect::<Vec<_>>().join(", "))
    }
}

#[derive(Serialize)]
struct Report {
    index: String,
    index_bytes: usize,
    shards: usize,
    bytes: u64,
    samples: u64,
    fields: Vec<FieldReport>,
    skipped: SkippedMembers,
    fingerprint: String,
    seconds: f64,
    mb_s: f64,
    looked_for_at: Option<String>,
}

#[derive(Serialize)]
struct FieldReport {
    name: String,
    /// Samples that have it.
    samples: u64,
}

impl Report {
    fn new(target: &Target, index_bytes: usize, dataset: &Dataset, skipped: SkippedMembers, seconds: f64) -> Self {
        let bytes = dataset.shards().iter().map(|shard| shard.size).sum();
        let fields = dataset.fields().iter().enumerate().map(|(number, field)| FieldReport {
            name: field.name.clone(),
            samples: dataset.samples() - dataset.lacking(number),
        });
        Report {
            index: target.path.display().to_string(),
            index_bytes,
            shards: dataset.shards().len(),
            bytes,
            samples: dataset.samples(),
            fields: fields.collect(),
            skipped,
            fingerprint: format!("{:016x}", dataset.fingerprint()),
            seconds: output::rounded(seconds),
            mb_s: output::rounded(bytes as f64 / 1e6 / seconds.max(1e-9)),
            looked_for_at: target.looked_for_at.clone(),
        }
    }

    fn text(&self, target: &Target) -> String {
        let name = |field: &FieldReport| match field.samples {
            all if all == self.samples => field.name.clone(),
            some => format!("{} (in {})", field.name, counted(some, "sample")),
        };
        let mut lines = vec![
            format!(
                "read      {}, {} at {:.1} MB/s",
                counted(self.shards as u64, "shard"),
                DecimalBytes(self.bytes),
                self.mb_s
            ),
            format!("found     {}", counted(self.samples, "sample")),
            format!("fields    {}", self.fields.iter().map(name).collect::<Vec<_>>().join(", ")),
        ];
        let skipped = self.skipped.to_string();
        if !skipped.is_empty() {
            lines.push(format!("skipped   {skipped}"));
        }
        lines.push(format!("wrote     {} ({})", self.index, DecimalBytes(self.index_bytes as u64)));
        if let Some(place) = &target.looked_for_at {
            lines.push(format!("next      put it at {place}, or name it with --index"));
        }
        lines.join("\n")
    }
}
