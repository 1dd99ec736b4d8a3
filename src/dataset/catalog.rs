//! The dataset as the other rooms see it, whatever the format.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};

/// A byte range of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// Index into [`Dataset::shards`](super::Dataset::shards).
    pub shard: u32,
    /// First byte, from the start of the shard.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Extent {
    /// One past the last byte.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// Number of a sample in the dataset's own order: shard after shard, 0 first.
pub type SampleId = u64;

/// Index into [`Dataset::fields`](super::Dataset::fields).
pub type FieldId = usize;

/// What a store says of an object's content: an ETag, or size and time of change of a file. Two equal versions mean equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub Arc<str>);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Type of the numbers in a dense column or a record file, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "numpy's names")]
pub enum Dtype {
    U8,
    I8,
    U16,
    I16,
    F16,
    BF16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
    Bool,
}

impl Dtype {
    /// All of them.
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

    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Dtype::U8 | Dtype::I8 | Dtype::Bool => 1,
            Dtype::U16 | Dtype::I16 | Dtype::F16 | Dtype::BF16 => 2,
            Dtype::U32 | Dtype::I32 | Dtype::F32 => 4,
            Dtype::U64 | Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// The name numpy uses (`bfloat16` as in `ml_dtypes`).
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::U8 => "uint8",
            Dtype::I8 => "int8",
            Dtype::U16 => "uint16",
            Dtype::I16 => "int16",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            Dtype::U32 => "uint32",
            Dtype::I32 => "int32",
            Dtype::F32 => "float32",
            Dtype::U64 => "uint64",
            Dtype::I64 => "int64",
            Dtype::F64 => "float64",
            Dtype::Bool => "bool",
        }
    }
}

impl FromStr for Dtype {
    type Err = Error;

    /// [`Dtype::name`]'s names.
    fn from_str(text: &str) -> Result<Self> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            let names: Vec<_> = Dtype::ALL.map(Dtype::name).into();
            Error::new(Kind::Config, format!("no element type {text:?}"))
                .advice(format!("there are: {}", names.join(", ")))
        })
    }
}

/// A dataset file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// URL or path as the user would write it; never with credentials.
    pub url: String,
    /// Bytes.
    pub size: u64,
    /// What the store said of the content when the index was made, if anything.
    pub version: Option<Version>,
}

/// What is known of a field before its bytes are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldLayout {
    /// Name: a tar member's extension, or `tokens`/`data` for record files.
    pub name: String,
    /// Shortest and longest value in bytes.
    pub bytes_min: u64,
    /// Longest value in bytes.
    pub bytes_max: u64,
    /// Element type and shape of one sample, where the format fixes them.
    pub fixed: Option<(Dtype, Vec<usize>)>,
}

/// A run of neighbouring samples of one shard that are read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// First sample.
    pub first: SampleId,
    /// Samples.
    pub samples: u32,
    /// From the first byte of the first sample's first field to the last byte of the last one's last.
    pub extent: Extent,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_named() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.name().parse::<Dtype>().unwrap(), dtype);
        }
        let error = "u16".parse::<Dtype>().unwrap_err();
        assert!(
            error.kind() == Kind::Config && error.next_step().is_some_and(|names| names.contains("bfloat16")),
            "{error}"
        );
    }
}
