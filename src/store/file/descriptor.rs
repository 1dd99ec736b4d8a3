//! Open files: what they are, how they may be read, and which stay open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, StatxFlags};

use super::ROOT;
use super::span::Source;
use crate::dataset::Version;
use crate::error::{Error, Kind, Result};

/// Alignment of direct reads where the kernel does not tell (before 6.1, some network file systems): no block device
/// in use asks for more.
pub(super) const ALIGNMENT_FALLBACK: usize = 4096;
/// Files kept open; two descriptors each. Half of the usual soft limit of 1024 stays for sockets.
const OPEN_FILES: usize = 64;

/// A file, open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) identity: Identity,
    source: Source,
    /// Bytes that direct reads are aligned to; `None` where the file cannot be read directly.
    pub(super) alignment: Option<usize>,
    /// Whether asking for its state is a matter of memory, not of a network.
    pub(super) local: bool,
}

/// Which file it is and what state it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Identity {
    fn of(stat: &Stat) -> Self {
        Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified_s: stat.st_mtime,
            modified_ns: stat.st_mtime_nsec as i64,
        }
    }

    /// Size and time of change. The inode stays out: network and FUSE file systems number anew at each mount, and
    /// a resumed epoch would find every shard changed.
    pub(super) fn version(&self) -> Version {
        Version(format!("{}-{}.{:09}", self.size, self.modified_s, self.modified_ns).into())
    }
}

/// What the path names now.
pub(super) fn identify(key: &str) -> Result<Identity> {
    let stat = rustix::fs::stat(key).map_err(|errno| explain(key, "looking up", errno.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Identity::of(&stat)),
        // Opening a FIFO would wait for a writer, reading a directory fails late: both end here.
        other => Err(Error::new(Kind::Unsupported, format!("{ROOT}{key}: a {other:?}, not a file"))
            .advice("name the files, or a prefix of their paths")),
    }
}

impl OpenFile {
    /// Opens the file; `direct` says whether reads that bypass the page cache are wanted.
    pub(super) fn open(key: &str, direct: bool) -> Result<Self> {
        identify(key)?;
        let open = |flags| rustix::fs::open(key, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty());
        let buffered = File::from(open(OFlags::empty()).map_err(|errno| explain(key, "opening", errno.into()))?);
        let identity = state(key, &buffered)?;
        let mut source = Source { direct: None, buffered: Arc::new(buffered) };
        let mut alignment = None;
        if let Some(bytes) = alignment_of(&source.buffered).filter(|_| direct) {
            // Refused here on file systems without it; and if the name moved meanwhile, it is another file.
            let file = open(OFlags::DIRECT).ok().map(File::from);
            if let Some(file) = file.filter(|file| state(key, file).is_ok_and(|state| state == identity)) {
                source.direct = Some(Arc::new(file));
                alignment = Some(bytes);
            }
        }
        let local = is_local(&source.buffered);
        Ok(OpenFile { identity, source, alignment, local })
    }

    /// The state of the open file now, whatever its name names.
    pub(super) fn state(&self, key: &str) -> Result<Identity> {
        state(key, &self.source.buffered)
    }

    /// Descriptors for a read; the direct one only if it is `aligned`.
    pub(super) fn source(&self, aligned: bool) -> Source {
        let Source { direct, buffered } = &self.source;
        Source { direct: direct.clone().filter(|_| aligned), buffered: Arc::clone(buffered) }
    }
}

fn state(key: &str, file: &File) -> Result<Identity> {
    let stat = rustix::fs::fstat(file).map_err(|errno| explain(key, "looking at", errno.into()))?;
    Ok(Identity::of(&stat))
}

/// What direct reads of this file must be aligned to, in memory and in the file; `None` where it has none.
fn alignment_of(file: &File) -> Option<usize> {
    let Ok(statx) = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Some(ALIGNMENT_FALLBACK);
    };
    if statx.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Some(ALIGNMENT_FALLBACK);
    }
    let bytes = statx.stx_dio_mem_align.max(statx.stx_dio_offset_align) as usize;
    (statx.stx_dio_offset_align > 0 && bytes.is_power_of_two()).then_some(bytes)
}

