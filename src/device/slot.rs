//! A slot on its way: engine → batch → engine.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaStream;

use super::RawStream;
#[cfg(feature = "cuda")]
use super::cuda::CudaSlot;
use super::home::Home;
use super::host::HostSlot;
use crate::error::{Error, Kind, Result};
use crate::sys::process::Birthplace;
#[cfg(feature = "cuda")]
use crate::sys::{cuda::StreamView, plain::Plain};

/// Memory for one batch, owned: by the engine that fills it, then by the batch, then by the engine again.
///
/// Dropping it is [`DeviceSlot::release`] without a stream. It may outlive its engine; the memory is freed then.
pub struct DeviceSlot {
    /// `None` only inside `release` and `Drop`.
    place: Option<Place>,
}

/// A slot of a backend, with the way home.
pub(super) enum Place {
    Host(HostSlot, Arc<Home<HostSlot>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaSlot>, Arc<Home<Box<CudaSlot>>>),
}

impl Place {
    /// The process that it belongs to.
    fn born(&self) -> Birthplace {
        match self {
            Place::Host(_, home) => home.born,
            #[cfg(feature = "cuda")]
            Place::Cuda(_, home) => home.born,
        }
    }
}

impl DeviceSlot {
    /// Bytes in the slot.
    #[expect(clippy::len_without_is_empty, reason = "a slot is never empty")]
    pub fn len(&self) -> usize {
        match self.place() {
            Some(Place::Host(slot, _)) => slot.bytes().len(),
            #[cfg(feature = "cuda")]
            Some(Place::Cuda(slot, _)) => slot.len(),
            None => 0,
        }
    }

    /// The bytes, where the host can read them; what was not copied to since the slot was acquired is undefined.
    pub fn bytes(&self) -> Option<&[u8]> {
        match self.place()? {
            Place::Host(slot, _) => Some(slot.bytes()),
            #[cfg(feature = "cuda")]
            Place::Cuda(..) => None,
        }
    }

    /// Address of the first byte, in the device's memory or in the host's. Valid until the slot is released.
    pub fn device_pointer(&self) -> u64 {
        match self.place() {
            Some(Place::Host(slot, _)) => slot.bytes().as_ptr() as u64,
            #[cfg(feature = "cuda")]
            Some(Place::Cuda(slot, _)) => slot.pointer(),
            None => 0,
        }
    }

    /// Has `stream` wait until the batch has landed; the host does not wait. Does nothing for host memory.
    ///
    /// The slot remembers the stream: dropping the slot lets the engine refill it only after what `stream` has been given to
    /// do by then.
    ///
    /// # Errors
    /// `Config` for more than eight different streams, or a stream that is known to be another device's; `Device`.
    pub fn wait_on(&self, stream: RawStream) -> Result<()> {
        match self.place() {
            #[cfg(feature = "cuda")]
            Some(Place::Cuda(slot, _)) => slot.wait_on(stream),
            _ => {
                let _ = stream;
                Ok(())
            }
        }
    }

    /// Waits on the host until the batch has landed, at most 30 seconds. Not needed where a stream waits.
    ///
    /// # Errors
    /// `Stalled` when it did not land in time; `Device`.
    pub fn synchronize(&self) -> Result<()> {
        match self.place() {
            #[cfg(feature = "cuda")]
            Some(Place::Cuda(slot, _)) => slot.synchronize(),
            _ => Ok(()),
        }
    }

    /// Reads `len` bytes at `at` after the batch has landed: for tests and digests. On a GPU it blocks, and copies.
    ///
    /// # Errors
    /// `Config` for a range outside the slot; `Stalled` when the batch did not land within 30 seconds; `Device`.
    pub fn read_back(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        match self.place() {
            Some(Place::Host(slot, _)) => slot.range(at, len).map(<[u8]>::to_vec),
            #[cfg(feature = "cuda")]
            Some(Place::Cuda(slot, _)) => slot.read_back(at, len),
            None => Err(Error::new(Kind::Config, "the slot was released")),
        }
    }

    /// Gives the slot back. On a GPU it is refilled only after what has been enqueued so far in `stream`, and in every stream that
    /// [`DeviceSlot::wait_on`] was told of.
    ///
    /// With neither it is the legacy default stream, which covers all blocking streams. A batch used in a non-blocking stream that
    /// `wait_on` has not heard of must name it here, or have been synchronised with by the host.
    ///
    /// # Errors
    /// `Device` when that could not be recorded; the slot is lost then, and the engine says so. `Config` for a stream that is known to be another
    /// device's: the slot goes back as if none had been named. `Unsupported` in a forked child, where it belongs to the parent: letting go of
    /// it does nothing there.
    pub fn release(mut self, stream: Option<RawStream>) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Some(Place::Cuda(slot, _)), Some(stream)) = (self.place(), &stream) {
            slot.admit(stream)?;
        }
        self.give_back(stream)
    }

    /// Elements at `at`, for kernels in `stream`, which waits for the batch as with [`DeviceSlot::wait_on`].
    ///
    /// # Errors
    /// `Unsupported` for host memory; `Config` for a range outside the slot; otherwise those of `wait_on`.
    #[cfg(feature = "cuda")]
    pub(crate) fn view_in<T: Plain>(
        &self,
        at: usize,
        len: usize,
        stream: &Arc<CudaStream>,
    ) -> Result<StreamView<'_, T>> {
        match self.place() {
            Some(Place::Cuda(slot, _)) => slot.view_in(at, len, stream),
            _ => Err(Error::new(Kind::Unsupported, "the batch lies in host memory, where kernels do not reach it")
                .advice("read it with as_slice, or build the loader with .device(Device::cuda(0)?)")),
        }
    }

    pub(super) fn new(place: Place) -> DeviceSlot {
        DeviceSlot { place: Some(place) }
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    pub(super) fn place_mut(&mut self) -> Option<&mut Place> {
        self.place.as_mut()
    }

    fn give_back(&mut self, stream: Option<RawStream>) -> Result<()> {
        let Some(place) = self.place.take() else { return Ok(()) };
        if let Err(error) = place.born().check("a batch was made") {
            // A child has neither the engine nor its locks' holders.
            std::mem::forget(place);
            return Err(error);
        }
        match place {
            Place::Host(slot, home) => {
                let _ = stream;
                home.take_back(slot);
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Place::Cuda(mut slot, home) => match slot.let_go(stream) {
                Ok(()) => {
                    home.take_back(slot);
                    Ok(())
                }
                Err(error) => {
                    // Nobody knows when the consumer is done with it: neither reuse nor freeing is safe, unless all has stopped.
                    if !slot.has_failed() {
                        slot.abandon();
                    }
                    home.lose(&error);
                    Err(error)
                }
            },
        }
    }
}

impl Drop for DeviceSlot {
    fn drop(&mut self) {
        // An error is not lost: the engine reports it when it is next asked for a slot.
        let _ = self.give_back(None);
    }
}

impl fmt::Debug for DeviceSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = format_args!("{:#x}", self.device_pointer()).to_string();
        f.debug_struct("DeviceSlot").field("address", &address).field("bytes", &self.len()).finish()
    }
}

/// The error for a slot that an engine did not make.
pub(super) fn stranger() -> Error {
    Error::new(Kind::Config, "a slot of another engine")
}
