//! A CUDA stream as a value: ours, the framework's, or one of the default ones.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaStream;

/// Names a stream of the device that a batch lives on. Where there is no device it means nothing, and does nothing.
///
/// Made from a stream of cudarc's (`RawStream::from(&stream)`, which keeps it alive), from a handle that another library
/// gave ([`RawStream::from_raw`]), or by [`Device::stream`](crate::device::Device::stream).
#[derive(Clone)]
pub struct RawStream {
    handle: usize,
    /// The `CUcontext` it was made in, where that is known.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "there are no streams to tell apart"))]
    context: Option<usize>,
    /// What destroys the stream once its last clone is gone.
    #[expect(dead_code, reason = "held for its Drop")]
    owner: Option<Arc<dyn Any + Send + Sync>>,
}

impl RawStream {
    /// The legacy default stream, which waits for every blocking stream and makes them wait: what PyTorch uses unless
    /// told otherwise.
    pub const LEGACY_DEFAULT: RawStream = RawStream { handle: 1, context: None, owner: None };

    /// The calling thread's default stream (`--default-stream per-thread`).
    pub const PER_THREAD_DEFAULT: RawStream = RawStream { handle: 2, context: None, owner: None };

    /// A stream by its `CUstream` handle, as frameworks give it (`torch.cuda.Stream.cuda_stream`); 0 and 1 are the
    /// legacy default stream, 2 the thread's own.
    ///
    /// # Safety
    /// The stream belongs to the primary context of the batch's device, and stays alive until every slot that
    /// was told of it has been released.
    pub const unsafe fn from_raw(handle: usize) -> RawStream {
        RawStream { handle: if handle == 0 { 1 } else { handle }, context: None, owner: None }
    }

    /// A stream that `owner` keeps alive.
    #[cfg(feature = "cuda")]
    pub(crate) fn owned(handle: usize, owner: Arc<dyn Any + Send + Sync>) -> RawStream {
        RawStream { handle, context: None, owner: Some(owner) }
    }

    /// The `CUcontext` it was made in, where that is known.
    #[cfg(feature = "cuda")]
    pub(crate) fn context(&self) -> Option<usize> {
        self.context
    }

    /// The `CUstream` handle, for handing to other libraries. Keep this value for as long as they use it.
    pub fn handle(&self) -> usize {
        self.handle
    }
}

impl From<&RawStream> for RawStream {
    fn from(stream: &RawStream) -> RawStream {
        stream.clone()
    }
}

#[cfg(feature = "cuda")]
impl From<&Arc<CudaStream>> for RawStream {
    /// A stream of cudarc's, its default ones included, kept alive for as long as this value and its clones are.
    fn from(stream: &Arc<CudaStream>) -> RawStream {
        RawStream::from(Arc::clone(stream))
    }
}

#[cfg(feature = "cuda")]
impl From<Arc<CudaStream>> for RawStream {
    /// As from a reference to it.
    fn from(stream: Arc<CudaStream>) -> RawStream {
        // cudarc writes the legacy default stream as 0.
        let handle = (stream.cu_stream() as usize).max(1);
        RawStream { handle, context: Some(stream.context().cu_ctx() as usize), owner: Some(stream) }
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
