//! Random numbers by counter: the *n*-th number of a stream without the ones before it.
//!
//! SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) read as a counter-based generator.
//! It is written out here because orders must never change with a dependency's version: golden tests pin it.

/// 2⁶⁴ divided by the golden ratio, odd: the step between two counters.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a stream is for; streams of different purposes are unrelated.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    Blocks = 1,
    Keys = 2,
}

/// An endless sequence of numbers, named by seed, purpose, epoch and lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    pub(super) fn new(seed: u64, purpose: Purpose, epoch: u64, lane: u32) -> Self {
        let parts = [purpose as u64, epoch, u64::from(lane)];
        Stream(parts.iter().fold(mix(seed), |key, part| mix(key.wrapping_add(STEP) ^ mix(part.wrapping_add(STEP)))))
    }

    /// Number `counter` of the sequence, uniform over all of `u64`.
    pub(super) fn number(self, counter: u64) -> u64 {
        mix(self.0.wrapping_add(counter.wrapping_add(1).wrapping_mul(STEP)))
    }

    /// Number `counter` of the sequence, scaled to `0..bound`. For bounds up to 2⁴⁰ no value is favoured by more than 2⁻²⁴.
    pub(super) fn below(self, counter: u64, bound: u64) -> u64 {
        ((u128::from(self.number(counter)) * u128::from(bound)) >> 64) as u64
    }
}

/// SplitMix64's finaliser: a bijection in which every output bit depends on every input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_splitmix64() {
        // The published sequence for the seed 1234567.
        let stream = Stream(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|n| stream.number(n)), expected);
    }

    #[test]
    fn streams_differ_in_every_part_of_their_name() {
        let base = (7, Purpose::Keys, 3, 2);
        let others =
            [(8, Purpose::Keys, 3, 2), (7, Purpose::Blocks, 3, 2), (7, Purpose::Keys, 4, 2), (7, Purpose::Keys, 3, 1)];
        let first = |(seed, purpose, epoch, lane)| Stream::new(seed, purpose, epoch, lane).number(0);
        assert!(others.iter().all(|other| first(*other) != first(base)));
    }

    #[test]
    fn is_uniform_below_a_bound() {
        let stream = Stream::new(1, Purpose::Keys, 0, 0);
        let mut counts = [0u32; 10];
        (0..100_000).for_each(|n| counts[stream.below(n, 10) as usize] += 1);
        // Five standard deviations of a binomial with n = 100,000 and p = 1/10.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 475), "{counts:?}");
    }
}
