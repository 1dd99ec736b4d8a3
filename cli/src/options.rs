//! Options that several commands share: what to stream, and how.

use std::str::FromStr;

use clap::Args;
use farfeed::dataset::Dtype;
use farfeed::device::Device;
use farfeed::loader::LoaderBuilder;
use farfeed::order::Shuffle;
use farfeed::{ByteSize, Error, Field, Kind, Loader, Result, Tokens};

/// What to stream, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Stream {
    /// Path or URL of the shards, with braces (train-{0000..0255}.tar), or ending in / for all there
    pub(crate) url: String,
    /// Fields, as name or name:kind with kind bytes, int, float, json, or a type and shape as in float32[3,224,224]; default: all as they are
    #[arg(long, value_delimiter = ';')]
    pub(crate) fields: Vec<String>,
    /// How token files are cut: type and tokens per sample, as in uint16:2048, with +1 for the next token too (uint16:2048+1)
    #[arg(long)]
    pub(crate) tokens: Option<String>,
    /// Index of tar shards; default: beside them, made on the fly where there is none
    #[arg(long)]
    pub(crate) index: Option<String>,
    /// Samples per batch and rank
    #[arg(long, default_value_t = 64)]
    pub(crate) batch_size: u32,
    /// Leave out samples that do not fill a last global batch
    #[arg(long)]
    pub(crate) drop_last: bool,
    /// Seed of the shuffle
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Reach of the shuffle in samples, over all ranks; 0 for the dataset's own order
    #[arg(long, default_value_t = 0)]
    pub(crate) window: u64,
    /// Lanes of the global order; default: derived
    #[arg(long)]
    pub(crate) lanes: Option<u32>,
    /// Page-locked host memory, as in 4GiB; default: a quarter of this machine's, at most 4 GiB
    #[arg(long)]
    pub(crate) host_memory: Option<ByteSize>,
    /// host, cuda, cuda:1, or best
    #[arg(long, default_value = "host")]
    pub(crate) device: String,
    /// This process's rank
    #[arg(long, default_value_t = 0)]
    pub(crate) rank: u32,
    /// Number of ranks
    #[arg(long, default_value_t = 1)]
    pub(crate) world_size: u32,
    /// Most reads in flight; default: derived
    #[arg(long)]
    pub(crate) requests: Option<usize>,
    /// Most bytes in flight; default: derived
    #[arg(long)]
    pub(crate) in_flight: Option<ByteSize>,
    /// Do not check fields against the digests of the index
    #[arg(long)]
    pub(crate) no_verify: bool,
}

impl Stream {
    /// A builder with all of this said.
    pub(crate) fn builder(&self) -> Result<LoaderBuilder> {
        let mut builder = Loader::builder(&self.url)
            .batch_size(self.batch_size)
            .drop_last(self.drop_last)
            .rank(self.rank, self.world_size)
            .device(Device::from_str(&self.device)?)
            .verify(!self.no_verify);
        if self.window > 0 {
            builder = builder.shuffle(Shuffle::window(self.window).seed(self.seed));
        }
        for field in &self.fields {
            let (name, kind) = field.split_once(':').unwrap_or((field, "bytes"));
            builder = builder.field(name, field_kind(kind)?);
        }
        if let Some(tokens) = &self.tokens {
            builder = builder.tokens(parse_tokens(tokens)?);
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
        Ok(builder)
    }
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
    let (name, shape) = text.strip_suffix(']').and_then(|text| text.split_once('[')).ok_or_else(wrong)?;
    let shape =
        shape.split(',').map(|extent| extent.trim().parse().map_err(|_| wrong())).collect::<Result<Vec<usize>>>()?;
    Ok(Field::array(dtype(name).ok_or_else(wrong)?, &shape))
}

fn parse_tokens(text: &str) -> Result<Tokens> {
    let parse = || {
        let (name, count) = text.split_once(':')?;
        let (count, next) = match count.strip_suffix("+1") {
            Some(count) => (count, true),
            None => (count, false),
        };
        let tokens = Tokens::new(dtype(name)?, count.parse().ok()?);
        Some(if next { tokens.with_next() } else { tokens })
    };
    parse().ok_or_else(|| {
        Error::new(Kind::Config, format!("'{text}' does not say how to cut tokens"))
            .advice("write uint16:2048 or uint16:2048+1")
    })
}

fn dtype(name: &str) -> Option<Dtype> {
    const ALL: [Dtype; 13] = [
        Dtype::U8,
        Dtype::I8,
        Dtype::U16,
        Dtype::I16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::U32,
        Dtype::I32,
        Dtype::F32,
        Dtype::U64,
        Dtype::I64,
        Dtype::F64,
        Dtype::Bool,
    ];
    ALL.into_iter().find(|dtype| dtype.name() == name)
}
