//! How much is done to find a figure.

use std::time::Duration;

/// Sizes and times of a measurement.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Bytes of host memory that are page-locked to find what that takes.
    pub pinned_bytes: usize,
    /// Bytes of host memory that copies read from, and of the device's that they write to.
    pub region_bytes: usize,
    /// Copy sizes, in bytes.
    pub sizes: Vec<usize>,
    /// The least time that one figure is measured for, a few times over. A third of it is for warming up before: clocks and links of an idle
    /// device take their time.
    pub window: Duration,
    /// Figures of which the median is told.
    pub rounds: usize,
    /// Bytes of a dense batch.
    pub batch_bytes: usize,
    /// Samples of a shuffled batch, and the bytes of each.
    pub samples: (usize, usize),
    /// Rows and columns of the product's matrices: a multiple of 128.
    pub matrix: usize,
}

impl Effort {
    /// A few minutes: figures to publish.
    pub fn full() -> Effort {
        Effort {
            pinned_bytes: 4 << 30,
            region_bytes: 256 << 20,
            sizes: (16..=24).chain([26]).map(|power| 1 << power).collect(),
            window: Duration::from_millis(250),
            rounds: 5,
            batch_bytes: 64 << 20,
            samples: (256, 100_000),
            matrix: 4096,
        }
    }

    /// Some ten seconds: is this machine in order?
    pub fn short() -> Effort {
        Effort {
            pinned_bytes: 1 << 30,
            sizes: vec![64 << 10, 1 << 20, 4 << 20, 64 << 20],
            window: Duration::from_millis(100),
            rounds: 3,
            ..Effort::full()
        }
    }

    /// As little as shows that it works; the figures mean nothing.
    pub fn glance() -> Effort {
        Effort {
            pinned_bytes: 2 << 20,
            region_bytes: 2 << 20,
            sizes: vec![64 << 10, 1 << 20],
            window: Duration::ZERO,
            rounds: 1,
            batch_bytes: 1 << 20,
            samples: (12, 30_001),
            matrix: 128,
        }
    }
}
