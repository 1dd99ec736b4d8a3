//! Files of equal records: tokens in a row, or the rows of an array. Sample *i* is found by arithmetic.

use std::fmt;

use super::catalog::{Dtype, FieldLayout, Shard};
use crate::error::{Error, Kind, Result};

/// A shard of equal records: the payload is `bytes` bytes from `start`, behind a header if the format has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordShard {
    /// The file.
    pub shard: Shard,
    /// First byte of the payload, from the start of the shard.
    pub start: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

/// What one sample of a record file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSpec {
    name: &'static str,
    dtype: Dtype,
    /// Shape of one sample, its overlap included.
    shape: Vec<usize>,
    /// Bytes from one sample's start to the next one's.
    stride: u64,
    /// Bytes of one sample.
    bytes: u64,
}

/// Samples of at most this many bytes: offsets within a sample fit 32 bits everywhere.
const SAMPLE_BYTES_MAX: u64 = u32::MAX as u64;

impl RecordSpec {
    /// Sample *i* is the tokens from `i * tokens` to `i * tokens + tokens + overlap`: with an overlap of 1 a batch is `[B, T + 1]`, inputs and targets in one.
    /// The field is called `tokens`.
    ///
    /// # Errors
    /// `Config` for no tokens, for an overlap above `tokens`, and for samples of 4 GiB and more.
    pub fn tokens(dtype: Dtype, tokens: usize, overlap: usize) -> Result<Self> {
        if overlap > tokens {
            return Err(Error::new(Kind::Config, format!("{tokens} tokens a sample with an overlap of {overlap}"))
                .advice(
                    "let samples share at most as many tokens as they advance by; 1 is what a next-token loss takes",
                ));
        }
        Self::new("tokens", dtype, vec![tokens.saturating_add(overlap)], overlap)
    }

    /// Sample *i* is the *i*th element of an array of shape `[.., shape]`. The field is called `data`.
    ///
    /// # Errors
    /// `Config` for samples of no bytes, and of 4 GiB and more.
    pub fn rows(dtype: Dtype, shape: Vec<usize>) -> Result<Self> {
        Self::new("data", dtype, shape, 0)
    }

    fn new(name: &'static str, dtype: Dtype, shape: Vec<usize>, overlap: usize) -> Result<Self> {
        let bytes = shape
            .iter()
            .try_fold(dtype.bytes() as u64, |bytes, &dimension| bytes.checked_mul(dimension as u64))
            .filter(|bytes| (1..=SAMPLE_BYTES_MAX).contains(bytes));
        let Some(bytes) = bytes else {
            return Err(Error::new(Kind::Config, format!("samples of shape {shape:?} in {}", dtype.name()))
                .advice("a sample has at least one element and less than 4 GiB"));
        };
        // Only tokens overlap, and there `bytes` counts at least twice the overlap.
        let stride = bytes - (overlap * dtype.bytes()) as u64;
        Ok(RecordSpec { name, dtype, shape, stride, bytes })
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Shape of one sample, its overlap included.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Samples in a payload of `bytes` bytes, and the bytes that are left over at its end.
    pub(super) fn count(&self, bytes: u64) -> (u64, u64) {
        match bytes.checked_sub(self.bytes) {
            None => (0, bytes),
            Some(behind_first) => (behind_first / self.stride + 1, behind_first % self.stride),
        }
    }

    /// First byte of a sample, from the start of the payload.
    pub(super) fn start(&self, number: u64) -> u64 {
        number * self.stride
    }

    /// Bytes from the first byte of `samples` neighbouring samples to their last.
    pub(super) fn span(&self, samples: u64) -> u64 {
        (samples - 1) * self.stride + self.bytes
    }

    /// Samples that span at most `bytes`, at least one.
    pub(super) fn fitting(&self, bytes: u64) -> u64 {
        bytes.checked_sub(self.bytes).map_or(1, |behind_first| behind_first / self.stride + 1)
    }

    /// Refuses a shard whose payload lies outside of it or is no whole number of elements.
    pub(super) fn check(&self, record: &RecordShard) -> Result<()> {
        let name = &record.shard.url;
        let inside = record.start.checked_add(record.bytes).is_some_and(|end| end <= record.shard.size);
        if !inside {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{name}: {} bytes of records from byte {} on, in a shard of {}",
                    record.bytes, record.start, record.shard.size
                ),
            )
            .advice("the file was cut short: upload it again"));
        }
        if !record.bytes.is_multiple_of(self.dtype.bytes() as u64) {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{name}: {} bytes are no whole number of {}", record.bytes, self.dtype.name()),
            )
            .advice("check the dtype, or whether the file was cut short"));
        }
        Ok(())
    }

    pub(super) fn field(&self) -> FieldLayout {
        FieldLayout {
            name: self.name.to_owned(),
            bytes_min: self.bytes,
            bytes_max: self.bytes,
            fixed: Some((self.dtype, self.shape.clone())),
        }
    }
}

impl fmt::Display for RecordSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} every {} bytes", self.dtype.name(), self.shape, self.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_samples_and_what_is_left() {
        let spec = RecordSpec::tokens(Dtype::U16, 8, 1).unwrap();
        // 17 tokens hold two samples of 8 + 1; the 18th begins a third that is not there.
        assert_eq!(spec.count(17 * 2), (2, 0));
        assert_eq!(spec.count(16 * 2), (1, 7 * 2));
        assert_eq!(spec.count(8 * 2), (0, 8 * 2));
        assert_eq!((spec.span(2), spec.start(1)), (34, 16));
        assert_eq!((spec.fitting(33), spec.fitting(34), spec.fitting(1)), (1, 2, 1));
        assert_eq!(RecordSpec::rows(Dtype::F32, vec![]).unwrap().count(12), (3, 0));
    }

    #[test]
    fn refuses_impossible_samples() {
        for (dtype, tokens, overlap) in [(Dtype::U16, 0, 0), (Dtype::U16, 4, 5), (Dtype::U64, usize::MAX, 1)] {
            assert_eq!(RecordSpec::tokens(dtype, tokens, overlap).unwrap_err().kind(), Kind::Config);
        }
        assert!(RecordSpec::rows(Dtype::F32, vec![3, 0]).is_err());
        assert!(RecordSpec::rows(Dtype::F32, vec![1 << 30, 4]).is_err());
    }
}
