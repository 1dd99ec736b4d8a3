//! A CUDA stream as a value: ours, the framework's, or one of the default ones.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Names a stream of the device that a batch lives on. Where there is no device it means nothing, and does nothing.
#[derive(Clone)]
pub struct RawStream {
    handle: usize,
    /// What destroys a stream of ours once its last clone is gone.
    #[expect(dead_code, reason = "held for its Drop")]
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl RawStream {
    /// The legacy default stream, which waits for every blocking stream and makes them wait: what PyTorch uses unless
    /// told otherwise.
    pub const LEGACY_DEFAULT: RawStream = RawStream { handle: 1, owner: None };

    /// The calling thread's default stream (`--default-stream per-thread`).
    pub const PER_THREAD_DEFAULT: RawStream = RawStream { handle: 2, owner: None };

    /// A stream by its `CUstream` handle, as frameworks give it (`torch.cuda.Stream.cuda_stream`); 0 and 1 are the
    /// legacy default stream, 2 the thread's own.
    ///
    /// # Safety
    /// The stream belongs to the primary context of the batch's device, and stays alive until every slot that
    /// was told of it has been released.
    pub const unsafe fn from_raw(handle: usize) -> RawStream {
        RawStream { handle: if handle == 0 { 1 } else { handle }, owner: None }
    }

    /// A stream that `owner` keeps alive.
    pub(crate) fn owned(handle: usize, owner: Arc<dyn Any + Send + Sync>) -> RawStream {
        RawStream { handle, owner: Some(owner) }
    }

    /// The `CUstream` handle, for handing to other libraries. Keep this value for as long as they use it.
    pub fn handle(&self) -> usize {
        self.handle
    }
}

impl PartialEq for RawStream {
    fn eq(&self, other: &Self) -> bool {
        self.handle == other.handle
    }
}

impl Eq for RawStream {}

impl fmt::Debug for RawStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handle {
            1 => f.write_str("RawStream(legacy default)"),
            2 => f.write_str("RawStream(per-thread default)"),
            handle => write!(f, "RawStream({handle:#x})"),
        }
    }
}
