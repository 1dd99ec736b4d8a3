//! `farfeed inspect`: shards, fields and a few samples.

mod preview;

use std::fmt::Write;

use farfeed::dataset::{Dataset, FieldLayout, SampleId};
use farfeed::fetch::RetryPolicy;
use farfeed::loader::Peek;
use farfeed::{Error, Kind, Loader, Result};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

use self::preview::{Preview, preview};
use crate::options::parse_tokens;
use crate::output::{self, counted};
use crate::progress::Opening;
use crate::reach::Reach;

#[derive(clap::Args)]
#[command(after_help = "\
Example:
  farfeed inspect http://host/train-{0000..0255}.tar --samples 5")]
pub(crate) struct Args {
    /// Path or URL of the shards, with braces as in train-{0000..0255}.tar, or ending in / for all shards there
    url: String,
    /// How token files are cut: type and tokens per sample, as in uint16:2048
    #[arg(long)]
    tokens: Option<String>,
    /// Index of tar shards; default: beside them, made on the fly where there is none
    #[arg(long, value_name = "URL")]
    index: Option<String>,
    /// Samples to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    samples: u32,
    /// Number of the first sample to show, in the dataset's own order
    #[arg(long, value_name = "ID", default_value_t = 0)]
    from: u64,
    #[command(flatten)]
    reach: Reach,
    /// Print one line of JSON, with all shards
    #[arg(long)]
    json: bool,
}

/// Shards that are named without --json; the rest is counted.
const SHARDS_SHOWN: usize = 10;
/// Bytes of a value that are read for its preview.
const PREVIEW_BYTES: u64 = 4096;

