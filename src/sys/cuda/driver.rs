//! The driver library: found, loaded and questioned once; a machine without one gets a sentence, not a panic.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cudarc::driver::sys;
use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUmodule, CUstream};

use super::library::Library;
use crate::error::{Error, Kind, Result};
use crate::sys::numa;
use crate::sys::process::{Birthplace, Once};

/// The oldest driver that the copy engine is written for: 12.0, as `cuDriverGetVersion` writes it.
const OLDEST_VERSION: c_int = 12_000;

pub(super) const SUCCESS: u32 = 0;
pub(super) const OUT_OF_MEMORY: u32 = 2;
pub(super) const NOT_READY: u32 = 600;
pub(super) const ALREADY_REGISTERED: u32 = 712;

/// The driver, initialised, with at least one device.
pub(crate) struct Driver {
    pub(super) calls: Calls,
    newer: Newer,
    version: c_int,
    devices: u32,
    /// The process that initialised it: in a child of it the driver works no more.
    process: Birthplace,
}

/// The driver of this process, loaded and initialised when first asked for. The answer does not change later.
///
/// # Errors
/// `Unsupported` when there is none or it is too old, and in a child of the process that it was loaded in; `Device` when it refuses to
/// start or has no device.
pub(crate) fn driver() -> Result<&'static Driver> {
    static DRIVER: Once<Result<Driver, Absence>> = Once::new();
    let driver = DRIVER.get_or_make("the CUDA driver was being started", Driver::load)?;
    let driver = driver.as_ref().map_err(Absence::error)?;
    driver.process.check("the CUDA driver was started")?;
    Ok(driver)
}

/// Why there is no driver to be had; kept, because an `Error` cannot be handed out twice.
struct Absence {
    kind: Kind,
    context: String,
    advice: &'static str,
}

impl Absence {
    fn error(&self) -> Error {
        Error::new(self.kind, self.context.clone()).advice(self.advice)
    }
}

/// Declares the table of entry points. `NAME` is looked up as a symbol; the signature is checked against cudarc's
/// bindings, except that a call returns a number: a driver newer than the bindings may return a code that their
/// enumeration does not have, which would be undefined behaviour to receive as one.
macro_rules! calls {
    ($($name:ident($($arg:ty),*);)*) => {
        /// Every entry point that is used, resolved at once: none can turn out to be missing later.
        #[expect(non_snake_case, reason = "the names of the symbols")]
        pub(super) struct Calls {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> u32,)*
            cuGetErrorName: unsafe extern "C" fn(u32, *mut *const c_char) -> u32,
        }

        impl Calls {
            /// The table, or the name of the first symbol that the library does not have.
            fn load(library: &Library) -> Result<Calls, &'static str> {
                Ok(Calls {
                    $($name: {
                        // SAFETY: the symbol has this signature: the constants below hold it against the bindings
                        // that were generated from the driver's own header, where `CUresult` is a `u32`.
                        let symbol = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *symbol.map_err(|_| stringify!($name))?
                    },)*
                    cuGetErrorName: {
                        // SAFETY: `CUresult cuGetErrorName(CUresult, const char **)`, and `CUresult` is a `u32`.
                        let symbol = unsafe { library.get(b"cuGetErrorName\0") };
                        *symbol.map_err(|_| "cuGetErrorName")?
                    },
                })
            }
        }

        $(const _: unsafe fn($($arg),*) -> sys::CUresult = sys::$name;)*
    };
}

