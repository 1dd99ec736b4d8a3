//! How many pages a window needs, whatever the epoch's permutation.

use crate::dataset::Block;

use super::Shape;

/// Pages that a rank needs to keep every batch of every epoch moving without reading a byte twice.
///
/// With sliding keys a block is needed from its first sample's turn until one window of its lane later. At any moment a
/// lane therefore holds blocks of at most one window of samples, and one block more at either end. Which blocks
/// these are changes with the epoch, so the bound takes the worst: the blocks with the most pages per sample for
/// the window, and the largest ones for the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Pages for the samples of the window and of the batches being assembled.
    pub window_pages: usize,
    /// Pages for the blocks that are partly inside: two for each lane.
    pub edge_pages: usize,
    /// Pages of the largest block.
    pub block_pages: usize,
    /// The most blocks that are held at a time.
    pub blocks: usize,
}

impl Budget {
    /// For a rank with `lanes` lanes of `lane_window` samples each that assembles `batch_samples` at a time.
    pub fn new(blocks: &[Block], shape: &Shape, lanes: u32, lane_window: u64, batch_samples: u64) -> Self {
        // A block is read in requests of equal length; each is rounded up to whole pages.
        let pages = |block: &Block| {
            let requests = block.extent.len.div_ceil(shape.request_bytes).max(1);
            requests as usize * shape.pages(block.extent.len.div_ceil(requests))
        };
        let mut sizes: Vec<(u32, usize)> = blocks.iter().map(|block| (block.samples.max(1), pages(block))).collect();
        let block_pages = sizes.iter().map(|(_, pages)| *pages).max().unwrap_or(0);
        let all: usize = sizes.iter().map(|(_, pages)| pages).sum();
        // Most pages per sample first: a/b > c/d as a*d > c*b, without rounding.
        sizes.sort_unstable_by(|a, b| (b.1 as u64 * u64::from(a.0)).cmp(&(a.1 as u64 * u64::from(b.0))));
        let mut left = u64::from(lanes) * lane_window + batch_samples;
        let mut window_pages = 0;
        for (samples, pages) in sizes {
            if left == 0 {
                break;
            }
            let taken = left.min(u64::from(samples));
            window_pages += (pages as u64 * taken).div_ceil(u64::from(samples)) as usize;
            left -= taken;
        }
        let edge_pages = (2 * lanes as usize * block_pages).min(all - window_pages.min(all));
        let blocks = fewest_samples(blocks, u64::from(lanes) * lane_window + batch_samples) + 2 * lanes as usize;
        Budget { window_pages, edge_pages, block_pages, blocks }
    }

    /// Pages in all.
    pub fn pages(&self) -> usize {
        self.window_pages + self.edge_pages
    }

    /// Pages without which a rank may come to a stand: for what [`Budget::pages`] counts, and for one block more in flight or, where
    /// that is more, the last pages, partly filled, of the reads that the oldest batch comes in.
    ///
    /// At the cold start these are as many as it has `values` (rows × fields), and one more for each short read's worth of their
    /// bytes, at most `value_bytes`, and of the gaps between them that are read over. Of blocks that are read in long reads, a batch
    /// uses no more reads than it has values either. And reads that lie apart by more than a gap, or are long, are no more than fit
    /// into what is held.
    pub fn pages_wanted(&self, shape: &Shape, values: u64, value_bytes: u64) -> usize {
        let bytes = self.pages() as u64 * shape.page_bytes as u64;
        let (short, long) = (shape.cold_request_bytes.max(1), shape.incomplete_request_bytes().max(1));
        let apart = (bytes / shape.gap_bytes.max(1)).saturating_add(self.blocks as u64 + 2 * bytes / long);
        let reads = value_bytes.min(bytes) / short + values.min(apart) * shape.gap_bytes.div_ceil(short).max(1);
        let widening = if shape.alignment > 1 { 2 * shape.alignment as u64 } else { 0 };
        let partly = reads + (reads * widening).div_ceil(shape.page_bytes as u64);
        self.pages().saturating_add(self.block_pages.max(usize::try_from(partly).unwrap_or(usize::MAX)))
    }
}

/// How many blocks `samples` samples can come from at the most.
fn fewest_samples(blocks: &[Block], samples: u64) -> usize {
    let mut sizes: Vec<u32> = blocks.iter().map(|block| block.samples).collect();
    sizes.sort_unstable();
    let mut left = samples;
    let within = |size: &&u32| {
        let more = left > 0;
        left = left.saturating_sub(u64::from(**size));
        more
    };
    sizes.iter().take_while(within).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Extent;

    fn blocks(sizes: &[(u32, u64)]) -> Vec<Block> {
        let mut first = 0;
        let make = |&(samples, len): &(u32, u64)| {
            let block = Block { first, samples, extent: Extent { shard: 0, start: 0, len } };
            first += u64::from(samples);
            block
        };
        sizes.iter().map(make).collect()
    }

    const SHAPE: Shape =
        Shape { request_bytes: 1 << 20, cold_request_bytes: 1 << 18, gap_bytes: 0, page_bytes: 1 << 16, alignment: 1 };

    #[test]
    fn counts_the_window_and_two_blocks_for_each_lane() {
        let blocks = blocks(&[(10, 10 << 16); 100]);
        let budget = Budget::new(&blocks, &SHAPE, 2, 50, 20);
        assert_eq!(budget, Budget { window_pages: 120, edge_pages: 40, block_pages: 10, blocks: 16 });
    }

    #[test]
    fn takes_the_densest_blocks_for_the_worst() {
        let blocks = blocks(&[(10, 1 << 16), (1, 8 << 16), (1, 8 << 16)]);
        let budget = Budget::new(&blocks, &SHAPE, 1, 2, 0);
        assert_eq!(budget.window_pages, 16);
        assert_eq!(budget.pages(), 17, "never more than the dataset");
    }
}
