//! The header of a safetensors file: names, types and shapes of its tensors, and where they lie.

use std::collections::{BTreeMap, btree_map};
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::catalog::Dtype;
use crate::error::{Error, Kind, Result};

/// The length of the header stands before it, in so many bytes.
const PREFIX_BYTES: u64 = 8;
/// The format's own limit.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// NumPy's limit, which no framework passes.
const DIMENSIONS_MAX: usize = 64;

/// What a safetensors file says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// The tensors, in the order in which they lie in the file: without a gap, from the header's end to the file's.
    pub tensors: Vec<TensorPlace>,
    /// What the writer noted, such as the framework's name.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPlace {
    /// Name; no other tensor of the file has it.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Extents; none for a single number.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub start: u64,
    /// Bytes: those of the elements, little-endian, in C order.
    pub len: u64,
}

impl SafetensorsHeader {
    /// Bytes from the file's beginning to its tensors, told from its first 8 bytes: what [`SafetensorsHeader::parse`] needs.
    ///
    /// # Errors
    /// `Corrupt` for fewer bytes, and for a header beyond the format's own limit.
    pub fn bytes_needed(prefix: &[u8]) -> Result<u64> {
        let Some(len) = prefix.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
            return Err(corrupt(format!("{} bytes, too few for a header", prefix.len())));
        };
        if len > HEADER_BYTES_MAX {
            return Err(corrupt(format!("header of {len} bytes, where {HEADER_BYTES_MAX} are allowed")));
        }
        Ok(PREFIX_BYTES + len)
    }

    /// Reads the header in the first bytes of a file of `size` bytes; what follows it is not looked at.
    ///
    /// # Errors
    /// `Corrupt` where it is no header, where it and the file's size do not agree, or where tensors overlap, leave gaps, or have other
    /// sizes than their shapes say; `Unsupported` for element types that farfeed does not know, naming the tensor.
    pub fn parse(bytes: &[u8], size: u64) -> Result<Self> {
        let end = Self::bytes_needed(bytes)?;
        let text = usize::try_from(end).ok().and_then(|end| bytes.get(PREFIX_BYTES as usize..end));
        let text = text
            .ok_or_else(|| corrupt(format!("header of {end} bytes in a file of {}", size.min(bytes.len() as u64))))?;
        let Entries { tensors, metadata } =
            serde_json::from_slice(text).map_err(|error| corrupt("its header is no table of tensors").source(error))?;
        let mut tensors =
            tensors.into_iter().map(|(name, entry)| entry.place(name, end)).collect::<Result<Vec<_>>>()?;
        // Those without elements lie between others: before the one that begins where they do.
        tensors.sort_by(|a, b| (a.start, a.len, &a.name).cmp(&(b.start, b.len, &b.name)));
        let mut at = end;
        for tensor in &tensors {
            if tensor.start != at {
                let how = if tensor.start < at { "overlaps what lies before it" } else { "leaves a gap before it" };
                return Err(corrupt(format!("tensor '{}' {how}", tensor.name)));
            }
            at = tensor.start.saturating_add(tensor.len);
        }
        if at != size {
            let what = format!("its tensors end at byte {at}, the file has {size}");
            return Err(corrupt(what).in_object());
        }
        Ok(SafetensorsHeader { tensors, metadata })
    }
}

fn corrupt(what: impl fmt::Display) -> Error {
    Error::new(Kind::Corrupt, format!("no whole safetensors file: {what}"))
        .advice("upload it again, or write it with the package safetensors")
}

/// A tensor as the header has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    /// Where it lies in a file whose tensors begin at `base`.
    fn place(self, name: String, base: u64) -> Result<TensorPlace> {
        let Entry { dtype, shape, data_offsets: [from, to] } = self;
        let Some(dtype) = element_type(&dtype) else {
            return Err(Error::new(Kind::Unsupported, format!("tensor '{name}': elements of type {dtype:?}"))
                .advice("farfeed loads booleans, integers of 8 to 64 bits, F16, BF16, F32 and F64"));
        };
        if shape.len() > DIMENSIONS_MAX {
            return Err(corrupt(format!("tensor '{name}' has {} dimensions", shape.len())));
        }
        let bytes = shape.iter().try_fold(dtype.bytes() as u64, |bytes, extent| bytes.checked_mul(*extent));
        let extents = shape.iter().map(|extent| usize::try_from(*extent).ok()).collect::<Option<Vec<_>>>();
        let start = base.checked_add(from);
        match (to.checked_sub(from), bytes, extents, start) {
            (Some(len), Some(bytes), Some(shape), Some(start)) if len == bytes => {
                Ok(TensorPlace { name, dtype, shape, start, len })
            }
            _ => Err(corrupt(format!("tensor '{name}': {} {shape:?} at bytes {from}..{to}", dtype.name()))),
        }
    }
}

fn element_type(name: &str) -> Option<Dtype> {
    Some(match name {
        "BOOL" => Dtype::Bool,
        "U8" => Dtype::U8,
        "I8" => Dtype::I8,
        "U16" => Dtype::U16,
        "I16" => Dtype::I16,
        "F16" => Dtype::F16,
        "BF16" => Dtype::BF16,
        "U32" => Dtype::U32,
        "I32" => Dtype::I32,
        "F32" => Dtype::F32,
        "U64" => Dtype::U64,
        "I64" => Dtype::I64,
        "F64" => Dtype::F64,
        _ => return None,
    })
}

/// The whole table. A map would take the last of two tensors with one name for the only one.
#[derive(Default)]
struct Entries {
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries, A::Error> {
        let mut entries = Entries::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                entries.metadata = map.next_value()?;
                continue;
            }
            match entries.tensors.entry(name) {
                btree_map::Entry::Vacant(free) => free.insert(map.next_value()?),
                btree_map::Entry::Occupied(taken) => {
                    let what = format_args!("tensor '{}' is there twice", taken.key());
                    return Err(serde::de::Error::custom(what));
                }
            };
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests;
