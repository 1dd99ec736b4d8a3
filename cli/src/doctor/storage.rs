//! How files and sockets are read here.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use farfeed::ByteSize;
use farfeed::store::{FileBackend, FileOptions, FileStore};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statfs, statx};

use super::{Check, Status, rate};

pub(super) fn checks(path: &Path) -> Vec<Check> {
    vec![io_uring(), direct_reads(path), receive_buffer()]
}

fn io_uring() -> Check {
    let options = FileOptions { backend: FileBackend::Ring, ..FileOptions::default() };
    match FileStore::open(options) {
        Ok(_) => Check::new("io_uring", Status::Good, "works", "files are read straight into pages, many at once"),
        Err(error) => {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let advice = "files are read by a few threads instead; allow it with sysctl kernel.io_uring_disabled=0, \
                          or in the container's seccomp profile";
            Check::new("io_uring", Status::Fair, format!("refused ({why})"), advice)
        }
    }
}

fn direct_reads(path: &Path) -> Check {
    const NAME: &str = "direct reads";
    let shown = path.display();
    let kind = match statfs(path) {
        Ok(found) => file_system(found.f_type as u32),
        Err(error) => {
            return Check::new(NAME, Status::Bad, format!("{shown}"), format!("{error}: name a path to test"));
        }
    };
    let Some(file) = a_file(path) else {
        let meaning = "no file there to try, and none can be written: name a file of the dataset";
        return Check::new(NAME, Status::Fair, format!("unknown on {shown} ({kind})"), meaning);
    };
    if opens_directly(file.path()) {
        return Check::new(NAME, Status::Good, format!("{shown} ({kind})"), "reads bypass the page cache: no copy");
    }
    let meaning = "reads go through the page cache, which costs a copy; local ext4 and xfs can do without";
    Check::new(NAME, Status::Fair, format!("not on {shown} ({kind})"), meaning)
}

/// A file to try things on: one that is there, or one made for it.
enum Sample {
    There(PathBuf),
    Made(tempfile::NamedTempFile),
}

impl Sample {
    fn path(&self) -> &Path {
        match self {
            Sample::There(path) => path,
            Sample::Made(file) => file.path(),
        }
    }
}

fn a_file(path: &Path) -> Option<Sample> {
    /// Entries of a directory that are looked at.
    const LOOKED_AT: usize = 1000;
    if path.is_file() {
        return Some(Sample::There(path.to_owned()));
    }
    if let Ok(mut file) = tempfile::Builder::new().prefix(".farfeed-doctor-").tempfile_in(path)
        && file.write_all(&[0; 8192]).is_ok()
    {
        return Some(Sample::Made(file));
    }
    let entries = fs::read_dir(path).ok()?.take(LOOKED_AT).flatten();
    entries.map(|entry| entry.path()).find(|path| path.is_file() && File::open(path).is_ok()).map(Sample::There)
}

fn opens_directly(path: &Path) -> bool {
    let Ok(file) = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty()) else {
        return false;
    };
    // Some file systems let a file be opened so and then read it through the page cache.
    let told = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    !told.is_ok_and(|told| told.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && told.stx_dio_offset_align == 0)
}

/// The name of a file system by its magic number in `statfs`.
fn file_system(magic: u32) -> String {
    const NAMES: [(u32, &str); 15] = [
        (0xEF53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683E, "btrfs"),
        (0x2FC1_2FC1, "zfs"),
        (0xF2F5_2010, "f2fs"),
        (0xCA45_1A4E, "bcachefs"),
        (0x794C_7630, "overlay"),
        (0x0102_1994, "tmpfs"),
        (0x8584_58F6, "ramfs"),
        (0x6969, "NFS"),
        (0x6573_5546, "FUSE"),
        (0x0BD0_0BD0, "Lustre"),
        (0xFE53_4D42, "SMB"),
        (0x0102_1997, "9p"),
        (0x00C3_6400, "CephFS"),
    ];
    let known = NAMES.iter().find(|(number, _)| *number == magic);
    known.map_or_else(|| format!("file system {magic:#x}"), |(_, name)| (*name).to_owned())
}

fn receive_buffer() -> Check {
    const NAME: &str = "receive buffer";
    const PLACE: &str = "/proc/sys/net/ipv4/tcp_rmem";
    const FAR: f64 = 0.030;
    let text = fs::read_to_string(PLACE).unwrap_or_default();
    let Some(most) = text.split_whitespace().nth(2).and_then(|bytes| bytes.parse::<u64>().ok()) else {
        return Check::unknown(NAME, PLACE);
    };
    // About half of the buffer is window, the rest is the kernel's book-keeping.
    let per_connection = most as f64 / 2.0 / FAR / 1e6;
    let status = rate(most as f64, f64::from(4 << 20), f64::from(1 << 20));
    let mut meaning = format!("a connection carries at most about {per_connection:.0} MB/s at 30 ms");
    if status != Status::Good {
        meaning += "; sysctl net.ipv4.tcp_rmem='4096 131072 16777216' saves connections";
    }
    Check::new(NAME, status, format!("up to {}", ByteSize::bytes(most)), meaning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_tried_without_leaving_anything_behind() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(direct_reads(&folder.path().join("none")).status, Status::Bad);
        assert_ne!(direct_reads(folder.path()).status, Status::Bad);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let file = folder.path().join("file");
        fs::write(&file, b"x").unwrap();
        assert_ne!(direct_reads(&file).status, Status::Bad);
        assert_eq!((file_system(0xEF53).as_str(), file_system(1).as_str()), ("ext4", "file system 0x1"));
    }
}