calls! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, CUdevice);
    cuDeviceTotalMem_v2(*mut usize, CUdevice);
    cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, CUdevice);
    cuDeviceGetPCIBusId(*mut c_char, c_int, CUdevice);
    cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    cuDevicePrimaryCtxRelease_v2(CUdevice);
    cuCtxPushCurrent_v2(CUcontext);
    cuCtxPopCurrent_v2(*mut CUcontext);
    cuThreadExchangeStreamCaptureMode(*mut sys::CUstreamCaptureMode);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemAlloc_v2(*mut CUdeviceptr, usize);
    cuMemFree_v2(CUdeviceptr);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    cuStreamCreate(*mut CUstream, c_uint);
    cuStreamDestroy_v2(CUstream);
    cuStreamQuery(CUstream);
    cuStreamWaitEvent(CUstream, CUevent, c_uint);
    cuEventCreate(*mut CUevent, c_uint);
    cuEventDestroy_v2(CUevent);
    cuEventRecord(CUevent, CUstream);
    cuEventQuery(CUevent);
    cuModuleLoadDataEx(*mut CUmodule, *const c_void, c_uint, *mut sys::CUjit_option, *mut *mut c_void);
    cuModuleUnload(CUmodule);
    cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    cuLaunchKernel(
        CUfunction,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        CUstream,
        *mut *mut c_void,
        *mut *mut c_void
    );
}

/// Entry points that not every driver has. `CUresult` is a `u32` in all of them.
struct Newer {
    many_copies: Option<ManyCopies>,
    /// `CUresult cuDeviceGetAttribute(int *, CUdevice_attribute, CUdevice)`: by number, for attributes that some versions of the bindings
    /// do not have.
    attribute: Option<unsafe extern "C" fn(*mut c_int, c_int, CUdevice) -> u32>,
}

/// `cuMemcpyBatchAsync(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, [failIdx,] stream)`.
#[derive(Clone, Copy)]
pub(super) enum ManyCopies {
    /// Of 12.8, which tells where it failed.
    First(
        unsafe extern "C" fn(
            *mut CUdeviceptr,
            *mut CUdeviceptr,
            *mut usize,
            usize,
            *mut c_void,
            *mut usize,
            usize,
            *mut usize,
            CUstream,
        ) -> u32,
    ),
    /// Of 13.0, which does not.
    Second(
        unsafe extern "C" fn(
            *mut CUdeviceptr,
            *mut CUdeviceptr,
            *mut usize,
            usize,
            *mut c_void,
            *mut usize,
            usize,
            CUstream,
        ) -> u32,
    ),
}

impl Newer {
    /// As [`Calls::load`], after it. What is there but newer than `version`, which the driver says it is of, is left alone.
    fn load(library: &Library, version: c_int) -> Newer {
        // SAFETY: the symbols have the signatures above, as `cuda.h` of 13.0 and of 12.8 declare them under these names.
        let (second, first, attribute) = unsafe {
            (
                library.get(b"cuMemcpyBatchAsync_v2\0").map(|symbol| ManyCopies::Second(*symbol)),
                library.get(b"cuMemcpyBatchAsync\0").map(|symbol| ManyCopies::First(*symbol)),
                library.get(b"cuDeviceGetAttribute\0").map(|symbol| *symbol),
            )
        };
        let many_copies = match version {
            13_000.. => second.or(first).ok(),
            12_080.. => first.ok(),
            _ => None,
        };
        Newer { many_copies, attribute: attribute.ok() }
    }
}

impl Driver {
    /// The call for many copies, if the driver has one.
    pub(super) fn many_copies(&self) -> Option<ManyCopies> {
        self.newer.many_copies
    }

    /// Driver version as (major, minor).
    pub(crate) fn version(&self) -> (u32, u32) {
        let version = self.version.unsigned_abs();
        (version / 1000, version % 1000 / 10)
    }

    /// Devices that this process may use; `CUDA_VISIBLE_DEVICES` has been applied.
    pub(crate) fn devices(&self) -> u32 {
        self.devices
    }

