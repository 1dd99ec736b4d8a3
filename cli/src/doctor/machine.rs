//! Kernel, cores, memory and limits.

use std::fs;
use std::path::Path;

use farfeed::ByteSize;
use indicatif::HumanCount;
use rustix::process::{Resource, getrlimit};

use super::{Check, Status};

pub(super) fn checks() -> Vec<Check> {
    vec![kernel(), cores(), memory(), locked_memory(), huge_pages(), open_files()]
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let (status, meaning) = match version(&release) {
        Some(version) if version >= (6, 1) => (Status::Good, "io_uring at its best"),
        Some(version) if version >= (5, 11) => (Status::Fair, "io_uring works, and takes less CPU from 6.1 on"),
        Some(_) => (Status::Fair, "io_uring wants 5.11: files are read by a few threads instead"),
        None => (Status::Fair, "its version is not written as others are"),
    };
    Check::new("kernel", status, release, meaning)
}

/// Major and minor version of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cores() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let (status, meaning) = match cores {
        1 => (Status::Fair, "fetching, copying and your program take turns on it"),
        _ => (Status::Good, "fetching and copying run beside your program"),
    };
    Check::new("cores", status, cores.to_string(), meaning)
}

fn memory() -> Check {
    let info = rustix::system::sysinfo();
    let total = info.totalram.saturating_mul(u64::from(info.mem_unit.max(1)));
    let by_default = ByteSize::bytes(total / 4).min(ByteSize::gib(4));
    let limit = memory_limit().filter(|limit| *limit < total);
    let available = limit.unwrap_or(total);
    let value = match limit {
        Some(limit) => format!("{} of {} for this container", ByteSize::bytes(limit), ByteSize::bytes(total)),
        None => ByteSize::bytes(total).to_string(),
    };
    if by_default.as_bytes() * 2 > available {
        let advice = format!("the default for host_memory is {by_default}: give --host-memory, or raise the limit");
        return Check::new("memory", Status::Bad, value, advice);
    }
    Check::new("memory", Status::Good, value, format!("host_memory is {by_default} unless you say otherwise"))
}

/// The tightest memory limit of the control groups that this process is in, in bytes.
fn memory_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limits = Path::new(group).ancestors().filter_map(|group| {
        let text = fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join("memory.max")).ok()?;
        text.trim().parse::<u64>().ok()
    });
    limits.min()
}

fn locked_memory() -> Check {
    let limit = getrlimit(Resource::Memlock).current;
    let value = limit.map_or_else(|| "unlimited".to_owned(), |bytes| ByteSize::bytes(bytes).to_string());
    let meaning = "enough: GPU drivers lock pages without it, and the kernel takes it for io_uring before 5.12 only";
    // A ring of 64 operations takes a few pages of the kernel's.
    if limit.is_some_and(|bytes| bytes < 64 << 10) {
        return Check::new("locked memory", Status::Fair, value, "old kernels refuse io_uring: raise ulimit -l to 64");
    }
    Check::new("locked memory", Status::Good, value, meaning)
}

fn huge_pages() -> Check {
    const PLACE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let Ok(text) = fs::read_to_string(PLACE) else { return Check::unknown("huge pages", PLACE) };
    let chosen = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match chosen {
        Some(chosen @ ("always" | "madvise")) => {
            Check::new("huge pages", Status::Good, chosen, "host_memory is made of 2 MiB pages")
        }
        Some(chosen) => {
            let advice = format!("host_memory takes longer to set up: echo madvise > {PLACE}");
            Check::new("huge pages", Status::Fair, chosen, advice)
        }
        None => Check::unknown("huge pages", PLACE),
    }
}

fn open_files() -> Check {
    /// Connections, files kept open, and room for the program around.
    const ENOUGH: u64 = 1024;
    let limit = getrlimit(Resource::Nofile).current;
    let value = limit.map_or_else(|| "unlimited".to_owned(), |files| HumanCount(files).to_string());
    if limit.is_some_and(|files| files < ENOUGH) {
        let advice = format!("up to 256 connections and as many files may be open: ulimit -n {ENOUGH}");
        return Check::new("open files", Status::Bad, value, advice);
    }
    Check::new("open files", Status::Good, value, "enough for 256 connections")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert_eq!(version("next"), None);
    }
}
