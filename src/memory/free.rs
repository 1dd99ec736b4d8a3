//! Which pages are free: found in runs, so that what lands in them can be copied at once.

/// A set of page numbers.
pub(super) struct FreePages {
    /// A bit for each page, the lowest first; those behind the last page are never set.
    words: Vec<u64>,
    count: usize,
}

impl FreePages {
    /// All of `total` pages.
    pub(super) fn all(total: usize) -> FreePages {
        let mut pages = FreePages { words: vec![0; total.div_ceil(64)], count: 0 };
        (0..total).for_each(|page| pages.put(page));
        pages
    }

    /// Pages that are free.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// A page has become free.
    pub(super) fn put(&mut self, page: usize) {
        debug_assert!(self.words[page / 64] & (1 << (page % 64)) == 0, "page {page} is free already");
        self.words[page / 64] |= 1 << (page % 64);
        self.count += 1;
    }

    /// Takes `count` pages in as few runs as halving finds, each run as low as it can be; gives them one by one to `each`. Nothing is
    /// taken when fewer are free.
    pub(super) fn take(&mut self, count: usize, mut each: impl FnMut(usize)) {
        if count > self.count {
            return;
        }
        let (mut left, mut run) = (count, count);
        while left > 0 {
            run = run.min(left);
            let Some(first) = self.find(run) else {
                run = run.div_ceil(2);
                continue;
            };
            for page in first..first + run {
                self.words[page / 64] &= !(1 << (page % 64));
                each(page);
            }
            self.count -= run;
            left -= run;
        }
    }

    /// The first page of the lowest run of at least `count`.
    fn find(&self, count: usize) -> Option<usize> {
        let (mut start, mut len) = (0, 0);
        for (number, word) in self.words.iter().enumerate() {
            let mut at = 0;
            while at < 64 {
                let rest = word >> at;
                if rest & 1 == 0 {
                    len = 0;
                    // An empty rest of the word is passed over at once.
                    at += if rest == 0 { 64 } else { rest.trailing_zeros() };
                } else {
                    let ones = rest.trailing_ones();
                    if len == 0 {
                        start = number * 64 + at as usize;
                    }
                    len += ones as usize;
                    if len >= count {
                        return Some(start);
                    }
                    at += ones;
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pages: &mut FreePages, count: usize) -> Option<Vec<usize>> {
        let mut taken = Vec::new();
        pages.take(count, |page| taken.push(page));
        (taken.len() == count).then_some(taken)
    }

    #[test]
    fn whole_runs_come_first_and_low() {
        let mut pages = FreePages::all(200);
        assert_eq!(taken(&mut pages, 3), Some(vec![0, 1, 2]));
        let long: Vec<usize> = (3..133).collect();
        assert_eq!(taken(&mut pages, 130), Some(long), "across words");
        pages.put(1);
        assert_eq!(taken(&mut pages, 2), Some(vec![133, 134]), "a hole of one is left for one");
        assert_eq!(taken(&mut pages, 1), Some(vec![1]));
        assert_eq!(pages.count(), 200 - 135);
        assert_eq!(taken(&mut pages, 66), None);
        assert_eq!(taken(&mut pages, 65), Some((135..200).collect()));
        assert_eq!((pages.count(), taken(&mut pages, 1), taken(&mut pages, 0)), (0, None, Some(vec![])));
    }

    #[test]
    fn where_no_run_is_long_enough_few_are_taken() {
        let mut pages = FreePages::all(64);
        pages.take(64, |_| ());
        // Runs of 1, 4 and 8.
        [3, 10, 11, 12, 13].into_iter().chain(40..48).for_each(|page| pages.put(page));
        assert_eq!(taken(&mut pages, 9), Some(vec![40, 41, 42, 43, 44, 10, 11, 12, 13]));
        assert_eq!(taken(&mut pages, 4), Some(vec![45, 46, 3, 47]), "halved until they are found");
    }

    #[test]
    fn every_page_is_out_once_at_most() {
        let mut pages = FreePages::all(300);
        let mut held: Vec<Vec<usize>> = Vec::new();
        let mut state = 1u64;
        for _ in 0..5_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let number = (state >> 33) as usize;
            match (number % 3, held.len()) {
                (0, 1..) => held.swap_remove(number / 3 % held.len()).into_iter().for_each(|page| pages.put(page)),
                _ => held.extend(taken(&mut pages, number / 3 % 40)),
            }
            let mut out: Vec<usize> = held.iter().flatten().copied().collect();
            out.sort_unstable();
            assert!(out.windows(2).all(|pair| pair[0] < pair[1]) && out.last().is_none_or(|last| *last < 300));
            assert_eq!(out.len() + pages.count(), 300);
        }
    }
}
