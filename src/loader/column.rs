//! Fields as the user asks for them, and columns as a batch holds them.

use crate::dataset::{Dtype, FieldId};

/// How a field's bytes become a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(pub(super) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bytes,
    Int,
    Float,
    Json,
    Array { dtype: Dtype, shape: Vec<usize> },
}

impl Field {
    /// The bytes as they are: a ragged column of `u8` (`values`, and `offsets` as int64 of length B + 1).
    pub fn bytes() -> Self {
        Field(Kind::Bytes)
    }

    /// A decimal number in ASCII, as WebDataset's `.cls` holds it: a dense int64 column of shape `[B]`.
    pub fn int() -> Self {
        Field(Kind::Int)
    }

    /// A decimal number in ASCII: a dense float64 column of shape `[B]`.
    pub fn float() -> Self {
        Field(Kind::Float)
    }

    /// A JSON document: ragged bytes, checked to be well-formed.
    pub fn json() -> Self {
        Field(Kind::Json)
    }

    /// Numbers of a fixed type and shape: a dense column of shape `[B, shape…]`. The field's bytes are either exactly the
    /// elements, little-endian, in C order, or a `.npy` file of this type and shape.
    pub fn array(dtype: Dtype, shape: &[usize]) -> Self {
        Field(Kind::Array { dtype, shape: shape.to_vec() })
    }
}

/// A field that was asked for.
#[derive(Clone, Debug)]
pub(super) struct ColumnSpec {
    pub(super) name: String,
    pub(super) field: FieldId,
    pub(super) kind: Kind,
}

impl ColumnSpec {
    /// Bytes that `rows` rows take in a slot when all their values together have `payload` bytes.
    pub(super) fn slot_bytes(&self, rows: usize, payload: u64) -> u64 {
        let rows = rows as u64;
        match &self.kind {
            Kind::Bytes | Kind::Json => align(payload).saturating_add(align((rows + 1) * 8)),
            Kind::Int | Kind::Float => align(rows * 8),
            Kind::Array { dtype, shape } => align(rows.saturating_mul(element_bytes(*dtype, shape))),
        }
    }
}

/// Bytes of one row of a dense column.
pub(super) fn element_bytes(dtype: Dtype, shape: &[usize]) -> u64 {
    shape.iter().fold(dtype.bytes() as u64, |bytes, extent| bytes.saturating_mul(*extent as u64))
}

/// Columns begin at multiples of this many bytes in a slot: what CUDA's own allocations give, and wide loads want.
pub(super) const COLUMN_ALIGN: u64 = 256;

pub(super) fn align(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(COLUMN_ALIGN).unwrap_or(u64::MAX)
}

/// Where a column lies in its slot. Offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Column {
    /// One value of fixed size per row.
    Dense {
        /// Element type.
        dtype: Dtype,
        /// Shape with the batch first: `[B, …]`.
        shape: Vec<usize>,
        /// First byte.
        at: usize,
        /// Bytes.
        len: usize,
    },
    /// Values of any size, one after the other.
    Ragged {
        /// First byte of the values (`uint8`).
        values_at: usize,
        /// Bytes of all values.
        values_len: usize,
        /// First byte of the B + 1 offsets (`int64`): value *i* is `offsets[i]..offsets[i + 1]`.
        offsets_at: usize,
        /// The offsets, on the host.
        bounds: Vec<usize>,
    },
}
