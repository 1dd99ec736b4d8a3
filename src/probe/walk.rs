//! Which range is read next: scattered over the objects, none twice before all have been read, so that neither the server's cache nor its
//! read-ahead flatters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Target;
use crate::error::{Error, Kind, Result};

/// With fewer ranges than this, a probe would read the same ones again and again.
const BLOCKS_MIN: u64 = 8;

/// Blocks of the largest requests, in a scattered order. Smaller requests read a random part of a block.
#[derive(Debug)]
pub(super) struct Walk {
    block_bytes: u64,
    /// The first block of each object.
    firsts: Vec<u64>,
    blocks: u64,
    step: u64,
    begin: u64,
    turn: AtomicU64,
}

/// A range to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) target: usize,
    pub(super) start: u64,
}

impl Walk {
    /// Over `targets`, for requests of up to the largest of `sizes` that they have room for; gives the sizes that they have room for.
    ///
    /// # Errors
    /// `Config` when there is no such size: names how large the objects would have to be.
    pub(super) fn new(targets: &[Target], sizes: &[usize]) -> Result<(Self, Vec<usize>)> {
        let count = |bytes: u64| targets.iter().map(|target| target.size / bytes).sum::<u64>();
        let fitting: Vec<usize> =
            sizes.iter().copied().filter(|bytes| *bytes > 0 && count(*bytes as u64) >= BLOCKS_MIN).collect();
        let Some(largest) = fitting.iter().max() else {
            let there: u64 = targets.iter().map(|target| target.size).sum();
            let wanted = BLOCKS_MIN * sizes.iter().copied().min().unwrap_or(1) as u64;
            let what = format!("{} objects of {there} bytes together are too small to probe", targets.len());
            return Err(Error::new(Kind::Config, what).advice(format!(
                "name {wanted} bytes or more, in one object or with braces; {} MB for every size of request",
                BLOCKS_MIN * sizes.iter().copied().max().unwrap_or(1) as u64 / 1_000_000 + 1
            )));
        };
        let block_bytes = *largest as u64;
        let mut blocks = 0;
        let firsts = targets.iter().map(|target| {
            let first = blocks;
            blocks += target.size / block_bytes;
            first
        });
        let firsts = firsts.collect();
        let (step, begin) = (scatter(blocks), fastrand::u64(0..blocks));
        Ok((Walk { block_bytes, firsts, blocks, step, begin, turn: AtomicU64::new(0) }, fitting))
    }

    /// A range of `bytes`, which are no more than the largest size.
    pub(super) fn next(&self, bytes: usize) -> Place {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.blocks;
        let block = (u128::from(turn) * u128::from(self.step) + u128::from(self.begin)) % u128::from(self.blocks);
        let block = block as u64;
        // Objects without a block begin where the next one does.
        let target = self.firsts.partition_point(|first| *first <= block) - 1;
        let parts = (self.block_bytes / bytes.max(1) as u64).max(1);
        let within = fastrand::u64(0..parts) * bytes as u64;
        Place { target, start: (block - self.firsts[target]) * self.block_bytes + within }
    }
}

/// Steps of about 0.62 of a round are never near a recent one; without a common divisor they meet every block.
fn scatter(blocks: u64) -> u64 {
    let common = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let wanted = ((blocks as f64 * 0.618_034) as u64).max(1);
    (wanted..).find(|step| common(*step, blocks) == 1).unwrap_or(1)
}

/// Clones of `targets` with stores for one more reactor; those of one store go on sharing it.
pub(super) fn for_reactor(targets: &[Target]) -> Vec<Target> {
    let mut copies: Vec<Target> = Vec::with_capacity(targets.len());
    for (number, target) in targets.iter().enumerate() {
        let shared = targets[..number].iter().position(|earlier| Arc::ptr_eq(&earlier.store, &target.store));
        let store = match shared {
            Some(earlier) => Arc::clone(&copies[earlier].store),
            None => Arc::clone(&target.store).per_reactor(),
        };
        copies.push(Target { store, ..target.clone() });
    }
    copies
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::store::MemoryStore;

    fn targets(sizes: &[u64]) -> Vec<Target> {
        let store = MemoryStore::new();
        sizes.iter().map(|size| Target { store: store.clone(), key: "a".into(), size: *size }).collect()
    }

    #[test]
    fn too_little_is_refused_with_what_would_do() {
        let error = Walk::new(&targets(&[1_000_000, 500_000]), &[256 << 10, 1 << 20]).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        let text = error.to_string();
        assert!(text.contains("1500000 bytes") && text.contains("2097152 bytes or more"), "{text}");
        let (_, sizes) = Walk::new(&targets(&[3_000_000]), &[256 << 10, 1 << 20]).unwrap();
        assert_eq!(sizes, [256 << 10]);
        let error = Walk::new(&targets(&[]), &[256 << 10]).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
    }

    proptest! {
        #[test]
        fn every_block_is_met_once_a_round(objects in proptest::collection::vec(0u64..100_000, 1..20), small in 1usize..1000) {
            let targets = targets(&objects);
            let Ok((walk, sizes)) = Walk::new(&targets, &[small, 1000]) else { return Ok(()) };
            let blocks = walk.blocks;
            let mut met = BTreeSet::new();
            for _ in 0..blocks {
                let place = walk.next(sizes[0]);
                prop_assert!(place.start + sizes[0] as u64 <= targets[place.target].size);
                met.insert((place.target, place.start / walk.block_bytes));
            }
            prop_assert_eq!(met.len() as u64, blocks);
        }

        #[test]
        fn steps_meet_every_block(blocks in 1u64..1_000_000) {
            let step = scatter(blocks);
            prop_assert!(step >= 1 && step <= blocks.max(2));
        }
    }

    #[test]
    fn stores_are_copied_once() {
        let one = targets(&[1, 2]);
        let both = [one.clone(), targets(&[3])].concat();
        let copies = for_reactor(&both);
        assert!(Arc::ptr_eq(&copies[0].store, &copies[1].store) && !Arc::ptr_eq(&copies[0].store, &copies[2].store));
    }
}