    /// Device `ordinal` as the driver knows it.
    pub(crate) fn describe(&self, ordinal: u32) -> Result<Description> {
        let device = self.device(ordinal)?;
        let mut name = [0u8; 256];
        // SAFETY: `name` has 256 bytes; the driver writes at most that many, its final zero included.
        let code = unsafe { (self.calls.cuDeviceGetName)(name.as_mut_ptr().cast(), 256, device) };
        self.check(code, "asking the device for its name")?;
        let mut memory_bytes = 0;
        // SAFETY: a valid device and a place for the answer.
        let code = unsafe { (self.calls.cuDeviceTotalMem_v2)(&mut memory_bytes, device) };
        self.check(code, "asking the device for its memory")?;
        use sys::CUdevice_attribute_enum as Attribute;
        Ok(Description {
            name: CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned(),
            memory_bytes: memory_bytes as u64,
            compute_capability: (
                self.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                self.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            copy_engines: self.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT)?,
            host_node: self.host_node(device),
        })
    }

    /// The NUMA node next to a device: what the driver says (12.2 and newer), or the system of its PCI slot.
    fn host_node(&self, device: CUdevice) -> Option<u32> {
        const HOST_NUMA_ID: c_int = 134;
        let mut node = -1;
        // SAFETY: a place for the answer and a valid device; an attribute that the driver does not know is an error.
        let code = self.newer.attribute.map(|attribute| unsafe { attribute(&mut node, HOST_NUMA_ID, device) });
        if code == Some(SUCCESS) && node >= 0 {
            return u32::try_from(node).ok();
        }
        let mut slot = [0u8; 32];
        // SAFETY: `slot` has 32 bytes; the driver writes at most that many, its final zero included.
        let code = unsafe { (self.calls.cuDeviceGetPCIBusId)(slot.as_mut_ptr().cast(), slot.len() as c_int, device) };
        let slot = CStr::from_bytes_until_nul(&slot).ok().filter(|_| code == SUCCESS)?;
        numa::node_of_pci(slot.to_str().ok()?)
    }

    /// The driver's handle of device `ordinal`.
    pub(super) fn device(&self, ordinal: u32) -> Result<CUdevice> {
        if ordinal >= self.devices {
            let error = Error::new(Kind::Device, format!("no device cuda:{ordinal}: there are {}", self.devices));
            return Err(error.advice("count from 0, and see CUDA_VISIBLE_DEVICES"));
        }
        let mut device = 0;
        // SAFETY: a place for the answer; the ordinal is in range.
        let code = unsafe { (self.calls.cuDeviceGet)(&mut device, ordinal as c_int) };
        self.check(code, "opening the device")?;
        Ok(device)
    }

    /// `Ok` for success; otherwise the driver's own name for `code`, and what was being done.
    pub(super) fn check(&self, code: u32, doing: &'static str) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let error = Error::new(Kind::Device, format!("{doing}: {}", self.calls.name(code)));
        Err(match advice(code) {
            Some(advice) => error.advice(advice),
            None => error,
        })
    }

    fn load() -> Result<Driver, Absence> {
        let absent = |kind, context, advice| Absence { kind, context, advice };
        // SAFETY: loading runs the library's constructors, which is what loading it is for.
        let Some(library) = (unsafe { Library::open() }) else {
            return Err(absent(
                Kind::Unsupported,
                "no CUDA driver on this machine: libcuda.so cannot be loaded".into(),
                "install the NVIDIA driver, in a container run with its GPUs passed in, or take Device::host()",
            ));
        };
        const UPDATE: &str = "install NVIDIA driver 525 or newer, or take Device::host()";
        let calls = Calls::load(&library).map_err(|symbol| {
            absent(Kind::Unsupported, format!("the CUDA driver is too old: it has no {symbol}"), UPDATE)
        })?;
        let refused = |code, doing: &str| {
            let advice = advice(code).unwrap_or("see whether nvidia-smi works, or take Device::host()");
            absent(Kind::Device, format!("{doing}: {}", calls.name(code)), advice)
        };
        // SAFETY: flags must be 0, and are.
        let code = unsafe { (calls.cuInit)(0) };
        if code != SUCCESS {
            return Err(refused(code, "starting the CUDA driver"));
        }
        let (mut version, mut devices) = (0, 0);
        // SAFETY: places for the answers, of an initialised driver.
        let (code, also) =
            unsafe { ((calls.cuDriverGetVersion)(&mut version), (calls.cuDeviceGetCount)(&mut devices)) };
        if code != SUCCESS || also != SUCCESS {
            return Err(refused(code.max(also), "asking the CUDA driver for its version and devices"));
        }
        if version < OLDEST_VERSION {
            let context = format!("the CUDA driver is too old: {}.{}", version / 1000, version % 1000 / 10);
            return Err(absent(Kind::Unsupported, context, UPDATE));
        }
        let devices = u32::try_from(devices).unwrap_or_default();
        if devices == 0 {
            let advice = "see CUDA_VISIBLE_DEVICES and nvidia-smi, or take Device::host()";
            return Err(absent(Kind::Device, "the CUDA driver shows no device".into(), advice));
        }
        Ok(Driver { calls, newer: Newer::load(&library, version), version, devices, process: Birthplace::here() })
    }

