//! Fields as the user asks for them, and columns as a batch holds them.

use super::finishing::{Finished, Normalize, Steps};
use crate::dataset::{Dtype, FieldId};

/// How a field's bytes become a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    pub(super) kind: Kind,
    pub(super) steps: Steps,
}

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
        Field::of(Kind::Bytes)
    }

    /// A decimal number in ASCII, as WebDataset's `.cls` holds it: a dense int64 column of shape `[B]`.
    pub fn int() -> Self {
        Field::of(Kind::Int)
    }

    /// A decimal number in ASCII: a dense float64 column of shape `[B]`.
    pub fn float() -> Self {
        Field::of(Kind::Float)
    }

    /// A JSON document: ragged bytes, checked to be well-formed.
    pub fn json() -> Self {
        Field::of(Kind::Json)
    }

    /// Numbers of a fixed type and shape: a dense column of shape `[B, shape…]`. The field's bytes are either exactly the
    /// elements, little-endian, in C order, or a `.npy` file of this type and shape.
    pub fn array(dtype: Dtype, shape: &[usize]) -> Self {
        Field::of(Kind::Array { dtype, shape: shape.to_vec() })
    }

    /// An array's integers made wider on the device, behind their copy: tokens travel as uint16, and embeddings want int64.
    ///
    /// uint8 and uint16 become int32 or int64, uint32 and int32 become int64; anything else is refused by `build`.
    #[must_use]
    pub fn widen(mut self, to: Dtype) -> Self {
        self.steps.widen = Some(to);
        self
    }

    /// An array of pictures `[…, H, W, C]` made into `[…, C, H, W]` on the device.
    #[must_use]
    pub fn channels_first(mut self) -> Self {
        self.steps.channels_first = true;
        self
    }

    /// An array of bytes made into reals on the device: scaled to 0…1, less the mean, by the deviation.
    ///
    /// The last extent of its shape is the channels; together with [`Field::channels_first`] they then go first, in the same pass.
    ///
    /// ```
    /// use farfeed::dataset::Dtype;
    /// use farfeed::loader::{Field, Normalize};
    ///
    /// let pictures = Field::array(Dtype::U8, &[224, 224, 3]) // 150,528 bytes travel for each
    ///     .channels_first()
    ///     .normalize(Normalize::imagenet().to(Dtype::F16)); // a column of float16, [B, 3, 224, 224]
    /// # let _ = pictures;
    /// ```
    #[must_use]
    pub fn normalize(mut self, normalize: Normalize) -> Self {
        self.steps.normalize = Some(normalize);
        self
    }

    fn of(kind: Kind) -> Self {
        Field { kind, steps: Steps::default() }
    }
}

/// A field that was asked for.
#[derive(Clone, Debug)]
pub(super) struct ColumnSpec {
    pub(super) name: String,
    pub(super) field: FieldId,
    pub(super) kind: Kind,
    /// What an array becomes on the device.
    pub(super) finished: Option<Finished>,
    /// The place of that step among those of all columns.
    pub(super) step: usize,
}

impl ColumnSpec {
    /// Bytes that `rows` rows take in a slot when all their values together have `payload` bytes.
    pub(super) fn slot_bytes(&self, rows: usize, payload: u64) -> u64 {
        let rows = rows as u64;
        match &self.kind {
            Kind::Bytes | Kind::Json => align(payload).saturating_add(align((rows + 1) * 8)),
            Kind::Int | Kind::Float => align(rows * 8),
            Kind::Array { dtype, shape } => {
                let landed = align(rows.saturating_mul(element_bytes(*dtype, shape)));
                let bytes = self.finished.as_ref().map(|finished| finished.finishing.finished_bytes() as u64);
                landed.saturating_add(bytes.map_or(0, |bytes| align(rows.saturating_mul(bytes))))
            }
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
