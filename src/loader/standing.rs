//! Where the consumer stands, for whoever asks, without waiting.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

/// Epoch and number of the batch that comes next: written under the consumer's lock, read without it.
///
/// The lock is held while a consumer waits for a batch, and in a forked child it may be held for ever, by a thread that is not there. So
/// there are two places, and the one that does not count is written to.
#[derive(Default)]
pub(super) struct Standing {
    /// How often it was changed. Odd: the second place counts.
    turn: AtomicUsize,
    places: [[AtomicU64; 2]; 2],
}

impl Standing {
    pub(super) fn read(&self) -> (u64, u64) {
        loop {
            let turn = self.turn.load(Ordering::Acquire);
            let [epoch, batch] = self.places[turn % 2].each_ref().map(|cell| cell.load(Ordering::Relaxed));
            // Pairs with the fence in `write`: who has seen a later turn's numbers here sees that there is one.
            fence(Ordering::Acquire);
            if self.turn.load(Ordering::Relaxed) == turn {
                return (epoch, batch);
            }
        }
    }

    /// By one thread at a time.
    pub(super) fn write(&self, epoch: u64, batch: u64) {
        let turn = self.turn.load(Ordering::Relaxed).wrapping_add(1);
        fence(Ordering::Release);
        for (cell, number) in self.places[turn % 2].iter().zip([epoch, batch]) {
            cell.store(number, Ordering::Relaxed);
        }
        self.turn.store(turn, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_numbers_are_of_one_moment() {
        let standing = Standing::default();
        assert_eq!(standing.read(), (0, 0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while last < 100_000 {
                        let (epoch, batch) = standing.read();
                        assert!(batch == epoch ^ 0xff && epoch >= last || (epoch, batch) == (0, 0), "{epoch} {batch}");
                        last = epoch;
                    }
                });
            }
            (1..=100_000).for_each(|epoch| standing.write(epoch, epoch ^ 0xff));
        });
        assert_eq!(standing.read(), (100_000, 100_000 ^ 0xff));
    }
}
