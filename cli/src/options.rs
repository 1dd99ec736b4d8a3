//! Options that several commands share: what to stream, and how.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use farfeed::device::Device;
use farfeed::fetch::RetryPolicy;
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Error, Field, Kind, Loader, OnError, Quarantine, Result, Tokens};

use crate::progress::Opening;
use crate::reach::Reach;

/// What to stream, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Stream {
    /// Path or URL of the shards: .tar (WebDataset), .npy, or .bin (tokens); with braces as in train-{0000..0255}.tar, or
    /// ending in / for all shards there
    pub(crate) url: String,
    /// Fields, as in 'jpg,cls:int': a name, and what to make of it: bytes (default), int, float, json, or type and shape
    /// as in float32[3,224,224]; default: all fields
    #[arg(long, value_name = "FIELDS", help_heading = "Dataset")]
    pub(crate) fields: Vec<String>,
    /// How token files are cut: type and tokens per sample, as in uint16:2048; uint16:2048+1 adds the next token
    #[arg(long, help_heading = "Dataset")]
    pub(crate) tokens: Option<String>,
    /// Index of tar shards; default: beside them, made on the fly where there is none
    #[arg(long, value_name = "URL", help_heading = "Dataset")]
    pub(crate) index: Option<String>,
    /// Do not check fields against the digests of the index
    #[arg(long, help_heading = "Dataset")]
    pub(crate) no_verify: bool,
    /// What to do about a bad sample: fail, skip (leave out up to 1000 in an epoch), or skip:N
    #[arg(long, value_name = "WHAT", default_value = "fail", value_parser = parse_on_error, help_heading = "Dataset")]
    pub(crate) on_error: OnError,
    /// List of samples to leave out from the start, as `farfeed verify` writes it
    #[arg(long, value_name = "FILE", help_heading = "Dataset")]
    pub(crate) quarantine: Option<PathBuf>,
    /// Samples per batch and rank
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Order")]
    pub(crate) batch_size: u32,
    /// Leave out samples that do not fill a last global batch
    #[arg(long, help_heading = "Order")]
    pub(crate) drop_last: bool,
    /// Seed of the shuffle
    #[arg(long, default_value_t = 0, help_heading = "Order")]
    pub(crate) seed: u64,
    /// Reach of the shuffle in samples, over all ranks; 0 for the dataset's own order
    #[arg(long, value_name = "SAMPLES", default_value_t = 0, help_heading = "Order")]
    pub(crate) window: u64,
    /// Lanes of the global order, which world sizes must divide; default: derived
    #[arg(long, value_name = "N", help_heading = "Order")]
    pub(crate) lanes: Option<u32>,
    /// This process's rank, from 0
    #[arg(long, default_value_t = 0, help_heading = "Order")]
    pub(crate) rank: u32,
    /// Number of ranks
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Order")]
    pub(crate) world_size: u32,
    /// Where batches go: host, cuda, cuda:1, or best (a GPU if there is one)
    #[arg(long, default_value = "host", help_heading = "Limits")]
    pub(crate) device: String,
    /// Page-locked host memory, as in 4GiB; default: a quarter of this machine's, at most 4 GiB
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) host_memory: Option<ByteSize>,
    /// Most reads in flight; default: 256, at the cold start 192
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub(crate) requests: Option<usize>,
    /// Bytes in flight, as in 64MiB; default: it follows the link
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) in_flight: Option<ByteSize>,
    /// Most bytes asked for per second, as in 100MB; default: no limit
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) max_rate: Option<ByteSize>,
    /// Give up when the store has sent nothing for this long
    #[arg(long, value_name = "SECONDS", default_value_t = 120, help_heading = "Limits")]
    pub(crate) patience: u32,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

impl Stream {
    /// A loader with all of this said, and what `tune` adds. `quiet` where no human looks on.
    pub(crate) fn open(&self, quiet: bool, tune: impl FnOnce(LoaderBuilder) -> LoaderBuilder) -> Result<Loader> {
        let opening = Opening::new(quiet);
        let builder = tune(self.builder()?).on_index_progress(opening.on_index()).on_build_step(opening.on_step());
        opening.watch(self.patience(), || builder.build())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(u64::from(self.patience))
    }

    /// A builder with all of this said.
    pub(crate) fn builder(&self) -> Result<LoaderBuilder> {
        let mut builder = self
            .reach
            .apply(Loader::builder(&self.url))
            .batch_size(self.batch_size)
            .drop_last(self.drop_last)
            .rank(self.rank, self.world_size)
            .device(Device::from_str(&self.device)?)
            .verify(!self.no_verify)
            .on_error(self.on_error)
            .retry(RetryPolicy { patience: self.patience(), ..RetryPolicy::default() });
        if self.window > 0 {
            builder = builder.shuffle(Shuffle::window(self.window).seed(self.seed));
        }
        for (name, field) in parse_fields(&self.fields)? {
            builder = builder.field(name, field);
        }
        if let Some(tokens) = &self.tokens {
            builder = builder.tokens(parse_tokens(tokens)?);
        }
        if let Some(list) = &self.quarantine {
            builder = builder.quarantine(Quarantine::read(list)?);
        }
        if let Some(index) = &self.index {
            builder = builder.index(index);
        }
        if let Some(lanes) = self.lanes {
            builder = builder.lanes(lanes);
        }
        if let Some(size) = self.host_memory {
            builder = builder.host_memory(size);
        }
        if let Some(requests) = self.requests {
            builder = builder.requests(requests);
        }
        if let Some(size) = self.in_flight {
            builder = builder.in_flight(size);
        }
        if let Some(size) = self.max_rate {
            builder = builder.max_rate(size);
        }
        Ok(builder)
    }
}

