//! Which device: what users write, and what it stands for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use super::cuda::CudaBackend;
use super::host::HostBackend;
use super::{Backend, RawStream};
use crate::error::{Error, Kind, Result};

/// Where batches go: host memory or a GPU. Cheap to clone; parses from `host`, `cuda:1` and `best`.
#[derive(Clone)]
pub struct Device(Which);

#[derive(Clone)]
enum Which {
    Host,
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaBackend>),
}

impl Device {
    /// Plain host memory.
    pub fn host() -> Device {
        Device(Which::Host)
    }

    /// The CUDA device `ordinal`, counted from 0 among those that `CUDA_VISIBLE_DEVICES` shows. Takes nothing of the device yet.
    ///
    /// # Errors
    /// `Unsupported` without a driver, with one older than 12.0, or in a build without the feature `cuda`; `Device`
    /// when there is no such device or the driver does not start.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: u32) -> Result<Device> {
        CudaBackend::find(ordinal).map(|backend| Device(Which::Cuda(Arc::new(backend))))
    }

    /// The CUDA device `ordinal`: not in this build.
    ///
    /// # Errors
    /// `Unsupported`, always.
    #[cfg(not(feature = "cuda"))]
    pub fn cuda(ordinal: u32) -> Result<Device> {
        let error = Error::new(Kind::Unsupported, format!("cuda:{ordinal}: this build has no CUDA"));
        Err(error.advice("build with the feature cuda, or take Device::host()"))
    }

    /// The first GPU if there is one and it can be opened, host memory otherwise. [`super::probe`] tells why.
    pub fn best() -> Device {
        #[cfg(feature = "cuda")]
        if let Ok(backend) = CudaBackend::find(0)
            && backend.context().is_ok()
        {
            return Device(Which::Cuda(Arc::new(backend)));
        }
        Device::host()
    }

    /// What it is, for messages: `host memory`, `cuda:0 (NVIDIA H100)`.
    pub fn name(&self) -> String {
        self.backend().name()
    }

    /// Whether batches lie in host memory.
    pub fn is_host(&self) -> bool {
        matches!(self.0, Which::Host)
    }

    /// Position among the CUDA devices; `None` for host memory.
    pub fn ordinal(&self) -> Option<u32> {
        match &self.0 {
            Which::Host => None,
            #[cfg(feature = "cuda")]
            Which::Cuda(backend) => Some(backend.ordinal()),
        }
    }

    /// What opens it.
    pub fn backend(&self) -> Arc<dyn Backend> {
        match &self.0 {
            Which::Host => Arc::new(HostBackend),
            #[cfg(feature = "cuda")]
            Which::Cuda(backend) => Arc::clone(backend) as Arc<dyn Backend>,
        }
    }

    /// A new non-blocking stream of this device, destroyed with its last clone; for host memory, a name for nothing.
    ///
    /// # Errors
    /// `Device` when the device cannot be opened.
    pub fn stream(&self) -> Result<RawStream> {
        match &self.0 {
            Which::Host => Ok(RawStream::LEGACY_DEFAULT),
            #[cfg(feature = "cuda")]
            Which::Cuda(backend) => backend.stream(),
        }
    }
}

#[cfg(all(feature = "cuda", feature = "measure"))]
impl Device {
    /// Its context, for measurements.
    pub(super) fn context(&self) -> Result<Arc<crate::sys::cuda::Context>> {
        match &self.0 {
            Which::Cuda(backend) => backend.context(),
            Which::Host => Err(Device::nothing_to_measure()),
        }
    }

    /// The same device, whose engines issue copies one by one.
    pub(super) fn one_by_one(&self) -> Result<Device> {
        match &self.0 {
            Which::Cuda(backend) => Ok(Device(Which::Cuda(Arc::new(backend.one_by_one()?)))),
            Which::Host => Err(Device::nothing_to_measure()),
        }
    }

    fn nothing_to_measure() -> Error {
        Error::new(Kind::Unsupported, "host memory has nothing of a GPU to measure").advice("name a GPU: cuda:0")
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.ordinal() == other.ordinal()
    }
}

impl Eq for Device {}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({self})")
    }
}

/// The way it is written: `host`, `cuda:0`.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ordinal() {
            None => f.write_str("host"),
            Some(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// `host` or `cpu`, `cuda` (the first), `cuda:1`, `best`.
    ///
    /// # Errors
    /// `Config` for anything else; otherwise those of [`Device::cuda`].
    fn from_str(text: &str) -> Result<Device> {
        match text {
            "host" | "cpu" => return Ok(Device::host()),
            "best" => return Ok(Device::best()),
            "cuda" => return Device::cuda(0),
            _ => {}
        }
        match text.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok()) {
            Some(ordinal) => Device::cuda(ordinal),
            None => {
                Err(Error::new(Kind::Config, format!("device {text:?}")).advice("write host, cuda, cuda:1 or best"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{copy_rate, probe};

    #[test]
    fn parses_what_it_writes() {
        for (text, written) in [("host", "host"), ("cpu", "host")] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), written);
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99999999999"] {
            let error = text.parse::<Device>().unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text}");
        }
    }

    /// With a driver and without one: no panic, and a sentence that says what to do.
    #[test]
    fn a_device_that_is_not_there_is_explained() {
        let facts = probe();
        for (text, ordinal) in [("cuda", 0), ("cuda:1", 1), ("cuda:4000000000", 4_000_000_000u32)] {
            match text.parse::<Device>() {
                Ok(device) => {
                    assert!((ordinal as usize) < facts.devices.len());
                    assert!(device.name().starts_with(&format!("cuda:{ordinal} (")), "{}", device.name());
                }
                Err(error) => {
                    assert!((ordinal as usize) >= facts.devices.len(), "{error}");
                    assert!(matches!(error.kind(), Kind::Device | Kind::Unsupported), "{error}");
                    assert!(error.next_step().is_some(), "{error}");
                }
            }
        }
        assert_eq!(facts.devices.is_empty(), facts.problem.is_some());
        if facts.devices.is_empty() {
            assert_eq!(Device::best(), Device::host());
            assert_eq!(Device::best().name(), "host memory");
        }
    }

    /// Also the way in which this runs on a real GPU, where there is one: the bytes are compared.
    #[test]
    fn devices_take_batches_at_some_rate() {
        for device in [Device::host(), Device::best()] {
            let rate = copy_rate(&device, 1).unwrap();
            assert!(rate > 10.0, "{device}: {rate} MB/s");
        }
    }
}
