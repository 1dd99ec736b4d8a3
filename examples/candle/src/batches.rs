//! A batch as candle's tensor: where that takes a copy, and why.
//!
//! A tensor of candle's owns its memory: on the CPU it is a `Vec`, on a GPU a `CudaSlice` that frees itself. Neither can be lent, so a batch's slot, which goes
//! back to the loader, cannot become a tensor as it is; `from_vec`, `from_slice` and `from_raw_buffer` all end with bytes of candle's own. So:
//!
//! - **On the CPU**: one copy of the batch, by `Tensor::from_slice` out of the slot.
//! - **On a GPU**: one copy *on the device*, in candle's stream, behind the batch's landing: some microseconds for some megabytes, at the speed of the device's
//!   memory. The host copies nothing and waits for nothing. cudarc's `upgrade_device_ptr` would make a tensor of the slot itself, but whoever drops its
//!   last clone then frees memory that is farfeed's: one must get the `CudaSlice` back out of the tensor and `leak` it, each time. It is not worth that.
//! - **Without a copy** run operations of one's own: a candle `CustomOp` reads a view's memory where it lies, and so does any kernel (`examples/07_kernel.rs`).

use candle_core::{Device, Tensor};
use farfeed::Batch;

use crate::Result;

/// What the batch's way into a tensor is.
pub(crate) const HOW: &str = if cfg!(feature = "cuda") { "a copy on the device" } else { "a copy on the host" };

/// Where batches go, and where the model is.
pub(crate) struct Place {
    pub(crate) farfeed: farfeed::device::Device,
    pub(crate) candle: Device,
}

impl Place {
    /// The first GPU with the feature `cuda`, otherwise the host.
    pub(crate) fn new() -> Result<Place> {
        #[cfg(feature = "cuda")]
        // With a stream of its own: the one that `new_cuda` takes means another one on each thread.
        let (farfeed, candle) = (farfeed::device::Device::cuda(0)?, Device::new_cuda_with_stream(0)?);
        #[cfg(not(feature = "cuda"))]
        let (farfeed, candle) = (farfeed::device::Device::host(), Device::Cpu);
        Ok(Place { farfeed, candle })
    }

    /// A dense column of uint32 as a tensor of its shape.
    pub(crate) fn tensor(&self, batch: &Batch, column: &str) -> Result<Tensor> {
        let view = batch.view::<u32>(column)?;
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.candle {
            use candle_core::op::BackpropOp;
            use candle_core::{CudaStorage, Storage};
            let stream = device.cuda_stream();
            // The view makes the stream wait for the batch. The batch may be dropped behind this: its slot is refilled only after the copy.
            let copy = stream.clone_dtod(&view.on(&stream)?)?;
            let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(copy, device.clone()));
            return Ok(Tensor::from_storage(storage, view.shape(), BackpropOp::none(), false));
        }
        let tokens = view.as_slice().ok_or("the batch lies on a device that candle was not built for")?;
        Ok(Tensor::from_slice(tokens, view.shape(), &self.candle)?)
    }
}