/// Names and kinds, separated by commas, or by semicolons, that stand outside of brackets.
fn parse_fields(texts: &[String]) -> Result<Vec<(String, Field)>> {
    let mut fields = Vec::new();
    for text in texts {
        let mut within = false;
        let parts = text.split(|letter| {
            within = (within || letter == '[') && letter != ']';
            matches!(letter, ',' | ';') && !within
        });
        for part in parts {
            let (name, kind) = part.split_once(':').unwrap_or((part, "bytes"));
            if name.trim().is_empty() {
                return Err(Error::new(Kind::Config, format!("a field without a name in '{text}'"))
                    .advice("write names separated by commas, as in 'jpg,cls:int'"));
            }
            fields.push((name.trim().to_owned(), field_kind(kind.trim())?));
        }
    }
    Ok(fields)
}

fn field_kind(text: &str) -> Result<Field> {
    match text {
        "bytes" => return Ok(Field::bytes()),
        "int" => return Ok(Field::int()),
        "float" => return Ok(Field::float()),
        "json" => return Ok(Field::json()),
        _ => {}
    }
    let wrong = || {
        Error::new(Kind::Config, format!("'{text}' is no kind of field"))
            .advice("write bytes, int, float, json, or a type and shape as in float32[3,224,224]")
    };
    if let Ok(dtype) = text.parse() {
        return Ok(Field::array(dtype, &[]));
    }
    let (name, shape) = text.strip_suffix(']').and_then(|text| text.split_once('[')).ok_or_else(wrong)?;
    let shape =
        shape.split(',').map(|extent| extent.trim().parse().map_err(|_| wrong())).collect::<Result<Vec<usize>>>()?;
    Ok(Field::array(name.parse().map_err(|_| wrong())?, &shape))
}

/// What to do about a bad sample, as `--on-error` says it.
fn parse_on_error(text: &str) -> Result<OnError, String> {
    match text {
        "fail" => Ok(OnError::Fail),
        "skip" => Ok(OnError::skip()),
        _ => match text.strip_prefix("skip:").and_then(|limit| limit.parse().ok()) {
            Some(limit) => Ok(OnError::Skip { limit }),
            None => Err("write fail, skip, or skip:100".into()),
        },
    }
}

/// How to cut token files, as `--tokens` says it.
pub(crate) fn parse_tokens(text: &str) -> Result<Tokens> {
    let parse = || {
        let (name, count) = text.split_once(':')?;
        let (count, next) = match count.strip_suffix("+1") {
            Some(count) => (count, true),
            None => (count, false),
        };
        let tokens = Tokens::new(name.parse().ok()?, count.parse().ok()?);
        Some(if next { tokens.with_next() } else { tokens })
    };
    parse().ok_or_else(|| {
        Error::new(Kind::Config, format!("'{text}' does not say how to cut tokens"))
            .advice("write uint16:2048 or uint16:2048+1")
    })
}

#[cfg(test)]
mod tests {
    use farfeed::dataset::Dtype;

    use super::*;

    #[test]
    fn fields_are_read_as_they_are_written() {
        let parse = |text: &str| parse_fields(&[text.to_owned()]);
        let expected = [
            ("jpg".to_owned(), Field::bytes()),
            ("cls".to_owned(), Field::int()),
            ("x.npy".to_owned(), Field::array(Dtype::F32, &[3, 2])),
            ("meta".to_owned(), Field::json()),
        ];
        assert_eq!(parse("jpg,cls:int, x.npy:float32[3, 2];meta:json").unwrap(), expected);
        assert_eq!(parse("n:int64").unwrap(), [("n".to_owned(), Field::array(Dtype::I64, &[]))]);
        for wrong in
            ["", "jpg,,cls", ":int", "cls:integer", "x:float32[3", "x:float31[3]", "x:uint8[]", "x:float32[-1]"]
        {
            let error = parse(wrong).unwrap_err();
            assert!(error.kind() == Kind::Config && error.next_step().is_some(), "{wrong}");
        }
    }

    #[test]
    fn what_to_do_about_bad_samples_is_read_as_it_is_written() {
        assert_eq!(parse_on_error("fail"), Ok(OnError::Fail));
        assert_eq!(
            (parse_on_error("skip"), parse_on_error("skip:7")),
            (Ok(OnError::skip()), Ok(OnError::Skip { limit: 7 }))
        );
        for wrong in ["", "ignore", "skip:", "skip:-1", "skip 5"] {
            assert!(parse_on_error(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_are_read_as_they_are_written() {
        assert_eq!(parse_tokens("uint16:2048").unwrap(), Tokens::new(Dtype::U16, 2048));
        assert_eq!(parse_tokens("int32:8+1").unwrap(), Tokens::new(Dtype::I32, 8).with_next());
        for wrong in ["uint16", "uint16:", "u16:8", "uint16:8+2", "uint16:-8"] {
            assert_eq!(parse_tokens(wrong).unwrap_err().kind(), Kind::Config, "{wrong}");
        }
    }
}
