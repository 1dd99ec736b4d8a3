//! GPUs, their driver, and how fast batches get there.

use farfeed::ByteSize;
use farfeed::device::{Device, DeviceFacts, DriverFacts, copy_rate};

use super::{Check, Status, rate};

/// Bytes that are copied to find a rate: long enough for a steady one, and still well below a second.
const COPIED: usize = 512 << 20;

/// `quick` copies so little that the rates mean nothing.
pub(super) fn checks(driver: &DriverFacts, quick: bool) -> Vec<Check> {
    let copied = if quick { COPIED / 16 } else { COPIED };
    let mut checks = vec![driver_check(driver), host_copies(copied)];
    for device in &driver.devices {
        checks.push(device_check(device));
        checks.push(device_copies(device, 4 * copied));
    }
    checks
}

fn driver_check(driver: &DriverFacts) -> Check {
    match (driver.version, &driver.problem) {
        (Some((major, minor)), None) => {
            let value = format!("CUDA {major}.{minor}");
            Check::new("driver", Status::Good, value, format!("{} devices", driver.devices.len()))
        }
        (_, problem) => {
            let why = problem.as_deref().unwrap_or("there is no device");
            Check::new("driver", Status::Fair, "no GPU to use", format!("batches go to host memory; {why}"))
        }
    }
}

fn host_copies(copied: usize) -> Check {
    const NAME: &str = "host copies";
    match copy_rate(&Device::host(), copied) {
        Ok(mb_s) => {
            let meaning = "how fast one thread gathers batches in host memory";
            Check::new(NAME, rate(mb_s, 2000.0, 500.0), format!("{mb_s:.0} MB/s"), meaning)
        }
        Err(error) => Check::new(NAME, Status::Bad, "failed", error.to_string()),
    }
}

fn device_check(device: &DeviceFacts) -> Check {
    let (major, minor) = device.compute_capability;
    let memory = ByteSize::bytes(device.memory_bytes);
    let near = device.host_node.map_or_else(String::new, |node| format!(", next to NUMA node {node}"));
    let value = format!("cuda:{} {}, {memory}, compute {major}.{minor}{near}", device.ordinal, device.name);
    match device.copy_engines {
        0 => Check::new("device", Status::Fair, value, "has no copy engine: copying and computing take turns"),
        engines => Check::new("device", Status::Good, value, format!("{engines} copy engines work beside kernels")),
    }
}

fn device_copies(device: &DeviceFacts, copied: usize) -> Check {
    const NAME: &str = "device copies";
    let measured = Device::cuda(device.ordinal).and_then(|found| copy_rate(&found, copied));
    match measured {
        Ok(mb_s) => {
            // Gen 3 with 16 lanes brings 12 GB/s.
            let status = rate(mb_s, 10_000.0, 2000.0);
            let meaning = match status {
                Status::Good => "from page-locked memory, bytes compared",
                _ => "slow: has the device all its PCIe lanes (nvidia-smi -q), and this process its NUMA node?",
            };
            Check::new(NAME, status, format!("cuda:{} {mb_s:.0} MB/s", device.ordinal), meaning)
        }
        Err(error) => Check::new(NAME, Status::Bad, format!("cuda:{} failed", device.ordinal), error.to_string()),
    }
}
