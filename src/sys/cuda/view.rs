//! Device memory as cudarc's kernels and functions take it.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::thread::ThreadId;

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr, DeviceSlice, LaunchArgs, PushKernelArg, SyncOnDrop};

use super::RawStream;
use crate::sys::plain::Plain;

/// Elements of a batch in the hands of one stream: the stream has been told to wait for the batch, and the batch's slot is refilled only after what
/// the stream has been given to do when the batch is let go of. Made by [`View::on`](crate::loader::View::on).
///
/// Give `&view` to [`LaunchArgs::arg`] as a pointer to `T`, or to what takes a [`DevicePtr`], as `CudaStream::clone_dtod` and cudarc's cuBLAS do.
/// The elements are for reading. Launch in the stream that it was made for: a launch elsewhere is not told of; where that is the per-thread default
/// stream, launch on the thread that it was made on. A function of cudarc's that is called on another stream is safe: that stream waits
/// for this one, and the host waits for that stream.
pub struct StreamView<'a, T> {
    pointer: CUdeviceptr,
    len: usize,
    stream: Arc<CudaStream>,
    /// Whose the stream is, where its name stands for another one on each thread.
    thread: Option<ThreadId>,
    elements: PhantomData<&'a [T]>,
}

impl<'a, T: Plain> StreamView<'a, T> {
    /// `len` elements at `pointer`, which `'a` keeps.
    pub(super) fn new(pointer: CUdeviceptr, len: usize, stream: &Arc<CudaStream>) -> StreamView<'a, T> {
        let is_threads_own = RawStream::from(stream) == RawStream::PER_THREAD_DEFAULT;
        let thread = is_threads_own.then(|| std::thread::current().id());
        StreamView { pointer, len, stream: Arc::clone(stream), thread, elements: PhantomData }
    }
}

impl<T> StreamView<'_, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address on the device.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }
}

impl<T> DeviceSlice<T> for StreamView<'_, T> {
    fn len(&self) -> usize {
        self.len
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

impl<T> DevicePtr<T> for StreamView<'_, T> {
    fn device_ptr<'a>(&'a self, stream: &'a CudaStream) -> (CUdeviceptr, SyncOnDrop<'a>) {
        let is_elsewhere = self.thread.is_some_and(|thread| thread != std::thread::current().id());
        if *stream == *self.stream && !is_elsewhere {
            return (self.pointer, SyncOnDrop::Record(None));
        }
        // The slot has not heard of this stream. It waits for ours, which waits for the batch; its reads are over when the host goes on.
        // Another thread's own stream has no name here; the legacy default stream comes behind all of them.
        let joined = match is_elsewhere {
            true => stream.join(&self.stream.context().default_stream()),
            false => stream.join(&self.stream),
        };
        stream.context().record_err(joined);
        (self.pointer, SyncOnDrop::sync_stream(stream))
    }
}

// SAFETY: what is pushed is the address of the pointer, which is what a kernel takes for a `const T *`. It is borrowed for as long as the
// arguments are, and the view's lifetime keeps the batch.
unsafe impl<'a, 'b: 'a, 'c: 'b, T> PushKernelArg<&'b StreamView<'c, T>> for LaunchArgs<'a> {
    #[inline(always)]
    fn arg(&mut self, arg: &'b StreamView<'c, T>) -> &mut Self {
        PushKernelArg::<&'b CUdeviceptr>::arg(self, &arg.pointer)
    }
}

impl<T> fmt::Debug for StreamView<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamView")
            .field("pointer", &format_args!("{:#x}", self.pointer))
            .field("len", &self.len)
            .field("stream", &format_args!("{:?}", self.stream.cu_stream()))
            .finish()
    }
}
