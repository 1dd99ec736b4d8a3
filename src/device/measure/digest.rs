//! A digest that a device computes as easily as the host: the sum of mixed words, each with its position.

use std::sync::Arc;
use std::time::Instant;

use super::apparatus::{Apparatus, settle};
use super::bay::Kept;
use crate::device::{DeviceSlot, RawStream};
use crate::error::{Error, Kind, Result};
use crate::sys::cuda::{Argument, DeviceMemory, bare};

const WORD_BYTES: usize = 8;

/// What `farfeed_digest` in `kernels.cu` computes: the sum, modulo 2⁶⁴, of the mixed little-endian words, each with its position;
/// the last one is filled up with zeros. A word that is wrong, missing, or at another place changes it.
pub fn digest(bytes: &[u8]) -> u64 {
    digest_behind(0, bytes)
}

/// What `bytes` add to the digest of more, if so many words lie before them.
pub(super) fn digest_behind(words_before: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(WORD_BYTES);
    let mut sum = 0u64;
    let mut position = words_before;
    for word in words.by_ref() {
        position += 1;
        sum = sum.wrapping_add(placed(little_endian(word), position));
    }
    match words.remainder() {
        [] => sum,
        rest => sum.wrapping_add(placed(little_endian(rest), position + 1)),
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD_BYTES];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// A word that knows its position, counted from 1.
fn placed(word: u64, position: u64) -> u64 {
    mixed(word.wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finaliser of splitmix64.
pub(super) fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Digests on the device, each at a place of its own, until they are read.
pub struct Tally {
    memory: Arc<DeviceMemory>,
    places: usize,
    kept: Kept,
}

impl Tally {
    /// Room for `places` digests, all 0.
    ///
    /// # Errors
    /// `Device`.
    pub fn new(apparatus: &Apparatus, places: usize) -> Result<Tally> {
        let memory = Arc::new(DeviceMemory::new(apparatus.context(), places * WORD_BYTES)?);
        let stream = apparatus.stream()?;
        let zeros = vec![0; places * WORD_BYTES];
        let entered = apparatus.enter()?;
        let zeroed = bare::Mark::new(apparatus.context())?;
        bare::copy(&entered, &stream, &memory, &zeros[..], 0)?;
        zeroed.record(&entered, &stream)?;
        settle(&entered, &zeroed)?;
        let kept = Kept::new(apparatus, vec![Arc::clone(&memory) as _]);
        Ok(Tally { memory, places, kept })
    }

    /// How many there is room for.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Has the device add the digest of `bytes` at `at` of `slot` to `place`, in `stream`. The slot must be told of the stream, before
    /// ([`DeviceSlot::wait_on`]) or when it is released.
    ///
    /// # Errors
    /// `Config` for a range outside the slot, or a place that there is not; `Device`.
    pub fn add(
        &mut self,
        apparatus: &Apparatus,
        stream: &RawStream,
        slot: &DeviceSlot,
        (at, bytes): (usize, usize),
        place: usize,
    ) -> Result<()> {
        if at.checked_add(bytes).is_none_or(|end| end > slot.len()) {
            let context = format!("{bytes} bytes at offset {at} pass the end of a slot of {}", slot.len());
            return Err(Error::new(Kind::Config, context));
        }
        self.also(stream);
        let range = (slot.device_pointer() + at as u64, bytes);
        apparatus.launch_digest(&apparatus.enter()?, stream, range, self, place)
    }

    /// All of them, after what the streams have been given to do.
    ///
    /// # Errors
    /// `Stalled` when that takes more than a minute; `Device`.
    pub fn read(&self) -> Result<Vec<u64>> {
        self.kept.settle()?;
        let deadline = Instant::now() + std::time::Duration::from_secs(60);
        let bytes = self.memory.read_back(0, self.places * WORD_BYTES, deadline)?;
        Ok(bytes.chunks_exact(WORD_BYTES).map(little_endian).collect())
    }

    /// `stream` adds to it from now on.
    pub(super) fn also(&mut self, stream: &RawStream) {
        self.kept.also(stream);
    }

    pub(super) fn argument(&self, place: usize) -> Result<Argument> {
        Argument::memory(&self.memory, place * WORD_BYTES..(place + 1) * WORD_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_every_place_counts() {
        let bytes: Vec<u8> = (0..1003u32).map(|at| (at * 7 % 251) as u8).collect();
        let whole = digest(&bytes);
        for at in (0..bytes.len()).step_by(13).chain([1002]) {
            let mut other = bytes.clone();
            other[at] ^= 0x10;
            assert_ne!(digest(&other), whole, "byte {at}");
        }
        let mut swapped = bytes.clone();
        swapped.rotate_left(8);
        assert_ne!(digest(&swapped), whole);
        assert_ne!(digest(&bytes[..1002]), whole);
        assert_eq!(digest(&[]), 0);
        assert_eq!(digest(&bytes[..800]).wrapping_add(digest_behind(100, &bytes[800..])), whole);
    }

    /// Computed by hand from the definition: one word, the number 1.
    #[test]
    fn the_definition_is_pinned() {
        assert_eq!(digest(&[1]), digest(&[1, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(digest(&[0]), 0xe220_a839_7b1d_cdaf, "the first number of splitmix64 from 0");
    }
}