/// Whether the file system is known to keep its metadata on this machine.
fn is_local(file: &File) -> bool {
    // ext2-4, xfs, btrfs, f2fs, zfs, bcachefs, overlayfs, tmpfs, ramfs.
    const LOCAL: [u32; 9] = [
        0xEF53,
        0x5846_5342,
        0x9123_683E,
        0xF2F5_2010,
        0x2FC1_2FC1,
        0xCA45_1A4E,
        0x794C_7630,
        0x0102_1994,
        0x8584_58F6,
    ];
    rustix::fs::fstatfs(file).is_ok_and(|fs| LOCAL.contains(&(fs.f_type as u32)))
}

/// The error for a system call on `key` that failed while `doing` something.
pub(super) fn explain(key: &str, doing: &str, error: io::Error) -> Error {
    let context = format!("{ROOT}{key}: {doing}");
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::new(Kind::NotFound, format!("{ROOT}{key}: no such file"))
        }
        io::ErrorKind::PermissionDenied => {
            Error::new(Kind::Auth, context).source(error).advice("let this user read the file and enter its folders")
        }
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => {
            Error::new(Kind::Config, context).source(error).advice("check the path")
        }
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Error::new(Kind::Io, context)
                .source(error)
                .advice("raise the limit of open files (ulimit -n)")
                .transient(),
            _ => Error::new(Kind::Io, context).source(error).transient(),
        },
    }
}

/// The files used last, kept open.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    by_key: HashMap<Arc<str>, (u64, Arc<OpenFile>)>,
    uses: u64,
}

impl Descriptors {
    pub(super) fn find(&self, key: &str) -> Option<Arc<OpenFile>> {
        let mut recent = self.lock();
        recent.uses += 1;
        let now = recent.uses;
        let (used, file) = recent.by_key.get_mut(key)?;
        *used = now;
        Some(Arc::clone(file))
    }

    /// Keeps `file`, and closes the one that was not used for longest (its reads in flight end first).
    pub(super) fn keep(&self, key: &Arc<str>, file: &Arc<OpenFile>) {
        let mut recent = self.lock();
        recent.uses += 1;
        let now = recent.uses;
        recent.by_key.insert(Arc::clone(key), (now, Arc::clone(file)));
        if recent.by_key.len() > OPEN_FILES {
            let oldest = recent.by_key.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| Arc::clone(key));
            oldest.and_then(|key| recent.by_key.remove(&key));
        }
    }

    pub(super) fn forget(&self, key: &str) {
        self.lock().by_key.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Recent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_files_used_last() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Descriptors::default();
        let keys: Vec<Arc<str>> =
            (0..OPEN_FILES + 2).map(|i| folder.path().join(i.to_string()).to_str().unwrap().into()).collect();
        for key in &keys {
            std::fs::write(&**key, key.as_bytes()).unwrap();
            cache.keep(key, &Arc::new(OpenFile::open(key, false).unwrap()));
            assert!(cache.find(&keys[0]).is_some());
        }
        assert_eq!(cache.lock().by_key.len(), OPEN_FILES);
        assert!(cache.find(&keys[1]).is_none() && cache.find(&keys[2]).is_none());
        cache.forget(&keys[0]);
        assert!(cache.find(&keys[0]).is_none());
    }

    #[test]
    fn says_what_a_path_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(identify(&path("none")).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(identify(folder.path().to_str().unwrap()).unwrap_err().kind(), Kind::Unsupported);
        std::fs::write(path("a"), b"12345").unwrap();
        assert_eq!(identify(&path("a/b")).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(identify("a\0b").unwrap_err().kind(), Kind::Config);
        let identity = identify(&path("a")).unwrap();
        assert!(identity.version().0.starts_with("5-"));
        let open = OpenFile::open(&path("a"), true).unwrap();
        assert_eq!(open.state("a").unwrap(), identity);
        assert!(open.alignment.is_none_or(usize::is_power_of_two));
    }

    #[test]
    fn a_file_that_changes_has_another_version() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("a").to_str().unwrap().to_owned();
        std::fs::write(&key, b"one").unwrap();
        let open = OpenFile::open(&key, false).unwrap();
        // Coarse clocks of older kernels tick every 10 ms.
        std::thread::sleep(std::time::Duration::from_millis(30));
        std::fs::write(&key, b"two").unwrap();
        assert_ne!(open.state(&key).unwrap().version(), open.identity.version());
    }
}
