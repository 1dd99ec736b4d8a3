//! Digests that tell whether two runs delivered the same bytes, and in the same order.
//!
//! Both are sums modulo 2⁶⁴ of one well-mixed number per value or sample, so that those of ranks, or of the parts of a run
//! that was interrupted, add up to that of the whole.

use crc_fast::{CrcAlgorithm, Digest as Crc};
use farfeed::order::Partition;
use farfeed::{Batch, Result};

/// Digests of everything delivered so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Digest {
    partition: Partition,
    /// Of all values, whatever their order.
    pub(super) content: u64,
    /// Of the samples' numbers at their global positions.
    pub(super) order: u64,
}

impl Digest {
    pub(super) fn new(partition: Partition) -> Self {
        Digest { partition, content: 0, order: 0 }
    }

    /// Adds a batch, read back to the host where need be.
    pub(super) fn add(&mut self, batch: &Batch) -> Result<()> {
        for name in batch.columns() {
            for (row, value) in batch.values(name)?.iter().enumerate() {
                let key = batch.key(row).unwrap_or_default();
                self.content = self.content.wrapping_add(hash(&[key.as_bytes(), name.as_bytes(), value]));
            }
        }
        let first = batch.index() * self.partition.global_batch() + u64::from(self.partition.rank());
        for (row, id) in batch.ids().iter().enumerate() {
            let position = first + row as u64 * u64::from(self.partition.world_size());
            let place = mix(mix(batch.epoch()).wrapping_add(position));
            self.order = self.order.wrapping_add(mix(place ^ id));
        }
        Ok(())
    }
}

/// A hash of parts, their lengths included.
fn hash(parts: &[&[u8]]) -> u64 {
    let mut crc = Crc::new(CrcAlgorithm::Crc64Nvme);
    for part in parts {
        crc.update(&(part.len() as u64).to_le_bytes());
        crc.update(part);
    }
    // A CRC alone is linear: sums of it would not notice values that changed places.
    mix(crc.finalize())
}

/// Spreads every bit of `x` over all 64 (the finisher of SplitMix64).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_change_places_are_noticed() {
        let sum = |values: [(&str, &str); 2]| {
            values.iter().fold(0u64, |sum, (key, value)| sum.wrapping_add(hash(&[key.as_bytes(), value.as_bytes()])))
        };
        assert_eq!(sum([("a", "1"), ("b", "2")]), sum([("b", "2"), ("a", "1")]));
        assert_ne!(sum([("a", "1"), ("b", "2")]), sum([("a", "2"), ("b", "1")]));
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