    fn attribute(&self, device: CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: a valid device, an attribute of the bindings, and a place for the answer.
        let code = unsafe { (self.calls.cuDeviceGetAttribute)(&mut value, attribute, device) };
        self.check(code, "asking the device for an attribute")?;
        Ok(value.unsigned_abs())
    }
}

impl Calls {
    /// The driver's name for a code, with the number: `CUDA_ERROR_OUT_OF_MEMORY (2)`.
    fn name(&self, code: u32) -> String {
        let mut name = std::ptr::null();
        // SAFETY: a place for the answer; codes that the driver does not know leave it null and return an error.
        let known = unsafe { (self.cuGetErrorName)(code, &mut name) } == SUCCESS && !name.is_null();
        if !known {
            return format!("CUDA error {code}");
        }
        // SAFETY: on success `name` is a zero-terminated string that lives as long as the driver.
        format!("{} ({code})", unsafe { CStr::from_ptr(name) }.to_string_lossy())
    }
}

/// What the driver says of a device without opening it.
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) memory_bytes: u64,
    pub(crate) compute_capability: (u32, u32),
    pub(crate) copy_engines: u32,
    /// The NUMA node whose memory is nearest, if anybody knows.
    pub(crate) host_node: Option<u32>,
}

/// What the user can do about a driver's error.
fn advice(code: u32) -> Option<&'static str> {
    Some(match code {
        OUT_OF_MEMORY => "lower the batch size or the batches ahead, or free memory of the device",
        3 | 4 => "the driver is shutting down or this is a forked child: start workers with spawn",
        34 => "a stub libcuda.so is found before the driver's own: take the toolkit's stubs out of LD_LIBRARY_PATH",
        46 => "another process holds the device exclusively",
        100 => "see CUDA_VISIBLE_DEVICES and nvidia-smi, or take Device::host()",
        214 | 700 | 702 | 719 => {
            "a kernel or the device failed earlier in this process; CUDA_LAUNCH_BLOCKING=1 tells where"
        }
        209 | 218 | 222 => "finishing on the device needs compute capability 7.5 and driver 525, or newer ones of both",
        221 => {
            "the driver's compiler libnvidia-ptxjitcompiler.so.1 is missing: install it; in a container, pass NVIDIA_DRIVER_CAPABILITIES=compute in"
        }
        223 => "CUDA_DISABLE_PTX_JIT keeps the driver from compiling the kernels: unset it",
        802 => "the fabric manager is not ready: wait for nvidia-fabricmanager and start again",
        803 | 804 => "the driver's library and its kernel module are of different versions: reboot or reinstall",
        999 => "reload the driver's kernel modules or reboot",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_told_the_same_way_each_time() {
        let (first, second) = (driver().err(), driver().err());
        assert_eq!(first.as_ref().map(ToString::to_string), second.map(|error| error.to_string()));
        if let Some(error) = first {
            assert!(matches!(error.kind(), Kind::Device | Kind::Unsupported), "{error}");
            assert!(error.next_step().is_some(), "{error}");
        }
    }
}
