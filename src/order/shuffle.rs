//! How far samples travel from their place in the dataset.

/// Reach and seed of the shuffle.
///
/// The window is a promise in both directions: every sample leaves within one window of its arrival, which bounds the
/// pinned memory it takes, and the samples of a batch come from one window of the block-permuted stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shuffle {
    window: u64,
    seed: u64,
}

impl Shuffle {
    /// Dataset order: blocks are not permuted either. The default.
    ///
    /// With more than one lane each lane keeps dataset order within its own contiguous part of the dataset.
    pub const fn none() -> Self {
        Shuffle { window: 0, seed: 0 }
    }

    /// Blocks are permuted, then samples within a window of `samples`: those of the whole job, over all ranks.
    pub const fn window(samples: u64) -> Self {
        Shuffle { window: samples, seed: 0 }
    }

    /// The same reach with another order; the seed is 0 otherwise.
    #[must_use]
    pub const fn seed(self, seed: u64) -> Self {
        Shuffle { seed, ..self }
    }

    /// Samples in the window, over all ranks; 0 is dataset order.
    pub const fn window_samples(&self) -> u64 {
        self.window
    }

    /// What [`Shuffle::seed`] set.
    pub const fn seed_value(&self) -> u64 {
        self.seed
    }

    /// Whether this is dataset order.
    pub const fn is_none(&self) -> bool {
        self.window == 0
    }
}

impl Default for Shuffle {
    fn default() -> Self {
        Shuffle::none()
    }
}