pub(crate) fn run(args: &Args) -> Result<()> {
    let opening = Opening::new(args.json);
    let mut builder = args.reach.apply(Loader::builder(&args.url)).on_index_progress(opening.on_index());
    if let Some(tokens) = &args.tokens {
        builder = builder.tokens(parse_tokens(tokens)?);
    }
    if let Some(index) = &args.index {
        builder = builder.index(index);
    }
    let peek = opening.watch(RetryPolicy::default().patience, || builder.peek())?;
    let total = peek.dataset().samples();
    if args.from >= total {
        return Err(Error::new(Kind::Config, format!("no sample {}: there are {total}", args.from))
            .advice("samples count from 0"));
    }
    let report = Report::new(&peek, args)?;
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

#[derive(Serialize)]
struct Report {
    samples: u64,
    bytes: u64,
    fingerprint: String,
    blocks: Blocks,
    remainder_elements: u64,
    shards: Vec<ShardReport>,
    fields: Vec<FieldReport>,
    shown: Vec<SampleReport>,
}

#[derive(Serialize)]
struct Blocks {
    count: usize,
    bytes_max: u64,
    samples_max: u32,
}

#[derive(Clone, Serialize)]
struct ShardReport {
    url: String,
    bytes: u64,
    samples: u64,
}

#[derive(Serialize)]
struct FieldReport {
    name: String,
    bytes_min: u64,
    bytes_mean: f64,
    bytes_max: u64,
    dtype: Option<&'static str>,
    shape: Option<Vec<usize>>,
    /// Samples that lack it.
    lacking: u64,
}

#[derive(Serialize)]
struct SampleReport {
    id: SampleId,
    key: String,
    fields: Vec<ValueReport>,
}

#[derive(Serialize)]
struct ValueReport {
    name: String,
    bytes: u64,
    #[serde(flatten)]
    preview: Preview,
}

impl Report {
    fn new(peek: &Peek, args: &Args) -> Result<Self> {
        let dataset = peek.dataset();
        let fields = dataset.fields().iter().enumerate().map(|(number, layout)| field(dataset, number, layout));
        let blocks = dataset.blocks();
        Ok(Report {
            samples: dataset.samples(),
            bytes: dataset.shards().iter().map(|shard| shard.size).sum(),
            fingerprint: format!("{:016x}", dataset.fingerprint()),
            blocks: Blocks {
                count: blocks.len(),
                bytes_max: blocks.iter().map(|block| block.extent.len).max().unwrap_or(0),
                samples_max: blocks.iter().map(|block| block.samples).max().unwrap_or(0),
            },
            remainder_elements: dataset.remainder(),
            shards: shards(dataset),
            fields: fields.collect(),
            shown: samples(peek, args)?,
        })
    }

    fn text(&self) -> String {
        let mut text = format!(
            "{} in {}, {}; {} of at most {} and {}\nfingerprint {}",
            counted(self.samples, "sample"),
            counted(self.shards.len() as u64, "shard"),
            DecimalBytes(self.bytes),
            counted(self.blocks.count as u64, "block"),
            DecimalBytes(self.blocks.bytes_max),
            counted(u64::from(self.blocks.samples_max), "sample"),
            self.fingerprint,
        );
        if self.remainder_elements > 0 {
            let _ =
                write!(text, "\n{} elements at the ends of shards fill no sample", HumanCount(self.remainder_elements));
        }
        let _ = write!(text, "\n\n{}\n\n{}", self.shards_text(), self.fields_text());
        for sample in &self.shown {
            let _ = write!(text, "\n\nsample {}: {}\n{}", sample.id, sample.key, values_text(&sample.fields));
        }
        text
    }

    fn shards_text(&self) -> String {
        let mut rows = vec![["samples", "bytes", "shard"].map(String::from).to_vec()];
        // One more line would say no less than "1 more".
        let count = if self.shards.len() <= SHARDS_SHOWN + 1 { self.shards.len() } else { SHARDS_SHOWN };
        for ShardReport { url, bytes, samples } in &self.shards[..count] {
            rows.push(vec![HumanCount(*samples).to_string(), DecimalBytes(*bytes).to_string(), url.clone()]);
        }
        let (rest, mut text) = (&self.shards[count..], output::table(&rows, &[0, 1]));
        if !rest.is_empty() {
            let _ = write!(text, "\n… and {} more", HumanCount(rest.len() as u64));
        }
        text
    }

    fn fields_text(&self) -> String {
        let head = ["field", "min bytes", "mean", "max", "type", "lacking"].map(String::from).to_vec();
        let row = |field: &FieldReport| {
            let kind = match (field.dtype, &field.shape) {
                (Some(dtype), Some(shape)) => format!("{dtype} {shape:?}"),
                _ => "bytes".into(),
            };
            let lacking = if field.lacking == 0 { "-".into() } else { HumanCount(field.lacking).to_string() };
            vec![
                field.name.clone(),
                HumanCount(field.bytes_min).to_string(),
                HumanCount(field.bytes_mean.round() as u64).to_string(),
                HumanCount(field.bytes_max).to_string(),
                kind,
                lacking,
            ]
        };
        let rows: Vec<_> = std::iter::once(head).chain(self.fields.iter().map(row)).collect();
        output::table(&rows, &[1, 2, 3, 5])
    }
}

fn values_text(values: &[ValueReport]) -> String {
    let row = |value: &ValueReport| {
        vec![
            format!("  {}", value.name),
            format!("{} B", HumanCount(value.bytes)),
            value.preview.kind.clone(),
            value.preview.text.clone(),
        ]
    };
    output::table(&values.iter().map(row).collect::<Vec<_>>(), &[1])
}

fn shards(dataset: &Dataset) -> Vec<ShardReport> {
    let report =
        |shard: &farfeed::dataset::Shard| ShardReport { url: shard.url.clone(), bytes: shard.size, samples: 0 };
    let mut shards: Vec<ShardReport> = dataset.shards().iter().map(report).collect();
    for block in dataset.blocks() {
        if let Some(shard) = shards.get_mut(block.extent.shard as usize) {
            shard.samples += u64::from(block.samples);
        }
    }
    shards
}

fn field(dataset: &Dataset, number: usize, layout: &FieldLayout) -> FieldReport {
    let having = dataset.samples() - dataset.lacking(number);
    let bytes_mean = if layout.bytes_min == layout.bytes_max {
        layout.bytes_min as f64
    } else {
        let all = (0..dataset.samples()).filter_map(|sample| dataset.extent(sample, number));
        all.map(|extent| extent.len as f64).sum::<f64>() / having.max(1) as f64
    };
    FieldReport {
        name: layout.name.clone(),
        bytes_min: layout.bytes_min,
        bytes_mean: output::rounded(bytes_mean),
        bytes_max: layout.bytes_max,
        dtype: layout.fixed.as_ref().map(|(dtype, _)| dtype.name()),
        shape: layout.fixed.as_ref().map(|(_, shape)| shape.clone()),
        lacking: dataset.lacking(number),
    }
}

fn samples(peek: &Peek, args: &Args) -> Result<Vec<SampleReport>> {
    let dataset = peek.dataset();
    let ids = args.from..dataset.samples().min(args.from.saturating_add(u64::from(args.samples)));
    let mut shown = Vec::new();
    for id in ids {
        let wanted: Vec<_> = (0..dataset.fields().len()).map(|field| (id, field)).collect();
        let mut fields = Vec::new();
        for (layout, ((_, field), value)) in
            dataset.fields().iter().zip(wanted.iter().zip(peek.read(&wanted, PREVIEW_BYTES)?))
        {
            let (Some(extent), Some(value)) = (dataset.extent(id, *field), value) else { continue };
            let dtype = layout.fixed.as_ref().map(|(dtype, _)| *dtype);
            let preview = preview(&value, extent.len, dtype);
            fields.push(ValueReport { name: layout.name.clone(), bytes: extent.len, preview });
        }
        shown.push(SampleReport { id, key: dataset.key(id).into_owned(), fields });
    }
    Ok(shown)
}
